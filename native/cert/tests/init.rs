//! The tool as its users call it.

mod support;

use std::fs;
use std::path::Path;
use std::process::Output;

use support::{mode, names, run};

fn init(dir: &Path, args: &[&str]) -> Output {
    run(&[&["init", dir.to_str().unwrap()], args].concat())
}

#[test]
fn init_writes_five_files_and_keeps_the_keys_private_and_off_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let output = init(dir.path(), &["--host", "localhost", "--host", "127.0.0.1"]);
    assert!(output.status.success(), "{output:?}");
    let expected = [
        "ca-key.pem",
        "ca.pem",
        "cert.pem",
        "dist_tls.conf",
        "key.pem",
    ];
    assert_eq!(names(dir.path()), expected);
    for key in ["key.pem", "ca-key.pem"] {
        assert_eq!(mode(dir.path().join(key)), 0o600);
    }
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(!printed.contains("PRIVATE"), "{printed}");
}

#[test]
fn init_replaces_nothing_without_force() {
    let dir = tempfile::tempdir().unwrap();
    assert!(init(dir.path(), &["--host", "a"]).status.success());
    let before = fs::read(dir.path().join("key.pem")).unwrap();
    let refused = init(dir.path(), &["--host", "a"]);
    assert!(!refused.status.success());
    assert!(
        String::from_utf8(refused.stderr)
            .unwrap()
            .contains("--force")
    );
    assert_eq!(fs::read(dir.path().join("key.pem")).unwrap(), before);
    assert!(
        init(dir.path(), &["--host", "a", "--force"])
            .status
            .success()
    );
    assert_ne!(fs::read(dir.path().join("key.pem")).unwrap(), before);
}

#[test]
fn another_directorys_authority_signs_and_keeps_its_key() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    assert!(init(a.path(), &["--host", "a"]).status.success());
    let ca = a.path().to_str().unwrap();
    let output = init(b.path(), &["--host", "b", "--ca", ca, "--days", "-1"]);
    assert!(output.status.success(), "{output:?}");
    let read = |dir: &Path| fs::read(dir.join("ca.pem")).unwrap();
    assert_eq!(read(a.path()), read(b.path()));
    assert!(!names(b.path()).contains(&"ca-key.pem".to_owned()));
}

#[test]
fn a_directory_without_an_authority_is_named() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let output = init(
        a.path(),
        &["--host", "a", "--ca", b.path().to_str().unwrap()],
    );
    assert!(!output.status.success());
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(
        sentence.contains("ca.pem") && sentence.contains("--ca"),
        "{sentence}"
    );
}
