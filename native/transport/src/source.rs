//! Where a listener's connections come from.

use std::io;
use std::task::{Context, Poll, ready};

use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::Address;

/// A socket that listens, or a queue that others put sockets into. Dropping it closes either, with
/// all that waits in it.
#[derive(Debug)]
pub(crate) enum Source {
    /// The kernel accepts.
    Socket(AsyncFd<Socket>),
    /// Somebody else has accepted.
    Fed {
        /// Its one receiver is beside it, so a socket is never put where nobody takes it out.
        feeder: mpsc::Sender<Arrival>,
        /// What waits.
        queue: mpsc::Receiver<Arrival>,
    },
}

/// A connection that has just come.
#[derive(Debug)]
pub(crate) struct Arrival {
    socket: Socket,
    peer: Address,
    taken: Option<oneshot::Sender<()>>,
}

/// Why a socket cannot be fed.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The source is a socket.
    NotFed,
    /// The queue is full.
    Full,
}

impl Source {
    /// An empty queue for so many sockets, at least one.
    pub(crate) fn fed(backlog: i32) -> Self {
        let (feeder, queue) = mpsc::channel(usize::try_from(backlog).unwrap_or(0).max(1));
        Self::Fed { feeder, queue }
    }

    /// Puts a socket into the queue. The receiver learns that it has been taken out, or fails when
    /// that cannot happen any more.
    pub(crate) fn offer(
        &self,
        socket: Socket,
        peer: Address,
    ) -> Result<oneshot::Receiver<()>, Refused> {
        let Self::Fed { feeder, .. } = self else {
            return Err(Refused::NotFed);
        };
        let (sender, taken) = oneshot::channel();
        let arrival = Arrival {
            socket,
            peer,
            taken: Some(sender),
        };
        match feeder.try_send(arrival) {
            Ok(()) => Ok(taken),
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => Err(Refused::Full),
        }
    }

    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Arrival>> {
        match self {
            Self::Socket(socket) => loop {
                let mut ready = ready!(socket.poll_read_ready(cx))?;
                if let Ok(result) = ready.try_io(|socket| socket.get_ref().accept()) {
                    return Poll::Ready(result.map(|(socket, peer)| Arrival {
                        socket,
                        peer: Address::from_kernel(&peer),
                        taken: None,
                    }));
                }
            },
            Self::Fed { queue, .. } => match ready!(queue.poll_recv(cx)) {
                Some(arrival) => Poll::Ready(Ok(arrival)),
                // Cannot happen: its sender is here.
                None => Poll::Pending,
            },
        }
    }
}

impl Arrival {
    /// The socket and its peer. Whoever fed it is told.
    pub(crate) fn take(self) -> (Socket, Address) {
        if let Some(taken) = self.taken {
            let _ = taken.send(());
        }
        (self.socket, self.peer)
    }
}
