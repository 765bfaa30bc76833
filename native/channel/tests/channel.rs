//! What a channel promises, over real sockets: every frame arrives, once, whole and in order, plain
//! and by TLS.

mod support;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use polydist_channel::{Channel, Closed, MAX_FRAME, Stats, Tls};
use proptest::prelude::*;
use support::{Frames, TestChannel, send, sessions};

fn channel(stream: UnixStream, tls: Option<Tls>, surplus: &[u8]) -> TestChannel {
    stream.set_nonblocking(true).unwrap();
    Channel::new(
        OwnedFd::from(stream),
        tls,
        surplus,
        Arc::new(Stats::default()),
    )
}

#[derive(Clone, Copy, Debug)]
enum Wire {
    Plain,
    Tls12,
    Tls13,
}

/// Two ends of one connection.
fn pair(wire: Wire) -> (TestChannel, TestChannel) {
    let (left, right) = UnixStream::pair().unwrap();
    let version = match wire {
        Wire::Plain => return (channel(left, None, &[]), channel(right, None, &[])),
        Wire::Tls12 => &rustls::version::TLS12,
        Wire::Tls13 => &rustls::version::TLS13,
    };
    let (client, server) = sessions(version);
    (
        channel(left, Some(Tls::Session(client)), &[]),
        channel(right, Some(Tls::Session(server)), &[]),
    )
}

/// Moves bytes until nothing waits on the sender's side and the receiver has `count` frames.
fn pump(from: &mut TestChannel, to: &mut TestChannel, frames: &mut Frames, count: usize) {
    for _ in 0..1_000_000 {
        if from.pending() > 0 {
            from.flush().unwrap();
        }
        to.receive(frames).unwrap();
        if from.pending() == 0 && frames.0.len() >= count {
            return;
        }
    }
    panic!(
        "{} of {count} frames, {} bytes pending",
        frames.0.len(),
        from.pending()
    );
}

fn joined(message: &[Bytes]) -> Bytes {
    message
        .iter()
        .fold(BytesMut::new(), |mut all, part| {
            all.extend_from_slice(part);
            all
        })
        .freeze()
}

fn wire() -> impl Strategy<Value = Wire> {
    prop_oneof![Just(Wire::Plain), Just(Wire::Tls12), Just(Wire::Tls13)]
}

/// A message as the VM hands it over: a few buffers, small ones mostly, now and then a big one.
fn message() -> impl Strategy<Value = Vec<Bytes>> {
    let part = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 1..200),
        2 => (any::<u8>(), 1000_usize..70_000).prop_map(|(byte, len)| vec![byte; len]),
        1 => (any::<u8>(), 200_000_usize..600_000).prop_map(|(byte, len)| vec![byte; len]),
    ];
    prop::collection::vec(part.prop_map(Bytes::from), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_message_arrives_once_whole_and_in_order(
        wire in wire(),
        messages in prop::collection::vec((message(), any::<bool>()), 1..40),
    ) {
        let (mut from, mut to) = pair(wire);
        let mut frames = Frames::default();
        for (message, receive) in &messages {
            send(&mut from, message).unwrap();
            if *receive {
                if from.pending() > 0 {
                    from.flush().unwrap();
                }
                to.receive(&mut frames).unwrap();
            }
        }
        pump(&mut from, &mut to, &mut frames, messages.len());
        let sent: Vec<Bytes> = messages.iter().map(|(message, _)| joined(message)).collect();
        prop_assert!(frames.0 == sent, "the frames differ from the messages");
        let (out, received) = (from.stats(), to.stats());
        prop_assert_eq!(out.bytes_out.load(Relaxed), received.bytes_in.load(Relaxed));
        let on_the_wire = out.wire_out.load(Relaxed);
        prop_assert_eq!(on_the_wire, received.wire_in.load(Relaxed));
        let framed = out.bytes_out.load(Relaxed) + 4 * out.frames_out.load(Relaxed);
        match wire {
            Wire::Plain => prop_assert_eq!(on_the_wire, framed),
            Wire::Tls12 | Wire::Tls13 => prop_assert!(on_the_wire > framed),
        }
        prop_assert_eq!(out.queued.load(Relaxed), 0);
        prop_assert!(out.queued_max.load(Relaxed) <= framed);
    }

    /// However the bytes are cut on their way, the frames are the same: by the peer's writes, ...
    #[test]
    fn frames_do_not_depend_on_how_the_bytes_come(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..20),
        cuts in prop::collection::vec(1_usize..200, 1..60),
        surplus in 0_usize..500,
    ) {
        let mut bytes = Vec::new();
        for message in &messages {
            bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(message);
        }
        // ... and by what was read with the handshake.
        let (early, mut late) = bytes.split_at(surplus.min(bytes.len()));
        let (mut peer, ours) = UnixStream::pair().unwrap();
        let mut to = channel(ours, None, early);
        let mut frames = Frames::default();
        to.deliver_surplus(&mut frames).unwrap();
        for cut in cuts.iter().cycle() {
            if late.is_empty() {
                break;
            }
            let (now, rest) = late.split_at((*cut).min(late.len()));
            peer.write_all(now).unwrap();
            to.receive(&mut frames).unwrap();
            late = rest;
        }
        let expected: Vec<Bytes> =
            messages.iter().filter(|message| !message.is_empty()).cloned().map(Bytes::from).collect();
        prop_assert_eq!(frames.0, expected);
        let counted = to.stats().frames_in.load(Relaxed);
        prop_assert_eq!(counted, messages.len() as u64, "ticks are counted");
        let ticks = messages.iter().filter(|message| message.is_empty()).count();
        prop_assert_eq!(to.stats().ticks_in.load(Relaxed), ticks as u64, "and counted apart");
        // The surplus was read, and counted, by the handshake.
        let read = bytes.len() - surplus.min(bytes.len());
        prop_assert_eq!(to.stats().wire_in.load(Relaxed), read as u64);
    }
}

