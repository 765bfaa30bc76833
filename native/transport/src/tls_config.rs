//! TLS configurations from what the user's options contain.
//!
//! In sentences, options are called what users call them in `-ssl_dist_optfile`: certfile, keyfile,
//! cacertfile.

use std::cmp::Reverse;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::ServerSessionMemoryCache;
use rustls::{
    CipherSuite, ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite,
    SupportedProtocolVersion,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::identity::Chooser;
use crate::tls_contents::{ROOTS, bad, certificates, revocation_lists};
use crate::verifier::{Revocation, Trust, Verifier};
use crate::{Certificate, Contents, Error, Identity};

/// What a TLS configuration is made from. Not printable, since keys are in it.
#[derive(Clone)]
pub struct TlsOptions {
    /// Our certificates; the first is shown whose key suits the peer.
    pub identities: Vec<Identity>,
    /// cacertfile or cacerts: the authorities we trust.
    pub roots: Option<Contents>,
    /// Whether the peer's certificate is verified.
    pub verify: Verify,
    /// Client only: whether a server's certificate must be for the host that was dialled.
    pub check_host: bool,
    /// Server only: whether a client without a certificate is refused.
    pub fail_if_no_peer_cert: bool,
    /// How many intermediate certificates there may be.
    pub depth: Option<usize>,
    /// What is asked about revoked certificates; nothing if absent.
    pub revocation: Option<RevocationOptions>,
    /// Versions allowed; both if empty.
    pub versions: Vec<Version>,
    /// Cipher suites by IANA's names, the best first.
    pub ciphers: Option<Vec<String>>,
    /// Groups for the key exchange by IANA's names, the best first.
    pub groups: Option<Vec<String>>,
    /// Client only: whether the server is told the name of the host that was dialled.
    pub sni: bool,
    /// Whether the kernel may do the encryption.
    pub ktls: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            identities: Vec::new(),
            roots: None,
            verify: Verify::Peer,
            check_host: true,
            fail_if_no_peer_cert: true,
            depth: None,
            revocation: None,
            versions: Vec::new(),
            ciphers: None,
            groups: None,
            sni: true,
            ktls: false,
        }
    }
}

/// What is asked about revoked certificates.
#[derive(Clone, Debug, Default)]
pub struct RevocationOptions {
    /// Files of revocation lists, PEM or DER.
    pub files: Vec<Vec<u8>>,
    /// Whether intermediate certificates are looked up, too, and not the peer's own only.
    pub chain: bool,
    /// Whether a certificate will do whose issuer has no list here, or an old one.
    pub allow_unknown: bool,
}

/// Whether the peer's certificate is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// It must come from an authority in cacertfile and, for a server's, carry the host's name.
    #[default]
    Peer,
    /// Any certificate will do, as long as the peer has its key; a client is not asked for any.
    None,
    /// Any certificate will do here, as long as the peer has its key, and somebody else looks at it
    /// when TLS is through.
    Deferred,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// A checked TLS configuration, cheap to clone.
#[derive(Clone, Debug)]
pub enum TlsConfig {
    /// For listeners.
    Server(Configured<ServerConfig>),
    /// For dialling.
    Client(Configured<ClientConfig>),
}

/// A configuration of rustls with what belongs to it.
#[derive(Debug)]
pub struct Configured<C> {
    /// For rustls.
    pub config: Arc<C>,
    /// Our certificates in it.
    pub own: Arc<[Certificate]>,
    /// What verifies the peer's, if anything does.
    pub(crate) verifier: Option<Arc<Verifier>>,
    /// Whether the kernel may do the encryption.
    pub ktls: bool,
    /// Whether whose certificate it is, and by whom, is for others to verify.
    pub deferred: bool,
}

impl<C> Clone for Configured<C> {
    fn clone(&self) -> Self {
        Self {
            config: self.config.clone(),
            own: self.own.clone(),
            verifier: self.verifier.clone(),
            ktls: self.ktls,
            deferred: self.deferred,
        }
    }
}

/// How many sessions are remembered. Those of one configuration are forgotten with it.
const SESSIONS: usize = 256;

