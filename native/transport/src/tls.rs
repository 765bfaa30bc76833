//! TLS over TCP. Handshake frames have 4-byte lengths inside TLS, as stock inet_tls has it.

use std::io;

use bytes::BytesMut;
use polydist_channel::{Agreed, Handshake, Progress, Session};
use polydist_proto::frame::Prefix;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, ProtocolVersion, ServerConfig};
use socket2::{SockAddr, Socket};
use tokio::io::AsyncWriteExt;

use crate::identity::noting;
use crate::stream::{Secured, as_io};
use crate::tls_config::cipher_name;
use crate::tls_errors::explain;
use crate::{
    Address, BoxFuture, Certificate, Configured, Error, Kind, ListenOptions, Side, SocketOpts,
    Stream, TlsConfig, TlsInfo, Transport, Wire, tcp,
};

#[derive(Debug)]
pub(crate) struct Tls;

impl Transport for Tls {
    fn name(&self) -> &'static str {
        "tls"
    }

    fn prefix(&self) -> Prefix {
        Prefix::Four
    }

    fn socket(&self, address: &Address) -> Result<(Socket, SockAddr), Error> {
        tcp::socket(self.name(), address)
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> Result<(Socket, Address), Error> {
        tcp::bind(self, address, options)
    }

    fn tune(&self, socket: &Socket, options: &SocketOpts) -> io::Result<()> {
        tcp::tune(socket, options)
    }

    fn check(&self, side: &Side) -> Result<(), Error> {
        match side {
            Side::Accept { tls } => server(tls.as_ref()).map(drop),
            Side::Dial { tls, server_name } => {
                client(tls.as_ref())?;
                server_name
                    .as_deref()
                    .map_or(Ok(()), |name| parse_name(name).map(drop))
            }
        }
    }

    fn secure(
        &self,
        stream: Stream,
        peer: &Address,
        side: &Side,
    ) -> BoxFuture<Result<Wire, Error>> {
        let (peer, side) = (peer.clone(), side.clone());
        Box::pin(async move {
            let (handshake, own, deferred) = begin(&peer, &side)?;
            let (secured, shown) = noting(complete(stream, handshake)).await;
            let secured = secured.and_then(|(agreed, stream, session, plaintext)| {
                let info = TlsInfo {
                    deferred,
                    ..info(agreed, shown.as_ref(), own)?
                };
                Ok(Secured {
                    stream,
                    session,
                    plaintext,
                    info,
                })
            });
            match secured {
                Ok(secured) => Ok(Wire::Tls(Box::new(secured))),
                Err(error) => {
                    let what = format!("TLS with {peer} failed");
                    Err(explain(&error, shown.as_ref()).during(what))
                }
            }
        })
    }
}

/// A handshake that has not begun, the certificates of ours that it may show, and whether the peer's
/// is taken on trust until others have verified it.
fn begin<'a>(
    peer: &Address,
    side: &'a Side,
) -> Result<(Handshake, &'a [Certificate], bool), Error> {
    let unusable =
        |error: rustls::Error| Error::new(Kind::Tls, format!("TLS cannot be used: {error}"));
    match side {
        Side::Accept { tls } => {
            let server = server(tls.as_ref())?;
            let handshake = Handshake::server(server.config.clone()).map_err(unusable)?;
            Ok((handshake, &server.own, server.deferred))
        }
        Side::Dial { tls, server_name } => {
            let client = client(tls.as_ref())?;
            let name = match server_name {
                Some(name) => parse_name(name)?,
                None => name_of(peer)?,
            };
            let handshake = Handshake::client(client.config.clone(), name).map_err(unusable)?;
            Ok((handshake, &client.own, client.deferred))
        }
    }
}

async fn complete(
    mut stream: Stream,
    mut handshake: Handshake,
) -> io::Result<(Agreed, Stream, Box<Session>, Vec<u8>)> {
    let mut received = BytesMut::new();
    // A peer that refuses us may have sent its reason before it closed: after a failed write there is
    // still something to read.
    let mut broken = None;
    loop {
        let mut outgoing = Vec::new();
        let progress = handshake.advance(&received, &mut outgoing);
        // Also after an error: this is the alert then.
        let written = stream.write_all(&outgoing).await;
        match progress.map_err(as_io)? {
            Progress::Done => {
                written?;
                let (agreed, session, plaintext) = handshake.finish().map_err(as_io)?;
                return Ok((agreed, stream, Box::new(session), plaintext));
            }
            Progress::Waiting => broken = broken.or(written.err()),
        }
        received.clear();
        if stream.read_some(&mut received).await? == 0 {
            return Err(broken.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// What there is to tell of it. Nothing is verified when a session is resumed, so it is seen here
/// that the peer's certificate has not ended since.
fn info(agreed: Agreed, shown: Option<&Certificate>, own: &[Certificate]) -> io::Result<TlsInfo> {
    let Agreed {
        version,
        suite,
        chain,
        resumed,
    } = agreed;
    let peer = chain.first().filter(|_| resumed).map(Certificate::of);
    if let Some(Ok(peer)) = peer
        && peer.has_ended()
    {
        return Err(as_io(CertificateError::Expired.into()));
    }
    Ok(TlsInfo {
        version: match version {
            ProtocolVersion::TLSv1_2 => "tlsv1.2",
            _ => "tlsv1.3",
        },
        cipher: cipher_name(suite.suite()),
        resumed,
        ktls: false,
        deferred: false,
        own: shown.or_else(|| own.first().filter(|_| resumed)).cloned(),
        chain,
    })
}

fn server(config: Option<&TlsConfig>) -> Result<&Configured<ServerConfig>, Error> {
    match config {
        Some(TlsConfig::Server(config)) => Ok(config),
        _ => Err(Error::new(
            Kind::BadOption,
            "a tls listener needs the server part of the TLS options",
        )),
    }
}

fn client(config: Option<&TlsConfig>) -> Result<&Configured<ClientConfig>, Error> {
    match config {
        Some(TlsConfig::Client(config)) => Ok(config),
        _ => Err(Error::new(
            Kind::BadOption,
            "dialling over tls needs the client part of the TLS options",
        )),
    }
}

fn parse_name(name: &str) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(name.to_owned()).map_err(|_| {
        Error::new(
            Kind::BadOption,
            format!(
                "TLS cannot verify a host called {name:?}: it is no host name and no IP address"
            ),
        )
    })
}

fn name_of(peer: &Address) -> Result<ServerName<'static>, Error> {
    match peer {
        Address::Ip(ip) => Ok(ServerName::from(ip.ip())),
        Address::Local(_) | Address::Opaque(_) => Err(Error::new(
            Kind::BadOption,
            "TLS with a peer that has no IP address needs a server name",
        )),
    }
}
