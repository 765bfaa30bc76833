//! Sessions that are resumed: who comes again is known, and verified, as before.

mod support;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polydist_transport::{Incoming, Listener, TlsConfig, TlsInfo, TlsOptions, Verify, Version};
use rcgen::date_time_ymd;
use support::{Authority, Place, soon, tls, until};

/// A listener and a dialler made from these.
fn between(server: &TlsOptions, client: &TlsOptions) -> Place {
    let mut place = tls();
    place.listen.tls = Some(TlsConfig::server(server).unwrap());
    place.dial.tls = Some(TlsConfig::client(client).unwrap());
    place
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
