//! What an option file (`-ssl_dist_optfile`) says, as far as the check looks at it. The rest is
//! named, so that nobody takes it for checked.

use std::path::{Path, PathBuf};

use polydist_transport::Version;

use crate::error::Error;
use crate::files;
use crate::terms::{self, Term};

/// The options of a node.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) server: Side,
    pub(crate) client: Side,
    /// What is to be said of them.
    pub(crate) notes: Vec<String>,
}

/// The options of one side. What is absent has the value that it has for nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    pub(crate) identities: Vec<Identity>,
    pub(crate) roots: Option<PathBuf>,
    pub(crate) verify: bool,
    pub(crate) fail_if_no_peer_cert: bool,
    pub(crate) depth: Option<usize>,
    pub(crate) versions: Vec<Version>,
    pub(crate) ciphers: Option<Vec<String>>,
    pub(crate) groups: Option<Vec<String>>,
    pub(crate) revocation: Option<Revocation>,
    pub(crate) server_name: ServerName,
}

/// A certificate of the node's own.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) password: Option<Password>,
}

/// Not for anybody to see.
#[derive(Clone)]
pub(crate) struct Password(pub(crate) Vec<u8>);

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// Lists of revoked certificates, and what they are for.
#[derive(Clone, Debug)]
pub(crate) struct Revocation {
    pub(crate) files: Vec<PathBuf>,
    pub(crate) chain: bool,
    pub(crate) allow_unknown: bool,
}

/// Whom a client takes its server for.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum ServerName {
    /// The host in the node's name.
    #[default]
    Host,
    /// This one, whatever is dialled.
    Is(String),
    /// It does not ask.
    Any,
}

/// An absent list has these of the other. What the other takes on trust, this one need not.
const SHARED: [&str; 16] = [
    "certfile",
    "keyfile",
    "password",
    "cert",
    "key",
    "certs_keys",
    "cacertfile",
    "cacerts",
    "depth",
    "versions",
    "ciphers",
    "supported_groups",
    "crl_check",
    "crl_cache",
    "crlfile",
    "crlfiles",
];

/// They change nothing about who may connect.
const HARMLESS: [&str; 16] = [
    "secure_renegotiate",
    "client_renegotiation",
    "renegotiate_at",
    "reuse_session",
    "reuse_sessions",
    "session_tickets",
    "early_data",
    "hibernate_after",
    "honor_cipher_order",
    "honor_ecc_order",
    "log_level",
    "log_alert",
    "middlebox_comp_mode",
    "key_update_at",
    "keep_secrets",
    "ktls",
];

type Given<'a> = Vec<(&'a str, &'a Term)>;

/// Reads an option file.
pub(crate) fn read(path: &Path) -> Result<Options, Error> {
    let text = files::read(path)?;
    let term = terms::parse(&text).map_err(|why| {
        let why = format!(
            "{why} (nodes evaluate this file; the check reads plain terms and nothing else)"
        );
        Error::unusable(path, why)
    })?;
    of(&term).map_err(|why| Error::unusable(path, why))
}

fn of(term: &Term) -> Result<Options, String> {
    const FORM: &str = "it must hold [{server, [..]}, {client, [..]}].";
    let (mut server, mut client) = (None, None);
    for entry in term.list().ok_or(FORM)? {
        match entry.pair() {
            Some(("server", options)) => server = Some(given("server", options)?),
            Some(("client", options)) => client = Some(given("client", options)?),
            _ => return Err(FORM.into()),
        }
    }
    let server_given = server.clone().or(client.as_ref().map(shared)).ok_or(FORM)?;
    let client_given = client.or(server.as_ref().map(shared)).ok_or(FORM)?;
    let mut notes = Vec::new();
    let options = Options {
        server: side("server", &server_given, &mut notes)?,
        client: side("client", &client_given, &mut notes)?,
        notes: Vec::new(),
    };
    notes.dedup();
    Ok(Options { notes, ..options })
}

fn shared<'a>(given: &Given<'a>) -> Given<'a> {
    let shared = given.iter().filter(|(name, _)| SHARED.contains(name));
    shared.copied().collect()
}

/// Of an option that is given twice the later one counts, and `undefined` is as good as absent.
fn given<'a>(role: &str, options: &'a Term) -> Result<Given<'a>, String> {
    let mut given: Given<'_> = Vec::new();
    let list = options
        .list()
        .ok_or_else(|| format!("the options of the {role} are no list"))?;
    for option in list {
        let (name, value) = match (option.pair(), option.atom()) {
            (Some(pair), _) => pair,
            // {active, false} may be written so; none of those is looked at.
            (None, Some(name)) => (name, option),
            _ => {
                return Err(format!(
                    "among the options of the {role} is one that is no {{Name, Value}}"
                ));
            }
        };
        given.retain(|(known, _)| *known != name);
        if value.atom() != Some("undefined") {
            given.push((name, value));
        }
    }
    Ok(given)
}

