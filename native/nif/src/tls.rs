//! TLS configurations as terms.

use polydist_transport::{Pem, TlsConfig, Verify, Version};
use rustler::{Atom, Encoder, Env, Error, NifResult, Resource, ResourceArc, Term};

use crate::{atoms, error, term};

/// A checked configuration.
pub(crate) struct TlsResource(pub(crate) TlsConfig);

#[rustler::resource_impl]
impl Resource for TlsResource {}

/// Dirty, since a file of many authorities takes milliseconds to parse.
#[rustler::nif(schedule = "DirtyCpu")]
fn tls_config<'a>(env: Env<'a>, side: Atom, options: Term<'a>) -> NifResult<Term<'a>> {
    let text = |key| term::option(options, key)?.map(term::bytes).transpose();
    let pem = Pem {
        cert: text(atoms::cert())?,
        key: text(atoms::key())?,
        ca: text(atoms::ca())?,
        verify: match term::option::<Atom>(options, atoms::verify())? {
            Some(verify) if verify == atoms::verify_none() => Verify::None,
            Some(verify) if verify != atoms::verify_peer() => return Err(Error::BadArg),
            _ => Verify::Peer,
        },
        fail_if_no_peer_cert: term::option(options, atoms::fail_if_no_peer_cert())?.unwrap_or(true),
        versions: term::option::<Vec<Atom>>(options, atoms::versions())?
            .unwrap_or_default()
            .into_iter()
            .map(version)
            .collect::<NifResult<_>>()?,
    };
    let config = match side {
        side if side == atoms::server() => TlsConfig::server(&pem),
        side if side == atoms::client() => TlsConfig::client(&pem),
        _ => return Err(Error::BadArg),
    };
    Ok(error::result(env, config, |config| {
        ResourceArc::new(TlsResource(config)).encode(env)
    }))
}

fn version(version: Atom) -> NifResult<Version> {
    match version {
        version if version == atoms::tlsv1_2() => Ok(Version::Tls12),
        version if version == atoms::tlsv1_3() => Ok(Version::Tls13),
        _ => Err(Error::BadArg),
    }
}

/// The configuration under the key `tls`.
pub(crate) fn option(options: Term) -> NifResult<Option<TlsConfig>> {
    let config: Option<ResourceArc<TlsResource>> = term::option(options, atoms::tls())?;
    Ok(config.map(|config| config.0.clone()))
}
