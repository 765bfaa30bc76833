//! What only SCTP has: several addresses an end, and how soon a path is given up. Without SCTP in the
//! kernel the tests say that they are skipped; all but the first.

mod support;

use std::io::Write;
use std::net::IpAddr;
use std::time::Duration;

use polydist_transport::{Address, Addresses, Kind, SctpOpts, dial};
use rustix::io::Errno;
use socket2::SockRef;
use support::{Place, Raw, sctp4, sctp6, skipped, soon, until};

#[tokio::test]
async fn a_kernel_without_sctp_says_so_in_a_sentence() {
    let place = sctp4();
    let Some(error) = place.open_error() else {
        println!("skipped: the kernel has SCTP");
        return;
    };
    for error in [
        error,
        place.open().unwrap_err(),
        dial(place.transport, place.address.clone(), place.dial.clone()).unwrap_err(),
    ] {
        let sentence = error.to_string();
        assert!(sentence.contains("has no SCTP"), "{sentence}");
        assert!(sentence.contains("modprobe sctp"), "{sentence}");
        assert_eq!(error.kind().name(), "eprotonosupport");
    }
}

fn ips(ips: &[&str]) -> Vec<IpAddr> {
    ips.iter().map(|ip| ip.parse().unwrap()).collect()
}

fn ips_of(addresses: &[Address]) -> Vec<IpAddr> {
    let mut ips: Vec<_> = addresses
        .iter()
        .map(|address| match address {
            Address::Ip(ip) => ip.ip(),
            _ => unreachable!("it is SCTP"),
        })
        .collect();
    ips.sort();
    ips
}

/// The addresses that both ends of a new connection tell.
async fn both(place: &Place) -> (Addresses, Addresses) {
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, connected) = place.dial(listener.address());
    dialled.send(b"hello").unwrap();
    let ours = soon(connected).await.unwrap();
    let theirs = soon(incoming.next()).await.unwrap();
    drop(dialled);
    assert_eq!(ours.local, theirs.info.peer);
    (ours.addresses.unwrap(), theirs.info.addresses.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_know_all_addresses_of_both() {
    if skipped("sctp") {
        return;
    }
    let mut place = sctp4();
    place.listen.addresses = ips(&["127.0.0.2", "127.0.0.3"]);
    place.dial.local = ips(&["127.0.0.4", "127.0.0.5"]);
    let (ours, theirs) = both(&place).await;
    assert_eq!(ips_of(&ours.local), place.dial.local);
    assert_eq!(
        ips_of(&ours.peer),
        ips(&["127.0.0.1", "127.0.0.2", "127.0.0.3"])
    );
    assert_eq!(ips_of(&theirs.local), ips_of(&ours.peer));
    assert_eq!(ips_of(&theirs.peer), ips_of(&ours.local));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_may_have_addresses_of_both_families() {
    if skipped("sctp") {
        return;
    }
    for first in ["127.0.0.1", "::1"] {
        let mut place = sctp4();
        let all = ips(&["127.0.0.1", "127.0.0.2", "::1"]);
        place.address = Address::Ip((first.parse::<IpAddr>().unwrap(), 0).into());
        place.listen.addresses = all.clone();
        place
            .listen
            .addresses
            .retain(|ip| *ip != first.parse::<IpAddr>().unwrap());
        place.dial.local = ips(&["127.0.0.4", "::1"]);
        let (ours, theirs) = both(&place).await;
        assert_eq!(ips_of(&ours.local), place.dial.local);
        assert_eq!(ips_of(&ours.peer), all);
        assert_eq!(ips_of(&theirs.local), all);
        assert_eq!(ips_of(&theirs.peer), place.dial.local);
        // Who knows one family only reaches the addresses of that one.
        place.dial.local.clear();
        let (ours, _) = both(&place).await;
        let same = |ip: &IpAddr| ip.is_ipv4() == (first != "::1");
        assert!(ips_of(&ours.peer).iter().all(same), "{ours:?}");
    }
}

#[tokio::test]
async fn an_address_of_nobody_is_named() {
    if skipped("sctp") {
        return;
    }
    let mut place = sctp4();
    place.listen.addresses = ips(&["192.0.2.7"]);
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRNOTAVAIL), "{error}");
    assert!(error.to_string().contains("192.0.2.7"), "{error}");
    place.dial.local = ips(&["127.0.0.1", "192.0.2.7"]);
    let error = dial(place.transport, place.address.clone(), place.dial.clone()).unwrap_err();
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRNOTAVAIL), "{error}");
    assert!(error.to_string().contains("192.0.2.7"), "{error}");
}

