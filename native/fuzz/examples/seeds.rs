//! Writes the seeds: small inputs of every target, most of them made by the encoders that nodes use.

use std::fs;
use std::io::Result;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use polydist_fuzz::seeds;
use polydist_proto::epmd::{
    Alive2Resp, NamesHeader, NamesLine, Node, NodeType, Port2Resp, Request,
};
use polydist_proto::frame::Prefix;
use polydist_proto::record::{Endpoint, MAX_ENDPOINTS, Place, Record};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

fn main() -> Result<()> {
    let record = record().encode().unwrap();
    let alone = Record::default().encode().unwrap();
    let full = full().encode().unwrap();
    write(
        "record",
        &[("all", &record), ("none", &alone), ("full", &full)],
    )?;
    let found = Port2Resp::Found(node(&record)).encode().unwrap();
    let stock = Port2Resp::Found(node(&[])).encode().unwrap();
    let alive = Alive2Resp {
        result: 0,
        creation: 0x6543_2100,
    };
    write(
        "epmd",
        &[
            (
                "alive2_req",
                &Request::Alive2(node(&record)).encode().unwrap(),
            ),
            (
                "port_please2",
                &Request::PortPlease2(b"node".to_vec()).encode().unwrap(),
            ),
            ("names_req", &Request::Names.encode().unwrap()),
            ("alive2_x_resp", &alive.encode()),
            ("alive2_resp", &alive.encode_old()),
            ("port2_ours", &found),
            ("port2_stock", &stock),
            ("port2_none", &Port2Resp::NotFound(1).encode().unwrap()),
            ("names_header", &NamesHeader { epmd_port: 4369 }.encode()),
            ("names", &names()),
        ],
    )?;
    let (two, four) = (frames(Prefix::Two), frames(Prefix::Four));
    write("frame", &[("plain", &two), ("tls", &four)])?;
    write("sniff", &[("plain", &two), ("tls", &client_hello())])?;
    let pieces = |size: u16| [&size.to_be_bytes()[..], &two].concat();
    write(
        "handshake",
        &[("whole", &pieces(0xffff)), ("pieces", &pieces(20))],
    )?;
    let file = |times| [&[11], &b"n@localhost"[..], &[times], &record].concat();
    write(
        "directory",
        &[("node", &file(0)), ("too_long", &file(0xff))],
    )?;
    write("agreement", AGREEMENTS)?;
    write("tls13", SCRIPTS)
}

fn write(target: &str, seeds_of_it: &[(&str, &[u8])]) -> Result<()> {
    let directory = seeds(target);
    fs::create_dir_all(&directory)?;
    for (name, bytes) in seeds_of_it {
        fs::write(directory.join(name), bytes)?;
    }
    Ok(())
}

/// An endpoint of every kind.
fn record() -> Record {
    let endpoint = |transport: &[u8], place| Endpoint {
        transport: transport.to_vec(),
        flags: 0,
        place,
    };
    Record {
        host: Some(*b"0123456789abcdef"),
        machine: Some(*b"ABCDEFGHIJKLMNOP"),
        endpoints: vec![
            endpoint(b"tcp", Place::Any4(4370)),
            endpoint(b"tcp6", Place::Any6(4370)),
            endpoint(b"tls", Place::V4(Ipv4Addr::LOCALHOST, 4371)),
            endpoint(b"tls", Place::V6(Ipv6Addr::LOCALHOST, 4371)),
            endpoint(b"uds", Place::Local(b"/run/user/1000/polydist/n".to_vec())),
            endpoint(b"vsock", Place::Opaque(vec![0, 1, 2, 3])),
        ],
    }
}

/// As many endpoints as there may be.
fn full() -> Record {
    let mut record = record();
    record.endpoints = vec![record.endpoints[0].clone(); MAX_ENDPOINTS];
    record
}

fn node(extra: &[u8]) -> Node {
    Node {
        port: 4370,
        node_type: NodeType::Normal,
        protocol: 0,
        high: 6,
        low: 5,
        name: b"node".to_vec(),
        extra: extra.to_vec(),
    }
}

