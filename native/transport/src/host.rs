//! Which machine and network namespace this is.
//!
//! Processes of one machine can share files and so Unix domain sockets, if they share the
//! directory; those of one network namespace besides reach each other by the loopback address.

use std::fs;
use std::os::unix::fs::MetadataExt;

use rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;

/// The same 16 bytes for every process that shares this one's running kernel and network
/// namespace, different ones for every other. A hash, so that it gives nothing away. `None` where
/// the system does not say (no /proc).
pub fn identity() -> Option<[u8; 16]> {
    let boot_id = boot_id()?;
    let namespace = fs::metadata("/proc/self/ns/net").ok()?;
    hash(&[
        b"polydist host",
        boot_id.trim_ascii(),
        &namespace.dev().to_be_bytes(),
        &namespace.ino().to_be_bytes(),
    ])
}

/// The same 16 bytes for every process that shares this one's running kernel, whatever its network
/// namespace, different ones for every other and different from [`identity`]. A hash as well.
/// `None` where the system does not say (no /proc).
pub fn machine() -> Option<[u8; 16]> {
    hash(&[b"polydist machine", boot_id()?.trim_ascii()])
}

/// The kernel makes a new one at each boot.
fn boot_id() -> Option<Vec<u8>> {
    fs::read("/proc/sys/kernel/random/boot_id").ok()
}

fn hash(seed: &[&[u8]]) -> Option<[u8; 16]> {
    let sha256 = TLS13_AES_128_GCM_SHA256.tls13()?.common.hash_provider;
    sha256.hash(&seed.concat()).as_ref().first_chunk().copied()
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_looks_at_one_host_agree() {
        assert!(super::identity().is_some());
        assert_eq!(super::identity(), super::identity());
        assert!(super::machine().is_some());
        assert_eq!(super::machine(), super::machine());
    }

    #[test]
    fn a_machine_is_not_taken_for_a_host() {
        assert_ne!(super::machine(), super::identity());
    }
}
