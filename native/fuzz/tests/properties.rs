//! Every target with its seeds, with what mutations make of them, and with arbitrary bytes.

use std::fs;
use std::panic::catch_unwind;

use polydist_fuzz::{TARGETS, Target, seeds};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// What happens to a seed.
#[derive(Clone, Debug)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    /// Numbers at which something may turn over.
    Extreme(Index, u8),
    /// Another seed in the middle of it.
    Splice(Index, Index),
}

impl Change {
    fn any() -> impl Strategy<Value = Self> {
        let bytes = vec(any::<u8>(), 1..20);
        prop_oneof![
            (any::<Index>(), any::<u8>()).prop_map(|(at, bits)| Self::Flip(at, bits)),
            any::<Index>().prop_map(Self::Cut),
            (any::<Index>(), bytes).prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            (any::<Index>(), any::<u8>()).prop_map(|(at, len)| Self::Remove(at, len)),
            (any::<Index>(), select(vec![0, 1, 0x7f, 0x80, 0xff]))
                .prop_map(|(at, byte)| Self::Extreme(at, byte)),
            any::<(Index, Index)>().prop_map(|(at, other)| Self::Splice(at, other)),
        ]
    }

    fn apply(self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let len = bytes.len();
        let place = |at: Index| at.index(len + 1);
        match self {
            Self::Flip(at, bits) => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte ^= bits;
                }
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Insert(at, new) => {
                bytes.splice(place(at)..place(at), new);
            }
            Self::Remove(at, count) => {
                let from = place(at);
                bytes.drain(from..len.min(from + usize::from(count)));
            }
            Self::Extreme(at, extreme) => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte = extreme;
                }
            }
            Self::Splice(at, other) => {
                let other = seeds[other.index(seeds.len())].clone();
                bytes.splice(place(at)..place(at), other);
            }
        }
    }
}

fn read_seeds(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(seeds(name)).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Runs `target` with whatever `inputs` makes of the seeds, so many times.
fn run(cases: u32, inputs: impl Strategy<Value = Vec<u8>>, target: Target) {
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&inputs, |input| {
        catch_unwind(|| target(&input)).map_err(|_| TestCaseError::fail("it panicked"))
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}

fn all(name: &str, cases: u32) {
    let (_, target) = *TARGETS.iter().find(|(each, _)| *each == name).unwrap();
    let seeds = read_seeds(name);
    assert!(!seeds.is_empty());
    for seed in &seeds {
        assert!(seed.len() < 1024);
        target(seed);
    }
    let changed = (any::<Index>(), vec(Change::any(), 1..6)).prop_map(move |(seed, changes)| {
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for change in changes {
            change.apply(&mut bytes, &seeds);
        }
        bytes
    });
    run(cases, changed, target);
    run(cases / 4, vec(any::<u8>(), 0..600), target);
}

#[test]
fn records() {
    all("record", 4000);
}

#[test]
fn messages_of_epmd() {
    all("epmd", 4000);
}

#[test]
fn handshake_frames() {
    all("frame", 4000);
}

#[test]
fn first_bytes() {
    all("sniff", 4000);
}

#[test]
fn files_of_the_registry() {
    all("directory", 1000);
}

#[test]
fn handshakes() {
    all("handshake", 1000);
}

#[test]
fn agreements_of_tls() {
    all("agreement", 300);
}

#[test]
fn plain_connections() {
    all("plain", 300);
}

// A TLS handshake for each input takes its time.
#[test]
fn connections_by_tls_1_2() {
    all("tls12", 300);
}

#[test]
fn connections_by_tls_1_3() {
    all("tls13", 300);
}
