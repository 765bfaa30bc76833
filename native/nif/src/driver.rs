//! The linked-in driver: a port for each established connection, the VM's distribution controller
//! for it.
//!
//! The connection process opens the port with `open_port({spawn_driver, "polydist"}, [binary])`
//! while it still shakes hands by NIF, attaches the connection to it when that is done (`f_getll`),
//! gives it to `erlang:setnode/3`, and starts its input (`f_setopts_post_nodeup`). From then on the
//! VM calls [`Driver::output`] with each message for the peer, and [`Port::input`] gives it each
//! frame from the peer.
//!
//! | `port_control` | data | result |
//! | --- | --- | --- |
//! | 1 attach | `Token:64` of `polydist_native:detach/2` | `ok`, or `error`: no such connection |
//! | 2 start | | `ok`; frames are delivered, and sent, from here on |
//! | 3 tick | | empty |
//! | 4 set option | `Option:8 Value:32/signed` | `ok` or `error` |
//! | 5 get option | `Option:8` | `Value:32/signed` or `error` |
//! | 6 last frame | the handshake's last frame | `ok`; it is the first to be sent, at start |
//! | 7 set SCTP's | six times `Value:32` | `ok` or `error` |
//! | 8 get SCTP's | | six times `Value:32`, or `error` |
//!
//! The last frame of an accepted handshake, the challenge's acknowledgement, tells the peer that it
//! is connected. It is held back until this node has the peer up as well: a peer that disconnects
//! and dials again at once would else meet a connection that is still being set up here, and be
//! told to wait for it (`nok`).
//!
//! Options: 1 nodelay, 2 keepalive, 3 sndbuf, 4 recbuf, 5 priority, 6 tos, 7 user timeout
//! (milliseconds), 8 how many unsent bytes the kernel may hold (TCP_NOTSENT_LOWAT). Setting what
//! the socket does not have does nothing; getting it is an error, except for the user timeout,
//! which is 0 then.
//! SCTP's, which hold together: heartbeat, path_max_retrans, max_retrans, rto_initial, rto_min,
//! rto_max; 0 changes nothing.
//!
//! The port exits with `connection_closed` when the peer goes away, as a stock node reports it,
//! with the name of the operating system's error when there is one, or with `tls_error` or
//! `emsgsize` when the peer's bytes make no sense.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use polydist_channel::{Buffer, Channel, Closed, Sink};
use polydist_erl_driver::{
    Binary, BinaryBuf, Driver, Failure, Flow, Message, Port, Segment, errno_name,
};
use polydist_transport::{
    SctpOpts, nodelay, set_nodelay, set_tos, set_unsent, set_user_timeout, tos, user_timeout,
};
use socket2::SockRef;

use crate::connection::take_established;

/// The port is busy from this much queued output on: the VM queues what follows itself, suspends
/// senders in the end, ...
const BUSY_ABOVE: usize = 512 * 1024;
/// ... and goes on when no more than this is left.
const FREE_BELOW: usize = 128 * 1024;

/// How long a closing port waits for a peer that does not read. A stock port waits for ever, and a
/// halting node with it.
const LINGER_MS: u32 = 5_000;

/// What the peer sent before its connection broke is delivered, but no more than this many rounds
/// of it: it may still be sending.
const LAST_READS: usize = 64;

/// The driver's table, for the VM.
pub(crate) fn entry() -> *const polydist_erl_driver::ErlDrvEntry {
    polydist_erl_driver::entry::<Connection>()
}

/// One port and, once attached, its connection.
struct Connection {
    channel: Option<Channel<ReadBuffer, Binary>>,
    /// Frames are delivered and sent: this node has the peer up.
    started: bool,
    last_frame: Vec<u8>,
    /// The port is closing and only writes what is queued.
    closing: bool,
    busy: bool,
    /// `ready_output` has been asked for, and with it the port held open.
    writing: bool,
}

impl Driver for Connection {
    const NAME: &'static CStr = c"polydist";

    fn start(port: &Port) -> Self {
        port.lock_driver();
        Self {
            channel: None,
            started: false,
            last_frame: Vec::new(),
            closing: false,
            busy: false,
            writing: false,
        }
    }

    fn output(&mut self, port: &Port, message: Message<'_>) -> Flow {
        // Before `attach` there is no node to send to, hence no such call from the distribution.
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let sent = channel.send(message.segments().map(Piece), message.len());
        self.settle(port, sent)
    }

    fn ready_input(&mut self, port: &Port) -> Flow {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        channel
            .receive(&mut Input(port))
            .map_err(|closed| failure(&closed))?;
        // TLS may have something to answer.
        self.settle(port, Ok(()))
    }

    fn ready_output(&mut self, port: &Port) -> Flow {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let flushed = channel.flush();
        self.settle(port, flushed)
    }

