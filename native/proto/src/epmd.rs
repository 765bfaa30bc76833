//! The EPMD protocol (erl_dist_protocol, 13.1), both sides of it.
//!
//! A request is `length:16` and that many bytes, the first of which says which one it is. A
//! connection carries one request; EPMD closes it after the answer, except for a registration,
//! which lasts as long as its connection.
//!
//! ```text
//! ALIVE2_REQ        0x78 port:16 type:8 protocol:8 high:16 low:16 name_len:16 name extra_len:16 extra
//! ALIVE2_X_RESP     0x76 result:8 creation:32           to a node whose high is 6 or more
//! ALIVE2_RESP       0x79 result:8 creation:16           to an older one
//! PORT_PLEASE2_REQ  0x7a name
//! PORT2_RESP        0x77 result:8 [port:16 type:8 ... extra], the rest of ALIVE2_REQ if result is 0
//! NAMES_REQ         0x6e
//! NAMES_RESP        epmd_port:32, then a line "name NAME at port PORT\n" for each node, until the end
//! ```

use thiserror::Error;

use crate::reader::Reader;

/// The most bytes of Extra that EPMD stores; one more and it refuses the registration.
pub const MAX_EXTRA: usize = 1020;
/// The most bytes of a node's name (255 characters of up to 4 bytes).
pub const MAX_NAME: usize = 1020;
/// The most bytes that stock EPMD takes in one request.
pub const MAX_REQUEST: usize = 3058;

const ALIVE2_X_RESP: u8 = 0x76;
const ALIVE2_REQ: u8 = 0x78;
const ALIVE2_RESP: u8 = 0x79;
const PORT2_RESP: u8 = 0x77;
const PORT_PLEASE2_REQ: u8 = 0x7a;
const NAMES_REQ: u8 = 0x6e;
/// A line of NAMES_RESP: "name ", a name, " at port ", five digits.
const MAX_LINE: usize = 5 + MAX_NAME + 9 + 5;

/// Why bytes are not what they should be, or a value cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EpmdError {
    /// The message starts with a byte that is not expected here.
    #[error("byte 0x{0:02x} starts no message that is expected here")]
    UnknownMessage(u8),
    /// A field's length goes past the end of its message, or bytes are left over.
    #[error("the {0} is malformed: its lengths do not add up")]
    Malformed(&'static str),
    /// A node type other than 0x4d (normal) and 0x48 (hidden).
    #[error("0x{0:02x} is no node type")]
    UnknownNodeType(u8),
    /// A line of NAMES_RESP is not `name NAME at port PORT`.
    #[error("a line of the list of names is malformed")]
    BadLine,
    /// A field is longer than EPMD takes.
    #[error("{field} has {len} bytes and EPMD takes at most {max}")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
}

/// Whether other nodes see a node in `nodes/0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    /// A normal node, 0x4d.
    Normal,
    /// A hidden node, such as a C node, 0x48.
    Hidden,
}

/// A node as it registers, and as a lookup finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where the node listens, on TCP.
    pub port: u16,
    /// Normal or hidden.
    pub node_type: NodeType,
    /// 0 is TCP; stock clients refuse anything else.
    pub protocol: u8,
    /// The highest distribution version it speaks; 6 since OTP 23.
    pub high: u16,
    /// The lowest one.
    pub low: u16,
    /// The name before the `@`, UTF-8.
    pub name: Vec<u8>,
    /// Any bytes; EPMD hands them out unchanged. Holds a [`Record`](crate::record::Record) for us.
    pub extra: Vec<u8>,
}

impl Node {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EpmdError> {
        out.extend(self.port.to_be_bytes());
        out.push(match self.node_type {
            NodeType::Normal => 0x4d,
            NodeType::Hidden => 0x48,
        });
        out.push(self.protocol);
        out.extend(self.high.to_be_bytes());
        out.extend(self.low.to_be_bytes());
        put_block(out, "the name", &self.name, MAX_NAME)?;
        put_block(
            out,
            "the registration's Extra field",
            &self.extra,
            MAX_EXTRA,
        )
    }

    /// `None` if `reader` ends before the node does.
    fn read(reader: &mut Reader) -> Option<Result<Self, EpmdError>> {
        let port = reader.u16()?;
        let node_type = match reader.u8()? {
            0x4d => NodeType::Normal,
            0x48 => NodeType::Hidden,
            other => return Some(Err(EpmdError::UnknownNodeType(other))),
        };
        Some(Ok(Self {
            port,
            node_type,
            protocol: reader.u8()?,
            high: reader.u16()?,
            low: reader.u16()?,
            name: reader.block()?.to_vec(),
            extra: reader.block()?.to_vec(),
        }))
    }
}

