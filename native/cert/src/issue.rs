//! Making certificates: an authority, and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;

use crate::error::Error;
use crate::keys::{self, KeyType};
use crate::{facts, files};

/// How long an authority lasts at least, so that what expires first is what it signed.
pub(crate) const AUTHORITY_DAYS: i64 = 3650;

/// A certificate and its private key, both as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A new authority. Without a name it gets one of its own.
pub(crate) fn authority(name: Option<&str>, days: i64) -> Result<Pair, Error> {
    let key = KeyType::Ecdsa.generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&match name {
        Some(name) => name.to_owned(),
        // Two authorities must not have one name, or peers could not tell which of them signed.
        None => format!("polydist authority {}", facts::hex(&random::<4>()?, "")),
    });
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    valid_for(&mut params, days);
    let cert = params.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    Ok(Pair { cert, key })
}

/// What a node's certificate says.
pub(crate) struct Identity {
    pub(crate) subject: DistinguishedName,
    pub(crate) names: Vec<SanType>,
    pub(crate) days: i64,
}

/// An authority that can sign.
pub(crate) struct Authority {
    /// ca.pem as it was read.
    pub(crate) pem: String,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) path: PathBuf,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) issuer: Issuer<'static, KeyPair>,
    /// What its certificates and lists call its key.
    pub(crate) key_id: KeyIdMethod,
}

impl Authority {
    /// The one in a directory that `init` or `ca` has made.
    pub(crate) fn read(dir: &Path) -> Result<Self, Error> {
        const HINT: &str =
            "; --ca wants a directory that polydist-cert ca or polydist-cert init has made";
        let cert = files::read_text(&dir.join(files::AUTHORITY), HINT)?;
        let key = files::read_text(&dir.join(files::AUTHORITY_KEY), HINT)?;
        Self::of(Pair { cert, key }, dir)
    }

    /// This pair, which is in `dir` or is going to be.
    pub(crate) fn of(pair: Pair, dir: &Path) -> Result<Self, Error> {
        let (path, key_path) = (dir.join(files::AUTHORITY), dir.join(files::AUTHORITY_KEY));
        let der = facts::first(pair.cert.as_bytes(), &path)?;
        let key = keys::read(&pair.key, &key_path, None)?;
        let cert = facts::parse(&der, &path)?;
        if cert.public_key().raw != key.subject_public_key_info() {
            let why = format!(
                "it is not the key of {}; put back the pair that was made together",
                path.display()
            );
            return Err(Error::unusable(&key_path, why));
        }
        if !cert.is_ca() {
            let why = "the certificate is no authority's; make one with polydist-cert ca";
            return Err(Error::unusable(&path, why));
        }
        let key_id = cert
            .extensions()
            .iter()
            .find_map(|ext| match ext.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => {
                    Some(KeyIdMethod::PreSpecified(id.0.to_vec()))
                }
                _ => None,
            });
        let not_after = cert.validity().not_after.to_datetime();
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            key_id: key_id.unwrap_or(KeyIdMethod::Sha256),
            pem: pair.cert,
            der,
            path,
            not_after,
        })
    }

    /// A node's certificate for this key, good for both ends of a connection, as PEM.
    pub(crate) fn issue(&self, identity: Identity, key: &KeyPair) -> Result<String, Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = identity.subject;
        params.subject_alt_names = identity.names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        valid_for(&mut params, identity.days);
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }

    /// What to say of a certificate that is to last so many days and would last longer than this:
    /// nobody accepts it from then on.
    pub(crate) fn ends_before(&self, days: i64) -> Option<String> {
        let left = facts::days_until(self.not_after.unix_timestamp());
        (left < days).then(|| {
            format!(
                "{} ends in {left} days, before the certificate does; --days {left} at most, or make a new authority",
                self.path.display()
            )
        })
    }
}

pub(crate) fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// One that no other certificate of the authority has, also when it is for the same key.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = random::<16>()?;
    bytes[0] = bytes[0] & 0x7f | 0x40; // positive, and always of one length
    Ok(SerialNumber::from_slice(&bytes))
}

/// Bytes that nobody can guess.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], rcgen::Error> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(bytes)
}

/// Valid until `days` from now, and since a day before that or now: clocks differ.
fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_after = now + Duration::days(days);
    params.not_before = params.not_after.min(now) - Duration::days(1);
}
