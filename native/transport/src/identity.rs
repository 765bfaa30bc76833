//! Our own certificates with their keys, and which of them a peer is shown.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use zeroize::{Zeroize, Zeroizing};

use crate::tls_contents::{CERT, KEY, bad, certificates, has_private_key, private_key};
use crate::{Certificate, Contents, Error, certificate};

/// A certificate of ours with its key, as configured. Not printable.
#[derive(Clone)]
pub struct Identity {
    /// certfile or cert: our certificate, and the intermediate ones after it.
    pub cert: Contents,
    /// keyfile or key: the certificate's private key; beside the certificate if absent.
    pub key: Option<Contents>,
    /// What the key is encrypted with.
    pub password: Option<Zeroizing<Vec<u8>>>,
}

/// One that can be used.
struct Usable {
    key: Arc<CertifiedKey>,
    facts: Certificate,
    /// The authorities of the certificate and of the intermediate ones, as DER.
    issuers: Vec<Vec<u8>>,
}

/// Chooses among our certificates the first whose key makes signatures that the peer can verify,
/// and if the peer says whom it trusts, one of those if there is any.
pub(crate) struct Chooser(Vec<Usable>);

impl Chooser {
    pub(crate) fn new(identities: &[Identity]) -> Result<Self, Error> {
        let load = |(number, identity)| {
            usable(identity).map_err(|error| match identities.len() {
                1 => error,
                _ => error.during(format!("certificate {} of certs_keys", number + 1)),
            })
        };
        let usable = identities.iter().enumerate().map(load);
        Ok(Self(usable.collect::<Result<_, _>>()?))
    }

    pub(crate) fn facts(&self) -> Arc<[Certificate]> {
        self.0.iter().map(|usable| usable.facts.clone()).collect()
    }

    /// If none will do it is the first: then the handshake fails and the error says why.
    fn choose(
        &self,
        schemes: &[SignatureScheme],
        trusted: impl Fn(&[u8]) -> bool,
    ) -> Option<Arc<CertifiedKey>> {
        let suits = |usable: &&Usable| usable.key.key.choose_scheme(schemes).is_some();
        let is_trusted = |usable: &&Usable| usable.issuers.iter().any(|issuer| trusted(issuer));
        let mut suitable = self.0.iter().filter(suits).peekable();
        let first = suitable.peek().copied().or(self.0.first());
        let chosen = suitable.find(is_trusted).or(first)?;
        // Not within noting() there is nobody who wants to know.
        let _ = CHOSEN.try_with(|note| note.replace(Some(chosen.facts.clone())));
        Some(chosen.key.clone())
    }
}

tokio::task_local! {
    static CHOSEN: RefCell<Option<Certificate>>;
}

/// What a handshake comes to, and the certificate of ours that the peer was shown in it.
pub(crate) async fn noting<F: Future>(handshake: F) -> (F::Output, Option<Certificate>) {
    let noted = async {
        let result = handshake.await;
        (result, CHOSEN.with(RefCell::take))
    };
    CHOSEN.scope(RefCell::default(), noted).await
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let trusted = hello.certificate_authorities().unwrap_or_default();
        self.choose(hello.signature_schemes(), |issuer| {
            trusted.iter().any(|name| name.as_ref() == issuer)
        })
    }
}

impl ResolvesClientCert for Chooser {
    fn resolve(&self, trusted: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.choose(schemes, |issuer| trusted.contains(&issuer))
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// Keys stay out of it.
impl fmt::Debug for Chooser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|usable| &usable.facts))
            .finish()
    }
}

fn usable(identity: &Identity) -> Result<Usable, Error> {
    let option = identity.cert.option(CERT);
    let chain = certificates(CERT, &identity.cert)?;
    let unusable = |error| bad(format!("{option} cannot be used: {error}"));
    let facts = Certificate::of(&chain[0]).map_err(unusable)?;
    let issuers = chain.iter().filter_map(certificate::issuer).collect();
    let (key_option, key) = match &identity.key {
        Some(key) => (key.option(KEY), key),
        // As in OTP, one file may hold both.
        None if has_private_key(&identity.cert) => (option, &identity.cert),
        None => {
            return Err(bad(format!(
                "{option} holds no private key and there is no keyfile; set keyfile"
            )));
        }
    };
    let password = identity.password.as_ref().map(|password| &password[..]);
    let key = certified(chain, private_key(key_option, key, password)?)
        .map_err(|error| mismatch(option, key_option, &error))?;
    Ok(Usable {
        key: Arc::new(key),
        facts,
        issuers,
    })
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    mut key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    let signing = any_supported_type(&key);
    key.zeroize();
    let certified = CertifiedKey::new(chain, signing?);
    certified.keys_match()?;
    Ok(certified)
}

fn mismatch(cert: &str, key: &str, error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => bad(format!(
            "{cert} and {key} do not belong together: the key is not the certificate's; \
             use the pair that was made together"
        )),
        error => bad(format!("{cert} and {key} cannot be used: {error}")),
    }
}