    fn control(&mut self, port: &Port, operation: u32, data: &[u8], reply: &mut Vec<u8>) -> Flow {
        let done = match (operation, data) {
            (1, token) => token
                .try_into()
                .is_ok_and(|token| self.attach(u64::from_be_bytes(token))),
            (2, []) => {
                reply.extend_from_slice(b"ok");
                return self.start_traffic(port);
            }
            (3, []) => return self.tick(port),
            (4, [option, value @ ..]) => value
                .try_into()
                .is_ok_and(|value| self.set_option(*option, i32::from_be_bytes(value))),
            (5, [option]) => match self.option(*option) {
                Some(value) => {
                    reply.extend_from_slice(&value.to_be_bytes());
                    return Ok(());
                }
                None => false,
            },
            (7, values) => self.set_sctp(values),
            (8, []) => match self.sctp() {
                Some(values) => {
                    reply.extend(values.into_iter().flat_map(u32::to_be_bytes));
                    return Ok(());
                }
                None => false,
            },
            (6, frame) => {
                self.last_frame = frame.to_vec();
                true
            }
            _ => false,
        };
        reply.extend_from_slice(if done { b"ok" } else { b"error" });
        Ok(())
    }

    fn timeout(&mut self, _: &Port) -> Flow {
        // Set only when closing: the peer had its time to read.
        Err(Failure::new("timeout"))
    }

    fn flush(&mut self, port: &Port) -> Flow {
        self.closing = true;
        port.set_timer(LINGER_MS);
        if let Some(channel) = &self.channel {
            port.poll_read(channel.fd(), false);
        }
        Ok(())
    }

    fn stop(self, port: &Port) {
        if let Some(channel) = self.channel {
            // Not started: this node never had the peer up, so the peer is not told that it is.
            let fd = match self.started {
                true => channel.close(),
                false => channel.abandon(),
            };
            port.release(fd);
        }
    }
}

impl Connection {
    fn attach(&mut self, token: u64) -> bool {
        let Some(taken) = take_established(token).filter(|_| self.channel.is_none()) else {
            return false;
        };
        let mut first = Vec::new();
        if !self.last_frame.is_empty() {
            let encoded = taken.prefix.encode(&self.last_frame, &mut first);
            if encoded.is_err() {
                return false;
            }
            taken.stats.frame_out(self.last_frame.len());
        }
        let mut channel = Channel::new(taken.fd, taken.tls, &taken.surplus, taken.stats);
        channel.queue_handshake(&first);
        self.channel = Some(channel);
        true
    }

    fn start_traffic(&mut self, port: &Port) -> Flow {
        let Some(channel) = self.channel.as_mut().filter(|_| !self.started) else {
            return Ok(());
        };
        self.started = true;
        channel
            .deliver_surplus(&mut Input(port))
            .map_err(|closed| failure(&closed))?;
        port.poll_read(channel.fd(), true);
        let flushed = channel.flush();
        self.settle(port, flushed)
    }

    fn tick(&mut self, port: &Port) -> Flow {
        let Some(channel) = &mut self.channel else {
            return Ok(());
        };
        let ticked = channel.tick();
        self.settle(port, ticked)
    }

    /// After every call that may have written: ask for `ready_output` while output waits, and hold
    /// the VM back or let it go on.
    fn settle(&mut self, port: &Port, wrote: Result<(), Closed>) -> Flow {
        if let Err(closed) = wrote {
            return Err(self.last_words(port, &closed));
        }
        let Some(channel) = &self.channel else {
            return Ok(());
        };
        let pending = channel.pending();
        if self.started && self.writing != (pending > 0) {
            self.writing = pending > 0;
            port.poll_write(channel.fd(), self.writing);
            port.hold(self.writing);
        }
        if self.busy != (pending > if self.busy { FREE_BELOW } else { BUSY_ABOVE }) {
            self.busy = !self.busy;
            channel.stats().set_busy(self.busy);
            port.set_busy(self.busy);
        }
        Ok(())
    }

    /// A write failed: the peer is gone, but what it sent before is delivered first.
    fn last_words(&mut self, port: &Port, closed: &Closed) -> Failure {
        if let Some(channel) = self
            .channel
            .as_mut()
            .filter(|_| self.started && !self.closing)
        {
            for _ in 0..LAST_READS {
                match channel.receive(&mut Input(port)) {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => break,
                }
            }
        }
        failure(closed)
    }

