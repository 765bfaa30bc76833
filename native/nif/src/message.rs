//! Every message to an Erlang process, and the terms in it.
//!
//! ```text
//! {polydist, Ref, Answer}                     the one answer to an asynchronous call
//! {polydist, Ref, closed}                     a registration ended: epmd went away
//! {polydist, Listener, {accepted, Conn, Info}}
//! {polydist_log, Level, Message, Fields}
//! ```
//!
//! Only threads of ours may send: the VM forbids it to threads of its own that are not in a call.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use polydist_proto::epmd::{NamesLine, Node, NodeType};
use polydist_transport::{Address, Addresses, Certificate, Error, Info, ListenerInfo, TlsInfo};
use rustler::env::SavedTerm;
use rustler::{Atom, Encoder, Env, LocalPid, NewBinary, OwnedEnv, ResourceArc, Term, term_map};

use crate::connection::Conn;
use crate::listener::ListenerResource;
use crate::{atoms, error};

/// Who asked, and the reference to answer with.
pub(crate) struct Caller {
    pid: LocalPid,
    env: OwnedEnv,
    reference: SavedTerm,
}

impl Caller {
    /// The calling process.
    pub(crate) fn new(env: Env, reference: Term) -> Self {
        let owned = OwnedEnv::new();
        let reference = owned.save(reference);
        Self {
            pid: env.pid(),
            env: owned,
            reference,
        }
    }

    /// Sends `{polydist, Ref, Answer}`, the last message for this reference.
    pub(crate) fn answer<F>(mut self, answer: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        let reference = self.reference;
        // If the process is gone, so is the need to tell it.
        let _ = self.env.send_and_clear(&self.pid, |env| {
            (atoms::polydist(), reference.load(env), answer(env))
        });
    }

    /// Sends `{polydist, Ref, {ok, Value}}` or `{polydist, Ref, {error, {Kind, Sentence}}}`.
    pub(crate) fn result<T, F>(self, result: Result<T, Error>, encode: F)
    where
        F: for<'a> FnOnce(Env<'a>, T) -> Term<'a>,
    {
        self.answer(|env| error::result(env, result, |value| encode(env, value)));
    }

    /// Sends `{polydist, Ref, Notice}`; more will follow.
    pub(crate) fn notify<F>(&self, notice: F)
    where
        F: for<'a> FnOnce(Env<'a>) -> Term<'a>,
    {
        self.env.run(|env| {
            let message = (atoms::polydist(), self.reference.load(env), notice(env));
            let _ = env.send(&self.pid, message);
        });
    }
}

/// `{polydist, Listener, {accepted, Conn, Info}}`; false if the process is gone.
pub(crate) fn accepted(
    acceptor: &LocalPid,
    listener: &ResourceArc<ListenerResource>,
    conn: &ResourceArc<Conn>,
    connection_info: &Info,
) -> bool {
    let sent = OwnedEnv::new().send_and_clear(acceptor, |env| {
        let event = (atoms::accepted(), conn, info(env, connection_info));
        (atoms::polydist(), listener, event)
    });
    sent.is_ok()
}

/// `{polydist_log, Level, Message, Fields}`.
pub(crate) fn log(to: &LocalPid, level: Atom, message: &str, fields: &BTreeMap<&str, String>) {
    let _ = OwnedEnv::new().send_and_clear(to, |env| {
        let (keys, values): (Vec<_>, Vec<_>) = fields
            .iter()
            .map(|(key, value)| (key.encode(env), value.encode(env)))
            .unzip();
        let fields = map(env, &keys, &values);
        (atoms::polydist_log(), level, message, fields)
    });
}

/// A map; the keys are distinct wherever this is called.
pub(crate) fn map<'a>(env: Env<'a>, keys: &[Term<'a>], values: &[Term<'a>]) -> Term<'a> {
    Term::map_from_term_arrays(env, keys, values).unwrap_or_else(|_| Term::map_new(env))
}

/// `{inet:ip_address(), Port}`, `{local, Path}` or `{opaque, Bytes}`.
pub(crate) fn address<'a>(env: Env<'a>, address: &Address) -> Term<'a> {
    match address {
        Address::Ip(address) => ip_port(env, address),
        Address::Local(path) => (atoms::local(), binary(env, path)).encode(env),
        Address::Opaque(bytes) => (atoms::opaque(), binary(env, bytes)).encode(env),
    }
}

fn ip_port<'a>(env: Env<'a>, address: &SocketAddr) -> Term<'a> {
    (ip(env, address.ip()), address.port()).encode(env)
}

pub(crate) fn ip(env: Env<'_>, ip: IpAddr) -> Term<'_> {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            (a, b, c, d).encode(env)
        }
        IpAddr::V6(ip) => {
            let parts = ip.segments().map(|part| part.encode(env));
            rustler::types::tuple::make_tuple(env, &parts)
        }
    }
}

pub(crate) fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    binary.into()
}

