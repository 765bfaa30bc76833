//! Memory of a channel's input, outside any VM.

use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use polydist_channel::Buffer;

/// A buffer outside any VM.
pub(crate) struct Memory(Vec<u8>);

impl Buffer for Memory {
    type Frozen = Bytes;

    fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }
    fn capacity(&self) -> usize {
        self.0.capacity()
    }
    fn as_slice(&self) -> &[u8] {
        &self.0
    }
    fn resize(&mut self, capacity: usize) {
        self.0.reserve_exact(capacity.saturating_sub(self.0.len()));
        self.0.shrink_to(capacity);
    }
    fn append(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.0.capacity() - self.0.len());
        self.0.extend_from_slice(&bytes[..count]);
        count
    }
    fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        Ok(rustix::io::read(
            fd,
            rustix::buffer::spare_capacity(&mut self.0),
        )?)
    }
    fn freeze(self) -> Bytes {
        self.0.into()
    }
}
