//! Private keys: made, read, encrypted.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use clap::{Args, ValueEnum};
use pem::{EncodeConfig, LineEnding, Pem};
use pkcs8::pkcs5::pbes2;
use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::error::Error;
use crate::files;
use crate::issue::random;

const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";

/// How often a passphrase is hashed: what OWASP recommends for PBKDF2 with SHA-256.
const ITERATIONS: u32 = 600_000;

/// What kind of key a certificate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyType {
    /// ECDSA on the curve P-256, which everything takes
    Ecdsa,
    /// RSA of 3072 bits
    Rsa,
    /// Ed25519, which stock nodes of OTP 25 and 27 do not take by default
    Ed25519,
}

impl KeyType {
    pub(crate) fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::Ecdsa => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
            Self::Ed25519 => ed25519(),
        }
    }
}

/// In the format that everything reads; rcgen's own has the public key with it, which openssl
/// refuses.
fn ed25519() -> Result<KeyPair, rcgen::Error> {
    let pkcs8 = Ed25519KeyPair::generate().and_then(|key| key.to_pkcs8v1());
    let pkcs8 = pkcs8.map_err(|_| rcgen::Error::RingUnspecified)?;
    KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8.as_ref().into(), &PKCS_ED25519)
}

/// Where the passphrase of a key comes from; never an argument, which every user can see.
#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct PassphraseFrom {
    /// Encrypt the key with the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Encrypt the key with the value of this environment variable.
    #[arg(long, value_name = "VARIABLE")]
    passphrase_env: Option<String>,
}

impl PassphraseFrom {
    /// The passphrase, if there is to be one.
    pub(crate) fn read(&self) -> Result<Option<Passphrase>, Error> {
        let (from, text) = match (&self.passphrase_file, &self.passphrase_env) {
            (Some(file), _) => (file.clone(), files::read_text(file, "")?),
            (None, Some(name)) => {
                let unset =
                    |_| Error::unusable(Path::new(name), "this environment variable has no text");
                (PathBuf::from(name), std::env::var(name).map_err(unset)?)
            }
            (None, None) => return Ok(None),
        };
        match text.lines().next() {
            Some(line) if !line.is_empty() => Ok(Some(Passphrase(line.into()))),
            _ => Err(Error::unusable(
                &from,
                "the passphrase is empty; give one in the first line",
            )),
        }
    }
}

/// Not for anybody to see.
pub(crate) struct Passphrase(String);

/// A key as it is written, encrypted if there is a passphrase: by PBES2 with AES, which OTP 25 and
/// openssl read.
pub(crate) fn pem(key: &KeyPair, passphrase: Option<&Passphrase>) -> Result<String, Error> {
    let Some(passphrase) = passphrase else {
        return Ok(key.serialize_pem());
    };
    let (salt, iv) = (random::<16>()?, random::<16>()?);
    let sealed = pbes2::Parameters::generate_pbkdf2_sha256_aes256cbc(ITERATIONS, &salt, iv)
        .map_err(pkcs8::Error::from)
        .and_then(|how| {
            PrivateKeyInfoRef::try_from(key.serialized_der())?
                .encrypt_with_params(how, &passphrase.0)
        })?;
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    Ok(pem::encode_config(
        &Pem::new(ENCRYPTED, sealed.as_bytes()),
        config,
    ))
}

/// A private key; `passphrase` is for one that is encrypted.
pub(crate) fn read(
    pem: &str,
    path: &Path,
    passphrase: Option<&Passphrase>,
) -> Result<KeyPair, Error> {
    if is_encrypted(pem) {
        return decrypt(pem, path, passphrase);
    }
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|why| unusable(path, &why))?;
    KeyPair::try_from(&der).map_err(|why| unusable(path, &why))
}

fn decrypt(pem: &str, path: &Path, passphrase: Option<&Passphrase>) -> Result<KeyPair, Error> {
    let Some(passphrase) = passphrase else {
        let why = "the key is encrypted; give its passphrase with --passphrase-file or --passphrase-env \
                   where there is such an option, or else a copy that is not";
        return Err(Error::unusable(path, why));
    };
    let sealed = pem::parse(pem).map_err(|why| unusable(path, &why))?;
    let plain = EncryptedPrivateKeyInfoRef::try_from(sealed.contents())
        .map_err(|why| unusable(path, &why))?
        .decrypt(&passphrase.0)
        .map_err(|_| Error::unusable(path, "the passphrase is not that of the key"))?;
    let der = PrivateKeyDer::try_from(plain.as_bytes()).map_err(|why| unusable(path, &why))?;
    KeyPair::try_from(&der).map_err(|why| unusable(path, &why))
}

fn unusable(path: &Path, why: &dyn Display) -> Error {
    Error::unusable(
        path,
        format!("it holds no private key that can be used: {why}"),
    )
}

/// Whether a passphrase is needed for the key in this PEM text.
fn is_encrypted(pem: &str) -> bool {
    pem.contains(ENCRYPTED) || pem.contains("Proc-Type: 4,ENCRYPTED")
}
