//! The TLS handshake, without input and output: bytes in, bytes out, then a [`Session`].

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{
    AlertDescription, ClientConfig, CommonState, Error, HandshakeKind, InvalidMessage,
    ProtocolVersion, ServerConfig, SupportedCipherSuite,
};

use crate::control::Renewal;
use crate::kernel::{Keys, Tls, Unfit};
use crate::session::{MAX_RECORD, Session, record_size, wanted};

/// The most of a handshake that waits to be understood: its longest message, in records, and a part
/// of the next record. rustls takes no longer message either.
const MAX_WAITING: usize = 96 * 1024;

/// One end of a TLS handshake.
pub struct Handshake {
    end: End,
    incoming: Incoming,
}

enum End {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What has come from the peer and rustls has not done with.
///
/// It is given to rustls record by record. Else rustls would open what follows the handshake as well,
/// and might keep the beginning of a message there, which is lost when a [`Session`] takes over.
#[derive(Default)]
struct Incoming {
    bytes: Vec<u8>,
    /// How much rustls has been given.
    given: usize,
    /// Where the record begins that it has been given last, if it was a part of one; else its end.
    record: usize,
}

impl Incoming {
    /// Gives the next record, or what there is of it. `false` when there is nothing more.
    fn give(&mut self) -> bool {
        let given = self.given;
        match record_size(&self.bytes[self.record..], MAX_RECORD) {
            Ok(Some(size)) => {
                self.record += size;
                self.given = self.record;
            }
            // rustls says what is wrong with it, if something is.
            Ok(None) | Err(_) => self.given = self.bytes.len(),
        }
        self.given > given
    }

    fn discard(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.given -= count;
        self.record = self.record.saturating_sub(count);
    }
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
            incoming: Incoming::default(),
        }
    }

    /// Goes on with what has been received, and appends what is to be sent; also after an error, for
    /// then that is the alert that tells the peer why.
    pub fn advance(&mut self, received: &[u8], outgoing: &mut Vec<u8>) -> Result<Progress, Error> {
        let incoming = &mut self.incoming;
        if incoming.bytes.len() + received.len() > MAX_WAITING {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        incoming.bytes.extend_from_slice(received);
        incoming.give();
        match &mut self.end {
            End::Client(client) => drive(
                client,
                UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records,
                incoming,
                outgoing,
            ),
            End::Server(server) => drive(
                server,
                UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records,
                incoming,
                outgoing,
            ),
        }
    }

    /// What was agreed on, once it is [`Progress::Done`].
    pub fn agreed(&self) -> Result<Agreed, Error> {
        match &self.end {
            End::Client(client) => agreed(client, client.handshake_kind()),
            End::Server(server) => agreed(server, server.handshake_kind()),
        }
    }

    /// How many bytes the record that comes next needs, or the rest of one that has begun. Who reads no
    /// more than that has nothing of what follows the handshake.
    pub fn wants(&self) -> usize {
        wanted(&self.incoming.bytes[self.incoming.record..])
    }

    /// The session, once it is [`Progress::Done`]. It holds what came after the handshake.
    pub fn finish(self) -> Result<Session, Error> {
        self.keys()?.session()
    }

    /// The same, where the kernel makes and opens the records if it can; else why it cannot. It must
    /// not have been given more than it [`wants`](Self::wants).
    pub fn finish_in_kernel(self, fd: BorrowedFd<'_>) -> Result<(Tls, Option<Unfit>), Error> {
        self.keys()?.begin(fd)
    }

    fn keys(self) -> Result<Keys, Error> {
        let suite = self.agreed()?.suite;
        let (secrets, renewal) = match self.end {
            End::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection()?;
                (secrets, Renewal::Client(kernel))
            }
            End::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection()?;
                (secrets, Renewal::Server(kernel))
            }
        };
        Ok(Keys {
            suite,
            secrets,
            renewal,
            rest: self.incoming.bytes,
        })
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

enum Step {
    Goes,
    Waits,
}

fn drive<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    process: Process<Data>,
    incoming: &mut Incoming,
    outgoing: &mut Vec<u8>,
) -> Result<Progress, Error> {
    loop {
        let UnbufferedStatus { discard, state } =
            process(connection, &mut incoming.bytes[..incoming.given]);
        let step = match state {
            Ok(ConnectionState::EncodeTlsData(data)) => {
                encode(data, outgoing);
                Ok(Step::Goes)
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Step::Goes)
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                Ok(Step::Waits)
            }
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                Err(Error::AlertReceived(AlertDescription::CloseNotify))
            }
            Ok(_) => Err(Error::General(
                "data came before the end of the handshake".into(),
            )),
            Err(error) => Err(error),
        };
        incoming.discard(discard);
        match step {
            Ok(Step::Goes) => {}
            Ok(Step::Waits) if !connection.is_handshaking() => return Ok(Progress::Done),
            Ok(Step::Waits) if incoming.give() => {}
            Ok(Step::Waits) => return Ok(Progress::Waiting),
            Err(error) => {
                last_records(connection, process, outgoing);
                return Err(error);
            }
        }
    }
}

/// After an error: the alert that tells the peer, which is there only now. What was wrong is not given
/// to rustls again.
fn last_records<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    process: Process<Data>,
    outgoing: &mut Vec<u8>,
) {
    while connection.wants_write() {
        match process(connection, &mut []).state {
            Ok(ConnectionState::EncodeTlsData(data)) => encode(data, outgoing),
            _ => return,
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
