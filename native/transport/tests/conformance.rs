//! What every transport must do: the same cases for each.

mod support;

use std::io::Write;
use std::time::{Duration, Instant};

use polydist_proto::frame::Prefix;
use polydist_transport::{Address, Allow, Info, Kind, MAX_HANDSHAKE_FRAME, user_timeout};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{Errno, FdFlags, fcntl_getfd};
use socket2::SockRef;
use support::{Place, Raw, soon, until};

macro_rules! for_every_transport {
    ($($case:ident)*) => { for_every_transport!{@ tcp4 [$($case)*] tcp6 [$($case)*] tls [$($case)*] uds [$($case)*] sctp4 [$($case)*] sctp6 [$($case)*]} };
    (@ $($transport:ident [$($case:ident)*])*) => {
        $(mod $transport {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                if super::support::skipped(stringify!($transport)) {
                    return;
                }
                super::$case(super::support::$transport()).await;
            })*
        })*
    };
}

for_every_transport! {
    frames_pass_both_ways_in_order
    both_ends_know_each_other
    bytes_after_the_last_handshake_frame_survive_detach
    what_was_queued_is_sent_before_detach
    a_detached_socket_is_non_blocking_and_closes_on_exec
    silence_ends_at_the_deadline
    who_says_nothing_is_closed_and_never_handed_over
    a_source_cannot_take_every_place
    half_a_frame_ends_at_the_deadline
    a_length_of_four_gigabytes_ends_the_connection
    a_flood_that_nobody_reads_stays_in_the_kernel
    a_peer_that_closes_is_reported
    frames_queued_before_close_arrive
    close_answers_whoever_waits
    close_gives_up_a_dial_under_way
    a_dropped_connection_closes
    a_frame_too_long_for_its_prefix_is_refused
    nobody_listening_is_econnrefused_or_enoent
    a_second_listener_on_the_same_address_is_refused
    a_closed_listener_leaves_its_address_at_once
    closing_a_listener_ends_what_is_half_made_and_nothing_else
    a_peer_that_is_not_allowed_is_closed_at_once
    a_peer_that_is_allowed_comes_in
    what_tells_peers_apart_must_fit_the_address
    pending_connections_over_the_cap_wait
    counters_count_the_handshake
    a_user_timeout_reaches_both_ends_where_there_is_such_a_thing
}

async fn frames_pass_both_ways_in_order(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    for number in 0..100_u32 {
        dialled.send(&number.to_be_bytes()).unwrap();
        accepted
            .connection
            .send(&(number + 1).to_be_bytes())
            .unwrap();
    }
    dialled.send(b"").unwrap();
    for number in 0..100_u32 {
        assert_eq!(
            soon(accepted.connection.recv()).await.unwrap(),
            number.to_be_bytes()
        );
        assert_eq!(
            soon(dialled.recv()).await.unwrap(),
            (number + 1).to_be_bytes()
        );
    }
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"");
}

async fn both_ends_know_each_other(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let start = Instant::now();
    let (dialled, connected) = place.dial(listener.address());
    dialled.send(b"hello").unwrap();
    let ours: Info = soon(connected).await.unwrap();
    let theirs = soon(incoming.next()).await.unwrap().info;
    for took in [ours.took, theirs.took] {
        assert!(took > Duration::ZERO && took <= start.elapsed(), "{took:?}");
    }
    assert_eq!(ours.transport, place.transport.name());
    assert_eq!(&ours.peer, listener.address());
    assert_eq!(ours.local, theirs.peer);
    assert_eq!(theirs.local, ours.peer);
    assert_eq!(ours.tls, theirs.tls);
    assert_eq!(ours.tls.is_some(), place.transport.name() == "tls");
    if let Some(tls) = ours.tls {
        assert_eq!(tls.version, "tlsv1.3");
        assert!(tls.cipher.starts_with("TLS_"), "{}", tls.cipher);
    }
    let credentials = theirs.credentials.map(|peer| peer.pid);
    let expected = matches!(ours.peer, Address::Local(_)).then(|| std::process::id() as i32);
    assert_eq!(credentials, expected);
}

