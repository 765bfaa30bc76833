//! How many connections a listener has on their way at once, and how many of them from one source.
//!
//! One source cannot take every place: beyond its share its connections wait, holding no more than a
//! socket, until others of it are done. There are not endless seats to wait on either, and what finds
//! none is closed.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::{Resource, getrlimit};
use socket2::Socket;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{Address, Transport};

/// So many connections may wait for each place there is,
const SEATS: usize = 4;
/// but only this part of the file descriptors that the process may open is for them.
const DESCRIPTORS: u64 = 8;

/// The pending connections of a listener.
#[derive(Debug)]
pub(crate) struct Crowd {
    places: Arc<Semaphore>,
    seats: Arc<Semaphore>,
    share: usize,
    /// The share of each source that has connections now.
    sources: Mutex<HashMap<Origin, Weak<Semaphore>>>,
}

/// A place that nobody has yet.
#[derive(Debug)]
pub(crate) struct Room(OwnedSemaphorePermit);

/// A connection's right to go on, now or later. Its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) enum Turn {
    /// It may go on.
    Now {
        _place: OwnedSemaphorePermit,
        _share: Option<OwnedSemaphorePermit>,
    },
    /// Others of its source come first.
    Later {
        seat: OwnedSemaphorePermit,
        share: Arc<Semaphore>,
        places: Arc<Semaphore>,
    },
}

/// What connections must have in common to be of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Origin {
    Host(Ipv4Addr),
    /// A host may have as many addresses of an IPv6 network as it likes.
    Net([u16; 4]),
    User(u32),
}

impl Crowd {
    /// Of `places` connections in all, no more than `share` from one source; at least one each.
    pub(crate) fn new(places: usize, share: usize) -> Self {
        let places = places.clamp(1, Semaphore::MAX_PERMITS / SEATS);
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / DESCRIPTORS;
        let seats = (SEATS * places).min(usize::try_from(descriptors).unwrap_or(usize::MAX));
        Self {
            places: Arc::new(Semaphore::new(places)),
            seats: Arc::new(Semaphore::new(seats)),
            share: share.clamp(1, places),
            sources: Mutex::default(),
        }
    }

    /// Waits for a place for whoever comes next.
    pub(crate) async fn room(&self) -> Room {
        Room(acquire(self.places.clone()).await)
    }

    /// Lets a connection that has just been accepted in; an error says why it cannot stay.
    pub(crate) fn enter(
        &self,
        room: Room,
        transport: &dyn Transport,
        socket: &Socket,
        peer: &Address,
    ) -> Result<Turn, String> {
        let Some(origin) = Origin::of(transport, socket, peer) else {
            return Ok(Turn::Now {
                _place: room.0,
                _share: None,
            });
        };
        let share = self.share_of(origin);
        if let Ok(one) = share.clone().try_acquire_owned() {
            return Ok(Turn::Now {
                _place: room.0,
                _share: Some(one),
            });
        }
        match self.seats.clone().try_acquire_owned() {
            Ok(seat) => Ok(Turn::Later {
                seat,
                share,
                places: self.places.clone(),
            }),
            Err(_) => Err(format!(
                "{peer}: {} connections of the same source are in their handshake, and too many wait",
                self.share
            )),
        }
    }

    fn share_of(&self, origin: Origin) -> Arc<Semaphore> {
        // A panic elsewhere leaves the map whole.
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = sources.get(&origin).and_then(Weak::upgrade) {
            return share;
        }
        sources.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.share));
        sources.insert(origin, Arc::downgrade(&share));
        share
    }
}

impl Turn {
    /// Waits until it is a turn to go on now.
    pub(crate) async fn come(self) -> Self {
        match self {
            Self::Now { .. } => self,
            Self::Later {
                seat,
                share,
                places,
            } => {
                let share = acquire(share).await;
                let place = acquire(places).await;
                drop(seat);
                Self::Now {
                    _place: place,
                    _share: Some(share),
                }
            }
        }
    }
}

async fn acquire(semaphore: Arc<Semaphore>) -> OwnedSemaphorePermit {
    match semaphore.acquire_owned().await {
        Ok(permit) => permit,
        Err(_) => std::future::pending().await, // none of ours is ever closed
    }
}

impl Origin {
    fn of(transport: &dyn Transport, socket: &Socket, peer: &Address) -> Option<Self> {
        match peer {
            Address::Ip(peer) => Some(match peer.ip().to_canonical() {
                IpAddr::V4(ip) => Self::Host(ip),
                IpAddr::V6(ip) => {
                    let [a, b, c, d, ..] = ip.segments();
                    Self::Net([a, b, c, d])
                }
            }),
            Address::Local(_) => transport.credentials(socket).map(|of| Self::User(of.uid)),
            Address::Opaque(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::tcp::TCP;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn room(crowd: &Crowd) -> Room {
        match poll(pin!(crowd.room())) {
            Poll::Ready(room) => room,
            Poll::Pending => panic!("no room"),
        }
    }

    fn enter(crowd: &Crowd, ip: &str) -> Result<Turn, String> {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let peer = Address::Ip((ip.parse::<IpAddr>().unwrap(), 1).into());
        crowd.enter(room(crowd), &TCP, &socket, &peer)
    }

    #[test]
    fn a_source_has_its_share_and_others_have_theirs() {
        let crowd = Crowd::new(4, 2);
        let first = enter(&crowd, "192.0.2.1").unwrap();
        let _second = enter(&crowd, "192.0.2.1").unwrap();
        let third = enter(&crowd, "192.0.2.1").unwrap();
        assert!(matches!(third, Turn::Later { .. }));
        assert!(matches!(enter(&crowd, "192.0.2.2"), Ok(Turn::Now { .. })));
        let mut third = pin!(third.come());
        assert!(poll(third.as_mut()).is_pending());
        drop(first);
        assert!(matches!(poll(third), Poll::Ready(Turn::Now { .. })));
    }

    #[test]
    fn an_ipv6_network_is_one_source() {
        let crowd = Crowd::new(4, 1);
        let _one = enter(&crowd, "2001:db8::1").unwrap();
        assert!(matches!(
            enter(&crowd, "2001:db8::2"),
            Ok(Turn::Later { .. })
        ));
        assert!(matches!(
            enter(&crowd, "2001:db8:1::"),
            Ok(Turn::Now { .. })
        ));
    }

    #[test]
    fn there_are_not_endless_seats() {
        let crowd = Crowd::new(1, 1);
        let _first = enter(&Crowd::new(1, 1), "192.0.2.1").unwrap();
        let share = crowd.share_of(Origin::Host([192, 0, 2, 1].into()));
        let _taken = share.clone().try_acquire_owned().unwrap();
        let waiting: Vec<_> = (0..SEATS)
            .map(|_| enter(&crowd, "192.0.2.1").unwrap())
            .collect();
        let why = enter(&crowd, "192.0.2.1").unwrap_err();
        assert!(why.contains("same source"), "{why}");
        drop(waiting);
        assert!(enter(&crowd, "192.0.2.1").is_ok());
    }

    #[test]
    fn a_source_is_forgotten_when_it_is_gone() {
        let crowd = Crowd::new(2, 1);
        for last in 0..200 {
            drop(enter(&crowd, &format!("192.0.2.{last}")).unwrap());
        }
        assert!(crowd.sources.lock().unwrap().len() <= 1);
    }
}
