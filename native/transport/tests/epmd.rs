//! The client side of EPMD against the real one, and against servers that only look like it.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use polydist_proto::epmd::{Node, NodeType};
use polydist_transport::Kind;
use polydist_transport::epmd::{lookup, names, register};
use rustix::io::Errno;
use support::{SOON, soon, until};

struct Epmd {
    process: Child,
    address: SocketAddr,
}

impl Epmd {
    async fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let mut epmd = Command::new("/usr/bin/epmd");
        epmd.arg("-port")
            .arg(free.port().to_string())
            .args(["-address", "127.0.0.1"]);
        let process = epmd.stderr(Stdio::null()).spawn().unwrap();
        until(|| TcpStream::connect(free).is_ok()).await;
        Self {
            process,
            address: free,
        }
    }
}

impl Drop for Epmd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn node(name: &str, extra: Vec<u8>) -> Node {
    Node {
        port: 4711,
        node_type: NodeType::Normal,
        protocol: 0,
        high: 6,
        low: 5,
        name: name.into(),
        extra,
    }
}

/// A server that answers the first request with these bytes and then closes.
fn impostor(answer: &'static [u8], stays: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 2000]);
        let _ = stream.write_all(answer);
        if stays {
            std::thread::sleep(SOON);
        }
    });
    address
}

#[tokio::test]
async fn a_node_registers_is_found_with_all_its_bytes_and_goes_when_dropped() {
    let epmd = Epmd::start().await;
    let all_bytes: Vec<u8> = (0..1020_u32).map(|n| n as u8).collect();
    let registered = node("n1", all_bytes);
    let registration = soon(register(epmd.address, registered.clone()))
        .await
        .unwrap();
    assert!(registration.creation() > 3);
    assert_eq!(
        lookup(&[epmd.address], b"n1", SOON).await.unwrap(),
        registered
    );
    let listed = names(&[epmd.address], SOON).await.unwrap();
    assert_eq!(
        (listed.len(), &listed[0].name[..], listed[0].port),
        (1, &b"n1"[..], 4711)
    );
    drop(registration);
    soon(async { while lookup(&[epmd.address], b"n1", SOON).await.is_ok() {} }).await;
    assert!(names(&[epmd.address], SOON).await.unwrap().is_empty());
    let error = lookup(&[epmd.address], b"n1", SOON).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

#[tokio::test]
async fn a_name_in_use_is_a_duplicate_name() {
    let epmd = Epmd::start().await;
    let _first = soon(register(epmd.address, node("n", vec![])))
        .await
        .unwrap();
    let error = soon(register(epmd.address, node("n", vec![])))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::DuplicateName);
    assert!(
        error.to_string().contains("the name n is in use"),
        "{error}"
    );
}

#[tokio::test]
async fn extra_over_1020_bytes_is_refused_before_it_is_sent() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let error = register(nobody, node("n", vec![0; 1021]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::TooLong, "{error}");
}

#[tokio::test]
async fn an_epmd_that_dies_ends_the_registration() {
    let mut epmd = Epmd::start().await;
    let registration = soon(register(epmd.address, node("n", vec![])))
        .await
        .unwrap();
    let closed = tokio::spawn(registration.closed());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!closed.is_finished());
    epmd.process.kill().unwrap();
    soon(closed).await.unwrap();
}

#[tokio::test]
async fn no_epmd_is_econnrefused_with_its_address() {
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let errors = [
        register(nobody, node("n", vec![])).await.unwrap_err(),
        lookup(&[nobody], b"n", SOON).await.unwrap_err(),
        names(&[nobody], SOON).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), Kind::Os(Errno::CONNREFUSED));
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    }
    assert_eq!(
        lookup(&[], b"n", SOON).await.unwrap_err().kind(),
        Kind::BadOption
    );
}

#[tokio::test]
async fn addresses_are_tried_in_order_and_one_that_is_silent_does_not_use_up_the_time() {
    let epmd = Epmd::start().await;
    let _registration = soon(register(epmd.address, node("n", vec![])))
        .await
        .unwrap();
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let silent = impostor(b"", true);
    let addresses = [nobody, silent, epmd.address];
    let found = lookup(&addresses, b"n", Duration::from_secs(3))
        .await
        .unwrap();
    assert_eq!(found.port, 4711);
    let limit = Duration::from_millis(100);
    let error = names(&[impostor(b"\0\0\x11\x11", true)], limit)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout, "{error}");
}

#[tokio::test]
async fn answers_that_are_none_are_bad_replies() {
    let bad = lookup(
        &[impostor(b"HTTP/1.1 400 Bad Request\r\n", false)],
        b"n",
        SOON,
    )
    .await;
    assert_eq!(bad.unwrap_err().kind(), Kind::BadReply);
    let short = lookup(&[impostor(b"w\0\x12", false)], b"n", SOON).await;
    assert_eq!(short.unwrap_err().kind(), Kind::Closed);
    let cut = names(
        &[impostor(b"\0\0\x11\x11name a at port 1\nname b at", false)],
        SOON,
    )
    .await;
    assert_eq!(cut.unwrap_err().kind(), Kind::BadReply);
    let endless: &'static [u8] = vec![b'x'; 100_000].leak();
    let long = names(&[impostor(endless, false)], SOON).await;
    assert_eq!(long.unwrap_err().kind(), Kind::BadReply);
}
