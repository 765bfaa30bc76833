//! Transports outside the library: a listener that is fed with connected sockets, a dial that begins
//! with one. A socket comes as the number of its descriptor and is duplicated before the call returns.

use std::os::fd::BorrowedFd;

use polydist_transport::{Errno, Error, Kind, Listener, adopt};
use rustler::{Encoder, Env, NifResult, ResourceArc, Term};

use crate::connection::Conn;
use crate::listener::{ListenerResource, options_of};
use crate::message::Caller;
use crate::{atoms, error, runtime, term};

#[rustler::nif]
fn outside_listen<'a>(
    env: Env<'a>,
    transport: Term<'a>,
    address: Term<'a>,
    options: Term<'a>,
) -> NifResult<Term<'a>> {
    let transport = term::outside(transport)?;
    let address = term::opaque(address)?;
    let options = options_of(options, &address)?;
    let _runtime = runtime::handle().enter();
    let opened = transport.and_then(|transport| Listener::fed(transport, address, options));
    Ok(error::result(env, opened, |(listener, incoming)| {
        ListenerResource::new(listener, incoming).encode(env)
    }))
}

#[rustler::nif]
fn outside_feed<'a>(
    env: Env<'a>,
    listener: ResourceArc<ListenerResource>,
    descriptor: Term<'a>,
    peer: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Term<'a>> {
    let peer = term::opaque(peer)?;
    let fd = term::descriptor(descriptor)?.ok_or_else(not_open);
    let fed = fd.and_then(|fd| listener.listener().feed(fd, peer));
    Ok(match fed {
        Err(error) => env.error_tuple(error::term(env, &error)),
        Ok(taken) => {
            let caller = Caller::new(env, reference);
            runtime::spawn(async move {
                match taken.await {
                    Ok(()) => caller.answer(|env| atoms::ok().encode(env)),
                    Err(error) => caller.answer(|env| env.error_tuple(error::term(env, &error))),
                }
            });
            atoms::ok().encode(env)
        }
    })
}

#[rustler::nif]
fn outside_dial<'a>(
    env: Env<'a>,
    transport: Term<'a>,
    descriptor: Term<'a>,
    peer: Term<'a>,
    options: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Term<'a>> {
    let transport = term::outside(transport)?;
    let peer = term::opaque(peer)?;
    let options = term::socket_option(options)?;
    let fd: Result<BorrowedFd, Error> = term::descriptor(descriptor)?.ok_or_else(not_open);
    let _runtime = runtime::handle().enter();
    let started = transport.and_then(|transport| adopt(transport, fd?, peer, &options));
    Ok(error::result(env, started, |started| {
        Conn::started(env, started, reference)
    }))
}

fn not_open() -> Error {
    let sentence = "no file descriptor has a number below 0 or of more than 31 bits (ebadf)";
    Error::new(Kind::Os(Errno::BADF), sentence)
}
