//! What there is to say about a certificate, and whom it names.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, ServerName};
use webpki::EndEntityCert;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Error, Kind};

/// What a SAN URI that names a node begins with.
const NODE_URI: &str = "erlang:";

/// The facts of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is, such as `CN=a.example.org`.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// Its number among those of its issuer, hexadecimal.
    pub serial: String,
    /// The hosts it is for, wildcards as they are.
    pub hosts: Vec<String>,
    /// The nodes it is for, by URIs `erlang:name@host`.
    pub nodes: Vec<String>,
    /// When it begins to be valid, in seconds of the Unix time.
    pub not_before: i64,
    /// When it ceases to be.
    pub not_after: i64,
}

impl Certificate {
    /// The facts of a certificate, which may be anybody's.
    pub fn of(der: &CertificateDer<'_>) -> Result<Self, Error> {
        let cert = parse(der)?;
        let Names { hosts, nodes, .. } = Names::of(&cert)?;
        let all = |texts: Vec<String>| texts.into_iter().map(printable).collect();
        Ok(Self {
            subject: printable(cert.subject().to_string()),
            issuer: printable(cert.issuer().to_string()),
            serial: hexadecimal(cert.raw_serial()),
            hosts: all(hosts),
            nodes: all(nodes),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
        })
    }
}

/// Who signed a certificate, as DER.
pub(crate) fn issuer(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let cert = parse(der).ok()?;
    Some(cert.issuer().as_raw().to_vec())
}

/// Whether a certificate is for this host: a name or an IP address.
pub(crate) fn is_for_host(der: &CertificateDer<'_>, host: &str) -> bool {
    match names(der) {
        Ok(names) if names.common => {
            let mut names = names.hosts.iter();
            names.any(|name| name.eq_ignore_ascii_case(host))
        }
        _ => match (EndEntityCert::try_from(der), ServerName::try_from(host)) {
            (Ok(cert), Ok(host)) => cert.verify_is_valid_for_subject_name(&host).is_ok(),
            _ => false,
        },
    }
}

/// Whether a certificate is for the node `name@host`: for its host, or for this very name by a URI.
/// A name without `@` is that of a host.
pub fn is_for_node(der: &CertificateDer<'_>, node: &str) -> bool {
    let host = node.split_once('@').map_or(node, |(_, host)| host);
    let is_named = |names: Names| names.nodes.iter().any(|name| name == node);
    is_for_host(der, host) || names(der).is_ok_and(is_named)
}

fn names(der: &CertificateDer<'_>) -> Result<Names, Error> {
    Names::of(&parse(der)?)
}

struct Names {
    hosts: Vec<String>,
    nodes: Vec<String>,
    /// Whether `hosts` are common names.
    common: bool,
}

impl Names {
    /// Common names count only where no subjectAltName says for which hosts the certificate is.
    fn of(cert: &X509Certificate<'_>) -> Result<Self, Error> {
        let extension = cert.subject_alternative_name().map_err(malformed)?;
        let alternative = extension.map_or(&[][..], |found| &found.value.general_names);
        let mut hosts = Vec::new();
        let mut nodes = Vec::new();
        let mut common = true;
        for name in alternative {
            match name {
                GeneralName::DNSName(host) => hosts.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => hosts.extend(ip(bytes)),
                GeneralName::URI(uri) => nodes.extend(uri.strip_prefix(NODE_URI).map(Into::into)),
                _ => {}
            }
            common &= !is_host(name);
        }
        if common {
            let names = cert.subject().iter_common_name();
            hosts = names
                .filter_map(|name| name.as_str().ok())
                .map(Into::into)
                .collect();
        }
        Ok(Self {
            hosts,
            nodes,
            common,
        })
    }
}

/// Whether it is the name of a host, be it one that cannot be read.
fn is_host(name: &GeneralName<'_>) -> bool {
    const DNS: u32 = 2;
    const IP: u32 = 7;
    match name {
        GeneralName::DNSName(_) | GeneralName::IPAddress(_) => true,
        GeneralName::Invalid(tag, _) => [DNS, IP].contains(&tag.0),
        _ => false,
    }
}

fn ip(bytes: &[u8]) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(ip.to_string())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(der) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(malformed("there is more behind it")),
        Err(error) => Err(malformed(error)),
    }
}

fn malformed(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::Tls, format!("the certificate is malformed: {why}"))
}

/// Whoever made the certificate shall not write lines of our log.
fn printable(text: String) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
