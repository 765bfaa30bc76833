//! Connections before they are established, and the slots in which established ones wait for
//! their driver port.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use polydist_transport::{
    self as transport, Connection, DialOptions, Established, Info, Kind, Pending, dial as start,
};
use rustler::{
    Atom, Binary, Encoder, Env, Error, LocalPid, Monitor, NifResult, Resource, ResourceArc, Term,
    term_map,
};

use crate::message::{self, Caller};
use crate::runtime::lock;
use crate::{atoms, error, runtime, term, tls};

/// A connection. It closes when its owner dies or the term is garbage, unless a driver port has it.
pub(crate) struct Conn {
    connection: Connection,
    owner: Mutex<Option<Monitor>>,
    slot: Arc<Slot>,
}

/// Where an established connection waits between detach and attach. The connection's term is its
/// only lasting owner, so nothing leaks if that process dies in between.
#[derive(Default)]
struct Slot(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    Empty,
    Full(Box<Established>),
    /// Nothing may be put here any more.
    Closed,
}

static SLOTS: Mutex<BTreeMap<u64, Weak<Slot>>> = Mutex::new(BTreeMap::new());

/// The established connection behind a token of detach/2. It can be taken once.
pub(crate) fn take_established(token: u64) -> Option<Established> {
    let slot = lock(&SLOTS).remove(&token)?.upgrade()?;
    match std::mem::take(&mut *lock(&slot.0)) {
        State::Full(established) => Some(*established),
        State::Empty | State::Closed => None,
    }
}

impl Slot {
    /// `None` if the owner is gone already; the connection then closes.
    fn put(self: &Arc<Self>, established: Established) -> Option<u64> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        match &mut *lock(&self.0) {
            State::Closed => return None,
            state => *state = State::Full(Box::new(established)),
        }
        let token = NEXT.fetch_add(1, Relaxed);
        let mut slots = lock(&SLOTS);
        // Tokens of connections that ended before anybody attached them.
        slots.retain(|_, slot| slot.strong_count() > 0);
        slots.insert(token, Arc::downgrade(self));
        Some(token)
    }

    fn is_full(&self) -> bool {
        matches!(*lock(&self.0), State::Full(_))
    }
}

#[rustler::resource_impl]
impl Resource for Conn {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _: Env<'a>, _: LocalPid, monitor: Monitor) {
        if *lock(&self.owner) == Some(monitor) {
            self.close();
        }
    }
}

impl Conn {
    pub(crate) fn new(connection: Connection) -> ResourceArc<Self> {
        ResourceArc::new(Self {
            connection,
            owner: Mutex::new(None),
            slot: Arc::default(),
        })
    }

    /// Makes `pid` the owner; false if it is dead. `env` as for `ResourceArc::monitor`.
    pub(crate) fn give(conn: &ResourceArc<Self>, env: Option<Env>, pid: LocalPid) -> bool {
        // Locked until the monitor is stored: it may fire at once.
        let mut owner = lock(&conn.owner);
        let new = conn.monitor(env, &pid);
        let old = std::mem::replace(&mut *owner, new);
        if let Some(old) = old {
            conn.demonitor(env, &old);
        }
        owner.is_some()
    }

    /// Gives the caller a connection that has been started. It is told with the reference how that
    /// goes on.
    pub(crate) fn started<'a>(
        env: Env<'a>,
        (connection, connected): (Connection, Pending<Info>),
        reference: Term<'a>,
    ) -> Term<'a> {
        let conn = Self::new(connection);
        Self::give(&conn, Some(env), env.pid());
        let caller = Caller::new(env, reference);
        runtime::spawn(async move {
            match connected.await {
                Ok(info) => {
                    caller.answer(|env| (atoms::connected(), message::info(env, &info)).encode(env))
                }
                Err(error) => caller.answer(|env| env.error_tuple(error::term(env, &error))),
            }
        });
        conn.encode(env)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    fn close(&self) {
        self.connection.close();
        *lock(&self.slot.0) = State::Closed;
    }
}

