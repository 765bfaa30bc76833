//! What a TLS session promises, whatever its bytes are cut into and whatever a peer makes of them.

mod support;

use polydist_channel::{Opened, Progress, Session};
use proptest::prelude::*;
use rustls::{AlertDescription, Error, SupportedProtocolVersion};
use support::{VERSIONS, advance, complete, handshakes, sessions};

fn version() -> impl Strategy<Value = &'static SupportedProtocolVersion> {
    prop_oneof![Just(VERSIONS[0]), Just(VERSIONS[1])]
}

/// What one end may do.
#[derive(Clone, Debug)]
enum Step {
    Send(Vec<Vec<u8>>),
    Renew,
}

fn step() -> impl Strategy<Value = Step> {
    let piece = prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..300),
        1 => (any::<u8>(), 10_000_usize..70_000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop_oneof![
        6 => prop::collection::vec(piece, 1..6).prop_map(Step::Send),
        1 => Just(Step::Renew),
    ]
}

/// Opens `bytes` in pieces of these sizes and gives all of the plaintext.
fn open(to: &mut Session, mut bytes: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    for cut in cuts.iter().cycle() {
        if bytes.is_empty() {
            break;
        }
        let (now, later) = bytes.split_at((*cut).min(bytes.len()));
        to.open::<Error>(now, |piece| {
            plain.extend_from_slice(piece);
            Ok(())
        })?;
        bytes = later;
    }
    Ok(plain)
}

/// Where it is in a record.
const MINOR_VERSION: usize = 2;

