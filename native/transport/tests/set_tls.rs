//! A listener takes another TLS configuration while it listens.

mod support;

use polydist_transport::{Kind, TlsConfig, transport};
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