fn put_block(
    out: &mut Vec<u8>,
    field: &'static str,
    bytes: &[u8],
    max: usize,
) -> Result<(), EpmdError> {
    let len = bytes.len();
    if len > max {
        return Err(EpmdError::TooLong { field, len, max });
    }
    out.extend((len as u16).to_be_bytes()); // max fits
    out.extend_from_slice(bytes);
    Ok(())
}

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// ALIVE2_REQ: register this node for as long as the connection lives.
    Alive2(Node),
    /// PORT_PLEASE2_REQ: where is the node of this name?
    PortPlease2(Vec<u8>),
    /// NAMES_REQ: which nodes are registered?
    Names,
}

impl Request {
    /// The request's bytes, with their length in front.
    pub fn encode(&self) -> Result<Vec<u8>, EpmdError> {
        let mut out = vec![0, 0];
        match self {
            Self::Alive2(node) => {
                out.push(ALIVE2_REQ);
                node.encode(&mut out)?;
            }
            Self::PortPlease2(name) if name.len() > MAX_NAME => {
                return Err(EpmdError::TooLong {
                    field: "the name",
                    len: name.len(),
                    max: MAX_NAME,
                });
            }
            Self::PortPlease2(name) => {
                out.push(PORT_PLEASE2_REQ);
                out.extend_from_slice(name);
            }
            Self::Names => out.push(NAMES_REQ),
        }
        let len = out.len() as u16 - 2; // at most 1 + 13 + two fields of 1020
        out[..2].copy_from_slice(&len.to_be_bytes());
        Ok(out)
    }

    /// The request at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, EpmdError> {
        let mut reader = Reader::new(bytes);
        let Some(len) = reader.u16() else {
            return Ok(None);
        };
        if usize::from(len) > MAX_REQUEST {
            return Err(EpmdError::TooLong {
                field: "the request",
                len: len.into(),
                max: MAX_REQUEST,
            });
        }
        match reader.take(len.into()) {
            Some(body) => Ok(Some((Self::parse(body)?, reader.used()))),
            None => Ok(None),
        }
    }

    fn parse(body: &[u8]) -> Result<Self, EpmdError> {
        let mut reader = Reader::new(body);
        let request = match reader.u8().ok_or(EpmdError::Malformed("request"))? {
            ALIVE2_REQ => {
                let node = Node::read(&mut reader);
                Self::Alive2(node.ok_or(EpmdError::Malformed("ALIVE2_REQ"))??)
            }
            PORT_PLEASE2_REQ => Self::PortPlease2(reader.rest().to_vec()),
            NAMES_REQ => Self::Names,
            other => return Err(EpmdError::UnknownMessage(other)),
        };
        match reader.is_empty() {
            true => Ok(request),
            false => Err(EpmdError::Malformed("request")),
        }
    }
}

/// The answer to a registration. Both forms decode to this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alive2Resp {
    /// 0 is success; anything else is a refusal, mostly of a name in use.
    pub result: u8,
    /// Tells this incarnation of the node from earlier ones.
    pub creation: u32,
}

impl Alive2Resp {
    /// ALIVE2_X_RESP, with a 32-bit creation.
    pub fn encode(self) -> Vec<u8> {
        let [a, b, c, d] = self.creation.to_be_bytes();
        vec![ALIVE2_X_RESP, self.result, a, b, c, d]
    }

    /// ALIVE2_RESP, for nodes before OTP 23: the low 16 bits of the creation.
    pub fn encode_old(self) -> Vec<u8> {
        let [_, _, c, d] = self.creation.to_be_bytes();
        vec![ALIVE2_RESP, self.result, c, d]
    }

    /// The answer at the start of `bytes`, in either form.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, EpmdError> {
        let mut reader = Reader::new(bytes);
        let wide = match reader.u8() {
            None => return Ok(None),
            Some(ALIVE2_X_RESP) => true,
            Some(ALIVE2_RESP) => false,
            Some(other) => return Err(EpmdError::UnknownMessage(other)),
        };
        let mut rest = || {
            let result = reader.u8()?;
            let creation = match wide {
                true => reader.u32()?,
                false => reader.u16()?.into(),
            };
            Some((Self { result, creation }, reader.used()))
        };
        Ok(rest())
    }
}

/// The answer to a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port2Resp {
    /// The node is registered.
    Found(Node),
    /// It is not; EPMD's result code, 1.
    NotFound(u8),
}

impl Port2Resp {
    /// PORT2_RESP.
    pub fn encode(&self) -> Result<Vec<u8>, EpmdError> {
        match self {
            Self::Found(node) => {
                let mut out = vec![PORT2_RESP, 0];
                node.encode(&mut out)?;
                Ok(out)
            }
            Self::NotFound(result) => Ok(vec![PORT2_RESP, *result]),
        }
    }

    /// The answer at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, EpmdError> {
        let mut reader = Reader::new(bytes);
        match reader.u8() {
            None => return Ok(None),
            Some(PORT2_RESP) => {}
            Some(other) => return Err(EpmdError::UnknownMessage(other)),
        }
        match reader.u8() {
            None => Ok(None),
            Some(0) => match Node::read(&mut reader) {
                None => Ok(None),
                Some(node) => Ok(Some((Self::Found(node?), reader.used()))),
            },
            Some(result) => Ok(Some((Self::NotFound(result), reader.used()))),
        }
    }
}