/// The one byte that TLS 1.3 does not protect: it must be ignored (RFC 8446, section 5.1).
#[test]
fn a_changed_minor_version_is_ignored_in_tls13_and_an_error_in_tls12() {
    for version in VERSIONS {
        for change in 1..=u8::MAX {
            let (mut client, mut server) = sessions(version);
            client.seal(&[b"as it was"]).unwrap();
            let mut bytes = client.take_sealed();
            bytes[MINOR_VERSION] ^= change;
            let expected = match version == VERSIONS[1] {
                true => Ok(b"as it was".to_vec()),
                false => Err(Error::DecryptError),
            };
            assert_eq!(open(&mut server, &bytes, &[bytes.len()]), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_sealed_is_opened_however_it_is_cut_and_whoever_renews_keys(
        version in version(),
        steps in prop::collection::vec((any::<bool>(), step()), 1..20),
        cuts in prop::collection::vec(prop_oneof![1_usize..40, 100_usize..40_000], 1..20),
    ) {
        let (mut client, mut server) = sessions(version);
        for (from_client, step) in &steps {
            let (from, to) = match from_client {
                true => (&mut client, &mut server),
                false => (&mut server, &mut client),
            };
            let sent = match step {
                Step::Send(pieces) => {
                    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
                    from.seal(&pieces).unwrap();
                    pieces.concat()
                }
                Step::Renew if version == VERSIONS[1] => {
                    from.renew_key().unwrap();
                    from.seal(&[b"renewed"]).unwrap();
                    b"renewed".to_vec()
                }
                // Not in TLS 1.2.
                Step::Renew => Vec::new(),
            };
            let opened = open(to, &from.take_sealed(), &cuts).unwrap();
            prop_assert!(opened == sent, "{} bytes of {}", opened.len(), sent.len());
        }
    }

    #[test]
    fn a_byte_that_is_changed_on_the_way_is_an_error_that_the_peer_learns_of(
        version in version(),
        before in prop::collection::vec(any::<u8>(), 1..3000),
        place in any::<prop::sample::Index>(),
        change in 1_u8..,
    ) {
        let (mut client, mut server) = sessions(version);
        client.seal(&[&before]).unwrap();
        let mut bytes = client.take_sealed();
        let place = match place.index(bytes.len()) {
            // See a_changed_minor_version_is_ignored_in_tls13_and_an_error_in_tls12.
            MINOR_VERSION if version == VERSIONS[1] => MINOR_VERSION + 1,
            place => place,
        };
        bytes[place] ^= change;
        // So that a length which is now too long is filled.
        client.seal(&[&[0; 70_000]]).unwrap();
        bytes.extend_from_slice(&client.take_sealed());
        let error = open(&mut server, &bytes, &[bytes.len()]).unwrap_err();
        let told = open(&mut client, &server.take_sealed(), &[1000]).unwrap_err();
        let alert = match error {
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            Error::InappropriateMessage { .. } => AlertDescription::UnexpectedMessage,
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(told, Error::AlertReceived(alert));
    }

    #[test]
    fn nothing_that_a_stranger_says_makes_a_session_panic(
        version in version(),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        cuts in prop::collection::vec(1_usize..600, 1..10),
    ) {
        let (_, mut server) = sessions(version);
        let _ = open(&mut server, &bytes, &cuts);
        let mut record = vec![23, 3, 3, (bytes.len() >> 8) as u8, bytes.len() as u8];
        record.extend_from_slice(&bytes);
        let (_, mut server) = sessions(version);
        prop_assert_eq!(open(&mut server, &record, &cuts), Err(Error::DecryptError));
    }

    /// But for the version in the head of a record, which means nothing, both ends agree on every
    /// byte of a handshake, or one of them does not complete it.
    #[test]
    fn a_handshake_that_is_changed_on_the_way_does_not_complete(
        version in version(),
        flight in 0_usize..4,
        place in any::<prop::sample::Index>(),
        change in 1_u8..,
        cut in prop_oneof![Just(usize::MAX), 1_usize..200],
    ) {
        let (mut client, mut server) = handshakes(version);
        let mut flights = [Vec::new(), Vec::new()];
        let mut done = [Progress::Waiting; 2];
        let mut harmless = false;
        for number in 0..6 {
            let (end, to) = match number % 2 {
                0 => (&mut client, 0),
                _ => (&mut server, 1),
            };
            let mut incoming = std::mem::take(&mut flights[1 - to]);
            if done[to] == Progress::Done {
                continue;
            }
            match advance(end, &mut incoming, &mut flights[to], cut) {
                Ok(progress) => done[to] = progress,
                Err(_) => break,
            }
            let sent = &mut flights[to];
            if number == flight {
                // What follows the handshake is not part of it.
                prop_assume!(!sent.is_empty() && done != [Progress::Done; 2]);
                let place = place.index(sent.len());
                harmless = is_version(sent, place);
                sent[place] ^= change;
            }
        }
        prop_assert!(harmless || done != [Progress::Done; 2]);
    }
}

/// Whether this byte is of a version in the head of a record.
fn is_version(mut records: &[u8], mut place: usize) -> bool {
    loop {
        let size = 5 + usize::from(u16::from_be_bytes([records[3], records[4]]));
        if place < size {
            return (1..3).contains(&place);
        }
        place -= size;
        records = &records[size..];
    }
}

#[test]
fn a_handshake_may_come_byte_by_byte_and_what_follows_it_in_one_piece() {
    for version in VERSIONS {
        for cut in [1, 2, 7, 100, usize::MAX] {
            let (mut client, mut server) = complete(handshakes(version), cut);
            client.seal(&[b"hello"]).unwrap();
            let opened = open(&mut server, &client.take_sealed(), &[cut]).unwrap();
            assert_eq!(opened, b"hello");
        }
    }
}

#[test]
fn data_in_the_handshakes_last_piece_is_not_lost() {
    for version in VERSIONS {
        let (mut client, mut server) = handshakes(version);
        let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
        client.advance(&[], &mut to_server).unwrap();
        server.advance(&to_server, &mut to_client).unwrap();
        to_server.clear();
        client.advance(&to_client, &mut to_server).unwrap();
        to_client.clear();
        // TLS 1.3 ends with the client's word, TLS 1.2 with the server's.
        let (first, mut second, mut last) = if version == VERSIONS[1] {
            (client, server, to_server)
        } else {
            server.advance(&to_server, &mut to_client).unwrap();
            (server, client, to_client)
        };
        let mut first = first.finish().unwrap();
        first.seal(&[b"early"]).unwrap();
        last.extend_from_slice(&first.take_sealed());
        let done = second.advance(&last, &mut Vec::new());
        assert_eq!(done.unwrap(), Progress::Done);
        let mut second = second.finish().unwrap();
        let mut plain = Vec::new();
        let opened = second.open::<Error>(&[], |piece| {
            plain.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(opened.unwrap(), Opened::More);
        assert_eq!(plain, b"early");
    }
}

/// rustls remembers where messages are in what it was given, also after an error.
#[test]
fn a_handshake_that_fails_in_the_first_of_two_messages_sends_its_alert() {
    let (_, mut server) = handshakes(VERSIONS[1]);
    // A Finished, which cannot be first, and another; and the beginning of a third.
    let messages = [20, 0, 0, 1, 0, 20, 0, 0, 1, 0, 20, 0];
    let mut record = vec![22, 3, 3, 0, messages.len() as u8];
    record.extend_from_slice(&messages);
    let mut alert = Vec::new();
    assert!(server.advance(&record, &mut alert).is_err());
    assert_eq!(alert, [21, 3, 3, 0, 2, 2, 10], "unexpected_message");
}

#[test]
fn a_handshake_that_never_ends_costs_no_more_than_a_message() {
    let (_, mut server) = handshakes(VERSIONS[1]);
    // A hello of 60,000 bytes, byte by byte.
    let mut sent = 0;
    let mut record = vec![22, 3, 3, 0, 4, 1, 0, 0xea, 0x60];
    while server.advance(&record, &mut Vec::new()).is_ok() {
        sent += record.len();
        record = vec![22, 3, 3, 0, 1, 0];
        assert!(sent < 200_000);
    }
}

#[test]
fn goodbye_is_the_end_and_what_follows_is_not_looked_at() {
    for version in VERSIONS {
        let (mut client, mut server) = sessions(version);
        client.seal(&[b"last words"]).unwrap();
        client.seal_goodbye().unwrap();
        let mut bytes = client.take_sealed();
        bytes.extend_from_slice(b"not TLS at all");
        let mut plain = Vec::new();
        let opened = server.open::<Error>(&bytes, |piece| {
            plain.extend_from_slice(piece);
            Ok(())
        });
        assert_eq!(opened.unwrap(), Opened::End);
        assert_eq!(plain, b"last words");
    }
}
