//! An established distribution connection: frames in, frames out, over one non-blocking stream
//! descriptor.
//!
//! This is the data plane after the handshake. It knows framing, batching and TLS records; it knows
//! no VM and no event loop. Whoever drives it (a linked-in driver, a test) calls
//!
//! * [`Channel::send`] with each outgoing message,
//! * [`Channel::receive`] when the descriptor is readable,
//! * [`Channel::flush`] when it is writable, which is of interest while [`Channel::pending`] is not
//!   zero,
//! * [`Channel::tick`] to keep an idle connection alive,
//!
//! and gives it memory through [`Buffer`] and takes frames through [`Sink`], so that bytes are read
//! straight into what the VM will refer to, and queued messages are references, not copies.
//!
//! ```text
//!            send                                      receive
//!              |                                          |
//!     idle?  write at once              plain: read into a Buffer of the VM's
//!     burst? Outbox: small copied       TLS:   read, open the records in place
//!              |     together,                            |
//!              |     big by reference                   Inbox: cut into frames, a partial one waits
//!            flush                                        |
//!     writev, or seal records                  Sink::deliver(buffer, range)
//! ```
//!
//! Frames are `length:32 payload`, a tick is an empty frame (`erl_dist_protocol`, "Protocol between
//! Connected Nodes"). Every call is bounded: [`WORK`] bytes, then it returns and the caller's event
//! loop calls again.
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate self as polydist_channel; // for what unit tests share with the others

mod control;
mod handshake;
mod inbox;
mod kernel;
mod outbox;
mod session;
mod stats;
mod tls;

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, ipproto, sendmsg, sockopt};
use smallvec::SmallVec;

pub use handshake::{Agreed, Handshake, Progress};
use inbox::Inbox;
pub use kernel::{Kernel, Received, Tls, Unfit};
use outbox::Outbox;
pub use session::{Opened, Session};
pub use stats::Stats;

/// How many bytes one call reads or writes before it lets others have their turn.
pub const WORK: usize = 256 * 1024;

/// A frame longer than this ends the connection: the VM cannot take it (`INT_MAX` in erts's
/// `dist.c`).
pub const MAX_FRAME: usize = 0x7fff_ffff;

/// A message this soon after the last write is the next of a burst: it waits for those that follow.
const BURST: Duration = Duration::from_micros(20);

/// So many messages after a quiet time are written at once all the same: a call is often two
/// (monitor, then request; reply, then exit), and the second must not wait for the event loop.
const PROMPT: u8 = 3;

/// A message of this size or more gains nothing from waiting for others.
const LARGE: usize = 4 * 1024;

/// The most buffers one vectored write takes. Linux allows 1024 (`UIO_MAXIOV`); longer ones gain
/// nothing.
const MAX_SLICES: usize = 64;

/// The most that is written at once to a socket that keeps what is written together as a message,
/// as SCTP does: such a message must fit in the send buffer.
const MESSAGE: usize = 32 * 1024;

/// A message as short as this fits in any send buffer.
const SMALL_MESSAGE: usize = 1024;

/// Memory that input is read into, made by the VM so that frames can be given to it in place.
pub trait Buffer: Sized {
    /// The same bytes, complete: immutable and shareable.
    type Frozen: AsRef<[u8]>;

    /// An empty buffer.
    fn with_capacity(capacity: usize) -> Self;
    /// How many bytes it can hold.
    fn capacity(&self) -> usize;
    /// What it holds.
    fn as_slice(&self) -> &[u8];
    /// Changes how many bytes it can hold; never below what it holds.
    fn resize(&mut self, capacity: usize);
    /// Appends as much as fits and says how much that was.
    fn append(&mut self, bytes: &[u8]) -> usize;
    /// Reads once, at most what fits. `Ok(0)` is the end of the stream.
    fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize>;
    /// Ends the writing.
    fn freeze(self) -> Self::Frozen;
}

/// Takes the frames of a connection, in order.
pub trait Sink<B: Buffer> {
    /// One frame's payload is `buffer[frame]`. Never empty: ticks are counted, not delivered.
    fn deliver(&mut self, buffer: &B::Frozen, frame: Range<usize>);
}

/// A piece of an outgoing message, lent for the length of a call.
pub trait Segment {
    /// A lasting reference to the same bytes.
    type Shared: AsRef<[u8]>;

    /// The bytes.
    fn bytes(&self) -> &[u8];
    /// A lasting reference to the bytes after the first `skip`.
    fn share(&self, skip: usize) -> Self::Shared;
}

/// Why a channel has come to its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum Closed {
    /// The peer closed the connection, or reset it.
    ByPeer,
    /// The operating system reports an error.
    Io(io::Error),
    /// The peer's TLS records are wrong, or its TLS stack gave up on ours.
    Tls(rustls::Error),
    /// The peer announces a frame that is longer than [`MAX_FRAME`].
    TooLong {
        /// The announced length.
        len: usize,
    },
}

