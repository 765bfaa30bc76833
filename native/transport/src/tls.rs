//! TLS over TCP. Handshake frames have 4-byte lengths inside TLS, as stock inet_tls has it.

use std::io;

use polydist_proto::frame::Prefix;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use socket2::{SockAddr, Socket};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::identity::noting;
use crate::tls_errors::explain;
use crate::{
    Address, BoxFuture, Configured, Error, Kind, ListenOptions, Side, SocketOpts, Stream,
    TlsConfig, Transport, Wire, tcp,
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
            let (tls, own) = noting(handshake(stream, &peer, &side)).await;
            match tls? {
                Ok(tls) => Ok(Wire::Tls(Box::new(tls), own.map(Box::new))),
                Err(error) => {
                    let what = format!("TLS with {peer} failed");
                    Err(explain(&error, own.as_ref()).during(what))
                }
            }
        })
    }
}

async fn handshake(
    stream: Stream,
    peer: &Address,
    side: &Side,
) -> Result<io::Result<TlsStream<Stream>>, Error> {
    Ok(match side {
        Side::Accept { tls } => {
            let config = server(tls.as_ref())?.config.clone();
            let accepting = TlsAcceptor::from(config).accept(stream);
            accepting.await.map(Into::into)
        }
        Side::Dial { tls, server_name } => {
            let config = client(tls.as_ref())?.config.clone();
            let name = match server_name {
                Some(name) => parse_name(name)?,
                None => name_of(peer)?,
            };
            let connecting = TlsConnector::from(config).connect(name, stream);
            connecting.await.map(Into::into)
        }
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