/// The start of the answer to NAMES_REQ, before the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamesHeader {
    /// The port EPMD itself listens on.
    pub epmd_port: u32,
}

impl NamesHeader {
    /// The four bytes.
    pub fn encode(self) -> Vec<u8> {
        self.epmd_port.to_be_bytes().to_vec()
    }

    /// The header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, EpmdError> {
        let port = Reader::new(bytes).u32();
        Ok(port.map(|epmd_port| (Self { epmd_port }, 4)))
    }
}

/// One line of the answer to NAMES_REQ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesLine {
    /// The node's name before the `@`.
    pub name: Vec<u8>,
    /// The port it registered.
    pub port: u16,
}

impl NamesLine {
    /// `name NAME at port PORT` and a line feed.
    pub fn encode(&self) -> Vec<u8> {
        let tail = format!(" at port {}\n", self.port);
        [b"name ", &self.name[..], tail.as_bytes()].concat()
    }

    /// The line at the start of `bytes`. The list has no end mark: it ends with the connection, and
    /// a line that is cut off there is an incomplete answer.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, EpmdError> {
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => Ok(Some((Self::parse(&bytes[..end])?, end + 1))),
            None if bytes.len() > MAX_LINE => Err(EpmdError::BadLine),
            None => Ok(None),
        }
    }

    fn parse(line: &[u8]) -> Result<Self, EpmdError> {
        let parsed = || {
            let line = line.strip_prefix(b"name ")?;
            // The last one counts: a name may contain the words.
            let at = line.windows(9).rposition(|words| words == b" at port ")?;
            let digits = std::str::from_utf8(&line[at + 9..]).ok()?;
            let name = line[..at].to_vec();
            (1..=MAX_NAME).contains(&name.len()).then_some(())?;
            digits.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
            let port = digits.parse().ok()?;
            Some(Self { name, port })
        };
        parsed().ok_or(EpmdError::BadLine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &[u8], extra: &[u8]) -> Node {
        Node {
            port: 0x1234,
            node_type: NodeType::Normal,
            protocol: 0,
            high: 6,
            low: 5,
            name: name.to_vec(),
            extra: extra.to_vec(),
        }
    }

    #[test]
    fn messages_look_on_the_wire_as_epmd_sends_and_takes_them() {
        let alive = Request::Alive2(node(b"a", b"\0x"));
        let bytes = b"\x00\x10\x78\x12\x34\x4d\x00\x00\x06\x00\x05\x00\x01a\x00\x02\x00x";
        assert_eq!(alive.encode().unwrap(), bytes);
        assert_eq!(
            Request::PortPlease2(b"abc".to_vec()).encode().unwrap(),
            b"\x00\x04zabc"
        );
        assert_eq!(Request::Names.encode().unwrap(), b"\x00\x01n");
        let found = Port2Resp::decode(b"w\0\x12\x34\x4d\0\0\x06\0\x05\0\x01a\0\0rest").unwrap();
        assert_eq!(found, Some((Port2Resp::Found(node(b"a", b"")), 15)));
        let wide = Alive2Resp::decode(b"v\0\x65\x43\x21\x00").unwrap();
        let creation = 0x6543_2100;
        assert_eq!(
            wide,
            Some((
                Alive2Resp {
                    result: 0,
                    creation
                },
                6
            ))
        );
        let old = Alive2Resp::decode(b"y\x01\x00\x63").unwrap();
        let (result, creation) = (1, 99);
        assert_eq!(old, Some((Alive2Resp { result, creation }, 4)));
    }

    #[test]
    fn a_name_may_contain_the_words_of_its_line() {
        let line = NamesLine {
            name: b"a at port 1".to_vec(),
            port: 2,
        };
        let bytes = line.encode();
        assert_eq!(NamesLine::decode(&bytes), Ok(Some((line, bytes.len()))));
    }

    #[test]
    fn extra_over_the_limit_is_refused_with_the_numbers() {
        let refused = Request::Alive2(node(b"a", &[0; 1021])).encode();
        let sentence = refused.unwrap_err().to_string();
        assert_eq!(
            sentence,
            "the registration's Extra field has 1021 bytes and EPMD takes at most 1020"
        );
    }

    #[test]
    fn lengths_that_point_outside_their_request_are_malformed() {
        let mut bytes = Request::Alive2(node(b"abc", b"")).encode().unwrap();
        bytes[12] = 200;
        assert_eq!(
            Request::decode(&bytes),
            Err(EpmdError::Malformed("ALIVE2_REQ"))
        );
        assert_eq!(
            Request::decode(b"\0\x02nn"),
            Err(EpmdError::Malformed("request"))
        );
    }
}