    fn set_option(&self, option: u8, value: i32) -> bool {
        let Some(channel) = &self.channel else {
            return false;
        };
        let fd = channel.fd();
        let socket = SockRef::from(&fd);
        let size = usize::try_from(value);
        let number = u32::try_from(value);
        match (option, size, number) {
            (1, ..) => set_nodelay(&socket, value != 0),
            (2, ..) => socket.set_keepalive(value != 0),
            (3, Ok(size), _) => socket.set_send_buffer_size(size),
            (4, Ok(size), _) => socket.set_recv_buffer_size(size),
            (5, _, Ok(priority)) => socket.set_priority(priority),
            (6, _, Ok(tos)) => set_tos(&socket, tos),
            (7, _, Ok(time)) => set_user_timeout(&socket, time),
            (8, _, Ok(bytes)) => set_unsent(&socket, bytes),
            _ => return false,
        }
        .is_ok()
    }

    fn option(&self, option: u8) -> Option<i32> {
        let channel = self.channel.as_ref()?;
        let fd = channel.fd();
        let socket = SockRef::from(&fd);
        match option {
            1 => nodelay(&socket).ok().map(i32::from),
            2 => socket.keepalive().ok().map(i32::from),
            3 => socket
                .send_buffer_size()
                .ok()
                .and_then(|size| size.try_into().ok()),
            4 => socket
                .recv_buffer_size()
                .ok()
                .and_then(|size| size.try_into().ok()),
            5 => socket
                .priority()
                .ok()
                .and_then(|priority| priority.try_into().ok()),
            6 => tos(&socket).ok().and_then(|tos| tos.try_into().ok()),
            7 => user_timeout(&socket)
                .ok()
                .and_then(|time| time.try_into().ok()),
            _ => None,
        }
    }
}

impl Connection {
    fn set_sctp(&self, values: &[u8]) -> bool {
        let values = values.chunks(4).map(|value| {
            let value = value.try_into().map(u32::from_be_bytes).ok();
            value.map(|value| Some(value).filter(|value| *value > 0))
        });
        let values: Option<Vec<_>> = values.collect();
        let short = |value: Option<u32>| value.map(|value| value.try_into().unwrap_or(u16::MAX));
        match (&self.channel, values.as_deref()) {
            (Some(channel), Some(&[heartbeat, path_max, max, rto_initial, rto_min, rto_max])) => {
                SctpOpts {
                    heartbeat,
                    path_max_retrans: short(path_max),
                    max_retrans: short(max),
                    rto_initial,
                    rto_min,
                    rto_max,
                }
                .apply(&SockRef::from(&channel.fd()))
                .is_ok()
            }
            _ => false,
        }
    }

    fn sctp(&self) -> Option<[u32; 6]> {
        let options = SctpOpts::of(&SockRef::from(&self.channel.as_ref()?.fd())).ok()?;
        Some([
            options.heartbeat?,
            options.path_max_retrans?.into(),
            options.max_retrans?.into(),
            options.rto_initial?,
            options.rto_min?,
            options.rto_max?,
        ])
    }
}

/// The reason the port exits with, which users read as `nodedown_reason`.
fn failure(closed: &Closed) -> Failure {
    match closed.needs_attention() {
        true => tracing::warn!(%closed, "a connection ended"),
        false => tracing::debug!(%closed, "a connection ended"),
    }
    match closed {
        Closed::ByPeer => Failure::new("connection_closed"),
        Closed::Io(error) => match error.raw_os_error() {
            Some(errno) => Failure::new(&errno_name(errno)),
            None => Failure::new("connection_closed"),
        },
        Closed::TooLong { .. } => Failure::new("emsgsize"),
        Closed::Tls(_) => Failure::new("tls_error"),
        _ => Failure::new("connection_closed"),
    }
}

/// The port as a taker of frames.
struct Input<'a>(&'a Port);

impl Sink<ReadBuffer> for Input<'_> {
    fn deliver(&mut self, buffer: &Binary, frame: Range<usize>) {
        self.0.input(buffer, frame.start, frame.len());
    }
}

/// A piece of the VM's message as the channel wants it.
struct Piece<'a>(Segment<'a>);

impl polydist_channel::Segment for Piece<'_> {
    type Shared = Binary;

    fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    fn share(&self, skip: usize) -> Binary {
        self.0.share(skip)
    }
}

/// The VM's memory as the channel wants it.
struct ReadBuffer(BinaryBuf);

impl Buffer for ReadBuffer {
    type Frozen = Binary;

    fn with_capacity(capacity: usize) -> Self {
        Self(BinaryBuf::with_capacity(capacity))
    }

    fn capacity(&self) -> usize {
        self.0.capacity()
    }

    fn as_slice(&self) -> &[u8] {
        self.0.as_slice()
    }

    fn resize(&mut self, capacity: usize) {
        self.0.resize(capacity);
    }

    fn append(&mut self, bytes: &[u8]) -> usize {
        self.0.append(bytes)
    }

    fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        self.0.read_from(fd)
    }

    fn freeze(self) -> Binary {
        self.0.freeze()
    }
}
