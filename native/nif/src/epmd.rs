//! Calls to EPMD.

use std::sync::Mutex;

use polydist_proto::epmd::{Node, NodeType};
use polydist_transport::epmd;
use rustler::{
    Atom, Binary, Encoder, Env, LocalPid, Monitor, NifResult, Resource, ResourceArc, Term,
};
use tokio::task::AbortHandle;

use crate::message::{self, Caller};
use crate::runtime::lock;
use crate::{atoms, error, runtime, term};

/// A registration. It ends when its owner dies or the term is garbage.
pub(crate) struct RegistrationResource {
    task: AbortHandle,
    owner: Mutex<Option<Monitor>>,
}

#[rustler::resource_impl]
impl Resource for RegistrationResource {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _: Env<'a>, _: LocalPid, _: Monitor) {
        self.task.abort();
    }
}

impl Drop for RegistrationResource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[rustler::nif]
fn epmd_register<'a>(
    env: Env<'a>,
    address: Term<'a>,
    node: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Term<'a>> {
    let address = term::ip_address(address)?;
    let hidden = term::option(node, atoms::hidden())?.unwrap_or(false);
    let extra: Option<Term> = term::option(node, atoms::extra())?;
    let node = Node {
        port: term::required(node, atoms::port())?,
        node_type: if hidden {
            NodeType::Hidden
        } else {
            NodeType::Normal
        },
        protocol: 0,
        high: 6,
        low: 5,
        name: term::bytes(term::required(node, atoms::name())?)?,
        extra: extra.map(term::bytes).transpose()?.unwrap_or_default(),
    };
    let caller = Caller::new(env, reference);
    let task = runtime::spawn(async move {
        match epmd::register(address, node).await {
            Ok(registration) => {
                let creation = registration.creation();
                caller.notify(|env| (atoms::registered(), creation).encode(env));
                registration.closed().await;
                caller.answer(|env| atoms::closed().encode(env));
            }
            Err(error) => caller.answer(|env| env.error_tuple(error::term(env, &error))),
        }
    });
    let registration = ResourceArc::new(RegistrationResource {
        task: task.abort_handle(),
        owner: Mutex::new(None),
    });
    let owner = env.monitor(&registration, &env.pid());
    *lock(&registration.owner) = owner;
    Ok((atoms::ok(), registration).encode(env))
}

#[rustler::nif]
fn epmd_unregister<'a>(env: Env<'a>, registration: ResourceArc<RegistrationResource>) -> Atom {
    registration.task.abort();
    let owner = lock(&registration.owner).take();
    if let Some(owner) = owner {
        env.demonitor(&registration, &owner);
    }
    atoms::ok()
}

#[rustler::nif]
fn epmd_lookup<'a>(
    env: Env<'a>,
    addresses: Term<'a>,
    name: Binary<'a>,
    timeout: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Atom> {
    let addresses = term::ip_addresses(addresses)?;
    let name = name.as_slice().to_vec();
    let timeout = term::timeout(timeout)?;
    let caller = Caller::new(env, reference);
    runtime::spawn(async move {
        let node = epmd::lookup(&addresses, &name, timeout).await;
        caller.result(node, |env, node| message::node(env, &node));
    });
    Ok(atoms::ok())
}

#[rustler::nif]
fn epmd_names<'a>(
    env: Env<'a>,
    addresses: Term<'a>,
    timeout: Term<'a>,
    reference: Term<'a>,
) -> NifResult<Atom> {
    let addresses = term::ip_addresses(addresses)?;
    let timeout = term::timeout(timeout)?;
    let caller = Caller::new(env, reference);
    runtime::spawn(async move {
        let names = epmd::names(&addresses, timeout).await;
        caller.result(names, |env, names| message::names(env, &names));
    });
    Ok(atoms::ok())
}