/// They are the certificates themselves, and keys.
const INLINE: [&str; 3] = ["cert", "key", "cacerts"];

fn side(role: &str, given: &Given<'_>, notes: &mut Vec<String>) -> Result<Side, String> {
    if let Some((name, _)) = given.iter().find(|(name, _)| INLINE.contains(name)) {
        return Err(format!(
            "{name}, an option of the {role}, has contents; the check reads files only: certfile, keyfile and cacertfile"
        ));
    }
    let mut side = Side::default();
    let mut reader = Reader { role, given, notes };
    side.identities = reader.identities()?;
    side.roots = reader.file("cacertfile")?;
    side.verify = reader
        .one_of("verify", "verify_peer", "verify_none")?
        .unwrap_or(true);
    let mandatory = reader.one_of("fail_if_no_peer_cert", "true", "false")?;
    side.fail_if_no_peer_cert = mandatory.unwrap_or(side.verify);
    side.depth = reader.depth()?;
    side.versions = reader.versions()?;
    side.ciphers = reader.ciphers();
    side.groups = reader.groups();
    side.revocation = reader.revocation()?;
    side.server_name = reader.server_name()?;
    reader.name_the_rest();
    Ok(side)
}

struct Reader<'a> {
    role: &'a str,
    given: &'a Given<'a>,
    notes: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn value(&self, name: &str) -> Option<&Term> {
        let found = self.given.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    fn must_be<T>(&self, name: &str, wanted: &str) -> Result<T, String> {
        Err(format!(
            "{name}, an option of the {}, must be {wanted}",
            self.role
        ))
    }

    fn unseen(&mut self, what: &str) {
        let note = format!(
            "{what}, among the options of the {}, is not looked at by this check",
            self.role
        );
        self.notes.push(note);
    }

    fn file(&self, name: &str) -> Result<Option<PathBuf>, String> {
        self.value(name)
            .map(|value| self.path(name, value))
            .transpose()
    }

    fn path(&self, name: &str, value: &Term) -> Result<PathBuf, String> {
        match text(value) {
            Some(path) if !path.is_empty() => Ok(path.into()),
            _ => self.must_be(name, "a file name"),
        }
    }

    fn one_of(&self, name: &str, yes: &str, no: &str) -> Result<Option<bool>, String> {
        match self.value(name).map(Term::atom) {
            None => Ok(None),
            Some(Some(atom)) if atom == yes => Ok(Some(true)),
            Some(Some(atom)) if atom == no => Ok(Some(false)),
            Some(_) => self.must_be(name, &format!("{yes} or {no}")),
        }
    }

    fn identities(&self) -> Result<Vec<Identity>, String> {
        let wanted = "a list of maps #{certfile, keyfile, password}";
        let own = |options: &Given<'_>| {
            let reader = Reader {
                role: self.role,
                given: options,
                notes: &mut Vec::new(),
            };
            reader.identity()
        };
        let Some(all) = self.value("certs_keys") else {
            return Ok(own(self.given)?.into_iter().collect());
        };
        let mut identities = Vec::new();
        for one in all
            .list()
            .map_or_else(|| self.must_be("certs_keys", wanted), Ok)?
        {
            let Term::Map(pairs) = one else {
                return self.must_be("certs_keys", wanted);
            };
            let options = pairs
                .iter()
                .filter_map(|(key, value)| Some((key.atom()?, value)));
            identities.extend(own(&options.collect())?);
        }
        Ok(identities)
    }

    fn identity(&self) -> Result<Option<Identity>, String> {
        let (cert, key) = (self.file("certfile")?, self.file("keyfile")?);
        let password = self.value("password").map(|value| match text(value) {
            Some(password) => Ok(Password(password.into())),
            None => self.must_be("password", "a string or a binary"),
        });
        match (cert, key) {
            (Some(cert), key) => Ok(Some(Identity {
                key: key.unwrap_or_else(|| cert.clone()),
                cert,
                password: password.transpose()?,
            })),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(format!(
                "the {} has keyfile but no certfile; add it",
                self.role
            )),
        }
    }

    fn depth(&self) -> Result<Option<usize>, String> {
        match self.value("depth") {
            None => Ok(None),
            Some(Term::Integer(depth @ 0..=255)) => Ok(usize::try_from(*depth).ok()),
            Some(_) => self.must_be("depth", "a number from 0 to 255"),
        }
    }

    fn versions(&self) -> Result<Vec<Version>, String> {
        let Some(value) = self.value("versions") else {
            return Ok(Vec::new());
        };
        let known = value
            .list()
            .unwrap_or_default()
            .iter()
            .filter_map(|version| {
                match version.atom() {
                    Some("tlsv1.2") => Some(Version::Tls12),
                    Some("tlsv1.3") => Some(Version::Tls13),
                    _ => None, // older ones, which nodes leave out
                }
            });
        match known.collect::<Vec<_>>() {
            none if none.is_empty() => {
                self.must_be("versions", "a list with 'tlsv1.3' or 'tlsv1.2'")
            }
            versions => Ok(versions),
        }
    }

    /// Only by the names that the standards have; others depend on the release of Erlang.
    fn ciphers(&mut self) -> Option<Vec<String>> {
        let names = self
            .value("ciphers")?
            .list()
            .map(|list| list.iter().map(text));
        let names = names.and_then(|names| names.collect::<Option<Vec<_>>>());
        match names {
            Some(names) if names.is_empty() => None,
            Some(names) if names.iter().all(|name| name.starts_with("TLS_")) => Some(names),
            _ => {
                self.unseen(
                    "ciphers, whose names are not those of the standards (TLS_AES_256_GCM_SHA384)",
                );
                None
            }
        }
    }

    fn groups(&mut self) -> Option<Vec<String>> {
        let names = self
            .value("supported_groups")?
            .list()
            .map(|list| list.iter().map(Term::atom));
        match names.and_then(|names| names.collect::<Option<Vec<_>>>()) {
            Some(names) => Some(names.into_iter().map(Into::into).collect()),
            None => {
                self.unseen("supported_groups, which is no list of names");
                None
            }
        }
    }

    fn revocation(&mut self) -> Result<Option<Revocation>, String> {
        let mut files: Vec<_> = self.file("crlfile")?.into_iter().collect();
        for file in self
            .value("crlfiles")
            .and_then(Term::list)
            .unwrap_or_default()
        {
            files.push(self.path("crlfiles", file)?);
        }
        let check = match self.value("crl_check").map(Term::atom) {
            Some(Some(check)) => check.to_owned(),
            Some(None) => return self.must_be("crl_check", "true, peer, best_effort or false"),
            None if files.is_empty() => return Ok(None),
            None => "true".into(),
        };
        let (chain, allow_unknown) = match check.as_str() {
            "false" => return Ok(None),
            "true" => (true, false),
            "peer" => (false, false),
            "best_effort" => (true, true),
            _ => return self.must_be("crl_check", "true, peer, best_effort or false"),
        };
        if files.is_empty() {
            self.unseen("crl_check with lists that crlfile does not name");
            return Ok(None);
        }
        Ok(Some(Revocation {
            files,
            chain,
            allow_unknown,
        }))
    }

    fn server_name(&self) -> Result<ServerName, String> {
        match self.value("server_name_indication") {
            None => Ok(ServerName::Host),
            Some(Term::Atom(disable)) if disable == "disable" => Ok(ServerName::Any),
            Some(Term::String(name)) => Ok(ServerName::Is(name.clone())),
            Some(_) => self.must_be("server_name_indication", "a host name or disable"),
        }
    }

    fn name_the_rest(&mut self) {
        const SEEN: [&str; 16] = [
            "certfile",
            "keyfile",
            "password",
            "certs_keys",
            "cacertfile",
            "verify",
            "fail_if_no_peer_cert",
            "depth",
            "versions",
            "ciphers",
            "supported_groups",
            "crlfile",
            "crlfiles",
            "crl_check",
            "server_name_indication",
            "erl_dist",
        ];
        let rest = self.given.iter().map(|(name, _)| *name);
        let rest = rest.filter(|name| !SEEN.contains(name) && !HARMLESS.contains(name));
        for name in rest.collect::<Vec<_>>() {
            self.unseen(name);
        }
    }
}

/// The text of a string, a binary, or a list of characters.
fn text(term: &Term) -> Option<String> {
    match term {
        Term::String(text) => Some(text.clone()),
        Term::Binary(bytes) => String::from_utf8(bytes.clone()).ok(),
        Term::List(terms) => terms.iter().map(character).collect(),
        _ => None,
    }
}

fn character(term: &Term) -> Option<char> {
    match term {
        Term::Integer(code) => char::from_u32(u32::try_from(*code).ok()?),
        _ => None,
    }
}