impl Closed {
    /// Whether it will happen again unless somebody changes the options: a key is worn out and there is
    /// no way to another.
    pub fn needs_attention(&self) -> bool {
        matches!(self, Self::Tls(rustls::Error::General(_)))
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPeer => f.write_str("the peer closed the connection"),
            Self::Io(error) => write!(f, "the connection failed: {error}"),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::TooLong { len } => {
                write!(
                    f,
                    "the peer announces a frame of {len} bytes; the longest possible is {MAX_FRAME}"
                )
            }
        }
    }
}

impl std::error::Error for Closed {}

impl From<io::Error> for Closed {
    fn from(error: io::Error) -> Self {
        match is_gone(&error) {
            true => Self::ByPeer,
            false => Self::Io(error),
        }
    }
}

/// Whether this is how a socket says that the peer has gone away. As inet_drv without
/// show_econnreset: to a distribution these are all the same.
pub fn is_gone(error: &io::Error) -> bool {
    // The last two are SCTP's, while the peer closes and when it has.
    let gone = [
        Errno::CONNRESET,
        Errno::PIPE,
        Errno::SHUTDOWN,
        Errno::NOTCONN,
    ];
    Errno::from_io_error(error).is_some_and(|errno| gone.contains(&errno))
}

impl From<rustls::Error> for Closed {
    fn from(error: rustls::Error) -> Self {
        Self::Tls(error)
    }
}

/// An established connection. `B` is the memory input is read into, `P` what keeps queued output
/// alive.
pub struct Channel<B, P> {
    fd: OwnedFd,
    /// For a socket that sends messages, the most that one may have.
    message: Option<usize>,
    tls: Option<Tls>,
    inbox: Inbox<B>,
    outbox: Outbox<P>,
    stats: Arc<Stats>,
    last_write: Instant,
    /// How many more messages of a burst are written at once.
    prompt: u8,
}

impl<B: Buffer, P: AsRef<[u8]>> Channel<B, P> {
    /// Takes over a connection after its handshake: a non-blocking descriptor, its TLS state, and
    /// `surplus`, the plain bytes that were read past the last handshake frame.
    pub fn new(fd: OwnedFd, tls: Option<Tls>, surplus: &[u8], stats: Arc<Stats>) -> Self {
        let mut inbox = Inbox::default();
        inbox.append(surplus);
        let sctp = sockopt::socket_protocol(&fd) == Ok(Some(ipproto::SCTP));
        Self {
            fd,
            message: sctp.then_some(MESSAGE),
            tls,
            inbox,
            outbox: Outbox::default(),
            stats,
            last_write: Instant::now(),
            prompt: PROMPT,
        }
    }

    /// The descriptor, for polling and socket options.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What has passed so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Bytes of output that the kernel has not taken yet. While not zero, call [`Channel::flush`]
    /// on writable.
    pub fn pending(&self) -> usize {
        // Sealed records are counted as one byte: their plaintext has left the outbox.
        let sealed = match &self.tls {
            None => false,
            Some(Tls::Session(session)) => session.sealed().len() > 0,
            Some(Tls::Kernel(kernel)) => kernel.waits(),
        };
        self.outbox.len() + usize::from(sealed)
    }

    /// Sends one message as a frame: at once when the connection has been quiet, else with those
    /// that follow it.
    pub fn send<S>(
        &mut self,
        segments: impl Iterator<Item = S> + Clone,
        len: usize,
    ) -> Result<(), Closed>
    where
        S: Segment<Shared = P>,
    {
        let header = u32::try_from(len)
            .map_err(|_| Closed::TooLong { len })?
            .to_be_bytes();
        self.stats.frame_out(len);
        let result = self.write_or_queue(&header, segments, len);
        self.note_pending();
        result
    }

