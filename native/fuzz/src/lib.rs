//! What must hold of everything here that reads bytes from outside, whatever the bytes are.
//!
//! Each of [`TARGETS`] is a function of some bytes that panics if the code under it does, if it takes
//! more memory than they can be worth, or if it breaks a promise: what is decoded is encoded again to
//! the same, what is cut in pieces means what it means in one, what nobody sent is not delivered.
//!
//! The same functions are run in two ways. `cargo test -p polydist-fuzz` gives them the seeds, their
//! mutations and arbitrary bytes. `make fuzz` (test/tools/fuzz) has libFuzzer look for bytes that reach
//! new code; its programs are a package of their own, in `libfuzzer` beside this one. What it finds
//! is worth a file in `seeds`, which `cargo run -p polydist-fuzz --example seeds` fills with what
//! the real encoders make.
#![forbid(unsafe_code)]

mod decoders;
mod directory;
mod frames;
mod handshake;
mod script;
mod session;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use allocation_counter::{AllocationInfo, measure};

pub use decoders::{epmd, frame, record, sniff};
pub use directory::directory;
pub use handshake::handshake;
pub use session::{agreement, plain, tls12, tls13};

/// Checks everything that must hold of some bytes; panics if it does not.
pub type Target = fn(&[u8]);

/// Everything that reads bytes from outside, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("record", record),
    ("epmd", epmd),
    ("frame", frame),
    ("sniff", sniff),
    ("directory", directory),
    ("handshake", handshake),
    ("agreement", agreement),
    ("plain", plain),
    ("tls12", tls12),
    ("tls13", tls13),
];

/// The folder with a target's seeds; those of established connections have one together.
pub fn seeds(target: &str) -> PathBuf {
    let folder = match target {
        "plain" | "tls12" | "tls13" => "session",
        _ => target,
    };
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/seeds");
    PathBuf::from(seeds).join(folder)
}

/// Runs `work`, which may take no more than `limit` bytes of memory at any time.
fn within<T>(limit: usize, work: impl FnOnce() -> T) -> T {
    let (taken, result) = measured(work);
    assert!(
        taken.bytes_max <= limit as u64,
        "{} bytes of memory, and {limit} are enough",
        taken.bytes_max
    );
    result
}

/// Runs `work` and says what memory it took.
fn measured<T>(work: impl FnOnce() -> T) -> (AllocationInfo, T) {
    let mut result = None;
    let taken = measure(|| result = Some(catch_unwind(AssertUnwindSafe(work))));
    match result.expect("it has been run") {
        Ok(result) => (taken, result),
        Err(panic) => resume_unwind(panic), // the counter would not bear it
    }
}
