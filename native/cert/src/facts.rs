//! What is in a certificate, for people and for the tool's own decisions.

use std::net::IpAddr;
use std::path::Path;

use aws_lc_rs::digest::{SHA256, digest};
use polydist_transport::Certificate;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::Oid;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use crate::error::Error;
use crate::files;
use crate::names::NODE_SCHEME;

/// By bit, as RFC 5280 has them.
const KEY_USAGES: [&str; 9] = [
    "digitalSignature",
    "nonRepudiation",
    "keyEncipherment",
    "dataEncipherment",
    "keyAgreement",
    "keyCertSign",
    "cRLSign",
    "encipherOnly",
    "decipherOnly",
];

/// A certificate as the tool shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) subject: String,
    pub(crate) issuer: String,
    /// In hexadecimal.
    pub(crate) serial: String,
    /// DNS names and IP addresses; the common name if there are none.
    pub(crate) hosts: Vec<String>,
    /// Names of nodes, from URIs `erlang:name@host`.
    pub(crate) nodes: Vec<String>,
    /// What else is among the subjectAltNames.
    pub(crate) other_names: Vec<String>,
    /// In seconds since 1970, as all times here.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// Until it ends; below zero when it has ended days ago.
    pub(crate) days_left: i64,
    pub(crate) key: String,
    pub(crate) authority: bool,
    pub(crate) key_usages: Vec<String>,
    pub(crate) extended_key_usages: Vec<String>,
    /// SHA-256, in hexadecimal.
    pub(crate) fingerprint: String,
}

impl Facts {
    /// Of a certificate that came from this file.
    pub(crate) fn of(der: &CertificateDer<'_>, from: &Path) -> Result<Self, Error> {
        let cert = parse(der, from)?;
        let certificate = Certificate::of(der);
        let certificate = certificate.map_err(|error| Error::unusable(from, error.to_string()))?;
        let mut facts = Self {
            subject: certificate.subject,
            issuer: certificate.issuer,
            serial: certificate.serial,
            hosts: match cert.is_ca() {
                true => Vec::new(), // its common name is no host's
                false => certificate.hosts,
            },
            nodes: certificate.nodes,
            other_names: Vec::new(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            days_left: days_until(certificate.not_after),
            key: key_type(&cert),
            authority: cert.is_ca(),
            key_usages: Vec::new(),
            extended_key_usages: Vec::new(),
            fingerprint: hex(digest(&SHA256, der).as_ref(), ":"),
        };
        for extension in cert.extensions() {
            facts.add(extension.parsed_extension());
        }
        Ok(facts)
    }

    fn add(&mut self, extension: &ParsedExtension<'_>) {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                let others = names.general_names.iter().filter(|name| is_other(name));
                self.other_names = others.map(ToString::to_string).collect();
            }
            ParsedExtension::KeyUsage(usage) => {
                let set = KEY_USAGES.iter().enumerate();
                let set = set.filter(|(bit, _)| usage.flags >> bit & 1 == 1);
                self.key_usages = set.map(|(_, name)| name.to_string()).collect();
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let known = [
                    (usage.any, "any"),
                    (usage.server_auth, "serverAuth"),
                    (usage.client_auth, "clientAuth"),
                    (usage.code_signing, "codeSigning"),
                    (usage.email_protection, "emailProtection"),
                    (usage.time_stamping, "timeStamping"),
                    (usage.ocsp_signing, "OCSPSigning"),
                ];
                let known = known.iter().filter(|(set, _)| *set);
                self.extended_key_usages = known
                    .map(|(_, name)| name.to_string())
                    .chain(usage.other.iter().map(Oid::to_id_string))
                    .collect();
            }
            _ => {}
        }
    }
}

/// What nodes take no notice of.
fn is_other(name: &GeneralName<'_>) -> bool {
    match name {
        GeneralName::DNSName(_) | GeneralName::IPAddress(_) => false,
        GeneralName::URI(uri) => !uri.starts_with(NODE_SCHEME),
        _ => true,
    }
}

/// The certificates in a PEM or DER file, the first one first.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    all(&files::read(path)?, path)
}

fn all(text: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    if text.first() == Some(&0x30) {
        return Ok(vec![CertificateDer::from(text.to_vec())]);
    }
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::unusable(path, format!("it is no valid PEM file: {error}")))
}

/// The first certificate in a file, which is the one that its key belongs to.
pub(crate) fn first(text: &[u8], path: &Path) -> Result<CertificateDer<'static>, Error> {
    let first = all(text, path)?.into_iter().next();
    first.ok_or_else(|| Error::unusable(path, "it holds no certificate"))
}

pub(crate) fn parse<'a>(
    der: &'a CertificateDer<'_>,
    from: &Path,
) -> Result<X509Certificate<'a>, Error> {
    X509Certificate::from_der(der)
        .map(|(_, cert)| cert)
        .map_err(|error| Error::unusable(from, format!("it holds no valid certificate: {error}")))
}

/// An IP address as certificates have it.
pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

/// Whole days; one that lacks less than an hour counts, so that 365 days are 365 when just begun.
pub(crate) fn days_until(time: i64) -> i64 {
    (time - now() + 60 * 60).div_euclid(24 * 60 * 60)
}

pub(crate) fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

/// A time as people read it.
pub(crate) fn date(time: i64) -> String {
    match OffsetDateTime::from_unix_timestamp(time) {
        Ok(t) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02} UTC",
            t.year(),
            u8::from(t.month()),
            t.day(),
            t.hour(),
            t.minute()
        ),
        Err(_) => format!("{time} seconds after 1970"),
    }
}

pub(crate) fn hex(bytes: &[u8], between: &str) -> String {
    let digits: Vec<_> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    digits.join(between)
}

/// Such as `ECDSA, P-256`.
pub(crate) fn key_type(cert: &X509Certificate<'_>) -> String {
    let spki = cert.public_key();
    match spki.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA, {} bits", rsa.key_size()),
        Ok(PublicKey::EC(_)) => {
            let curve = spki.algorithm.parameters.as_ref();
            let curve = curve
                .and_then(|p| p.as_oid().ok())
                .map(|oid| oid.to_id_string());
            match curve.as_deref() {
                Some("1.2.840.10045.3.1.7") => "ECDSA, P-256".into(),
                Some("1.3.132.0.34") => "ECDSA, P-384".into(),
                Some("1.3.132.0.35") => "ECDSA, P-521".into(),
                Some(other) => format!("ECDSA, curve {other}"),
                None => "ECDSA".into(),
            }
        }
        _ => match spki.algorithm.algorithm.to_id_string().as_str() {
            "1.3.101.112" => "Ed25519".into(),
            other => format!("algorithm {other}"),
        },
    }
}