impl TlsConfig {
    /// A configuration for listeners. It remembers the sessions of those who were connected, who need
    /// no certificates when they come again.
    pub fn server(options: &TlsOptions) -> Result<Self, Error> {
        let provider = provider(options)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions(options))
            .map_err(unusable_versions)?;
        let verifier = match options.verify {
            Verify::None => None,
            Verify::Peer | Verify::Deferred => Some(Arc::new(verifier(options, &provider)?)),
        };
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        };
        if options.identities.is_empty() {
            return Err(bad(
                "a TLS server needs a certificate; set certfile and keyfile",
            ));
        }
        let chooser = Chooser::new(&options.identities)?;
        let own = chooser.facts();
        let mut config = builder.with_cert_resolver(Arc::new(chooser));
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        // The kernel passes a ticket on only when asked for it; a peer that does not ask would think
        // that the connection has failed.
        config.send_tls13_tickets = usize::from(!options.ktls);
        config.enable_secret_extraction = true;
        Ok(Self::Server(Configured {
            config: Arc::new(config),
            own,
            verifier,
            ktls: options.ktls,
            deferred: options.verify == Verify::Deferred,
        }))
    }

    /// A configuration for dialling.
    pub fn client(options: &TlsOptions) -> Result<Self, Error> {
        let provider = provider(options)?;
        let chooser = Chooser::new(&options.identities)?;
        let own = chooser.facts();
        let verifier = Arc::new(verifier(options, &provider)?);
        let mut config = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions(options))
            .map_err(unusable_versions)?
            .dangerous()
            .with_custom_certificate_verifier(verifier.clone())
            .with_client_cert_resolver(Arc::new(chooser));
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.enable_secret_extraction = true;
        config.enable_sni = options.sni;
        Ok(Self::Client(Configured {
            config: Arc::new(config),
            own,
            verifier: Some(verifier),
            ktls: options.ktls,
            deferred: options.verify == Verify::Deferred,
        }))
    }

    /// Our certificates in it.
    pub fn own(&self) -> &[Certificate] {
        match self {
            Self::Server(server) => &server.own,
            Self::Client(client) => &client.own,
        }
    }
}

/// IANA's name of a cipher suite.
pub(crate) fn cipher_name(suite: CipherSuite) -> String {
    format!("{suite:?}").replace("TLS13_", "TLS_")
}

fn provider(options: &TlsOptions) -> Result<Arc<CryptoProvider>, Error> {
    let mut provider = aws_lc_rs::default_provider();
    match &options.ciphers {
        Some(names) => provider.cipher_suites = ciphers(names)?,
        None => put_first_what_lasts(&mut provider.cipher_suites),
    }
    if let Some(names) = &options.groups {
        provider.kx_groups = groups(names)?;
    }
    Ok(Arc::new(provider))
}

/// In TLS 1.2 ChaCha20 comes first: keys cannot be renewed there, and a connection ends whose AES-GCM
/// key has sealed 256 GiB, which a busy connection between nodes does within a day. TLS 1.3 renews
/// its keys.
fn put_first_what_lasts(suites: &mut [SupportedCipherSuite]) {
    // A stable sort: within TLS 1.3, and among the rest of TLS 1.2, rustls's own order stays.
    suites.sort_by_key(|suite| match suite {
        SupportedCipherSuite::Tls13(_) => 0,
        SupportedCipherSuite::Tls12(suite) if suite.common.confidentiality_limit == u64::MAX => 1,
        SupportedCipherSuite::Tls12(_) => 2,
    });
}

fn ciphers(names: &[String]) -> Result<Vec<SupportedCipherSuite>, Error> {
    let name_of = |suite: &SupportedCipherSuite| cipher_name(suite.suite());
    by_name("cipher suite", names, aws_lc_rs::ALL_CIPHER_SUITES, name_of)
}

fn groups(names: &[String]) -> Result<Vec<&'static dyn SupportedKxGroup>, Error> {
    const ALL: [&dyn SupportedKxGroup; 7] = [
        kx_group::X25519,
        kx_group::SECP256R1,
        kx_group::SECP384R1,
        kx_group::X25519MLKEM768,
        kx_group::SECP256R1MLKEM768,
        kx_group::MLKEM768,
        kx_group::MLKEM1024,
    ];
    let name_of = |group: &&dyn SupportedKxGroup| format!("{:?}", group.name());
    by_name("group", names, &ALL, name_of)
}

