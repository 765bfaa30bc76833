//! A listener takes another TLS configuration while it listens.

mod support;

use polydist_transport::{Kind, TlsConfig, TlsOptions, Verify, transport};
use support::{Authority, Place, soon, tcp4, tls, until};

/// The two sides of one authority.
fn sides() -> (TlsConfig, TlsConfig) {
    let pem = Authority::new().issue(&["127.0.0.1"]);
    (
        TlsConfig::server(&pem).unwrap(),
        TlsConfig::client(&pem).unwrap(),
    )
}

async fn changes(mut place: Place) {
    let ((old_server, old_client), (new_server, new_client)) = (sides(), sides());
    place.listen.tls = Some(old_server);
    place.dial.tls = Some(old_client);
    let (listener, mut incoming) = place.open().unwrap();
    place.transport = transport("tls").unwrap();
    let (old, accepted) = place.pair(&listener, &mut incoming).await;

    let error = listener.set_tls(new_client.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadOption);
    listener.set_tls(new_server).unwrap();

    let (stranger, connected) = place.dial(listener.address());
    assert!(soon(connected).await.is_err());
    drop(stranger);
    until(|| listener.info().failed == 1).await;
    place.dial.tls = Some(new_client);
    let (dialled, _accepted) = place.pair(&listener, &mut incoming).await;
    dialled.send(b"new").unwrap();
    old.send(b"old").unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"old");
}

#[tokio::test]
async fn new_handshakes_are_with_the_new_configuration_and_connections_stay() {
    changes(tls()).await;
}

#[tokio::test]
async fn a_shared_port_takes_it_as_well() {
    let mut place = tcp4();
    place.listen.shared = true;
    changes(place).await;
}

#[tokio::test]
async fn a_connection_tells_whether_its_peer_was_taken_on_trust() {
    let authority = Authority::new();
    let options = authority.issue(&["127.0.0.1"]);
    let trusting = TlsOptions {
        verify: Verify::Deferred,
        ..options.clone()
    };
    for (server, client) in [(&options, &trusting), (&trusting, &options)] {
        let mut place = tls();
        place.listen.tls = Some(TlsConfig::server(server).unwrap());
        place.dial.tls = Some(TlsConfig::client(client).unwrap());
        let (listener, mut incoming) = place.open().unwrap();
        let (dialled, connected) = place.dial(listener.address());
        let told = soon(connected).await.unwrap().tls.unwrap().deferred;
        assert_eq!(told, client.verify == Verify::Deferred);
        dialled.send(b"hello").unwrap();
        let accepted = soon(incoming.next()).await.unwrap();
        let told = accepted.info.tls.unwrap().deferred;
        assert_eq!(told, server.verify == Verify::Deferred);
    }
}
