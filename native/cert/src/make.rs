//! The subcommands that make certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, value_parser};
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, DnType, SanType};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::error::Error;
use crate::facts;
use crate::files::{self, AUTHORITY, AUTHORITY_KEY, CERT, File, KEY, OPTIONS};
use crate::issue::{self, AUTHORITY_DAYS, Authority, Identity, Pair};
use crate::keys::{self, KeyType, Passphrase, PassphraseFrom};
use crate::names::{self, Host, LONGEST_COMMON_NAME};
use crate::output::{print, say};

#[derive(Args)]
pub(crate) struct Init {
    /// The directory; made if absent.
    dir: PathBuf,
    /// A name or IP address that the node is reached by: what follows the @ in the node's name.
    #[arg(long = "host", value_name = "NAME", required = true)]
    hosts: Vec<String>,
    /// For how many days from now the certificate is valid; below zero, it has expired already.
    #[arg(long, value_name = "N", default_value_t = 365, allow_negative_numbers = true,
          value_parser = value_parser!(i64).range(-36500..=36500))]
    days: i64,
    /// The certificate's common name [default: the first host].
    #[arg(long, value_name = "COMMON")]
    name: Option<String>,
    /// Sign with the authority that an earlier init made in this directory. Its key stays there.
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct Ca {
    /// The directory; made if absent. Keep it where no node runs: its key makes members of the cluster.
    dir: PathBuf,
    /// The authority's common name [default: one that no other authority has].
    #[arg(long, value_name = "COMMON", value_parser = common_name)]
    name: Option<String>,
    /// For how many days from now the authority is valid.
    #[arg(long, value_name = "N", default_value_t = AUTHORITY_DAYS,
          value_parser = value_parser!(i64).range(1..=36500))]
    days: i64,
    /// Replace files that exist; what the old authority signed is then worth nothing.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct Node {
    /// The directory; made if absent.
    dir: PathBuf,
    /// The node that is to have the certificate; several of one host may share it.
    #[arg(value_name = "NAME@HOST", required = true)]
    nodes: Vec<names::Node>,
    /// The directory of the authority that signs, made by polydist-cert ca. Its key stays there.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Another name or IP address of the host; *.example.org is any host of that domain.
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<Host>,
    /// For how many days from now the certificate is valid.
    #[arg(long, value_name = "N", default_value_t = 365,
          value_parser = value_parser!(i64).range(1..=36500))]
    days: i64,
    /// The kind of key.
    #[arg(long, value_name = "TYPE", default_value = "ecdsa")]
    key: KeyType,
    /// The certificate's common name [default: the first node].
    #[arg(long, value_name = "COMMON", value_parser = common_name)]
    name: Option<String>,
    #[command(flatten)]
    passphrase: PassphraseFrom,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

#[derive(Args)]
pub(crate) struct Renew {
    /// The directory with cert.pem, key.pem and ca.pem.
    dir: PathBuf,
    /// The directory of the authority that signs, made by polydist-cert ca. Its key stays there.
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// For how many days from now the new certificate is valid.
    #[arg(long, value_name = "N", default_value_t = 365,
          value_parser = value_parser!(i64).range(1..=36500))]
    days: i64,
    /// The kind of the new key [default: that of the old one].
    #[arg(long, value_name = "TYPE")]
    key: Option<KeyType>,
    /// Keep the key, and renew the certificate alone.
    #[arg(long, conflicts_with = "key")]
    keep_key: bool,
    #[command(flatten)]
    passphrase: PassphraseFrom,
}

fn common_name(name: &str) -> Result<String, String> {
    match name.len() {
        1..=LONGEST_COMMON_NAME => Ok(name.into()),
        _ => Err(format!("it must have 1 to {LONGEST_COMMON_NAME} bytes")),
    }
}

/// An authority if there is none yet, and a certificate for hosts.
pub(crate) fn init(init: &Init) -> Result<(), Error> {
    let (authority, authority_key) = match &init.ca {
        Some(dir) => (Authority::read(dir)?, None),
        None => {
            // One day more: an authority must not end before what it signs a moment later.
            let pair = issue::authority(None, init.days.max(AUTHORITY_DAYS) + 1)?;
            let key = pair.key.clone();
            (Authority::of(pair, &init.dir)?, Some(key))
        }
    };
    let common_name = init.name.as_ref().unwrap_or(&init.hosts[0]); // clap requires one
    let identity = Identity {
        subject: issue::common_name(common_name),
        names: CertificateParams::new(init.hosts.clone())?.subject_alt_names,
        days: init.days,
    };
    let node = issued(&authority, identity, KeyType::Ecdsa, None)?;
    let authority_key = authority_key.as_deref();
    write_node(&init.dir, &authority, authority_key, &node, init.force)?;
    say(authority.ends_before(init.days));
    Ok(())
}

