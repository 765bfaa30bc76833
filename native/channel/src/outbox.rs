//! Output that waits: references to what is big, small messages copied together.

use std::collections::VecDeque;
use std::io::IoSlice;

use smallvec::{Array, SmallVec};

use crate::Segment;

/// A segment smaller than this is copied: that costs less than a reference, an entry here and one
/// in the write.
const COPY_BELOW: usize = 1024;
/// Small messages are gathered in runs of up to this size.
const RUN: usize = 64 * 1024;

/// A queue of bytes in the order they are to be written.
pub(crate) struct Outbox<P> {
    chunks: VecDeque<Chunk<P>>,
    /// How much of the first chunk has been written.
    written: usize,
    /// Bytes in all chunks, less `written`.
    len: usize,
}

enum Chunk<P> {
    Shared(P),
    Copied(Vec<u8>),
}

impl<P: AsRef<[u8]>> Chunk<P> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(payload) => payload.as_ref(),
            Self::Copied(run) => run,
        }
    }
}

impl<P> Default for Outbox<P> {
    fn default() -> Self {
        Self {
            chunks: VecDeque::new(),
            written: 0,
            len: 0,
        }
    }
}

impl<P: AsRef<[u8]>> Outbox<P> {
    /// The bytes that wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Queues a message, header first, less the first `skip` bytes of both, which have been written
    /// already.
    pub(crate) fn push<S>(
        &mut self,
        header: &[u8],
        segments: impl Iterator<Item = S>,
        mut skip: usize,
    ) where
        S: Segment<Shared = P>,
    {
        if skip < header.len() {
            self.push_bytes(&header[skip..]);
        }
        skip = skip.saturating_sub(header.len());
        for segment in segments {
            let bytes = segment.bytes();
            if skip >= bytes.len() {
                skip -= bytes.len();
                continue;
            }
            let left = bytes.len() - skip;
            if left < COPY_BELOW {
                self.push_bytes(&bytes[skip..]);
            } else {
                self.chunks.push_back(Chunk::Shared(segment.share(skip)));
                self.len += left;
            }
            skip = 0;
        }
    }

    /// Queues bytes that are owned, so that nothing has to be copied unless they are few.
    pub(crate) fn push_owned(&mut self, bytes: P) {
        let len = bytes.as_ref().len();
        if len < COPY_BELOW {
            self.push_bytes(bytes.as_ref());
        } else {
            self.chunks.push_back(Chunk::Shared(bytes));
            self.len += len;
        }
    }

    /// Queues a copy of `bytes`.
    pub(crate) fn push_bytes(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        match self.chunks.back_mut() {
            Some(Chunk::Copied(run)) if run.len() + bytes.len() <= RUN => {
                run.extend_from_slice(bytes)
            }
            _ => {
                let mut run = Vec::with_capacity(bytes.len().max(COPY_BELOW));
                run.extend_from_slice(bytes);
                self.chunks.push_back(Chunk::Copied(run));
            }
        }
    }

    /// The first bytes that wait: at most `count` slices and, but for the first slice, `limit`
    /// bytes.
    pub(crate) fn slices<'a, A: Array<Item = IoSlice<'a>>>(
        &'a self,
        count: usize,
        limit: usize,
    ) -> SmallVec<A> {
        let mut skip = self.written;
        let mut total = 0;
        self.chunks
            .iter()
            .take(count)
            .map(|chunk| IoSlice::new(&chunk.bytes()[std::mem::take(&mut skip)..]))
            .take_while(|slice| {
                let first = total == 0;
                total += slice.len();
                first || total <= limit
            })
            .collect()
    }

    /// Takes all bytes out, as one piece.
    pub(crate) fn take_all(&mut self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.len);
        let mut skip = self.written;
        for chunk in self.chunks.drain(..) {
            all.extend_from_slice(&chunk.bytes()[std::mem::take(&mut skip)..]);
        }
        (self.written, self.len) = (0, 0);
        all
    }

    /// Forgets the first `count` bytes, which have been written.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len -= count;
        self.written += count;
        while let Some(chunk) = self.chunks.front() {
            let size = chunk.bytes().len();
            if self.written < size {
                return;
            }
            self.written -= size;
            self.chunks.pop_front();
        }
        // Idle: give back what a burst has left.
        self.chunks.shrink_to(16);
    }
}
