//! SCTP, one-to-one style: a byte stream between two endpoints that may have several addresses each.
//! Either end tells the other all of its own, the kernel watches the paths between them, and the
//! connection lives while one of them does.
//!
//! An endpoint has the addresses it was bound to, or all of its host's. They may be of both families.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{
    Address, Addresses, BoxFuture, Error, Kind, ListenOptions, Side, SocketOpts, Stream, Transport,
    Wire, sctp_options, tcp,
};

#[derive(Debug)]
pub(crate) struct Sctp;

impl Transport for Sctp {
    fn name(&self) -> &'static str {
        "sctp"
    }

    fn socket(&self, address: &Address) -> Result<(Socket, SockAddr), Error> {
        socket(address, &[])
    }

    fn socket_from(
        &self,
        address: &Address,
        local: &[IpAddr],
    ) -> Result<(Socket, SockAddr), Error> {
        let (socket, kernel) = socket(address, local)?;
        let bind = |(first, others): (&IpAddr, &[IpAddr])| {
            socket.bind(&SocketAddr::new(*first, 0).into())?;
            bind_others(&socket, others)
        };
        match local.split_first().map_or(Ok(()), bind) {
            Ok(()) => Ok((socket, kernel)),
            Err(error) => {
                let local: Vec<_> = local.iter().map(ToString::to_string).collect();
                let local = local.join(", ");
                let what = format!("cannot connect to sctp {address} from {local}");
                Err(Error::os(what, &error))
            }
        }
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> Result<(Socket, Address), Error> {
        let open = |address: &Address| socket(address, &options.addresses);
        tcp::listen(self, address, options, open, |socket, kernel| {
            socket.bind(kernel)?;
            bind_others(socket, &options.addresses)
        })
    }

    fn tune(&self, socket: &Socket, options: &SocketOpts) -> io::Result<()> {
        tcp::tune(socket, options)
    }

    fn secure(
        &self,
        stream: Stream,
        _peer: &Address,
        _side: &Side,
    ) -> BoxFuture<Result<Wire, Error>> {
        // Fails when the peer has gone already; what it said before can still be read.
        let _ = sctp_options::prepare(stream.socket());
        Box::pin(std::future::ready(Ok(Wire::Plain(stream))))
    }

    fn addresses(&self, socket: &Socket) -> Option<Addresses> {
        Some(Addresses {
            local: sctp_options::local_addresses(socket).ok()?,
            peer: sctp_options::peer_addresses(socket).ok()?,
        })
    }
}

/// A socket for all of these addresses: of both families unless all are of one.
fn socket(address: &Address, others: &[IpAddr]) -> Result<(Socket, SockAddr), Error> {
    let ip = tcp::ip("sctp", address)?;
    let six = others.iter().filter(|other| other.is_ipv6()).count() + usize::from(ip.is_ipv6());
    let open = || {
        let domain = if six > 0 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::SCTP))?;
        socket.set_nonblocking(true)?;
        if six > 0 {
            socket.set_only_v6(six == others.len() + 1)?;
        }
        Ok(socket)
    };
    match open() {
        Ok(socket) => Ok((socket, ip.into())),
        Err(error) => Err(no_socket(ip, &error)),
    }
}

fn bind_others(socket: &Socket, others: &[IpAddr]) -> io::Result<()> {
    if others.is_empty() {
        return Ok(());
    }
    let bound = socket.local_addr()?;
    let port = bound.as_socket().map_or(0, |bound| bound.port());
    others
        .iter()
        .try_for_each(|other| sctp_options::bind_also(socket, SocketAddr::new(*other, port)))
}

fn no_socket(ip: SocketAddr, error: &io::Error) -> Error {
    let what = format!("cannot open a socket for sctp {ip}");
    match Errno::from_io_error(error) {
        // With the family, or with a socket type that no other protocol has.
        Some(errno @ (Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT)) => Error::new(
            Kind::Os(errno),
            format!(
                "{what}: the kernel of this host has no SCTP; load it with `modprobe sctp`, if need be \
                 after installing the package that has the module, such as kernel-modules-extra \
                 (eprotonosupport)"
            ),
        ),
        _ => Error::os(what, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_sctp_is_told_from_other_troubles() {
        let ip = "127.0.0.1:80".parse().unwrap();
        let says = |errno: Errno| no_socket(ip, &errno.into()).to_string();
        for missing in [Errno::PROTONOSUPPORT, Errno::SOCKTNOSUPPORT] {
            let sentence = says(missing);
            assert!(sentence.contains("has no SCTP"), "{sentence}");
            assert!(sentence.contains("modprobe sctp"), "{sentence}");
        }
        assert!(!says(Errno::MFILE).contains("modprobe"));
        assert!(!says(Errno::AFNOSUPPORT).contains("modprobe"));
    }

    #[test]
    fn a_path_is_no_address_of_sctp() {
        let error = Sctp.socket(&Address::Local(b"/s".to_vec())).unwrap_err();
        assert_eq!(error.kind(), Kind::BadOption, "{error}");
    }
}
