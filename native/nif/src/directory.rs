//! A directory as a registry.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Mutex;

use polydist_transport::directory::{self, Entry};
use polydist_transport::{Error, Kind};
use rustler::{Atom, Binary, Encoder, Env, Resource, ResourceArc, Term};

use crate::runtime::lock;
use crate::{atoms, error, message};

/// A node's entry. It ends with the term.
struct DirEntry(Mutex<Option<Entry>>);

#[rustler::resource_impl]
impl Resource for DirEntry {}

/// Dirty, since it touches the file system; so are the others.
#[rustler::nif(schedule = "DirtyIo")]
fn dir_claim<'a>(env: Env<'a>, dir: Binary<'a>, node: Binary<'a>, record: Binary<'a>) -> Term<'a> {
    error::result(env, Entry::claim(path(&dir), &node, &record), |entry| {
        ResourceArc::new(DirEntry(Mutex::new(Some(entry)))).encode(env)
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn dir_update<'a>(env: Env<'a>, entry: ResourceArc<DirEntry>, record: Binary<'a>) -> Term<'a> {
    let updated = match &mut *lock(&entry.0) {
        Some(entry) => entry.update(&record),
        None => Err(Error::new(Kind::Closed, "the entry has been released")),
    };
    match updated {
        Ok(()) => atoms::ok().encode(env),
        Err(error) => env.error_tuple(error::term(env, &error)),
    }
}

#[rustler::nif(schedule = "DirtyIo")]
fn dir_release(entry: ResourceArc<DirEntry>) -> Atom {
    drop(lock(&entry.0).take());
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn dir_read<'a>(env: Env<'a>, dir: Binary<'a>, node: Binary<'a>) -> Term<'a> {
    error::result(env, directory::read(path(&dir), &node), |record| {
        message::binary(env, &record)
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn dir_nodes<'a>(env: Env<'a>, dir: Binary<'a>) -> Term<'a> {
    error::result(env, directory::nodes(path(&dir)), |nodes| {
        let nodes: Vec<_> = nodes
            .iter()
            .map(|node| message::binary(env, node))
            .collect();
        nodes.encode(env)
    })
}

fn path<'a>(bytes: &'a Binary) -> &'a Path {
    Path::new(OsStr::from_bytes(bytes))
}
