//! What a node registers besides its port: every endpoint it listens on.
//!
//! The record travels in the Extra field of one stock EPMD registration, which holds
//! [`MAX_EXTRA`] bytes and returns them unchanged; stock peers ignore it. Integers are big-endian.
//!
//! ```text
//! record    "PLYD" 0x01 entry*                     0x01 is the version of this layout
//! entry     type:8 length:16 value                 unknown types are skipped
//! type 0x01 id                                     16 bytes, names the machine and network
//!                                                  namespace; at most one
//! type 0x02 name_len:8 name flags:8 kind:8 place   an endpoint: the transport's name (1 to 255
//!                                                  bytes), flags (0 so far) and where it is
//! type 0x03 id                                     16 bytes, names the machine whatever its network
//!                                                  namespaces; at most one
//! kind 0x01 port:16                                any IPv4 address of the node's host
//! kind 0x02 port:16                                any IPv6 address of the node's host
//! kind 0x03 ip:32 port:16                          this IPv4 address
//! kind 0x04 ip:128 port:16                         this IPv6 address
//! kind 0x05 path                                   a Unix domain socket: 1 to 107 bytes, no NUL
//! kind 0xff bytes                                  for transports that know what it means
//! ```
//!
//! An endpoint of an unknown kind is skipped. A truncated entry, a value whose length does not fit
//! its kind, a second id of one type or more than [`MAX_ENDPOINTS`] endpoints make the whole record
//! invalid. The first nodes knew types 0x01 and 0x02 only, so they skip a machine id.
//! Endpoints keep the order they were registered in.
//!
//! # Test vectors
//!
//! ```
//! use polydist_proto::record::{Endpoint, Place, Record};
//!
//! // Nothing but the header.
//! assert_eq!(Record::default().encode()?, b"PLYD\x01");
//!
//! // A host id, tcp on any IPv4 address, uds at a path.
//! let mut record = Record {
//!     host: Some(*b"0123456789abcdef"),
//!     machine: None,
//!     endpoints: vec![
//!         Endpoint { transport: b"tcp".to_vec(), flags: 0, place: Place::Any4(4370) },
//!         Endpoint { transport: b"uds".to_vec(), flags: 0, place: Place::Local(b"/tmp/p/a".to_vec()) },
//!     ],
//! };
//! let bytes = b"PLYD\x01\
//!     \x01\x00\x100123456789abcdef\
//!     \x02\x00\x08\x03tcp\x00\x01\x11\x12\
//!     \x02\x00\x0e\x03uds\x00\x05/tmp/p/a";
//! assert_eq!(record.encode()?, bytes);
//! assert_eq!(Record::decode(bytes)?, record);
//!
//! // A machine id is written after the host id, and read wherever it is.
//! record.machine = Some(*b"ABCDEFGHIJKLMNOP");
//! let bytes = b"PLYD\x01\
//!     \x01\x00\x100123456789abcdef\
//!     \x03\x00\x10ABCDEFGHIJKLMNOP\
//!     \x02\x00\x08\x03tcp\x00\x01\x11\x12\
//!     \x02\x00\x0e\x03uds\x00\x05/tmp/p/a";
//! assert_eq!(record.encode()?, bytes);
//! assert_eq!(Record::decode(bytes)?, record);
//! let alone = Record { machine: record.machine, ..Record::default() };
//! assert_eq!(alone.encode()?, b"PLYD\x01\x03\x00\x10ABCDEFGHIJKLMNOP");
//!
//! // An entry of an unknown type (0x7f) and an endpoint of an unknown kind (0x20) are skipped.
//! let bytes = b"PLYD\x01\x7f\x00\x02hi\x02\x00\x07\x03tls\x00\x20\x00";
//! assert_eq!(Record::decode(bytes)?, Record::default());
//! # Ok::<(), polydist_proto::record::RecordError>(())
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use thiserror::Error;

use crate::epmd::MAX_EXTRA;
use crate::reader::Reader;

/// The most endpoints in a record.
pub const MAX_ENDPOINTS: usize = 32;
/// The longest path of a Unix domain socket: `sun_path` without its final NUL.
pub const MAX_PATH: usize = 107;

const MAGIC: &[u8; 4] = b"PLYD";
const VERSION: u8 = 0x01;
const HOST: u8 = 0x01;
const ENDPOINT: u8 = 0x02;
const MACHINE: u8 = 0x03;

/// Why a record cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It does not start with `PLYD`: not a record at all.
    #[error("the registration has no endpoint record: it does not start with PLYD")]
    NoMagic,
    /// A layout that this version does not know.
    #[error("the endpoint record has version {0} and this node reads version 1; upgrade polydist")]
    Version(u8),
    /// An entry ends before its own lengths say so.
    #[error("the endpoint record is truncated in the entry at byte {at}")]
    Truncated {
        /// Where the entry starts.
        at: usize,
    },
    /// An entry's value does not fit its type.
    #[error("the endpoint record is invalid in the entry at byte {at}: {why}")]
    BadEntry {
        /// Where the entry starts.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An endpoint that cannot be written.
    #[error("an endpoint cannot be registered: {0}")]
    BadEndpoint(&'static str),
    /// More endpoints than allowed.
    #[error("{count} endpoints are more than the {MAX_ENDPOINTS} that one registration may hold")]
    TooMany {
        /// How many there are, at least.
        count: usize,
    },
    /// The record does not fit into a registration.
    #[error(
        "the endpoint record takes {len} bytes and EPMD keeps at most {MAX_EXTRA}; \
         listen on fewer addresses or use shorter socket paths"
    )]
    TooLong {
        /// What it would take.
        len: usize,
    },
}

