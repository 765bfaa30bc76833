//! TLS after its handshake: records are made and opened here, by ciphers that rustls makes from the
//! secrets it agreed on; it also renews them and keeps tickets.
//!
//! rustls' own record layer would copy what is received three times. This one opens records where
//! they were read, and seals them straight from the pieces of a message. What a record may be is in
//! RFC 8446, sections 4.6, 5 and 6, and RFC 5246, sections 6 and 7.

use std::fmt;

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    HandshakeType, InvalidMessage, PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
};

use crate::outbox::Outbox;

/// The most plaintext in a record.
const MAX_PLAINTEXT: usize = 16 * 1024;
/// What encryption may add to a record (RFC 8446, section 5.2: 256; RFC 5246, section 6.2.3: 2048).
const MAX_EXPANSION: usize = 2048;
/// A record's type, version and length.
const HEADER: usize = 5;
/// The longest record there is.
pub(crate) const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + MAX_EXPANSION;
/// A handshake message after the handshake: a ticket, mostly. Of a longer one nothing more is kept.
const MAX_MESSAGE: usize = 64 * 1024;
/// Records without any effect that a peer may send one after the other.
const MAX_IDLE: u8 = 32;
/// Records before the limit of a key at which it is renewed.
const MARGIN: u64 = 1024;

/// One end of a TLS session.
pub struct Session {
    renewal: Renewal,
    suite: SupportedCipherSuite,
    sealing: Sealing,
    opening: Opening,
    /// Records that are made and not written.
    sealed: Outbox<Vec<u8>>,
    /// What was received of a record that is not complete.
    partial: Vec<u8>,
    /// What was received of a handshake message that is not complete.
    message: Vec<u8>,
    /// Our answer to a key update is among `sealed`; it is the answer to all until it is written.
    answered: bool,
    /// Records without effect since the last with one.
    idle: u8,
}

struct Sealing {
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
}

struct Opening {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
}

/// What makes new keys, and keeps tickets.
pub(crate) enum Renewal {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// Whether more can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The peer goes on.
    More,
    /// The peer has said goodbye.
    End,
}

impl Session {
    pub(crate) fn new(
        suite: SupportedCipherSuite,
        secrets: ExtractedSecrets,
        renewal: Renewal,
        partial: Vec<u8>,
    ) -> Result<Self, Error> {
        Ok(Self {
            renewal,
            suite,
            sealing: Sealing::new(suite, secrets.tx)?,
            opening: Opening::new(suite, secrets.rx)?,
            sealed: Outbox::default(),
            partial,
            message: Vec::new(),
            answered: false,
            idle: 0,
        })
    }

    /// Makes records of `pieces` for the peer.
    pub fn seal(&mut self, pieces: &[&[u8]]) -> Result<(), Error> {
        self.seal_as(ContentType::ApplicationData, OutboundChunks::new(pieces))
    }

    /// Makes the record that says goodbye.
    pub fn seal_goodbye(&mut self) -> Result<(), Error> {
        self.seal_alert(WARNING, AlertDescription::CloseNotify)
    }

