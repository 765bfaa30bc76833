//! What the tests share: a place to listen for each transport, certificates, and a peer that can
//! say anything.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use polydist_channel::{Opened, Session, Tls};
use polydist_transport::{
    Accepted, Address, Connection, Contents, DialOptions, Error, Established, Identity, Incoming,
    Info, ListenOptions, Listener, Pending, TlsConfig, TlsOptions, Transport, dial, transport,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationList,
    CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams,
};
use socket2::Socket;
use tempfile::TempDir;
use time::OffsetDateTime;

/// How long anything that must happen may take.
pub const SOON: Duration = Duration::from_secs(10);

/// A transport with an address to listen on.
pub struct Place {
    pub transport: &'static dyn Transport,
    pub address: Address,
    pub listen: ListenOptions,
    pub dial: DialOptions,
    _dir: TempDir,
}

pub fn tcp4() -> Place {
    place("tcp", Address::Ip((Ipv4Addr::LOCALHOST, 0).into()))
}

pub fn tcp6() -> Place {
    place("tcp6", Address::Ip((Ipv6Addr::LOCALHOST, 0).into()))
}

pub fn tls() -> Place {
    let mut place = place("tls", Address::Ip((Ipv4Addr::LOCALHOST, 0).into()));
    let options = Authority::new().issue(&["127.0.0.1"]);
    place.listen.tls = Some(TlsConfig::server(&options).unwrap());
    place.dial.tls = Some(TlsConfig::client(&options).unwrap());
    place
}

pub fn uds() -> Place {
    let mut place = place("uds", Address::Local(Vec::new()));
    place.address = Address::Local(
        place
            ._dir
            .path()
            .join("s/node")
            .as_os_str()
            .as_bytes()
            .into(),
    );
    place
}

pub fn sctp4() -> Place {
    place("sctp", Address::Ip((Ipv4Addr::LOCALHOST, 0).into()))
}

pub fn sctp6() -> Place {
    place("sctp", Address::Ip((Ipv6Addr::LOCALHOST, 0).into()))
}

/// Whether this kernel cannot run a test of a transport of this name, which it then says.
pub fn skipped(name: &str) -> bool {
    let skipped = name.starts_with("sctp") && sctp4().open_error().is_some();
    if skipped {
        println!("skipped: the kernel has no SCTP");
    }
    skipped
}

fn place(name: &str, address: Address) -> Place {
    Place {
        transport: transport(name).unwrap(),
        address,
        listen: ListenOptions::default(),
        dial: DialOptions::default(),
        _dir: tempfile::tempdir().unwrap(),
    }
}

impl Place {
    pub fn open(&self) -> Result<(Listener, Incoming), Error> {
        Listener::open(self.transport, &self.address, self.listen.clone())
    }

    /// Why the transport has no socket for the address, if it has none.
    pub fn open_error(&self) -> Option<Error> {
        self.transport.socket(&self.address).err()
    }

    pub fn dial(&self, address: &Address) -> (Connection, Pending<Info>) {
        dial(self.transport, address.clone(), self.dial.clone()).unwrap()
    }

    /// Both ends of a new connection, over which one frame has passed: a listener hands over nobody
    /// who is silent.
    pub async fn pair(
        &self,
        listener: &Listener,
        incoming: &mut Incoming,
    ) -> (Connection, Accepted) {
        let (dialled, connected) = self.dial(listener.address());
        dialled.send(b"hello").unwrap();
        let accepted = soon(incoming.next()).await.unwrap();
        soon(connected).await.unwrap();
        assert_eq!(soon(accepted.connection.recv()).await.unwrap(), b"hello");
        (dialled, accepted)
    }
}

pub async fn soon<F: IntoFuture>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it should not take so long")
}

