//! Length-prefixed frames: a big-endian length, then that many bytes.
//!
//! The handshake uses 2-byte lengths on plain transports and 4-byte lengths inside TLS, as the
//! stock carriers do (erl_dist_protocol, 13.2). After the handshake every frame has 4 bytes.
//!
//! ```
//! use polydist_proto::frame::Prefix;
//!
//! let mut bytes = Vec::new();
//! Prefix::Two.encode(b"sok", &mut bytes)?;
//! assert_eq!(bytes, b"\x00\x03sok");
//! assert_eq!(Prefix::Two.decode(&bytes, 1024)?, Some((&b"sok"[..], 5)));
//! # Ok::<(), polydist_proto::frame::FrameError>(())
//! ```

use thiserror::Error;

/// How many bytes the length of a frame takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Two bytes: handshake frames over TCP and Unix domain sockets.
    Two,
    /// Four bytes: handshake frames inside TLS, and everything after the handshake.
    Four,
}

/// Why a frame cannot be written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The frame is longer than its prefix can say or than the reader allows.
    #[error("a frame of {len} bytes is over the limit of {max} bytes")]
    TooLong {
        /// Bytes in the frame, without its prefix.
        len: usize,
        /// The longest one allowed.
        max: usize,
    },
}

impl Prefix {
    /// Bytes of the prefix itself.
    pub const fn size(self) -> usize {
        match self {
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// The longest frame this prefix can announce.
    pub const fn max_len(self) -> usize {
        match self {
            Self::Two => u16::MAX as usize,
            Self::Four => u32::MAX as usize,
        }
    }

    /// Appends one frame to `out`.
    pub fn encode(self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let len = payload.len();
        let too_long = FrameError::TooLong {
            len,
            max: self.max_len(),
        };
        match self {
            Self::Two => out.extend(u16::try_from(len).map_err(|_| too_long)?.to_be_bytes()),
            Self::Four => out.extend(u32::try_from(len).map_err(|_| too_long)?.to_be_bytes()),
        }
        out.extend_from_slice(payload);
        Ok(())
    }

    /// The first frame in `bytes` and the bytes it takes with its prefix, or `None` if it is not
    /// all there. A frame of more than `max` bytes is refused as soon as its prefix is.
    pub fn decode(self, bytes: &[u8], max: usize) -> Result<Option<(&[u8], usize)>, FrameError> {
        let Some((prefix, rest)) = bytes.split_at_checked(self.size()) else {
            return Ok(None);
        };
        let len = prefix
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte));
        if len > max {
            return Err(FrameError::TooLong { len, max });
        }
        Ok(rest.get(..len).map(|payload| (payload, self.size() + len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_over_the_limit_is_refused_before_its_payload_arrives() {
        let refused = Prefix::Four.decode(&[0xff; 4], 64 * 1024);
        let (len, max) = (u32::MAX as usize, 64 * 1024);
        assert_eq!(refused, Err(FrameError::TooLong { len, max }));
    }

    #[test]
    fn a_payload_too_long_for_its_prefix_is_refused_and_writes_nothing() {
        let mut out = Vec::new();
        let refused = Prefix::Two.encode(&[0; 0x1_0000], &mut out);
        let (len, max) = (0x1_0000, 0xffff);
        assert_eq!(refused, Err(FrameError::TooLong { len, max }));
        assert!(out.is_empty());
    }
}
