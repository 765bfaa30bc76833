//! TLS configurations from PEM text, and what TLS errors mean.
//!
//! Options are called what users call them in `-ssl_dist_optfile`: certfile, keyfile, cacertfile.

use std::io;
use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys,
    RootCertStore, ServerConfig, SignatureScheme, SupportedCipherSuite, SupportedProtocolVersion,
};

use crate::{Error, Kind};

/// What a TLS configuration is made from; the texts are the contents of PEM files.
#[derive(Clone, Default)]
pub struct Pem {
    /// certfile: our certificate, and the intermediate ones after it.
    pub cert: Option<Vec<u8>>,
    /// keyfile: the certificate's private key, not encrypted.
    pub key: Option<Vec<u8>>,
    /// cacertfile: the authorities we trust.
    pub ca: Option<Vec<u8>>,
    /// Whether the peer's certificate is verified.
    pub verify: Verify,
    /// Server only: whether a client without a certificate is refused.
    pub fail_if_no_peer_cert: bool,
    /// Versions allowed; both if empty.
    pub versions: Vec<Version>,
}

/// Whether the peer's certificate is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// It must come from an authority in cacertfile and, for a server's, carry the host's name.
    #[default]
    Peer,
    /// Any certificate will do, as long as the peer has its key.
    None,
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
    Server(Arc<ServerConfig>),
    /// For dialling.
    Client(Arc<ClientConfig>),
}

impl TlsConfig {
    /// A configuration for listeners. Sessions are never resumed: nodes stay connected, and without
    /// tickets nothing but the nodes' own data follows the handshake.
    pub fn server(pem: &Pem) -> Result<Self, Error> {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions(pem))
            .map_err(|error| bad(format!("the TLS versions do not work: {error}")))?;
        let builder = match pem.verify {
            Verify::None => builder.with_no_client_auth(),
            Verify::Peer => {
                let roots = Arc::new(roots(pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
                let verifier = match pem.fail_if_no_peer_cert {
                    true => verifier,
                    false => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build();
                let unusable = |error| bad(format!("cacertfile cannot be used: {error}"));
                builder.with_client_cert_verifier(verifier.map_err(unusable)?)
            }
        };
        let Some((chain, key)) = identity(pem)? else {
            return Err(bad(
                "a TLS server needs a certificate; set certfile and keyfile",
            ));
        };
        let mut config = builder.with_single_cert(chain, key).map_err(mismatch)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::Server(Arc::new(config)))
    }

    /// A configuration for dialling.
    pub fn client(pem: &Pem) -> Result<Self, Error> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&versions(pem))
            .map_err(|error| bad(format!("the TLS versions do not work: {error}")))?;
        let builder = match pem.verify {
            Verify::Peer => builder.with_root_certificates(roots(pem)?),
            Verify::None => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(
                    provider().signature_verification_algorithms,
                ))),
        };
        let mut config = match identity(pem)? {
            Some((chain, key)) => builder
                .with_client_auth_cert(chain, key)
                .map_err(mismatch)?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Self::Client(Arc::new(config)))
    }
}

/// In TLS 1.2 ChaCha20 comes first: keys cannot be renewed there, and rustls ends a connection
/// whose AES-GCM key has made 2^24 records, which a busy connection between nodes does within
/// hours. TLS 1.3 renews its keys.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let provider = PROVIDER.get_or_init(|| {
        let mut provider = aws_lc_rs::default_provider();
        // A stable sort: within TLS 1.3, and among the rest of TLS 1.2, rustls's own order stays.
        provider.cipher_suites.sort_by_key(|suite| match suite {
            SupportedCipherSuite::Tls13(_) => 0,
            SupportedCipherSuite::Tls12(suite)
                if suite.common.confidentiality_limit == u64::MAX =>
            {
                1
            }
            SupportedCipherSuite::Tls12(_) => 2,
        });
        Arc::new(provider)
    });
    provider.clone()
}

fn versions(pem: &Pem) -> Vec<&'static SupportedProtocolVersion> {
    let of = |version: &Version| match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    };
    match pem.versions.is_empty() {
        true => [Version::Tls13, Version::Tls12].iter().map(of).collect(),
        false => pem.versions.iter().map(of).collect(),
    }
}