    /// Takes the records that are to be written.
    pub fn take_sealed(&mut self) -> Vec<u8> {
        let mut records = Vec::with_capacity(self.sealed.len());
        while self.sealed.len() > 0 {
            let slices: smallvec::SmallVec<[std::io::IoSlice<'_>; 8]> =
                self.sealed.slices(8, usize::MAX);
            let taken = slices.iter().map(|slice| slice.len()).sum();
            slices
                .iter()
                .for_each(|slice| records.extend_from_slice(slice));
            drop(slices);
            self.written(taken);
        }
        records
    }

    /// The records that are to be written.
    pub(crate) fn sealed(&self) -> &Outbox<Vec<u8>> {
        &self.sealed
    }

    /// So much of them has been written.
    pub(crate) fn written(&mut self, count: usize) {
        self.sealed.advance(count);
        self.answered &= self.sealed.len() > 0;
    }

    /// Opens what has been received, and what was left before: `take` gets the plaintext, piece by
    /// piece. After an error the alert that tells the peer is among what is to be written.
    pub fn open<E: From<Error>>(
        &mut self,
        received: &[u8],
        take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Opened, E> {
        let mut input = std::mem::take(&mut self.partial);
        input.extend_from_slice(received);
        let (used, opened) = self.open_in_place(&mut input, take)?;
        input.drain(..used);
        self.partial = input;
        Ok(opened)
    }

    /// What of a record is there already; it precedes what is read next. Give what remains of both
    /// back by [`keep`](Self::keep).
    pub(crate) fn take_partial(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    /// Keeps the beginning of a record.
    pub(crate) fn keep(&mut self, partial: &[u8]) {
        self.partial.extend_from_slice(partial);
    }

    /// Opens the complete records in `input`, where they are, and says how many bytes they were.
    pub(crate) fn open_in_place<E: From<Error>>(
        &mut self,
        input: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(usize, Opened), E> {
        let mut used = 0;
        while let Some(size) = self.told(record_size(&input[used..]))? {
            let record = &mut input[used..used + size];
            used += size;
            let (header, payload) = record.split_at_mut(HEADER);
            let record = InboundOpaqueMessage::new(
                ContentType::from(header[0]),
                ProtocolVersion::from(u16::from_be_bytes([header[1], header[2]])),
                payload,
            );
            let outer = record.typ;
            if self.is_tls13() && outer != ContentType::ApplicationData {
                return Err(self.fail(unexpected(outer)).into());
            }
            let sequence = self.opening.sequence;
            self.opening.sequence += 1;
            let plain = self.opening.cipher.decrypt(record, sequence);
            let plain = plain.map_err(|error| self.fail(error))?;
            let (content, payload) = (plain.typ, plain.payload);
            if content == ContentType::ApplicationData && !payload.is_empty() {
                self.idle = 0;
                take(payload)?;
                continue;
            }
            let opened = self.control(content, payload);
            if self.told(opened)? == Opened::End {
                return Ok((used, Opened::End));
            }
        }
        Ok((used, Opened::More))
    }

    /// Whatever is no data.
    fn control(&mut self, content: ContentType, payload: &[u8]) -> Result<Opened, Error> {
        self.idle += 1;
        if self.idle > MAX_IDLE {
            return Err(PeerMisbehaved::TooManyEmptyFragments.into());
        }
        match content {
            ContentType::ApplicationData => Ok(Opened::More),
            ContentType::Alert => self.alert(payload),
            ContentType::Handshake => self.handshake(payload).map(|()| Opened::More),
            other => Err(unexpected(other)),
        }
    }

    fn alert(&mut self, payload: &[u8]) -> Result<Opened, Error> {
        let &[level, description] = payload else {
            return Err(InvalidMessage::TrailingData("Alert").into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(Opened::End),
            AlertDescription::UserCanceled => Ok(Opened::More),
            _ if level == WARNING && !self.is_tls13() => Ok(Opened::More),
            fatal => Err(Error::AlertReceived(fatal)),
        }
    }

    fn handshake(&mut self, payload: &[u8]) -> Result<(), Error> {
        if self.message.len() + payload.len() > MAX_MESSAGE {
            return Err(InvalidMessage::HandshakePayloadTooLarge.into());
        }
        self.message.extend_from_slice(payload);
        let bytes = std::mem::take(&mut self.message);
        let mut rest = bytes.as_slice();
        while let [kind, a, b, c, tail @ ..] = rest {
            let size = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if size > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((body, after)) = tail.split_at_checked(size) else {
                break;
            };
            self.handshake_message(HandshakeType::from(*kind), body, after.is_empty())?;
            rest = after;
        }
        self.message.extend_from_slice(rest);
        Ok(())
    }

    /// `last`: nothing follows in the same record, as it must be before keys change.
    fn handshake_message(
        &mut self,
        kind: HandshakeType,
        body: &[u8],
        last: bool,
    ) -> Result<(), Error> {
        match (
            kind,
            &mut self.renewal,
            matches!(self.suite, SupportedCipherSuite::Tls13(_)),
        ) {
            (HandshakeType::HelloRequest | HandshakeType::ClientHello, _, false) => {
                self.seal_alert(WARNING, AlertDescription::NoRenegotiation)
            }
            (HandshakeType::NewSessionTicket, Renewal::Client(client), true) => {
                client.handle_new_session_ticket(body)
            }
            (HandshakeType::KeyUpdate, _, true) if last => self.key_update(body),
            (HandshakeType::KeyUpdate, _, true) => {
                Err(PeerMisbehaved::KeyEpochWithPendingFragment.into())
            }
            (other, ..) => Err(Error::InappropriateHandshakeMessage {
                expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
                got_type: other,
            }),
        }
    }

    fn key_update(&mut self, body: &[u8]) -> Result<(), Error> {
        let wants_ours = match body {
            [0] => false,
            [1] => true,
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        };
        self.opening = Opening::new(self.suite, self.renewal.receiving()?)?;
        if wants_ours && !self.answered {
            self.renew_sealing()?;
            self.answered = true;
        }
        Ok(())
    }

    /// Tells the peer that the key changes, and changes it.
    fn renew_sealing(&mut self) -> Result<(), Error> {
        let key_update = [u8::from(HandshakeType::KeyUpdate), 0, 0, 1, 0];
        self.seal_record(ContentType::Handshake, OutboundChunks::Single(&key_update))?;
        self.sealing = Sealing::new(self.suite, self.renewal.sending()?)?;
        Ok(())
    }

    fn seal_alert(&mut self, level: u8, description: AlertDescription) -> Result<(), Error> {
        let alert = [level, u8::from(description)];
        self.seal_as(ContentType::Alert, OutboundChunks::Single(&alert))
    }

    fn seal_as(
        &mut self,
        content: ContentType,
        mut pieces: OutboundChunks<'_>,
    ) -> Result<(), Error> {
        while !pieces.is_empty() {
            let (record, rest) = pieces.split_at(MAX_PLAINTEXT);
            if self.sealing.sequence + MARGIN >= confidentiality_limit(self.suite) {
                match self.is_tls13() {
                    true => self.renew_sealing()?,
                    // There is no way to renew a key, and to go on would be to give it away.
                    false => return Err(Error::EncryptError),
                }
            }
            self.seal_record(content, record)?;
            pieces = rest;
        }
        Ok(())
    }

    fn seal_record(
        &mut self,
        content: ContentType,
        payload: OutboundChunks<'_>,
    ) -> Result<(), Error> {
        let record = self.sealing.seal(content, payload)?;
        self.sealed.push_owned(record);
        Ok(())
    }

    /// Tells the peer of an error of its making.
    fn told<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: Error) -> Error {
        let alert = match &error {
            Error::AlertReceived(_) => return error,
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::UnexpectedMessage,
        };
        // What matters is the first error; that the peer does not learn of it is no other.
        let _ = self.seal_alert(FATAL, alert);
        error
    }

    fn is_tls13(&self) -> bool {
        matches!(self.suite, SupportedCipherSuite::Tls13(_))
    }
}

impl Sealing {
    fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let mut new = Self {
            cipher: encrypter(suite, secrets)?,
            sequence: 0,
        };
        if sequence > 0 {
            // aws-lc sees to it that no nonce comes twice, and counts from the first it is given, which
            // must be a key's first. rustls has used that one; what is sealed with it here goes nowhere.
            new.seal(ContentType::ApplicationData, OutboundChunks::new_empty())?;
            new.sequence = sequence;
        }
        Ok(new)
    }

    fn seal(
        &mut self,
        content: ContentType,
        payload: OutboundChunks<'_>,
    ) -> Result<Vec<u8>, Error> {
        let record = OutboundPlainMessage {
            typ: content,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let sealed = self.cipher.encrypt(record, self.sequence)?;
        self.sequence += 1;
        Ok(sealed.encode())
    }
}

impl Opening {
    fn new(
        suite: SupportedCipherSuite,
        (sequence, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let cipher = decrypter(suite, secrets)?;
        Ok(Self { cipher, sequence })
    }
}

/// The levels of an alert.
const WARNING: u8 = 1;
const FATAL: u8 = 2;

impl fmt::Debug for Session {
    /// Without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("suite", &self.suite)
            .finish_non_exhaustive()
    }
}

impl Renewal {
    fn sending(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(client) => client.update_tx_secret(),
            Self::Server(server) => server.update_tx_secret(),
        }
    }

    fn receiving(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        match self {
            Self::Client(client) => client.update_rx_secret(),
            Self::Server(server) => server.update_rx_secret(),
        }
    }
}

/// The size of the record that `bytes` begin with, if all of it is there.
fn record_size(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let Some(&[_, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    match HEADER + usize::from(u16::from_be_bytes([high, low])) {
        size if size > MAX_RECORD => Err(Error::PeerSentOversizedRecord),
        size => Ok((size <= bytes.len()).then_some(size)),
    }
}

fn unexpected(content: ContentType) -> Error {
    Error::InappropriateMessage {
        expect_types: vec![ContentType::ApplicationData],
        got_type: content,
    }
}

fn confidentiality_limit(suite: SupportedCipherSuite) -> u64 {
    match suite {
        SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
    }
}

fn encrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    let (key, iv) = parts(secrets)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            let (fixed, explicit) = iv.as_ref().split_at(fixed);
            suite.aead_alg.encrypter(key, fixed, explicit)
        }
    })
}

fn decrypter(
    suite: SupportedCipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    let (key, iv) = parts(secrets)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}

fn parts(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General(
            "rustls has a cipher that is not known here".into(),
        )),
    }
}
