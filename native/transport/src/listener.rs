//! Listening: one accept loop a listener, who may come in, TLS handshakes beside it, all under limits.
//!
//! ```text
//! accept ── allowed? ──► a place among its source's ──► its first byte ──► TLS ──► Incoming
//!              │ no          │ none: it waits for one,     │ which protocol,
//!            closed          ▼ if there is room to wait    ▼ on a shared port
//! ```
//!
//! An accepted connection is a socket and a task until its peer has said something: only then does
//! anybody else hear of it. All of this and the distribution's handshake share one deadline, and
//! silence and TLS have a part of it each.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use polydist_channel::Stats;
use rustix::io::Errno;
use socket2::Socket;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};

use crate::crowd::{Crowd, Room, Turn};
use crate::dial::info;
use crate::sniff::{self, Protocol};
use crate::source::{Arrival, Refused, Source};
use crate::{
    Accepted, Address, Allow, Connection, Error, Kind, Side, SocketOpts, Stream, TlsConfig,
    Transport, outside, stream, tcp, tls,
};

/// How long accepting rests when there are no file descriptors or no memory.
const BACK_OFF: Duration = Duration::from_millis(100);
/// At most one line about refused peers is logged in this time, and one about failed handshakes.
const LOGGED: Duration = Duration::from_secs(1);

/// How to listen.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Takes the first free port of this range instead of the address's; `(0, _)` is any port.
    pub ports: Option<(u16, u16)>,
    /// Further local addresses, with the same port, that the peers are told, for sctp.
    pub addresses: Vec<IpAddr>,
    /// The mode of a socket in the file system.
    pub mode: u32,
    /// Who may connect; anybody else is closed at once.
    pub allow: Allow,
    /// Connections that the kernel keeps until they are accepted, or a fed listener until it takes
    /// them.
    pub backlog: i32,
    /// Options of the accepted sockets.
    pub socket: SocketOpts,
    /// A server configuration, for tls.
    pub tls: Option<TlsConfig>,
    /// Whether the port of tcp, tcp6 or tls serves both, TLS and the plain protocol.
    pub shared: bool,
    /// How long an accepted connection may live without being detached. A third of it may pass until
    /// the peer's first byte, two thirds until TLS is through.
    pub setup_time: Duration,
    /// How many such connections there may be; beyond that the kernel keeps them waiting.
    pub max_pending: usize,
    /// How many of them may come from one address, a network of 64 bits with IPv6, or from one user
    /// of a Unix domain socket. Others wait until one of these is done, as far as there is room.
    pub max_pending_of_source: usize,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            ports: None,
            addresses: Vec::new(),
            mode: 0o600,
            allow: Allow::Everybody,
            backlog: 128,
            socket: SocketOpts::default(),
            tls: None,
            shared: false,
            setup_time: Duration::from_secs(7),
            max_pending: 256,
            max_pending_of_source: 64,
        }
    }
}

/// An open listener. It closes when dropped.
#[derive(Debug)]
pub struct Listener {
    shared: Arc<Shared>,
    task: AbortHandle,
}

/// What a listener says about itself.
#[derive(Clone, Debug)]
pub struct ListenerInfo {
    /// Where it listens.
    pub address: Address,
    /// Connections accepted so far.
    pub accepted: u64,
    /// How many of them failed before they were detached.
    pub failed: u64,
    /// How many of them are on their way.
    pub pending: u64,
    /// Connections closed at once because their peers are not allowed, or because too many from the
    /// same source were pending; they are not in `accepted`.
    pub refused: u64,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// The connections a listener has accepted and secured, in order.
#[derive(Debug)]
pub struct Incoming(mpsc::UnboundedReceiver<Accepted>);

impl Incoming {
    /// The next connection, or `None` when the listener is closed.
    pub async fn next(&mut self) -> Option<Accepted> {
        self.0.recv().await
    }
}

#[derive(Debug)]
struct Shared {
    transport: &'static dyn Transport,
    address: Address,
    side: Mutex<Side>,
    shared: bool,
    allow: Allow,
    setup_time: Duration,
    /// `None` once closed. Locked for one system call at a time.
    source: Mutex<Option<Source>>,
    /// Set with it, for those who are accepted and not detached yet.
    closed: watch::Sender<bool>,
    socket_opts: Mutex<SocketOpts>,
    accepted: AtomicU64,
    failed: AtomicU64,
    pending: AtomicU64,
    refused: AtomicU64,
    refusals: Mutex<Occasional>,
    failures: Mutex<Occasional>,
    last_error: Mutex<Option<String>>,
}

impl Listener {
    /// Opens a socket and starts to accept. Needs a tokio runtime, and does not block.
    pub fn open(
        transport: &'static dyn Transport,
        address: &Address,
        options: ListenOptions,
    ) -> Result<(Self, Incoming), Error> {
        let side = check(transport, address, &options)?;
        let (socket, address) = transport.bind(address, &options)?;
        let what = format!("cannot listen on {} {address}", transport.name());
        let socket = stream::poll(socket).map_err(|error| Error::os(what, &error))?;
        Ok(Self::start(
            transport,
            address,
            side,
            Source::Socket(socket),
            options,
        ))
    }

