//! The client side of EPMD.

use std::fmt::Display;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use polydist_proto::epmd::{
    Alive2Resp, EpmdError, NamesHeader, NamesLine, Node, Port2Resp, Request,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{Error, Kind};

/// How long an answer to a registration may take, as in stock.
pub const REGISTER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest list of names that is read.
pub const MAX_NAMES: usize = 1024 * 1024;

/// How long an EPMD is asked alone before the next one is asked as well (RFC 8305, section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// A node's registration. It lasts until this is dropped or EPMD goes away.
#[derive(Debug)]
pub struct Registration {
    stream: TcpStream,
    creation: u32,
}

impl Registration {
    /// What EPMD gave this incarnation of the node.
    pub fn creation(&self) -> u32 {
        self.creation
    }

    /// Waits until EPMD has closed the connection, which ends the registration.
    pub async fn closed(mut self) {
        let mut byte = [0];
        while matches!(self.stream.read(&mut byte).await, Ok(1)) {}
    }
}

/// Registers a node.
pub async fn register(epmd: SocketAddr, node: Node) -> Result<Registration, Error> {
    let what = format!("cannot register with epmd at {epmd}");
    let name = String::from_utf8_lossy(&node.name).into_owned();
    let registering = async {
        let (mut stream, mut answer) = ask(epmd, Request::Alive2(node)).await?;
        let answer = read(&mut stream, &mut answer, 16, Alive2Resp::decode).await?;
        Ok((stream, answer))
    };
    match within(REGISTER_TIMEOUT, registering).await {
        Ok((
            stream,
            Alive2Resp {
                result: 0,
                creation,
            },
        )) => Ok(Registration { stream, creation }),
        Ok(_) => Err(Error::new(
            Kind::DuplicateName,
            format!(
                "{what}: the name {name} is in use; stop the other node or choose another name"
            ),
        )),
        Err(error) => Err(error.during(what)),
    }
}

/// Finds a node by the part of its name before the `@`. The addresses are asked in order, the next
/// one when one fails or has not answered for a while, until one answers.
pub async fn lookup(epmds: &[SocketAddr], name: &[u8], limit: Duration) -> Result<Node, Error> {
    first(epmds, limit, |epmd| lookup_at(epmd, name)).await
}

async fn lookup_at(epmd: SocketAddr, name: &[u8]) -> Result<Node, Error> {
    let looking = async {
        let (mut stream, mut answer) = ask(epmd, Request::PortPlease2(name.to_vec())).await?;
        read(&mut stream, &mut answer, 4096, Port2Resp::decode).await
    };
    let shown = String::from_utf8_lossy(name);
    match looking.await {
        Ok(Port2Resp::Found(node)) => Ok(node),
        Ok(Port2Resp::NotFound(_)) => Err(Error::new(
            Kind::NotFound,
            format!("epmd at {epmd} knows no node called {shown}; is it running?"),
        )),
        Err(error) => Err(error.during(format!("cannot look up {shown} in epmd at {epmd}"))),
    }
}

/// Every node that is registered. Addresses are tried as in [`lookup`].
pub async fn names(epmds: &[SocketAddr], limit: Duration) -> Result<Vec<NamesLine>, Error> {
    first(epmds, limit, names_at).await
}

async fn names_at(epmd: SocketAddr) -> Result<Vec<NamesLine>, Error> {
    let listing = async {
        let (mut stream, mut buffer) = ask(epmd, Request::Names).await?;
        read(&mut stream, &mut buffer, 4, NamesHeader::decode).await?;
        let mut names = Vec::new();
        let mut total = 0;
        loop {
            let mut used = 0;
            while let Some((line, len)) = NamesLine::decode(&buffer[used..]).map_err(bad_reply)? {
                names.push(line);
                used += len;
            }
            buffer.drain(..used);
            total += used;
            if total + buffer.len() > MAX_NAMES {
                return Err(Error::new(Kind::BadReply, "the list is over 1 MiB long"));
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) if buffer.is_empty() => return Ok(names),
                Ok(0) => return Err(Error::new(Kind::BadReply, "the list is cut off")),
                Ok(_) => {}
                Err(error) => return Err(Error::os("the answer failed", &error)),
            }
        }
    };
    let result: Result<_, Error> = listing.await;
    result.map_err(|error| error.during(format!("cannot list the names in epmd at {epmd}")))
}