/// An authority alone.
pub(crate) fn ca(ca: &Ca) -> Result<(), Error> {
    let pair = issue::authority(ca.name.as_deref(), ca.days)?;
    let dir = files::directory(&ca.dir)?;
    let files = [
        File::private(dir.join(AUTHORITY_KEY), &pair.key),
        File::public(dir.join(AUTHORITY), &pair.cert),
    ];
    files::write(&files, ca.force)?;
    print(&format!("{}\n", ca.dir.join(AUTHORITY).display()))
}

/// A certificate that names nodes.
pub(crate) fn node(node: &Node) -> Result<(), Error> {
    let authority = Authority::read(&node.ca)?;
    let first = &node.nodes[0]; // clap requires one
    let common_name = node.name.clone().unwrap_or_else(|| first.common_name());
    let mut hosts: Vec<&Host> = Vec::new();
    for host in node.nodes.iter().map(names::Node::host).chain(&node.hosts) {
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    let hosts = hosts.into_iter().map(Host::san);
    let identity = Identity {
        subject: issue::common_name(&common_name),
        names: hosts
            .chain(node.nodes.iter().map(names::Node::san))
            .collect::<Result<_, _>>()?,
        days: node.days,
    };
    let passphrase = node.passphrase.read()?;
    let issued = issued(&authority, identity, node.key, passphrase.as_ref())?;
    write_node(&node.dir, &authority, None, &issued, node.force)?;
    say(authority.ends_before(node.days));
    Ok(())
}

/// A new key with its certificate.
struct Issued {
    pair: Pair,
    encrypted: bool,
}

fn issued(
    authority: &Authority,
    identity: Identity,
    kind: KeyType,
    passphrase: Option<&Passphrase>,
) -> Result<Issued, Error> {
    let key = kind.generate()?;
    let pair = Pair {
        cert: authority.issue(identity, &key)?,
        key: keys::pem(&key, passphrase)?,
    };
    let encrypted = passphrase.is_some();
    Ok(Issued { pair, encrypted })
}

/// Everything that a node reads.
fn write_node(
    dir: &Path,
    authority: &Authority,
    authority_key: Option<&str>,
    Issued { pair, encrypted }: &Issued,
    force: bool,
) -> Result<(), Error> {
    let absolute = files::directory(dir)?;
    let options = files::options(&absolute, *encrypted);
    let mut files = vec![
        File::public(dir.join(AUTHORITY), &authority.pem),
        File::private(dir.join(KEY), &pair.key),
        File::public(dir.join(CERT), &pair.cert),
        // A password will be in it.
        match encrypted {
            true => File::private(dir.join(OPTIONS), &options),
            false => File::public(dir.join(OPTIONS), &options),
        },
    ];
    if let Some(key) = authority_key {
        files.push(File::private(dir.join(AUTHORITY_KEY), key));
    }
    files::write(&files, force)?;
    print(&format!("{}\n", dir.join(OPTIONS).display()))
}

/// A new certificate with the names of the old one.
pub(crate) fn renew(renew: &Renew) -> Result<(), Error> {
    let authority = Authority::read(&renew.ca)?;
    // Where they really are: a symbolic link is to stay one.
    let really = |name| {
        let path = renew.dir.join(name);
        path.canonicalize().map_err(|error| {
            Error::Read(
                path,
                error,
                "; renew wants a directory that polydist-cert node has made",
            )
        })
    };
    let (cert_path, key_path, ca_path) = (really(CERT)?, really(KEY)?, really(AUTHORITY)?);
    is_trusted(&authority, &ca_path)?;
    let der = facts::first(&files::read(&cert_path)?, &cert_path)?;
    let cert = facts::parse(&der, &cert_path)?;
    let passphrase = renew.passphrase.read()?;
    let passphrase = passphrase.as_ref();
    // The new key is to be encrypted as the old one is, or the node could not read it.
    let old_key = keys::read(&files::read_text(&key_path, "")?, &key_path, passphrase)?;
    let (key, key_pem) = match renew.keep_key {
        true => (old_key, None),
        false => {
            let key = kind(renew.key, &cert, &cert_path)?.generate()?;
            let pem = keys::pem(&key, passphrase)?;
            (key, Some(pem))
        }
    };
    let identity = Identity {
        subject: subject(&cert, &cert_path)?,
        names: names_of(&cert, &cert_path)?,
        days: renew.days,
    };
    let cert_pem = authority.issue(identity, &key)?;
    let mut files = vec![File::public(&cert_path, &cert_pem)];
    if let Some(pem) = &key_pem {
        say(narrower(&key_path));
        files.insert(0, File::private(&key_path, pem));
    }
    files::write(&files, true)?;
    say(authority.ends_before(renew.days));
    print(&format!("{}\n", renew.dir.join(CERT).display()))
}

/// The other nodes trust what this node's ca.pem has, if they are set up alike. One that is signed
/// by anybody else would keep the node out.
fn is_trusted(authority: &Authority, ca_path: &Path) -> Result<(), Error> {
    match facts::certificates(ca_path)?.contains(&authority.der) {
        true => Ok(()),
        false => {
            let why = format!(
                "it does not have the authority in {}; first append that to the ca.pem of every node, then renew",
                authority.path.display()
            );
            Err(Error::unusable(ca_path, why))
        }
    }
}

fn kind(
    wanted: Option<KeyType>,
    cert: &X509Certificate<'_>,
    path: &Path,
) -> Result<KeyType, Error> {
    let old = facts::key_type(cert);
    match (wanted, old.as_str()) {
        (Some(kind), _) => Ok(kind),
        (None, "ECDSA, P-256") => Ok(KeyType::Ecdsa),
        (None, "Ed25519") => Ok(KeyType::Ed25519),
        (None, old) if old.starts_with("RSA") => Ok(KeyType::Rsa),
        (None, old) => {
            let why =
                format!("no new keys of its type ({old}) can be made; say --key or --keep-key");
            Err(Error::unusable(path, why))
        }
    }
}

/// What becomes of a key that more users than its owner may read.
fn narrower(key: &Path) -> Option<String> {
    let mode = fs::metadata(key).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!(
            "{} had mode {mode:04o} and has 0600 now: no user but its owner reads it",
            key.display()
        )
    })
}