/// A peer that talks at once after its last handshake frame: all of it must be there afterwards.
async fn bytes_after_the_last_handshake_frame_survive_detach(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut raw = Raw::new(soon(dialled.detach()).await.unwrap());
    let surplus: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
    let mut bytes = Vec::new();
    place
        .transport
        .prefix()
        .encode(b"last", &mut bytes)
        .unwrap();
    bytes.extend(&surplus);
    raw.write_all(&bytes).unwrap();
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"last");
    let mut rest = Raw::new(soon(accepted.connection.detach()).await.unwrap());
    assert_eq!(rest.read_exactly(surplus.len()).unwrap(), surplus);
    rest.write_all(b"answer").unwrap();
    assert_eq!(raw.read_exactly(6).unwrap(), b"answer");
}

async fn what_was_queued_is_sent_before_detach(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let frame = vec![7; MAX_HANDSHAKE_FRAME];
    for _ in 0..300 {
        dialled.send(&frame).unwrap();
    }
    let detached = dialled.detach();
    for _ in 0..300 {
        assert_eq!(soon(accepted.connection.recv()).await.unwrap(), frame);
    }
    let _open = soon(detached).await.unwrap();
    until(|| dialled.is_closed()).await;
    assert!(dialled.send(b"late").is_err());
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
}

async fn a_detached_socket_is_non_blocking_and_closes_on_exec(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    for connection in [&dialled, &accepted.connection] {
        let established = soon(connection.detach()).await.unwrap();
        assert!(
            fcntl_getfl(&established.fd)
                .unwrap()
                .contains(OFlags::NONBLOCK)
        );
        assert!(
            fcntl_getfd(&established.fd)
                .unwrap()
                .contains(FdFlags::CLOEXEC)
        );
        assert_eq!(established.tls.is_some(), place.transport.name() == "tls");
    }
}

async fn silence_ends_at_the_deadline(mut place: Place) {
    place.listen.setup_time = Duration::from_millis(300);
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let error = soon(accepted.connection.recv()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
    until(|| listener.info().pending == 0).await;
    assert_eq!((listener.info().accepted, listener.info().failed), (1, 1));
    assert!(listener.info().last_error.unwrap().contains("in time"));
}

async fn who_says_nothing_is_closed_and_never_handed_over(mut place: Place) {
    place.listen.setup_time = Duration::from_millis(600);
    let (listener, mut incoming) = place.open().unwrap();
    let (socket, kernel) = place.transport.socket(listener.address()).unwrap();
    let start = Instant::now();
    let _ = socket.connect(&kernel);
    until(|| listener.info().pending == 1).await;
    until(|| listener.info().failed == 1).await;
    assert!(start.elapsed() < place.listen.setup_time);
    let info = listener.info();
    assert_eq!((info.accepted, info.pending), (1, 0));
    assert!(info.last_error.unwrap().contains("said nothing"));
    listener.close();
    assert!(soon(incoming.next()).await.is_none());
}

async fn a_source_cannot_take_every_place(mut place: Place) {
    (place.listen.max_pending, place.listen.max_pending_of_source) = (8, 1);
    let (listener, mut incoming) = place.open().unwrap();
    let (first, accepted) = place.pair(&listener, &mut incoming).await;
    let (second, _connected) = place.dial(listener.address());
    second.send(b"hello").unwrap();
    until(|| listener.info().pending == 2).await;
    let early = tokio::time::timeout(Duration::from_millis(50), incoming.next()).await;
    assert!(early.is_err(), "it waits for the first of its source");
    drop((first, accepted));
    let second = soon(incoming.next()).await.unwrap();
    assert_eq!(soon(second.connection.recv()).await.unwrap(), b"hello");
}

async fn half_a_frame_ends_at_the_deadline(mut place: Place) {
    place.listen.setup_time = Duration::from_millis(300);
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut raw = Raw::new(soon(dialled.detach()).await.unwrap());
    raw.write_all(b"\0\0").unwrap();
    if place.transport.prefix() == Prefix::Two {
        assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"");
        raw.write_all(b"\0\x05ab").unwrap();
    }
    let error = soon(accepted.connection.recv()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Timeout);
    assert!(raw.is_at_end());
}

