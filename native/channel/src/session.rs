//! TLS after its handshake: records are made and opened here, by ciphers that rustls makes from the
//! secrets it agreed on; it also renews them and keeps tickets.
//!
//! rustls' own record layer would copy what is received three times. This one opens records where
//! they were read, and seals them straight from the pieces of a message. What a record may be is in
//! RFC 8446, sections 4.6, 5 and 6, and RFC 5246, sections 6 and 7.

use std::fmt;

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    InvalidMessage, ProtocolVersion, SupportedCipherSuite,
};

use crate::control::{
    Control, Effect, FATAL, KEY_UPDATE, MAX_PLAINTEXT, WARNING, alert_for, blocks, unexpected,
};
use crate::outbox::Outbox;

/// What encryption may add to a record in TLS 1.3 (RFC 8446, section 5.2) ...
const MAX_EXPANSION: usize = 256;
/// ... and in TLS 1.2 (RFC 5246, section 6.2.3).
const MAX_EXPANSION_12: usize = 2048;
/// A record's type, version and length.
const HEADER: usize = 5;
/// The longest record there is.
pub(crate) const MAX_RECORD: usize = HEADER + MAX_PLAINTEXT + MAX_EXPANSION_12;
/// Blocks that a key may still seal when no more data may be sealed with it: alerts.
const MARGIN: u64 = 64 * 1024;

/// One end of a TLS session.
pub struct Session {
    control: Control,
    sealing: Sealing,
    opening: Opening,
    /// Records that are made and not written.
    sealed: Outbox<Vec<u8>>,
    /// What was received of a record that is not complete.
    partial: Vec<u8>,
    /// Our answer to a key update, or to a wish to negotiate anew, is among `sealed`; it is the answer
    /// to all until it is written. A peer that asks and does not read gets no more.
    answered: bool,
}

struct Sealing {
    cipher: Box<dyn MessageEncrypter>,
    sequence: u64,
    /// How many blocks the key has made, at most.
    blocks: u64,
}

