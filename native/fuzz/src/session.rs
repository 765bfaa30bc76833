//! Established connections, plain and by TLS, with a peer that does as it likes.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

use polydist_channel::{Closed, Handshake, Progress, Session};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

use crate::frames::{Receiver, Reference};
use crate::script::{Action, Script, Step};
use crate::within;

/// A socket takes this much at once.
const WRITE: usize = 32 * 1024;
/// A peer that does nothing else may do this so often, a few tickets included.
const MOST_KEYS: usize = 24;
/// More than any handshake has.
const FLIGHTS: usize = 12;
/// What a connection has of its own: a buffer, a step towards a long frame, and room to open records.
const OVERHEAD: usize = 3 << 20;

/// A plain connection: frames are cut right wherever they are cut on their way.
pub fn plain(data: &[u8]) {
    let script = Script::read(data);
    let mut stream = Vec::new();
    for step in &script.steps {
        let (Action::Plain(bytes) | Action::Wire(bytes)) = &step.action else {
            continue;
        };
        let mut bytes = bytes.clone();
        if let Some(tamper) = &step.tamper {
            tamper.with(&mut bytes);
        }
        stream.extend(bytes);
    }
    let reference = Reference::of(&stream);
    let limit = 4 * stream.len() + OVERHEAD;
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let (early, late) = stream.split_at(script.surplus.min(stream.len()));
    let mut receiver = Receiver::new(ours, None, early);
    let mut end = receiver.surplus(&stream, &reference, limit);
    for piece in script.pieces(late).flat_map(|piece| piece.chunks(WRITE)) {
        if end.is_ok() {
            peer.write_all(piece).unwrap();
            end = receiver.receive(&stream, &reference, limit);
        }
    }
    assert_eq!(receiver.delivered(), reference.frames.len());
    assert_eq!(receiver.ticks(), reference.ticks);
    match (end, reference.too_long) {
        (Ok(()), None) => {}
        (Err(Closed::TooLong { len }), Some(expected)) => assert_eq!(len, expected),
        (end, too_long) => panic!("{end:?}, and {too_long:?} is too long"),
    }
}

/// A connection by TLS 1.2, whose other end is that of rustls: nothing is delivered but what the peer
/// sent, in order.
pub fn tls12(data: &[u8]) {
    static ENDS: LazyLock<Ends> = LazyLock::new(|| Ends::new(&rustls::version::TLS12));
    tls(data, &ENDS);
}

/// A connection by TLS 1.3.
pub fn tls13(data: &[u8]) {
    static ENDS: LazyLock<Ends> = LazyLock::new(|| Ends::new(&rustls::version::TLS13));
    tls(data, &ENDS);
}

fn tls(data: &[u8], ends: &Ends) {
    let script = Script::read(data);
    // Whose end is ours takes no byte of its own: it hangs on one that says little.
    let (ours, mut peer) = match script.surplus % 2 {
        0 => (ends.accept(), ends.stranger_dials()),
        _ => (ends.dial(), ends.stranger_accepts()),
    };
    let (ours, mut wire) = agree(ours, &mut peer);
    let (stream, performed, honest) = perform(&script, &mut peer);
    wire.extend(performed);
    let reference = Reference::of(&stream);
    let limit = 4 * (wire.len() + stream.len()) + OVERHEAD;
    let (mut peer, socket) = UnixStream::pair().unwrap();
    let mut receiver = Receiver::new(socket, Some(Box::new(ours)), &[]);
    let mut end = receiver.surplus(&stream, &reference, limit);
    for piece in script.pieces(&wire).flat_map(|piece| piece.chunks(WRITE)) {
        if end.is_ok() {
            peer.write_all(piece).unwrap();
            end = receiver.receive(&stream, &reference, limit);
        }
    }
    let sure = Reference::of(&stream[..honest]);
    assert!(receiver.delivered() >= sure.frames.len(), "{end:?}");
    assert!(receiver.ticks() >= sure.ticks, "{end:?}");
    if let (Err(Closed::TooLong { len }), expected) = (end, reference.too_long) {
        assert_eq!(Some(len), expected);
    }
}