async fn a_length_of_four_gigabytes_ends_the_connection(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut raw = Raw::new(soon(dialled.detach()).await.unwrap());
    raw.write_all(&[0xff; 4]).unwrap();
    let error = soon(accepted.connection.recv()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::BadMessage);
    let announced = match place.transport.prefix() {
        Prefix::Two => "65535 bytes", // two bytes cannot say more
        Prefix::Four => "4294967295 bytes",
    };
    assert!(error.to_string().contains(announced), "{error}");
    assert!(raw.is_at_end());
    until(|| listener.info().failed == 1).await;
}

async fn a_flood_that_nobody_reads_stays_in_the_kernel(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut raw = Raw::new(soon(dialled.detach()).await.unwrap());
    let flood = vec![0; 64 * 1024 * 1024];
    let taken = tokio::task::spawn_blocking(move || raw.push(&flood))
        .await
        .unwrap();
    assert!(taken < 32 * 1024 * 1024, "{taken} bytes were taken");
    assert!(
        accepted
            .connection
            .stats()
            .reads
            .load(std::sync::atomic::Ordering::Relaxed)
            < 5
    );
}

async fn a_peer_that_closes_is_reported(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    dialled.send(b"bye").unwrap();
    drop(dialled);
    assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"bye");
    let error = soon(accepted.connection.recv()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Closed, "{error}");
    until(|| accepted.connection.is_closed()).await;
    assert!(accepted.connection.send(b"x").is_err());
    assert_eq!(soon(accepted.connection.recv()).await.unwrap_err(), error);
}

async fn frames_queued_before_close_arrive(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, connected) = place.dial(listener.address());
    dialled.send(b"early").unwrap();
    soon(connected).await.unwrap();
    let accepted = soon(incoming.next()).await.unwrap();
    accepted.connection.send(b"nok").unwrap();
    accepted.connection.close();
    assert_eq!(soon(dialled.recv()).await.unwrap(), b"nok");
}

async fn close_answers_whoever_waits(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let waiting = dialled.recv();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let start = std::time::Instant::now();
    dialled.close();
    assert_eq!(soon(waiting).await.unwrap_err().kind(), Kind::Closed);
    assert_eq!(
        soon(accepted.connection.recv()).await.unwrap_err().kind(),
        Kind::Closed
    );
    assert!(start.elapsed() < Duration::from_millis(500));
}

/// A listener whose kernel queue is full and that never accepts.
async fn close_gives_up_a_dial_under_way(mut place: Place) {
    if place.transport.name() == "sctp" {
        return; // a full queue refuses
    }
    place.listen.backlog = 1;
    place.dial.timeout = support::SOON * 2;
    let bound = place.transport.bind(&place.address, &place.listen);
    let (_socket, address) = bound.unwrap();
    let dialled: Vec<_> = (0..10).map(|_| place.dial(&address)).collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let start = Instant::now();
    let mut given_up = 0;
    for (connection, connected) in dialled {
        connection.send(b"never sent").unwrap();
        connection.close();
        connection.close();
        // The first ones may have found a place in the queue.
        if let Err(error) = soon(connected).await {
            assert_eq!(error.kind(), Kind::Closed, "{error}");
            assert!(connection.is_closed());
            assert_eq!(connection.send(b"late").unwrap_err(), error);
            given_up += 1;
        }
    }
    assert!(given_up >= 5, "{given_up} dials were under way");
    assert!(start.elapsed() < Duration::from_millis(500));
}

async fn a_dropped_connection_closes(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    drop(accepted);
    assert_eq!(soon(dialled.recv()).await.unwrap_err().kind(), Kind::Closed);
    until(|| listener.info().pending == 0).await;
    assert_eq!(listener.info().failed, 0);
}

