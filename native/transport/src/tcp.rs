//! TCP. `tcp` and `tcp6` differ in name only, so that each can be a carrier of its own; either takes
//! an address of either family, and an IPv6 socket never takes IPv4 connections.

use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::{Address, Error, Kind, ListenOptions, SocketOpts, Transport};

pub(crate) static TCP: Tcp = Tcp { name: "tcp" };
pub(crate) static TCP6: Tcp = Tcp { name: "tcp6" };

#[derive(Debug)]
pub(crate) struct Tcp {
    name: &'static str,
}

impl Transport for Tcp {
    fn name(&self) -> &'static str {
        self.name
    }

    fn socket(&self, address: &Address) -> Result<(Socket, SockAddr), Error> {
        socket(self.name, address)
    }

    fn bind(&self, address: &Address, options: &ListenOptions) -> Result<(Socket, Address), Error> {
        bind(self, address, options)
    }

    fn tune(&self, socket: &Socket, options: &SocketOpts) -> io::Result<()> {
        tune(socket, options)
    }
}

pub(crate) fn socket(name: &str, address: &Address) -> Result<(Socket, SockAddr), Error> {
    let ip = ip(name, address)?;
    let open = || {
        let socket = Socket::new(Domain::for_address(ip), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if ip.is_ipv6() {
            // Else it would take the IPv4 port as well.
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    };
    match open() {
        Ok(socket) => Ok((socket, ip.into())),
        Err(error) => Err(Error::os(
            format!("cannot open a socket for {name} {ip}"),
            &error,
        )),
    }
}

pub(crate) fn bind(
    transport: &dyn Transport,
    address: &Address,
    options: &ListenOptions,
) -> Result<(Socket, Address), Error> {
    let open = |address: &Address| transport.socket(address);
    listen(transport, address, options, open, |socket, kernel| {
        socket.bind(kernel)
    })
}

/// Listens on the first free port of those there are to choose from: on a socket that `open` makes
/// and `bind` binds.
pub(crate) fn listen(
    transport: &dyn Transport,
    address: &Address,
    options: &ListenOptions,
    open: impl Fn(&Address) -> Result<(Socket, SockAddr), Error>,
    bind: impl Fn(&Socket, &SockAddr) -> io::Result<()>,
) -> Result<(Socket, Address), Error> {
    let name = transport.name();
    let mut ip = ip(name, address)?;
    let ports = ports(name, ip, options)?;
    let others: String = options
        .addresses
        .iter()
        .map(|ip| format!(", {ip}"))
        .collect();
    let mut last = None;
    for port in ports.clone() {
        ip.set_port(port);
        let (socket, kernel) = open(&ip.into())?;
        let listen = || {
            socket.set_reuse_address(true)?;
            transport.tune(&socket, &options.socket)?;
            bind(&socket, &kernel)?;
            socket.listen(options.backlog)?;
            socket.local_addr()
        };
        match listen() {
            Ok(bound) => {
                // Of several addresses it is the last, so that only the port is of use.
                ip.set_port(bound.as_socket().map_or(port, |bound| bound.port()));
                return Ok((socket, ip.into()));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => {
                return Err(Error::os(
                    format!("cannot listen on {name} {ip}{others}"),
                    &error,
                ));
            }
        }
    }
    let (low, high) = ports.into_inner();
    let error = last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into());
    Err(Error::os(
        match low == high {
            true => format!("cannot listen on {name} {ip}{others}"),
            false => format!(
                "cannot listen on {name} {}{others}, any port from {low} to {high}",
                ip.ip()
            ),
        },
        &error,
    ))
}

fn ports(
    name: &str,
    ip: SocketAddr,
    options: &ListenOptions,
) -> Result<RangeInclusive<u16>, Error> {
    match options.ports {
        None => Ok(ip.port()..=ip.port()),
        Some((0, _)) => Ok(0..=0),
        Some((low, high)) if low <= high => Ok(low..=high),
        Some((low, high)) => Err(Error::new(
            Kind::BadOption,
            format!("cannot listen on {name}: no port is from {low} to {high}; swap the two"),
        )),
    }
}

pub(crate) fn tune(socket: &Socket, options: &SocketOpts) -> io::Result<()> {
    options.apply_common(socket)?;
    options.apply_tcp(socket)
}

pub(crate) fn ip(name: &str, address: &Address) -> Result<SocketAddr, Error> {
    match address {
        Address::Ip(ip) => Ok(*ip),
        Address::Local(_) => Err(Error::new(
            Kind::BadOption,
            format!("{name} needs an IP address, not the path {address}"),
        )),
        Address::Opaque(_) => Err(Error::new(
            Kind::BadOption,
            format!("{name} needs an IP address, not {address}, which is another transport's"),
        )),
    }
}
