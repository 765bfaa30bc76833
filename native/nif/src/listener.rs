//! Listeners: one resource each, one task each that passes connections to the acceptor.

use std::sync::{Arc, Mutex};

use polydist_transport::{Accepted, Address, Incoming, ListenOptions, Listener};
use rustler::{Atom, Encoder, Env, LocalPid, Monitor, NifResult, Resource, ResourceArc, Term};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::connection::Conn;
use crate::runtime::lock;
use crate::{atoms, error, message, runtime, term, tls};

/// A listener. It closes when the term is garbage.
pub(crate) struct ListenerResource {
    listener: Listener,
    forwarder: AbortHandle,
    /// Keeps the listener alive while somebody accepts, so an acceptor's death must clear it.
    acceptor: watch::Sender<Option<Arc<Acceptor>>>,
    monitor: Mutex<Option<Monitor>>,
}

struct Acceptor {
    pid: LocalPid,
    listener: ResourceArc<ListenerResource>,
}

#[rustler::resource_impl]
impl Resource for ListenerResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _: Env<'a>, _: LocalPid, monitor: Monitor) {
        let mut current = lock(&self.monitor);
        if *current == Some(monitor) {
            *current = None;
            self.acceptor.send_replace(None);
        }
    }
}

impl ListenerResource {
    pub(crate) fn new(listener: Listener, incoming: Incoming) -> ResourceArc<Self> {
        let (acceptor, changes) = watch::channel(None);
        ResourceArc::new(Self {
            listener,
            forwarder: runtime::spawn(forward(incoming, changes)).abort_handle(),
            acceptor,
            monitor: Mutex::new(None),
        })
    }

    pub(crate) fn listener(&self) -> &Listener {
        &self.listener
    }
}

impl Drop for ListenerResource {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

/// Dirty, since it touches the file system.
#[rustler::nif(schedule = "DirtyIo")]
fn listen<'a>(
    env: Env<'a>,
    transport: Atom,
    address: Term<'a>,
    options: Term<'a>,
) -> NifResult<Term<'a>> {
    let transport = term::transport(transport)?;
    let address = term::address(address)?;
    let options = options_of(options, &address)?;
    let _runtime = runtime::handle().enter();
    let opened = Listener::open(transport, &address, options);
    Ok(match opened {
        Err(error) => env.error_tuple(error::term(env, &error)),
        Ok((listener, incoming)) => {
            let bound = message::address(env, listener.address());
            let listener = ListenerResource::new(listener, incoming);
            (atoms::ok(), listener, bound).encode(env)
        }
    })
}

/// How to listen on `address`.
pub(crate) fn options_of(options: Term, address: &Address) -> NifResult<ListenOptions> {
    let default = ListenOptions::default();
    Ok(ListenOptions {
        ports: term::option(options, atoms::ports())?,
        addresses: term::ips(options, atoms::addresses())?,
        mode: term::option(options, atoms::mode())?.unwrap_or(default.mode),
        allow: term::allow(options, address)?,
        backlog: term::option(options, atoms::backlog())?.unwrap_or(default.backlog),
        socket: term::socket_option(options)?,
        tls: tls::option(options)?,
        shared: term::option(options, atoms::shared())?.unwrap_or(default.shared),
        setup_time: term::timeout_option(options, atoms::setup_time())?
            .unwrap_or(default.setup_time),
        max_pending: term::option(options, atoms::max_pending())?.unwrap_or(default.max_pending),
        max_pending_of_source: term::option(options, atoms::max_pending_of_source())?
            .unwrap_or(default.max_pending_of_source),
    })
}

#[rustler::nif]
fn accept<'a>(env: Env<'a>, listener: ResourceArc<ListenerResource>) -> Atom {
    let pid = env.pid();
    let mut current = lock(&listener.monitor);
    if listener.listener.is_closed() {
        return atoms::ok(); // an acceptor would keep it for ever
    }
    if let Some(old) = current.take() {
        env.demonitor(&listener, &old);
    }
    *current = env.monitor(&listener, &pid);
    let acceptor = Acceptor {
        pid,
        listener: listener.clone(),
    };
    if current.is_some() {
        listener.acceptor.send_replace(Some(Arc::new(acceptor)));
    }
    atoms::ok()
}

#[rustler::nif]
fn set_listener_options<'a>(
    env: Env<'a>,
    listener: ResourceArc<ListenerResource>,
    options: Term<'a>,
) -> NifResult<Term<'a>> {
    let options = term::socket_opts(options)?;
    Ok(match listener.listener.set_options(options) {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => env.error_tuple(error::term(env, &error)),
    })
}

#[rustler::nif]
fn set_listener_tls<'a>(
    env: Env<'a>,
    listener: ResourceArc<ListenerResource>,
    config: ResourceArc<tls::TlsResource>,
) -> Term<'a> {
    match listener.listener.set_tls(config.0.clone()) {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => env.error_tuple(error::term(env, &error)),
    }
}

#[rustler::nif]
fn listener_info<'a>(env: Env<'a>, listener: ResourceArc<ListenerResource>) -> Term<'a> {
    message::listener_info(env, &listener.listener.info())
}

/// Dirty, since it touches the file system.
#[rustler::nif(schedule = "DirtyIo")]
fn close_listener<'a>(env: Env<'a>, listener: ResourceArc<ListenerResource>) -> Atom {
    listener.listener.close();
    listener.forwarder.abort();
    let mut current = lock(&listener.monitor);
    if let Some(old) = current.take() {
        env.demonitor(&listener, &old);
    }
    listener.acceptor.send_replace(None);
    atoms::ok()
}

/// Gives each connection to the acceptor of the moment, or keeps it until there is one.
async fn forward(mut incoming: Incoming, mut acceptor: watch::Receiver<Option<Arc<Acceptor>>>) {
    while let Some(Accepted { connection, info }) = incoming.next().await {
        let conn = Conn::new(connection);
        loop {
            let Some(current) = current(&mut acceptor).await else {
                return;
            };
            // It may have run out of time while nobody accepted.
            if conn.is_closed() {
                break;
            }
            let taken = conn_to(&conn, &current);
            if taken && message::accepted(&current.pid, &current.listener, &conn, &info) {
                break;
            }
            // The acceptor is dead and its monitor will say so.
            drop(current);
            if acceptor.changed().await.is_err() {
                return;
            }
        }
    }
}

fn conn_to(conn: &ResourceArc<Conn>, acceptor: &Acceptor) -> bool {
    Conn::give(conn, None, acceptor.pid)
}

async fn current(acceptor: &mut watch::Receiver<Option<Arc<Acceptor>>>) -> Option<Arc<Acceptor>> {
    let current = acceptor.wait_for(Option::is_some).await;
    current.ok().and_then(|current| current.clone())
}