    /// A listener without a socket: it accepts what [`feed`](Self::feed) gives it. It has no use for
    /// `ports` and `mode`. Needs a tokio runtime, and does not block.
    pub fn fed(
        transport: &'static dyn Transport,
        address: Address,
        options: ListenOptions,
    ) -> Result<(Self, Incoming), Error> {
        let side = check(transport, &address, &options)?;
        let source = Source::fed(options.backlog);
        Ok(Self::start(transport, address, side, source, options))
    }

    fn start(
        transport: &'static dyn Transport,
        address: Address,
        side: Side,
        source: Source,
        options: ListenOptions,
    ) -> (Self, Incoming) {
        let shared = Arc::new(Shared {
            transport,
            address,
            side: Mutex::new(side),
            shared: options.shared,
            allow: options.allow,
            setup_time: options.setup_time,
            source: Mutex::new(Some(source)),
            closed: watch::Sender::new(false),
            socket_opts: Mutex::new(options.socket),
            accepted: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            pending: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            refusals: Mutex::default(),
            failures: Mutex::default(),
            last_error: Mutex::new(None),
        });
        let (sender, incoming) = mpsc::unbounded_channel();
        let crowd = Crowd::new(options.max_pending, options.max_pending_of_source);
        let task = tokio::spawn(accept_loop(shared.clone(), crowd, sender)).abort_handle();
        (Self { shared, task }, Incoming(incoming))
    }

    /// Where it listens, with the port it got.
    pub fn address(&self) -> &Address {
        &self.shared.address
    }

    /// Gives a fed listener a duplicate of a connected stream socket that was accepted elsewhere;
    /// what follows is as if it had been accepted here. The future ends when it has got a place among
    /// the pending connections, or with an error of kind [`Kind::Closed`] when the listener closes
    /// before; the connection goes its way whether or not that is awaited. An error now if the
    /// descriptor is no such socket, if the listener is closed, or if as many as its backlog wait
    /// already ([`Errno::AGAIN`]).
    pub fn feed(
        &self,
        fd: BorrowedFd<'_>,
        peer: Address,
    ) -> Result<impl Future<Output = Result<(), Error>> + Send + use<>, Error> {
        let Shared {
            transport, address, ..
        } = &*self.shared;
        let what = format!("cannot accept {peer} on {} {address}", transport.name());
        let socket = outside::duplicate(fd).map_err(|error| error.during(&what))?;
        let offered = match &*lock(&self.shared.source) {
            None => return Err(closed()),
            Some(source) => source.offer(socket, peer),
        };
        let taken = offered.map_err(|refused| match refused {
            Refused::NotFed => Error::new(
                Kind::BadOption,
                format!("{what}: the listener accepts by itself"),
            ),
            Refused::Full => Error::new(
                Kind::Os(Errno::AGAIN),
                format!("{what}: too many wait already; wait for the answer to each (eagain)"),
            ),
        })?;
        Ok(async { taken.await.map_err(|_| closed()) })
    }

