//! What only TLS has: certificates, and sentences about what is wrong with them.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polydist_transport::{
    Address, Contents, Error, Identity, Incoming, Kind, Listener, TlsConfig, TlsInfo, TlsOptions,
    Verify, Version,
};
use rcgen::date_time_ymd;
use support::{Authority, Place, soon, tls, until};

/// A listener and a dialler made from these.
fn between(server: &TlsOptions, client: &TlsOptions) -> Place {
    let mut place = tls();
    place.listen.tls = Some(TlsConfig::server(server).unwrap());
    place.dial.tls = Some(TlsConfig::client(client).unwrap());
    place
}

/// How it ends on both sides, when it does not work.
async fn failures(place: &Place) -> (Error, String) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, connected) = place.dial(listener.address());
    // In TLS 1.3 the client is done before the server has looked at its certificate.
    let ours = match soon(connected).await {
        Ok(_) => soon(dialled.recv()).await.unwrap_err(),
        Err(error) => error,
    };
    until(|| listener.info().failed == 1).await;
    listener.close();
    assert!(incoming.next().await.is_none());
    (ours, listener.info().last_error.unwrap())
}

async fn works(place: &Place) -> &'static str {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    dialled.send(b"hello").unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"hello");
    accepted.info.tls.unwrap().version
}

#[tokio::test]
async fn versions_are_what_both_sides_allow() {
    let pem = Authority::new().issue(&["127.0.0.1"]);
    let only = |version| TlsOptions {
        versions: vec![version],
        ..pem.clone()
    };
    let (old, new) = (only(Version::Tls12), only(Version::Tls13));
    assert_eq!(works(&between(&pem, &pem)).await, "tlsv1.3");
    assert_eq!(works(&between(&pem, &old)).await, "tlsv1.2");
    assert_eq!(works(&between(&old, &pem)).await, "tlsv1.2");
    let (ours, theirs) = failures(&between(&new, &old)).await;
    assert_eq!(ours.kind(), Kind::Tls);
    assert!(ours.to_string().contains("compare versions"), "{ours}");
    assert!(theirs.contains("compare versions"), "{theirs}");
}

