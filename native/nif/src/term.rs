//! Arguments from Erlang: addresses, options, durations. What is malformed is a badarg.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, RawFd};
use std::time::Duration;

use ipnet::IpNet;
use polydist_transport::{
    self as transport, Address, Allow, Kind, SctpOpts, SocketOpts, Transport,
};
use rustler::{Atom, Binary, Decoder, Error, NifResult, Term, TermType};

use crate::atoms;

/// The value of a key; `None` if it is absent or `undefined`.
pub(crate) fn option<'a, T: Decoder<'a>>(map: Term<'a>, key: Atom) -> NifResult<Option<T>> {
    match map.map_get(key) {
        Err(_) if map.is_map() => Ok(None),
        Err(error) => Err(error),
        Ok(value) if value == atoms::undefined().to_term(map.get_env()) => Ok(None),
        Ok(value) => value.decode().map(Some),
    }
}

/// The value of a key that must be there.
pub(crate) fn required<'a, T: Decoder<'a>>(map: Term<'a>, key: Atom) -> NifResult<T> {
    map.map_get(key)?.decode()
}

pub(crate) fn transport(name: Atom) -> NifResult<&'static dyn Transport> {
    transport::TRANSPORTS
        .iter()
        .copied()
        .find(|transport| crate::message::own_transport(transport.name()) == Some(name))
        .ok_or(Error::BadArg)
}

/// A transport outside the library.
pub(crate) fn outside(name: Term) -> NifResult<Result<&'static dyn Transport, transport::Error>> {
    if !name.is_atom() {
        return Err(Error::BadArg);
    }
    // The VM's interface has no other characters in OTP 25.
    let latin = || {
        let sentence = "the name of a transport may only have characters of Latin-1";
        transport::Error::new(Kind::BadOption, sentence)
    };
    let name = name.atom_to_string().map_err(|_| latin());
    Ok(name.and_then(|name| transport::outside(&name)))
}

pub(crate) fn address(term: Term) -> NifResult<Address> {
    match term.decode::<(Term, Term)>()? {
        (tag, path) if tag == atoms::local().to_term(term.get_env()) => {
            Ok(Address::Local(bytes(path)?))
        }
        (tag, other) if tag == atoms::opaque().to_term(term.get_env()) => {
            Ok(Address::Opaque(bytes(other)?))
        }
        (ip_term, port) => Ok(Address::Ip(SocketAddr::new(ip(ip_term)?, port.decode()?))),
    }
}

/// An address that only its transport understands.
pub(crate) fn opaque(term: Term) -> NifResult<Address> {
    match address(term)? {
        opaque @ Address::Opaque(_) => Ok(opaque),
        Address::Ip(_) | Address::Local(_) => Err(Error::BadArg),
    }
}

/// The descriptor with this number, for as long as the call that was given it; `None` for a number
/// that none can have.
pub(crate) fn descriptor<'a>(number: Term<'a>) -> NifResult<Option<BorrowedFd<'a>>> {
    if number.get_type() != TermType::Integer {
        return Err(Error::BadArg);
    }
    let number = number.decode::<RawFd>().ok().filter(|number| *number >= 0);
    // SAFETY: the number is not -1. It is the caller's to keep open during the call, as every process
    // of the VM must that uses numbers of descriptors; all that is done with it is to duplicate it,
    // which for a number that is not open fails with EBADF.
    Ok(number.map(|number| unsafe { BorrowedFd::borrow_raw(number) }))
}

pub(crate) fn ip(term: Term) -> NifResult<IpAddr> {
    if let Ok((a, b, c, d)) = term.decode::<(u8, u8, u8, u8)>() {
        return Ok([a, b, c, d].into());
    }
    let parts = rustler::types::tuple::get_tuple(term)?;
    let parts: NifResult<Vec<u16>> = parts.into_iter().map(|part| part.decode()).collect();
    let parts: [u16; 8] = parts?.try_into().map_err(|_| Error::BadArg)?;
    Ok(parts.into())
}

