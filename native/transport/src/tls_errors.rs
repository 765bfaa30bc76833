//! What TLS errors mean, and what to do about them.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::{AlertDescription, CertificateError, OtherError, PeerIncompatible};

use crate::tls_contents::bad;
use crate::verifier::Refusal;
use crate::{Certificate, Error, Kind};

/// What an error on a TLS stream means and what to do about it. `own` is the certificate of ours
/// that the peer was shown.
pub(crate) fn explain(error: &io::Error, own: Option<&Certificate>) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(error) => explain_tls(error, own),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(Kind::Closed, "the peer closed the connection")
        }
        None => Error::os("the connection failed", error),
    }
}

/// The same of an error of rustls itself.
pub(crate) fn explain_tls(error: &rustls::Error, own: Option<&Certificate>) -> Error {
    bad(match error {
        rustls::Error::InvalidCertificate(why) => refused(why),
        rustls::Error::NoCertificatesPresented => {
            "the peer has no certificate and fail_if_no_peer_cert wants one; give it certfile and keyfile".into()
        }
        rustls::Error::AlertReceived(alert) => {
            let why = rejected(*alert, own);
            format!("the peer ended the connection with the TLS alert {alert:?}: {why}")
        }
        rustls::Error::InvalidMessage(_) => {
            format!("what the peer sent is not TLS ({error}); does it speak plain TCP on this port?")
        }
        rustls::Error::PeerIncompatible(why) => {
            format!("the peer and this node {} ({why:?})", incompatible(why))
        }
        error => error.to_string(),
    })
}

fn incompatible(why: &PeerIncompatible) -> &'static str {
    use PeerIncompatible::*;
    match why {
        ServerDoesNotSupportTls12Or13
        | ServerTlsVersionIsDisabledByOurConfig
        | SupportedVersionsExtensionRequired
        | Tls12NotOffered
        | Tls12NotOfferedOrEnabled => {
            "have no TLS version in common; compare versions on both sides"
        }
        NoCipherSuitesInCommon => {
            "have no cipher in common; compare ciphers, and in TLS 1.2 the kind of this node's key, on both sides"
        }
        NoKxGroupsInCommon | NamedGroupsExtensionRequired => {
            "have no group for the key exchange in common; compare the supported groups on both sides"
        }
        NoSignatureSchemesInCommon | NoCertificateRequestSignatureSchemesInCommon => {
            "have no signature algorithm in common that suits the certificate; use one with an ECDSA or RSA key"
        }
        _ => "cannot agree on how to use TLS; compare versions and ciphers on both sides",
    }
}

fn refused(why: &CertificateError) -> String {
    use CertificateError::*;
    match why {
        Expired | ExpiredContext { .. } => {
            format!("the peer's certificate has expired, or that of an authority it sent ({why}); renew it, or set this host's clock")
        }
        NotValidYet | NotValidYetContext { .. } => {
            format!("the peer's certificate is not valid yet, or that of an authority it sent ({why}); set the clocks of both hosts")
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
        Revoked => "the peer's certificate has been revoked, or that of one of its authorities; give it a new one".into(),
        Other(OtherError(why)) if why.is::<Refusal>() => {
            format!("the peer's certificate is not acceptable: {why}")
        }
        why => format!("the peer's certificate is not acceptable: {why}"),
    }
}

/// What an alert says of us. As certificate_expired is sent also before a certificate is valid, our
/// own dates tell which of the two it is.
fn rejected(alert: AlertDescription, own: Option<&Certificate>) -> String {
    use AlertDescription::*;
    let why = match alert {
        UnknownCA => {
            "it does not trust the authority of this node's certificate; add it to the peer's cacertfile"
        }
        CertificateExpired => return not_now(own),
        CertificateRevoked => {
            "this node's certificate has been revoked, or that of one of its authorities; get a new one"
        }
        CertificateRequired => {
            "it wants a certificate from this node; set certfile and keyfile in the client part"
        }
        BadCertificate => return another_host(own),
        UnsupportedCertificate => {
            "this node's certificate may not be used for this; nodes need serverAuth and clientAuth"
        }
        CertificateUnknown => {
            "it has its own reason not to accept this node's certificate, such as a revocation list (CRL) that is \
             missing or out of date, or too many intermediate certificates; the peer's log says which"
        }
        DecryptError => {
            "a signature is wrong: this node's certificate was not signed by the authority that the peer has under \
             its issuer's name; are there two authorities of one name?"
        }
        ProtocolVersion => "no TLS version is allowed on both sides; compare versions",
        HandshakeFailure => {
            "no cipher, group or kind of key suits both sides; compare ciphers. From OTP's own ssl it may also mean that \
             this node's certificate is not for the host that was dialled; the peer's log says which"
        }
        UnrecognisedName => "it does not know the server name this node asked for",
        _ => "the peer's log may say why",
    };
    why.into()
}

fn not_now(own: Option<&Certificate>) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs() as i64);
    match own {
        Some(own) if now < own.not_before => {
            "this node's certificate is not valid yet; set the clocks of both hosts"
        }
        Some(own) if now <= own.not_after => {
            "it takes this node's certificate, or that of one of its authorities, for expired or not valid yet; \
             set the clocks of both hosts"
        }
        _ => "this node's certificate has expired; renew it",
    }
    .into()
}

fn another_host(own: Option<&Certificate>) -> String {
    let hosts = own.map_or_else(String::new, |own| match &own.hosts[..] {
        [] => " is for no host, and".into(),
        hosts => format!(" is for {}, and", hosts.join(", ")),
    });
    format!(
        "it does not accept this node's certificate, which{hosts} must be for the host by which the peer knows this \
         node; issue one with that name as a subjectAltName, or see the peer's log"
    )
}