fn roots(pem: &Pem) -> Result<RootCertStore, Error> {
    let Some(text) = &pem.ca else {
        return Err(bad(
            "verify_peer needs the authorities to trust; set cacertfile (or verify_none, which lets anybody in)",
        ));
    };
    let mut roots = RootCertStore::empty();
    for (number, cert) in certificates("cacertfile", text)?.into_iter().enumerate() {
        roots.add(cert).map_err(|error| {
            bad(format!(
                "certificate {} in cacertfile cannot be used: {error}",
                number + 1
            ))
        })?;
    }
    Ok(roots)
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Our own certificate with its key, if there is one.
fn identity(pem: &Pem) -> Result<Option<Identity>, Error> {
    match (&pem.cert, &pem.key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some((certificates("certfile", cert)?, private_key(key)?))),
        // As in OTP, one file may hold both.
        (Some(both), None) => match private_key(both) {
            Ok(key) => Ok(Some((certificates("certfile", both)?, key))),
            Err(_) => Err(bad(
                "certfile holds no private key and there is no keyfile; set keyfile",
            )),
        },
        (None, Some(_)) => Err(bad("keyfile is set and certfile is not; set certfile")),
    }
}

fn certificates(option: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certs: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(text).collect();
    match certs {
        Ok(certs) if certs.is_empty() => Err(bad(format!(
            "{option} holds no certificate; it must contain a block BEGIN CERTIFICATE"
        ))),
        Ok(certs) => Ok(certs),
        Err(error) => Err(bad(format!("{option} is no valid PEM file: {error}"))),
    }
}

fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, Error> {
    let contains = |what: &[u8]| text.windows(what.len()).any(|window| window == what);
    if contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED") {
        return Err(bad(
            "the private key in keyfile is encrypted, which is not supported; \
             decrypt it with `openssl pkey -in KEY -out KEY.plain` and give the file mode 0600",
        ));
    }
    PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            bad("keyfile holds no private key; it must contain a block BEGIN PRIVATE KEY")
        }
        error => bad(format!("keyfile is no valid PEM file: {error}")),
    })
}

fn mismatch(error: rustls::Error) -> Error {
    match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => bad(
            "certfile and keyfile do not belong together: the key is not the certificate's; \
             use the pair that was made together",
        ),
        error => bad(format!("certfile and keyfile cannot be used: {error}")),
    }
}

fn bad(sentence: impl Into<String>) -> Error {
    Error::new(Kind::Tls, sentence)
}

/// verify_none: takes any certificate, but still makes the server prove that it has the key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

/// What an error on a TLS stream means and what to do about it.
pub(crate) fn explain(error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(error) => bad(sentence(error)),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(Kind::Closed, "the peer closed the connection")
        }
        None => Error::os("the connection failed", error),
    }
}

fn sentence(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => certificate(why),
        rustls::Error::NoCertificatesPresented => {
            "the peer has no certificate and fail_if_no_peer_cert wants one; give it certfile and keyfile".into()
        }
        rustls::Error::AlertReceived(alert) => rejected(*alert),
        rustls::Error::InvalidMessage(_) => {
            format!("what the peer sent is not TLS ({error}); does it speak plain TCP on this port?")
        }
        rustls::Error::PeerIncompatible(why) => {
            format!("the peer and this node have no TLS version or cipher in common ({why:?}); compare versions on both sides")
        }
        error => error.to_string(),
    }
}

fn certificate(why: &CertificateError) -> String {
    use CertificateError::*;
    match why {
        Expired | ExpiredContext { .. } => {
            format!("the peer's certificate has expired ({why}); renew it, or set this host's clock")
        }
        NotValidYet | NotValidYetContext { .. } => {
            format!("the peer's certificate is not valid yet ({why}); set the clocks of both hosts")
        }
        UnknownIssuer => {
            "the peer's certificate comes from an authority that is not in cacertfile; add that authority".into()
        }
        BadSignature => {
            "the peer's certificate was not signed by the authority in cacertfile that has its issuer's name; \
             are there two authorities of one name?".into()
        }
        NotValidForName | NotValidForNameContext { .. } => {
            format!("the peer's certificate is for another host ({why}); issue one with that name as a subjectAltName")
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            format!("the peer's certificate may not be used for this ({why}); nodes need serverAuth and clientAuth")
        }
        why => format!("the peer's certificate is not acceptable: {why}"),
    }
}

fn rejected(alert: AlertDescription) -> String {
    use AlertDescription::*;
    let why = match alert {
        UnknownCA => {
            "it does not trust the authority of this node's certificate; add it to the peer's cacertfile"
        }
        CertificateExpired => "this node's certificate has expired; renew it",
        CertificateRequired => {
            "it wants a certificate from this node; set certfile and keyfile in the client part"
        }
        BadCertificate | CertificateUnknown | UnsupportedCertificate => {
            "it does not accept this node's certificate; the peer's log says why"
        }
        ProtocolVersion => "no TLS version is allowed on both sides; compare versions",
        HandshakeFailure => "no cipher or certificate suits both sides; the peer's log says why",
        UnrecognisedName => "it does not know the server name this node asked for",
        _ => "the peer's log may say why",
    };
    format!("the peer ended the connection with the TLS alert {alert:?}: {why}")
}
