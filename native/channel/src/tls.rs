//! TLS records between the queues and the descriptor.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, recv};
use smallvec::SmallVec;

use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::session::{MAX_RECORD, Opened, Session};
use crate::{Buffer, Closed, Kernel, MAX_SLICES, Sink, Stats, WORK};

/// The plaintext that is sealed at once: four full records.
const BATCH: usize = 64 * 1024;

/// Records as they come from a descriptor, opened where they are. One per thread, not per
/// connection: between calls a connection holds no more than the part of a record.
const SCRATCH: usize = 128 * 1024;

thread_local! {
    static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes records of `slices` and writes them. What the descriptor does not take stays in the session.
pub(crate) fn send(
    session: &mut Session,
    slices: &[IoSlice<'_>],
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> Result<(), Closed> {
    seal(session, slices)?;
    write_records(session, fd, stats)?;
    Ok(())
}

fn seal(session: &mut Session, slices: &[IoSlice<'_>]) -> Result<usize, Closed> {
    let pieces: SmallVec<[&[u8]; MAX_SLICES]> = slices.iter().map(|slice| &**slice).collect();
    session.seal(&pieces)?;
    Ok(pieces.iter().map(|piece| piece.len()).sum())
}

/// Writes the records that the session holds. `false` when the descriptor takes no more for now.
pub(crate) fn write_records(
    session: &mut Session,
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> io::Result<bool> {
    while session.sealed().len() > 0 {
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> =
            session.sealed().slices(MAX_SLICES, usize::MAX);
        let written = crate::write(fd, &slices, stats)?;
        drop(slices);
        session.written(written);
        if written == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Writes where the kernel seals. 0 when the descriptor takes no more for now.
pub(crate) fn write_by_kernel(
    kernel: &mut Kernel,
    slices: &[IoSlice<'_>],
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> Result<usize, Closed> {
    if !kernel.ready(fd)? {
        return Ok(0);
    }
    let written = crate::write(fd, slices, stats)?;
    kernel.sent(written);
    Ok(written)
}

pub(crate) fn flush<P: AsRef<[u8]>>(
    session: &mut Session,
    outbox: &mut Outbox<P>,
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> Result<(), Closed> {
    let mut budget = WORK;
    while write_records(session, fd, stats)? && outbox.len() > 0 && budget > 0 {
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = outbox.slices(MAX_SLICES, BATCH);
        let taken = seal(session, &slices)?;
        drop(slices);
        outbox.advance(taken);
        budget = budget.saturating_sub(taken);
    }
    Ok(())
}

pub(crate) fn receive<B: Buffer>(
    session: &mut Session,
    inbox: &mut Inbox<B>,
    fd: BorrowedFd<'_>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<usize, Closed> {
    RECORDS.with_borrow_mut(|scratch| {
        let mut total = 0;
        while total < WORK {
            let begun = session.partial().len();
            scratch.resize(scratch.len().max(begun.max(MAX_RECORD) + SCRATCH), 0);
            let count = match read(fd, &mut scratch[begun..begun + SCRATCH], stats) {
                Ok(0) => return Err(Closed::ByPeer),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            scratch[..begun].copy_from_slice(session.partial());
            total += count;
            let input = &mut scratch[..begun + count];
            let opened = session.open_in_place(input, |plain| take(inbox, plain, sink, stats));
            // The answer to a key update; or the alert that says why this is the end.
            let written = write_records(session, fd, stats);
            let (used, opened) = opened?;
            written?;
            session.keep(&input[used..]);
            match opened {
                Opened::End => return Err(Closed::ByPeer),
                Opened::More if count < SCRATCH => break,
                Opened::More => {}
            }
        }
        Ok(total)
    })
}

/// Delivers the frames of what came with the handshake.
pub(crate) fn deliver_surplus<B: Buffer>(
    session: &mut Session,
    inbox: &mut Inbox<B>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<(), Closed> {
    match session.open(&[], |plain| take(inbox, plain, sink, stats))? {
        Opened::End => Err(Closed::ByPeer),
        Opened::More => Ok(()),
    }
}

/// Delivers the frames of opened records, and keeps what is no whole frame.
fn take<B: Buffer>(
    inbox: &mut Inbox<B>,
    mut plain: &[u8],
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<(), Closed> {
    while !plain.is_empty() {
        let taken = inbox.take(plain)?;
        plain = &plain[taken..];
        inbox.deliver(sink, stats)?;
    }
    Ok(())
}

/// Never blocks, as crate::write.
fn read(fd: BorrowedFd<'_>, buffer: &mut [u8], stats: &Stats) -> io::Result<usize> {
    let read = retry_on_intr(|| recv(fd, &mut *buffer, RecvFlags::DONTWAIT));
    let read = read.map(|(count, _)| count);
    stats.read(read.unwrap_or(0));
    Ok(read?)
}