/// A TLS handshake in which the flights of the peer, or of ours on their way to it, are changed: it
/// comes to an end and takes no more memory than it should. `version_and_side:8 script`, a step for
/// each flight.
pub fn agreement(data: &[u8]) {
    static TLS12: LazyLock<Ends> = LazyLock::new(|| Ends::new(&rustls::version::TLS12));
    static TLS13: LazyLock<Ends> = LazyLock::new(|| Ends::new(&rustls::version::TLS13));
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let ends = [&TLS12, &TLS13][usize::from(first & 1)];
    let (mut ours, mut peer) = match first & 2 {
        0 => (ends.accept(), ends.stranger_dials()),
        _ => (ends.dial(), ends.stranger_accepts()),
    };
    let mut script = Script::read(rest).steps.into_iter();
    let mut incoming = Vec::new();
    for _ in 0..FLIGHTS {
        let mut outgoing = Vec::new();
        let limit = 8 * incoming.len() + OVERHEAD;
        let progress = within(limit, || ours.advance(&incoming, &mut outgoing));
        incoming.clear();
        change(script.next(), &mut outgoing);
        let mut rest = &outgoing[..];
        while !rest.is_empty() && peer.read_tls(&mut rest).is_ok_and(|count| count > 0) {
            let _ = peer.process_new_packets();
        }
        records(&mut peer, &mut incoming);
        change(script.next(), &mut incoming);
        match progress {
            Ok(Progress::Done) => {
                let mut session = ours.finish().unwrap();
                let _ = session.open::<rustls::Error>(&incoming, |_| Ok(()));
                return;
            }
            Ok(Progress::Waiting) if !incoming.is_empty() => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// What becomes of a flight; a message of the script's comes before it.
fn change(step: Option<Step>, flight: &mut Vec<u8>) {
    let Some(Step { action, tamper }) = step else {
        return;
    };
    if let Some(tamper) = tamper {
        tamper.with(flight);
    }
    if let Action::Wire(bytes) = action {
        flight.splice(0..0, bytes);
    }
}

/// The stream that a peer sends, what comes of it on the wire, and how much of the stream comes
/// before anything is wrong there.
fn perform(script: &Script, peer: &mut Connection) -> (Vec<u8>, Vec<u8>, usize) {
    let (mut stream, mut wire, mut honest) = (Vec::new(), Vec::new(), None);
    let mut rekeyed = 0;
    for step in &script.steps {
        let mut bytes = Vec::new();
        match &step.action {
            Action::Plain(plain) => {
                peer.writer().write_all(plain).unwrap();
                records(peer, &mut bytes);
            }
            Action::Wire(injected) => bytes.clone_from(injected),
            Action::Rekey => {
                // TLS 1.2 has no such thing.
                let _ = peer.refresh_traffic_keys();
                records(peer, &mut bytes);
            }
            Action::Goodbye => {
                peer.send_close_notify();
                records(peer, &mut bytes);
            }
        }
        match &step.action {
            Action::Rekey => rekeyed += 1,
            _ => rekeyed = 0,
        }
        let wrong = rekeyed > MOST_KEYS || matches!(step.action, Action::Wire(_) | Action::Goodbye);
        if wrong || step.tamper.is_some() {
            honest.get_or_insert(stream.len());
        }
        if let Action::Plain(plain) = &step.action {
            stream.extend(plain);
        }
        if let Some(tamper) = &step.tamper {
            tamper.with(&mut bytes);
        }
        wire.extend(bytes);
    }
    let honest = honest.unwrap_or(stream.len());
    (stream, wire, honest)
}

fn records(connection: &mut Connection, to: &mut Vec<u8>) {
    while connection.wants_write() {
        connection.write_tls(to).unwrap();
    }
}

/// The configurations of both ends, for all sessions; most of them are resumed.
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Ends {
    fn new(version: &'static SupportedProtocolVersion) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".into()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let mut client = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut server = ServerConfig::builder_with_protocol_versions(&[version])
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        client.enable_secret_extraction = true;
        server.enable_secret_extraction = true;
        let (client, server) = (client.into(), server.into());
        Self { client, server }
    }

    fn dial(&self) -> Handshake {
        Handshake::client(self.client.clone(), name()).unwrap()
    }

    fn accept(&self) -> Handshake {
        Handshake::server(self.server.clone()).unwrap()
    }

    fn stranger_dials(&self) -> Connection {
        let client = ClientConnection::new(self.client.clone(), name());
        client.unwrap().into()
    }

    fn stranger_accepts(&self) -> Connection {
        let server = ServerConnection::new(self.server.clone());
        server.unwrap().into()
    }
}

fn name() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

/// Our end after its handshake with `peer`, and what the peer has sent since, its tickets.
fn agree(mut ours: Handshake, peer: &mut Connection) -> (Session, Vec<u8>) {
    peer.set_buffer_limit(None);
    let mut incoming = Vec::new();
    loop {
        let mut outgoing = Vec::new();
        let progress = ours.advance(&std::mem::take(&mut incoming), &mut outgoing);
        let mut rest = &outgoing[..];
        while !rest.is_empty() {
            peer.read_tls(&mut rest).unwrap();
            peer.process_new_packets().unwrap();
        }
        records(peer, &mut incoming);
        if progress.unwrap() == Progress::Done && !peer.is_handshaking() {
            return (ours.finish().unwrap(), incoming);
        }
    }
}
