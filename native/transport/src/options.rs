//! Socket options that users may set, by the names `inet` gives them.

use std::io;

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
        // After the type of service, which resets it (socket(7)).
        each(self.priority, |priority| socket.set_priority(priority))
    }
}

/// Sets IP_TOS, or IPV6_TCLASS on an IPv6 socket, which takes IP_TOS without any effect.
pub fn set_tos(socket: &Socket, tos: u32) -> io::Result<()> {
    match socket.domain()? {
        Domain::IPV6 => socket.set_tclass_v6(tos),
        _ => socket.set_tos_v4(tos),
    }
}

/// What [`set_tos`] set.
pub fn tos(socket: &Socket) -> io::Result<u32> {
    match socket.domain()? {
        Domain::IPV6 => socket.tclass_v6(),
        _ => socket.tos_v4(),
    }
}

fn each<T>(option: Option<T>, set: impl FnOnce(T) -> io::Result<()>) -> io::Result<()> {
    option.map_or(Ok(()), set)
}
