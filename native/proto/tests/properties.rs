//! Properties of every wire format, over arbitrary values and arbitrary bytes.

use std::fmt::Debug;

use polydist_proto::epmd::{
    Alive2Resp, MAX_EXTRA, MAX_NAME, NamesHeader, NamesLine, Node, NodeType, Port2Resp, Request,
};
use polydist_proto::frame::{FrameError, Prefix};
use polydist_proto::record::{Endpoint, MAX_ENDPOINTS, Place, Record, RecordError};
use proptest::collection::vec;
use proptest::prelude::*;

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..=max)
}

fn node() -> impl Strategy<Value = Node> {
    let numbers = any::<(u16, bool, u8, u16, u16)>();
    (numbers, bytes(MAX_NAME), bytes(MAX_EXTRA)).prop_map(
        |((port, hidden, protocol, high, low), name, extra)| Node {
            port,
            node_type: if hidden {
                NodeType::Hidden
            } else {
                NodeType::Normal
            },
            protocol,
            high,
            low,
            name,
            extra,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        node().prop_map(Request::Alive2),
        bytes(MAX_NAME).prop_map(Request::PortPlease2),
        Just(Request::Names),
    ]
}

fn port2() -> impl Strategy<Value = Port2Resp> {
    prop_oneof![
        node().prop_map(Port2Resp::Found),
        (1u8..).prop_map(Port2Resp::NotFound),
    ]
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        any::<u16>().prop_map(Place::Any4),
        any::<u16>().prop_map(Place::Any6),
        any::<([u8; 4], u16)>().prop_map(|(ip, port)| Place::V4(ip.into(), port)),
        any::<([u8; 16], u16)>().prop_map(|(ip, port)| Place::V6(ip.into(), port)),
        vec(1u8.., 1..=107).prop_map(Place::Local),
        bytes(300).prop_map(Place::Opaque),
    ]
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (vec(any::<u8>(), 1..=255), any::<u8>(), place()).prop_map(|(transport, flags, place)| {
        Endpoint {
            transport,
            flags,
            place,
        }
    })
}

fn ids() -> impl Strategy<Value = (Option<[u8; 16]>, Option<[u8; 16]>)> {
    any::<(Option<[u8; 16]>, Option<[u8; 16]>)>()
}

fn record() -> impl Strategy<Value = Record> {
    let endpoints = vec(endpoint(), 0..=MAX_ENDPOINTS + 1);
    (ids(), endpoints).prop_map(|((host, machine), endpoints)| Record {
        host,
        machine,
        endpoints,
    })
}

fn short_record() -> impl Strategy<Value = Record> {
    let endpoint = (vec(any::<u8>(), 1..=8), any::<u8>(), place());
    let endpoints = vec(endpoint, 0..=3).prop_map(|endpoints| {
        let one = |(transport, flags, place)| Endpoint {
            transport,
            flags,
            place,
        };
        endpoints.into_iter().map(one).collect()
    });
    (ids(), endpoints).prop_map(|((host, machine), endpoints)| Record {
        host,
        machine,
        endpoints,
    })
}

/// The whole decodes, whatever follows it; every strict prefix of it asks for more.
fn incremental<T: Debug + PartialEq, E: Debug + PartialEq>(
    value: T,
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<Option<(T, usize)>, E>,
) -> Result<(), TestCaseError> {
    for end in 0..bytes.len() {
        prop_assert_eq!(decode(&bytes[..end]), Ok(None), "prefix of {} bytes", end);
    }
    let followed = [bytes, b"more"].concat();
    prop_assert_eq!(decode(&followed), Ok(Some((value, bytes.len()))));
    Ok(())
}

proptest! {
    #[test]
    fn requests_round_trip(request in request()) {
        let bytes = request.encode().unwrap();
        incremental(request, &bytes, Request::decode)?;
    }

    #[test]
    fn lookup_answers_round_trip(answer in port2()) {
        let bytes = answer.encode().unwrap();
        incremental(answer, &bytes, Port2Resp::decode)?;
    }

    #[test]
    fn registration_answers_round_trip(result: u8, creation: u32) {
        let answer = Alive2Resp { result, creation };
        incremental(answer, &answer.encode(), Alive2Resp::decode)?;
        let old = Alive2Resp { result, creation: creation & 0xffff };
        incremental(old, &answer.encode_old(), Alive2Resp::decode)?;
    }

    #[test]
    fn lists_of_names_round_trip(epmd_port: u32, name in "[^\n]{1,255}", port: u16) {
        let header = NamesHeader { epmd_port };
        incremental(header, &header.encode(), NamesHeader::decode)?;
        let line = NamesLine { name: name.into(), port };
        let bytes = line.encode();
        incremental(line, &bytes, NamesLine::decode)?;
    }

    #[test]
    fn frames_round_trip(payload in bytes(600), four: bool) {
        let prefix = if four { Prefix::Four } else { Prefix::Two };
        let mut bytes = Vec::new();
        prefix.encode(&payload, &mut bytes).unwrap();
        let decode = |bytes: &[u8]| {
            let frame = prefix.decode(bytes, 600)?;
            Ok::<_, FrameError>(frame.map(|(payload, used)| (payload.to_vec(), used)))
        };
        incremental(payload.clone(), &bytes, decode)?;
        if let Some(max) = payload.len().checked_sub(1) {
            let len = payload.len();
            prop_assert_eq!(prefix.decode(&bytes, max), Err(FrameError::TooLong { len, max }));
        }
    }

    #[test]
    fn records_round_trip_or_say_why_not(record in record()) {
        match record.encode() {
            Ok(bytes) => {
                prop_assert!(bytes.len() <= MAX_EXTRA);
                prop_assert_eq!(Record::decode(&bytes), Ok(record));
            }
            Err(RecordError::TooLong { len }) => prop_assert!(len > MAX_EXTRA),
            Err(RecordError::TooMany { count }) => prop_assert_eq!(count, record.endpoints.len()),
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn every_strict_prefix_of_a_record_is_a_shorter_record_or_an_error(record in short_record()) {
        let bytes = record.encode().unwrap();
        for end in 0..bytes.len() {
            if let Ok(shorter) = Record::decode(&bytes[..end]) {
                prop_assert!(shorter.endpoints.len() <= record.endpoints.len());
                prop_assert_ne!(&shorter, &record);
                prop_assert_eq!(&shorter.endpoints[..], &record.endpoints[..shorter.endpoints.len()]);
            }
        }
    }

    #[test]
    fn unknown_entries_and_kinds_are_skipped_wherever_they_are(
        record in short_record(), tag in 4u8.., kind in 6u8..0xff, value in bytes(40),
    ) {
        let bytes = record.encode().unwrap();
        let mut entry = vec![tag, 0, value.len() as u8];
        entry.extend(&value);
        let mut endpoint = vec![2, 0, value.len() as u8 + 4, 1, b't', 0, kind];
        endpoint.extend(&value);
        let (magic, entries) = bytes.split_at(5);
        let with = [magic, &entry, &endpoint, entries, &endpoint, &entry].concat();
        prop_assert_eq!(Record::decode(&with), Ok(record));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in bytes(2000), mut tail in bytes(600)) {
        let _ = Request::decode(&bytes);
        let _ = Alive2Resp::decode(&bytes);
        let _ = Port2Resp::decode(&bytes);
        let _ = NamesLine::decode(&bytes);
        let _ = Prefix::Two.decode(&bytes, 100);
        let _ = Record::decode(&bytes);
        tail.splice(0..0, *b"PLYD\x01");
        let _ = Record::decode(&tail);
    }
}