/// All that a node says about itself. Its form in bytes is the subject of this module's page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The machine and network namespace; peers with the same one can use the loopback address and
    /// local transports.
    pub host: Option<[u8; 16]>,
    /// The machine; peers with the same one can use local transports, if they share the directory.
    pub machine: Option<[u8; 16]>,
    /// Where the node listens.
    pub endpoints: Vec<Endpoint>,
}

/// One way to reach a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The transport's name, such as `tcp`.
    pub transport: Vec<u8>,
    /// Reserved; unknown bits are kept and ignored.
    pub flags: u8,
    /// Where it listens.
    pub place: Place,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// This port on any IPv4 address of the node's host.
    Any4(u16),
    /// This port on any IPv6 address of the node's host.
    Any6(u16),
    /// One IPv4 address.
    V4(Ipv4Addr, u16),
    /// One IPv6 address.
    V6(Ipv6Addr, u16),
    /// The path of a Unix domain socket.
    Local(Vec<u8>),
    /// Bytes that mean something to the transport only.
    Opaque(Vec<u8>),
}

impl Record {
    /// The record's bytes, at most [`MAX_EXTRA`] of them.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let count = self.endpoints.len();
        if count > MAX_ENDPOINTS {
            return Err(RecordError::TooMany { count });
        }
        let mut out = [&MAGIC[..], &[VERSION]].concat();
        if let Some(host) = &self.host {
            put_entry(&mut out, HOST, host);
        }
        if let Some(machine) = &self.machine {
            put_entry(&mut out, MACHINE, machine);
        }
        for endpoint in &self.endpoints {
            let value = endpoint.encode()?;
            put_entry(&mut out, ENDPOINT, &value);
        }
        match out.len() {
            len if len > MAX_EXTRA => Err(RecordError::TooLong { len }),
            _ => Ok(out),
        }
    }

    /// Reads a whole record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        if reader.array() != Some(*MAGIC) {
            return Err(RecordError::NoMagic);
        }
        match reader.u8() {
            Some(VERSION) => {}
            Some(version) => return Err(RecordError::Version(version)),
            None => return Err(RecordError::Truncated { at: MAGIC.len() }),
        }
        let mut record = Self::default();
        while !reader.is_empty() {
            let at = reader.used();
            let mut entry = || Some((reader.u8()?, reader.block()?));
            let (tag, value) = entry().ok_or(RecordError::Truncated { at })?;
            let bad = |why| RecordError::BadEntry { at, why };
            match tag {
                HOST if record.host.is_some() => return Err(bad("a second host id")),
                HOST => {
                    let host = value.try_into();
                    record.host = Some(host.map_err(|_| bad("a host id has 16 bytes"))?);
                }
                MACHINE if record.machine.is_some() => return Err(bad("a second machine id")),
                MACHINE => {
                    let machine = value.try_into();
                    record.machine = Some(machine.map_err(|_| bad("a machine id has 16 bytes"))?);
                }
                ENDPOINT => record
                    .endpoints
                    .extend(Endpoint::decode(value).map_err(bad)?),
                _ => {}
            }
            if record.endpoints.len() > MAX_ENDPOINTS {
                let count = record.endpoints.len();
                return Err(RecordError::TooMany { count });
            }
        }
        Ok(record)
    }
}

