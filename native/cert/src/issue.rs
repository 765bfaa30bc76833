//! Making certificates: ECDSA keys on P-256, an authority, and what it signs.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use time::{Duration, OffsetDateTime};

use crate::Error;

/// How long an authority lasts at least, so that what expires first is what it signed.
const AUTHORITY_DAYS: i64 = 3650;

/// A certificate and its private key, both as PEM.
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A new authority.
pub(crate) fn authority(days: i64) -> Result<Pair, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // Two authorities must not have one name, or peers could not tell which of them signed.
    let unique: String = key
        .public_key_raw()
        .iter()
        .rev()
        .take(4)
        .map(|b| format!("{b:02x}"))
        .collect();
    params.distinguished_name = common_name(&format!("polydist authority {unique}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, days.max(AUTHORITY_DAYS));
    let cert = params.self_signed(&key)?.pem();
    let key = key.serialize_pem();
    Ok(Pair { cert, key })
}

/// A node's certificate, good for both ends of a connection.
pub(crate) fn identity(
    authority: &Pair,
    name: &str,
    hosts: &[String],
    days: i64,
) -> Result<Pair, Error> {
    let issuer = Issuer::from_ca_cert_pem(&authority.cert, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = common_name(name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days);
    let cert = params.signed_by(&key, &issuer)?.pem();
    let key = key.serialize_pem();
    Ok(Pair { cert, key })
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Valid until `days` from now, and since a day before that or now: clocks differ.
fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_after = now + Duration::days(days);
    params.not_before = params.not_after.min(now) - Duration::days(1);
}