async fn a_frame_too_long_for_its_prefix_is_refused(place: Place) {
    if place.transport.prefix() == Prefix::Four {
        return; // that would be 4 GiB
    }
    let (listener, _incoming) = place.open().unwrap();
    let (dialled, _connected) = place.dial(listener.address());
    let error = dialled.send(&vec![0; 0x1_0000]).unwrap_err();
    assert_eq!(error.kind(), Kind::TooLong);
}

async fn nobody_listening_is_econnrefused_or_enoent(place: Place) {
    let (listener, _incoming) = place.open().unwrap();
    let address = listener.address().clone();
    listener.close();
    let error = soon(place.dial(&address).1).await.unwrap_err();
    let expected = match address {
        Address::Ip(_) => Errno::CONNREFUSED,
        _ => Errno::NOENT,
    };
    assert_eq!(error.kind(), Kind::Os(expected), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

async fn a_second_listener_on_the_same_address_is_refused(mut place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    place.address = listener.address().clone();
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRINUSE));
    assert!(
        error.to_string().contains(&place.address.to_string()),
        "{error}"
    );
    // The first one is none the worse, though asking whether it lives may have connected to it.
    let (dialled, connected) = place.dial(&place.address);
    soon(connected).await.unwrap();
    dialled.send(b"hello").unwrap();
    loop {
        let accepted = soon(incoming.next()).await.unwrap();
        if let Ok(frame) = soon(accepted.connection.recv()).await {
            break assert_eq!(frame, b"hello");
        }
    }
}

async fn a_closed_listener_leaves_its_address_at_once(mut place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    place.address = listener.address().clone();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut detached = Raw::new(soon(accepted.connection.detach()).await.unwrap());
    for _ in 0..20 {
        let (again, mut incoming) = {
            listener.close();
            listener.close();
            place.open().unwrap()
        };
        place.pair(&again, &mut incoming).await;
        again.close();
        assert!(soon(incoming.next()).await.is_none());
    }
    let (prefix, mut frame) = (place.transport.prefix(), Vec::new());
    prefix.encode(b"still there", &mut frame).unwrap();
    detached.write_all(&frame).unwrap();
    assert_eq!(soon(dialled.recv()).await.unwrap(), b"still there");
}

async fn pending_connections_over_the_cap_wait(mut place: Place) {
    place.listen.max_pending = 2;
    let (listener, mut incoming) = place.open().unwrap();
    let dialled: Vec<_> = (0..3).map(|_| place.dial(listener.address())).collect();
    for (connection, _) in &dialled {
        connection.send(b"hello").unwrap();
    }
    let first = soon(incoming.next()).await.unwrap();
    let second = soon(incoming.next()).await.unwrap();
    let third = tokio::time::timeout(Duration::from_millis(100), incoming.next()).await;
    assert!(third.is_err());
    assert_eq!((listener.info().accepted, listener.info().pending), (2, 2));
    let _detached = soon(first.connection.detach()).await.unwrap();
    soon(incoming.next()).await.unwrap();
    drop((second, dialled));
}

async fn counters_count_the_handshake(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    dialled.send(b"12345").unwrap();
    soon(accepted.connection.recv()).await.unwrap();
    let load =
        |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    let (out, received) = (dialled.stats(), accepted.connection.stats());
    until(|| load(&out.frames_out) == 2).await;
    assert_eq!((load(&out.bytes_out), load(&out.frames_in)), (10, 0));
    assert_eq!(
        (load(&received.bytes_in), load(&received.frames_in)),
        (10, 2)
    );
    assert!(load(&out.writes) >= 1 && load(&received.reads) >= 1);
    until(|| load(&received.wire_in) == load(&out.wire_out)).await;
    let (wire, framed) = (
        load(&out.wire_out),
        2 * (place.transport.prefix().size() as u64 + 5),
    );
    match place.transport.name() {
        "tls" => assert!(wire > framed, "{wire} bytes with the TLS handshake"),
        _ => assert_eq!((wire, load(&out.wire_in)), (framed, 0)),
    }
    assert_eq!((load(&out.ticks_out), load(&received.ticks_in)), (0, 0));
    let kept = out.clone();
    let established = soon(dialled.detach()).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&kept, &established.stats));
}

