//! A connection before it is established: handshake frames in, handshake frames out, then
//! hand-over.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use polydist_channel::{Stats, Tls};
use polydist_proto::frame::Prefix;
use rustls::pki_types::CertificateDer;
use tokio::sync::{mpsc, oneshot, watch};

use crate::tls_errors::explain;
use crate::{Address, Certificate, Error, Kind, Transport, Wire};

/// The longest handshake frame that is read, which bounds what a stranger's connection costs. The
/// longest there is has a name of 1020 bytes and 20 more (`erl_dist_protocol`, "Distribution
/// Handshake").
pub const MAX_HANDSHAKE_FRAME: usize = 4 * 1024;
/// How long frames that were queued before [`Connection::close`] may still take.
const LINGER: Duration = Duration::from_secs(1);

/// A connection whose distribution handshake is under way.
///
/// One task owns the stream and does what it is told in the order it is told. It ends, and the
/// socket closes, when this value is dropped or closed, when its deadline passes, or when it has
/// been detached.
#[derive(Debug)]
pub struct Connection {
    commands: mpsc::UnboundedSender<Command>,
    prefix: Prefix,
    shared: Arc<Shared>,
}

/// Who is at the other end, and how.
#[derive(Clone, Debug)]
pub struct Info {
    /// The transport's name.
    pub transport: &'static str,
    /// The peer's address.
    pub peer: Address,
    /// Ours.
    pub local: Address,
    /// All addresses of both, for a transport whose ends can have several.
    pub addresses: Option<Addresses>,
    /// What TLS agreed on.
    pub tls: Option<TlsInfo>,
    /// Who the peer is, where the kernel knows.
    pub credentials: Option<Credentials>,
    /// The time from the start of the dial, or from the accept, to a secured stream.
    pub took: Duration,
}

/// The addresses of the two ends of a connection that can go on when one of them fails.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Ours.
    pub local: Vec<Address>,
    /// The peer's.
    pub peer: Vec<Address>,
}

/// What a TLS handshake agreed on, in the names of the standards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsInfo {
    /// `tlsv1.2` or `tlsv1.3`.
    pub version: &'static str,
    /// Such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// Whether it goes on with an earlier session's keys.
    pub resumed: bool,
    /// Whether the kernel does the encryption.
    pub ktls: bool,
    /// Our certificate, if the peer was shown one.
    pub own: Option<Certificate>,
    /// Whether the peer's certificate was taken on trust, for others to verify.
    pub deferred: bool,
    /// What the peer sent, its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The process at the other end of a Unix domain socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its process id.
    pub pid: i32,
}

/// A connection that a listener accepted.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub connection: Connection,
    /// Who it is.
    pub info: Info,
}

/// What is left of a connection when the handshake is over. Nothing that was sent is still queued
/// here, and nothing that was received is lost.
#[derive(Debug)]
pub struct Established {
    /// The socket: non-blocking, close-on-exec, known to no poller.
    pub fd: OwnedFd,
    /// The TLS session. It may hold records, not yet opened, that came after the last handshake
    /// frame; look there before waiting for the socket.
    pub tls: Option<Tls>,
    /// Plaintext that came after the last handshake frame; it precedes what `tls` holds.
    pub surplus: Vec<u8>,
    /// How the transport frames handshake messages.
    pub prefix: Prefix,
    /// The counters of the whole connection.
    pub stats: Arc<Stats>,
}

/// An answer that has not arrived yet. What was asked for happens whether or not this is awaited.
#[derive(Debug)]
pub struct Pending<T> {
    answer: oneshot::Receiver<Result<T, Error>>,
    shared: Arc<Shared>,
}

impl<T> Future for Pending<T> {
    type Output = Result<T, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(self.shared.end())))
    }
}

#[derive(Debug, Default)]
struct Shared {
    stats: Arc<Stats>,
    closing: watch::Sender<bool>,
    /// Why the connection ended. Set before anybody can see that it has.
    end: OnceLock<Error>,
}