#[test]
fn a_quiet_connection_is_written_to_at_once() {
    let (mut from, mut to) = pair(Wire::Plain);
    std::thread::sleep(std::time::Duration::from_millis(1)); // quiet: longer than a burst's gap
    send(&mut from, &[Bytes::from_static(b"hello")]).unwrap();
    assert_eq!(from.pending(), 0);
    let mut frames = Frames::default();
    assert_eq!(to.receive(&mut frames).unwrap(), 9);
    assert_eq!(frames.0, [Bytes::from_static(b"hello")]);
}

#[test]
fn a_burst_is_written_together() {
    let (mut from, mut to) = pair(Wire::Plain);
    for _ in 0..1000 {
        send(&mut from, &[Bytes::from_static(b"hello")]).unwrap();
    }
    let mut frames = Frames::default();
    pump(&mut from, &mut to, &mut frames, 1000);
    let writes = from.stats().writes.load(Relaxed);
    assert!(writes < 100, "{writes} writes for 1000 messages");
}

#[test]
fn a_message_of_very_many_buffers_arrives() {
    for wire in [Wire::Plain, Wire::Tls13] {
        let (mut from, mut to) = pair(wire);
        let message: Vec<Bytes> = (0..5000_u32)
            .map(|n| Bytes::from(n.to_be_bytes().to_vec()))
            .collect();
        send(&mut from, &message).unwrap();
        let mut frames = Frames::default();
        pump(&mut from, &mut to, &mut frames, 1);
        assert_eq!(frames.0, [joined(&message)]);
    }
}

#[test]
fn the_last_frame_of_the_handshake_goes_before_every_message() {
    let (mut from, right) = pair(Wire::Plain);
    from.queue_handshake(b"\x00\x01a");
    send(&mut from, &[Bytes::from_static(b"hi")]).unwrap();
    assert_eq!(
        from.stats().writes.load(Relaxed),
        0,
        "nothing goes before a flush"
    );
    from.flush().unwrap();
    let mut bytes = [0; 9];
    UnixStream::from(right.close())
        .read_exact(&mut bytes)
        .unwrap();
    assert_eq!(&bytes, b"\x00\x01a\x00\x00\x00\x02hi");
}

#[test]
fn a_tick_is_an_empty_frame_and_is_left_out_while_output_waits() {
    let (mut from, right) = pair(Wire::Plain);
    from.tick().unwrap();
    let mut right = UnixStream::from(right.close());
    let mut bytes = [0xff; 4];
    right.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, [0; 4]);
    assert_eq!(from.stats().ticks_out.load(Relaxed), 1);
    assert_eq!(from.stats().wire_out.load(Relaxed), 4);
    while from.pending() == 0 {
        send(&mut from, &[Bytes::from(vec![1; 60_000])]).unwrap();
    }
    let (pending, frames) = (from.pending(), from.stats().frames_out.load(Relaxed));
    from.tick().unwrap();
    assert_eq!(from.pending(), pending);
    assert_eq!(from.stats().frames_out.load(Relaxed), frames);
    assert_eq!(from.stats().ticks_out.load(Relaxed), 1);
}

