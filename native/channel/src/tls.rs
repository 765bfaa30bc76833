//! TLS records between the queues and the descriptor, made and opened by rustls.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::os::fd::BorrowedFd;

use rustix::io::retry_on_intr;
use rustix::net::{RecvFlags, recv};
use rustls::Connection;
use smallvec::SmallVec;

use crate::inbox::Inbox;
use crate::outbox::Outbox;
use crate::{Buffer, Closed, MAX_SLICES, Sink, Stats, WORK};

/// The plaintext given to rustls at once: four full records.
const BATCH: usize = 64 * 1024;

/// Records as they come from a descriptor, before rustls takes them. One per thread, not per
/// connection: between calls a connection holds no more than the part of a record that rustls
/// itself keeps.
const SCRATCH: usize = 128 * 1024;

thread_local! {
    static RECORDS: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes records of `slices` and writes them. What the descriptor does not take stays in rustls.
pub(crate) fn send(
    tls: &mut Connection,
    slices: &[IoSlice<'_>],
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> Result<(), Closed> {
    encrypt(tls, slices)?;
    write_records(tls, fd, stats)?;
    Ok(())
}

/// rustls takes everything: its own limit is off (`Channel::new`).
fn encrypt(tls: &mut Connection, slices: &[IoSlice<'_>]) -> Result<usize, Closed> {
    Ok(tls.writer().write_vectored(slices)?)
}

/// Writes the records that rustls holds. `false` when the descriptor takes no more for now.
pub(crate) fn write_records(
    tls: &mut Connection,
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(&mut Descriptor { fd, stats }) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

pub(crate) fn flush<P: AsRef<[u8]>>(
    tls: &mut Connection,
    outbox: &mut Outbox<P>,
    fd: BorrowedFd<'_>,
    stats: &Stats,
) -> Result<(), Closed> {
    let mut budget = WORK;
    while write_records(tls, fd, stats)? && outbox.len() > 0 && budget > 0 {
        let slices: SmallVec<[IoSlice<'_>; MAX_SLICES]> = outbox.slices(MAX_SLICES, BATCH);
        let taken = encrypt(tls, &slices)?;
        drop(slices);
        outbox.advance(taken);
        budget = budget.saturating_sub(taken);
    }
    Ok(())
}

pub(crate) fn receive<B: Buffer>(
    tls: &mut Connection,
    inbox: &mut Inbox<B>,
    fd: BorrowedFd<'_>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<usize, Closed> {
    RECORDS.with_borrow_mut(|scratch| {
        scratch.resize(SCRATCH, 0);
        let mut total = 0;
        while total < WORK {
            let count = match (Descriptor { fd, stats }).read(scratch) {
                Ok(0) => return Err(Closed::ByPeer),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            total += count;
            open(tls, &scratch[..count], inbox, sink, stats).inspect_err(|_| {
                // The alert that says why, as far as it goes: the connection ends either way.
                let _ = write_records(tls, fd, stats);
            })?;
            // A peer's key update is answered with ours.
            write_records(tls, fd, stats)?;
            if count < SCRATCH {
                break;
            }
        }
        Ok(total)
    })
}

/// Opens the records in `input` and delivers their frames.
fn open<B: Buffer>(
    tls: &mut Connection,
    mut input: &[u8],
    inbox: &mut Inbox<B>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<(), Closed> {
    while !input.is_empty() {
        let before = input.len();
        tls.read_tls(&mut input)?;
        let state = tls.process_new_packets();
        // What came before a bad record, or before the goodbye, is good.
        deliver(tls, inbox, sink, stats)?;
        if state?.peer_has_closed() || input.len() == before {
            return Err(Closed::ByPeer);
        }
    }
    Ok(())
}

/// Delivers the frames of what rustls got with the handshake.
pub(crate) fn deliver_surplus<B: Buffer>(
    tls: &mut Connection,
    inbox: &mut Inbox<B>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<(), Closed> {
    let state = tls.process_new_packets();
    deliver(tls, inbox, sink, stats)?;
    match state?.peer_has_closed() {
        true => Err(Closed::ByPeer),
        false => Ok(()),
    }
}

/// Delivers the frames of what rustls has opened.
fn deliver<B: Buffer>(
    tls: &mut Connection,
    inbox: &mut Inbox<B>,
    sink: &mut impl Sink<B>,
    stats: &Stats,
) -> Result<(), Closed> {
    let mut plaintext = tls.reader();
    loop {
        let chunk = match plaintext.fill_buf() {
            Ok([]) => return Ok(()), // the peer's goodbye, which process_new_packets has reported
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let taken = inbox.take(chunk)?;
        plaintext.consume(taken);
        inbox.deliver(sink, stats)?;
    }
}

/// The descriptor as rustls wants it.
struct Descriptor<'a> {
    fd: BorrowedFd<'a>,
    stats: &'a Stats,
}

impl Read for Descriptor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Never blocks, as crate::write.
        let read = retry_on_intr(|| recv(self.fd, &mut *buffer, RecvFlags::DONTWAIT));
        let read = read.map(|(count, _)| count);
        self.stats.read(read.unwrap_or(0));
        Ok(read?)
    }
}

impl Write for Descriptor<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crate::write(self.fd, &[IoSlice::new(bytes)], self.stats)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        crate::write(self.fd, slices, self.stats)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
