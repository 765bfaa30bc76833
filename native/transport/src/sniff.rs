//! Which of two protocols a peer speaks on a port that serves both.
//!
//! Who connects speaks first in either, and the first byte tells.

/// What a first byte can be the beginning of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS record with a handshake message (RFC 8446, section 5.1).
    Tls,
    /// The 2-byte length of the distribution handshake's first message (`erl_dist_protocol`,
    /// "Distribution Handshake").
    Plain,
    /// Neither.
    Unknown,
}

/// The content type of TLS handshake messages.
const HANDSHAKE: u8 = 0x16;

/// The protocol that begins with this byte.
pub fn protocol(first: u8) -> Protocol {
    match first {
        HANDSHAKE => Protocol::Tls,
        high if usize::from(high) << 8 <= crate::MAX_HANDSHAKE_FRAME => Protocol::Plain,
        _ => Protocol::Unknown,
    }
}
