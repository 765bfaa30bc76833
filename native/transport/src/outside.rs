//! Transports whose sockets are made, and connected, outside this crate: all that is known of one
//! here is its name. The sockets may be of any family as long as they are connected streams.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use polydist_channel::Stats;
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::Instant;

use crate::dial::info;
use crate::{
    Address, Connection, Credentials, Error, Info, Kind, ListenOptions, Pending, Side, SocketOpts,
    Stream, Transport, Wire, tcp, transport, uds,
};

/// The most such transports there can be in the life of a process: their names are never forgotten.
const MAX_TRANSPORTS: usize = 64;
/// The longest name that a registration record can hold.
const MAX_NAME: usize = 255;

#[derive(Debug)]
struct Outside {
    name: &'static str,
}

impl Transport for Outside {
    fn name(&self) -> &'static str {
        self.name
    }

    fn socket(&self, _: &Address) -> Result<(Socket, SockAddr), Error> {
        Err(self.makes_none())
    }

    fn bind(&self, _: &Address, _: &ListenOptions) -> Result<(Socket, Address), Error> {
        Err(self.makes_none())
    }

    /// Whatever the socket is: one that is not IP's has neither TCP's options nor IP's.
    fn tune(&self, socket: &Socket, options: &SocketOpts) -> io::Result<()> {
        match socket.domain()? {
            Domain::IPV4 | Domain::IPV6 => tcp::tune(socket, options),
            _ => options.apply_common(socket),
        }
    }

    fn credentials(&self, socket: &Socket) -> Option<Credentials> {
        // Sockets of other families answer, too, but not with a user.
        match socket.domain() {
            Ok(Domain::UNIX) => uds::credentials(socket),
            _ => None,
        }
    }
}

impl Outside {
    fn makes_none(&self) -> Error {
        let sentence = format!("{} does not make its sockets here; hand them in", self.name);
        Error::new(Kind::BadOption, sentence)
    }
}

/// The transport of this name, whose sockets are made elsewhere. The same one for the same name; a
/// name counts for ever among the 64 that there can be.
pub fn outside(name: &str) -> Result<&'static dyn Transport, Error> {
    static KNOWN: Mutex<Vec<&'static Outside>> = Mutex::new(Vec::new());
    let bad = |why: String| Err(Error::new(Kind::BadOption, why));
    // A panic elsewhere leaves the list whole.
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.iter().find(|known| known.name == name) {
        return Ok(*found);
    }
    if transport(name).is_some() {
        return bad(format!(
            "{name} is a transport of polydist itself; choose another name"
        ));
    }
    if name.is_empty() || name.len() > MAX_NAME {
        return bad(format!(
            "the name of a transport has 1 to {MAX_NAME} bytes, not {}",
            name.len()
        ));
    }
    if known.len() == MAX_TRANSPORTS {
        return bad(format!(
            "there can be {MAX_TRANSPORTS} transports beside polydist's own, and there are: \
             {name} is one too many"
        ));
    }
    let name = Box::leak(name.to_owned().into_boxed_str());
    let new: &'static Outside = Box::leak(Box::new(Outside { name }));
    known.push(new);
    Ok(new)
}

/// Goes on where [`dial`](crate::dial()) would have connected: with a duplicate of a stream socket
/// that is connected to `peer` already. Needs a tokio runtime.
pub fn adopt(
    transport: &'static dyn Transport,
    fd: BorrowedFd<'_>,
    peer: Address,
    options: &SocketOpts,
) -> Result<(Connection, Pending<Info>), Error> {
    let start = Instant::now();
    let what = format!("cannot connect to {} {peer}", transport.name());
    let socket = duplicate(fd).map_err(|error| error.during(&what))?;
    let stats = Arc::new(Stats::default());
    let tuned = transport.tune(&socket, options);
    let stream = tuned.and_then(|()| Stream::new(socket, stats.clone()));
    let wire = Wire::Plain(stream.map_err(|error| Error::os(&what, &error))?);
    let side = Side::Dial {
        tls: None,
        server_name: None,
    };
    let info = info(transport, &wire, peer, &side, start);
    let connected = std::future::ready(Ok((wire, info)));
    let forever = std::future::pending();
    Ok(Connection::spawn(
        transport,
        stats,
        connected,
        forever,
        |_| (),
    ))
}

/// A descriptor of our own for a connected stream socket: non-blocking (which the original becomes as
/// well), close-on-exec.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<Socket, Error> {
    let what = format!("file descriptor {}", fd.as_raw_fd());
    let fails = |error: io::Error| Error::os(&what, &error);
    let socket = Socket::from(fd.try_clone_to_owned().map_err(fails)?);
    if let Some(other) = no_stream(&socket).map_err(fails)? {
        let sentence = format!("{what} is {other} and not a stream socket");
        return Err(Error::new(Kind::NotAStream, sentence));
    }
    match socket.peer_addr() {
        Ok(_) => {}
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOTCONN) => {
            let sentence =
                format!("{what}: the socket is not connected, or not any more (enotconn)");
            return Err(Error::new(Kind::Os(Errno::NOTCONN), sentence));
        }
        Err(error) => return Err(fails(error)),
    }
    socket.set_nonblocking(true).map_err(fails)?;
    Ok(socket)
}

/// What it is, if it is not a stream socket.
fn no_stream(socket: &Socket) -> io::Result<Option<&'static str>> {
    match FileType::from_raw_mode(fstat(socket)?.st_mode) {
        FileType::Socket => {}
        FileType::RegularFile => return Ok(Some("a file")),
        FileType::Directory => return Ok(Some("a directory")),
        FileType::Fifo => return Ok(Some("a pipe")),
        FileType::CharacterDevice | FileType::BlockDevice => return Ok(Some("a device")),
        _ => return Ok(Some("no socket")),
    }
    Ok(match socket.r#type()? {
        Type::STREAM => None,
        Type::DGRAM => Some("a datagram socket"),
        Type::SEQPACKET => Some("a socket for packets in sequence"),
        _ => Some("a socket of another type"),
    })
}