/// Those of `all` that have these names, in the order of the names.
fn by_name<T: Copy>(
    what: &str,
    names: &[String],
    all: &[T],
    name_of: impl Fn(&T) -> String,
) -> Result<Vec<T>, Error> {
    let there_are = || all.iter().map(&name_of).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        let sentence = format!("no {what} is allowed; there are {}", there_are());
        return Err(bad(sentence));
    }
    let find = |name: &String| {
        let same = |one: &&T| name_of(one).eq_ignore_ascii_case(name);
        all.iter().copied().find(|one| same(&one)).ok_or_else(|| {
            let sentence = format!("there is no {what} {name}; there are {}", there_are());
            bad(sentence)
        })
    };
    names.iter().map(find).collect()
}

fn versions(options: &TlsOptions) -> Vec<&'static SupportedProtocolVersion> {
    let of = |version: &Version| match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    match options.versions.is_empty() {
        true => [Version::Tls13, Version::Tls12].iter().map(of).collect(),
        false => options.versions.iter().map(of).collect(),
    }
}

fn unusable_versions(error: rustls::Error) -> Error {
    bad(format!(
        "the TLS versions and ciphers do not work together: {error}"
    ))
}

fn verifier(options: &TlsOptions, provider: &CryptoProvider) -> Result<Verifier, Error> {
    let trust = match options.verify {
        Verify::None | Verify::Deferred => None,
        Verify::Peer => Some(Trust {
            roots: roots(options)?,
            depth: options.depth,
            revocation: options.revocation.as_ref().map(revocation).transpose()?,
        }),
    };
    Ok(Verifier {
        hints: trust
            .as_ref()
            .map(|trust| trust.roots.subjects())
            .unwrap_or_default(),
        check_host: options.check_host && trust.is_some(),
        trust,
        mandatory: options.fail_if_no_peer_cert,
        algorithms: provider.signature_verification_algorithms,
    })
}

fn roots(options: &TlsOptions) -> Result<RootCertStore, Error> {
    let Some(contents) = &options.roots else {
        return Err(bad(
            "verify_peer needs the authorities to trust; set cacertfile (or verify_none, which lets anybody in)",
        ));
    };
    let mut roots = RootCertStore::empty();
    for (number, cert) in certificates(ROOTS, contents)?.into_iter().enumerate() {
        roots.add(cert).map_err(|error| {
            bad(format!(
                "certificate {} in {} cannot be used: {error}",
                number + 1,
                contents.option(ROOTS)
            ))
        })?;
    }
    Ok(roots)
}

fn revocation(options: &RevocationOptions) -> Result<Revocation, Error> {
    let mut dated = Vec::new();
    for (number, file) in options.files.iter().enumerate() {
        let read = |file| {
            let ders = revocation_lists(file)?;
            ders.iter()
                .map(|der| list(der))
                .collect::<Result<Vec<_>, _>>()
        };
        let which = || format!("revocation list (CRL) file {}", number + 1);
        dated.extend(read(file).map_err(|error| error.during(which()))?);
    }
    // The first of an issuer counts.
    dated.sort_by_key(|(date, _)| Reverse(*date));
    let lists: Vec<_> = dated.into_iter().map(|(_, list)| list).collect();
    if lists.is_empty() && !options.allow_unknown {
        return Err(bad(
            "crl_check wants revocation lists (CRLs), and there are none, so every certificate would be refused; \
             add the list of each authority, or set crl_check to best_effort",
        ));
    }
    Ok(Revocation {
        lists,
        chain: options.chain,
        allow_unknown: options.allow_unknown,
    })
}

/// A list with the time it was made at.
fn list(der: &[u8]) -> Result<(i64, CertRevocationList<'static>), Error> {
    let (_, facts) = CertificateRevocationList::from_der(der)
        .map_err(|error| bad(format!("it is malformed: {error}")))?;
    match OwnedCertRevocationList::from_der(der) {
        Ok(list) => Ok((facts.last_update().timestamp(), list.into())),
        Err(webpki::Error::UnsupportedCrlVersion) => Err(bad(
            "it is of version 1; make one of version 2, for which openssl wants crlnumber set",
        )),
        Err(error) => Err(bad(format!("it cannot be used: {error}"))),
    }
}
