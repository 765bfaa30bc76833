//! What the tests share: memory and frames outside any VM, and two ends of a TLS session, made by a
//! real handshake.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

mod memory;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
pub(crate) use memory::Memory;
use polydist_channel::{Channel, Closed, Handshake, Opened, Progress, Segment, Session, Sink};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Error, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

pub const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// The two ends of a handshake that has not begun.
pub fn handshakes(version: &'static SupportedProtocolVersion) -> (Handshake, Handshake) {
    handshakes_with(version, aws_lc_rs::ALL_CIPHER_SUITES)
}

/// The same with these ciphers.
pub fn handshakes_with(
    version: &'static SupportedProtocolVersion,
    suites: &[SupportedCipherSuite],
) -> (Handshake, Handshake) {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: suites.to_vec(),
        ..aws_lc_rs::default_provider()
    });
    let (cert, key) = certificate();
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.clone().into()).unwrap();
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.clone().into()], key)
        .unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
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

#[derive(Default)]
pub struct Frames(pub Vec<Bytes>);

impl Sink<Memory> for Frames {
    fn deliver(&mut self, buffer: &Bytes, frame: Range<usize>) {
        assert!(!frame.is_empty(), "ticks are not delivered");
        self.0.push(buffer.slice(frame));
    }
}

#[derive(Clone)]
pub struct Part(pub Bytes);

impl Segment for Part {
    type Shared = Bytes;
    fn bytes(&self) -> &[u8] {
        &self.0
    }
    fn share(&self, skip: usize) -> Bytes {
        self.0.slice(skip..)
    }
}

pub type TestChannel = Channel<Memory, Bytes>;

pub fn send(channel: &mut TestChannel, message: &[Bytes]) -> Result<(), Closed> {
    let len = message.iter().map(Bytes::len).sum();
    channel.send(message.iter().cloned().map(Part), len)
}
