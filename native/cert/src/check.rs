//! `polydist-cert check`: whether two nodes would accept each other, and why not. What can be seen
//! in the files is looked at one by one; then each dials the other, by the code that nodes run.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use polydist_transport::{TlsConfig, is_for_node};
use rustls_pki_types::CertificateDer;

use crate::error::Error;
use crate::facts::{self, Facts};
use crate::names;
use crate::options::{self, Identity, Options, ServerName, Side};
use crate::output::print;
use crate::rehearsal::{self, End};
use crate::report::{Level, Report};

/// From when on an end is near.
const SOON_DAYS: i64 = 30;

#[derive(Args)]
pub(crate) struct Check {
    /// The option file of a node (-ssl_dist_optfile).
    file: PathBuf,
    /// That of another node [default: the same].
    other: Option<PathBuf>,
    /// The name of the node with the first file.
    #[arg(long, value_name = "NAME@HOST")]
    node: Option<names::Node>,
    /// The name of the other node.
    #[arg(long, value_name = "NAME@HOST")]
    peer: Option<names::Node>,
}

/// Which end of a connection a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Server,
    Client,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Self::Server => "serverAuth",
            Self::Client => "clientAuth",
        }
    }
}

/// One of the two.
#[derive(Clone)]
struct Node<'a> {
    /// What lines about it begin with.
    label: String,
    file: &'a Path,
    name: Option<&'a names::Node>,
    options: &'a Options,
    /// What it is dialled with and dials with, unless that does not work.
    server: Option<TlsConfig>,
    client: Option<TlsConfig>,
}

impl Node<'_> {
    fn side(&self, role: Role) -> &Side {
        match role {
            Role::Server => &self.options.server,
            Role::Client => &self.options.client,
        }
    }
}

/// Prints what there is to say, and whether they would connect.
pub(crate) fn check(check: &Check) -> Result<ExitCode, Error> {
    let options = options::read(&check.file)?;
    let others = check.other.as_deref().map(options::read).transpose()?;
    let mut report = Report::default();
    let first = check.other.is_some().then_some(check.file.as_path());
    let a = Node {
        label: label(check.node.as_ref(), first, "the node"),
        file: &check.file,
        name: check.node.as_ref(),
        server: server(&options, &check.file, &mut report)?,
        client: client(&options, &check.file, &mut report)?,
        options: &options,
    };
    let mut b = Node {
        label: label(
            check.peer.as_ref(),
            check.other.as_deref(),
            "a node like it",
        ),
        name: check.peer.as_ref(),
        ..a.clone()
    };
    if let (Some(file), Some(options)) = (&check.other, &others) {
        (b.file, b.options) = (file, options);
        b.server = server(options, file, &mut report)?;
        b.client = client(options, file, &mut report)?;
    }
    examine(&a, &b, &mut report)?;
    let verdict = match report.errors() {
        0 => "accept each other, whichever dials",
        _ => "would not connect, or not both ways: see the errors",
    };
    print(&format!(
        "{}{} and {} {verdict}\n",
        report.text(),
        a.label,
        b.label
    ))?;
    Ok(ExitCode::from(u8::from(report.errors() > 0)))
}

fn label(name: Option<&names::Node>, file: Option<&Path>, otherwise: &str) -> String {
    match (name, file) {
        (Some(name), _) => name.to_string(),
        (None, Some(file)) => file.display().to_string(),
        (None, None) => otherwise.to_owned(),
    }
}

fn server(options: &Options, file: &Path, report: &mut Report) -> Result<Option<TlsConfig>, Error> {
    let config = rehearsal::server(&options.server)?;
    Ok(usable(config, Role::Server, file, report))
}

fn client(options: &Options, file: &Path, report: &mut Report) -> Result<Option<TlsConfig>, Error> {
    let config = rehearsal::client(&options.client)?;
    Ok(usable(config, Role::Client, file, report))
}

fn usable(
    config: Result<TlsConfig, String>,
    role: Role,
    file: &Path,
    report: &mut Report,
) -> Option<TlsConfig> {
    let (place, role) = (file.display().to_string(), role.name());
    match &config {
        Ok(config) if config.own().is_empty() => {
            report.ok(&place, &format!("the options of the {role} can be used"))
        }
        Ok(_) => report.ok(
            &place,
            &format!(
                "the options of the {role} can be used, and its key is that of its certificate"
            ),
        ),
        Err(why) => report.error(
            &place,
            &format!("the options of the {role} cannot be used: {why}"),
        ),
    }
    config.ok()
}