fn names() -> Vec<u8> {
    let line = |name: &[u8], port| {
        let name = name.to_vec();
        NamesLine { name, port }.encode()
    };
    [line(b"a", 1), line(b"b at port 2", 65535)].concat()
}

/// The messages of a handshake in which a node connects (`erl_dist_protocol`, 13.2).
fn frames(prefix: Prefix) -> Vec<u8> {
    let name = [
        b"N\0\0\0\x0d\x07\xdf\x7f\xbd\x65\x43\x21\x00\0\x0b",
        &b"n@localhost"[..],
    ]
    .concat();
    let challenge = [b"r\x01\x02\x03\x04", &[0xaa; 16][..]].concat();
    let mut bytes = Vec::new();
    for payload in [&name[..], b"sok", &challenge, b""] {
        prefix.encode(payload, &mut bytes).unwrap();
    }
    bytes
}

/// What a TLS client says first.
fn client_hello() -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// What happens to the flights of a TLS handshake, of either version and from either side.
const AGREEMENTS: &[(&str, &[u8])] = &[
    ("accept12", b"\x00"),
    ("accept13", b"\x01"),
    ("dial12", b"\x02"),
    ("dial13", b"\x03"),
    (
        "flipped",
        b"\x01\0\0\x06\x16\x02\x00\x16\x00\xff\x16\x04\x00",
    ),
    ("cut", b"\x02\0\0\x06\x06\x26\x20\x06\x26\x01"),
    ("injected", b"\x03\0\0\x06\x04\x06\x14\x03\x03\x00\x01\x01"),
    ("no_length", b"cCCCCCC=\x01=\x01"), // one bad record got two alerts, which rustls does not expect
    ("alert", b"\x01\0\0\x06\x04\x07\x15\x03\x03\x00\x02\x02\x28"),
];

/// What a peer does; src/script.rs has their language.
const SCRIPTS: &[(&str, &[u8])] = &[
    (
        "messages",
        b"\xff\xff\x00\x00\x00\x05\x00\x03\xe8\x00\x00\x00\x01\x0f\x00",
    ),
    (
        "in_bytes",
        b"\x00\x01\x07\x00\x00\x05\x00\x00\x00\x00\x00\x10",
    ),
    (
        "long_frames",
        b"\x20\x00\x01\x01\x10\x00\x01\x40\x01\x00\x00\x05",
    ),
    (
        "announced",
        b"\xff\xff\x00\x00\x00\x09\x03\x7f\xff\xff\xff\x00\x00\x05",
    ),
    (
        "too_long",
        b"\xff\xff\x00\x00\x00\x09\x03\x80\x00\x00\x00\x00\x00\x05",
    ),
    (
        "bytes",
        b"\x00\x03\x02\x02\x09\x00\x00\x00\x03abc\x00\x00\x02\x04\x00\x00\x01z",
    ),
    (
        "flipped",
        b"\xff\xff\x01\x00\x00\x64\x10\x00\x64\x01\x10\x00\x00\x64",
    ),
    (
        "cut",
        b"\xff\xff\x00\x00\x00\x64\x20\x00\x64\x03\x00\x00\x64",
    ),
    (
        "replayed",
        b"\xff\xff\x01\x00\x00\x64\x30\x00\x64\x00\x00\x64",
    ),
    (
        "injected",
        b"\xff\xff\x00\x00\x00\x64\x04\x0a\x17\x03\x03\x00\x05abcde\x00\x00\x64",
    ),
    (
        "not_tls",
        b"\xff\xff\x01\x04\x10GET / HTTP/1.1\r\n\x00\x00\x64",
    ),
    (
        "new_keys",
        b"\xff\xff\x00\x00\x00\x64\x05\x00\x00\x64\x05\x05\x01\x10\x00",
    ),
    ("goodbye", b"\xff\xff\x01\x00\x00\x64\x06\x00\x00\x64"),
];