/// `value` is longer than 65535 bytes only if the whole record is too long anyway.
fn put_entry(out: &mut Vec<u8>, tag: u8, value: &[u8]) {
    out.push(tag);
    out.extend((value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
}

impl Endpoint {
    fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let name_len = match u8::try_from(self.transport.len()) {
            Ok(len @ 1..) => len,
            _ => {
                return Err(RecordError::BadEndpoint(
                    "a transport's name has 1 to 255 bytes",
                ));
            }
        };
        let mut out = vec![name_len];
        out.extend_from_slice(&self.transport);
        out.push(self.flags);
        match &self.place {
            Place::Any4(port) => put(&mut out, 0x01, &[&port.to_be_bytes()]),
            Place::Any6(port) => put(&mut out, 0x02, &[&port.to_be_bytes()]),
            Place::V4(ip, port) => put(&mut out, 0x03, &[&ip.octets(), &port.to_be_bytes()]),
            Place::V6(ip, port) => put(&mut out, 0x04, &[&ip.octets(), &port.to_be_bytes()]),
            Place::Local(path) => {
                let path = check_path(path).map_err(RecordError::BadEndpoint)?;
                put(&mut out, 0x05, &[path]);
            }
            Place::Opaque(bytes) => put(&mut out, 0xff, &[bytes]),
        }
        Ok(out)
    }

    /// `None` for an endpoint of a kind that this version does not know.
    fn decode(value: &[u8]) -> Result<Option<Self>, &'static str> {
        let mut reader = Reader::new(value);
        let mut head = || {
            let name_len = reader.u8()?;
            let transport = reader.take(name_len.into())?.to_vec();
            Some((transport, reader.u8()?, reader.u8()?))
        };
        let (transport, flags, kind) = head().ok_or("an endpoint is cut off")?;
        if transport.is_empty() {
            return Err("an endpoint has no transport");
        }
        let place = match kind {
            0x01 => reader.u16().map(Place::Any4),
            0x02 => reader.u16().map(Place::Any6),
            0x03 => place4(&mut reader),
            0x04 => place6(&mut reader),
            0x05 => Some(Place::Local(check_path(reader.rest())?.to_vec())),
            0xff => Some(Place::Opaque(reader.rest().to_vec())),
            _ => return Ok(None),
        };
        match place {
            Some(place) if reader.is_empty() => Ok(Some(Self {
                transport,
                flags,
                place,
            })),
            _ => Err("an address has the wrong length"),
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    out.push(kind);
    out.extend(parts.concat());
}

fn place4(reader: &mut Reader) -> Option<Place> {
    Some(Place::V4(reader.array::<4>()?.into(), reader.u16()?))
}

fn place6(reader: &mut Reader) -> Option<Place> {
    Some(Place::V6(reader.array::<16>()?.into(), reader.u16()?))
}

fn check_path(path: &[u8]) -> Result<&[u8], &'static str> {
    match path.len() {
        1..=MAX_PATH if !path.contains(&0) => Ok(path),
        1..=MAX_PATH => Err("a socket path contains a NUL byte"),
        _ => Err("a socket path has 1 to 107 bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uds(path: Vec<u8>) -> Record {
        Record {
            host: None,
            machine: None,
            endpoints: vec![Endpoint {
                transport: b"uds".to_vec(),
                flags: 0,
                place: Place::Local(path),
            }],
        }
    }

    #[test]
    fn a_record_over_1020_bytes_says_by_how_much_and_what_to_do() {
        let mut record = uds(vec![b'p'; 107]);
        record.endpoints = vec![record.endpoints[0].clone(); 10];
        let sentence = record.encode().unwrap_err().to_string();
        assert_eq!(
            sentence,
            "the endpoint record takes 1165 bytes and EPMD keeps at most 1020; \
             listen on fewer addresses or use shorter socket paths"
        );
    }

    #[test]
    fn paths_that_no_socket_can_have_are_refused() {
        for path in [vec![], vec![b'p'; 108], b"a\0b".to_vec()] {
            assert!(matches!(
                uds(path).encode(),
                Err(RecordError::BadEndpoint(_))
            ));
        }
    }

    #[test]
    fn each_id_has_16_bytes_and_is_there_once() {
        let id = |tag, len| [&[tag, 0, len], &vec![b'i'; len.into()][..]].concat();
        let decode =
            |entries: &[Vec<u8>]| Record::decode(&[b"PLYD\x01", &entries.concat()[..]].concat());
        for (tag, name) in [(HOST, "host"), (MACHINE, "machine")] {
            for len in [0, 15, 17] {
                let sentence = decode(&[id(tag, len)]).unwrap_err().to_string();
                assert!(
                    sentence.ends_with(&format!("at byte 5: a {name} id has 16 bytes")),
                    "{sentence}"
                );
            }
            let sentence = decode(&[id(tag, 16), id(tag, 16)]).unwrap_err().to_string();
            assert!(
                sentence.ends_with(&format!("at byte 24: a second {name} id")),
                "{sentence}"
            );
        }
        let record = decode(&[id(MACHINE, 16), id(HOST, 16)]).unwrap();
        assert_eq!(
            (record.host, record.machine),
            (Some([b'i'; 16]), Some([b'i'; 16]))
        );
    }

    #[test]
    fn a_thirty_third_endpoint_is_refused() {
        let mut bytes = b"PLYD\x01".to_vec();
        for _ in 0..33 {
            bytes.extend(b"\x02\x00\x06\x01t\x00\x01\x00\x01");
        }
        assert_eq!(
            Record::decode(&bytes),
            Err(RecordError::TooMany { count: 33 })
        );
    }

    #[test]
    fn errors_say_where_the_bad_entry_starts() {
        let mut bytes = uds(b"/a".to_vec()).encode().unwrap();
        let end = bytes.len();
        bytes.extend(b"\x02\x00\x07\x01t\x00\x01\x00\x01!");
        let (at, why) = (end, "an address has the wrong length");
        assert_eq!(
            Record::decode(&bytes),
            Err(RecordError::BadEntry { at, why })
        );
        bytes.truncate(end + 4);
        assert_eq!(
            Record::decode(&bytes),
            Err(RecordError::Truncated { at: end })
        );
    }
}