fn examine(a: &Node<'_>, b: &Node<'_>, report: &mut Report) -> Result<(), Error> {
    for (node, peer) in [(a, b), (b, a)] {
        file(node, report);
        for (role, other) in [(Role::Server, Role::Client), (Role::Client, Role::Server)] {
            let (side, verified) = (node.side(role), peer.side(other).verify);
            for identity in &side.identities {
                certificate(identity, role, verified, report)?;
            }
            roots(side, report)?;
            trust(node, role, report);
        }
    }
    if a.name.is_none() || b.name.is_none() {
        report.warning(
            &a.file.display().to_string(),
            "without --node and --peer it is not checked whether the certificates are for the nodes",
        );
    }
    for (dialler, dialled) in [(a, b), (b, a)] {
        dial(dialler, dialled, report)?;
        claim(dialler, dialled, report)?;
    }
    Ok(())
}

/// What the option file says that cannot be looked at, and who may read it.
fn file(node: &Node<'_>, report: &mut Report) {
    let place = node.file.display().to_string();
    for note in &node.options.notes {
        report.warning(&place, note);
    }
    let sides = [&node.options.server, &node.options.client];
    let mut identities = sides.iter().flat_map(|side| &side.identities);
    if identities.any(|identity| identity.password.is_some()) {
        private(node.file, "it holds a password", report);
    }
}

/// That nobody but the owner, or a group that was chosen, reads this.
fn private(file: &Path, what: &str, report: &mut Report) {
    let place = file.display().to_string();
    let mode = fs::metadata(file).map(|found| found.permissions().mode() & 0o777);
    match mode {
        Ok(mode) if mode & 0o006 != 0 => {
            let text =
                format!("{what}, and every user can read or write it (mode {mode:04o}); chmod 600");
            report.warning(&place, &text);
        }
        Ok(mode) => report.ok(&place, &format!("{what}; its mode is {mode:04o}")),
        Err(error) => report.warning(
            &place,
            &format!("who may read it cannot be found out: {error}"),
        ),
    }
}

/// A certificate of a node's own, with those that go with it.
fn certificate(
    identity: &Identity,
    role: Role,
    verified: bool,
    report: &mut Report,
) -> Result<(), Error> {
    let path = &identity.cert;
    private(&identity.key, "it holds a private key", report);
    let chain = facts::certificates(path)?;
    let chain: Vec<_> = chain
        .iter()
        .map(|der| Facts::of(der, path))
        .collect::<Result<_, _>>()?;
    // Whoever does not verify does not mind.
    let level = if verified {
        Level::Error
    } else {
        Level::Warning
    };
    for (number, facts) in chain.iter().enumerate() {
        dates(facts, &numbered(path, number, chain.len()), level, report);
    }
    for (number, pair) in chain.windows(2).enumerate() {
        if pair[0].issuer != pair[1].subject {
            let text = format!(
                "certificate {} was issued by {}, but {} follows; put its issuer's certificate there, or nothing",
                number + 1,
                pair[0].issuer,
                pair[1].subject
            );
            report.warning(&path.display().to_string(), &text);
        }
    }
    if let Some(own) = chain.first() {
        usages(own, role, &path.display().to_string(), level, report);
    }
    Ok(())
}

fn numbered(path: &Path, number: usize, count: usize) -> String {
    match count {
        1 => path.display().to_string(),
        _ => format!("{}, certificate {}", path.display(), number + 1),
    }
}

fn dates(facts: &Facts, place: &str, level: Level, report: &mut Report) {
    let (from, to) = (facts::date(facts.not_before), facts::date(facts.not_after));
    let now = facts::now();
    if now > facts.not_after {
        report.add(
            level,
            place,
            &format!("it ended on {to}; renew it, or set this host's clock"),
        );
    } else if now < facts.not_before {
        report.add(
            level,
            place,
            &format!("it is not valid before {from}; wait, or set this host's clock"),
        );
    } else if facts.days_left < SOON_DAYS {
        report.warning(
            place,
            &format!("it ends in {} days, on {to}; renew it", facts.days_left),
        );
    } else {
        report.ok(
            place,
            &format!("it is valid until {to}, {} days", facts.days_left),
        );
    }
}

fn usages(facts: &Facts, role: Role, place: &str, level: Level, report: &mut Report) {
    let lacks = |usages: &[String], usage: &str| {
        !usages.is_empty() && !usages.iter().any(|found| found == usage || found == "any")
    };
    let usage = role.usage();
    if lacks(&facts.extended_key_usages, usage) {
        let text = format!(
            "as a {} it lacks the usage {usage}; make one with serverAuth and clientAuth",
            role.name()
        );
        report.add(level, place, &text);
    } else if lacks(&facts.key_usages, "digitalSignature") {
        report.add(
            level,
            place,
            "its key usages lack digitalSignature; make one that has it",
        );
    } else {
        report.ok(place, &format!("it may be used as a {}", role.name()));
    }
}

