//! A directory as a registry: a file with the record of each node, `NODE.node`.
//!
//! A file appears and changes by a rename, whole or not at all. Its node keeps it locked (flock(2))
//! as long as it lives; the kernel lets go of the lock when the node is gone, however it went, and
//! so a file without a lock is that of a dead node. This holds on a volume that several hosts share
//! if its file system has such locks, as NFS does.
//!
//! What others could have written is not believed: directory and file must belong to this user or
//! to root, and nobody else may write to them.
//!
//! Everything here touches the file system and blocks as long as that takes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::geteuid;

use crate::{Error, Kind};

/// The longest record that is read.
pub const MAX_RECORD: u64 = 64 * 1024;

const SUFFIX: &[u8] = b".node";

/// Others hold the directory's lock for as long as it takes to write a file.
const ATTEMPTS: usize = 40;
const ATTEMPT: Duration = Duration::from_millis(5);

/// A node's place in a directory. The file goes when this is dropped.
#[derive(Debug)]
pub struct Entry {
    directory: PathBuf,
    path: PathBuf,
    /// Has the lock.
    file: File,
}

impl Entry {
    /// Writes the file of a node that has none that lives. Makes the directory if it is not there.
    pub fn claim(directory: &Path, node: &[u8], record: &[u8]) -> Result<Self, Error> {
        let path = path(directory, node)?;
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make", directory, &error));
            }
            _ => {}
        }
        check_directory(directory)?;
        let _lock = lock(directory)?;
        if path.exists() && is_locked(&path).map_err(|error| failed("read", &path, &error))? {
            return Err(Error::new(
                Kind::DuplicateName,
                format!(
                    "{} belongs to a node that runs; stop it or choose another name",
                    path.display()
                ),
            ));
        }
        let file = put(&path, record)?;
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            path,
            file,
        })
    }

    /// Writes another record.
    pub fn update(&mut self, record: &[u8]) -> Result<(), Error> {
        let _lock = lock(&self.directory)?;
        // The lock on the file that is replaced goes with it.
        self.file = put(&self.path, record)?;
        Ok(())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let _lock = lock(&self.directory);
        // Somebody may have cleaned up; what has our name now is not ours.
        let ours = match (self.file.metadata(), fs::symlink_metadata(&self.path)) {
            (Ok(ours), Ok(found)) => same(&ours, &found),
            _ => false,
        };
        if ours && let Err(error) = fs::remove_file(&self.path) {
            // Without its lock it is a dead node's all the same.
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the node's file");
        }
    }
}

/// The record of a node that lives.
pub fn read(directory: &Path, node: &[u8]) -> Result<Vec<u8>, Error> {
    let path = path(directory, node)?;
    check_directory(directory)?;
    let fails = |error: &io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Error::new(Kind::NotFound, format!("there is no {}", path.display()))
        }
        _ => failed("read", &path, error),
    };
    let file = open(&path).map_err(|error| fails(&error))?;
    let found = file.metadata().map_err(|error| fails(&error))?;
    if !found.is_file() || found.len() > MAX_RECORD {
        let sentence = format!("{} is no file with a record", path.display());
        return Err(Error::new(Kind::BadReply, sentence));
    }
    check_owner(&path, &found)?;
    if !is_locked(&path).map_err(|error| fails(&error))? {
        let sentence = format!("{} is that of a node which has ended", path.display());
        return Err(Error::new(Kind::NotFound, sentence));
    }
    let mut record = Vec::new();
    file.take(MAX_RECORD)
        .read_to_end(&mut record)
        .map_err(|error| fails(&error))?;
    Ok(record)
}

/// The nodes that live.
pub fn nodes(directory: &Path) -> Result<Vec<Vec<u8>>, Error> {
    check_directory(directory)?;
    let fails = |error: &io::Error| failed("read", directory, error);
    let mut nodes = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| fails(&error))? {
        let entry = entry.map_err(|error| fails(&error))?;
        let name = entry.file_name().into_vec();
        if let Some(node) = name.strip_suffix(SUFFIX)
            && is_locked(&entry.path()).unwrap_or(false)
        {
            nodes.push(node.to_vec());
        }
    }
    Ok(nodes)
}

fn path(directory: &Path, node: &[u8]) -> Result<PathBuf, Error> {
    if node.is_empty() || node.contains(&b'/') || node.contains(&0) {
        let shown = String::from_utf8_lossy(node);
        let sentence = format!("{shown:?} cannot be the name of a file; choose another node name");
        return Err(Error::new(Kind::BadOption, sentence));
    }
    Ok(directory.join(OsString::from_vec([node, SUFFIX].concat())))
}

/// Writes a file that is locked before anybody can see it.
fn put(path: &Path, record: &[u8]) -> Result<File, Error> {
    let new = path.with_extension("new");
    let fails = |error: &io::Error| failed("write", path, error);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fails(&error)),
        _ => {}
    }
    let written = || {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&new)?;
        file.write_all(record)?;
        file.try_lock()?;
        fs::rename(&new, path)?;
        Ok(file)
    };
    written().map_err(|error: io::Error| {
        let _ = fs::remove_file(&new);
        fails(&error)
    })
}

/// Two nodes that take the same name at the same moment must not both get it.
fn lock(directory: &Path) -> Result<File, Error> {
    let path = directory.join(OsStr::from_bytes(b".lock"));
    let fails = |error: &io::Error| failed("lock", directory, error);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)
        .map_err(|error| fails(&error))?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => sleep(ATTEMPT),
            Err(TryLockError::Error(error)) => return Err(fails(&error)),
        }
    }
    let shown = directory.display();
    let sentence = format!("cannot lock {shown}: another node has it; trying again will help");
    Err(Error::new(Kind::Timeout, sentence))
}

