//! Unix domain sockets, in a directory that nobody else can write to.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use polydist_proto::record::MAX_PATH;
use rustix::fs::{FlockOperation, Mode, chmod, flock};
use rustix::process::geteuid;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{Address, Credentials, Error, Kind, ListenOptions, SocketOpts, Transport};

#[derive(Debug)]
pub(crate) struct Uds;

impl Transport for Uds {
    fn name(&self) -> &'static str {
        "uds"
    }

    fn socket(&self, address: &Address) -> Result<(Socket, SockAddr), Error> {
        let path = checked_path(address)?;
        let open = || {
            let kernel = SockAddr::unix(path)?;
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            Ok((socket, kernel))
        };
        open().map_err(|error| Error::os(format!("cannot open a socket for uds {address}"), &error))
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> Result<(Socket, Address), Error> {
        let path = checked_path(address)?;
        let directory = safe_directory(path)?;
        let fails = |error: &io::Error| Error::os(format!("cannot listen on uds {address}"), error);
        // Held until this node listens: between bind and listen a socket looks stale to others.
        let _lock = lock(directory).map_err(|error| fails(&error))?;
        self.remove_stale(path, address)?;
        let (socket, kernel) = self.socket(address)?;
        let listen = || {
            self.tune(&socket, &options.socket)?;
            socket.bind(&kernel)?;
            chmod(path, Mode::from_raw_mode(options.mode))?;
            socket.listen(options.backlog)?;
            Ok(fs::symlink_metadata(path)?.mode() & 0o777)
        };
        match listen().map_err(|error| fails(&error))? {
            mode if mode == options.mode => Ok((socket, address.clone())),
            mode => {
                let _ = fs::remove_file(path);
                Err(Error::new(
                    Kind::UnsafeDirectory,
                    format!(
                        "the socket {address} has mode {mode:o} and not {:o}: its file system does not \
                         keep modes; choose a directory on another one",
                        options.mode
                    ),
                ))
            }
        }
    }

    /// Removes the path, unless another program has taken it since.
    fn unbind(&self, address: &Address) {
        let removed = checked_path(address).ok().map(|path| {
            let _lock = path
                .parent()
                .and_then(|dir| lock(File::open(dir).ok()?).ok());
            match self.probe(address) {
                Probe::Live => Ok(()),
                Probe::Stale | Probe::Absent => fs::remove_file(path),
                Probe::Failed(error) => Err(error),
            }
        });
        match removed {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %address, %error, "cannot remove the socket");
            }
            _ => {}
        }
    }

    fn tune(&self, socket: &Socket, options: &SocketOpts) -> io::Result<()> {
        options.apply_common(socket)
    }

    fn credentials(&self, socket: &Socket) -> Option<Credentials> {
        credentials(socket)
    }
}

/// Who made the other end of a Unix domain socket.
pub(crate) fn credentials(socket: &Socket) -> Option<Credentials> {
    let peer = rustix::net::sockopt::socket_peercred(socket).ok()?;
    Some(Credentials {
        uid: peer.uid.as_raw(),
        gid: peer.gid.as_raw(),
        pid: peer.pid.as_raw_pid(),
    })
}

/// What is behind a path.
enum Probe {
    Live,
    Stale,
    Absent,
    Failed(io::Error),
}

impl Uds {
    /// Connects without blocking: only a socket that nobody listens on refuses.
    fn probe(&self, address: &Address) -> Probe {
        let connected = match self.socket(address) {
            Ok((socket, kernel)) => socket.connect(&kernel),
            Err(_) => return Probe::Failed(io::ErrorKind::InvalidInput.into()),
        };
        match connected {
            Ok(()) => Probe::Live,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => Probe::Live, // its queue is full
                io::ErrorKind::ConnectionRefused => Probe::Stale,
                io::ErrorKind::NotFound => Probe::Absent,
                _ => Probe::Failed(error),
            },
        }
    }

    fn remove_stale(&self, path: &Path, address: &Address) -> Result<(), Error> {
        let what = format!("cannot listen on uds {address}");
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::os(what, &error)),
            Ok(file) if !file.file_type().is_socket() => {
                let exists = Kind::Os(rustix::io::Errno::EXIST);
                let why = "something that is no socket has that name; remove it (eexist)";
                return Err(Error::new(exists, format!("{what}: {why}")));
            }
            Ok(_) => {}
        }
        match self.probe(address) {
            Probe::Live => {
                let in_use = Kind::Os(rustix::io::Errno::ADDRINUSE);
                let why =
                    "a running program listens there; stop it or choose another path (eaddrinuse)";
                Err(Error::new(in_use, format!("{what}: {why}")))
            }
            Probe::Absent => Ok(()),
            Probe::Failed(error) => Err(Error::os(what, &error)),
            Probe::Stale => {
                tracing::info!(path = %address, "replacing the socket of a node that is gone");
                fs::remove_file(path).map_err(|error| Error::os(what, &error))
            }
        }
    }
}

fn checked_path(address: &Address) -> Result<&Path, Error> {
    let bad = |why: &str| Err(Error::new(Kind::BadOption, format!("uds {address}: {why}")));
    match (address, address.path()) {
        (Address::Local(bytes), _) if bytes.len() > MAX_PATH => Err(Error::new(
            Kind::TooLong,
            format!(
                "uds {address}: the path has {} bytes and a socket's path at most {MAX_PATH}; \
                 choose a shorter directory",
                bytes.len()
            ),
        )),
        (Address::Local(bytes), _) if bytes.contains(&0) => bad("the path contains a NUL byte"),
        (_, Some(path)) if path.is_absolute() => Ok(path),
        (_, Some(_)) => bad("the path must be absolute"),
        (Address::Opaque(_), _) => bad("uds needs a path, not another transport's address"),
        (_, None) => bad("uds needs a path, not an IP address"),
    }
}

/// The directory of `path`, made if absent, if nobody but its owner can replace what is in it.
fn safe_directory(path: &Path) -> Result<File, Error> {
    let directory = path.parent().unwrap_or(path);
    let shown = directory.display();
    let fails = |error: &io::Error| Error::os(format!("cannot use the directory {shown}"), error);
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fails(&error)),
        _ => {}
    }
    let found = fs::symlink_metadata(directory).map_err(|error| fails(&error))?;
    let why = match &found {
        found if found.is_symlink() => "it is a symbolic link",
        found if !found.is_dir() => "it is no directory",
        found if found.uid() != geteuid().as_raw() => "it belongs to another user",
        found if found.mode() & 0o022 != 0 => "others can write to it",
        _ => return File::open(directory).map_err(|error| fails(&error)),
    };
    Err(Error::new(
        Kind::UnsafeDirectory,
        format!(
            "the directory {shown} is not safe for a socket: {why}; \
             use one of your own with mode 0700"
        ),
    ))
}

/// Takes the directory's lock until the file is dropped. Others hold it for microseconds, so a few
/// short waits are enough; a process that was stopped while holding it must not keep us from going on.
fn lock(directory: File) -> io::Result<File> {
    for _ in 0..20 {
        match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) => sleep(Duration::from_millis(1)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(directory)
}
