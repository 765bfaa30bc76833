//! `polydist-cert show`: what is in certificates, never in keys.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::crl;
use crate::error::Error;
use crate::facts::{self, Facts};
use crate::files;
use crate::output::{print, printable};

#[derive(Args)]
pub(crate) struct Show {
    /// A file with certificates (PEM or DER) or lists of revoked ones (PEM), or a directory with
    /// cert.pem, ca.pem and crl.pem, as far as they are there.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
    /// As JSON: a list, times in seconds since 1970.
    #[arg(long)]
    json: bool,
}

/// What is shown, and where it is.
#[derive(Serialize)]
struct Shown {
    file: PathBuf,
    #[serde(flatten)]
    what: What,
}

#[derive(Serialize)]
#[serde(untagged)]
enum What {
    Certificate(Box<Facts>),
    List(crl::Facts),
}

/// Prints what these files hold.
pub(crate) fn show(show: &Show) -> Result<(), Error> {
    let mut shown = Vec::new();
    for path in &show.paths {
        for file in files_of(path)? {
            shown.append(&mut read(&file)?);
        }
    }
    print(&match show.json {
        true => serde_json::to_string_pretty(&shown)? + "\n",
        false => shown.iter().map(text).collect(),
    })
}

fn files_of(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.into()]);
    }
    let files = [files::CERT, files::AUTHORITY, files::CRL].map(|name| path.join(name));
    let files: Vec<_> = files.into_iter().filter(|file| file.exists()).collect();
    match files.is_empty() {
        true => Err(Error::unusable(
            path,
            "it has neither cert.pem nor ca.pem nor crl.pem; name a file",
        )),
        false => Ok(files),
    }
}

fn read(file: &Path) -> Result<Vec<Shown>, Error> {
    let certificates = facts::certificates(file)?;
    let certificates = certificates.iter().map(|der| Facts::of(der, file));
    let certificates = certificates.map(|facts| facts.map(Box::new).map(What::Certificate));
    let mut shown = certificates.collect::<Result<Vec<_>, _>>()?;
    shown.extend(crl::facts(file)?.into_iter().map(What::List));
    if shown.is_empty() {
        let why = "it holds no certificate and no list (what keys it may hold is never shown)";
        return Err(Error::unusable(file, why));
    }
    let file = file.to_owned();
    Ok(shown
        .into_iter()
        .map(|what| Shown {
            file: file.clone(),
            what,
        })
        .collect())
}

fn text(Shown { file, what }: &Shown) -> String {
    let lines = match what {
        What::Certificate(facts) => certificate(facts),
        What::List(facts) => list(facts),
    };
    let lines = lines.iter().filter(|(_, text)| !text.is_empty());
    let lines = lines.map(|(what, text)| format!("  {what:<12} {}\n", printable(text)));
    format!("{}\n{}", file.display(), lines.collect::<String>())
}

type Line = (&'static str, String);

fn certificate(facts: &Facts) -> Vec<Line> {
    vec![
        ("subject", facts.subject.clone()),
        ("issuer", facts.issuer.clone()),
        ("serial", facts.serial.clone()),
        ("nodes", facts.nodes.join(", ")),
        ("hosts", facts.hosts.join(", ")),
        ("other names", facts.other_names.join(", ")),
        ("valid", validity(facts)),
        ("key", facts.key.clone()),
        ("usages", usages(facts)),
        ("SHA-256", facts.fingerprint.clone()),
    ]
}

fn list(facts: &crl::Facts) -> Vec<Line> {
    let until = facts.next_update.map(|time| {
        let state = match time < facts::now() {
            true => "ended".to_owned(),
            false => format!("{} days left", facts::days_until(time)),
        };
        format!(" to {}, {state}", facts::date(time))
    });
    let since = facts::date(facts.this_update);
    vec![
        ("list by", facts.issuer.clone()),
        ("number", facts.number.clone().unwrap_or_default()),
        ("good", since + &until.unwrap_or_default()),
        (
            "revoked",
            match facts.revoked.is_empty() {
                true => "none".into(),
                false => facts.revoked.join(", "),
            },
        ),
    ]
}

fn validity(facts: &Facts) -> String {
    let (from, to) = (facts::date(facts.not_before), facts::date(facts.not_after));
    let state = match facts::now() {
        now if now > facts.not_after => "ended".to_owned(),
        now if now < facts.not_before => "not valid yet".to_owned(),
        _ => format!("{} days left", facts.days_left),
    };
    format!("{from} to {to}, {state}")
}

fn usages(facts: &Facts) -> String {
    let authority = facts.authority.then(|| "authority".to_owned());
    let usages = facts
        .key_usages
        .iter()
        .chain(&facts.extended_key_usages)
        .cloned();
    authority
        .into_iter()
        .chain(usages)
        .collect::<Vec<_>>()
        .join(", ")
}