    fn write_or_queue<S>(
        &mut self,
        header: &[u8; 4],
        segments: impl Iterator<Item = S> + Clone,
        len: usize,
    ) -> Result<(), Closed>
    where
        S: Segment<Shared = P>,
    {
        let now = Instant::now();
        if len >= LARGE || now.duration_since(self.last_write) >= BURST {
            self.prompt = PROMPT;
        }
        let burst = self.prompt == 0;
        if burst || self.pending() > 0 || len > WORK {
            self.outbox.push(header, segments, 0);
            return Ok(());
        }
        self.last_write = now;
        self.prompt = self.prompt.saturating_sub(1);
        let lent: SmallVec<[S; 8]> = segments.clone().take(MAX_SLICES).collect();
        if lent.len() == MAX_SLICES {
            self.outbox.push(header, segments, 0);
            return self.flush();
        }
        let mut slices: SmallVec<[IoSlice<'_>; 9]> = SmallVec::new();
        slices.push(IoSlice::new(header));
        slices.extend(lent.iter().map(|segment| IoSlice::new(segment.bytes())));
        let written = match &mut self.tls {
            Some(Tls::Session(session)) => {
                return tls::send(session, &slices, self.fd.as_fd(), &self.stats);
            }
            Some(Tls::Kernel(kernel)) => {
                tls::write_by_kernel(kernel, &slices, self.fd.as_fd(), &self.stats)?
            }
            None => write_all(self.fd.as_fd(), &slices, &mut self.message, &self.stats)?,
        };
        drop(slices);
        if written < header.len() + len {
            self.outbox.push(header, segments, written);
        }
        Ok(())
    }

    /// Writes what is queued, as far as the descriptor takes it and [`WORK`] allows.
    pub fn flush(&mut self) -> Result<(), Closed> {
        self.last_write = Instant::now();
        let result = match &mut self.tls {
            Some(Tls::Session(session)) => {
                tls::flush(session, &mut self.outbox, self.fd.as_fd(), &self.stats)
            }
            Some(Tls::Kernel(kernel)) => {
                let (fd, stats) = (self.fd.as_fd(), &*self.stats);
                flush(&mut self.outbox, |slices| {
                    tls::write_by_kernel(kernel, slices, fd, stats)
                })
                .and_then(|()| kernel.ready(fd).map(drop))
            }
            None => {
                let (fd, message, stats) = (self.fd.as_fd(), &mut self.message, &*self.stats);
                flush(&mut self.outbox, |slices| {
                    Ok(write_all(fd, slices, message, stats)?)
                })
            }
        };
        self.note_pending();
        result
    }

    /// Sends a tick, unless output is waiting anyway, which does as well. Never blocks.
    pub fn tick(&mut self) -> Result<(), Closed> {
        if self.pending() == 0 {
            self.stats.tick_out();
            self.outbox.push_bytes(&[0; 4]);
            self.flush()?;
        }
        Ok(())
    }

    /// Renews the key that we seal with, as is done by itself long before it must not be used any more.
    /// Without TLS there is none.
    pub fn renew_key(&mut self) -> Result<(), Closed> {
        match &mut self.tls {
            Some(Tls::Session(session)) => session.renew_key()?,
            Some(Tls::Kernel(kernel)) => kernel.renew_key(),
            None => {}
        }
        self.flush()
    }

    /// Reads what there is, at most about [`WORK`] bytes, and delivers the complete frames, in
    /// order. Says how many bytes were read: 0 when there was nothing.
    ///
    /// Frames read before an error are delivered first.
    pub fn receive(&mut self, sink: &mut impl Sink<B>) -> Result<usize, Closed> {
        let result = match &mut self.tls {
            Some(Tls::Session(session)) => {
                tls::receive(session, &mut self.inbox, self.fd.as_fd(), sink, &self.stats)
            }
            Some(Tls::Kernel(kernel)) => {
                let kernel = Some(&mut **kernel);
                let fd = self.fd.as_fd();
                receive(&mut self.inbox, fd, false, kernel, sink, &self.stats)
            }
            None => {
                // A read gives no more than what is left of one message.
                let one = self.message.is_some();
                let fd = self.fd.as_fd();
                receive(&mut self.inbox, fd, one, None, sink, &self.stats)
            }
        };
        self.note_pending();
        result
    }

    /// Queues the handshake's last frame, its prefix included, before anything else; it goes with
    /// the first [`Channel::flush`], and until then so does every message.
    pub fn queue_handshake(&mut self, frame: &[u8]) {
        self.outbox.push_bytes(frame);
        self.note_pending();
    }

    /// Delivers what came with the handshake: the surplus, and what TLS has of it. Call
    /// it once, before the first [`Channel::receive`]: no readiness event announces these bytes.
    pub fn deliver_surplus(&mut self, sink: &mut impl Sink<B>) -> Result<(), Closed> {
        self.inbox.deliver(sink, &self.stats)?;
        match &mut self.tls {
            Some(Tls::Session(session)) => {
                tls::deliver_surplus(session, &mut self.inbox, sink, &self.stats)
            }
            Some(Tls::Kernel(_)) | None => Ok(()),
        }
    }

    /// Ends the channel in good order: what is queued is written as far as it goes without waiting,
    /// TLS says goodbye. Gives the descriptor back, to be closed when nothing polls it any more.
    pub fn close(mut self) -> OwnedFd {
        // The peer may be gone, or not reading; either way there is nobody left to tell.
        let flushed = self.flush().is_ok();
        if flushed && self.outbox.len() == 0 {
            match &mut self.tls {
                Some(Tls::Session(session)) => {
                    let _ = session.seal_goodbye();
                    let _ = tls::write_records(session, self.fd.as_fd(), &self.stats);
                }
                Some(Tls::Kernel(kernel)) => kernel.goodbye(self.fd.as_fd()),
                None => {}
            }
        }
        self.abandon()
    }

    /// Ends the channel at once: what is queued is not sent.
    pub fn abandon(self) -> OwnedFd {
        // Whatever was held back goes nowhere now.
        self.stats.set_busy(false);
        self.fd
    }

    fn note_pending(&self) {
        self.stats.set_queued(self.pending());
    }
}

impl<B, P> fmt::Debug for Channel<B, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("fd", &self.fd)
            .field("tls", &self.tls.is_some())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

/// One vectored write, which never blocks, whatever the socket is set to: of one that came from
/// elsewhere somebody else may have a duplicate, which shares the setting. A socket that takes
/// nothing now has taken 0 bytes.
fn write(fd: BorrowedFd<'_>, slices: &[IoSlice<'_>], stats: &Stats) -> io::Result<usize> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        let written = sendmsg(fd, slices, &mut SendAncillaryBuffer::default(), flags);
        stats.write(written.unwrap_or(0));
        match written {
            Ok(written) => return Ok(written),
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(0),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Writes as much as the descriptor takes: at once, or in messages of no more than `message` bytes.
/// Between messages it asks whether there is room for one: SCTP would take far more than its send
/// buffer holds, and a slow reader could not be told from a dead one.
fn write_all(
    fd: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    message: &mut Option<usize>,
    stats: &Stats,
) -> io::Result<usize> {
    let Some(limit) = message else {
        return write(fd, slices, stats);
    };
    let mut total = 0;
    loop {
        let part = part(slices, total, *limit);
        if part.is_empty() || (total > 0 && !is_writable(fd)) {
            return Ok(total);
        }
        match write(fd, &part, stats) {
            Ok(0) => return Ok(total),
            Ok(written) => total += written,
            Err(error) if too_long(&error) && *limit > SMALL_MESSAGE => *limit /= 2,
            Err(error) => return Err(error),
        }
    }
}

/// At most `limit` bytes of `slices`, after the first `skip`.
fn part<'a>(
    slices: &'a [IoSlice<'_>],
    mut skip: usize,
    mut limit: usize,
) -> SmallVec<[IoSlice<'a>; MAX_SLICES]> {
    let mut part = SmallVec::new();
    for slice in slices {
        let from = skip.min(slice.len());
        let to = slice.len().min(from + limit);
        if from < to {
            part.push(IoSlice::new(&slice[from..to]));
        }
        skip -= from;
        limit -= to - from;
    }
    part
}