async fn a_user_timeout_reaches_both_ends_where_there_is_such_a_thing(mut place: Place) {
    place.dial.socket.user_timeout = Some(30_000);
    place.listen.socket.user_timeout = Some(20_000);
    let (listener, mut incoming) = place.open().unwrap();
    let mut options = place.listen.socket.clone();
    for theirs in [20_000, 10_000] {
        options.user_timeout = Some(theirs);
        listener.set_options(options.clone()).unwrap();
        let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
        for (connection, expected) in [(&dialled, 30_000), (&accepted.connection, theirs)] {
            let established = soon(connection.detach()).await.unwrap();
            let expected = match place.transport.name() {
                "uds" | "sctp" => 0,
                _ => expected,
            };
            let socket = SockRef::from(&established.fd);
            assert_eq!(user_timeout(&socket).unwrap(), expected);
        }
    }
    options.user_timeout = Some(u32::MAX);
    let refused = listener
        .set_options(options)
        .err()
        .map(|error| error.kind());
    let expected =
        (!["uds", "sctp"].contains(&place.transport.name())).then_some(Kind::Os(Errno::INVAL));
    assert_eq!(refused, expected, "the kernel keeps it in an int");
}

async fn closing_a_listener_ends_what_is_half_made_and_nothing_else(place: Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let (ours, theirs) = place.pair(&listener, &mut incoming).await;
    let theirs = soon(theirs.connection.detach()).await.unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let waiting = accepted.connection.recv();
    listener.close();
    assert_eq!(soon(waiting).await.unwrap_err().kind(), Kind::Closed);
    assert!(soon(dialled.recv()).await.is_err());
    until(|| accepted.connection.is_closed()).await;
    assert!(listener.is_closed());
    soon(ours.detach()).await.unwrap();
    drop(theirs);
    until(|| listener.info().pending == 0).await;
}

/// Whom a rule would have to name, and somebody else.
fn us_and_others(place: &Place) -> (Allow, Allow) {
    let nets = |nets: &[&str]| Allow::Nets(nets.iter().map(|net| net.parse().unwrap()).collect());
    match place.address {
        Address::Ip(_) => (
            nets(&["127.0.0.0/8", "::1/128"]),
            nets(&["10.0.0.0/8", "fd00::/8"]),
        ),
        _ => {
            let us = rustix::process::geteuid().as_raw();
            (Allow::Users(vec![us]), Allow::Users(vec![us + 1, us + 2]))
        }
    }
}

async fn a_peer_that_is_not_allowed_is_closed_at_once(mut place: Place) {
    place.listen.allow = us_and_others(&place).1;
    let (listener, mut incoming) = place.open().unwrap();
    for _ in 0..3 {
        let (dialled, connected) = place.dial(listener.address());
        let _ = dialled.send(b"never read");
        let _ = soon(connected).await;
        assert!(soon(dialled.recv()).await.is_err());
    }
    until(|| listener.info().refused == 3).await;
    let info = listener.info();
    assert_eq!((info.accepted, info.failed, info.pending), (0, 0, 0));
    let sentence = info.last_error.unwrap();
    assert!(
        sentence.contains("refused") && sentence.contains("it allows"),
        "{sentence}"
    );
    listener.close();
    assert!(soon(incoming.next()).await.is_none());
}

async fn a_peer_that_is_allowed_comes_in(mut place: Place) {
    place.listen.allow = us_and_others(&place).0;
    let (listener, mut incoming) = place.open().unwrap();
    place.pair(&listener, &mut incoming).await;
    assert_eq!(listener.info().refused, 0);
}

async fn what_tells_peers_apart_must_fit_the_address(mut place: Place) {
    place.listen.allow = match us_and_others(&place).0 {
        Allow::Nets(_) => Allow::Users(vec![0]),
        _ => Allow::Nets(Vec::new()),
    };
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), Kind::BadOption, "{error}");
}
