//! Transports whose sockets are made elsewhere: what is fed is accepted, what is handed in is dialled.

mod support;

use std::fs::File;
use std::io::pipe;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

use polydist_transport::{
    Accepted, Address, Allow, Connection, DialOptions, Errno, Error, Incoming, Kind, ListenOptions,
    Listener, SocketOpts, Transport, adopt, dial, outside, set_nodelay, set_tos, set_unsent,
    set_user_timeout, user_timeout,
};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use support::{soon, until};

fn carrier() -> &'static dyn Transport {
    outside("carrier").unwrap()
}

fn open(options: ListenOptions) -> (Listener, Incoming) {
    Listener::fed(carrier(), here(), options).unwrap()
}

fn here() -> Address {
    Address::Opaque(b"here".to_vec())
}

fn there() -> Address {
    Address::Opaque(b"\x00there\xff".to_vec())
}

fn ends() -> (Socket, Socket) {
    Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap()
}

/// A connection over TCP, or over what is TCP to its user.
fn tcp_ends(protocol: Protocol) -> (Socket, Socket) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
    listener
        .bind(&std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .unwrap();
    listener.listen(1).unwrap();
    let ours = Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
    ours.connect(&listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

fn dialled(socket: &impl AsFd) -> Result<Connection, Error> {
    let adopted = adopt(carrier(), socket.as_fd(), there(), &SocketOpts::default());
    adopted.map(|(connection, _)| connection)
}

/// Both ends of a new connection, over sockets that are closed outside when it has begun.
async fn pair(listener: &Listener, incoming: &mut Incoming) -> (Connection, Accepted) {
    let (ours, theirs) = ends();
    let taken = listener.feed(theirs.as_fd(), there()).unwrap();
    let connection = dialled(&ours).unwrap();
    connection.send(b"hello").unwrap();
    drop((ours, theirs));
    soon(taken).await.unwrap();
    let accepted = soon(incoming.next()).await.unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"hello");
    (connection, accepted)
}

#[tokio::test]
async fn what_is_fed_is_accepted_and_frames_pass_both_ways() {
    let (listener, mut incoming) = open(ListenOptions::default());
    assert_eq!(listener.address(), &here());
    let (dialled, accepted) = pair(&listener, &mut incoming).await;
    for number in 0..100_u32 {
        dialled.send(&number.to_be_bytes()).unwrap();
        accepted.connection.send(b"answer").unwrap();
    }
    for number in 0..100_u32 {
        let frame = soon(accepted.connection.recv()).await.unwrap();
        assert_eq!(frame, number.to_be_bytes());
        assert_eq!(soon(dialled.recv()).await.unwrap(), b"answer");
    }
    let info = listener.info();
    assert_eq!((info.accepted, info.failed, info.pending), (1, 0, 1));
    drop(accepted);
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
    until(|| listener.info().pending == 0).await;
}

#[tokio::test]
async fn both_ends_know_what_there_is_to_know() {
    let (listener, mut incoming) = open(ListenOptions::default());
    let (ours, theirs) = ends();
    let taken = listener.feed(theirs.as_fd(), there()).unwrap();
    let (connection, connected) =
        adopt(carrier(), ours.as_fd(), here(), &SocketOpts::default()).unwrap();
    connection.send(b"hello").unwrap();
    soon(taken).await.unwrap();
    let accepted = soon(incoming.next()).await.unwrap();
    for (info, peer) in [
        (soon(connected).await.unwrap(), here()),
        (accepted.info, there()),
    ] {
        assert_eq!((info.transport, info.peer), ("carrier", peer));
        assert_eq!(info.local, Address::Local(Vec::new()));
        assert_eq!(info.tls, None);
        let pid = info.credentials.map(|credentials| credentials.pid);
        assert_eq!(pid, Some(std::process::id() as i32));
    }
    assert_eq!(there().to_string(), "0x007468657265ff");
}

#[tokio::test]
async fn what_is_detached_is_non_blocking_and_closes_on_exec() {
    let (listener, mut incoming) = open(ListenOptions::default());
    let (dialled, accepted) = pair(&listener, &mut incoming).await;
    for connection in [&dialled, &accepted.connection] {
        let established = soon(connection.detach()).await.unwrap();
        let flags = fcntl_getfl(&established.fd).unwrap();
        assert!(flags.contains(OFlags::NONBLOCK));
        let flags = fcntl_getfd(&established.fd).unwrap();
        assert!(flags.contains(FdFlags::CLOEXEC));
        assert_eq!(established.prefix, carrier().prefix());
    }
}

#[tokio::test]
async fn what_is_fed_beyond_the_cap_waits() {
    let (listener, mut incoming) = open(ListenOptions {
        max_pending: 2,
        backlog: 2,
        ..ListenOptions::default()
    });
    let first = pair(&listener, &mut incoming).await;
    let _second = pair(&listener, &mut incoming).await;
    let (ours, theirs) = ends();
    let mut waiting = Box::pin(listener.feed(theirs.as_fd(), there()).unwrap());
    let waited = tokio::time::timeout(Duration::from_millis(100), &mut waiting).await;
    assert!(waited.is_err());
    assert_eq!((listener.info().accepted, listener.info().pending), (2, 2));
    let next = listener.feed(theirs.as_fd(), there()).unwrap();
    let greeting = dialled(&ours).unwrap();
    greeting.send(b"hello").unwrap();
    let error = listener.feed(theirs.as_fd(), there()).err().unwrap();
    assert_eq!(error.kind(), Kind::Os(Errno::AGAIN), "{error}");
    let _detached = soon(first.1.connection.detach()).await.unwrap();
    soon(waiting).await.unwrap();
    soon(incoming.next()).await.unwrap();
    drop(first);
    soon(next).await.unwrap();
    drop((ours, theirs));
}

#[tokio::test]
async fn closing_ends_what_waits_and_what_is_half_made() {
    let (listener, mut incoming) = open(ListenOptions {
        max_pending: 1,
        ..ListenOptions::default()
    });
    let (dialled, _accepted) = pair(&listener, &mut incoming).await;
    let (ours, theirs) = ends();
    let waiting = listener.feed(theirs.as_fd(), there()).unwrap();
    drop(theirs);
    listener.close();
    listener.close();
    assert_eq!(soon(waiting).await.unwrap_err().kind(), Kind::Closed);
    let mut end = [0];
    ours.set_nonblocking(false).unwrap();
    assert_eq!(std::io::Read::read(&mut &ours, &mut end).unwrap(), 0);
    assert!(soon(dialled.recv()).await.is_err());
    assert!(soon(incoming.next()).await.is_none());
    let error = listener.feed(ours.as_fd(), there()).err().unwrap();
    assert_eq!(error.kind(), Kind::Closed, "{error}");
    assert!(listener.set_options(SocketOpts::default()).is_err());
}

#[tokio::test]
async fn a_dropped_listener_is_closed() {
    let (listener, _incoming) = open(ListenOptions {
        max_pending: 1,
        ..ListenOptions::default()
    });
    let fed: Vec<_> = (0..3).map(|_| ends()).collect();
    let waiting: Vec<_> = fed
        .iter()
        .map(|(_, theirs)| listener.feed(theirs.as_fd(), there()).unwrap())
        .collect();
    drop(listener);
    for waiting in waiting {
        assert_eq!(soon(waiting).await.unwrap_err().kind(), Kind::Closed);
    }
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let (listener, mut incoming) = open(ListenOptions {
        setup_time: Duration::from_millis(200),
        ..ListenOptions::default()
    });
    let (dialled, accepted) = pair(&listener, &mut incoming).await;
    let error = soon(accepted.connection.recv()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
    until(|| listener.info().failed == 1).await;
    assert!(listener.info().last_error.unwrap().contains("in time"));
}

#[tokio::test]
async fn what_is_no_connected_stream_socket_is_refused_at_once() {
    let (listener, _incoming) = open(ListenOptions::default());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.connect("127.0.0.1:9").unwrap();
    let (packets, _other) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
    let (reader, _writer) = pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let file = File::open(file!().rsplit_once("native/transport/").unwrap().1).unwrap();
    let folder = File::open("tests").unwrap();
    let single = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let listening = TcpListener::bind("127.0.0.1:0").unwrap();
    let no_stream = Kind::NotAStream;
    let unconnected = Kind::Os(Errno::NOTCONN);
    for (fd, kind, what) in [
        (udp.as_fd(), no_stream, "a datagram socket"),
        (packets.as_fd(), no_stream, "packets"),
        (reader.as_fd(), no_stream, "a pipe"),
        (null.as_fd(), no_stream, "a device"),
        (file.as_fd(), no_stream, "a file"),
        (folder.as_fd(), no_stream, "a directory"),
        (single.as_fd(), unconnected, "not connected"),
        (listening.as_fd(), unconnected, "not connected"),
    ] {
        for error in [
            listener.feed(fd, there()).err().unwrap(),
            dialled(&fd).unwrap_err(),
        ] {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    }
    assert_eq!(listener.info().accepted, 0);
}

#[tokio::test]
async fn only_a_fed_listener_is_fed() {
    let place = support::tcp4();
    let (listener, _incoming) = place.open().unwrap();
    let (_ours, theirs) = ends();
    let error = listener.feed(theirs.as_fd(), there()).err().unwrap();
    assert_eq!(error.kind(), Kind::BadOption, "{error}");
}

#[tokio::test]
async fn a_transport_from_outside_makes_no_sockets() {
    let opened = Listener::open(carrier(), &here(), ListenOptions::default());
    let error = opened.err().unwrap();
    assert_eq!(error.kind(), Kind::BadOption, "{error}");
    let error = dial(carrier(), there(), DialOptions::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::BadOption, "{error}");
}

/// Such peers cannot be told apart, so a rule about them must not be taken for one that holds.
#[tokio::test]
async fn nobody_can_be_kept_out_by_a_rule() {
    for allow in [Allow::Nets(Vec::new()), Allow::Users(vec![0])] {
        let options = ListenOptions {
            allow,
            ..ListenOptions::default()
        };
        let error = Listener::fed(carrier(), here(), options).err().unwrap();
        assert_eq!(error.kind(), Kind::BadOption, "{error}");
    }
}

fn every_option() -> SocketOpts {
    SocketOpts {
        nodelay: Some(true),
        keepalive: Some(true),
        sndbuf: Some(20_000),
        recbuf: Some(20_000),
        priority: Some(2),
        tos: Some(0x10),
        user_timeout: Some(30_000),
        ..SocketOpts::default()
    }
}

#[tokio::test]
async fn tcp_has_its_options_and_others_ignore_them() {
    let (listener, mut incoming) = open(ListenOptions::default());
    listener.set_options(every_option()).unwrap();
    let mut ends = vec![("unix", ends()), ("tcp", tcp_ends(Protocol::TCP))];
    if Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).is_ok() {
        ends.push(("mptcp", tcp_ends(Protocol::MPTCP)));
    }
    for (kind, (ours, theirs)) in ends {
        let adopted = adopt(carrier(), ours.as_fd(), there(), &every_option());
        adopted.as_ref().unwrap().0.send(b"hello").unwrap();
        let taken = listener.feed(theirs.as_fd(), there()).unwrap();
        soon(taken).await.unwrap();
        let accepted = soon(incoming.next()).await.unwrap();
        for connection in [&adopted.unwrap().0, &accepted.connection] {
            let fd = soon(connection.detach()).await.unwrap().fd;
            let socket = SockRef::from(&fd);
            assert!(socket.keepalive().unwrap(), "{kind}");
            assert_eq!(socket.send_buffer_size().unwrap(), 40_000, "{kind}");
            assert_eq!(socket.tcp_nodelay().ok(), (kind != "unix").then_some(true));
            assert_eq!(socket.tos_v4().ok(), (kind != "unix").then_some(0x10));
            let time = user_timeout(&socket).unwrap();
            match kind {
                "tcp" => assert_eq!(time, 30_000),
                "unix" => assert_eq!(time, 0),
                _ => {} // some kernels have it for MPTCP
            }
        }
    }
    assert_eq!(listener.info().last_error, None);
}

/// Also the options of established connections, which the driver sets.
#[test]
fn no_option_fails_on_a_socket_that_does_not_have_it() {
    for domain in [Domain::UNIX, Domain::VSOCK] {
        let Ok(socket) = Socket::new(domain, Type::STREAM, None) else {
            continue; // this kernel does not have the family
        };
        carrier().tune(&socket, &every_option()).unwrap();
        assert!(socket.keepalive().unwrap());
        set_nodelay(&socket, true).unwrap();
        set_tos(&socket, 0x10).unwrap();
        set_unsent(&socket, 4096).unwrap();
        set_user_timeout(&socket, 30_000).unwrap();
        assert_eq!(user_timeout(&socket).unwrap(), 0);
    }
}

#[tokio::test]
async fn no_delay_is_the_default_over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let _theirs = listener.accept().unwrap();
    let connection = dialled(&ours).unwrap();
    let fd = soon(connection.detach()).await.unwrap().fd;
    assert!(SockRef::from(&fd).tcp_nodelay().unwrap());
}

/// One test, since names are never forgotten; the others of this file need one and the same.
#[test]
fn names_are_kept_and_bounded() {
    let name = |number: usize| format!("carrier{number}");
    for bad in ["", "tcp", "tls", &"x".repeat(256)] {
        let error = outside(bad).unwrap_err();
        assert_eq!(error.kind(), Kind::BadOption, "{error}");
    }
    outside("carrier").unwrap();
    let longest = "x".repeat(255);
    assert_eq!(outside(&longest).unwrap().name(), longest);
    for number in 2..64 {
        assert_eq!(outside(&name(number)).unwrap().name(), name(number));
    }
    let error = outside(&name(64)).unwrap_err();
    assert_eq!(error.kind(), Kind::BadOption);
    assert!(error.to_string().contains("64 transports"), "{error}");
    let again = outside(&name(63)).unwrap();
    assert!(std::ptr::eq(
        again.name(),
        outside(&name(63)).unwrap().name()
    ));
    outside("carrier").unwrap();
}
