//! `polydist-cert crl`: the list of certificates that an authority takes back. The list is its own
//! memory: a new one is the old one and what is added.

use std::path::{Path, PathBuf};

use clap::{Args, value_parser};
use rcgen::{CertificateRevocationListParams, RevocationReason, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::{CertificateRevocationList, RevokedCertificate};

use crate::error::Error;
use crate::facts;
use crate::files::{self, CERT, CRL, File};
use crate::issue::Authority;
use crate::output::{print, say};

#[derive(Args)]
pub(crate) struct Crl {
    /// The directory of the authority, made by polydist-cert ca.
    dir: PathBuf,
    /// A certificate to take back, or the node's directory with cert.pem; without any, the list is
    /// only signed anew.
    #[arg(long, value_name = "FILE|DIR", num_args = 1..)]
    revoke: Vec<PathBuf>,
    /// For how many days from now the list is good; stock nodes that check it want a new one by then.
    #[arg(long, value_name = "N", default_value_t = 365,
          value_parser = value_parser!(i64).range(1..=36500))]
    days: i64,
}

/// A list as the tool shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    pub(crate) issuer: String,
    pub(crate) number: Option<String>,
    /// In seconds since 1970.
    pub(crate) this_update: i64,
    pub(crate) next_update: Option<i64>,
    /// Serial numbers in hexadecimal.
    pub(crate) revoked: Vec<String>,
}

/// Writes crl.pem beside ca.pem.
pub(crate) fn crl(crl: &Crl) -> Result<(), Error> {
    let authority = Authority::read(&crl.dir)?;
    let path = crl.dir.join(CRL);
    let (mut number, mut revoked) = match path.exists() {
        true => known(&path, &authority)?,
        false => (0, Vec::new()),
    };
    for file in &crl.revoke {
        let serial = issued(&cert_of(file), &authority)?;
        match revoked.iter().any(|known| known.serial_number == serial) {
            true => say(Some(format!("{} is revoked already", file.display()))),
            false => revoked.push(entry(serial)),
        }
    }
    number += 1;
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now,
        next_update: now + Duration::days(crl.days),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked,
        key_identifier_method: authority.key_id.clone(),
    };
    let pem = list.signed_by(&authority.issuer)?.pem()?;
    files::write(&[File::public(&path, &pem)], true)?;
    print(&format!("{}\n", path.display()))
}

fn cert_of(file: &Path) -> PathBuf {
    match file.is_dir() {
        true => file.join(CERT),
        false => file.into(),
    }
}

/// The serial number of a certificate that this authority has signed.
fn issued(path: &Path, authority: &Authority) -> Result<SerialNumber, Error> {
    let der = facts::first(&files::read(path)?, path)?;
    let (cert, ca) = (
        facts::parse(&der, path)?,
        facts::parse(&authority.der, &authority.path)?,
    );
    let signed = cert.verify_signature(Some(ca.public_key())).is_ok();
    match signed && cert.issuer() == ca.subject() {
        true => Ok(SerialNumber::from_slice(cert.raw_serial())),
        false => {
            let why = format!(
                "its certificate was not signed by {}; only the authority that signed it can take it back",
                authority.path.display()
            );
            Err(Error::unusable(path, why))
        }
    }
}

fn entry(serial_number: SerialNumber) -> RevokedCertParams {
    RevokedCertParams {
        serial_number,
        revocation_time: OffsetDateTime::now_utc(),
        reason_code: None,
        invalidity_date: None,
    }
}

/// The number and the entries of the authority's list so far.
fn known(path: &Path, authority: &Authority) -> Result<(u64, Vec<RevokedCertParams>), Error> {
    let der = lists(&files::read(path)?, path)?.into_iter().next();
    let der = der.ok_or_else(|| Error::unusable(path, "it holds no list (X509 CRL)"))?;
    let list = parse(&der, path)?;
    let ca = facts::parse(&authority.der, &authority.path)?;
    if list.verify_signature(ca.public_key()).is_err() {
        let why = format!(
            "this list is not by {}; move it away, and revoke again what is to be revoked",
            authority.path.display()
        );
        return Err(Error::unusable(path, why));
    }
    let number = list.crl_number().and_then(|number| number.try_into().ok());
    let revoked = list.iter_revoked_certificates().map(keep).collect();
    Ok((number.unwrap_or(0), revoked))
}

fn keep(revoked: &RevokedCertificate<'_>) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: SerialNumber::from_slice(revoked.raw_serial()),
        revocation_time: revoked.revocation_date.to_datetime(),
        reason_code: revoked.reason_code().and_then(|(_, code)| reason(code.0)),
        invalidity_date: revoked
            .invalidity_date()
            .map(|(_, date)| date.to_datetime()),
    }
}

fn reason(code: u8) -> Option<RevocationReason> {
    use RevocationReason::*;
    let all = [
        KeyCompromise,
        CaCompromise,
        AffiliationChanged,
        Superseded,
        CessationOfOperation,
        CertificateHold,
        RemoveFromCrl,
        PrivilegeWithdrawn,
        AaCompromise,
    ];
    all.into_iter().find(|reason| *reason as u8 == code)
}

/// What the lists in a file say.
pub(crate) fn facts(path: &Path) -> Result<Vec<Facts>, Error> {
    let lists = lists(&files::read(path)?, path)?;
    lists
        .iter()
        .map(|der| parse(der, path).map(|list| facts_of(&list)))
        .collect()
}

fn facts_of(list: &CertificateRevocationList<'_>) -> Facts {
    Facts {
        issuer: list.issuer().to_string(),
        number: list.crl_number().map(|number| number.to_string()),
        this_update: list.last_update().timestamp(),
        next_update: list.next_update().map(|time| time.timestamp()),
        revoked: list
            .iter_revoked_certificates()
            .map(|revoked| facts::hex(revoked.raw_serial(), ""))
            .collect(),
    }
}

fn lists(text: &[u8], path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    CertificateRevocationListDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::unusable(path, format!("it is no valid PEM file: {error}")))
}

fn parse<'a>(
    der: &'a CertificateRevocationListDer<'_>,
    path: &Path,
) -> Result<CertificateRevocationList<'a>, Error> {
    CertificateRevocationList::from_der(der)
        .map(|(_, list)| list)
        .map_err(|error| Error::unusable(path, format!("it holds no valid list: {error}")))
}
