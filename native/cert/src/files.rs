//! The files: where they are, who may read them, and what Erlang is told of them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::Error;
use crate::issue::Pair;

/// The authority in a directory that [`write()`] made.
pub(crate) fn read_authority(dir: &Path) -> Result<Pair, Error> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).map_err(|error| Error::Read(path, error))
    };
    Ok(Pair {
        cert: read("ca.pem")?,
        key: read("ca-key.pem")?,
    })
}

/// Writes everything, or nothing if one of the files exists and `force` is not set.
pub(crate) fn write(
    dir: &Path,
    authority: &Pair,
    identity: &Pair,
    with_authority_key: bool,
    force: bool,
) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(|error| Error::Write(dir.into(), error))?;
    let absolute = dir
        .canonicalize()
        .map_err(|error| Error::Write(dir.into(), error))?;
    let options = options(&absolute);
    let mut files = vec![
        ("ca.pem", &authority.cert, 0o644),
        ("cert.pem", &identity.cert, 0o644),
        ("key.pem", &identity.key, 0o600),
        ("dist_tls.conf", &options, 0o644),
    ];
    if with_authority_key {
        files.push(("ca-key.pem", &authority.key, 0o600));
    }
    let existing = files
        .iter()
        .map(|(name, ..)| dir.join(name))
        .find(|path| path.exists());
    if let Some(path) = existing.filter(|_| !force) {
        return Err(Error::Exists(path));
    }
    for (name, text, mode) in files {
        let path = dir.join(name);
        write_file(&path, text, mode).map_err(|error| Error::Write(path, error))?;
    }
    Ok(())
}

/// A new file each time: one that exists may have a mode that lets others read.
fn write_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// What `-ssl_dist_optfile` reads.
fn options(dir: &Path) -> String {
    let path = |name| {
        let path = dir.join(name).display().to_string();
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
    };
    let (cert, key, ca) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
    format!(
        "[{{server, [{{certfile, {cert}}},
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
