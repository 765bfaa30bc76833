//! Where a socket is: an IP address and port, a path, or bytes that only its transport understands.

use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use socket2::SockAddr;

/// An address of a transport.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IPv4 or IPv6 address and a port.
    Ip(SocketAddr),
    /// The path of a Unix domain socket; empty for a peer that has none.
    Local(Vec<u8>),
    /// What only the transport understands, which is then one of those outside this crate.
    Opaque(Vec<u8>),
}

impl Address {
    pub(crate) fn from_kernel(address: &SockAddr) -> Self {
        let path = |path: &Path| path.as_os_str().as_bytes().to_vec();
        match address.as_socket() {
            Some(ip) => Self::Ip(canonical(ip)),
            None if address.is_unix() => {
                Self::Local(address.as_pathname().map_or_else(Vec::new, path))
            }
            None => Self::Opaque(Vec::new()),
        }
    }

    /// The path, for an address that is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Ip(_) | Self::Opaque(_) => None,
            Self::Local(path) => Some(Path::new(OsStr::from_bytes(path))),
        }
    }
}

/// A socket of both families, which SCTP has, gives IPv4 addresses as IPv6 addresses.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if ip == address.ip() => address,
        ip => SocketAddr::new(ip, address.port()),
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Local(name) | Self::Opaque(name) if name.is_empty() => f.write_str("(unnamed)"),
            Self::Local(path) => f.write_str(&String::from_utf8_lossy(path)),
            // Printable ones are a name, most likely; others are a number.
            Self::Opaque(bytes) if bytes.iter().all(u8::is_ascii_graphic) => {
                f.write_str(&String::from_utf8_lossy(bytes))
            }
            Self::Opaque(bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}
