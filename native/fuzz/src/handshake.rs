//! A connection before it is established, over a real socket.

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use polydist_proto::frame::Prefix;
use polydist_transport::{
    Address, Connection, Kind, MAX_HANDSHAKE_FRAME, SocketOpts, adopt, outside,
};
use tokio::runtime::{Builder, Runtime};

/// More than one piece, but not so many that most of the time goes into system calls.
const PIECES: usize = 16;
/// A socket takes this much at once.
const MOST: usize = 64 * 1024;

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
}

/// What a peer sends before the connection is established: `piece:16`, the size of the pieces in
/// which it comes, and the bytes.
pub fn handshake(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first_chunk() else {
        return;
    };
    let bytes = &bytes[..bytes.len().min(MOST)];
    let piece = usize::from(u16::from_be_bytes(*piece)).max(bytes.len() / PIECES + 1);
    let (expected, end) = reference(bytes);
    RUNTIME.with(|runtime| {
        let (frames, kind) = runtime.block_on(received(bytes, piece));
        assert!(frames == expected, "the frames are others than were sent");
        assert_eq!(kind, end);
    });
}

/// The frames in `bytes`, and how it ends when these are all there are.
fn reference(mut bytes: &[u8]) -> (Vec<Vec<u8>>, Kind) {
    let mut frames = Vec::new();
    loop {
        match Prefix::Two.decode(bytes, MAX_HANDSHAKE_FRAME) {
            Ok(Some((payload, used))) => {
                frames.push(payload.to_vec());
                bytes = &bytes[used..];
            }
            Ok(None) => return (frames, Kind::Closed),
            Err(_) => return (frames, Kind::BadMessage),
        }
    }
}

async fn received(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Kind) {
    let (mut peer, ours) = UnixStream::pair().unwrap();
    let connection = connection(&ours);
    drop(ours);
    let mut frames = Vec::new();
    let sending = async {
        for piece in bytes.chunks(piece) {
            let _ = peer.write_all(piece); // it may be closed by now
            tokio::task::yield_now().await;
        }
        let _ = peer.shutdown(Shutdown::Write);
    };
    let receiving = async {
        loop {
            match connection.recv().await {
                Ok(frame) => frames.push(frame),
                Err(error) => return error.kind(),
            }
        }
    };
    let ((), kind) = tokio::join!(sending, receiving);
    (frames, kind)
}

fn connection(socket: &UnixStream) -> Connection {
    let transport = outside("fuzzed").unwrap();
    let peer = Address::Opaque(b"peer".to_vec());
    let (connection, _) = adopt(transport, socket.as_fd(), peer, &SocketOpts::default()).unwrap();
    connection
}