impl Shared {
    fn end(&self) -> Error {
        let closed = || Error::new(Kind::Closed, "the connection is closed");
        self.end.get().cloned().unwrap_or_else(closed)
    }

    fn ended(&self, result: &Result<(), Error>) {
        if let Err(error) = result {
            let _ = self.end.set(error.clone());
        }
    }

    async fn closing(&self) {
        // Cannot fail while `self` has the sender.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }
}

#[derive(Debug)]
enum Command {
    Send(Vec<u8>),
    Recv(oneshot::Sender<Result<Vec<u8>, Error>>),
    Detach(oneshot::Sender<Result<Established, Error>>),
}

impl Connection {
    /// Starts the task that connects, if that is still to be done, and then serves the connection.
    /// It ends at the latest when `limit` does, with that error, unless it has been detached. `ended`
    /// learns how it went: `Ok` if it was detached or closed on this side.
    pub(crate) fn spawn<F>(
        transport: &'static dyn Transport,
        stats: Arc<Stats>,
        connect: F,
        limit: impl Future<Output = Error> + Send + 'static,
        ended: impl FnOnce(Result<(), &Error>) + Send + 'static,
    ) -> (Self, Pending<Info>)
    where
        F: Future<Output = Result<(Wire, Info), Error>> + Send + 'static,
    {
        let (commands, queue) = mpsc::unbounded_channel();
        let (connected, answer) = oneshot::channel();
        let shared = Arc::new(Shared {
            stats,
            ..Shared::default()
        });
        let connection = Self {
            commands,
            prefix: transport.prefix(),
            shared: shared.clone(),
        };
        let pending = Pending {
            answer,
            shared: shared.clone(),
        };
        tokio::spawn(async move {
            let mut task = Task {
                transport,
                queue,
                shared: shared.clone(),
            };
            let work = async move {
                let mut connected = Some(connected);
                let result = task.run(connect, &mut connected).await;
                // Before `task` and `connected` go and whoever waits for them sees it.
                task.shared.ended(&result);
                // Before `connected`: whoever is told that it failed finds it closed.
                drop(task);
                result
            };
            let abandoned = async {
                shared.closing().await;
                tokio::time::sleep(LINGER).await;
            };
            tokio::pin!(work);
            let result = tokio::select! {
                biased;
                result = &mut work => result,
                () = abandoned => Ok(()),
                error = limit => Err(error),
            };
            shared.ended(&result);
            ended(result.as_ref().copied());
        });
        (connection, pending)
    }

    /// Queues one handshake frame. `Err(Closed)` if the connection has ended, `Err(TooLong)` if the
    /// transport's frames cannot hold it.
    pub fn send(&self, frame: &[u8]) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(self.prefix.size() + frame.len());
        let too_long =
            |error: polydist_proto::frame::FrameError| Error::new(Kind::TooLong, error.to_string());
        self.prefix.encode(frame, &mut bytes).map_err(too_long)?;
        self.commands
            .send(Command::Send(bytes))
            .map_err(|_| self.shared.end())
    }

    /// The next handshake frame.
    pub fn recv(&self) -> Pending<Vec<u8>> {
        self.ask(Command::Recv)
    }

    /// Ends the task and gives the connection away, once every queued frame has been written.
    pub fn detach(&self) -> Pending<Established> {
        self.ask(Command::Detach)
    }