/// A list of `{Ip, Bits}` for an IP address, of user ids for a path, or `any`. If absent: by a path
/// our own user and root, whom no file mode keeps out, by an address everybody.
pub(crate) fn allow(map: Term, address: &Address) -> NifResult<Allow> {
    let allow: Option<Term> = option(map, atoms::allow())?;
    let list = match allow.map(|allow| (allow, Atom::from_term(allow))) {
        Some((_, Ok(any))) if any == atoms::any() => return Ok(Allow::Everybody),
        Some((list, _)) => Some(list.decode::<Vec<Term>>()?),
        None => None,
    };
    Ok(match (list, address) {
        (None, Address::Local(_)) => Allow::own_user(),
        (None, _) => Allow::Everybody,
        (Some(nets), Address::Ip(_)) => {
            Allow::Nets(nets.into_iter().map(net).collect::<NifResult<_>>()?)
        }
        (Some(users), Address::Local(_)) => {
            let users = users.into_iter().map(|user| user.decode());
            Allow::Users(users.collect::<NifResult<_>>()?)
        }
        // Nothing is known of such peers, so nobody can be told apart.
        (Some(_), Address::Opaque(_)) => return Err(Error::BadArg),
    })
}

fn net(term: Term) -> NifResult<IpNet> {
    let (address, bits): (Term, u8) = term.decode()?;
    IpNet::new(ip(address)?, bits).map_err(|_| Error::BadArg)
}

/// A list of addresses of EPMDs.
pub(crate) fn ip_addresses(term: Term) -> NifResult<Vec<SocketAddr>> {
    term.decode::<Vec<Term>>()?
        .into_iter()
        .map(ip_address)
        .collect()
}

pub(crate) fn ip_address(term: Term) -> NifResult<SocketAddr> {
    match address(term)? {
        Address::Ip(address) => Ok(address),
        Address::Local(_) | Address::Opaque(_) => Err(Error::BadArg),
    }
}

pub(crate) fn bytes(term: Term) -> NifResult<Vec<u8>> {
    Ok(term.decode::<Binary>()?.as_slice().to_vec())
}

pub(crate) fn timeout_option(map: Term, key: Atom) -> NifResult<Option<Duration>> {
    option(map, key)?.map(timeout).transpose()
}

/// Milliseconds or `infinity`, which is a day here.
pub(crate) fn timeout(term: Term) -> NifResult<Duration> {
    match Atom::from_term(term) {
        Ok(atom) if atom == atoms::infinity() => Ok(Duration::from_secs(24 * 60 * 60)),
        _ => term.decode().map(Duration::from_millis),
    }
}

/// The `socket` among the options of a listener or a dial.
pub(crate) fn socket_option(map: Term) -> NifResult<SocketOpts> {
    let options = option(map, atoms::socket())?.map(socket_opts).transpose();
    Ok(options?.unwrap_or_default())
}

pub(crate) fn socket_opts(map: Term) -> NifResult<SocketOpts> {
    Ok(SocketOpts {
        nodelay: option(map, atoms::nodelay())?,
        keepalive: option(map, atoms::keepalive())?,
        sndbuf: option(map, atoms::sndbuf())?,
        recbuf: option(map, atoms::recbuf())?,
        priority: option(map, atoms::priority())?,
        tos: option(map, atoms::tos())?,
        user_timeout: option(map, atoms::user_timeout())?,
        sctp: option(map, atoms::sctp())?
            .map(sctp_opts)
            .transpose()?
            .unwrap_or_default(),
    })
}

fn sctp_opts(map: Term) -> NifResult<SctpOpts> {
    Ok(SctpOpts {
        heartbeat: option(map, atoms::heartbeat())?,
        path_max_retrans: option(map, atoms::path_max_retrans())?,
        max_retrans: option(map, atoms::max_retrans())?,
        rto_initial: option(map, atoms::rto_initial())?,
        rto_min: option(map, atoms::rto_min())?,
        rto_max: option(map, atoms::rto_max())?,
    })
}

/// A list of IP addresses; empty if absent.
pub(crate) fn ips(map: Term, key: Atom) -> NifResult<Vec<IpAddr>> {
    let ips: Option<Vec<Term>> = option(map, key)?;
    ips.unwrap_or_default().into_iter().map(ip).collect()
}
