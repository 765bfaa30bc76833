//! A process that runs out of file descriptors stops accepting, says so, and goes on when it can.
//! One test, since it takes every descriptor of the process.

mod support;

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use polydist_transport::Address;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use support::{open_fds, soon, tcp4, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepting_rests_without_descriptors_and_then_goes_on() {
    let mut place = tcp4();
    place.address = Address::Ip((Ipv4Addr::LOCALHOST, 0).into());
    let (listener, mut incoming) = place.open().unwrap();
    let Address::Ip(address) = *listener.address() else {
        unreachable!("it is TCP")
    };
    let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let current = Some(open_fds() as u64 + 16);
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).unwrap();
    let mut hoard = Vec::new();
    while let Ok(fd) = client.as_fd().try_clone_to_owned() {
        hoard.push(fd);
    }
    client.connect(&address.into()).unwrap();
    client.send(b"\0\0").unwrap();
    until(|| listener.info().last_error.is_some()).await;
    let sentence = listener.info().last_error.unwrap();
    assert!(
        sentence.contains("emfile") && sentence.contains("ulimit"),
        "{sentence}"
    );
    assert_eq!((listener.info().accepted, listener.info().pending), (0, 0));
    drop(hoard);
    soon(incoming.next()).await.unwrap();
}