    /// Closes the connection as soon as the frames that were queued are written, or in a second if
    /// the peer does not take them. A dial under way is given up at once, whatever is queued: its
    /// socket is closed by the time its answer, an error of kind [`Kind::Closed`], is there.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
    }

    /// Whether the connection has ended; it has been detached, closed or has failed.
    pub fn is_closed(&self) -> bool {
        self.commands.is_closed()
    }

    /// The counters of the connection; they go on counting after it has been detached.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.shared.stats
    }

    fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Pending<T> {
        let (sender, answer) = oneshot::channel();
        // If the task is gone, the sender goes with the command and the answer is how it ended.
        let _ = self.commands.send(command(sender));
        let shared = self.shared.clone();
        Pending { answer, shared }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

struct Task {
    transport: &'static dyn Transport,
    queue: mpsc::UnboundedReceiver<Command>,
    shared: Arc<Shared>,
}

impl Task {
    async fn run(
        &mut self,
        connect: impl Future<Output = Result<(Wire, Info), Error>>,
        connected: &mut Option<oneshot::Sender<Result<Info, Error>>>,
    ) -> Result<(), Error> {
        let (wire, info) = tokio::select! {
            wire = connect => wire?,
            () = self.shared.closing() => return Ok(()),
        };
        let peer = info.peer.clone();
        if let Some(connected) = connected.take() {
            let _ = connected.send(Ok(info));
        }
        self.serve(wire, peer).await
    }

    async fn serve(&mut self, mut wire: Wire, peer: Address) -> Result<(), Error> {
        let mut buffer = BytesMut::new();
        // A peer that refuses us may have sent its reason before it closed: after a failed write
        // frames can still be read.
        let mut broken: Option<Error> = None;
        while let Some(command) = self.next().await {
            match command {
                Command::Send(_) if broken.is_some() => {}
                Command::Send(frame) => match wire.write_all(&frame).await {
                    Ok(()) => self
                        .shared
                        .stats
                        .frame_out(frame.len() - self.transport.prefix().size()),
                    Err(error) => broken = Some(failed(&wire, &peer, &error)),
                },
                Command::Recv(answer) => {
                    let frame = tokio::select! {
                        biased;
                        frame = self.read(&mut wire, &mut buffer, &peer) => frame,
                        () = self.shared.closing() => continue,
                    };
                    let end = frame.as_ref().err().cloned();
                    let _ = answer.send(frame);
                    if let Some(error) = end {
                        return Err(broken.unwrap_or(error));
                    }
                }
                Command::Detach(answer) => {
                    if let Some(error) = broken {
                        let _ = answer.send(Err(error.clone()));
                        return Err(error);
                    }
                    let (socket, tls) = wire.into_parts();
                    let _ = answer.send(Ok(Established {
                        fd: socket.into(),
                        tls,
                        surplus: buffer.to_vec(),
                        prefix: self.transport.prefix(),
                        stats: self.shared.stats.clone(),
                    }));
                    return Ok(());
                }
            }
        }
        let _ = wire.shutdown().await;
        Ok(())
    }

    /// The next command; `None` once the connection is being closed and nothing is queued.
    async fn next(&mut self) -> Option<Command> {
        tokio::select! {
            biased;
            command = self.queue.recv() => command,
            () = self.shared.closing() => None,
        }
    }

    async fn read(
        &self,
        wire: &mut Wire,
        buffer: &mut BytesMut,
        peer: &Address,
    ) -> Result<Vec<u8>, Error> {
        loop {
            let frame = self.transport.prefix().decode(buffer, MAX_HANDSHAKE_FRAME);
            let bad = |error: polydist_proto::frame::FrameError| {
                let sentence = format!("{peer} does not speak the distribution handshake: {error}");
                Error::new(Kind::BadMessage, sentence)
            };
            if let Some((frame, used)) = frame.map_err(bad)? {
                let frame = frame.to_vec();
                buffer.advance(used);
                self.shared.stats.frame_in(frame.len());
                return Ok(frame);
            }
            match wire.read_some(buffer).await {
                Ok(0) => return Err(Error::closed(format!("the handshake with {peer} ended"))),
                Ok(_) => {}
                Err(error) => return Err(failed(wire, peer, &error)),
            }
        }
    }
}

fn failed(wire: &Wire, peer: &Address, error: &io::Error) -> Error {
    let what = format!("the handshake with {peer} ended");
    match polydist_channel::is_gone(error) || error.kind() == io::ErrorKind::UnexpectedEof {
        true => Error::closed(what),
        false => explain(error, wire.tls().and_then(|tls| tls.own.as_ref())).during(what),
    }
}