    /// Options for connections accepted from now on. They are tried on the listening socket, if
    /// there is one.
    pub fn set_options(&self, options: SocketOpts) -> Result<(), Error> {
        let Shared {
            transport, address, ..
        } = &*self.shared;
        let what = || {
            format!(
                "cannot set options of the listener on {} {address}",
                transport.name()
            )
        };
        match &*lock(&self.shared.source) {
            None => return Err(closed()),
            Some(Source::Socket(socket)) => {
                let tried = transport.tune(socket.get_ref(), &options);
                tried.map_err(|error| Error::os(what(), &error))?;
            }
            Some(Source::Fed { .. }) => {}
        }
        *lock(&self.shared.socket_opts) = options;
        Ok(())
    }

    /// The server configuration of handshakes that begin from now on.
    pub fn set_tls(&self, tls: TlsConfig) -> Result<(), Error> {
        let side = Side::Accept { tls: Some(tls) };
        tls::Tls.check(&side)?;
        *lock(&self.shared.side) = side;
        Ok(())
    }

    /// Counters and the last error.
    pub fn info(&self) -> ListenerInfo {
        ListenerInfo {
            address: self.shared.address.clone(),
            accepted: self.shared.accepted.load(Relaxed),
            failed: self.shared.failed.load(Relaxed),
            pending: self.shared.pending.load(Relaxed),
            refused: self.shared.refused.load(Relaxed),
            last_error: lock(&self.shared.last_error).clone(),
        }
    }

    /// Whether it has been closed.
    pub fn is_closed(&self) -> bool {
        lock(&self.shared.source).is_none()
    }

