//! Counters of one connection, shared between the side that moves bytes and whoever asks.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};

/// What has passed over one connection since it was made.
///
/// Written by one thread at a time (the handshake's, then the channel's), which is why adding is a
/// load and a store, and read at any time by others; each counter is exact, a set of them is not a
/// snapshot.
#[derive(Debug)]
pub struct Stats {
    /// Payload bytes received, without length prefixes.
    pub bytes_in: AtomicU64,
    /// Payload bytes sent or queued, without length prefixes.
    pub bytes_out: AtomicU64,
    /// Frames received: handshake frames, distribution messages and ticks.
    pub frames_in: AtomicU64,
    /// Frames sent or queued.
    pub frames_out: AtomicU64,
    /// Ticks received: the empty frames of an established connection.
    pub ticks_in: AtomicU64,
    /// Ticks sent. One that was left out because output was waiting is not counted.
    pub ticks_out: AtomicU64,
    /// Bytes read from the socket, length prefixes included, and TLS unless the kernel does it.
    pub wire_in: AtomicU64,
    /// Bytes that the socket has taken, with the same included.
    pub wire_out: AtomicU64,
    /// Bytes accepted from the VM and not yet taken by the kernel.
    pub queued: AtomicU64,
    /// The most that `queued` has been.
    pub queued_max: AtomicU64,
    /// Write system calls.
    pub writes: AtomicU64,
    /// Read system calls.
    pub reads: AtomicU64,
    /// How often the VM was held back.
    pub busy_count: AtomicU64,
    busy: Busy,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            bytes_in: AtomicU64::default(),
            bytes_out: AtomicU64::default(),
            frames_in: AtomicU64::default(),
            frames_out: AtomicU64::default(),
            ticks_in: AtomicU64::default(),
            ticks_out: AtomicU64::default(),
            wire_in: AtomicU64::default(),
            wire_out: AtomicU64::default(),
            queued: AtomicU64::default(),
            queued_max: AtomicU64::default(),
            writes: AtomicU64::default(),
            reads: AtomicU64::default(),
            busy_count: AtomicU64::default(),
            busy: Busy::new(),
        }
    }
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

    /// Counts one read system call that brought `len` bytes, none if it failed.
    pub fn read(&self, len: usize) {
        add(&self.reads, 1);
        add(&self.wire_in, len as u64);
    }

    /// Counts one write system call that took `len` bytes, none if it failed.
    pub fn write(&self, len: usize) {
        add(&self.writes, 1);
        add(&self.wire_out, len as u64);
    }

    /// Says that from now on the VM is held back, or no longer. Saying it again changes nothing.
    /// Reads the clock.
    pub fn set_busy(&self, busy: bool) {
        if busy && !self.busy.is_on() {
            add(&self.busy_count, 1);
        }
        self.busy.set(busy, Instant::now());
    }

    /// How long the VM has been held back in all, the time since it last was included if it still
    /// is.
    pub fn busy_time(&self) -> Duration {
        self.busy.total(Instant::now)
    }

    /// Counts one received tick.
    pub(crate) fn tick_in(&self) {
        self.frame_in(0);
        add(&self.ticks_in, 1);
    }

    /// Counts one sent tick.
    pub(crate) fn tick_out(&self) {
        self.frame_out(0);
        add(&self.ticks_out, 1);
    }

    /// Notes how much is queued now.
    pub(crate) fn set_queued(&self, len: usize) {
        let len = len as u64;
        self.queued.store(len, Relaxed);
        if len > self.queued_max.load(Relaxed) {
            self.queued_max.store(len, Relaxed);
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed) + count, Relaxed);
}

/// A stopwatch that one thread starts and stops and others read, all of it in one word: whoever
/// reads must not see a spell both ended and under way.
///
/// The lowest bit says whether it runs. The others are microseconds: the total while it stands, and
/// while it runs the time, counted from `made`, at which it would have been started for one single
/// spell. That is never negative, as no more can have been measured than has passed.
#[derive(Debug)]
struct Busy {
    made: Instant,
    word: AtomicU64,
}

impl Busy {
    fn new() -> Self {
        Self {
            made: Instant::now(),
            word: AtomicU64::new(0),
        }
    }

    fn is_on(&self) -> bool {
        self.word.load(Relaxed) & 1 == 1
    }

    fn set(&self, on: bool, now: Instant) {
        let word = self.word.load(Relaxed);
        if on != (word & 1 == 1) {
            let other = self.flip(now, word);
            self.word.store(other << 1 | u64::from(on), Release);
        }
    }

    /// The clock is read after the word, else a start in between would count as time run backwards.
    fn total(&self, now: impl FnOnce() -> Instant) -> Duration {
        let word = self.word.load(Acquire);
        Duration::from_micros(match word & 1 {
            0 => word >> 1,
            _ => self.flip(now(), word),
        })
    }

    /// From a running watch its total, and the other way round. 63 bits of microseconds are 292,000
    /// years.
    fn flip(&self, now: Instant, word: u64) -> u64 {
        let since_made = now.saturating_duration_since(self.made).as_micros() as u64;
        since_made.saturating_sub(word >> 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_high_water_of_the_queue_stays_when_the_queue_is_gone() {
        let stats = Stats::default();
        for (queued, max) in [(5, 5), (3, 5), (0, 5), (7, 7), (0, 7)] {
            stats.set_queued(queued);
            assert_eq!(stats.queued.load(Relaxed), queued as u64);
            assert_eq!(stats.queued_max.load(Relaxed), max);
        }
    }

    #[test]
    fn being_held_back_is_counted_once_a_spell_and_grows_while_it_lasts() {
        let stats = Stats::default();
        assert_eq!(stats.busy_time(), Duration::ZERO);
        stats.set_busy(false);
        stats.set_busy(true);
        stats.set_busy(true);
        assert_eq!(stats.busy_count.load(Relaxed), 1);
        std::thread::sleep(Duration::from_millis(5));
        let under_way = stats.busy_time();
        assert!(under_way >= Duration::from_millis(5), "{under_way:?}");
        stats.set_busy(false);
        let ended = stats.busy_time();
        assert!(ended >= under_way);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(stats.busy_time(), ended);
        assert_eq!(stats.busy_count.load(Relaxed), 1);
    }

    proptest! {
        /// As a reader sees it at any moment: the sum of the spells, without a step back.
        #[test]
        fn the_stopwatch_adds_up_spells(
            steps in prop::collection::vec((any::<bool>(), 0_u64..10_000_000), 0..50),
        ) {
            let busy = Busy::new();
            let (mut now, mut on, mut total) = (busy.made, false, 0);
            for (set, wait) in steps {
                busy.set(set, now);
                on = set;
                prop_assert_eq!(busy.is_on(), on);
                prop_assert_eq!(busy.total(|| now), Duration::from_micros(total));
                now += Duration::from_micros(wait);
                total += if on { wait } else { 0 };
                prop_assert_eq!(busy.total(|| now), Duration::from_micros(total));
            }
            busy.set(!on, now);
            prop_assert_eq!(busy.total(|| now), Duration::from_micros(total));
        }
    }
}
