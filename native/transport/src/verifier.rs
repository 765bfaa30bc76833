//! Verifying the peer's certificate, on either side.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, ExtendedKeyPurpose, OtherError,
    RootCertStore, SignatureScheme,
};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth,
    RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};

use crate::certificate;

/// Verifies certificates. The peer must prove that it has the key in any case.
#[derive(Debug)]
pub(crate) struct Verifier {
    /// `None`: any certificate will do.
    pub(crate) trust: Option<Trust>,
    /// Of a server's certificate, whether it must be for the host that was dialled.
    pub(crate) check_host: bool,
    /// Whether a client must have one.
    pub(crate) mandatory: bool,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
    /// The names of the authorities, to tell clients.
    pub(crate) hints: Vec<DistinguishedName>,
}

/// Which certificates will do.
#[derive(Debug)]
pub(crate) struct Trust {
    pub(crate) roots: RootCertStore,
    /// How many intermediate certificates there may be; as many as webpki can take if absent.
    pub(crate) depth: Option<usize>,
    pub(crate) revocation: Option<Revocation>,
}

/// What is asked about revoked certificates.
#[derive(Debug)]
pub(crate) struct Revocation {
    pub(crate) lists: Vec<CertRevocationList<'static>>,
    /// Whether the intermediate certificates are looked up, too.
    pub(crate) chain: bool,
    /// Whether a certificate will do whose issuer has no list here, or an old one.
    pub(crate) allow_unknown: bool,
}

/// Why a certificate is refused where rustls has no word for it. The peer gets the alert
/// `certificate_unknown`.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Too many intermediate certificates.
    Depth(Option<usize>),
    /// No revocation list of an issuer.
    NoList,
    /// Its list is old.
    OldList,
    /// Its list is not signed by it.
    ForgedList,
    /// Something else.
    Other(webpki::Error),
}

impl Verifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), rustls::Error> {
        match &self.trust {
            None => Ok(()),
            Some(trust) => trust
                .verify(end_entity, intermediates, now, usage, self.algorithms)
                .map_err(|error| trust.refusal(error).into()),
        }
    }
}

impl Trust {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), webpki::Error> {
        let lists: Vec<_> = self.revocation.iter().flat_map(|r| &r.lists).collect();
        let revocation = self.revocation.as_ref().and_then(|r| r.options(&lists));
        let path = |path: &VerifiedPath<'_>| match self.depth {
            Some(depth) if path.intermediate_certificates().count() > depth => {
                Err(webpki::Error::MaximumPathDepthExceeded)
            }
            _ => Ok(()),
        };
        EndEntityCert::try_from(end_entity)?
            .verify_for_usage(
                algorithms.all,
                &self.roots.roots,
                intermediates,
                now,
                usage,
                revocation,
                Some(&path),
            )
            .map(drop)
    }

    fn refusal(&self, error: webpki::Error) -> CertificateError {
        use webpki::Error::*;
        match error {
            BadDer | BadDerTime | TrailingData(_) => CertificateError::BadEncoding,
            CertNotValidYet { time, not_before } => {
                CertificateError::NotValidYetContext { time, not_before }
            }
            CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
            InvalidCertValidity => CertificateError::Expired,
            UnknownIssuer => CertificateError::UnknownIssuer,
            InvalidSignatureForPublicKey => CertificateError::BadSignature,
            CertRevoked => CertificateError::Revoked,
            RequiredEkuNotFoundContext(context) => CertificateError::InvalidPurposeContext {
                required: purpose(context.required.oid_values().collect()),
                presented: context.present.into_iter().map(purpose).collect(),
            },
            MaximumPathDepthExceeded => Refusal::Depth(self.depth).into(),
            UnknownRevocationStatus => Refusal::NoList.into(),
            CrlExpired { .. } => Refusal::OldList.into(),
            InvalidCrlSignatureForPublicKey => Refusal::ForgedList.into(),
            error => Refusal::Other(error).into(),
        }
    }
}