    /// Closes the socket and removes its path before it returns. Connections whose handshake is under
    /// way, TLS's or the distribution's, are closed, and fed ones that wait; detached ones live on.
    /// Closing again does nothing.
    pub fn close(&self) {
        let source = lock(&self.shared.source).take();
        if let Some(source) = source {
            drop(source);
            self.shared.transport.unbind(&self.shared.address);
            self.task.abort();
            self.shared.closed.send_replace(true);
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether these options can work on this transport, at this address.
fn check(
    transport: &dyn Transport,
    address: &Address,
    options: &ListenOptions,
) -> Result<Side, Error> {
    let side = Side::Accept {
        tls: options.tls.clone(),
    };
    transport.check(&side)?;
    if options.shared {
        plain(transport, address).ok_or_else(|| {
            let name = transport.name();
            let sentence =
                format!("{name} {address} cannot be shared; ports of tcp, tcp6 and tls can");
            Error::new(Kind::BadOption, sentence)
        })?;
        tls::Tls.check(&side)?;
    }
    if !options.allow.fits(address) {
        let sentence = format!(
            "cannot listen on {} {address}: allow is {}, but there peers are told by {}",
            transport.name(),
            options.allow,
            match address {
                Address::Ip(_) => "their address",
                Address::Local(_) => "their user",
                Address::Opaque(_) => "what only the transport understands",
            }
        );
        return Err(Error::new(Kind::BadOption, sentence));
    }
    Ok(side)
}

async fn accept_loop(shared: Arc<Shared>, crowd: Crowd, accepted: mpsc::UnboundedSender<Accepted>) {
    let mut handshakes = JoinSet::new();
    loop {
        while handshakes.try_join_next().is_some() {}
        let room = crowd.room().await;
        match std::future::poll_fn(|cx| shared.poll_accept(cx)).await {
            None => return,
            Some(Ok(arrival)) => {
                let (socket, peer) = arrival.take();
                match shared.admit(&crowd, room, &socket, &peer) {
                    Ok(turn) => {
                        let place = Place::new(&shared);
                        let arrived = (place, turn, socket, peer);
                        handshakes.spawn(handshake(shared.clone(), arrived, accepted.clone()));
                    }
                    Err(why) => {
                        shared.refuse(&why); // whoever sees the close finds it counted
                        drop(socket);
                    }
                }
            }
            Some(Err(error)) => {
                drop(room);
                shared.accept_failed(&error).await;
            }
        }
    }
}

/// A connection among those that are counted as pending.
struct Place {
    shared: Arc<Shared>,
}

impl Place {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.accepted.fetch_add(1, Relaxed);
        shared.pending.fetch_add(1, Relaxed);
        Self {
            shared: shared.clone(),
        }
    }

    fn failed(&self, error: &Error) {
        self.shared.failed.fetch_add(1, Relaxed);
        self.shared.tell_failure(error);
        self.shared.set_error(error.to_string());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.pending.fetch_sub(1, Relaxed);
    }
}

/// Waits until it is the connection's turn and its peer speaks, secures it and passes it on. It keeps
/// its place until it is detached or gone.
async fn handshake(
    shared: Arc<Shared>,
    (place, turn, socket, peer): (Place, Turn, Socket, Address),
    accepted: mpsc::UnboundedSender<Accepted>,
) {
    let stats = Arc::new(Stats::default());
    let start = Instant::now();
    let third = shared.setup_time / 3;
    let deadline = start + shared.setup_time;
    let turn = tokio::select! {
        turn = turn.come() => turn,
        error = closing(&shared, deadline, "others from the same source took all its time") => {
            return place.failed(&error);
        }
    };
    let began = Instant::now();
    let greeted = tokio::select! {
        greeted = greeted(&shared, socket, &peer, stats.clone()) => greeted,
        error = closing(&shared, deadline.min(began + third), "the peer said nothing") => Err(error),
    };
    let (stream, transport) = match greeted {
        Ok(greeted) => greeted,
        Err(error) => return place.failed(&error),
    };
    let side = lock(&shared.side).clone();
    let connect = async move {
        let securing = transport.secure(stream, &peer, &side);
        let wire = timeout_at(deadline.min(began + 2 * third), securing).await;
        let wire = wire.unwrap_or_else(|_| Err(late("TLS was not finished")))?;
        let info = info(transport, &wire, peer, start);
        Ok((wire, info))
    };
    let ended = move |result: Result<(), &Error>| {
        if let Err(error) = result {
            place.failed(error);
        }
        drop(turn);
    };
    let limit = closing(&shared, deadline, "the handshake was not finished");
    let (connection, secured) = Connection::spawn(transport, stats, connect, limit, ended);
    if let Ok(info) = secured.await {
        let _ = accepted.send(Accepted { connection, info });
    }
}

/// A stream whose peer has sent something, and the transport that this belongs to.
async fn greeted(
    shared: &Shared,
    socket: Socket,
    peer: &Address,
    stats: Arc<Stats>,
) -> Result<(Stream, &'static dyn Transport), Error> {
    let options = lock(&shared.socket_opts).clone();
    let prepare = || {
        socket.set_nonblocking(true)?;
        if let Err(error) = shared.transport.tune(&socket, &options) {
            tracing::warn!(transport = shared.transport.name(), %peer, %error, "cannot set socket options");
        }
        Stream::new(socket, stats)
    };
    let fails = |error| Error::os(format!("cannot accept {peer}"), &error);
    let stream = prepare().map_err(fails)?;
    let transport = match stream.first_byte().await.map_err(fails)? {
        Some(first) => speaker(shared, first, peer)?,
        None => return Err(Error::closed(format!("{peer} said nothing"))),
    };
    Ok((stream, transport))
}

/// Whose first byte this is. What is not TLS gets no answer where TLS is spoken, not even an alert.
fn speaker(shared: &Shared, first: u8, peer: &Address) -> Result<&'static dyn Transport, Error> {
    let transport = shared.transport;
    match (sniff::protocol(first), transport.name()) {
        (Protocol::Tls, _) if shared.shared => Ok(&tls::Tls),
        (Protocol::Plain, _) if shared.shared => Ok(plain(transport, peer).unwrap_or(transport)),
        (Protocol::Unknown, _) if shared.shared => Err(Error::new(
            Kind::BadMessage,
            format!(
                "{peer} speaks neither TLS nor the distribution handshake: it begins with {first:#04x}"
            ),
        )),
        (Protocol::Plain | Protocol::Unknown, "tls") => Err(Error::new(
            Kind::Tls,
            format!(
                "what {peer} sent is not TLS (it begins with {first:#04x}); does it speak plain TCP on this port?"
            ),
        )),
        _ => Ok(transport),
    }
}

/// The plain transport of a port that can be shared, for this address.
fn plain(transport: &dyn Transport, address: &Address) -> Option<&'static dyn Transport> {
    match (transport.name(), address) {
        ("tcp" | "tcp6" | "tls", Address::Ip(ip)) if ip.is_ipv4() => Some(&tcp::TCP),
        ("tcp" | "tcp6" | "tls", Address::Ip(_)) => Some(&tcp::TCP6),
        _ => None,
    }
}

/// Ends with an error when the listener is closed, or at the deadline.
fn closing(
    shared: &Shared,
    deadline: Instant,
    what: &'static str,
) -> impl Future<Output = Error> + Send + use<> {
    let mut closed = shared.closed.subscribe();
    async move {
        // Fails when the listener is gone, which comes to the same.
        let closed = closed.wait_for(|closed| *closed);
        match timeout_at(deadline, closed).await {
            Ok(_) => Error::new(Kind::Closed, "the listener was closed"),
            Err(_) => late(what),
        }
    }
}

fn late(what: &str) -> Error {
    Error::new(
        Kind::Timeout,
        format!("{what} in time; the connection is closed"),
    )
}

/// What is logged once in a while, and how often it was not.
#[derive(Debug, Default)]
struct Occasional {
    logged: Option<Instant>,
    others: u64,
}

impl Occasional {
    /// How many were not logged since the last one that was, if this one may be.
    fn now(&mut self) -> Option<u64> {
        if self.logged.is_some_and(|at| at.elapsed() < LOGGED) {
            self.others += 1;
            return None;
        }
        self.logged = Some(Instant::now());
        Some(std::mem::take(&mut self.others))
    }
}

impl Shared {
    /// `None` once the listener is closed.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Arrival>>> {
        match &mut *lock(&self.source) {
            None => Poll::Ready(None),
            Some(source) => source.poll_accept(cx).map(Some),
        }
    }