fn too_long(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::MSGSIZE)
}

fn is_writable(fd: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    matches!(
        rustix::event::poll(&mut poll, Some(&Timespec::default())),
        Ok(1..)
    )
}

fn flush<P: AsRef<[u8]>>(
    outbox: &mut Outbox<P>,
    mut write: impl FnMut(&[IoSlice<'_>]) -> Result<usize, Closed>,
) -> Result<(), Closed> {
    let mut budget = WORK;
    while outbox.len() > 0 {
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = outbox.slices(MAX_SLICES, usize::MAX);
        let offered: usize = slices.iter().map(|slice| slice.len()).sum();
        let written = write(&slices)?;
        drop(slices);
        outbox.advance(written);
        budget = budget.saturating_sub(written);
        if written < offered || budget == 0 {
            break;
        }
    }
    Ok(())
}

fn receive<B: Buffer>(
    inbox: &mut Inbox<B>,
    fd: BorrowedFd<'_>,
    one: bool,
    mut kernel: Option<&mut Kernel>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<usize, Closed> {
    let mut total = 0;
    while total < WORK {
        let filled = inbox.fill(fd);
        stats.read(*filled.as_ref().unwrap_or(&0));
        match filled {
            Ok(0) => return Err(Closed::ByPeer),
            Ok(count) => {
                total += count;
                if let Some(kernel) = &mut kernel {
                    kernel.received(count)?;
                }
                inbox.deliver(sink, stats)?;
                // A short read has emptied the socket; asking again would only cost a system call.
                if !inbox.was_filled() && !one {
                    break;
                }
            }
            Err(error) => match (error.kind(), &mut kernel) {
                (io::ErrorKind::Interrupted, _) => {}
                (io::ErrorKind::WouldBlock, _) => {
                    inbox.release_if_empty();
                    break;
                }
                (_, None) => return Err(error.into()),
                (_, Some(kernel)) => match kernel.receive(fd, error)? {
                    Received::Nothing => {}
                    Received::Data(bytes) => {
                        inbox.append(&bytes);
                        inbox.deliver(sink, stats)?;
                    }
                    Received::End => return Err(Closed::ByPeer),
                },
            },
        }
    }
    Ok(total)
}
