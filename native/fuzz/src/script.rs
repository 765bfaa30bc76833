//! What a peer does on an established connection, written in few bytes so that little bytes make
//! much traffic.
//!
//! ```text
//! script    piece:16 surplus:8 step*       sizes of the pieces in which it comes, and of the first
//! step      action:8 argument tamper       action's low 4 bits say what, its high 4 bits what
//!                                          happens to the bytes on their way
//! action 0  len:16                         a frame; a tick if len is 0
//!        1  len:16                         a frame of 16 times as much
//!        2  len:8 bytes                    these bytes where a frame should be
//!        3  len:32                         a frame that is only announced
//!        4  len:8 bytes                    these bytes on the wire, below TLS
//!        5                                 new keys
//!        6                                 a goodbye
//! tamper 1  at:16                          a bit is changed
//!        2  len:8                          so much is cut off at the end
//!        3                                 it comes twice
//!    other                                 nothing
//! ```
//! An action of another number is taken modulo 7. What is missing at the end is 0.

/// What a stream may come to; a script ends there.
const MOST: usize = 1 << 20;
/// More pieces than this only take time.
const PIECES: usize = 128;

/// A peer's doings.
#[derive(Debug)]
pub(crate) struct Script {
    piece: usize,
    pub(crate) surplus: usize,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    pub(crate) tamper: Option<Tamper>,
}

#[derive(Debug)]
pub(crate) enum Action {
    /// Bytes of the stream.
    Plain(Vec<u8>),
    /// Bytes that TLS has not seen.
    Wire(Vec<u8>),
    Rekey,
    Goodbye,
}

/// What happens on the way.
#[derive(Debug)]
pub(crate) enum Tamper {
    Flip(u16),
    Cut(u8),
    Twice,
}

impl Script {
    pub(crate) fn read(data: &[u8]) -> Self {
        let mut reader = Reader(data);
        let piece = reader.u16().into();
        let surplus = reader.u8().into();
        let (mut steps, mut total) = (Vec::new(), 0);
        while !reader.0.is_empty() && total < MOST {
            let step = reader.step();
            if let Action::Plain(bytes) | Action::Wire(bytes) = &step.action {
                total += bytes.len();
            }
            steps.push(step);
        }
        Self {
            piece,
            surplus,
            steps,
        }
    }

    /// The pieces in which `bytes` come.
    pub(crate) fn pieces<'a>(&self, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        bytes.chunks(self.piece.max(bytes.len() / PIECES + 1))
    }
}

impl Tamper {
    /// What is left of `bytes`.
    pub(crate) fn with(&self, bytes: &mut Vec<u8>) {
        match self {
            _ if bytes.is_empty() => {}
            Self::Flip(at) => {
                let at = usize::from(*at);
                let len = bytes.len();
                bytes[at / 8 % len] ^= 1 << (at % 8);
            }
            Self::Cut(len) => bytes.truncate(bytes.len().saturating_sub(1 + usize::from(*len))),
            Self::Twice => bytes.extend_from_within(..),
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn step(&mut self) -> Step {
        let first = self.u8();
        let action = match (first & 0x0f) % 7 {
            0 => frame(self.u16().into()),
            1 => frame(16 * usize::from(self.u16())),
            2 => Action::Plain(self.bytes()),
            3 => Action::Plain([self.u16().to_be_bytes(), self.u16().to_be_bytes()].concat()),
            4 => Action::Wire(self.bytes()),
            5 => Action::Rekey,
            _ => Action::Goodbye,
        };
        let tamper = match first >> 4 {
            1 => Some(Tamper::Flip(self.u16())),
            2 => Some(Tamper::Cut(self.u8())),
            3 => Some(Tamper::Twice),
            _ => None,
        };
        Step { action, tamper }
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = usize::from(self.u8()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }

    fn u8(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes([self.u8(), self.u8()])
    }
}

fn frame(len: usize) -> Action {
    let mut bytes = (len as u32).to_be_bytes().to_vec(); // at most 16 times 65535
    // No two places look the same, at least not near each other.
    bytes.extend((0..len).map(|at| (at % 251) as u8));
    Action::Plain(bytes)
}
