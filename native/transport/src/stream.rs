//! Byte streams: any stream socket under tokio, and TLS over one.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use polydist_channel::{Closed, Kernel, Opened, Received, Session, Stats, Tls};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWrite, AsyncWriteExt, Interest};

use crate::TlsInfo;

/// A connected stream socket of any family. It closes when dropped.
#[derive(Debug)]
pub struct Stream {
    fd: AsyncFd<Socket>,
    stats: Arc<Stats>,
    /// A write has failed, so that nothing comes any more but what has come.
    ended: bool,
}

impl Stream {
    /// Takes a non-blocking socket, connected or about to be. Needs a tokio runtime.
    pub fn new(socket: Socket, stats: Arc<Stats>) -> io::Result<Self> {
        let fd = poll(socket)?;
        Ok(Self {
            fd,
            stats,
            ended: false,
        })
    }

    /// The socket itself.
    pub fn socket(&self) -> &Socket {
        self.fd.get_ref()
    }

    /// Waits until a connect under way has succeeded or failed.
    pub(crate) async fn connected(&self) -> io::Result<()> {
        loop {
            // SCTP is not writable any more when the peer has closed by now.
            let either = Interest::READABLE | Interest::WRITABLE;
            let mut ready = self.fd.ready(either).await?;
            if let Some(error) = self.socket().take_error()? {
                return Err(error);
            }
            match self.socket().peer_addr() {
                Ok(_) => return Ok(()),
                // It was, and what the peer said before it closed can be read.
                Err(_) if ready.ready().is_readable() => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotConnected => ready.clear_ready(),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the first byte and leaves it where it is. None is the end.
    pub(crate) async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        loop {
            // SCTP is not readable any more when the peer has broken off by now.
            let mut ready = self.fd.ready(Interest::READABLE | Interest::ERROR).await?;
            match recv(&self.fd, &mut byte, peek) {
                Ok((0, _)) => return Ok(None),
                Ok(_) => return Ok(Some(byte[0])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if ready.ready().is_error() => return Ok(None),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads what there is, and waits for something. No bytes are the end.
    ///
    /// SCTP's socket is not readable when its peer has broken off. And its error can be had once
    /// only, by a write perhaps.
    pub(crate) async fn read_some(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        self.read_at_most(buffer, usize::MAX).await
    }

    /// The same, of at most `limit` bytes.
    pub(crate) async fn read_at_most(
        &self,
        buffer: &mut BytesMut,
        limit: usize,
    ) -> io::Result<usize> {
        loop {
            let ready = match self.ended {
                true => None,
                false => Some(self.fd.ready(Interest::READABLE | Interest::ERROR).await?),
            };
            let mut bytes = [0; 4096];
            let room = &mut bytes[..limit.min(4096)];
            match (recv(&self.fd, room, RecvFlags::DONTWAIT), ready) {
                (Err(Errno::INTR), _) => {}
                (Err(Errno::AGAIN), Some(mut ready)) if !ready.ready().is_error() => {
                    ready.clear_ready()
                }
                (Err(Errno::AGAIN), _) => return Ok(0),
                (result, _) => {
                    let (len, _) = result?;
                    self.stats.read(len);
                    buffer.extend_from_slice(&bytes[..len]);
                    return Ok(len);
                }
            }
        }
    }

    /// Waits until the socket takes more, after it has taken nothing.
    async fn writable(&self) -> io::Result<()> {
        let mut ready = self.fd.ready(Interest::WRITABLE).await?;
        ready.clear_ready();
        self.fd.ready(Interest::WRITABLE).await.map(drop)
    }

    /// Takes the socket from tokio's poller. It stays non-blocking.
    pub(crate) fn into_socket(self) -> Socket {
        self.fd.into_inner()
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(cx))?;
            // Never blocks, whatever the socket is set to: see polydist-channel's write.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let write = |fd: &AsyncFd<Socket>| Ok(send(fd, bytes, flags)?);
            if let Ok(result) = ready.try_io(write) {
                self.stats.write(*result.as_ref().unwrap_or(&0));
                self.ended |= result.is_err();
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.socket().shutdown(std::net::Shutdown::Write))
    }
}

/// Puts a non-blocking socket under tokio's poller. Needs a tokio runtime.
#[expect(
    deprecated,
    reason = "sound here: a Socket keeps its own descriptor until it is dropped"
)]
pub(crate) fn poll(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    AsyncFd::new(socket)
}

/// A stream as its transport secured it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Wire {
    /// Nothing between us and the socket.
    Plain(Stream),
    /// TLS, its handshake finished.
    Tls(Box<Secured>),
}

/// A stream and the TLS session over it.
#[derive(Debug)]
pub struct Secured {
    pub(crate) stream: Stream,
    pub(crate) tls: Tls,
    pub(crate) info: TlsInfo,
}

impl Wire {
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Self::Plain(stream) => stream.socket(),
            Self::Tls(secured) => secured.stream.socket(),
        }
    }

