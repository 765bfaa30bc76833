//! Socket options that users may set, by the names `inet` gives them.

use std::io;
use std::time::Duration;

use socket2::{Domain, Socket};

/// Options of connected sockets; what is absent keeps the system's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOpts {
    /// TCP_NODELAY; on unless this says otherwise.
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
}

impl SocketOpts {
    /// The options that every stream socket has.
    pub(crate) fn apply_common(&self, socket: &Socket) -> io::Result<()> {
        each(self.keepalive, |on| socket.set_keepalive(on))?;
        each(self.sndbuf, |size| socket.set_send_buffer_size(size))?;
        each(self.recbuf, |size| socket.set_recv_buffer_size(size))
    }

    /// The options of TCP and IP.
    pub(crate) fn apply_tcp(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(self.nodelay.unwrap_or(true))?;
        each(self.tos, |tos| set_tos(socket, tos))?;
        each(self.user_timeout, |time| set_user_timeout(socket, time))?;
        each(self.priority, |priority| socket.set_priority(priority))
    }
}

/// Sets IP_TOS, or IPV6_TCLASS on an IPv6 socket, which takes IP_TOS without any effect. Keeps the
/// priority, which the kernel would derive from it (socket(7)); so does `inet_drv`.
pub fn set_tos(socket: &Socket, tos: u32) -> io::Result<()> {
    let priority = socket.priority()?;
    match socket.domain()? {
        Domain::IPV6 => socket.set_tclass_v6(tos)?,
        _ => socket.set_tos_v4(tos)?,
    }
    socket.set_priority(priority)
}

/// What [`set_tos`] set.
pub fn tos(socket: &Socket) -> io::Result<u32> {
    match socket.domain()? {
        Domain::IPV6 => socket.tclass_v6(),
        _ => socket.tos_v4(),
    }
}

/// Sets TCP_USER_TIMEOUT to so many milliseconds. A Unix domain socket has no such thing and needs
/// none: what it takes is with the peer.
pub fn set_user_timeout(socket: &Socket, milliseconds: u32) -> io::Result<()> {
    match socket.domain()? {
        Domain::UNIX => Ok(()),
        _ => socket.set_tcp_user_timeout(Some(Duration::from_millis(milliseconds.into()))),
    }
}

/// What [`set_user_timeout`] set; 0 for a Unix domain socket.
pub fn user_timeout(socket: &Socket) -> io::Result<u32> {
    let time = match socket.domain()? {
        Domain::UNIX => None,
        _ => socket.tcp_user_timeout()?,
    };
    // The kernel keeps it in an int.
    Ok(time.map_or(0, |time| time.as_millis() as u32))
}

fn each<T>(option: Option<T>, set: impl FnOnce(T) -> io::Result<()>) -> io::Result<()> {
    option.map_or(Ok(()), set)
}