fn is_locked(path: &Path) -> io::Result<bool> {
    for _ in 0..ATTEMPTS {
        let file = open(path)?;
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => return Ok(true),
            Err(TryLockError::Error(error)) => return Err(error),
            // The lock of a file that has just been replaced says nothing.
            Ok(()) if same(&file.metadata()?, &fs::symlink_metadata(path)?) => return Ok(false),
            Ok(()) => {}
        }
    }
    // Who replaces it so often is alive.
    Ok(true)
}

/// Neither follows a link nor waits for the other end of a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path)
}

fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn check_directory(directory: &Path) -> Result<(), Error> {
    let found =
        fs::symlink_metadata(directory).map_err(|error| failed("use", directory, &error))?;
    match () {
        () if found.is_symlink() => Err(unsafe_path(directory, "it is a symbolic link")),
        () if !found.is_dir() => Err(unsafe_path(directory, "it is no directory")),
        () => check_owner(directory, &found),
    }
}

fn check_owner(path: &Path, found: &Metadata) -> Result<(), Error> {
    let ours = geteuid().as_raw();
    match () {
        () if found.uid() != ours && found.uid() != 0 => {
            Err(unsafe_path(path, "it belongs to another user"))
        }
        () if found.mode() & 0o022 != 0 => Err(unsafe_path(path, "others can write to it")),
        () => Ok(()),
    }
}

fn unsafe_path(path: &Path, why: &str) -> Error {
    let shown = path.display();
    let sentence =
        format!("{shown} is not to be trusted: {why}; use a directory of your own with mode 0700");
    Error::new(Kind::UnsafeDirectory, sentence)
}

fn failed(verb: &str, path: &Path, error: &io::Error) -> Error {
    Error::os(format!("cannot {verb} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    use super::*;

    /// A new directory that goes with the test.
    struct Lab(PathBuf);

    impl Lab {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "polydist-dir-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Relaxed)
            );
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn kind<T>(result: Result<T, Error>) -> Option<Kind> {
        result.err().map(|error| error.kind())
    }

    #[test]
    fn a_node_is_found_while_it_has_its_entry() {
        let Lab(dir) = &Lab::new();
        let mut entry = Entry::claim(dir, b"a@h", b"one").unwrap();
        assert_eq!(read(dir, b"a@h").unwrap(), b"one");
        entry.update(b"two").unwrap();
        assert_eq!(read(dir, b"a@h").unwrap(), b"two");
        assert_eq!(nodes(dir).unwrap(), [b"a@h"]);
        drop(entry);
        assert_eq!(kind(read(dir, b"a@h")), Some(Kind::NotFound));
        assert_eq!(nodes(dir).unwrap(), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_name_that_lives_is_taken_and_a_dead_one_is_free() {
        let Lab(dir) = &Lab::new();
        let entry = Entry::claim(dir, b"a@h", b"one").unwrap();
        assert_eq!(
            kind(Entry::claim(dir, b"a@h", b"two")),
            Some(Kind::DuplicateName)
        );
        drop(entry);
        // As a node that was killed leaves it.
        fs::write(dir.join("a@h.node"), b"old").unwrap();
        assert_eq!(kind(read(dir, b"a@h")), Some(Kind::NotFound));
        let _entry = Entry::claim(dir, b"a@h", b"two").unwrap();
        assert_eq!(read(dir, b"a@h").unwrap(), b"two");
    }

    #[test]
    fn what_others_could_have_written_is_not_believed() {
        let Lab(dir) = &Lab::new();
        let entry = Entry::claim(dir, b"a@h", b"one").unwrap();
        fs::set_permissions(dir, PermissionsExt::from_mode(0o777)).unwrap();
        assert_eq!(kind(read(dir, b"a@h")), Some(Kind::UnsafeDirectory));
        assert_eq!(
            kind(Entry::claim(dir, b"b@h", b"")),
            Some(Kind::UnsafeDirectory)
        );
        fs::set_permissions(dir, PermissionsExt::from_mode(0o700)).unwrap();
        let file = dir.join("a@h.node");
        fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
        assert_eq!(kind(read(dir, b"a@h")), Some(Kind::UnsafeDirectory));
        symlink(&file, dir.join("b@h.node")).unwrap();
        assert!(read(dir, b"b@h").is_err());
        drop(entry);
    }

    #[test]
    fn a_reader_never_sees_half_a_record_or_a_dead_node() {
        let Lab(dir) = &Lab::new();
        let mut entry = Entry::claim(dir, b"a@h", &[0; 1000]).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..200_u8 {
                    entry.update(&[round; 1000]).unwrap();
                }
            });
            while !writer.is_finished() {
                let record = read(dir, b"a@h").unwrap();
                assert_eq!(record.len(), 1000);
                assert!(record.iter().all(|byte| *byte == record[0]));
            }
        });
    }

    #[test]
    fn of_two_that_claim_a_name_at_once_one_gets_it() {
        let Lab(dir) = &Lab::new();
        for _ in 0..50 {
            let claim = || Entry::claim(dir, b"a@h", b"mine");
            let got = std::thread::scope(|scope| {
                let other = scope.spawn(claim);
                [claim(), other.join().unwrap()]
            });
            assert_eq!(got.iter().filter(|entry| entry.is_ok()).count(), 1);
        }
    }

    #[test]
    fn names_that_are_no_file_names_are_refused() {
        let Lab(dir) = &Lab::new();
        for node in [&b""[..], b"../a@h", b"a\0@h"] {
            assert_eq!(kind(Entry::claim(dir, node, b"")), Some(Kind::BadOption));
        }
    }
}
