//! TLS in the kernel against TLS of ours: what one seals the other opens, and each follows when the
//! other renews its key. Where the kernel has no TLS it is seen that the session does without.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use polydist_channel::{Channel, Closed, Handshake, Progress, Session, Stats, Tls, Unfit};
use rustls::AlertDescription;
use rustls::crypto::aws_lc_rs::cipher_suite as suites;
use support::{Frames, TestChannel, VERSIONS, handshakes, handshakes_with, send};

/// Both ends of a TCP connection.
fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

/// Completes a handshake over a socket, reading no more than belongs to it.
fn complete(mut end: Handshake, socket: &mut TcpStream) -> Handshake {
    let mut received = Vec::new();
    loop {
        let mut outgoing = Vec::new();
        let progress = end.advance(&received, &mut outgoing).unwrap();
        socket.write_all(&outgoing).unwrap();
        if progress == Progress::Done {
            return end;
        }
        received.resize(end.wants(), 0);
        let len = socket.read(&mut received).unwrap();
        received.truncate(len);
    }
}

fn completed(ends: (Handshake, Handshake)) -> ((Handshake, TcpStream), (Handshake, TcpStream)) {
    let (mut near, mut far) = connection();
    let (client, server) = ends;
    let server = std::thread::spawn(move || (complete(server, &mut far), far));
    let client = complete(client, &mut near);
    ((client, near), server.join().unwrap())
}

fn channel(tls: Tls, socket: TcpStream) -> TestChannel {
    socket.set_nonblocking(true).unwrap();
    Channel::new(
        OwnedFd::from(socket),
        Some(tls),
        &[],
        Arc::new(Stats::default()),
    )
}

fn ours((end, socket): (Handshake, TcpStream)) -> TestChannel {
    channel(Tls::Session(Box::new(end.finish().unwrap())), socket)
}

/// `None`, and a word, where the kernel cannot.
fn kernels((end, socket): (Handshake, TcpStream)) -> Option<TestChannel> {
    match end.finish_in_kernel(socket.as_fd()).unwrap() {
        (tls @ Tls::Kernel(_), None) => Some(channel(tls, socket)),
        (Tls::Session(_), Some(Unfit::Kernel)) => {
            println!("skipped: the kernel has no TLS");
            None
        }
        other => panic!("{other:?}"),
    }
}

/// One end of ours and one of the kernel's, whichever dialled.
fn ends(dialled: bool) -> Option<(TestChannel, TestChannel)> {
    let (client, server) = completed(handshakes(VERSIONS[1]));
    match dialled {
        true => Some((ours(client), kernels(server)?)),
        false => Some((ours(server), kernels(client)?)),
    }
}

/// Sends messages of many sizes and waits until all are there.
fn exchange(from: &mut TestChannel, to: &mut TestChannel) {
    let sizes = [1, 20, 1000, 16_384, 16_385, 70_000, 300_000];
    let messages: Vec<Bytes> = (0..30_u8)
        .map(|n| Bytes::from(vec![n; sizes[usize::from(n) % sizes.len()]]))
        .collect();
    for message in &messages {
        send(from, std::slice::from_ref(message)).unwrap();
    }
    let mut frames = Frames::default();
    let end = Instant::now() + Duration::from_secs(30);
    while frames.0.len() < messages.len() {
        from.flush().unwrap();
        to.receive(&mut frames).unwrap();
        assert!(Instant::now() < end, "{} frames", frames.0.len());
    }
    assert!(frames.0 == messages, "the frames differ from the messages");
}

/// Receives until the channel ends.
fn end_of(channel: &mut TestChannel, frames: &mut Frames) -> Closed {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match channel.receive(frames) {
            Ok(_) => assert!(Instant::now() < end, "it does not end"),
            Err(closed) => return closed,
        }
    }
}

#[test]
fn what_either_seals_the_other_opens() {
    for dialled in [true, false] {
        let Some((mut ours, mut kernels)) = ends(dialled) else {
            return;
        };
        for _ in 0..3 {
            exchange(&mut ours, &mut kernels);
            exchange(&mut kernels, &mut ours);
        }
        let (sealed, opened) = (kernels.stats(), ours.stats());
        assert!(opened.wire_in.load(Relaxed) > sealed.wire_out.load(Relaxed));
    }
}

