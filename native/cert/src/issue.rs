//! Making certificates: an authority, and what it signs.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use clap::ValueEnum;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519,
    PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::ParsedExtension;

use crate::error::Error;
use crate::{facts, files};

/// How long an authority lasts at least, so that what expires first is what it signed.
pub(crate) const AUTHORITY_DAYS: i64 = 3650;

/// A certificate and its private key, both as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// What kind of key a certificate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyType {
    /// ECDSA on the curve P-256, which everything takes
    Ecdsa,
    /// RSA of 3072 bits
    Rsa,
    /// Ed25519, which stock nodes of OTP 25 and 27 do not take by default
    Ed25519,
}

impl KeyType {
    pub(crate) fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
            Self::Ed25519 => ed25519(),
        }
    }
}

/// In the format that everything reads; rcgen's own has the public key with it, which openssl
/// refuses.
fn ed25519() -> Result<KeyPair, rcgen::Error> {
    let pkcs8 = Ed25519KeyPair::generate().and_then(|key| key.to_pkcs8v1());
    let pkcs8 = pkcs8.map_err(|_| rcgen::Error::RingUnspecified)?;
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_ref().into(), &PKCS_ED25519)
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
        let key = read_key(&pair.key, &key_path)?;
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

    /// A new key with its certificate.
    pub(crate) fn new_pair(&self, identity: Identity, kind: KeyType) -> Result<Pair, Error> {
        let key = kind.generate()?;
        let cert = self.issue(identity, &key)?;
        let key = key.serialize_pem();
        Ok(Pair { cert, key })
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

/// A private key that is not encrypted.
pub(crate) fn read_key(pem: &str, path: &Path) -> Result<KeyPair, Error> {
    if is_encrypted(pem) {
        return Err(Error::unusable(
            path,
            "the key is encrypted; give a copy that is not",
        ));
    }
    let unusable = |why: &dyn Display| {
        Error::unusable(
            path,
            format!("it holds no private key that can be used: {why}"),
        )
    };
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|error| unusable(&error))?;
    KeyPair::try_from(&der).map_err(|error| unusable(&error))
}

/// Whether a passphrase is needed for the key in this PEM text.
pub(crate) fn is_encrypted(pem: &str) -> bool {
    pem.contains("BEGIN ENCRYPTED PRIVATE KEY") || pem.contains("Proc-Type: 4,ENCRYPTED")
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

fn random<const N: usize>() -> Result<[u8; N], rcgen::Error> {
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
