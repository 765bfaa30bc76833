//! TLS over TCP. Handshake frames have 4-byte lengths inside TLS, as stock inet_tls has it.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use bytes::BytesMut;
use polydist_channel::{self as channel, Agreed, Handshake, Progress, Unfit};
use polydist_proto::frame::Prefix;
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::{AlertDescription, ClientConfig, ProtocolVersion, ServerConfig};
use socket2::{SockAddr, Socket};
use tokio::io::AsyncWriteExt;

use crate::identity::noting;
use crate::stream::{Secured, as_io};
use crate::tls_config::cipher_name;
use crate::tls_errors::explain;
use crate::verifier::Verifier;
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
            let beginning = begin(&peer, &side)?;
            let (own, deferred) = (beginning.own, beginning.deferred);
            let (secured, shown) = noting(complete(stream, beginning)).await;
            match secured {
                Ok((agreed, stream, tls)) => {
                    let ktls = matches!(tls, channel::Tls::Kernel(_));
                    let info = TlsInfo {
                        version: version_name(agreed.version),
                        cipher: cipher_name(agreed.suite.suite()),
                        // Resuming a session shows no certificate; that of then is our first.
                        own: shown.or_else(|| own.first().filter(|_| agreed.resumed).cloned()),
                        resumed: agreed.resumed,
                        chain: agreed.chain,
                        ktls,
                        deferred,
                    };
                    Ok(Wire::Tls(Box::new(Secured { stream, tls, info })))
                }
                Err(error) => {
                    let what = format!("TLS with {peer} failed");
                    Err(explain(&error, shown.as_ref()).during(what))
                }
            }
        })
    }
}

/// A handshake that has not begun.
struct Beginning<'a> {
    handshake: Handshake,
    /// The certificates of ours that it may show.
    own: &'a [Certificate],
    /// What verifies the peer's, if anything does.
    verifier: Option<&'a Verifier>,
    /// Whether it is taken on trust until others have verified it.
    deferred: bool,
    /// Whom we dial.
    host: Option<ServerName<'static>>,
    /// Whether the kernel is to make and open the records.
    ktls: bool,
}

fn begin<'a>(peer: &Address, side: &'a Side) -> Result<Beginning<'a>, Error> {
    let unusable =
        |error: rustls::Error| Error::new(Kind::Tls, format!("TLS cannot be used: {error}"));
    match side {
        Side::Accept { tls } => {
            let server = server(tls.as_ref())?;
            Ok(Beginning {
                handshake: Handshake::server(server.config.clone()).map_err(unusable)?,
                own: &server.own,
                verifier: server.verifier.as_deref(),
                deferred: server.deferred,
                host: None,
                ktls: server.ktls,
            })
        }
        Side::Dial { tls, server_name } => {
            let client = client(tls.as_ref())?;
            let host = match server_name {
                Some(name) => parse_name(name)?,
                None => name_of(peer)?,
            };
            let handshake = Handshake::client(client.config.clone(), host.clone());
            Ok(Beginning {
                handshake: handshake.map_err(unusable)?,
                own: &client.own,
                verifier: client.verifier.as_deref(),
                deferred: client.deferred,
                host: Some(host),
                ktls: client.ktls,
            })
        }
    }
}

impl Beginning<'_> {
    /// A resumed session sends no certificates, and rustls verifies none. What was true of them then
    /// may be so no more: they have ended, for one.
    fn verify_again(&self, agreed: &Agreed) -> Result<(), rustls::Error> {
        let (Some(verifier), true, [peer, others @ ..]) =
            (self.verifier, agreed.resumed, &agreed.chain[..])
        else {
            return Ok(());
        };
        let now = UnixTime::now();
        match &self.host {
            Some(host) => verifier
                .verify_server_cert(peer, others, host, &[], now)
                .map(drop),
            None => verifier.verify_client_cert(peer, others, now).map(drop),
        }
    }
}

async fn complete(
    mut stream: Stream,
    mut beginning: Beginning<'_>,
) -> io::Result<(Agreed, Stream, channel::Tls)> {
    let mut received = BytesMut::new();
    // A peer that refuses us may have sent its reason before it closed: after a failed write there is
    // still something to read.
    let mut broken = None;
    loop {
        let mut outgoing = Vec::new();
        let progress = beginning.handshake.advance(&received, &mut outgoing);
        // Also after an error: this is the alert then.
        let written = stream.write_all(&outgoing).await;
        match progress.map_err(as_io)? {
            Progress::Done => {
                written?;
                break;
            }
            Progress::Waiting => broken = broken.or(written.err()),
        }
        received.clear();
        // The kernel can open only what has not been read.
        let limit = match beginning.ktls {
            true => beginning.handshake.wants(),
            false => usize::MAX,
        };
        if stream.read_at_most(&mut received, limit).await? == 0 {
            return Err(broken.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
        }
    }
    let agreed = beginning.handshake.agreed().map_err(as_io)?;
    if let Err(error) = beginning.verify_again(&agreed) {
        let mut session = beginning.handshake.finish().map_err(as_io)?;
        let _ = session.seal_end(alert(&error));
        let _ = stream.write_all(&session.take_sealed()).await;
        return Err(as_io(error));
    }
    let tls = match beginning.ktls {
        true => finish_in_kernel(beginning.handshake, &stream),
        false => beginning
            .handshake
            .finish()
            .map(|session| channel::Tls::Session(Box::new(session))),
    };
    Ok((agreed, stream, tls.map_err(as_io)?))
}

fn finish_in_kernel(handshake: Handshake, stream: &Stream) -> Result<channel::Tls, rustls::Error> {
    static TOLD: Mutex<Vec<Unfit>> = Mutex::new(Vec::new());
    let (tls, unfit) = handshake.finish_in_kernel(stream.socket().as_fd())?;
    if let Some(unfit) = unfit {
        // Once, not with every connection.
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        if !told.contains(&unfit) {
            told.push(unfit);
            tracing::warn!("{unfit}");
        }
    }
    Ok(tls)
}

fn alert(error: &rustls::Error) -> AlertDescription {
    match error {
        rustls::Error::InvalidCertificate(why) => why.clone().into(),
        _ => AlertDescription::BadCertificate,
    }
}

/// As OTP's ssl calls it.
fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "tlsv1.2",
        _ => "tlsv1.3",
    }
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