fn subject(cert: &X509Certificate<'_>, path: &Path) -> Result<DistinguishedName, Error> {
    let mut names = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let oid = attribute.attr_type().iter();
        let (Some(oid), Ok(text)) = (oid, attribute.as_str()) else {
            return Err(cannot_renew(path, "its subject"));
        };
        let kind = DnType::from_oid(&oid.collect::<Vec<u64>>());
        if names.get(&kind).is_some() {
            return Err(cannot_renew(
                path,
                "its subject, which has an attribute twice",
            ));
        }
        names.push(kind, text);
    }
    Ok(names)
}

fn names_of(cert: &X509Certificate<'_>, path: &Path) -> Result<Vec<SanType>, Error> {
    let names = cert.subject_alternative_name();
    let names = names.map_err(|_| cannot_renew(path, "its subjectAltNames"))?;
    let names = names.map(|names| names.value.general_names.iter());
    names
        .into_iter()
        .flatten()
        .map(|name| san(name, path))
        .collect()
}

fn san(name: &GeneralName<'_>, path: &Path) -> Result<SanType, Error> {
    let text = |text: &str| Ia5String::try_from(text).map_err(Error::from);
    match name {
        GeneralName::DNSName(host) => Ok(SanType::DnsName(text(host)?)),
        GeneralName::URI(uri) => Ok(SanType::URI(text(uri)?)),
        GeneralName::RFC822Name(mail) => Ok(SanType::Rfc822Name(text(mail)?)),
        GeneralName::IPAddress(bytes) => facts::ip(bytes)
            .map(SanType::IpAddress)
            .ok_or_else(|| cannot_renew(path, &name.to_string())),
        name => Err(cannot_renew(path, &name.to_string())),
    }
}

fn cannot_renew(path: &Path, what: &str) -> Error {
    let why =
        format!("{what} cannot be taken over; make a new certificate with polydist-cert node");
    Error::unusable(path, why)
}
