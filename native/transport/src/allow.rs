//! Who may connect to a listener.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use socket2::Socket;

use crate::{Address, Transport};

/// Whom a listener lets in. It is asked before a byte is read or written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allow {
    /// Whoever reaches the socket.
    #[default]
    Everybody,
    /// Peers whose address is in one of these networks.
    Nets(Vec<IpNet>),
    /// Processes of these users, where the kernel says whose they are.
    Users(Vec<u32>),
}

impl Allow {
    /// Processes of the user of this one, and of root, whom no file mode keeps out either.
    pub fn own_user() -> Self {
        let root = 0;
        match rustix::process::geteuid().as_raw() {
            own if own == root => Self::Users(vec![root]),
            own => Self::Users(vec![own, root]),
        }
    }

    /// Whether it can be asked about peers at such an address.
    pub(crate) fn fits(&self, address: &Address) -> bool {
        !matches!(
            (self, address),
            (Self::Nets(_), Address::Local(_))
                | (Self::Users(_), Address::Ip(_))
                | (Self::Nets(_) | Self::Users(_), Address::Opaque(_))
        )
    }

    /// `Err` with the name of the peer if it may not connect.
    pub(crate) fn check(
        &self,
        transport: &dyn Transport,
        socket: &Socket,
        peer: &Address,
    ) -> Result<(), String> {
        match self {
            Self::Everybody => Ok(()),
            Self::Nets(nets) => match peer {
                Address::Ip(peer) if contains(nets, peer.ip()) => Ok(()),
                _ => Err(peer.to_string()),
            },
            Self::Users(users) => match transport.credentials(socket) {
                Some(peer) if users.contains(&peer.uid) => Ok(()),
                Some(peer) => Err(format!("process {} of user {}", peer.pid, peer.uid)),
                None => Err("a process of an unknown user".to_owned()),
            },
        }
    }
}

/// An IPv4 address stays one when it comes as an IPv6 address.
fn contains(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Nets(nets) => list(f, nets),
            Self::Users(users) => {
                f.write_str(if users.len() == 1 { "user " } else { "users " })?;
                list(f, users)
            }
        }
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: &[T]) -> fmt::Result {
    if items.is_empty() {
        return f.write_str("nobody");
    }
    for (position, item) in items.iter().enumerate() {
        f.write_str(if position == 0 { "" } else { ", " })?;
        item.fmt(f)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|net| net.parse().unwrap()).collect()
    }

    fn ip(ip: &str) -> IpAddr {
        ip.parse().unwrap()
    }

    #[test]
    fn a_net_contains_what_its_prefix_says() {
        let inner = nets(&["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
        for inside in [
            "10.0.0.0",
            "10.255.255.255",
            "192.0.2.7",
            "fd12::1",
            "::ffff:10.1.2.3",
        ] {
            assert!(contains(&inner, ip(inside)), "{inside}");
        }
        for outside in [
            "9.255.255.255",
            "11.0.0.0",
            "192.0.2.6",
            "fe80::1",
            "::1",
            "::10.1.2.3",
        ] {
            assert!(!contains(&inner, ip(outside)), "{outside}");
        }
    }

    #[test]
    fn a_family_is_not_the_other_and_no_net_contains_nothing() {
        assert!(contains(&nets(&["0.0.0.0/0"]), ip("192.0.2.1")));
        assert!(!contains(&nets(&["0.0.0.0/0"]), ip("2001:db8::1")));
        assert!(contains(&nets(&["::/0"]), ip("2001:db8::1")));
        assert!(!contains(&nets(&["::/0"]), ip("192.0.2.1")));
        assert!(!contains(&[], ip("127.0.0.1")));
    }

    #[test]
    fn rules_fit_the_addresses_they_speak_of() {
        let tcp = Address::Ip(([127, 0, 0, 1], 1).into());
        let uds = Address::Local(b"/s".to_vec());
        let opaque = Address::Opaque(b"7".to_vec());
        let cases = [
            (Allow::Everybody, [true, true, true]),
            (Allow::Nets(Vec::new()), [true, false, false]),
            (Allow::Users(Vec::new()), [false, true, false]),
        ];
        for (allow, fits) in cases {
            let found = [&tcp, &uds, &opaque].map(|address| allow.fits(address));
            assert_eq!(found, fits, "{allow:?}");
        }
    }

    #[test]
    fn rules_read_as_text() {
        let of = |allow: Allow| allow.to_string();
        assert_eq!(
            of(Allow::Nets(nets(&["10.0.0.0/8", "fd00::/8"]))),
            "10.0.0.0/8, fd00::/8"
        );
        assert_eq!(of(Allow::Users(vec![0])), "user 0");
        assert_eq!(of(Allow::Users(vec![0, 1000])), "users 0, 1000");
        assert_eq!(of(Allow::Nets(Vec::new())), "nobody");
    }
}