/// Waits until something holds.
pub async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// A certificate authority.
pub struct Authority {
    cert: String,
    /// Those between it and the one to trust, itself first.
    chain: String,
    pub issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("authority {number}"))
    }

    pub fn named(name: &str) -> Self {
        let (params, key) = Self::params(name);
        let cert = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self {
            cert,
            chain: String::new(),
            issuer,
        }
    }

    fn params(name: &str) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params, KeyPair::generate().unwrap())
    }

    /// An authority that this one vouches for; who trusts this one trusts that one.
    pub fn below(&self, name: &str, serial: u64) -> Self {
        self.below_with(name, |params| params.serial_number = Some(serial.into()))
    }

    pub fn below_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = Self::params(name);
        change(&mut params);
        let cert = params.signed_by(&key, &self.issuer).unwrap().pem();
        Self {
            cert: self.cert.clone(),
            chain: cert + &self.chain,
            issuer: Issuer::new(params, key),
        }
    }

    /// The list of those it has revoked, valid for these days from now.
    pub fn revoked(&self, serials: &[u64], days: Range<i64>) -> CertificateRevocationList {
        let day = |days| OffsetDateTime::now_utc() + time::Duration::days(days);
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: day(days.start),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: day(days.start),
            next_update: day(days.end),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap()
    }

    /// What trusts it.
    pub fn roots(&self) -> Option<Contents> {
        Some(Contents::pem(self.cert.clone()))
    }

    /// A certificate for these hosts, with mutual verification.
    pub fn issue(&self, hosts: &[&str]) -> TlsOptions {
        self.issue_with(hosts, |_| ())
    }

    pub fn issue_with(
        &self,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsOptions {
        self.issue_for(&KeyPair::generate().unwrap(), hosts, change)
    }

    /// The same with this key.
    pub fn issue_for(
        &self,
        key: &KeyPair,
        hosts: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsOptions {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        change(&mut params);
        let cert = params.signed_by(key, &self.issuer).unwrap();
        TlsOptions {
            identities: vec![Identity {
                cert: Contents::pem(cert.pem() + &self.chain),
                key: Some(Contents::pem(key.serialize_pem())),
                password: None,
            }],
            roots: self.roots(),
            ..TlsOptions::default()
        }
    }
}

/// A connection after the hand-over, without tokio: a peer that can say anything.
pub struct Raw {
    socket: Socket,
    tls: Option<Box<Session>>,
    surplus: Vec<u8>,
}

impl Raw {
    pub fn new(established: Established) -> Self {
        let socket = Socket::from(established.fd);
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let surplus = established.surplus;
        let tls = established.tls.map(|tls| match tls {
            Tls::Session(session) => session,
            Tls::Kernel(_) => panic!("these tests open records themselves"),
        });
        Self {
            socket,
            tls,
            surplus,
        }
    }

    /// How much of `bytes` the peer and the buffers between take within a moment.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        self.socket
            .set_write_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let mut taken = 0;
        for chunk in bytes.chunks(16 * 1024) {
            match self.write_all(chunk) {
                Ok(()) => taken += chunk.len(),
                Err(_) => break,
            }
        }
        taken
    }

    pub fn read_exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Whether the peer has closed.
    pub fn is_at_end(&mut self) -> bool {
        match self.read(&mut [0; 16]) {
            Ok(len) => len == 0,
            Err(error) => {
                let ends = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
                ends.contains(&error.kind())
            }
        }
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Self {
            socket,
            tls,
            surplus,
        } = self;
        let mut received = Vec::new();
        while let Some(session) = tls.as_mut().filter(|_| surplus.is_empty()) {
            let opened = session.open::<rustls::Error>(&received, |plaintext| {
                surplus.extend_from_slice(plaintext);
                Ok(())
            });
            if opened.map_err(io::Error::other)? == Opened::End {
                break;
            }
            if surplus.is_empty() {
                received.resize(4096, 0);
                let len = socket.read(&mut received)?;
                received.truncate(len);
                if len == 0 {
                    return Ok(0);
                }
            }
        }
        if tls.is_none() && surplus.is_empty() {
            return socket.read(buffer);
        }
        let len = surplus.len().min(buffer.len());
        buffer[..len].copy_from_slice(&surplus[..len]);
        surplus.drain(..len);
        Ok(len)
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write(bytes),
            Some(session) => {
                session.seal(&[bytes]).map_err(io::Error::other)?;
                self.socket.write_all(&session.take_sealed())?;
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Open file descriptors of this process.
pub fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
