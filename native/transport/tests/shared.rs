//! One port for TLS and for the plain protocol.

mod support;

use polydist_proto::frame::Prefix;
use polydist_transport::sniff::{Protocol, protocol};
use polydist_transport::{Address, Kind, MAX_HANDSHAKE_FRAME, TlsConfig, transport};
use socket2::{Domain, Socket, Type};
use support::{Authority, Place, soon, tcp4, tcp6, tls, until};

/// A listener of this place, with certificates, whose port is for both.
fn shared(mut place: Place) -> Place {
    let authority = Authority::new();
    let pem = authority.issue(&["127.0.0.1", "::1"]);
    place.listen.shared = true;
    place.listen.tls = Some(TlsConfig::server(&pem).unwrap());
    place.dial.tls = Some(TlsConfig::client(&pem).unwrap());
    place
}

#[tokio::test]
async fn each_peer_is_served_in_its_own_protocol() {
    for (listening, plain) in [(tcp4(), "tcp"), (tcp6(), "tcp6"), (tls(), "tcp")] {
        let mut place = shared(listening);
        let (listener, mut incoming) = place.open().unwrap();
        for name in [plain, "tls", plain, "tls"] {
            place.transport = transport(name).unwrap();
            let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
            assert_eq!(accepted.info.transport, name);
            assert_eq!(accepted.info.tls.is_some(), name == "tls");
            accepted.connection.send(b"answer").unwrap();
            assert_eq!(soon(dialled.recv()).await.unwrap(), b"answer");
        }
        assert_eq!((listener.info().accepted, listener.info().failed), (4, 0));
    }
}

#[tokio::test]
async fn neither_protocol_is_told_so_in_the_log_and_not_to_the_peer() {
    let place = shared(tcp4());
    let (listener, _incoming) = place.open().unwrap();
    let Address::Ip(address) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    client.connect(&address.into()).unwrap();
    client.send(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    until(|| listener.info().failed == 1).await;
    let sentence = listener.info().last_error.unwrap();
    assert!(sentence.contains("neither TLS nor"), "{sentence}");
    let read = std::io::Read::read(&mut &client, &mut [0]);
    assert!(!matches!(read, Ok(1..)), "{read:?}");
}

#[tokio::test]
async fn a_port_of_tls_alone_answers_no_plain_bytes() {
    let mut place = shared(tls());
    place.listen.shared = false;
    let (listener, _incoming) = place.open().unwrap();
    place.transport = transport("tcp").unwrap();
    let (dialled, connected) = place.dial(listener.address());
    soon(connected).await.unwrap();
    dialled.send(b"n").unwrap();
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
    until(|| listener.info().failed == 1).await;
    assert!(listener.info().last_error.unwrap().contains("not TLS"));
}

#[tokio::test]
async fn what_has_no_tls_or_no_ip_address_is_not_shared() {
    let mut place = shared(tcp4());
    place.listen.tls = None;
    assert_eq!(place.open().unwrap_err().kind(), Kind::BadOption);
    let uds = shared(support::uds());
    let error = uds.open().unwrap_err();
    assert_eq!(error.kind(), Kind::BadOption);
    assert!(error.to_string().contains("cannot be shared"), "{error}");
}

#[test]
fn the_first_byte_tells() {
    assert_eq!(protocol(0x16), Protocol::Tls);
    for byte in (0..=u8::MAX).filter(|byte| *byte != 0x16) {
        let longest = usize::from(byte) << 8 <= MAX_HANDSHAKE_FRAME;
        let expected = match longest {
            true => Protocol::Plain,
            false => Protocol::Unknown,
        };
        assert_eq!(protocol(byte), expected, "{byte:#x}");
    }
    let mut first = Vec::new();
    Prefix::Two.encode(&[b'N'; 1040], &mut first).unwrap();
    assert_eq!(protocol(first[0]), Protocol::Plain);
}
