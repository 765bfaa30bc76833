//! Names of nodes and of hosts, and how a certificate carries them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rcgen::SanType;
use rustls_pki_types::DnsName;

/// How the name of a node is written as a URI among a certificate's subjectAltNames.
pub(crate) const NODE_SCHEME: &str = "erlang:";

/// The longest commonName that X.509 allows; Erlang reads no certificate with a longer one.
pub(crate) const LONGEST_COMMON_NAME: usize = 64;

/// The name of a node, `name@host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    name: String,
    host: Host,
}

impl Node {
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// What its certificate says of it.
    pub(crate) fn san(&self) -> Result<SanType, rcgen::Error> {
        Ok(SanType::URI(format!("{NODE_SCHEME}{self}").try_into()?))
    }

    /// A commonName for its certificate: the node's own name if that is short enough.
    pub(crate) fn common_name(&self) -> String {
        [self.to_string(), self.host.to_string(), self.name.clone()]
            .into_iter()
            .find(|name| name.len() <= LONGEST_COMMON_NAME)
            .unwrap_or_else(|| "Erlang node".into())
    }
}

impl FromStr for Node {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, host) = text
            .split_once('@')
            .ok_or("it has no @; a node is called name@host")?;
        let may_be = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if name.is_empty() || !name.bytes().all(may_be) {
            return Err(
                "before the @ there must be letters, digits, - and _, and nothing else".into(),
            );
        }
        match host.parse()? {
            Host::Any(_) => Err("a node is on one host; give wildcards as --host".into()),
            host => Ok(Self {
                name: name.into(),
                host,
            }),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.host)
    }
}

/// What a host is reached by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
    /// `*.domain`: any host right below that domain.
    Any(String),
}

impl Host {
    pub(crate) fn san(&self) -> Result<SanType, rcgen::Error> {
        Ok(match self {
            Self::Ip(ip) => SanType::IpAddress(*ip),
            Self::Name(_) | Self::Any(_) => SanType::DnsName(self.to_string().try_into()?),
        })
    }
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(ip) = text.parse() {
            return Ok(Self::Ip(ip));
        }
        let (wildcard, name) = match text.strip_prefix("*.") {
            Some(domain) => (true, domain),
            None => (false, text),
        };
        match DnsName::try_from(name) {
            Ok(_) if wildcard => Ok(Self::Any(name.into())),
            Ok(_) => Ok(Self::Name(name.into())),
            Err(_) => Err(format!("{text:?} is no host name and no IP address")),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
            Self::Any(domain) => write!(f, "*.{domain}"),
        }
    }
}