#[rustler::nif]
fn dial<'a>(
    env: Env<'a>,
    transport: Atom,
    address: Term<'a>,
    options: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Term<'a>> {
    let transport = term::transport(transport)?;
    let address = term::address(address)?;
    let name: Option<Binary> = term::option(options, atoms::server_name())?;
    let options = DialOptions {
        timeout: term::timeout_option(options, atoms::timeout())?
            .unwrap_or(DialOptions::default().timeout),
        socket: term::socket_option(options)?,
        local: term::ips(options, atoms::local())?,
        tls: tls::option(options)?,
        server_name: name.map(|name| String::from_utf8_lossy(&name).into_owned()),
    };
    let _runtime = runtime::handle().enter();
    let started = start(transport, address, options);
    Ok(error::result(env, started, |started| {
        Conn::started(env, started, reference)
    }))
}

#[rustler::nif]
fn controlling_process<'a>(env: Env<'a>, conn: ResourceArc<Conn>, pid: LocalPid) -> Term<'a> {
    if conn.is_closed() && !conn.slot.is_full() {
        return error::closed(env);
    }
    if Conn::give(&conn, Some(env), pid) {
        return atoms::ok().encode(env);
    }
    conn.close();
    error::closed(env)
}

#[rustler::nif]
fn send<'a>(env: Env<'a>, conn: ResourceArc<Conn>, frame: Term<'a>) -> NifResult<Term<'a>> {
    let frame = Binary::from_iolist(frame).or_else(|_| Binary::from_term(frame))?;
    match conn.connection.send(&frame) {
        Ok(()) => Ok(atoms::ok().encode(env)),
        Err(error) if error.kind() == Kind::TooLong => Err(Error::BadArg),
        Err(_) => Ok(error::closed(env)),
    }
}

#[rustler::nif]
fn recv<'a>(env: Env<'a>, conn: ResourceArc<Conn>, reference: Term<'a>) -> Atom {
    let caller = Caller::new(env, reference);
    let frame = conn.connection.recv();
    runtime::spawn(async move {
        caller.result(frame.await, |env, frame| message::binary(env, &frame));
    });
    atoms::ok()
}

#[rustler::nif]
fn detach<'a>(env: Env<'a>, conn: ResourceArc<Conn>, reference: Term<'a>) -> Atom {
    let caller = Caller::new(env, reference);
    let slot = Arc::downgrade(&conn.slot);
    let detached = conn.connection.detach();
    runtime::spawn(async move {
        let token = detached.await.and_then(|established| {
            let token = slot.upgrade().and_then(|slot| slot.put(established));
            token.ok_or_else(|| transport::Error::new(Kind::Closed, "the connection is closed"))
        });
        caller.result(token, |env, token| token.encode(env));
    });
    atoms::ok()
}

#[rustler::nif]
fn close(conn: ResourceArc<Conn>) -> Atom {
    conn.close();
    atoms::ok()
}

#[rustler::nif]
fn stats<'a>(env: Env<'a>, conn: ResourceArc<Conn>) -> Term<'a> {
    let stats = conn.connection.stats();
    term_map!(env, {
        atoms::bytes_in() => stats.bytes_in.load(Relaxed),
        atoms::bytes_out() => stats.bytes_out.load(Relaxed),
        atoms::frames_in() => stats.frames_in.load(Relaxed),
        atoms::frames_out() => stats.frames_out.load(Relaxed),
        atoms::ticks_in() => stats.ticks_in.load(Relaxed),
        atoms::ticks_out() => stats.ticks_out.load(Relaxed),
        atoms::wire_in() => stats.wire_in.load(Relaxed),
        atoms::wire_out() => stats.wire_out.load(Relaxed),
        atoms::queued() => stats.queued.load(Relaxed),
        atoms::queued_max() => stats.queued_max.load(Relaxed),
        atoms::writes() => stats.writes.load(Relaxed),
        atoms::reads() => stats.reads.load(Relaxed),
        atoms::busy_count() => stats.busy_count.load(Relaxed),
        atoms::busy_time() => stats.busy_time().as_micros() as u64,
    })
}

#[rustler::nif]
fn getstat<'a>(env: Env<'a>, conn: ResourceArc<Conn>) -> Term<'a> {
    let stats = conn.connection.stats();
    let load = |counter: &AtomicU64| counter.load(Relaxed);
    let (frames_in, frames_out) = (load(&stats.frames_in), load(&stats.frames_out));
    (atoms::ok(), frames_in, frames_out, load(&stats.queued)).encode(env)
}
