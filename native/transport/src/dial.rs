//! Dialling: a connected and secured stream within a time.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use polydist_channel::Stats;
use rustix::io::Errno;
use socket2::{SockAddr, Socket};
use tokio::time::{Instant, sleep, timeout};

use crate::connection::Info;
use crate::{
    Address, Connection, Error, Kind, Pending, Side, SocketOpts, Stream, TlsConfig, Transport, Wire,
};

/// How to dial.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// For the connect and the TLS handshake together.
    pub timeout: Duration,
    /// Options of the socket.
    pub socket: SocketOpts,
    /// The local addresses to have and to tell the peer, for sctp; the kernel's choice if empty.
    pub local: Vec<IpAddr>,
    /// A client configuration, for tls.
    pub tls: Option<TlsConfig>,
    /// Whom the peer's certificate must name; its IP address if absent.
    pub server_name: Option<String>,
}

impl Default for DialOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(7),
            socket: SocketOpts::default(),
            local: Vec::new(),
            tls: None,
            server_name: None,
        }
    }
}

/// Starts to connect to `address`. What is sent before the connection is there is sent afterwards;
/// dropping the connection gives up. Needs a tokio runtime.
pub fn dial(
    transport: &'static dyn Transport,
    address: Address,
    options: DialOptions,
) -> Result<(Connection, Pending<Info>), Error> {
    let DialOptions {
        timeout: limit,
        socket: socket_opts,
        local,
        tls,
        server_name,
    } = options;
    let side = Side::Dial { tls, server_name };
    transport.check(&side)?;
    let start = Instant::now();
    let (socket, kernel) = transport.socket_from(&address, &local)?;
    let what = format!("cannot connect to {} {address}", transport.name());
    transport
        .tune(&socket, &socket_opts)
        .map_err(|error| Error::os(&what, &error))?;
    let stats = Arc::new(Stats::default());
    let counted = stats.clone();
    let connect = async move {
        let connecting = async {
            let stream = connect(socket, &kernel, counted).await;
            let stream = stream.map_err(|error| Error::os(&what, &error))?;
            let wire = transport.secure(stream, &address, &side).await?;
            let info = info(transport, &wire, address.clone(), start);
            Ok((wire, info))
        };
        match timeout(limit, connecting).await {
            Ok(result) => result,
            Err(_) => Err(Error::new(
                Kind::Timeout,
                format!("{what}: no answer within {} ms", limit.as_millis()),
            )),
        }
    };
    let forever = std::future::pending();
    Ok(Connection::spawn(
        transport,
        stats,
        connect,
        forever,
        |_| (),
    ))
}

async fn connect(socket: Socket, address: &SockAddr, stats: Arc<Stats>) -> io::Result<Stream> {
    loop {
        match socket.connect(address) {
            Ok(()) => return Stream::new(socket, stats),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INPROGRESS) => {
                    let stream = Stream::new(socket, stats)?;
                    stream.connected().await?;
                    return Ok(stream);
                }
                Some(Errno::INTR) => {}
                // A Unix domain socket whose queue is full; there is no event to wait for.
                Some(Errno::AGAIN) => sleep(Duration::from_millis(10)).await,
                _ => return Err(error),
            },
        }
    }
}

/// What there is to say about a stream that has just been secured, which began at `start`.
pub(crate) fn info(
    transport: &'static dyn Transport,
    wire: &Wire,
    peer: Address,
    start: Instant,
) -> Info {
    let local = wire.socket().local_addr();
    Info {
        transport: transport.name(),
        peer,
        local: local.map_or_else(|_| Address::Local(Vec::new()), |a| Address::from_kernel(&a)),
        addresses: transport.addresses(wire.socket()),
        tls: wire.tls().cloned(),
        credentials: transport.credentials(wire.socket()),
        took: start.elapsed(),
    }
}
