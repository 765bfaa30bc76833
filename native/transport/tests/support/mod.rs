//! What the tests share: a place to listen for each transport, certificates, and a peer that can
//! say anything.
#![allow(dead_code, unreachable_pub)] // each test binary uses a part of it

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use polydist_transport::{
    Accepted, Address, Connection, Contents, DialOptions, Error, Established, Identity, Incoming,
    Info, ListenOptions, Listener, Pending, TlsConfig, TlsOptions, Transport, dial, transport,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use socket2::Socket;
use tempfile::TempDir;

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
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        let name = format!("authority {:?}", key.public_key_raw());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { cert, issuer }
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
                cert: Contents::pem(cert.pem()),
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
    tls: Option<rustls::Connection>,
    surplus: Vec<u8>,
}

impl Raw {
    pub fn new(established: Established) -> Self {
        let socket = Socket::from(established.fd);
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let (tls, surplus) = (established.tls, established.surplus);
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
        if !self.surplus.is_empty() {
            let len = self.surplus.len().min(buffer.len());
            buffer[..len].copy_from_slice(&self.surplus[..len]);
            self.surplus.drain(..len);
            return Ok(len);
        }
        let Some(tls) = &mut self.tls else {
            return self.socket.read(buffer);
        };
        loop {
            tls.process_new_packets().map_err(io::Error::other)?;
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return result,
            }
            tls.read_tls(&mut self.socket)?;
        }
    }
}

impl Write for Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.tls {
            None => self.socket.write(bytes),
            Some(tls) => {
                let len = tls.writer().write(bytes)?;
                self.flush()?;
                Ok(len)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while let Some(tls) = self.tls.as_mut().filter(|tls| tls.wants_write()) {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Open file descriptors of this process.
pub fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
