//! The decoders of `polydist-proto`: pure functions.

use std::fmt::Debug;

use polydist_proto::epmd::{Alive2Resp, EpmdError, NamesHeader, NamesLine, Port2Resp, Request};
use polydist_proto::frame::{FrameError, Prefix};
use polydist_proto::record::{MAX_ENDPOINTS, Record, RecordError};
use polydist_transport::MAX_HANDSHAKE_FRAME;
use polydist_transport::sniff::{Protocol, protocol};
use rustls::server::Acceptor;

use crate::within;

/// A decoder takes what it is given once or twice, and this for its lists.
const OVERHEAD: usize = 8 * 1024;

/// So many prefixes of an input are decoded, spread over it.
const CUTS: usize = 128;

/// The record that a node registers.
pub fn record(data: &[u8]) {
    let decode = |bytes: &[u8]| within(2 * bytes.len() + OVERHEAD, || Record::decode(bytes));
    let Ok(record) = decode(data) else {
        return;
    };
    assert!(record.endpoints.len() <= MAX_ENDPOINTS);
    match record.encode() {
        Ok(bytes) => assert_eq!(Record::decode(&bytes), Ok(record.clone())),
        // What is skipped may be left out and what is there is written as it was.
        Err(RecordError::TooLong { len }) => assert!(len <= data.len()),
        Err(other) => panic!("{record:?} was read and cannot be written: {other}"),
    }
    for end in cuts(data.len()) {
        if let Ok(shorter) = decode(&data[..end]) {
            let count = shorter.endpoints.len();
            assert_eq!(shorter.endpoints[..], record.endpoints[..count]);
        }
    }
}

/// What EPMD answers, and what it is asked.
pub fn epmd(data: &[u8]) {
    if let Some((request, used)) = incremental(data, Request::decode)
        && let Ok(bytes) = request.encode()
    {
        assert_eq!(bytes, data[..used]);
    }
    if let Some((answer, used)) = incremental(data, Alive2Resp::decode) {
        assert!([answer.encode(), answer.encode_old()].contains(&data[..used].to_vec()));
    }
    if let Some((answer, used)) = incremental(data, Port2Resp::decode) {
        match answer.encode() {
            Ok(bytes) => assert_eq!(bytes, data[..used]),
            Err(error) => assert!(matches!(error, EpmdError::TooLong { .. }), "{error}"),
        }
    }
    if let Some((header, used)) = incremental(data, NamesHeader::decode) {
        assert_eq!(header.encode(), data[..used]);
    }
    let mut lines = data;
    while let Some((line, used)) = incremental(lines, NamesLine::decode) {
        let bytes = line.encode();
        assert_eq!(NamesLine::decode(&bytes), Ok(Some((line, bytes.len()))));
        lines = &lines[used..];
    }
}

/// The frames of the distribution handshake, as both its prefixes.
pub fn frame(data: &[u8]) {
    for prefix in [Prefix::Two, Prefix::Four] {
        let decode = |bytes: &[u8]| {
            let frame = prefix.decode(bytes, MAX_HANDSHAKE_FRAME)?;
            Ok::<_, FrameError>(frame.map(|(payload, used)| (payload.to_vec(), used)))
        };
        let mut rest = data;
        let mut again = Vec::new();
        while let Some((payload, used)) = incremental(rest, decode) {
            assert!(payload.len() <= MAX_HANDSHAKE_FRAME);
            prefix.encode(&payload, &mut again).unwrap();
            rest = &rest[used..];
        }
        assert_eq!(again, data[..data.len() - rest.len()]);
    }
}

/// Which protocol a first byte belongs to: whatever begins either is taken for it.
pub fn sniff(data: &[u8]) {
    let Some(&first) = data.first() else {
        return;
    };
    if let Ok(Some(_)) = Prefix::Two.decode(data, MAX_HANDSHAKE_FRAME) {
        assert_eq!(protocol(first), Protocol::Plain);
    }
    let mut acceptor = Acceptor::default();
    let mut rest = data;
    while !rest.is_empty() && acceptor.read_tls(&mut rest).is_ok_and(|count| count > 0) {}
    if let Ok(Some(_)) = acceptor.accept() {
        assert_eq!(protocol(first), Protocol::Tls);
    }
}

/// Decodes the start of `data`. Every prefix of it must give the same, or ask for more.
fn incremental<T: Debug + PartialEq, E: Debug + PartialEq>(
    data: &[u8],
    decode: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
) -> Option<(T, usize)> {
    let decode = |bytes: &[u8]| within(2 * bytes.len() + OVERHEAD, || decode(bytes));
    let whole = decode(data);
    for end in cuts(data.len()) {
        match decode(&data[..end]) {
            Ok(None) => {}
            early => assert_eq!(early, whole, "after {end} bytes"),
        }
    }
    let whole = whole.ok().flatten();
    if let Some((_, used)) = whole {
        assert!((1..=data.len()).contains(&used));
        assert_eq!(decode(&data[..used - 1]), Ok(None));
        assert_eq!(decode(&data[..used]).ok().flatten(), whole);
    }
    whole
}

/// Places to cut `len` bytes at.
fn cuts(len: usize) -> impl Iterator<Item = usize> {
    (0..len).step_by(len / CUTS + 1)
}
