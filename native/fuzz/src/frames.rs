//! The receiving end of an established connection, and what it must make of a stream.

#[path = "../../channel/tests/support/memory.rs"]
mod memory;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;
use memory::Memory;
use polydist_channel::{Channel, Closed, MAX_FRAME, Session, Sink, Stats, Tls};

use crate::measured;

/// Compares each frame with the one that must come, and keeps none.
struct Expected<'a> {
    frames: std::slice::Iter<'a, Range<usize>>,
    stream: &'a [u8],
    count: usize,
}

impl Sink<Memory> for Expected<'_> {
    fn deliver(&mut self, buffer: &Bytes, frame: Range<usize>) {
        let expected = self.frames.next().expect("a frame that nobody sent");
        assert!(
            buffer[frame] == self.stream[expected.clone()],
            "frame {} is another than was sent",
            self.count
        );
        self.count += 1;
    }
}

/// What there is in a stream of frames.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    /// Where the payloads are.
    pub(crate) frames: Vec<Range<usize>>,
    pub(crate) ticks: u64,
    /// The length of a frame that is too long, which is the end.
    pub(crate) too_long: Option<usize>,
}

impl Reference {
    pub(crate) fn of(stream: &[u8]) -> Self {
        let mut found = Self::default();
        let mut at = 0;
        while let Some(header) = stream[at..].first_chunk() {
            let start = at + 4;
            match u32::from_be_bytes(*header) as usize {
                len if len > MAX_FRAME => {
                    found.too_long = Some(len);
                    break;
                }
                len if len > stream.len() - start => break,
                0 => {
                    found.ticks += 1;
                    at = start;
                }
                len => {
                    found.frames.push(start..start + len);
                    at = start + len;
                }
            }
        }
        found
    }
}

/// A connection that is received from, and how many bytes of memory it has.
pub(crate) struct Receiver {
    channel: Channel<Memory, Bytes>,
    stats: Arc<Stats>,
    delivered: usize,
    memory: i64,
}

impl Receiver {
    pub(crate) fn new(socket: UnixStream, tls: Option<Box<Session>>, surplus: &[u8]) -> Self {
        socket.set_nonblocking(true).unwrap();
        let stats = Arc::new(Stats::default());
        Self {
            channel: Channel::new(
                OwnedFd::from(socket),
                tls.map(Tls::Session),
                surplus,
                stats.clone(),
            ),
            stats,
            delivered: 0,
            memory: 0,
        }
    }

    /// What was read with the handshake.
    pub(crate) fn surplus(
        &mut self,
        stream: &[u8],
        reference: &Reference,
        limit: usize,
    ) -> Result<(), Closed> {
        self.take(stream, reference, limit, |channel, sink| {
            channel.deliver_surplus(sink)
        })
    }

    /// Receives all there is. What is delivered must be the frames of the reference that come next,
    /// and what is held meanwhile no more than `limit` bytes.
    pub(crate) fn receive(
        &mut self,
        stream: &[u8],
        reference: &Reference,
        limit: usize,
    ) -> Result<(), Closed> {
        while self.take(stream, reference, limit, |channel, sink| {
            channel.receive(sink)
        })? > 0
        {}
        Ok(())
    }

    fn take<T>(
        &mut self,
        stream: &[u8],
        reference: &Reference,
        limit: usize,
        from: impl FnOnce(&mut Channel<Memory, Bytes>, &mut Expected<'_>) -> T,
    ) -> T {
        let mut sink = Expected {
            frames: reference.frames[self.delivered..].iter(),
            stream,
            count: self.delivered,
        };
        let (taken, result) = measured(|| from(&mut self.channel, &mut sink));
        self.delivered = sink.count;
        let most = self.memory + taken.bytes_max as i64;
        assert!(
            most <= limit as i64,
            "{most} bytes of memory, and {limit} are enough"
        );
        self.memory += taken.bytes_current;
        result
    }

    pub(crate) fn delivered(&self) -> usize {
        self.delivered
    }

    pub(crate) fn ticks(&self) -> u64 {
        self.stats.ticks_in.load(Relaxed)
    }
}
