//! Why the tool did not do what it was asked.

use std::io;
use std::path::{Path, PathBuf};

/// Its text says what is wrong, where, and how to mend it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0} exists already; choose another directory, or --force to replace it")]
    Exists(PathBuf),
    #[error("cannot write {0}: {1}; nothing of the set was changed")]
    Write(PathBuf, io::Error),
    #[error(
        "cannot put {0} in its place: {1}; other files of the set are there already: run this again with --force"
    )]
    Half(PathBuf, io::Error),
    #[error("cannot read {0}: {1}{2}")]
    Read(PathBuf, io::Error, &'static str),
    #[error("the certificate cannot be made: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("{0}: {1}")]
    Unusable(PathBuf, String),
    #[error("the key cannot be encrypted: {0}")]
    Encrypt(#[from] pkcs8::Error),
    #[error("cannot try a connection: {0}")]
    Rehearse(io::Error),
    #[error("cannot print: {0}")]
    Print(io::Error),
    #[error("this cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl Error {
    /// This file is there, but what is in it will not do.
    pub(crate) fn unusable(path: &Path, why: impl Into<String>) -> Self {
        Self::Unusable(path.into(), why.into())
    }
}
