//! The library that the VM loads, twice over: as the NIF of the Erlang module `polydist_native`, the
//! control plane, and as the linked-in driver `polydist`, the data plane. Both share these statics.
//!
//! ```text
//! Erlang ── NIF call ──► host, tls, listener, connection, outside, epmd, record, directory, log
//!                            │ parse (term), queue, return
//!                            ▼
//!                        runtime (tokio) ── polydist-transport
//!                            │
//!                            └── message ──► Erlang
//! detach: connection ── token ──► driver, which takes the file descriptor from then on
//! ```

mod atoms;
mod connection;
mod directory;
mod driver;
mod epmd;
mod error;
mod host;
mod listener;
mod log;
mod message;
mod outside;
mod record;
mod runtime;
mod term;
mod tls;

rustler::init!("polydist_native");

/// What `erl_ddll` calls: the table of the driver, NULL outside a VM.
#[unsafe(no_mangle)]
extern "C" fn driver_init() -> *const polydist_erl_driver::ErlDrvEntry {
    driver::entry()
}