#[tokio::test]
async fn an_unknown_authority_is_refused_by_either_side() {
    let (a, b) = (Authority::new(), Authority::new());
    let (of_a, of_b) = (a.issue(&["127.0.0.1"]), b.issue(&["127.0.0.1"]));
    let (ours, theirs) = failures(&between(&of_a, &of_b)).await;
    assert!(ours.to_string().contains("not in cacertfile"), "{ours}");
    assert!(theirs.contains("trust the authority"), "{theirs}");
    let trusting = TlsOptions {
        roots: a.roots(),
        ..of_b
    };
    let (ours, theirs) = failures(&between(&of_a, &trusting)).await;
    assert!(theirs.contains("not in cacertfile"), "{theirs}");
    assert!(ours.to_string().contains("trust the authority"), "{ours}");
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused_with_both_names() {
    let pem = Authority::new().issue(&["elsewhere.example"]);
    let (ours, _) = failures(&between(&pem, &pem)).await;
    let sentence = ours.to_string();
    assert!(
        sentence.contains("127.0.0.1") && sentence.contains("elsewhere.example"),
        "{ours}"
    );
    let mut place = between(&pem, &pem);
    place.dial.server_name = Some("elsewhere.example".into());
    works(&place).await;
    place.dial.server_name = Some("no such name!".into());
    let refused = polydist_transport::dial(place.transport, place.address, place.dial);
    assert_eq!(refused.unwrap_err().kind(), Kind::BadOption);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_and_named_so() {
    let authority = Authority::new();
    let good = authority.issue(&["127.0.0.1"]);
    let expired = authority.issue_with(&["127.0.0.1"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let (ours, theirs) = failures(&between(&expired, &good)).await;
    assert!(
        ours.to_string().contains("peer's certificate has expired"),
        "{ours}"
    );
    assert!(
        theirs.contains("this node's certificate has expired"),
        "{theirs}"
    );
    let (ours, theirs) = failures(&between(&good, &expired)).await;
    assert!(
        theirs.contains("peer's certificate has expired"),
        "{theirs}"
    );
    assert!(
        ours.to_string()
            .contains("this node's certificate has expired"),
        "{ours}"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_when_one_is_wanted() {
    let pem = Authority::new().issue(&["127.0.0.1"]);
    let nameless = TlsOptions {
        identities: Vec::new(),
        ..pem.clone()
    };
    let (ours, theirs) = failures(&between(&pem, &nameless)).await;
    assert!(theirs.contains("fail_if_no_peer_cert"), "{theirs}");
    assert!(ours.to_string().contains("wants a certificate"), "{ours}");
    let lenient = TlsOptions {
        fail_if_no_peer_cert: false,
        ..pem
    };
    works(&between(&lenient, &nameless)).await;
}

#[tokio::test]
async fn verify_none_takes_any_certificate_for_any_name() {
    let (a, b) = (
        Authority::new().issue(&["a"]),
        Authority::new().issue(&["b"]),
    );
    let server = TlsOptions {
        verify: Verify::None,
        roots: None,
        ..a
    };
    let client = TlsOptions {
        verify: Verify::None,
        roots: None,
        ..b
    };
    works(&between(&server, &client)).await;
    for version in [Version::Tls12, Version::Tls13] {
        let client = TlsOptions {
            versions: vec![version],
            ..client.clone()
        };
        works(&between(&server, &client)).await;
    }
}

#[tokio::test]
async fn plain_bytes_at_a_tls_port_end_at_once_and_silence_at_the_deadline() {
    let mut place = tls();
    place.listen.setup_time = Duration::from_millis(300);
    let (listener, _incoming) = place.open().unwrap();
    let Address::Ip(ip) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let mut plain = TcpStream::connect(ip).unwrap();
    plain
        .write_all(b"\0\x05Nabcd and so on, for more than a header")
        .unwrap();
    until(|| listener.info().failed == 1).await;
    let sentence = listener.info().last_error.unwrap();
    assert!(sentence.contains("is not TLS"), "{sentence}");
    let _silent = TcpStream::connect(ip).unwrap();
    until(|| listener.info().failed == 2).await;
    assert_eq!(listener.info().pending, 0);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_a_timeout() {
    let mut place = tls();
    place.dial.timeout = Duration::from_millis(200);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(silent.local_addr().unwrap());
    let error = soon(place.dial(&address).1).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(error.to_string().contains("200 ms"), "{error}");
}

#[tokio::test]
async fn closing_gives_up_a_tls_handshake_and_its_socket_at_once() {
    let place = tls();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Ip(silent.local_addr().unwrap());
    let (dialled, connected) = place.dial(&address);
    let mut peer = tokio::task::spawn_blocking(move || {
        let (mut peer, _) = silent.accept().unwrap();
        peer.set_read_timeout(Some(support::SOON)).unwrap();
        peer.read_exact(&mut [0; 5]).unwrap(); // the handshake is under way
        peer
    })
    .await
    .unwrap();
    let start = Instant::now();
    dialled.close();
    assert_eq!(soon(connected).await.unwrap_err().kind(), Kind::Closed);
    let rest = tokio::task::spawn_blocking(move || peer.read_to_end(&mut Vec::new()));
    rest.await.unwrap().unwrap();
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[tokio::test]
async fn the_time_it_took_includes_the_tls_handshake_on_both_sides() {
    const DELAY: Duration = Duration::from_millis(60);
    let place = tls();
    let (listener, mut incoming) = place.open().unwrap();
    let Address::Ip(behind) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let front = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address::Ip(front.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut client, _) = front.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
        tokio::time::sleep(DELAY).await;
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let (_dialled, connected) = place.dial(&address);
    assert!(soon(connected).await.unwrap().took >= DELAY);
    assert!(soon(incoming.next()).await.unwrap().info.took >= DELAY - Duration::from_millis(5));
}

#[test]
fn configurations_that_cannot_work_name_the_option_and_the_cure() {
    let authority = Authority::new();
    let good = authority.issue(&["a"]);
    let other = authority.issue(&["a"]);
    let text = |text: &[u8]| Some(Contents::pem(text));
    let with = |change: &dyn Fn(&mut Identity)| {
        let mut options = good.clone();
        change(&mut options.identities[0]);
        options
    };
    let rooted = |roots| TlsOptions {
        roots,
        ..good.clone()
    };
    let garbled = b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let cases = [
        (
            with(&|identity| identity.key = other.identities[0].key.clone()),
            "certfile and keyfile do not belong together",
        ),
        (with(&|identity| identity.key = None), "set keyfile"),
        (
            TlsOptions {
                identities: Vec::new(),
                ..good.clone()
            },
            "set certfile and keyfile",
        ),
        (
            with(&|identity| identity.key = text(b"nothing")),
            "BEGIN PRIVATE KEY",
        ),
        (
            with(&|identity| identity.cert = Contents::pem(b"nothing")),
            "certfile holds no certificate",
        ),
        (rooted(text(b"")), "cacertfile holds no certificate"),
        (rooted(None), "set cacertfile"),
        (rooted(text(garbled)), "cacertfile is no valid PEM"),
        (
            rooted(Some(Contents::der([b"nothing".to_vec()]))),
            "certificate 1 in cacerts cannot be used",
        ),
        (
            with(&|identity| identity.cert = Contents::der([b"nothing".to_vec()])),
            "cert cannot be used: the certificate is malformed",
        ),
    ];
    for (options, expected) in cases {
        let error = TlsConfig::server(&options).unwrap_err();
        assert_eq!(error.kind(), Kind::Tls);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

#[tokio::test]
async fn listening_and_dialling_want_their_own_part_of_the_options() {
    let mut place = tls();
    std::mem::swap(&mut place.listen.tls, &mut place.dial.tls);
    assert_eq!(place.open().unwrap_err().kind(), Kind::BadOption);
    let refused = polydist_transport::dial(place.transport, place.address, place.dial);
    assert_eq!(refused.unwrap_err().kind(), Kind::BadOption);
}

/// Connects and talks both ways; what both sides say of TLS.
async fn connected(listener: &Listener, incoming: &mut Incoming, place: &Place) -> [TlsInfo; 2] {
    let (dialled, connected) = place.dial(listener.address());
    let accepted = soon(incoming.next()).await.unwrap();
    dialled.send(b"hello").unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"hello");
    // What lets the dialler come again is before this.
    accepted.connection.send(b"welcome").unwrap();
    assert_eq!(soon(dialled.recv()).await.unwrap(), b"welcome");
    let ours = soon(connected).await.unwrap();
    [ours.tls.unwrap(), accepted.info.tls.unwrap()]
}

#[tokio::test]
async fn who_comes_again_resumes_the_session_and_is_known_by_the_same_certificates() {
    for version in [Version::Tls12, Version::Tls13] {
        let pem = TlsOptions {
            versions: vec![version],
            ..Authority::new().issue(&["127.0.0.1"])
        };
        let place = between(&pem, &pem);
        let (listener, mut incoming) = place.open().unwrap();
        let first = connected(&listener, &mut incoming, &place).await;
        for again in 0..3 {
            let next = connected(&listener, &mut incoming, &place).await;
            for (first, next) in first.iter().zip(&next) {
                assert!(!first.resumed && next.resumed, "{version:?} {again}");
                assert!(!first.chain.is_empty());
                assert_eq!(first.chain, next.chain);
                assert_eq!(first.own, next.own);
                assert_eq!(first.cipher, next.cipher);
            }
        }
        // Sessions belong to the configurations they were made with, on either side.
        let reloaded = between(&pem, &pem);
        let [ours, theirs] = connected(&listener, &mut incoming, &reloaded).await;
        assert!(!ours.resumed && !theirs.resumed);
        let (listener, mut incoming) = between(&pem, &pem).open().unwrap();
        let [ours, theirs] = connected(&listener, &mut incoming, &place).await;
        assert!(!ours.resumed && !theirs.resumed);
    }
}

#[tokio::test]
async fn a_session_is_not_resumed_when_a_certificate_has_ended_meanwhile() {
    let authority = Authority::new();
    tokio::join!(
        ended_meanwhile(&authority, Version::Tls12, true),
        ended_meanwhile(&authority, Version::Tls12, false),
        ended_meanwhile(&authority, Version::Tls13, true),
        ended_meanwhile(&authority, Version::Tls13, false),
    );
}

async fn ended_meanwhile(authority: &Authority, version: Version, servers: bool) {
    let good = authority.issue(&["127.0.0.1"]);
    let end = SystemTime::now() + Duration::from_secs(5);
    let ending = authority.issue_with(&["127.0.0.1"], |params| {
        params.not_after = date_time_ymd(1970, 1, 1) + end.duration_since(UNIX_EPOCH).unwrap();
    });
    let only = |pem: &TlsOptions| TlsOptions {
        versions: vec![version],
        ..pem.clone()
    };
    let (server, client) = match servers {
        true => (only(&ending), only(&good)),
        false => (only(&good), only(&ending)),
    };
    let lenient = |pem: &TlsOptions| TlsOptions {
        verify: Verify::Deferred,
        ..pem.clone()
    };
    let place = between(&server, &client);
    let unverified = between(&lenient(&server), &lenient(&client));
    let (listener, mut incoming) = place.open().unwrap();
    let (other, mut others) = unverified.open().unwrap();
    for _ in 0..2 {
        connected(&listener, &mut incoming, &place).await;
        connected(&other, &mut others, &unverified).await;
    }
    until(|| SystemTime::now() > end + Duration::from_secs(1)).await;
    let (dialled, connecting) = place.dial(listener.address());
    let (verifier, shown) = match servers {
        true => {
            let ours = soon(connecting).await.unwrap_err();
            let accepted = soon(incoming.next()).await.unwrap();
            let theirs = soon(accepted.connection.recv()).await.unwrap_err();
            (ours.to_string(), theirs.to_string())
        }
        false => {
            until(|| listener.info().failed == 1).await;
            let ours = soon(dialled.recv()).await.unwrap_err();
            (listener.info().last_error.unwrap(), ours.to_string())
        }
    };
    assert!(
        verifier.contains("peer's certificate has expired"),
        "{verifier}"
    );
    assert!(
        shown.contains("this node's certificate has expired"),
        "{shown}"
    );
    // Where no certificate is verified, none is when a session is resumed.
    let [ours, _] = connected(&other, &mut others, &unverified).await;
    assert!(ours.resumed);
}
