//! The TLS handshake, without input and output: bytes in, bytes out, then a [`Session`].

use std::fmt;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{
    ClientConfig, CommonState, Error, HandshakeKind, PeerMisbehaved, ProtocolVersion, ServerConfig,
    SupportedCipherSuite,
};

use crate::session::{Renewal, Session};

/// The most of a handshake that waits to be understood: its longest message, in records, and a part
/// of the next record. rustls takes no longer message either.
const MAX_WAITING: usize = 96 * 1024;

/// One end of a TLS handshake.
pub struct Handshake {
    end: End,
    incoming: Vec<u8>,
    plaintext: Vec<u8>,
}

enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What a handshake agreed on.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// The version of TLS.
    pub version: ProtocolVersion,
    /// The cipher.
    pub suite: SupportedCipherSuite,
    /// The peer's certificates, its own first; none if it showed none.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether an earlier session was resumed, so that no certificates were sent.
    pub resumed: bool,
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It needs more from the peer.
    Waiting,
    /// It is over.
    Done,
}

impl Handshake {
    /// The dialling end. The configuration must have `enable_secret_extraction`.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        UnbufferedClientConnection::new(config, name).map(|client| Self::new(End::Client(client)))
    }

    /// The accepting end. The configuration must have `enable_secret_extraction`.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        UnbufferedServerConnection::new(config).map(|server| Self::new(End::Server(server)))
    }

    fn new(end: End) -> Self {
        Self {
            end,
            incoming: Vec::new(),
            plaintext: Vec::new(),
        }
    }

    /// Goes on with what has been received, and appends what is to be sent; also after an error, for
    /// then that is the alert that tells the peer why.
    pub fn advance(&mut self, received: &[u8], outgoing: &mut Vec<u8>) -> Result<Progress, Error> {
        if self.incoming.len() + received.len() > MAX_WAITING {
            return Err(Error::PeerMisbehaved(
                PeerMisbehaved::MessageInterleavedWithHandshakeMessage,
            ));
        }
        self.incoming.extend_from_slice(received);
        let (incoming, plaintext) = (&mut self.incoming, &mut self.plaintext);
        match &mut self.end {
            End::Client(client) => drive(
                client,
                UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records,
                incoming,
                outgoing,
                plaintext,
            ),
            End::Server(server) => drive(
                server,
                UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records,
                incoming,
                outgoing,
                plaintext,
            ),
        }
    }

    /// What was agreed on, once it is [`Progress::Done`]; the session; and the plaintext that came
    /// with the handshake's last message.
    pub fn finish(self) -> Result<(Agreed, Session, Vec<u8>), Error> {
        let (agreed, secrets, renewal) = match self.end {
            End::Client(client) => {
                let agreed = agreed(&client, client.handshake_kind())?;
                let (secrets, kernel) = client.dangerous_into_kernel_connection()?;
                (agreed, secrets, Renewal::Client(kernel))
            }
            End::Server(server) => {
                let agreed = agreed(&server, server.handshake_kind())?;
                let (secrets, kernel) = server.dangerous_into_kernel_connection()?;
                (agreed, secrets, Renewal::Server(kernel))
            }
        };
        let session = Session::new(agreed.suite, secrets, renewal, self.incoming)?;
        Ok((agreed, session, self.plaintext))
    }
}

impl fmt::Debug for Handshake {
    /// Without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}

fn agreed(common: &CommonState, kind: Option<HandshakeKind>) -> Result<Agreed, Error> {
    let chain = common.peer_certificates().unwrap_or_default();
    Ok(Agreed {
        version: common
            .protocol_version()
            .ok_or(Error::HandshakeNotComplete)?,
        suite: common
            .negotiated_cipher_suite()
            .ok_or(Error::HandshakeNotComplete)?,
        chain: chain.iter().map(|one| one.clone().into_owned()).collect(),
        resumed: kind == Some(HandshakeKind::Resumed),
    })
}

type Process<Data> = for<'c, 'i> fn(
    &'c mut UnbufferedConnectionCommon<Data>,
    &'i mut [u8],
) -> UnbufferedStatus<'c, 'i, Data>;

fn drive<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    process: Process<Data>,
    incoming: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
    plaintext: &mut Vec<u8>,
) -> Result<Progress, Error> {
    loop {
        let UnbufferedStatus { mut discard, state } = process(connection, incoming);
        let progress = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, outgoing);
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plaintext.extend_from_slice(record.payload);
                }
                None
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                Some(Progress::Waiting)
            }
            Ok(_) => return Err(Error::AlertReceived(rustls::AlertDescription::CloseNotify)),
            Err(error) => {
                // Only now is the alert there that tells the peer; rustls wants to see what it has
                // looked at and not discarded.
                incoming.drain(..discard);
                // And no further than that: it would take offence at the same record again.
                while connection.wants_write()
                    && let Ok(ConnectionState::EncodeTlsData(data)) =
                        process(connection, incoming).state
                {
                    encode(data, outgoing);
                }
                return Err(error);
            }
        };
        incoming.drain(..discard);
        match progress {
            Some(_) if !connection.is_handshaking() => return Ok(Progress::Done),
            Some(waiting) => return Ok(waiting),
            None => {}
        }
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) {
    let from = outgoing.len();
    loop {
        match data.encode(&mut outgoing[from..]) {
            Ok(written) => return outgoing.truncate(from + written),
            Err(EncodeError::InsufficientSize(size)) => {
                outgoing.resize(from + size.required_size, 0);
            }
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}
