//! What a TLS peer may say after the handshake that is no data: alerts, new keys, tickets. Also where
//! the kernel makes and opens the records.

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, HandshakeType, InvalidMessage,
    PeerMisbehaved, SupportedCipherSuite,
};

/// A handshake message after the handshake: a ticket, mostly. Of a longer one nothing more is kept.
pub(crate) const MAX_MESSAGE: usize = 64 * 1024;
/// Records without any effect that a peer may send one after the other.
pub(crate) const MAX_IDLE: u8 = 32;

/// The most plaintext in a record.
pub(crate) const MAX_PLAINTEXT: usize = 16 * 1024;
/// What AES makes at once.
const BLOCK: usize = 16;

/// The levels of an alert.
pub(crate) const WARNING: u8 = 1;
pub(crate) const FATAL: u8 = 2;

/// A handshake message: our key changes, and yours need not.
pub(crate) const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// What the two ends of a session have agreed on, and what goes on between them.
pub(crate) struct Control {
    pub(crate) suite: SupportedCipherSuite,
    renewal: Renewal,
    /// What was received of a handshake message that is not complete.
    message: Vec<u8>,
    /// Records without effect since the last with one.
    idle: u8,
}

/// What makes new keys, and keeps tickets.
pub(crate) enum Renewal {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What is to be done about a record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// The peer has said goodbye.
    End,
    /// The peer's key has changed; `answer`: it wants ours to change as well.
    NewKey {
        answer: bool,
    },
    /// The peer wants to negotiate anew.
    Renegotiation,
}

impl Control {
    pub(crate) fn new(suite: SupportedCipherSuite, renewal: Renewal) -> Self {
        Self {
            suite,
            renewal,
            message: Vec::new(),
            idle: 0,
        }
    }

    pub(crate) fn is_tls13(&self) -> bool {
        matches!(self.suite, SupportedCipherSuite::Tls13(_))
    }

    /// How many blocks one key may seal, as [`blocks`] counts them. rustls knows how many records, and
    /// takes all for full ones; but what gives a key away are blocks, and most records have few
    /// (draft-irtf-cfrg-aead-limits, section 5.1).
    pub(crate) fn confidentiality_limit(&self) -> u64 {
        let records = match self.suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        records.saturating_mul((MAX_PLAINTEXT / BLOCK) as u64)
    }

    /// Our next key.
    pub(crate) fn sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match &mut self.renewal {
            Renewal::Client(client) => client.update_tx_secret(),
            Renewal::Server(server) => server.update_tx_secret(),
        }
    }

    /// The peer's next key.
    pub(crate) fn receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match &mut self.renewal {
            Renewal::Client(client) => client.update_rx_secret(),
            Renewal::Server(server) => server.update_rx_secret(),
        }
    }

    /// Data has come; but it must not come between the parts of a message.
    pub(crate) fn data(&mut self) -> Result<(), Error> {
        self.idle = 0;
        match self.message.is_empty() {
            true => Ok(()),
            false => Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into()),
        }
    }

    /// Takes a record that has no data.
    pub(crate) fn take(&mut self, content: ContentType, payload: &[u8]) -> Result<Effect, Error> {
        if content != ContentType::Handshake && !self.message.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        self.idle += 1;
        if self.idle > MAX_IDLE {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        match content {
            ContentType::ApplicationData => Ok(Effect::Nothing),
            ContentType::Alert => self.alert(payload),
            ContentType::Handshake => self.handshake(payload),
            other => Err(unexpected(other)),
        }
    }

    fn alert(&mut self, payload: &[u8]) -> Result<Effect, Error> {
        let &[level, description] = payload else {
            return Err(InvalidMessage::TrailingData("Alert").into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(Effect::End),
            AlertDescription::UserCanceled => Ok(Effect::Nothing),
            _ if level == WARNING && !self.is_tls13() => Ok(Effect::Nothing),
            fatal => Err(Error::AlertReceived(fatal)),
        }
    }

    fn handshake(&mut self, payload: &[u8]) -> Result<Effect, Error> {
        if self.message.len() + payload.len() > MAX_MESSAGE {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        self.message.extend_from_slice(payload);
        let bytes = std::mem::take(&mut self.message);
        let mut rest = bytes.as_slice();
        let mut effect = Effect::Nothing;
        while let [kind, a, b, c, tail @ ..] = rest {
            let size = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if size > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((body, after)) = tail.split_at_checked(size) else {
                break;
            };
            effect = self.message(HandshakeType::from(*kind), body)?;
            rest = after;
            // Whatever follows in the same record would have to be of the old key and the new one.
            if matches!(effect, Effect::NewKey { .. }) && !rest.is_empty() {
                return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
            }
        }
        self.message.extend_from_slice(rest);
        Ok(effect)
    }

    fn message(&mut self, kind: HandshakeType, body: &[u8]) -> Result<Effect, Error> {
        let tls13 = self.is_tls13();
        match (kind, &mut self.renewal, tls13) {
            (HandshakeType::HelloRequest | HandshakeType::ClientHello, _, false) => {
                Ok(Effect::Renegotiation)
            }
            (HandshakeType::NewSessionTicket, Renewal::Client(client), true) => client
                .handle_new_session_ticket(body)
                .map(|()| Effect::Nothing),
            (HandshakeType::KeyUpdate, _, true) => match body {
                [0] => Ok(Effect::NewKey { answer: false }),
                [1] => Ok(Effect::NewKey { answer: true }),
                _ => Err(InvalidMessage::InvalidKeyUpdate.into()),
            },
            (other, ..) => Err(Error::InappropriateHandshakeMessage {
                expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
                got_type: other,
            }),
        }
    }
}

/// The most blocks that a key has to make for this much plaintext, in records as long as can be.
pub(crate) fn blocks(plaintext: usize) -> u64 {
    (plaintext / BLOCK + 3 * (plaintext / MAX_PLAINTEXT + 1)) as u64
}

/// What tells the peer of an error of its making; nothing if it is the peer who told us.
pub(crate) fn alert_for(error: &Error) -> Option<AlertDescription> {
    match error {
        Error::AlertReceived(_) => None,
        Error::DecryptError => Some(AlertDescription::BadRecordMac),
        Error::PeerSentOversizedRecord => Some(AlertDescription::RecordOverflow),
        Error::InvalidMessage(_) => Some(AlertDescription::DecodeError),
        _ => Some(AlertDescription::UnexpectedMessage),
    }
}

pub(crate) fn unexpected(content: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type: content,
    }
}

#[cfg(test)]
impl Control {
    /// How much of an incomplete message is kept.
    pub(crate) fn kept(&self) -> usize {
        self.message.len()
    }
}