/// `#{transport, peer, local, addresses, tls, credentials, took}`.
pub(crate) fn info<'a>(env: Env<'a>, info: &Info) -> Term<'a> {
    let undefined = || atoms::undefined().encode(env);
    let tls = info
        .tls
        .as_ref()
        .map_or_else(undefined, |info| tls(env, info));
    let credentials = info.credentials.map_or_else(undefined, |peer| {
        term_map!(env, {
            atoms::uid() => peer.uid,
            atoms::gid() => peer.gid,
            atoms::pid() => peer.pid,
        })
    });
    term_map!(env, {
        atoms::transport() => transport(env, info.transport),
        atoms::peer() => address(env, &info.peer),
        atoms::local() => address(env, &info.local),
        atoms::addresses() => info.addresses.as_ref().map_or_else(undefined, |all| addresses(env, all)),
        atoms::tls() => tls,
        atoms::credentials() => credentials,
        atoms::took() => info.took.as_micros() as u64,
    })
}

/// `#{version, cipher, resumed, ktls, deferred, peer, own, chain}`.
fn tls<'a>(env: Env<'a>, info: &TlsInfo) -> Term<'a> {
    let version = match info.version {
        "tlsv1.2" => atoms::tlsv1_2(),
        _ => atoms::tlsv1_3(),
    };
    let facts = |cert: Option<&Certificate>| {
        let undefined = || atoms::undefined().encode(env);
        cert.map_or_else(undefined, |cert| certificate(env, cert))
    };
    let peer = info.chain.first().and_then(|der| Certificate::of(der).ok());
    let chain = info.chain.iter().map(|der| binary(env, der));
    term_map!(env, {
        atoms::version() => version,
        atoms::cipher() => &info.cipher,
        atoms::resumed() => info.resumed,
        atoms::ktls() => info.ktls,
        atoms::deferred() => info.deferred,
        atoms::peer() => facts(peer.as_ref()),
        atoms::own() => facts(info.own.as_ref()),
        atoms::chain() => chain.collect::<Vec<_>>(),
    })
}

/// `#{subject, issuer, serial, hosts, nodes, not_before, not_after}`.
pub(crate) fn certificate<'a>(env: Env<'a>, cert: &Certificate) -> Term<'a> {
    term_map!(env, {
        atoms::subject() => &cert.subject,
        atoms::issuer() => &cert.issuer,
        atoms::serial() => &cert.serial,
        atoms::hosts() => &cert.hosts,
        atoms::nodes() => &cert.nodes,
        atoms::not_before() => cert.not_before,
        atoms::not_after() => cert.not_after,
    })
}

/// `#{local := [address()], peer := [address()]}`.
fn addresses<'a>(env: Env<'a>, addresses: &Addresses) -> Term<'a> {
    let list = |addresses: &[Address]| -> Vec<_> {
        addresses.iter().map(|one| address(env, one)).collect()
    };
    term_map!(env, {
        atoms::local() => list(&addresses.local),
        atoms::peer() => list(&addresses.peer),
    })
}

/// The name of a transport. One from outside was an atom before it came here.
fn transport(env: Env<'_>, name: &str) -> Atom {
    own_transport(name)
        .or_else(|| Atom::from_str(env, name).ok())
        .unwrap_or_else(atoms::undefined)
}

/// The name of a transport of the library itself.
pub(crate) fn own_transport(name: &str) -> Option<Atom> {
    match name {
        "tcp" => Some(atoms::tcp()),
        "tcp6" => Some(atoms::tcp6()),
        "tls" => Some(atoms::tls()),
        "uds" => Some(atoms::uds()),
        "sctp" => Some(atoms::sctp()),
        _ => None,
    }
}

/// `#{address, accepted, failed, pending, refused, last_error}`.
pub(crate) fn listener_info<'a>(env: Env<'a>, info: &ListenerInfo) -> Term<'a> {
    let last_error = match &info.last_error {
        Some(sentence) => sentence.encode(env),
        None => atoms::undefined().encode(env),
    };
    term_map!(env, {
        atoms::address() => address(env, &info.address),
        atoms::accepted() => info.accepted,
        atoms::failed() => info.failed,
        atoms::pending() => info.pending,
        atoms::refused() => info.refused,
        atoms::last_error() => last_error,
    })
}

/// `#{port, hidden, protocol, high, low, name, extra}`.
pub(crate) fn node<'a>(env: Env<'a>, node: &Node) -> Term<'a> {
    term_map!(env, {
        atoms::port() => node.port,
        atoms::hidden() => (node.node_type == NodeType::Hidden),
        atoms::protocol() => node.protocol,
        atoms::high() => node.high,
        atoms::low() => node.low,
        atoms::name() => binary(env, &node.name),
        atoms::extra() => binary(env, &node.extra),
    })
}

/// `[{Name, Port}]`.
pub(crate) fn names<'a>(env: Env<'a>, names: &[NamesLine]) -> Term<'a> {
    let pair = |line: &NamesLine| (binary(env, &line.name), line.port).encode(env);
    names.iter().map(pair).collect::<Vec<_>>().encode(env)
}
