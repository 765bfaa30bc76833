//! The files of the registry in a directory.
//!
//! ```text
//! name_len:8 name times:8 content       the content is written so many times, and once more
//! ```

use std::cell::OnceCell;
use std::fs;
use std::path::Path;

use polydist_transport::Kind;
use polydist_transport::directory::{Entry, MAX_RECORD, nodes, read};
use tempfile::TempDir;

thread_local! {
    static LAB: OnceCell<TempDir> = const { OnceCell::new() };
}

/// A node of any name with any record: it is read as it was written, and nothing is left of it.
pub fn directory(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else {
        return;
    };
    let (name, rest) = rest.split_at(rest.len().min(len.into()));
    let (times, content) = rest.split_first().unwrap_or((&0, &[]));
    let content = content.repeat(usize::from(*times) + 1);
    LAB.with(|lab| {
        let lab = lab.get_or_init(|| TempDir::new().expect("a directory for the test"));
        come_and_go(&lab.path().join("nodes"), name, &content);
        let left = fs::read_dir(lab.path()).unwrap().count();
        assert!(left <= 1, "something is outside of the directory");
    });
}

fn come_and_go(directory: &Path, name: &[u8], content: &[u8]) {
    let Ok(entry) = Entry::claim(directory, name, content) else {
        return assert!(names(directory).is_empty());
    };
    assert_eq!(names(directory), [name]);
    match read(directory, name) {
        Ok(found) => assert!(found == content, "it reads as something else"),
        Err(error) => {
            assert!(content.len() as u64 > MAX_RECORD, "{error}");
            assert_eq!(error.kind(), Kind::BadReply);
        }
    }
    drop(entry);
    assert!(names(directory).is_empty());
    assert_eq!(read(directory, name).unwrap_err().kind(), Kind::NotFound);
}

/// The nodes that are listed; besides their files there is only the lock.
fn names(directory: &Path) -> Vec<Vec<u8>> {
    let listed = nodes(directory).unwrap_or_default();
    let files = fs::read_dir(directory).map_or(0, Iterator::count);
    assert!(files <= listed.len() + 1, "a file is left behind");
    listed
}
