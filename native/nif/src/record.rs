//! The registration record as a map.

use std::net::IpAddr;

use polydist_proto::record::{Endpoint, Place, Record, RecordError};
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Term, term_map};

use crate::{atoms, error, message, term};

#[rustler::nif]
fn record_encode<'a>(env: Env<'a>, record: Term<'a>) -> NifResult<Term<'a>> {
    let endpoints: Option<Vec<Term>> = term::option(record, atoms::endpoints())?;
    let endpoints = endpoints.unwrap_or_default().into_iter().map(endpoint);
    let record = Record {
        host: id(record, atoms::host())?,
        machine: id(record, atoms::machine())?,
        endpoints: endpoints.collect::<NifResult<_>>()?,
    };
    match record.encode() {
        Ok(bytes) => Ok((atoms::ok(), message::binary(env, &bytes)).encode(env)),
        Err(RecordError::BadEndpoint(_)) => Err(Error::BadArg),
        Err(why) => Ok(env.error_tuple(error::pair(env, "too_long", &why.to_string()))),
    }
}

#[rustler::nif]
fn record_decode<'a>(env: Env<'a>, bytes: Binary<'a>) -> Term<'a> {
    match Record::decode(&bytes) {
        Ok(record) => (atoms::ok(), to_map(env, &record)).encode(env),
        Err(why) => env.error_tuple(error::pair(env, "bad_record", &why.to_string())),
    }
}

fn id(record: Term, key: Atom) -> NifResult<Option<[u8; 16]>> {
    let id: Option<Binary> = term::option(record, key)?;
    let id = id.map(|id| id.as_slice().try_into()).transpose();
    id.map_err(|_| Error::BadArg)
}

fn endpoint(map: Term) -> NifResult<Endpoint> {
    Ok(Endpoint {
        transport: term::bytes(term::required(map, atoms::transport())?)?,
        flags: term::required(map, atoms::flags())?,
        place: place(term::required(map, atoms::address())?)?,
    })
}

fn place(address: Term) -> NifResult<Place> {
    let (first, second): (Term, Term) = address.decode()?;
    if !first.is_atom() {
        let port = second.decode()?;
        return Ok(match term::ip(first)? {
            IpAddr::V4(ip) => Place::V4(ip, port),
            IpAddr::V6(ip) => Place::V6(ip, port),
        });
    }
    match Atom::from_term(first)? {
        tag if tag == atoms::any4() => second.decode().map(Place::Any4),
        tag if tag == atoms::any6() => second.decode().map(Place::Any6),
        tag if tag == atoms::local() => term::bytes(second).map(Place::Local),
        tag if tag == atoms::opaque() => term::bytes(second).map(Place::Opaque),
        _ => Err(Error::BadArg),
    }
}

fn to_map<'a>(env: Env<'a>, record: &Record) -> Term<'a> {
    let endpoints = record.endpoints.iter().map(|endpoint| {
        term_map!(env, {
            atoms::transport() => message::binary(env, &endpoint.transport),
            atoms::flags() => endpoint.flags,
            atoms::address() => where_(env, &endpoint.place),
        })
    });
    let endpoints: Vec<_> = endpoints.collect();
    let (mut keys, mut values) = (vec![atoms::endpoints()], vec![endpoints.encode(env)]);
    for (key, id) in [
        (atoms::host(), &record.host),
        (atoms::machine(), &record.machine),
    ] {
        if let Some(id) = id {
            keys.push(key);
            values.push(message::binary(env, id));
        }
    }
    let keys: Vec<_> = keys.iter().map(|key| key.encode(env)).collect();
    message::map(env, &keys, &values)
}

fn where_<'a>(env: Env<'a>, place: &Place) -> Term<'a> {
    match place {
        Place::Any4(port) => (atoms::any4(), *port).encode(env),
        Place::Any6(port) => (atoms::any6(), *port).encode(env),
        Place::V4(ip, port) => (message::ip(env, (*ip).into()), *port).encode(env),
        Place::V6(ip, port) => (message::ip(env, (*ip).into()), *port).encode(env),
        Place::Local(path) => (atoms::local(), message::binary(env, path)).encode(env),
        Place::Opaque(bytes) => (atoms::opaque(), message::binary(env, bytes)).encode(env),
        _ => (atoms::opaque(), message::binary(env, b"")).encode(env),
    }
}
