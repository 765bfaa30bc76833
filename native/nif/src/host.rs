//! What this library and this host are.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

use polydist_transport::host;
use rustler::{Env, Term};

use crate::message;

/// The version of the interface between this library and the module `polydist_native`.
const ABI: u32 = 4;

#[rustler::nif]
fn abi() -> u32 {
    ABI
}

#[rustler::nif]
fn host_identity(env: Env) -> Term {
    static HOST: OnceLock<[u8; 16]> = OnceLock::new();
    let host = HOST.get_or_init(|| host::identity().unwrap_or_else(unique));
    message::binary(env, host)
}

#[rustler::nif]
fn machine_identity(env: Env) -> Term {
    static MACHINE: OnceLock<[u8; 16]> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| host::machine().unwrap_or_else(unique));
    message::binary(env, machine)
}

/// Where the system does not tell, this process is a host of its own and shares nothing.
fn unique() -> [u8; 16] {
    let random = || {
        RandomState::new()
            .hash_one(std::process::id())
            .to_be_bytes()
    };
    [random(), random()].concat().try_into().unwrap_or_default()
}