/// The first answer, of whatever kind, that does not only say that an EPMD cannot be reached. If
/// none can, the first address is the one to talk about.
async fn first<T, F>(
    epmds: &[SocketAddr],
    limit: Duration,
    ask: impl Fn(SocketAddr) -> F,
) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let end = Instant::now() + limit;
    let mut waiting = epmds.iter();
    let mut asking = Vec::new();
    let mut next = Instant::now();
    let mut failure: Option<Error> = None;
    loop {
        tokio::select! {
            biased;
            (index, answer) = any(&mut asking), if !asking.is_empty() => {
                drop(asking.swap_remove(index));
                match answer {
                    Err(error) if error.kind() != Kind::NotFound => {
                        failure.get_or_insert(error);
                        next = Instant::now();
                    }
                    answer => return answer,
                }
            }
            () = sleep_until(next), if waiting.len() > 0 => {
                asking.extend(waiting.next().map(|epmd| Box::pin(ask(*epmd))));
                next = Instant::now() + STAGGER;
            }
            () = sleep_until(end), if !asking.is_empty() => break,
            else => break,
        }
    }
    Err(failure.unwrap_or_else(|| match epmds.first() {
        Some(epmd) => no_answer(limit).during(format!("epmd at {epmd}")),
        None => Error::new(Kind::BadOption, "there is no address of an epmd to ask"),
    }))
}

/// The first of the futures to be ready, by its index.
async fn any<T, F>(futures: &mut [Pin<Box<F>>]) -> (usize, Result<T, Error>)
where
    F: Future<Output = Result<T, Error>>,
{
    poll_fn(|cx| {
        for (index, future) in futures.iter_mut().enumerate() {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready((index, output));
            }
        }
        Poll::Pending
    })
    .await
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(no_answer(limit)))
}

fn no_answer(limit: Duration) -> Error {
    Error::new(
        Kind::Timeout,
        format!("no answer within {} ms", limit.as_millis()),
    )
}

/// Connects and sends a request; the buffer is for the answer.
async fn ask(epmd: SocketAddr, request: Request) -> Result<(TcpStream, Vec<u8>), Error> {
    let too_long = |error: EpmdError| Error::new(Kind::TooLong, error.to_string());
    let request = request.encode().map_err(too_long)?;
    let sending = async {
        let mut stream = TcpStream::connect(epmd).await?;
        stream.write_all(&request).await?;
        Ok(stream)
    };
    match sending.await {
        Ok(stream) => Ok((stream, Vec::new())),
        Err(error) => Err(Error::os("epmd cannot be reached", &error)),
    }
}

/// Reads until `decode` is content, at most `max` bytes; what follows stays in `buffer`.
async fn read<T>(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
    max: usize,
    decode: impl Fn(&[u8]) -> Result<Option<(T, usize)>, EpmdError>,
) -> Result<T, Error> {
    loop {
        if let Some((value, used)) = decode(buffer).map_err(bad_reply)? {
            buffer.drain(..used);
            return Ok(value);
        }
        if buffer.len() > max {
            return Err(Error::new(Kind::BadReply, "the answer has no end"));
        }
        match stream.read_buf(buffer).await {
            Ok(0) => return Err(Error::closed("the answer is cut off")),
            Ok(_) => {}
            Err(error) => return Err(Error::os("the answer failed", &error)),
        }
    }
}

fn bad_reply(error: impl Display) -> Error {
    Error::new(Kind::BadReply, format!("what answered is no epmd: {error}"))
}
