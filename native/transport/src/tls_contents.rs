//! What TLS is configured with: certificates, revocation lists and keys, from PEM text or DER.

use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::pkcs5::Error::DecryptFailed;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs1KeyDer,
    PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};
use zeroize::Zeroizing;

use crate::{Error, Kind};

/// How a key is decrypted that an older openssl, or `openssl rsa`, encrypted in its own way.
const CONVERT: &str = "convert it with `openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW`";

/// The contents of an option. Since that may be a key they are wiped when dropped, and not printable.
#[derive(Clone)]
pub enum Contents {
    /// A PEM file.
    Pem(Zeroizing<Vec<u8>>),
    /// DER, each item by itself.
    Der(Vec<Zeroizing<Vec<u8>>>),
}

impl Contents {
    /// A PEM file.
    pub fn pem(text: impl Into<Vec<u8>>) -> Self {
        Self::Pem(Zeroizing::new(text.into()))
    }

    /// DER, each item by itself.
    pub fn der(items: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self::Der(items.into_iter().map(Zeroizing::new).collect())
    }

    /// What the option is called that has such contents.
    pub(crate) fn option(&self, names: Names) -> &'static str {
        match self {
            Self::Pem(_) => names.0,
            Self::Der(_) => names.1,
        }
    }
}

/// An option's name for a file, and for DER.
pub(crate) type Names = (&'static str, &'static str);
pub(crate) const CERT: Names = ("certfile", "cert");
pub(crate) const KEY: Names = ("keyfile", "key");
pub(crate) const ROOTS: Names = ("cacertfile", "cacerts");

/// Certificates, at least one. What they contain is not looked at.
pub(crate) fn certificates(
    names: Names,
    contents: &Contents,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let option = contents.option(names);
    let found = match contents {
        Contents::Pem(text) => sections(option, text)?,
        Contents::Der(items) => items.iter().map(|der| der.to_vec().into()).collect(),
    };
    match (found.is_empty(), contents) {
        (false, _) => Ok(found),
        (true, Contents::Pem(_)) => Err(bad(format!(
            "{option} holds no certificate; it must contain a block BEGIN CERTIFICATE"
        ))),
        (true, Contents::Der(_)) => Err(bad(format!("{option} holds no certificate"))),
    }
}

/// The revocation lists in a file, PEM or DER.
pub(crate) fn revocation_lists(
    file: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    match contains(file, b"-----BEGIN ") {
        true => sections("a file of revocation lists", file),
        false => Ok(vec![file.to_vec().into()]),
    }
}

fn sections<T: PemObject>(option: &str, text: &[u8]) -> Result<Vec<T>, Error> {
    let found: Result<_, pem::Error> = T::pem_slice_iter(text).collect();
    found.map_err(|error| bad(format!("{option} is no valid PEM file: {error}")))
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// The private key in these contents, decrypted if need be.
pub(crate) fn private_key(
    option: &str,
    contents: &Contents,
    password: Option<&[u8]>,
) -> Result<PrivateKeyDer<'static>, Error> {
    match contents {
        Contents::Pem(text) => pem_key(option, text, password),
        Contents::Der(items) => match &items[..] {
            [der] => der_key(option, der, password),
            _ => Err(bad(format!("{option} must be one private key"))),
        },
    }
}

/// Whether there is a private key among what a PEM file holds.
pub(crate) fn has_private_key(contents: &Contents) -> bool {
    match contents {
        Contents::Pem(text) => contains(text, b"PRIVATE KEY-----"),
        Contents::Der(_) => false,
    }
}

fn pem_key(
    option: &str,
    text: &[u8],
    password: Option<&[u8]>,
) -> Result<PrivateKeyDer<'static>, Error> {
    let sections = ::pem::parse_many(text)
        .map_err(|error| bad(format!("{option} is no valid PEM file: {error}")))?;
    let Some(section) = sections.into_iter().find(is_key) else {
        return Err(bad(format!(
            "{option} holds no private key; it must contain a block BEGIN PRIVATE KEY"
        )));
    };
    let (tag, encryption) = (section.tag().to_owned(), section.headers().get("Proc-Type"));
    if encryption.is_some_and(|how| how.contains("ENCRYPTED")) {
        return Err(bad(format!(
            "the private key in {option} is encrypted in the traditional format, which is weak and not supported; {CONVERT}"
        )));
    }
    let der = section.into_contents();
    match tag.as_str() {
        "ENCRYPTED PRIVATE KEY" => decrypt(option, &Zeroizing::new(der), password),
        "RSA PRIVATE KEY" => Ok(PrivatePkcs1KeyDer::from(der).into()),
        "EC PRIVATE KEY" => Ok(PrivateSec1KeyDer::from(der).into()),
        _ => Ok(PrivatePkcs8KeyDer::from(der).into()),
    }
}

fn is_key(section: &::pem::Pem) -> bool {
    const TAGS: [&str; 4] = [
        "PRIVATE KEY",
        "ENCRYPTED PRIVATE KEY",
        "RSA PRIVATE KEY",
        "EC PRIVATE KEY",
    ];
    TAGS.contains(&section.tag())
}

fn der_key(
    option: &str,
    der: &[u8],
    password: Option<&[u8]>,
) -> Result<PrivateKeyDer<'static>, Error> {
    match PrivateKeyDer::try_from(der) {
        Ok(key) => Ok(key.clone_key()),
        Err(_) if EncryptedPrivateKeyInfoRef::try_from(der).is_ok() => {
            decrypt(option, der, password)
        }
        Err(_) => Err(bad(format!(
            "{option} is no private key; it must be DER of PKCS#8, PKCS#1 or SEC1"
        ))),
    }
}

fn decrypt(
    option: &str,
    der: &[u8],
    password: Option<&[u8]>,
) -> Result<PrivateKeyDer<'static>, Error> {
    let Some(password) = password else {
        return Err(bad(format!(
            "the private key in {option} is encrypted; set password"
        )));
    };
    let unsupported = |error| {
        bad(format!(
            "the private key in {option} is encrypted in a way that is not supported ({error}); {CONVERT}"
        ))
    };
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(unsupported)?;
    match encrypted.decrypt(password) {
        Ok(key) => Ok(PrivatePkcs8KeyDer::from(key.as_bytes().to_vec()).into()),
        // A wrong password now and then makes padding that looks right, and then no key.
        Err(pkcs8::Error::EncryptedPrivateKey(DecryptFailed) | pkcs8::Error::Asn1(_)) => Err(bad(
            format!("the private key in {option} cannot be decrypted: the password is wrong"),
        )),
        Err(error) => Err(unsupported(error)),
    }
}

pub(crate) fn bad(sentence: impl Into<String>) -> Error {
    Error::new(Kind::Tls, sentence)
}