fn purpose(oid: Vec<usize>) -> ExtendedKeyPurpose {
    match &oid[..] {
        KeyUsage::SERVER_AUTH_REPR => ExtendedKeyPurpose::ServerAuth,
        KeyUsage::CLIENT_AUTH_REPR => ExtendedKeyPurpose::ClientAuth,
        _ => ExtendedKeyPurpose::Other(oid),
    }
}

impl Revocation {
    /// `None` if there are no lists, which is fine only where unknown certificates are.
    fn options<'a>(
        &self,
        lists: &'a [&'a CertRevocationList<'a>],
    ) -> Option<RevocationOptions<'a>> {
        let depth = match self.chain {
            true => RevocationCheckDepth::Chain,
            false => RevocationCheckDepth::EndEntity,
        };
        // Where unknown ones are allowed, an old list can still say which were revoked.
        let (unknown, old) = match self.allow_unknown {
            true => (UnknownStatusPolicy::Allow, ExpirationPolicy::Ignore),
            false => (UnknownStatusPolicy::Deny, ExpirationPolicy::Enforce),
        };
        let options = RevocationOptionsBuilder::new(lists).ok()?;
        Some(
            options
                .with_depth(depth)
                .with_status_policy(unknown)
                .with_expiration_policy(old)
                .build(),
        )
    }
}

/// Both traits want the same of a peer's signature.
macro_rules! proof_of_the_key {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, cert, signature, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        match !self.check_host || certificate::is_for_host(end_entity, &host.to_str()) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(wrong_host(end_entity, host).into()),
        }
    }

    proof_of_the_key!();
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    proof_of_the_key!();
}

fn wrong_host(end_entity: &CertificateDer<'_>, host: &ServerName<'_>) -> CertificateError {
    let facts = crate::Certificate::of(end_entity);
    CertificateError::NotValidForNameContext {
        expected: host.to_owned(),
        presented: facts.map_or_else(|_| Vec::new(), |facts| facts.hosts),
    }
}

impl From<Refusal> for CertificateError {
    fn from(refusal: Refusal) -> Self {
        Self::Other(OtherError(Arc::new(refusal)))
    }
}

impl StdError for Refusal {}

/// What follows "the peer's certificate is not acceptable: ".
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Depth(Some(depth)) => write!(
                f,
                "there are more than {depth} intermediate certificates between it and its authority; raise depth"
            ),
            Self::Depth(None) => write!(
                f,
                "there are too many intermediate certificates between it and its authority; there may be 6"
            ),
            Self::NoList => write!(
                f,
                "there is no revocation list (CRL) of its issuer here, so it may have been revoked; add that list, \
                 or set crl_check to best_effort"
            ),
            Self::OldList => write!(
                f,
                "the revocation list (CRL) of its issuer is out of date; get a new one, or set this host's clock"
            ),
            Self::ForgedList => write!(
                f,
                "the revocation list (CRL) of its issuer was not signed by that issuer; get another one"
            ),
            Self::Other(error) => other(error, f),
        }
    }
}

fn other(error: &webpki::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use webpki::Error::*;
    let why = match error {
        CaUsedAsEndEntity => {
            "it is an authority's (CA:TRUE), not a node's; let that authority issue one for the node"
        }
        EndEntityUsedAsCa => {
            "it was issued by a certificate that is no authority's (CA:TRUE is missing)"
        }
        PathLenConstraintViolated => {
            "an authority between it and cacertfile has a pathlen that allows no further authority"
        }
        NameConstraintViolation => {
            "one of its authorities may not issue certificates for such names"
        }
        UnsupportedCertVersion => "it is not of version 3; issue one with a subjectAltName",
        UnsupportedSignatureAlgorithmContext(_) => {
            "it was signed by an algorithm that is not accepted, such as SHA-1; have it signed with SHA-256"
        }
        UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "the kind of its authority's key and the algorithm of its signature do not fit"
        }
        error => return write!(f, "{error}"),
    };
    f.write_str(why)
}
