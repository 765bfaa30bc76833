//! Connections between nodes up to the end of the distribution handshake: listening, accepting,
//! dialling, TLS, and the client side of EPMD.
//!
//! ```text
//! Listener ── accepts ──► Connection ── send, recv ──► detach ──► Established (a file descriptor)
//! dial ─────────────────►     │
//!                             └─ one task owns the stream; a deadline ends it if nobody detaches it
//! ```
//!
//! Everything runs on tokio and nothing here blocks. There is no BEAM code in this crate: the
//! caller hands in addresses and options and gets values or an [`Error`] whose text is a sentence.
//! What happens on a connection after the handshake is the business of `polydist-channel`.
//!
//! A transport is one file that implements [`Transport`] and one line in [`TRANSPORTS`]. One whose
//! sockets are made outside this crate, and connected there, has a name ([`outside()`]) and hands them
//! in: [`Listener::fed`], [`adopt`].

#![forbid(unsafe_code)]

mod address;
mod allow;
mod certificate;
mod connection;
mod crowd;
mod dial;
pub mod directory;
pub mod epmd;
mod error;
pub mod host;
mod identity;
mod listener;
mod options;
mod outside;
mod sctp;
mod sctp_options;
pub mod sniff;
mod source;
mod stream;
mod tcp;
mod tls;
mod tls_config;
mod tls_contents;
mod tls_errors;
mod uds;
mod verifier;

use std::fmt::Debug;
use std::net::IpAddr;
use std::pin::Pin;

use polydist_proto::frame::Prefix;
use socket2::{SockAddr, Socket};

pub use address::Address;
pub use allow::Allow;
pub use certificate::{Certificate, is_for_node};
pub use connection::{
    Accepted, Addresses, Connection, Credentials, Established, Info, MAX_HANDSHAKE_FRAME, Pending,
    TlsInfo,
};
pub use dial::{DialOptions, dial};
pub use error::{Error, Kind};
pub use identity::Identity;
pub use listener::{Incoming, ListenOptions, Listener, ListenerInfo};
pub use options::{
    SocketOpts, nodelay, set_nodelay, set_tos, set_unsent, set_user_timeout, tos, user_timeout,
};
pub use outside::{adopt, outside};
pub use rustix::io::Errno;
pub use sctp_options::SctpOpts;
pub use stream::{Stream, Wire};
pub use tls_config::{Configured, RevocationOptions, TlsConfig, TlsOptions, Verify, Version};
pub use tls_contents::Contents;

/// Every transport that makes its sockets itself.
pub static TRANSPORTS: &[&dyn Transport] =
    &[&tcp::TCP, &tcp::TCP6, &tls::Tls, &uds::Uds, &sctp::Sctp];

/// The one of [`TRANSPORTS`] that has this name.
pub fn transport(name: &str) -> Option<&'static dyn Transport> {
    TRANSPORTS.iter().copied().find(|t| t.name() == name)
}

/// Which end of a connection this is, with what its transport needs to secure it.
#[derive(Clone, Debug)]
pub enum Side {
    /// The accepting end.
    Accept {
        /// The TLS configuration of the listener, for transports that want one.
        tls: Option<TlsConfig>,
    },
    /// The dialling end.
    Dial {
        /// The TLS configuration of the dialler, for transports that want one.
        tls: Option<TlsConfig>,
        /// Whom the peer's certificate must name; its address if absent.
        server_name: Option<String>,
    },
}

/// A future that a transport returns.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A way to reach a node over a stream socket.
///
/// # Implementing
///
/// [`socket`](Self::socket), [`bind`](Self::bind) and [`tune`](Self::tune) are called from the
/// caller's own thread and must not block. [`secure`](Self::secure) runs in a task, always under a
/// deadline; when its future is dropped the socket must close. The stream it returns is handed over
/// as a bare file descriptor after the handshake, so a transport may keep no state of its own
/// beside what [`Wire`] holds.
pub trait Transport: Debug + Send + Sync {
    /// Its name in configuration, registration and messages.
    fn name(&self) -> &'static str;

    /// How handshake messages are framed on it.
    fn prefix(&self) -> Prefix {
        Prefix::Two
    }

    /// A new non-blocking socket for `address`, and the address as the kernel wants it.
    fn socket(&self, address: &Address) -> Result<(Socket, SockAddr), Error>;

    /// A socket to dial `address` with that has these local addresses and no others, for a transport
    /// that tells the peer all of them.
    fn socket_from(
        &self,
        address: &Address,
        _local: &[IpAddr],
    ) -> Result<(Socket, SockAddr), Error> {
        self.socket(address)
    }

    /// A socket that listens on `address`, and the address it got.
    fn bind(&self, address: &Address, options: &ListenOptions) -> Result<(Socket, Address), Error>;

    /// Called once when a listener that [`bind`](Self::bind) made closes, after its socket did.
    fn unbind(&self, _address: &Address) {}

    /// Sets options on a socket, listening or connected.
    fn tune(&self, socket: &Socket, options: &SocketOpts) -> std::io::Result<()>;

    /// Whether [`secure`](Self::secure) can work with this; asked before a socket is made.
    fn check(&self, _side: &Side) -> Result<(), Error> {
        Ok(())
    }

    /// Runs the transport's own handshake on a connected stream.
    fn secure(
        &self,
        stream: Stream,
        _peer: &Address,
        _side: &Side,
    ) -> BoxFuture<Result<Wire, Error>> {
        Box::pin(std::future::ready(Ok(Wire::Plain(stream))))
    }

    /// All addresses of both ends, where an end can have several.
    fn addresses(&self, _socket: &Socket) -> Option<Addresses> {
        None
    }

    /// Who the peer is, if the kernel vouches for it.
    fn credentials(&self, _socket: &Socket) -> Option<Credentials> {
        None
    }
}
