//! File descriptors are as many afterwards as before. One test, since others would open some too.

mod support;

use std::time::Duration;

use polydist_transport::Kind;
use support::{Place, open_fds, soon, tcp4, tcp6, tls, uds, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_a_file_descriptor_behind() {
    let before = open_fds();
    for place in [tcp4(), tcp6(), tls(), uds()] {
        connections_that_come_and_go(&place).await;
        assert_eq!(open_fds(), before, "{:?}", place.transport);
        dials_that_are_given_up(&place).await;
        until(|| open_fds() == before).await;
        dials_that_are_closed(&place).await;
        until(|| open_fds() == before).await;
    }
}

async fn connections_that_come_and_go(place: &Place) {
    let (listener, mut incoming) = place.open().unwrap();
    let only_listener = open_fds();
    for round in 0..200 {
        let (dialled, accepted) = place.pair(&listener, &mut incoming).await;
        match round % 4 {
            0 => drop((
                soon(dialled.detach()).await,
                soon(accepted.connection.detach()).await,
            )),
            1 => accepted.connection.close(),
            2 => drop(dialled.recv()),
            _ => {}
        }
    }
    until(|| open_fds() == only_listener).await;
    listener.close();
}

/// A listener whose kernel queue is full and that never accepts.
async fn dials_that_are_given_up(place: &Place) {
    let mut options = place.listen.clone();
    options.backlog = 1;
    let (_socket, address) = place.transport.bind(&place.address, &options).unwrap();
    let with_socket = open_fds();
    let dialled: Vec<_> = (0..10).map(|_| place.dial(&address)).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(open_fds(), with_socket + 10);
    drop(dialled);
    until(|| open_fds() == with_socket).await;
    place.transport.unbind(&address);
}

/// As above, but by name: the socket is gone by the time the answer is there.
async fn dials_that_are_closed(place: &Place) {
    let mut options = place.listen.clone();
    options.backlog = 1;
    let (_socket, address) = place.transport.bind(&place.address, &options).unwrap();
    let dialled: Vec<_> = (0..10).map(|_| place.dial(&address)).collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut given_up = 0;
    for (connection, connected) in dialled {
        let open = open_fds();
        connection.close();
        match soon(connected).await {
            Ok(_) => until(|| open_fds() == open - 1).await, // it had found a place in the queue
            Err(error) => {
                assert_eq!(error.kind(), Kind::Closed);
                assert_eq!(open_fds(), open - 1, "{:?}", place.transport);
                given_up += 1;
            }
        }
    }
    assert!(given_up >= 5, "{given_up} dials were under way");
    place.transport.unbind(&address);
}