    /// An error that concerns one connection, which is gone, is not ours; any other would repeat
    /// itself at once, so the loop rests.
    async fn accept_failed(&self, error: &io::Error) {
        let passing = [
            Errno::CONNABORTED,
            Errno::INTR,
            Errno::NETDOWN,
            Errno::PROTO,
            Errno::NOPROTOOPT,
            Errno::HOSTDOWN,
            Errno::NONET,
            Errno::HOSTUNREACH,
            Errno::OPNOTSUPP,
            Errno::NETUNREACH,
        ];
        if Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno)) {
            return;
        }
        let what = format!(
            "cannot accept on {} {}",
            self.transport.name(),
            self.address
        );
        let sentence = Error::os(what, error).to_string();
        tracing::warn!(transport = self.transport.name(), address = %self.address, error = sentence, "accepting rests");
        self.set_error(sentence);
        sleep(BACK_OFF).await;
    }

    /// Whether a connection that has just been accepted may stay; an error says whose it is and why not.
    fn admit(
        &self,
        crowd: &Crowd,
        room: Room,
        socket: &Socket,
        peer: &Address,
    ) -> Result<Turn, String> {
        let allowed = self.allow.check(self.transport, socket, peer);
        allowed.map_err(|stranger| format!("{stranger}; it allows {}", self.allow))?;
        crowd.enter(room, self.transport, socket, peer)
    }

    fn refuse(&self, why: &str) {
        self.refused.fetch_add(1, Relaxed);
        let sentence = format!("{} {} refused {why}", self.transport.name(), self.address);
        if let Some(others) = lock(&self.refusals).now() {
            tracing::info!(others, "{sentence}");
        }
        self.set_error(sentence);
    }

    /// What a peer got wrong is for the log; that one went away, or was slow, is not.
    fn tell_failure(&self, error: &Error) {
        let (transport, address) = (self.transport.name(), &self.address);
        match error.kind() {
            Kind::Tls | Kind::BadMessage => {
                if let Some(others) = lock(&self.failures).now() {
                    tracing::warn!(others, "{transport} {address}: {error}");
                }
            }
            _ => tracing::debug!(transport, %address, %error, "a connection failed"),
        }
    }

    fn set_error(&self, sentence: String) {
        *lock(&self.last_error) = Some(sentence);
    }
}

fn closed() -> Error {
    Error::new(Kind::Closed, "the listener is closed")
}

/// A panic elsewhere leaves these values whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
