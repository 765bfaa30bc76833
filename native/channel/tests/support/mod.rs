//! What the tests of TLS share: two ends of a session, made by a real handshake.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::sync::{Arc, OnceLock};

use polydist_channel::{Handshake, Opened, Progress, Session};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Error, ServerConfig, SupportedProtocolVersion};

pub const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// The two ends of a handshake that has not begun.
pub fn handshakes(version: &'static SupportedProtocolVersion) -> (Handshake, Handshake) {
    let (cert, key) = certificate();
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone().into()).unwrap();
    let mut server = ServerConfig::builder_with_protocol_versions(&[version])
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone().into()], key)
        .unwrap();
    let mut client = ClientConfig::builder_with_protocol_versions(&[version])
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    server.enable_secret_extraction = true;
    let name = ServerName::try_from("localhost").unwrap();
    (
        Handshake::client(Arc::new(client), name).unwrap(),
        Handshake::server(Arc::new(server)).unwrap(),
    )
}

fn certificate() -> &'static (Vec<u8>, Vec<u8>) {
    static MADE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    MADE.get_or_init(|| {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        (cert.der().to_vec(), signing_key.serialize_der())
    })
}

/// Two ends of a TLS session, the client's first.
pub fn sessions(version: &'static SupportedProtocolVersion) -> (Box<Session>, Box<Session>) {
    complete(handshakes(version), usize::MAX)
}

/// Completes a handshake whose bytes arrive in pieces of at most `cut`.
pub fn complete(
    (mut client, mut server): (Handshake, Handshake),
    cut: usize,
) -> (Box<Session>, Box<Session>) {
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let (mut done, mut also) = (Progress::Waiting, Progress::Waiting);
    while (done, also) != (Progress::Done, Progress::Done) {
        if done == Progress::Waiting {
            done = advance(&mut client, &mut to_client, &mut to_server, cut).unwrap();
        }
        if also == Progress::Waiting {
            also = advance(&mut server, &mut to_server, &mut to_client, cut).unwrap();
        }
    }
    let mut client = Box::new(client.finish().unwrap());
    let server = Box::new(server.finish().unwrap());
    // Tickets.
    let opened = client.open::<Error>(&to_client, |_| panic!("there is no data"));
    assert_eq!(opened.unwrap(), Opened::More);
    (client, server)
}

/// Gives one end what has come for it, until it is done.
pub fn advance(
    end: &mut Handshake,
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    cut: usize,
) -> Result<Progress, Error> {
    let mut progress = end.advance(&[], outgoing)?;
    while progress == Progress::Waiting && !incoming.is_empty() {
        let piece: Vec<u8> = incoming.drain(..cut.min(incoming.len())).collect();
        progress = end.advance(&piece, outgoing)?;
    }
    Ok(progress)
}
