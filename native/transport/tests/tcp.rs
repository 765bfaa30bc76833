//! What only TCP has: ports to choose from, families, options.

mod support;

use polydist_transport::{Address, Kind, Listener, SocketOpts, dial};
use rustix::io::Errno;
use socket2::SockRef;
use support::{soon, tcp4, tcp6, uds};

fn port(listener: &Listener) -> u16 {
    match listener.address() {
        Address::Ip(ip) => ip.port(),
        _ => unreachable!("it is TCP"),
    }
}

#[tokio::test]
async fn the_first_free_port_of_a_range_is_taken() {
    let mut place = tcp4();
    let (first, _incoming) = place.open().unwrap();
    let low = port(&first);
    place.listen.ports = Some((low, low));
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRINUSE));
    assert!(
        error.to_string().contains(&format!("127.0.0.1:{low}")),
        "{error}"
    );
    place.listen.ports = Some((low, low.saturating_add(50)));
    let (second, _incoming) = place.open().unwrap();
    assert!((low + 1..=low + 50).contains(&port(&second)));
    place.listen.ports = Some((2, 1));
    assert_eq!(place.open().unwrap_err().kind(), Kind::BadOption);
}

#[tokio::test]
async fn an_ipv6_listener_leaves_the_ipv4_port_alone() {
    let mut place = tcp6();
    place.address = Address::Ip("[::]:0".parse().unwrap());
    let (six, _incoming) = place.open().unwrap();
    let mut place = tcp4();
    place.address = Address::Ip(([0, 0, 0, 0], port(&six)).into());
    place.open().unwrap();
}

#[tokio::test]
async fn options_reach_both_ends_and_nodelay_is_the_default() {
    let mut place = tcp4();
    place.dial.socket.tos = Some(0x10);
    let (listener, mut incoming) = place.open().unwrap();
    listener
        .set_options(SocketOpts {
            nodelay: Some(false),
            keepalive: Some(true),
            ..SocketOpts::default()
        })
        .unwrap();
    let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
    let ours = soon(dialled.detach()).await.unwrap();
    let theirs = soon(accepted.connection.detach()).await.unwrap();
    assert!(SockRef::from(&ours.fd).tcp_nodelay().unwrap());
    assert_eq!(SockRef::from(&ours.fd).tos_v4().unwrap(), 0x10);
    assert!(!SockRef::from(&theirs.fd).tcp_nodelay().unwrap());
    assert!(SockRef::from(&theirs.fd).keepalive().unwrap());
}

#[tokio::test]
async fn an_address_of_the_wrong_sort_is_a_bad_option() {
    let (tcp, uds) = (tcp4(), uds());
    let opaque = Address::Opaque(b"7".to_vec());
    for (place, address) in [
        (&tcp, &uds.address),
        (&uds, &tcp.address),
        (&tcp, &opaque),
        (&uds, &opaque),
    ] {
        let error = dial(place.transport, address.clone(), place.dial.clone()).unwrap_err();
        assert_eq!(error.kind(), Kind::BadOption, "{error}");
    }
}

#[tokio::test]
async fn an_address_that_is_not_ours_says_so() {
    let mut place = tcp4();
    place.address = Address::Ip("192.0.2.1:0".parse().unwrap());
    let error = place.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Os(Errno::ADDRNOTAVAIL), "{error}");
}