#[tokio::test]
async fn an_ipv6_listener_leaves_the_ipv4_port_alone() {
    if skipped("sctp") {
        return;
    }
    let mut place = sctp6();
    place.address = Address::Ip("[::]:0".parse().unwrap());
    let (six, _incoming) = place.open().unwrap();
    let Address::Ip(ip) = six.address() else {
        unreachable!("it is SCTP");
    };
    place.address = Address::Ip(([0, 0, 0, 0], ip.port()).into());
    place.open().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn options_reach_both_ends() {
    if skipped("sctp") {
        return;
    }
    let mut place = sctp4();
    let wanted = SctpOpts {
        heartbeat: Some(700),
        path_max_retrans: Some(2),
        max_retrans: Some(2),
        rto_initial: Some(300),
        rto_min: Some(100),
        rto_max: Some(400),
    };
    place.dial.socket.sctp = wanted;
    place.listen.socket.sctp = wanted;
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    for connection in [&dialled, &accepted.connection] {
        let established = soon(connection.detach()).await.unwrap();
        let socket = SockRef::from(&established.fd);
        assert_eq!(SctpOpts::of(&socket).unwrap(), wanted);
        assert!(polydist_transport::nodelay(&socket).unwrap());
        let later = SctpOpts {
            heartbeat: Some(900),
            rto_max: Some(90),
            rto_min: Some(50),
            max_retrans: Some(60_000),
            ..SctpOpts::default()
        };
        later.apply(&socket).unwrap();
        let now = SctpOpts::of(&socket).unwrap();
        assert_eq!((now.heartbeat, now.rto_max), (Some(900), Some(90)));
        assert_eq!(now.path_max_retrans, Some(2));
    }
}

/// The kernel by itself refuses what is more than all paths have together.
#[tokio::test(flavor = "multi_thread")]
async fn max_retrans_may_be_more_than_all_paths_have() {
    if skipped("sctp") {
        return;
    }
    let mut place = sctp4();
    place.listen.addresses = ips(&["127.0.0.2"]);
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, _accepted) = place.pair(&listener, &mut incoming).await;
    let established = soon(dialled.detach()).await.unwrap();
    let socket = SockRef::from(&established.fd);
    let options = SctpOpts {
        path_max_retrans: Some(3),
        max_retrans: Some(10), // 3 and 3 are less
        ..SctpOpts::default()
    };
    options.apply(&socket).unwrap();
    let now = SctpOpts::of(&socket).unwrap();
    assert_eq!((now.path_max_retrans, now.max_retrans), (Some(3), Some(10)));
}

/// The losers of a race are such dials: neither end keeps anything of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_dial_given_up_leaves_no_association() {
    if skipped("sctp") {
        return;
    }
    let place = sctp4();
    let (listener, mut incoming) = place.open().unwrap();
    for pause in [0, 1, 5] {
        let (dialled, _connected) = place.dial(listener.address());
        tokio::time::sleep(Duration::from_millis(pause)).await;
        drop(dialled);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    until(|| {
        while let Some(accepted) = soon_or_never(&mut incoming) {
            drop(accepted);
        }
        listener.info().pending == 0
    })
    .await;
    let port = match listener.address() {
        Address::Ip(ip) => ip.port().to_string(),
        _ => unreachable!("it is SCTP"),
    };
    until(|| {
        let all = std::fs::read_to_string("/proc/net/sctp/assocs").unwrap();
        !all.split_whitespace().any(|word| word == port)
    })
    .await;
}

fn soon_or_never(
    incoming: &mut polydist_transport::Incoming,
) -> Option<polydist_transport::Accepted> {
    let mut next = Box::pin(incoming.next());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match next.as_mut().poll(&mut context) {
        std::task::Poll::Ready(accepted) => accepted,
        std::task::Poll::Pending => None,
    }
}

/// With the packets of a loopback each of many fillings of the receiver's room would cost seconds.
#[tokio::test(flavor = "multi_thread")]
async fn a_loopback_is_not_slow() {
    if skipped("sctp") {
        return;
    }
    for place in [sctp4(), sctp6()] {
        let (listener, mut incoming) = place.open().unwrap();
        let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
        let mut ours = Raw::new(soon(dialled.detach()).await.unwrap());
        let mut theirs = Raw::new(soon(accepted.connection.detach()).await.unwrap());
        let start = std::time::Instant::now();
        let writing = std::thread::spawn(move || {
            for _ in 0..1000 {
                ours.write_all(&[7; 30_000]).unwrap();
            }
            ours
        });
        theirs.read_exactly(30_000_000).unwrap();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        drop(writing.join().unwrap());
    }
}

/// All that was written before a close arrives, however much of it the kernel still has.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_loses_nothing() {
    if skipped("sctp") {
        return;
    }
    let place = sctp4();
    let (listener, mut incoming) = place.open().unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let mut ours = Raw::new(soon(dialled.detach()).await.unwrap());
    let mut theirs = Raw::new(soon(accepted.connection.detach()).await.unwrap());
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let expected = bytes.clone();
    let writing = std::thread::spawn(move || {
        for chunk in bytes.chunks(30_000) {
            ours.write_all(chunk).unwrap();
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    assert!(theirs.read_exactly(expected.len()).unwrap() == expected);
    writing.join().unwrap();
    assert!(theirs.is_at_end());
}