#[test]
fn all_ciphers_of_tls13_are_taken() {
    for suite in [
        suites::TLS13_AES_128_GCM_SHA256,
        suites::TLS13_AES_256_GCM_SHA384,
        suites::TLS13_CHACHA20_POLY1305_SHA256,
    ] {
        let (client, server) = completed(handshakes_with(VERSIONS[1], &[suite]));
        let mut ours = ours(client);
        let Some(mut kernels) = kernels(server) else {
            return;
        };
        exchange(&mut ours, &mut kernels);
        exchange(&mut kernels, &mut ours);
    }
}

#[test]
fn keys_are_renewed_in_both_directions() {
    let Some((mut ours, mut kernels)) = ends(true) else {
        return;
    };
    for _ in 0..3 {
        ours.renew_key().unwrap();
        exchange(&mut ours, &mut kernels);
        exchange(&mut kernels, &mut ours);
        kernels.renew_key().unwrap();
        exchange(&mut ours, &mut kernels);
        exchange(&mut kernels, &mut ours);
    }
}

#[test]
fn goodbye_comes_after_what_was_sent_before_it_either_way() {
    for dialled in [true, false] {
        let Some((from, to)) = ends(dialled) else {
            return;
        };
        for (mut from, mut to) in [(from, to), ends(dialled).map(|(a, b)| (b, a)).unwrap()] {
            send(&mut from, &[Bytes::from_static(b"last words")]).unwrap();
            // Not the end of the connection is what says it: that stays open.
            let _open = from.close();
            let mut frames = Frames::default();
            let closed = end_of(&mut to, &mut frames);
            assert!(matches!(closed, Closed::ByPeer), "{closed}");
            assert_eq!(frames.0, [Bytes::from_static(b"last words")]);
        }
    }
}

#[test]
fn bytes_that_are_no_record_end_the_channel_and_the_peer_is_told() {
    let (client, server) = completed(handshakes(VERSIONS[1]));
    let Some(mut kernels) = kernels(server) else {
        return;
    };
    let (client, mut socket) = client;
    let limit = Some(Duration::from_secs(10));
    socket.set_read_timeout(limit).unwrap();
    let mut session: Session = client.finish().unwrap();
    session.seal(&[b"\0\0\0\x02hi"]).unwrap();
    let mut record = session.take_sealed();
    *record.last_mut().unwrap() ^= 1;
    socket.write_all(&record).unwrap();
    let closed = end_of(&mut kernels, &mut Frames::default());
    assert!(matches!(closed, Closed::Tls(_)), "{closed}");
    let told = loop {
        let mut answer = [0; 100];
        let len = socket.read(&mut answer).unwrap();
        assert!(len > 0);
        if let Err(told) = session.open::<rustls::Error>(&answer[..len], |_| Ok(())) {
            break told;
        }
    };
    let alert = rustls::Error::AlertReceived(AlertDescription::BadRecordMac);
    assert_eq!(told, alert);
}

#[test]
fn tls12_stays_outside_the_kernel() {
    let ((client, near), server) = completed(handshakes(VERSIONS[0]));
    let (tls, unfit) = client.finish_in_kernel(near.as_fd()).unwrap();
    assert_eq!(unfit, Some(Unfit::Version));
    let (mut client, mut server) = (channel(tls, near), ours(server));
    exchange(&mut client, &mut server);
    exchange(&mut server, &mut client);
}

#[test]
fn a_kernel_without_tls_leaves_the_session_to_us() {
    let ((client, near), server) = completed(handshakes(VERSIONS[1]));
    let (tls, unfit) = client.finish_in_kernel(near.as_fd()).unwrap();
    match (&tls, unfit) {
        (Tls::Session(_), Some(Unfit::Kernel)) | (Tls::Kernel(_), None) => {}
        other => panic!("{other:?}"),
    }
    let (mut client, mut server) = (channel(tls, near), ours(server));
    exchange(&mut client, &mut server);
    exchange(&mut server, &mut client);
}
