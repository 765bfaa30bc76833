//! What the tests of the subcommands share.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory of the test's own, with an authority in `ca`.
pub struct Lab(TempDir);

impl Lab {
    pub fn new() -> Self {
        let lab = Self(tempfile::tempdir().unwrap());
        ok(&["ca", &lab.path("ca")]);
        lab
    }

    /// Where something in it is.
    pub fn path(&self, name: &str) -> String {
        self.dir().join(name).to_str().unwrap().into()
    }

    pub fn dir(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    /// A certificate in `name` for these nodes, by the authority in `ca`.
    pub fn node(&self, name: &str, args: &[&str]) {
        ok(&[&["node", &self.path(name), "--ca", &self.path("ca")], args].concat());
    }
}

pub fn run(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_polydist-cert"));
    command.args(args).output().unwrap()
}

/// What it prints when it succeeds, which never is a key.
pub fn ok(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    let all = [output.stdout.clone(), output.stderr].concat();
    assert!(!String::from_utf8(all).unwrap().contains("PRIVATE"));
    String::from_utf8(output.stdout).unwrap()
}

/// What it says when it fails, with this exit status.
pub fn fails(status: i32, args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {output:?}");
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(!sentence.contains("PRIVATE"), "{sentence}");
    sentence
}

/// That a sentence has all of these in it.
pub fn says(sentence: &str, parts: &[&str]) {
    for part in parts {
        assert!(sentence.contains(part), "{part:?} is not in {sentence:?}");
    }
}

/// The names of all files in a directory.
pub fn names(dir: impl AsRef<Path>) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn mode(file: impl AsRef<Path>) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// What openssl says.
pub fn openssl(args: &[&str]) -> String {
    let output = Command::new("openssl").args(args).output().unwrap();
    assert!(output.status.success(), "openssl {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