    /// What TLS agreed on.
    pub fn tls(&self) -> Option<&TlsInfo> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(secured) => Some(&secured.info),
        }
    }

    /// Appends what there is to `buffer`, and waits for something. No bytes are the end.
    pub(crate) async fn read_some(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_some(buffer).await,
            Self::Tls(secured) => secured.read_some(buffer).await,
        }
    }

    pub(crate) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(secured) => secured.write_all(bytes).await,
        }
    }

    /// Says goodbye.
    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown().await,
            Self::Tls(secured) => {
                secured.goodbye().await?;
                secured.stream.shutdown().await
            }
        }
    }

    pub(crate) fn into_parts(self) -> (Socket, Option<Tls>) {
        match self {
            Self::Plain(stream) => (stream.into_socket(), None),
            Self::Tls(secured) => (secured.stream.into_socket(), Some(secured.tls)),
        }
    }
}

impl Secured {
    async fn read_some(&mut self, buffer: &mut BytesMut) -> io::Result<usize> {
        match &mut self.tls {
            Tls::Session(session) => read_records(&mut self.stream, session, buffer).await,
            Tls::Kernel(kernel) => read_by_kernel(&self.stream, kernel, buffer).await,
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Tls::Session(session) => {
                session.seal(&[bytes]).map_err(as_io)?;
                write_records(&mut self.stream, session).await
            }
            Tls::Kernel(kernel) => {
                while !kernel.ready(self.stream.socket().as_fd()).map_err(closed)? {
                    self.stream.writable().await?;
                }
                kernel.sent(bytes.len());
                self.stream.write_all(bytes).await
            }
        }
    }

    async fn goodbye(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Tls::Session(session) => {
                session.seal_goodbye().map_err(as_io)?;
                write_records(&mut self.stream, session).await
            }
            Tls::Kernel(kernel) => {
                kernel.goodbye(self.stream.socket().as_fd());
                Ok(())
            }
        }
    }
}

async fn read_records(
    stream: &mut Stream,
    session: &mut Session,
    buffer: &mut BytesMut,
) -> io::Result<usize> {
    let before = buffer.len();
    // What came with the handshake is there already.
    let mut received = BytesMut::new();
    loop {
        let opened = session.open::<rustls::Error>(&received, |plaintext| {
            buffer.extend_from_slice(plaintext);
            Ok(())
        });
        // The answer to a key update; or the alert that says why this is the end.
        let written = write_records(stream, session).await;
        let ended = opened.map_err(as_io)? == Opened::End;
        if ended || buffer.len() > before {
            break;
        }
        written?;
        received.clear();
        if stream.read_some(&mut received).await? == 0 {
            break;
        }
    }
    Ok(buffer.len() - before)
}

async fn write_records(stream: &mut Stream, session: &mut Session) -> io::Result<()> {
    stream.write_all(&session.take_sealed()).await
}

async fn read_by_kernel(
    stream: &Stream,
    kernel: &mut Kernel,
    buffer: &mut BytesMut,
) -> io::Result<usize> {
    loop {
        let failed = match stream.read_some(buffer).await {
            Ok(count) => {
                kernel.received(count).map_err(closed)?;
                return Ok(count);
            }
            Err(failed) => failed,
        };
        let received = kernel.receive(stream.socket().as_fd(), failed);
        match received.map_err(closed)? {
            Received::Nothing => {}
            Received::Data(bytes) => {
                buffer.extend_from_slice(&bytes);
                return Ok(bytes.len());
            }
            Received::End => return Ok(0),
        }
    }
}

/// An end of a channel among the errors of the socket.
fn closed(end: Closed) -> io::Error {
    match end {
        Closed::Tls(error) => as_io(error),
        Closed::Io(error) => error,
        _ => io::ErrorKind::UnexpectedEof.into(),
    }
}

/// An error of TLS among those of the socket.
pub(crate) fn as_io(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
