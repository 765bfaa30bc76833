//! Socket options that users may set, by the names `inet` gives them.

use std::io;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket};

use crate::sctp_options::{self, SctpOpts};

/// Options of connected sockets; what is absent keeps the system's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOpts {
    /// TCP_NODELAY, or SCTP_NODELAY; on unless this says otherwise.
    pub nodelay: Option<bool>,
    /// SO_KEEPALIVE.
    pub keepalive: Option<bool>,
    /// SO_SNDBUF.
    pub sndbuf: Option<usize>,
    /// SO_RCVBUF.
    pub recbuf: Option<usize>,
    /// SO_PRIORITY.
    pub priority: Option<u32>,
    /// IP_TOS, or IPV6_TCLASS on an IPv6 socket.
    pub tos: Option<u32>,
    /// TCP_USER_TIMEOUT in milliseconds: how long sent data may stay unacknowledged; 0 is the
    /// system's default.
    pub user_timeout: Option<u32>,
    /// What only SCTP has; other transports take no notice.
    pub sctp: SctpOpts,
}

impl SocketOpts {
    /// The options that every stream socket has.
    pub(crate) fn apply_common(&self, socket: &Socket) -> io::Result<()> {
        each(self.keepalive, |on| socket.set_keepalive(on))?;
        each(self.sndbuf, |size| socket.set_send_buffer_size(size))?;
        each(self.recbuf, |size| socket.set_recv_buffer_size(size))
    }

    /// The options of TCP, SCTP and IP.
    pub(crate) fn apply_tcp(&self, socket: &Socket) -> io::Result<()> {
        set_nodelay(socket, self.nodelay.unwrap_or(true))?;
        each(self.tos, |tos| set_tos(socket, tos))?;
        each(self.user_timeout, |time| set_user_timeout(socket, time))?;
        each(self.priority, |priority| socket.set_priority(priority))?;
        match is_sctp(socket)? {
            true => self.sctp.apply(socket),
            false => Ok(()),
        }
    }
}

/// Sets TCP_NODELAY, or SCTP_NODELAY, where there is such a thing.
pub fn set_nodelay(socket: &Socket, on: bool) -> io::Result<()> {
    match is_sctp(socket)? {
        true => sctp_options::set_nodelay(socket, on),
        false => where_known(socket.set_tcp_nodelay(on)),
    }
}

/// What [`set_nodelay`] set.
pub fn nodelay(socket: &Socket) -> io::Result<bool> {
    match is_sctp(socket)? {
        true => sctp_options::nodelay(socket),
        false => socket.tcp_nodelay(),
    }
}

/// Sets TCP_NOTSENT_LOWAT, how many unsent bytes the kernel may hold, where there is such a thing.
pub fn set_unsent(socket: &Socket, bytes: u32) -> io::Result<()> {
    where_known(socket.set_tcp_notsent_lowat(bytes))
}

/// Sets IP_TOS, or IPV6_TCLASS on an IPv6 socket, which takes IP_TOS without any effect. Keeps the
/// priority, which the kernel would derive from it (socket(7)); so does `inet_drv`. A socket that is
/// not IP's has no such thing.
pub fn set_tos(socket: &Socket, tos: u32) -> io::Result<()> {
    let priority = socket.priority()?;
    where_known(match socket.domain()? {
        Domain::IPV4 => socket.set_tos_v4(tos),
        Domain::IPV6 => socket.set_tclass_v6(tos),
        _ => return Ok(()),
    })?;
    socket.set_priority(priority)
}

/// What [`set_tos`] set.
pub fn tos(socket: &Socket) -> io::Result<u32> {
    match socket.domain()? {
        Domain::IPV6 => socket.tclass_v6(),
        _ => socket.tos_v4(),
    }
}

/// Sets TCP_USER_TIMEOUT to so many milliseconds, where there is such a thing. A Unix domain socket
/// needs none: what it takes is with the peer.
pub fn set_user_timeout(socket: &Socket, milliseconds: u32) -> io::Result<()> {
    let time = Duration::from_millis(milliseconds.into());
    where_known(socket.set_tcp_user_timeout(Some(time)))
}

/// What [`set_user_timeout`] set; 0 where there is no such thing.
pub fn user_timeout(socket: &Socket) -> io::Result<u32> {
    match socket.tcp_user_timeout() {
        // The kernel keeps it in an int.
        Ok(time) => Ok(time.map_or(0, |time| time.as_millis() as u32)),
        Err(error) => where_known(Err(error)).map(|()| 0),
    }
}

/// A socket that is not TCP's does not know TCP's options, a family's socket not another's: nothing
/// is set then. AF_UNIX says so by EOPNOTSUPP, as does MPTCP of what it has not, others by
/// ENOPROTOOPT.
fn where_known(set: io::Result<()>) -> io::Result<()> {
    match set.as_ref().map_err(Errno::from_io_error) {
        Err(Some(Errno::OPNOTSUPP | Errno::NOPROTOOPT)) => Ok(()),
        _ => set,
    }
}

fn is_sctp(socket: &Socket) -> io::Result<bool> {
    Ok(socket.protocol()? == Some(Protocol::SCTP))
}

pub(crate) fn each<T>(option: Option<T>, set: impl FnOnce(T) -> io::Result<()>) -> io::Result<()> {
    option.map_or(Ok(()), set)
}
