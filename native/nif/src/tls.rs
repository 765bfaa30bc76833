//! TLS configurations as terms.

use polydist_transport::{
    Contents, Identity, RevocationOptions, TlsConfig, TlsOptions, Verify, Version, is_for_node,
};
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Resource, ResourceArc, Term};

use crate::{atoms, error, message, term};

/// A checked configuration.
pub(crate) struct TlsResource(pub(crate) TlsConfig);

#[rustler::resource_impl]
impl Resource for TlsResource {}

/// Dirty, since a file of many authorities takes milliseconds to parse, and a password is slow by
/// design.
#[rustler::nif(schedule = "DirtyCpu")]
fn tls_config<'a>(env: Env<'a>, side: Atom, options: Term<'a>) -> NifResult<Term<'a>> {
    let options = tls_options(options)?;
    let config = match side {
        side if side == atoms::server() => TlsConfig::server(&options),
        side if side == atoms::client() => TlsConfig::client(&options),
        _ => return Err(Error::BadArg),
    };
    Ok(error::result(env, config, |config| {
        ResourceArc::new(TlsResource(config)).encode(env)
    }))
}

#[rustler::nif]
fn tls_certificates<'a>(env: Env<'a>, config: ResourceArc<TlsResource>) -> Vec<Term<'a>> {
    let own = config.0.own().iter();
    own.map(|one| message::certificate(env, one)).collect()
}

#[rustler::nif]
fn certificate_is_for(der: Binary, node: &str) -> bool {
    is_for_node(&der.as_slice().into(), node)
}

fn tls_options(map: Term) -> NifResult<TlsOptions> {
    let identities: Vec<Term> = term::required(map, atoms::identities())?;
    let versions: Vec<Atom> = term::required(map, atoms::versions())?;
    Ok(TlsOptions {
        identities: all(identities, identity)?,
        roots: contents_option(map, atoms::roots())?,
        verify: verify(term::required(map, atoms::verify())?)?,
        check_host: term::required(map, atoms::check_host())?,
        fail_if_no_peer_cert: term::required(map, atoms::fail_if_no_peer_cert())?,
        depth: term::option(map, atoms::depth())?,
        revocation: term::option(map, atoms::crls())?
            .map(revocation)
            .transpose()?,
        versions: all(versions, version)?,
        ciphers: names(map, atoms::ciphers())?,
        groups: names(map, atoms::groups())?,
        sni: term::required(map, atoms::sni())?,
        ktls: term::required(map, atoms::ktls())?,
    })
}

fn all<T, U>(terms: Vec<T>, decode: fn(T) -> NifResult<U>) -> NifResult<Vec<U>> {
    terms.into_iter().map(decode).collect()
}

fn identity(map: Term) -> NifResult<Identity> {
    let password: Option<Term> = term::option(map, atoms::password())?;
    Ok(Identity {
        cert: contents(term::required(map, atoms::cert())?)?,
        key: contents_option(map, atoms::key())?,
        password: password.map(term::bytes).transpose()?.map(Into::into),
    })
}

fn contents_option(map: Term, key: Atom) -> NifResult<Option<Contents>> {
    term::option(map, key)?.map(contents).transpose()
}

/// `{pem, Text}` or `{der, [Der]}`.
fn contents(term: Term) -> NifResult<Contents> {
    let (form, value): (Atom, Term) = term.decode()?;
    match form {
        form if form == atoms::pem() => Ok(Contents::pem(term::bytes(value)?)),
        form if form == atoms::der() => Ok(Contents::der(all(value.decode()?, term::bytes)?)),
        _ => Err(Error::BadArg),
    }
}

fn verify(verify: Atom) -> NifResult<Verify> {
    match verify {
        verify if verify == atoms::verify_peer() => Ok(Verify::Peer),
        verify if verify == atoms::verify_none() => Ok(Verify::None),
        verify if verify == atoms::deferred() => Ok(Verify::Deferred),
        _ => Err(Error::BadArg),
    }
}

/// `#{files, check, unknown}`.
fn revocation(map: Term) -> NifResult<RevocationOptions> {
    Ok(RevocationOptions {
        files: all(term::required(map, atoms::files())?, term::bytes)?,
        chain: one_of(map, atoms::check(), atoms::chain(), atoms::peer())?,
        allow_unknown: one_of(map, atoms::unknown(), atoms::allow(), atoms::deny())?,
    })
}

/// Whether the key has the first value; otherwise it must have the second one.
fn one_of(map: Term, key: Atom, yes: Atom, no: Atom) -> NifResult<bool> {
    match term::required::<Atom>(map, key)? {
        value if value == yes => Ok(true),
        value if value == no => Ok(false),
        _ => Err(Error::BadArg),
    }
}

fn names(map: Term, key: Atom) -> NifResult<Option<Vec<String>>> {
    term::option(map, key)
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
