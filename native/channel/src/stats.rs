//! Counters of one connection, shared between the side that moves bytes and whoever asks.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What has passed over one connection since it was made.
///
/// Written by one thread at a time (the handshake's, then the channel's), which is why adding is a
/// load and a store, and read at any time by others; each counter is exact, a set of them is not a
/// snapshot.
#[derive(Debug, Default)]
pub struct Stats {
    /// Payload bytes received, without length prefixes.
    pub bytes_in: AtomicU64,
    /// Payload bytes sent or queued, without length prefixes.
    pub bytes_out: AtomicU64,
    /// Frames received: handshake frames, distribution messages and ticks.
    pub frames_in: AtomicU64,
    /// Frames sent or queued.
    pub frames_out: AtomicU64,
    /// Bytes accepted from the VM and not yet taken by the kernel.
    pub queued: AtomicU64,
    /// Write system calls.
    pub writes: AtomicU64,
    /// Read system calls.
    pub reads: AtomicU64,
}

impl Stats {
    /// Counts one received frame of `len` payload bytes.
    pub fn frame_in(&self, len: usize) {
        add(&self.frames_in, 1);
        add(&self.bytes_in, len as u64);
    }

    /// Counts one sent frame of `len` payload bytes.
    pub fn frame_out(&self, len: usize) {
        add(&self.frames_out, 1);
        add(&self.bytes_out, len as u64);
    }

    /// Counts one write system call.
    pub(crate) fn write(&self) {
        add(&self.writes, 1);
    }

    /// Counts one read system call.
    pub(crate) fn read(&self) {
        add(&self.reads, 1);
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed) + count, Relaxed);
}
