//! A connection between two configurations as nodes make it, by the same code, over a pair of
//! sockets in memory.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polydist_channel::Stats;
use polydist_transport::{
    Address, Contents, Identity, RevocationOptions, Side, Stream, TlsConfig, TlsOptions, Verify,
    Wire, transport,
};
use socket2::{Domain, Socket, Type};

use crate::error::Error;
use crate::files;
use crate::options::{self, ServerName};

/// Far more than a handshake takes.
const DEADLINE: Duration = Duration::from_secs(30);

/// One of the two ends.
pub(crate) struct End<'a> {
    pub(crate) label: &'a str,
    pub(crate) config: TlsConfig,
}

/// How a connection came up, or what the ends say of it that did not want it.
pub(crate) type Outcome = Result<String, Vec<String>>;

/// The configuration of a node that is dialled, or why it has none.
pub(crate) fn server(side: &options::Side) -> Result<Result<TlsConfig, String>, Error> {
    Ok(TlsConfig::server(&contents(side)?).map_err(|error| error.to_string()))
}

/// The configuration of a node that dials, or why it has none.
pub(crate) fn client(side: &options::Side) -> Result<Result<TlsConfig, String>, Error> {
    Ok(TlsConfig::client(&contents(side)?).map_err(|error| error.to_string()))
}

fn contents(side: &options::Side) -> Result<TlsOptions, Error> {
    let pem = |path: &Path| files::read(path).map(Contents::pem);
    let mut identities = Vec::new();
    for identity in &side.identities {
        identities.push(Identity {
            cert: pem(&identity.cert)?,
            key: Some(pem(&identity.key)?),
            password: identity
                .password
                .as_ref()
                .map(|password| password.0.clone().into()),
        });
    }
    let revocation = side.revocation.as_ref().map(|revocation| {
        let files = revocation.files.iter().map(|file| files::read(file));
        Ok::<_, Error>(RevocationOptions {
            files: files.collect::<Result<_, Error>>()?,
            chain: revocation.chain,
            allow_unknown: revocation.allow_unknown,
        })
    });
    Ok(TlsOptions {
        identities,
        roots: side.roots.as_deref().map(pem).transpose()?,
        verify: match side.verify {
            true => Verify::Peer,
            false => Verify::None,
        },
        check_host: side.server_name != ServerName::Any,
        fail_if_no_peer_cert: side.fail_if_no_peer_cert,
        depth: side.depth,
        revocation: revocation.transpose()?,
        versions: side.versions.clone(),
        ciphers: side.ciphers.clone(),
        groups: side.groups.clone(),
        sni: side.server_name != ServerName::Any,
        ktls: false, // these are no sockets of TCP
    })
}

/// One end dials the other, which it takes for `host`.
pub(crate) fn dial(dialler: End<'_>, dialled: End<'_>, host: &str) -> Result<Outcome, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Rehearse)?;
    let dialling = Side::Dial {
        tls: Some(dialler.config),
        server_name: Some(host.into()),
    };
    let accepting = Side::Accept {
        tls: Some(dialled.config),
    };
    let (near, far) = runtime.block_on(async {
        let (near, far) = Socket::pair(Domain::UNIX, Type::STREAM, None)
            .and_then(|(near, far)| Ok((stream(near)?, stream(far)?)))
            .map_err(Error::Rehearse)?;
        Ok::<_, Error>(tokio::join!(
            secure(near, dialled.label, dialling),
            secure(far, dialler.label, accepting)
        ))
    })?;
    Ok(match (near, far) {
        (Ok(wire), Ok(_)) => Ok(agreed(&wire)),
        (near, far) => {
            let said = [(dialler.label, near.err()), (dialled.label, far.err())];
            let mut said: Vec<_> = said
                .into_iter()
                .filter_map(|(label, error)| Some(format!("{label} says: {}", error?)))
                .collect();
            // An alert is what the other end has said already, in a word.
            if said.len() > 1 {
                said.retain(|sentence| !sentence.contains("with the TLS alert"));
            }
            Err(said)
        }
    })
}

fn stream(socket: Socket) -> io::Result<Stream> {
    socket.set_nonblocking(true)?;
    Stream::new(socket, Arc::new(Stats::default()))
}

async fn secure(stream: Stream, peer: &str, side: Side) -> Result<Wire, String> {
    let Some(tls) = transport("tls") else {
        return Err("this tool was built without TLS".into());
    };
    let peer = Address::Local(peer.into());
    match tokio::time::timeout(DEADLINE, tls.secure(stream, &peer, &side)).await {
        Ok(secured) => secured.map_err(|error| error.to_string()),
        Err(_) => Err("the other end says nothing".into()),
    }
}

fn agreed(wire: &Wire) -> String {
    let Wire::Tls(tls, ..) = wire else {
        return "it comes up".into();
    };
    let state = tls.get_ref().1;
    let version = state
        .protocol_version()
        .map(|version| format!("{version:?}"));
    let cipher = state.negotiated_cipher_suite();
    let cipher = cipher.map(|suite| format!("{:?}", suite.suite()).replace("TLS13_", "TLS_"));
    let how: Vec<_> = version.into_iter().chain(cipher).collect();
    format!("it comes up, with {}", how.join(", "))
}
