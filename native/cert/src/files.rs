//! The files: where they are, who may read them, and what Erlang is told of them.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::Error;

pub(crate) const AUTHORITY: &str = "ca.pem";
pub(crate) const AUTHORITY_KEY: &str = "ca-key.pem";
pub(crate) const CERT: &str = "cert.pem";
pub(crate) const KEY: &str = "key.pem";
pub(crate) const OPTIONS: &str = "dist_tls.conf";
pub(crate) const CRL: &str = "crl.pem";

/// What is to be in a file.
pub(crate) struct File<'a> {
    path: PathBuf,
    text: &'a str,
    mode: u32,
}

impl<'a> File<'a> {
    /// For everybody to read.
    pub(crate) fn public(path: impl Into<PathBuf>, text: &'a str) -> Self {
        let (path, mode) = (path.into(), 0o644);
        Self { path, text, mode }
    }

    /// For nobody but its owner.
    pub(crate) fn private(path: impl Into<PathBuf>, text: &'a str) -> Self {
        let (path, mode) = (path.into(), 0o600);
        Self { path, text, mode }
    }

    /// A new file beside the one it is to become, complete and on the disk, with its mode from the
    /// start and the owner of the file it replaces. It goes away if nothing comes of it.
    fn beside(&self) -> io::Result<NamedTempFile> {
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut file = Builder::new()
            .prefix(".polydist-cert-")
            .permissions(Permissions::from_mode(self.mode))
            .tempfile_in(dir.unwrap_or(Path::new(".")))?;
        file.write_all(self.text.as_bytes())?;
        if let Ok(replaced) = fs::metadata(&self.path) {
            let now = file.as_file().metadata()?;
            if (now.uid(), now.gid()) != (replaced.uid(), replaced.gid()) {
                fchown(file.as_file(), Some(replaced.uid()), Some(replaced.gid()))?;
            }
        }
        file.as_file().sync_all()?;
        Ok(file)
    }

    fn is_in_the_way(&self) -> bool {
        // A dangling symbolic link as well.
        self.path.symlink_metadata().is_ok()
    }

    fn wrong(&self, error: io::Error) -> Error {
        Error::Write(self.path.clone(), error)
    }
}

/// Makes a directory, and says where it is.
pub(crate) fn directory(dir: &Path) -> Result<PathBuf, Error> {
    fs::create_dir_all(dir)
        .and_then(|()| dir.canonicalize())
        .map_err(|error| Error::Write(dir.into(), error))
}

/// Writes everything, or nothing if one of the files exists and `force` is not set. Each file is
/// replaced at once: who reads meanwhile gets all of the old one or all of the new one.
pub(crate) fn write(files: &[File<'_>], force: bool) -> Result<(), Error> {
    if let Some(file) = files.iter().find(|file| !force && file.is_in_the_way()) {
        return Err(Error::Exists(file.path.clone()));
    }
    if let Some(file) = files.iter().find(|file| file.path.is_dir()) {
        return Err(Error::unusable(
            &file.path,
            "a directory is in the way; remove it",
        ));
    }
    let mut written = Vec::new();
    for file in files {
        written.push(file.beside().map_err(|error| file.wrong(error))?);
    }
    for (done, (file, written)) in files.iter().zip(written).enumerate() {
        let put = match force {
            true => written.persist(&file.path),
            false => written.persist_noclobber(&file.path),
        };
        put.map_err(|error| match done {
            0 => file.wrong(error.error),
            _ => Error::Half(file.path.clone(), error.error),
        })?;
    }
    Ok(())
}

/// All of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::Read(path.into(), error, ""))
}

/// The text of a file; `hint` says what the file should be if it cannot be read.
pub(crate) fn read_text(path: &Path, hint: &'static str) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|error| Error::Read(path.into(), error, hint))
}

/// What `-ssl_dist_optfile` reads.
pub(crate) fn options(dir: &Path, encrypted: bool) -> String {
    let hint = match encrypted {
        true => "%% key.pem is encrypted: add {password, \"...\"} after each keyfile.\n",
        false => "",
    };
    let path = |name| {
        let path = dir.join(name).display().to_string();
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let (cert, key, ca) = (path(CERT), path(KEY), path(AUTHORITY));
    format!(
        "{hint}[{{server, [{{certfile, {cert}}},
           {{keyfile, {key}}},
           {{cacertfile, {ca}}},
           {{verify, verify_peer}},
           {{fail_if_no_peer_cert, true}}]}},
 {{client, [{{certfile, {cert}}},
           {{keyfile, {key}}},
           {{cacertfile, {ca}}},
           {{verify, verify_peer}}]}}].
"
    )
}
