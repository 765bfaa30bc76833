//! Input: bytes as they come, cut into frames without moving them.

use std::io;
use std::os::fd::BorrowedFd;

use crate::{Buffer, Closed, MAX_FRAME, Sink, Stats};

/// The first buffer of a connection that has been quiet, and the least that is read at once.
const MIN_READ: usize = 4 * 1024;
/// The most that is read at once. A message body keeps the whole buffer it came in until it is
/// decoded.
const MAX_READ: usize = 256 * 1024;
/// A frame is given memory as it arrives, doubling, from this size on: an announced length alone
/// costs nothing.
const MAX_AHEAD: usize = 1024 * 1024;

/// A frame of this size or more is read by itself if it does not come at once.
const LARGE: usize = 16 * 1024;

const HEADER: usize = 4;

/// Input that does not make a whole frame yet, and how much to read next.
///
/// Invariant: between calls `buffer` starts with a frame's header and holds no complete frame.
pub(crate) struct Inbox<B> {
    buffer: Option<B>,
    /// Follows the traffic: grows when reads fill their buffer, shrinks when they do not.
    read_size: usize,
    filled: bool,
}

impl<B> Default for Inbox<B> {
    fn default() -> Self {
        Self {
            buffer: None,
            read_size: MIN_READ,
            filled: false,
        }
    }
}

impl<B: Buffer> Inbox<B> {
    /// Reads once into a buffer with room. `Ok(0)` is the end of the stream.
    pub(crate) fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let buffer = self
            .buffer
            .get_or_insert_with(|| B::with_capacity(self.read_size));
        let room = buffer.capacity() - buffer.as_slice().len();
        let count = buffer.read_from(fd)?;
        self.filled = count == room;
        if self.filled && room >= self.read_size {
            self.read_size = (self.read_size * 4).min(MAX_READ);
        } else if !self.filled && count < self.read_size / 4 {
            self.read_size = (self.read_size / 2).max(MIN_READ);
        }
        Ok(count)
    }

    /// Appends as much of `bytes`, which have been read elsewhere, as belongs into one buffer: a
    /// large frame alone, small ones together. Says how much that was.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<usize, Closed> {
        let buffer = match &mut self.buffer {
            Some(buffer) => buffer,
            none => none.insert(B::with_capacity(match frame_size(bytes)? {
                needed if needed >= LARGE => needed.min(MAX_AHEAD),
                _ => bytes.len(),
            })),
        };
        Ok(buffer.append(bytes))
    }

    /// Whether the last read filled its buffer, so that there may be more.
    pub(crate) fn was_filled(&self) -> bool {
        self.filled
    }

    /// Appends all of `bytes`, which may hold many frames.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let buffer = self
            .buffer
            .get_or_insert_with(|| B::with_capacity(bytes.len()));
        let needed = buffer.as_slice().len() + bytes.len();
        if buffer.capacity() < needed {
            buffer.resize(needed.next_power_of_two());
        }
        buffer.append(bytes);
    }

    /// Gives the memory back when nothing is waiting in it, as on an idle connection.
    pub(crate) fn release_if_empty(&mut self) {
        self.buffer.take_if(|buffer| buffer.as_slice().is_empty());
    }

    /// Delivers every complete frame. What follows the last moves to a buffer of its own, with room
    /// for its rest.
    pub(crate) fn deliver(&mut self, sink: &mut impl Sink<B>, stats: &Stats) -> Result<(), Closed> {
        let Some(mut buffer) = self.buffer.take() else {
            return Ok(());
        };
        let needed = frame_size(buffer.as_slice())?;
        if needed > buffer.as_slice().len() {
            if buffer.as_slice().len() == buffer.capacity() {
                buffer.resize(ahead(needed, buffer.capacity()));
            }
            self.buffer = Some(buffer);
            return Ok(());
        }
        // A message keeps its buffer until it is decoded; let it not keep what was never filled.
        let len = buffer.as_slice().len();
        if buffer.capacity() > 2 * len {
            buffer.resize(len);
        }
        let frozen = buffer.freeze();
        let mut rest = frozen.as_ref();
        let mut at = 0;
        let mut needed = needed;
        while needed <= rest.len() {
            // Counted first: whoever has a message must find it in the counters.
            if needed > HEADER {
                stats.frame_in(needed - HEADER);
                sink.deliver(&frozen, at + HEADER..at + needed);
            } else {
                stats.tick_in();
            }
            at += needed;
            rest = &rest[needed..];
            needed = frame_size(rest)?;
        }
        if !rest.is_empty() {
            // The rest of a large frame is read to its end and no further, so that nothing after it
            // has to move again.
            let room = if needed >= LARGE {
                needed
            } else {
                self.read_size
            };
            let mut buffer = B::with_capacity(ahead(needed, room.min(MAX_READ)));
            buffer.append(rest);
            self.buffer = Some(buffer);
        }
        Ok(())
    }
}

/// The size of the frame that `bytes` begin with, its header included; as much of it as is known.
fn frame_size(bytes: &[u8]) -> Result<usize, Closed> {
    let Some(header) = bytes.first_chunk::<HEADER>() else {
        return Ok(HEADER);
    };
    match u32::from_be_bytes(*header) as usize {
        len if len > MAX_FRAME => Err(Closed::TooLong { len }),
        len => Ok(HEADER + len),
    }
}

/// The memory for a frame of `needed` bytes when there is now `capacity`: all of it, or a step
/// towards a very long one.
fn ahead(needed: usize, capacity: usize) -> usize {
    needed.min((2 * capacity).max(MAX_AHEAD)).max(capacity)
}