struct Opening {
    cipher: Box<dyn MessageDecrypter>,
    sequence: u64,
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
        control: Control,
        secrets: ExtractedSecrets,
        partial: Vec<u8>,
    ) -> Result<Self, Error> {
        Ok(Self {
            sealing: Sealing::new(control.suite, secrets.tx)?,
            opening: Opening::new(control.suite, secrets.rx)?,
            control,
            sealed: Outbox::default(),
            partial,
            answered: false,
        })
    }

    /// Makes records of `pieces` for the peer.
    pub fn seal(&mut self, pieces: &[&[u8]]) -> Result<(), Error> {
        let mut pieces = OutboundChunks::new(pieces);
        while !pieces.is_empty() {
            let (record, rest) = pieces.split_at(MAX_PLAINTEXT);
            self.spare_key()?;
            self.seal_record(ContentType::ApplicationData, record)?;
            pieces = rest;
        }
        Ok(())
    }

    /// Makes the record that says goodbye.
    pub fn seal_goodbye(&mut self) -> Result<(), Error> {
        self.seal_alert(WARNING, AlertDescription::CloseNotify)
    }

    /// Makes the record that tells the peer why this is the end.
    pub fn seal_end(&mut self, why: AlertDescription) -> Result<(), Error> {
        self.seal_alert(FATAL, why)
    }

    /// Tells the peer that our key changes, and changes it. It is done without being asked long
    /// before a key must not be used any more; TLS 1.2 cannot do it.
    pub fn renew_key(&mut self) -> Result<(), Error> {
        self.seal_record(ContentType::Handshake, OutboundChunks::Single(&KEY_UPDATE))?;
        self.sealing = Sealing::new(self.control.suite, self.control.sending()?)?;
        Ok(())
    }

    /// Takes the records that are to be written.
    pub fn take_sealed(&mut self) -> Vec<u8> {
        self.answered = false;
        self.sealed.take_all()
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
        self.keep(&input[used..]);
        Ok(opened)
    }

    /// What of a record is there already; it precedes what is read next.
    pub(crate) fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Keeps the beginning of a record, in place of what was kept before.
    pub(crate) fn keep(&mut self, partial: &[u8]) {
        self.partial = partial.to_vec();
    }

    /// Opens the complete records in `input`, where they are, and says how many bytes they were. What
    /// remains is to be kept ([`keep`](Self::keep)).
    pub(crate) fn open_in_place<E: From<Error>>(
        &mut self,
        input: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(usize, Opened), E> {
        let most = match self.control.is_tls13() {
            true => HEADER + MAX_PLAINTEXT + MAX_EXPANSION,
            false => MAX_RECORD,
        };
        let mut used = 0;
        while let Some(size) = self.told(record_size(&input[used..], most))? {
            let record = &mut input[used..used + size];
            used += size;
            let (header, payload) = record.split_at_mut(HEADER);
            let record = InboundOpaqueMessage::new(
                ContentType::from(header[0]),
                ProtocolVersion::from(u16::from_be_bytes([header[1], header[2]])),
                payload,
            );
            let outer = record.typ;
            if self.control.is_tls13() && outer != ContentType::ApplicationData {
                return Err(self.fail(unexpected(outer)).into());
            }
            let sequence = self.opening.sequence;
            self.opening.sequence += 1;
            let plain = self.opening.cipher.decrypt(record, sequence);
            let plain = plain.map_err(|error| self.fail(error))?;
            let (content, payload) = (plain.typ, plain.payload);
            if content == ContentType::ApplicationData && !payload.is_empty() {
                let expected = self.control.data();
                self.told(expected)?;
                take(payload)?;
                continue;
            }
            let opened = self.no_data(content, payload);
            if self.told(opened)? == Opened::End {
                return Ok((used, Opened::End));
            }
        }
        Ok((used, Opened::More))
    }

    fn no_data(&mut self, content: ContentType, payload: &[u8]) -> Result<Opened, Error> {
        match self.control.take(content, payload)? {
            Effect::Nothing => {}
            Effect::End => return Ok(Opened::End),
            Effect::NewKey { answer } => {
                self.opening = Opening::new(self.control.suite, self.control.receiving()?)?;
                if answer && !self.answered {
                    self.renew_key()?;
                    self.answered = true;
                }
            }
            Effect::Renegotiation if self.answered => {}
            Effect::Renegotiation => {
                self.seal_alert(WARNING, AlertDescription::NoRenegotiation)?;
                self.answered = true;
            }
        }
        Ok(Opened::More)
    }

    fn seal_alert(&mut self, level: u8, description: AlertDescription) -> Result<(), Error> {
        let alert = [level, u8::from(description)];
        self.seal_record(ContentType::Alert, OutboundChunks::Single(&alert))
    }

    /// Sees to it that the key may seal one more record of data.
    fn spare_key(&mut self) -> Result<(), Error> {
        let limit = self.control.confidentiality_limit();
        match self.control.is_tls13() {
            true if self.sealing.blocks >= limit / 2 => self.renew_key(),
            // To go on would be to give the key away.
            false if self.sealing.blocks.saturating_add(MARGIN) >= limit => Err(Error::General(
                "so much has been sent that TLS 1.2 allows no more with this cipher; \
                 connect again, or allow TLS 1.3 or ChaCha20, which have no such end"
                    .into(),
            )),
            _ => Ok(()),
        }
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
        if let Some(alert) = alert_for(&error) {
            // What matters is the first error; that the peer does not learn of it is no other.
            let _ = self.seal_end(alert);
        }
        error
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
            blocks: sequence.saturating_mul(blocks(MAX_PLAINTEXT)),
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
        self.blocks = self.blocks.saturating_add(blocks(record.payload.len()));
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

impl fmt::Debug for Session {
    /// Without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("suite", &self.control.suite)
            .finish_non_exhaustive()
    }
}

/// How many bytes are missing of the head of the record that `bytes` begin with or, where that is
/// there, of the record.
pub(crate) fn wanted(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<HEADER>() {
        None => HEADER - bytes.len(),
        Some(&[.., high, low]) => {
            let size = HEADER + usize::from(u16::from_be_bytes([high, low]));
            size.saturating_sub(bytes.len()).max(1)
        }
    }
}

/// The size of the record that `bytes` begin with, if all of it is there. It may be `most`.
pub(crate) fn record_size(bytes: &[u8], most: usize) -> Result<Option<usize>, Error> {
    let Some(&[_, major, _, high, low]) = bytes.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    match HEADER + usize::from(u16::from_be_bytes([high, low])) {
        size if size > most => Err(Error::PeerSentOversizedRecord),
        size => Ok((size <= bytes.len()).then_some(size)),
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

#[cfg(test)]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(test)]
mod tests {
    use rustls::PeerMisbehaved;

    use super::support::{VERSIONS, sessions};
    use super::*;
    use crate::control::{MAX_IDLE, MAX_MESSAGE};

    const TLS12: usize = 0;
    const TLS13: usize = 1;

    /// What the peer makes of a record of any kind.
    fn sent(
        from: &mut Session,
        to: &mut Session,
        content: ContentType,
        payload: &[u8],
    ) -> Result<Opened, Error> {
        from.seal_record(content, OutboundChunks::Single(payload))?;
        to.open(&from.take_sealed(), |_| Ok(()))
    }

    #[test]
    fn records_without_effect_end_the_session_when_they_are_many() {
        for version in VERSIONS {
            let (mut client, mut server) = sessions(version);
            let mut empty = || sent(&mut client, &mut server, ContentType::ApplicationData, &[]);
            for _ in 0..MAX_IDLE {
                assert_eq!(empty(), Ok(Opened::More));
            }
            assert_eq!(empty(), Err(PeerMisbehaved::TooManyEmptyFragments.into()));
        }
    }

    #[test]
    fn what_has_no_place_after_the_handshake_ends_the_session() {
        let finished = [20, 0, 0, 1, 0];
        let cases = [
            (ContentType::Unknown(99), &[1, 2, 3][..]),
            (ContentType::ChangeCipherSpec, &[1]),
            (ContentType::Heartbeat, &[1, 0, 0]),
            (ContentType::Handshake, &finished),
            (ContentType::Alert, &[]),
            (ContentType::Alert, &[2, 40, 0]),
            (ContentType::Alert, &[2, 40]),
        ];
        for version in VERSIONS {
            for (content, payload) in cases {
                let (mut client, mut server) = sessions(version);
                let result = sent(&mut client, &mut server, content, payload);
                assert!(result.is_err(), "{version:?} {content:?} {payload:?}");
            }
        }
    }

    #[test]
    fn plain_records_are_not_taken() {
        for version in VERSIONS {
            for record in [
                &[21, 3, 3, 0, 2, 1, 0][..],
                &[20, 3, 3, 0, 1, 1],
                &[23, 3, 3, 0, 0],
            ] {
                let (_, mut server) = sessions(version);
                assert!(server.open::<Error>(record, |_| Ok(())).is_err());
            }
        }
    }

    #[test]
    fn a_length_that_no_record_has_is_an_error_before_the_record_is_there() {
        for (version, most) in [(TLS12, MAX_EXPANSION_12), (TLS13, MAX_EXPANSION)] {
            let size = |size: usize| {
                let (_, mut server) = sessions(VERSIONS[version]);
                let [high, low] = u16::try_from(size).unwrap().to_be_bytes();
                server.open::<Error>(&[23, 3, 3, high, low], |_| Ok(()))
            };
            assert_eq!(size(MAX_PLAINTEXT + most), Ok(Opened::More));
            assert_eq!(
                size(MAX_PLAINTEXT + most + 1),
                Err(Error::PeerSentOversizedRecord)
            );
        }
    }

    #[test]
    fn a_handshake_message_comes_in_pieces_with_nothing_between_them() {
        let (mut client, mut server) = sessions(VERSIONS[TLS13]);
        let key_update = [24, 0, 0, 1, 1];
        for byte in key_update {
            assert!(server.sealed.len() == 0);
            sent(&mut client, &mut server, ContentType::Handshake, &[byte]).unwrap();
        }
        assert!(server.sealed.len() > 0, "the answer");

        let (mut client, mut server) = sessions(VERSIONS[TLS13]);
        sent(&mut client, &mut server, ContentType::Handshake, &[24]).unwrap();
        assert_eq!(
            sent(&mut client, &mut server, ContentType::ApplicationData, b"x"),
            Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
        );

        let (mut client, mut server) = sessions(VERSIONS[TLS13]);
        let two = [24, 0, 0, 1, 0, 24, 0, 0, 1, 0];
        assert_eq!(
            sent(&mut client, &mut server, ContentType::Handshake, &two),
            Err(PeerMisbehaved::KeyEpochWithPendingFragment.into())
        );
    }

    #[test]
    fn a_handshake_message_is_kept_up_to_a_bound() {
        for (length, enough) in [([0, 0xff, 0xff], 5), ([1, 0, 1], 1)] {
            let (mut server, mut client) = sessions(VERSIONS[TLS13]);
            let mut piece = vec![4, length[0], length[1], length[2]];
            let mut count = 0;
            while sent(&mut server, &mut client, ContentType::Handshake, &piece).is_ok() {
                assert!(client.control.kept() <= MAX_MESSAGE);
                piece = vec![0; MAX_PLAINTEXT];
                count += 1;
            }
            assert!(count <= enough, "{count}");
        }
    }

    #[test]
    fn a_peer_that_asks_and_does_not_read_is_answered_once() {
        let asks = [
            (TLS12, &[0, 0, 0, 0][..]), // a HelloRequest
            (TLS13, &[24, 0, 0, 1, 1]), // a KeyUpdate
        ];
        for (version, ask) in asks {
            let (mut server, mut client) = sessions(VERSIONS[version]);
            let mut lengths = Vec::new();
            for _ in 0..10 {
                sent(&mut server, &mut client, ContentType::Handshake, ask).unwrap();
                if version == TLS13 {
                    // As after a KeyUpdate of its own making.
                    let secrets = server.control.sending().unwrap();
                    server.sealing = Sealing::new(server.control.suite, secrets).unwrap();
                }
                lengths.push(client.sealed.len());
            }
            assert!(lengths[0] > 0);
            assert!(lengths.iter().all(|length| *length == lengths[0]));
            let written = client.sealed.len();
            client.written(written);
            sent(&mut server, &mut client, ContentType::Handshake, ask).unwrap();
            assert!(client.sealed.len() > 0);
        }
    }

    #[test]
    fn tls13_renews_its_key_long_before_its_limit() {
        let (mut client, mut server) = sessions(VERSIONS[TLS13]);
        let limit = client.control.confidentiality_limit();
        assert!(limit < u64::MAX);
        client.sealing.blocks = limit / 2 - 1;
        client.seal(&[&[7; 3 * MAX_PLAINTEXT]]).unwrap();
        assert_eq!(client.sealing.sequence, 2, "of the new key");
        let mut plain = 0;
        let opened = server.open::<Error>(&client.take_sealed(), |piece| {
            plain += piece.len();
            Ok(())
        });
        assert_eq!((opened, plain), (Ok(Opened::More), 3 * MAX_PLAINTEXT));
    }

    #[test]
    fn tls12_ends_at_the_limit_of_its_key_with_a_sentence_and_a_goodbye() {
        let (mut client, mut server) = sessions(VERSIONS[TLS12]);
        let limit = client.control.confidentiality_limit();
        assert!(limit < u64::MAX);
        client.sealing.blocks = limit - MARGIN - 1;
        client.seal(&[b"last"]).unwrap();
        let error = client.seal(&[b"one more"]).unwrap_err().to_string();
        assert!(error.contains("connect again"), "{error}");
        client.seal_goodbye().unwrap();
        let opened = server.open::<Error>(&client.take_sealed(), |_| Ok(()));
        assert_eq!(opened, Ok(Opened::End));
    }
}