/// The authorities that a side trusts. One that has ended lets nobody in, but others may.
fn roots(side: &Side, report: &mut Report) -> Result<(), Error> {
    let Some(path) = side.roots.as_ref().filter(|_| side.verify) else {
        return Ok(());
    };
    let all = facts::certificates(path)?;
    for (number, der) in all.iter().enumerate() {
        let facts = Facts::of(der, path)?;
        dates(
            &facts,
            &numbered(path, number, all.len()),
            Level::Warning,
            report,
        );
    }
    Ok(())
}

/// A side that takes anybody is worth a word.
fn trust(node: &Node<'_>, role: Role, report: &mut Report) {
    let side = node.side(role);
    let place = node.file.display().to_string();
    let text = match (role, side.verify, side.fail_if_no_peer_cert) {
        (Role::Server, false, _) => {
            "the server verifies nobody: whoever knows the cookie gets in; set {verify, verify_peer}"
        }
        (Role::Server, true, false) => {
            "the server takes clients without a certificate; set {fail_if_no_peer_cert, true}"
        }
        (Role::Client, false, _) => {
            "the client takes any server for the node it dials; set {verify, verify_peer}"
        }
        _ => return,
    };
    report.warning(&place, text);
}

/// One connection, as nodes make it.
fn dial(dialler: &Node<'_>, dialled: &Node<'_>, report: &mut Report) -> Result<(), Error> {
    let place = format!("{} dials {}", dialler.label, dialled.label);
    let (Some(client), Some(server)) = (dialler.client.clone(), dialled.server.clone()) else {
        report.error(&place, "it cannot, since options cannot be used: see above");
        return Ok(());
    };
    let near = End {
        label: &dialler.label,
        config: client,
    };
    let far = End {
        label: &dialled.label,
        config: server,
    };
    match rehearsal::dial(near, far, &host(dialler, dialled)?)? {
        Ok(how) => report.ok(&place, &how),
        Err(said) => report.error(&place, &said.join("; ")),
    }
    Ok(())
}

/// The host that is dialled: that in the name, or else one that the certificate has.
fn host(dialler: &Node<'_>, dialled: &Node<'_>) -> Result<String, Error> {
    match (&dialler.side(Role::Client).server_name, dialled.name) {
        (ServerName::Is(host), _) => return Ok(host.clone()),
        (_, Some(name)) => return Ok(name.host().to_string()),
        _ => {}
    }
    let own = own(dialled, Role::Server)?;
    let mut hosts = own.iter().flat_map(|(_, _, facts)| &facts.hosts);
    let host = hosts.next().map(|host| host.replace("*.", "any."));
    Ok(host.unwrap_or_else(|| "localhost".into()))
}

/// The certificates of a side, each the first of its file.
fn own(
    node: &Node<'_>,
    role: Role,
) -> Result<Vec<(PathBuf, CertificateDer<'static>, Facts)>, Error> {
    let of = |identity: &Identity| {
        let path = identity.cert.clone();
        let der = facts::first(&crate::files::read(&path)?, &path)?;
        let facts = Facts::of(&der, &path)?;
        Ok((path, der, facts))
    };
    node.side(role).identities.iter().map(of).collect()
}

/// Whether the name that the dialler gives is one that its certificate is for: nodes that demand
/// certificates check this, unless they are told not to.
fn claim(dialler: &Node<'_>, dialled: &Node<'_>, report: &mut Report) -> Result<(), Error> {
    let Some(name) = dialler.name else {
        return Ok(());
    };
    let server = dialled.side(Role::Server);
    let demanded = server.verify && server.fail_if_no_peer_cert;
    for (path, der, facts) in own(dialler, Role::Client)? {
        let place = path.display().to_string();
        if is_for_node(&der, &name.to_string()) {
            report.ok(&place, &format!("it is for {name}"));
            continue;
        }
        let has = [facts.nodes, facts.hosts].concat().join(", ");
        let why = format!(
            "it is not for {name}: it has neither the host {} nor the URI erlang:{name}, but {}",
            name.host(),
            if has.is_empty() { "no names" } else { &has }
        );
        match demanded {
            true => report.error(
                &place,
                &format!("{why}; {} lets nobody in under a name that is not in the certificate, unless identity => false says otherwise there; make one with polydist-cert node", dialled.label),
            ),
            false => report.warning(&place, &format!("{why}; {} does not look at that", dialled.label)),
        }
    }
    Ok(())
}