#[test]
fn what_waited_longest_is_remembered_when_it_is_gone() {
    for wire in [Wire::Plain, Wire::Tls13] {
        let (mut from, mut to) = pair(wire);
        for _ in 0..20 {
            send(&mut from, &[Bytes::from(vec![1; 60_000])]).unwrap();
        }
        let waited = from.pending() as u64;
        assert!(waited > 500_000, "{wire:?}: {waited}");
        assert_eq!(from.stats().queued.load(Relaxed), waited);
        pump(&mut from, &mut to, &mut Frames::default(), 20);
        assert_eq!(from.stats().queued.load(Relaxed), 0);
        assert_eq!(from.stats().queued_max.load(Relaxed), waited, "{wire:?}");
    }
}

#[test]
fn nobody_is_held_back_by_a_channel_that_has_ended() {
    for end in [TestChannel::close, TestChannel::abandon] {
        let (left, _right) = UnixStream::pair().unwrap();
        left.set_nonblocking(true).unwrap();
        let stats = Arc::new(Stats::default());
        let channel = TestChannel::new(OwnedFd::from(left), None, &[], stats.clone());
        channel.stats().set_busy(true);
        std::thread::sleep(std::time::Duration::from_millis(2));
        end(channel);
        let time = stats.busy_time();
        assert!(time >= std::time::Duration::from_millis(2));
        std::thread::sleep(std::time::Duration::from_millis(2));
        assert_eq!(stats.busy_time(), time);
        assert_eq!(stats.busy_count.load(Relaxed), 1);
    }
}

#[test]
fn a_peer_that_does_not_read_costs_only_what_was_sent_to_it() {
    for wire in [Wire::Plain, Wire::Tls13] {
        let (mut from, _to) = pair(wire);
        for _ in 0..100 {
            send(&mut from, &[Bytes::from(vec![1; 60_000])]).unwrap();
            from.flush().unwrap();
        }
        assert!(
            from.pending() > 5_000_000,
            "{wire:?}: all but a socket's buffer waits: {}",
            from.pending()
        );
    }
}

#[test]
fn the_end_of_the_stream_comes_after_what_was_sent_before_it() {
    for wire in [Wire::Plain, Wire::Tls12, Wire::Tls13] {
        let (mut from, mut to) = pair(wire);
        for _ in 0..3 {
            send(&mut from, &[Bytes::from_static(b"last words")]).unwrap();
        }
        drop(from.close());
        let mut frames = Frames::default();
        let closed = loop {
            match to.receive(&mut frames) {
                Ok(_) => {}
                Err(closed) => break closed,
            }
        };
        assert!(matches!(closed, Closed::ByPeer), "{wire:?}: {closed}");
        assert_eq!(frames.0.len(), 3, "{wire:?}");
    }
}

#[test]
fn an_impossible_length_ends_the_channel_and_costs_no_memory() {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let mut to = channel(ours, None, &[]);
    peer.write_all(&[0xff; 8]).unwrap();
    let closed = to.receive(&mut Frames::default()).unwrap_err();
    assert!(
        matches!(closed, Closed::TooLong { len: 0xffff_ffff }),
        "{closed}"
    );
}

#[test]
fn a_long_frame_gets_memory_as_it_arrives() {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let mut to = channel(ours, None, &[]);
    peer.write_all(&u32::try_from(MAX_FRAME).unwrap().to_be_bytes())
        .unwrap();
    // Were all of it taken at once, this would be 2 GiB of reserved memory; the buffer is made by
    // its own `Memory`, so look at the process instead.
    let before = reserved();
    to.receive(&mut Frames::default()).unwrap();
    assert!(reserved() - before < 64 * 1024 * 1024);
}

/// The address space of this process, in bytes.
fn reserved() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').next().unwrap().parse::<i64>().unwrap() * 4096
}

#[test]
fn bytes_that_are_not_tls_end_the_channel() {
    let (from, mut to) = pair(Wire::Tls13);
    let mut raw = UnixStream::from(from.close());
    let mut frames = Frames::default();
    raw.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    // close() has said goodbye; what follows it is not even looked at.
    assert!(to.receive(&mut frames).is_err());
    let (from, mut to) = pair(Wire::Tls12);
    let raw = from.fd().try_clone_to_owned().unwrap();
    rustix::io::write(&raw, b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert!(matches!(to.receive(&mut frames), Err(Closed::Tls(_))));
    drop(from);
}
