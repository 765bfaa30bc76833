//! TLS in the kernel (`Documentation/networking/tls.rst`): the socket takes and gives plaintext, and
//! what is no data comes and goes beside it, as control messages say.
//!
//! Only TLS 1.3. In TLS 1.2 the kernel begins to count nonces at the one that the handshake has used
//! already for AES-GCM.

use std::fmt;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    SupportedCipherSuite,
};
use uapi::c;
use zeroize::Zeroizing;

use crate::Closed;
use crate::control::{
    Control, Effect, FATAL, KEY_UPDATE, MAX_PLAINTEXT, Renewal, WARNING, alert_for, blocks,
};
use crate::session::Session;

// As in linux/tls.h and linux/tcp.h.
const SOL_TCP: c::c_int = 6;
const TCP_ULP: c::c_int = 31;
const SOL_TLS: c::c_int = 282;
const TLS_TX: c::c_int = 1;
const TLS_RX: c::c_int = 2;
const TLS_RX_EXPECT_NO_PAD: c::c_int = 4;
const TLS_SET_RECORD_TYPE: c::c_int = 1;
const TLS_GET_RECORD_TYPE: c::c_int = 2;
const TLS_1_3_VERSION: u16 = 0x0304;
const TLS_CIPHER_AES_GCM_128: u16 = 51;
const TLS_CIPHER_AES_GCM_256: u16 = 52;
const TLS_CIPHER_CHACHA20_POLY1305: u16 = 54;

/// A TLS session whose records the kernel makes and opens.
pub struct Kernel {
    control: Control,
    /// The most blocks that our key can have made so far.
    sealed: u64,
    /// The peer is to be told that our key changes, and it is to change.
    renew: bool,
}

/// Why the kernel does not take a session over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unfit {
    /// It has no TLS.
    Kernel,
    /// It has no such cipher.
    Cipher,
    /// The session is of TLS 1.2.
    Version,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => {
                "ktls is true and this kernel has no TLS, so it is done outside the kernel; load the kernel's \
                 module tls (modprobe tls)"
            }
            Self::Cipher => {
                "ktls is true and the kernel does not take the cipher that was agreed on, so TLS is done outside \
                 the kernel; TLS_AES_128_GCM_SHA256 is the one that all kernels with TLS take"
            }
            Self::Version => {
                "ktls is true and a peer speaks TLS 1.2, so TLS is done outside the kernel; it is in the kernel \
                 for TLS 1.3 only"
            }
        })
    }
}

/// Who makes and opens the records of a connection.
#[derive(Debug)]
pub enum Tls {
    /// We do.
    Session(Box<Session>),
    /// The kernel does.
    Kernel(Box<Kernel>),
}

/// What came that is no data, or turned out to be some.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// Something that has been seen to, or nothing.
    Nothing,
    /// Data after all.
    Data(Vec<u8>),
    /// The peer has said goodbye.
    End,
}

/// What a session is begun with, wherever that is.
pub(crate) struct Keys {
    pub(crate) suite: SupportedCipherSuite,
    pub(crate) secrets: ExtractedSecrets,
    pub(crate) renewal: Renewal,
    /// What has been received after the handshake.
    pub(crate) rest: Vec<u8>,
}

impl Keys {
    pub(crate) fn session(self) -> Result<Session, Error> {
        Session::new(
            Control::new(self.suite, self.renewal),
            self.secrets,
            self.rest,
        )
    }

    /// Gives the kernel the keys of a connected socket if it takes them; nothing must have been
    /// received after the handshake.
    pub(crate) fn begin(self, fd: BorrowedFd<'_>) -> Result<(Tls, Option<Unfit>), Error> {
        let refused = match self.offer(fd) {
            Ok(()) => {
                let kernel = Kernel {
                    control: Control::new(self.suite, self.renewal),
                    sealed: self.secrets.tx.0.saturating_mul(blocks(MAX_PLAINTEXT)),
                    renew: false,
                };
                return Ok((Tls::Kernel(Box::new(kernel)), None));
            }
            Err(refused) => refused,
        };
        let unfit = match refused {
            Refusal::Unfit(unfit) => Some(unfit),
            // The socket shows elsewhere what has happened to it.
            Refusal::Broken => None,
            Refusal::Half(errno) => {
                return Err(Error::General(format!(
                    "the kernel took the key to send with, and not the one to receive with ({errno}); set ktls to false"
                )));
            }
        };
        Ok((Tls::Session(Box::new(self.session()?)), unfit))
    }

    fn offer(&self, fd: BorrowedFd<'_>) -> Result<(), Refusal> {
        if !matches!(self.suite, SupportedCipherSuite::Tls13(_)) {
            return Err(Refusal::Unfit(Unfit::Version));
        }
        let key = |(sequence, secrets)| {
            crypto_info(sequence, secrets).ok_or(Refusal::Unfit(Unfit::Cipher))
        };
        let tx = key((self.secrets.tx.0, &self.secrets.tx.1))?;
        let rx = key((self.secrets.rx.0, &self.secrets.rx.1))?;
        if !self.rest.is_empty() {
            return Err(Refusal::Broken);
        }
        set(fd, SOL_TCP, TCP_ULP, b"tls").map_err(|errno| match errno {
            Errno::NOTCONN => Refusal::Broken,
            _ => Refusal::Unfit(Unfit::Kernel),
        })?;
        set(fd, SOL_TLS, TLS_TX, &tx).map_err(|_| Refusal::Unfit(Unfit::Cipher))?;
        set(fd, SOL_TLS, TLS_RX, &rx).map_err(Refusal::Half)?;
        // Nobody pads records; who does costs a second decryption. An older kernel does not know.
        let _ = set(fd, SOL_TLS, TLS_RX_EXPECT_NO_PAD, &1_u32.to_ne_bytes());
        Ok(())
    }
}

enum Refusal {
    Unfit(Unfit),
    Broken,
    Half(Errno),
}

impl Kernel {
    /// Before data is sent: sees to it that our key may be used for it. `false` if the socket takes
    /// nothing now.
    pub fn ready(&mut self, fd: BorrowedFd<'_>) -> Result<bool, Closed> {
        if self.sealed >= self.control.confidentiality_limit() / 2 {
            self.renew = true;
        }
        if self.renew {
            if !send_record(fd, ContentType::Handshake, &KEY_UPDATE)? {
                return Ok(false);
            }
            let (sequence, secrets) = self.control.sending()?;
            rekey(fd, TLS_TX, sequence, &secrets)?;
            (self.sealed, self.renew) = (0, false);
        }
        Ok(true)
    }

    /// Whether [`ready`](Self::ready) has something to do.
    pub fn waits(&self) -> bool {
        self.renew
    }

    /// So many bytes of data have been sent at once.
    pub fn sent(&mut self, count: usize) {
        self.sealed = self.sealed.saturating_add(blocks(count));
    }

    /// So many bytes of data have been received.
    pub fn received(&mut self, count: usize) -> Result<(), Closed> {
        match count {
            0 => Ok(()),
            _ => Ok(self.control.data()?),
        }
    }

    /// Renews our key, as is done by itself long before it must not be used any more.
    pub fn renew_key(&mut self) {
        self.renew = true;
    }

    /// After a read that failed: receives the record that is no data, if that was why, and sees to it.
    pub fn receive(&mut self, fd: BorrowedFd<'_>, failed: io::Error) -> Result<Received, Closed> {
        let result = match Errno::from_io_error(&failed) {
            Some(Errno::IO) => self.receive_control(fd),
            Some(Errno::BADMSG) => Err(Error::DecryptError.into()),
            Some(Errno::MSGSIZE) => Err(Error::PeerSentOversizedRecord.into()),
            _ => Err(failed.into()),
        };
        match &result {
            Err(closed) if closed.needs_attention() => self.goodbye(fd),
            Err(Closed::Tls(error)) => {
                if let Some(alert) = alert_for(error) {
                    self.alert(fd, FATAL, alert);
                }
            }
            _ => {}
        }
        result
    }

    fn receive_control(&mut self, fd: BorrowedFd<'_>) -> Result<Received, Closed> {
        let Some((content, payload)) = receive_record(fd)? else {
            return Ok(Received::Nothing);
        };
        if content == ContentType::ApplicationData && !payload.is_empty() {
            self.control.data()?;
            return Ok(Received::Data(payload));
        }
        match self.control.take(content, &payload)? {
            Effect::End => return Ok(Received::End),
            Effect::NewKey { answer } => {
                let (sequence, secrets) = self.control.receiving()?;
                rekey(fd, TLS_RX, sequence, &secrets)?;
                // Asked again before it is done, it is done once.
                self.renew |= answer;
                self.ready(fd)?;
            }
            Effect::Nothing | Effect::Renegotiation => {}
        }
        Ok(Received::Nothing)
    }

    /// Says goodbye, if the socket takes it.
    pub fn goodbye(&mut self, fd: BorrowedFd<'_>) {
        self.alert(fd, WARNING, AlertDescription::CloseNotify);
    }

    /// There is nobody left to tell if it fails.
    fn alert(&mut self, fd: BorrowedFd<'_>, level: u8, why: AlertDescription) {
        // After a bad record the socket sends nothing until its error has been asked for.
        let _ = sockopt::socket_error(fd);
        let _ = send_record(fd, ContentType::Alert, &[level, u8::from(why)]);
    }
}

impl fmt::Debug for Kernel {
    /// Without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("suite", &self.control.suite)
            .finish_non_exhaustive()
    }
}

/// Gives the kernel another key.
fn rekey(
    fd: BorrowedFd<'_>,
    direction: c::c_int,
    sequence: u64,
    secrets: &ConnectionTrafficSecrets,
) -> Result<(), Error> {
    let info = crypto_info(sequence, secrets).ok_or(Error::EncryptError)?;
    set(fd, SOL_TLS, direction, &info).map_err(|errno| {
        Error::General(format!(
            "the time of a key is over, and this kernel cannot take another in its place ({errno}), which Linux can \
             from 6.14 on; connect again, or set ktls to false"
        ))
    })
}

/// `struct tls12_crypto_info_*`, which is also for TLS 1.3. `None` for a cipher without such.
fn crypto_info(sequence: u64, secrets: &ConnectionTrafficSecrets) -> Option<Zeroizing<Vec<u8>>> {
    let (cipher, key, iv, salt) = match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (TLS_CIPHER_AES_GCM_128, key, iv, 4),
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (TLS_CIPHER_AES_GCM_256, key, iv, 4),
        ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            (TLS_CIPHER_CHACHA20_POLY1305, key, iv, 0)
        }
        _ => return None,
    };
    let (salt, iv) = iv.as_ref().split_at(salt);
    let mut info = Zeroizing::new(Vec::with_capacity(64));
    info.extend_from_slice(&TLS_1_3_VERSION.to_ne_bytes());
    info.extend_from_slice(&cipher.to_ne_bytes());
    info.extend_from_slice(iv);
    info.extend_from_slice(key.as_ref());
    info.extend_from_slice(salt);
    info.extend_from_slice(&sequence.to_be_bytes());
    Some(info)
}

fn set(fd: BorrowedFd<'_>, level: c::c_int, name: c::c_int, value: &[u8]) -> Result<(), Errno> {
    uapi::setsockopt(fd.as_raw_fd(), level, name, value)
        .map_err(|errno| Errno::from_raw_os_error(errno.0))
}

/// Sends a record that is no data. `false` if the socket takes nothing now.
fn send_record(fd: BorrowedFd<'_>, content: ContentType, payload: &[u8]) -> io::Result<bool> {
    let mut header: c::cmsghdr = uapi::pod_zeroed();
    header.cmsg_level = SOL_TLS;
    header.cmsg_type = TLS_SET_RECORD_TYPE;
    let mut control = [MaybeUninit::<u8>::zeroed(); uapi::cmsg_space(1)];
    uapi::cmsg_write(&mut &mut control[..], header, &u8::from(content))?;
    let message = uapi::Msghdr {
        iov: &[IoSlice::new(payload)][..],
        control: Some(&control[..]),
        name: uapi::sockaddr_none_ref(),
    };
    let flags = c::MSG_DONTWAIT | c::MSG_NOSIGNAL;
    let sent = retry_on_intr(|| errno(uapi::sendmsg(fd.as_raw_fd(), &message, flags)));
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Receives one record of any kind.
fn receive_record(fd: BorrowedFd<'_>) -> io::Result<Option<(ContentType, Vec<u8>)>> {
    let mut bytes = vec![0; MAX_PLAINTEXT];
    let mut control = [0_u8; 64];
    let received = retry_on_intr(|| {
        let mut slices = [&mut bytes[..]];
        let mut message = uapi::MsghdrMut {
            iov: &mut slices[..],
            control: Some(&mut control[..]),
            name: uapi::sockaddr_none_mut(),
            flags: 0,
        };
        let received = errno(uapi::recvmsg(fd.as_raw_fd(), &mut message, c::MSG_DONTWAIT));
        received.map(|(slices, _, control)| (slices.len(), content(control)))
    });
    match received {
        Ok((len, content)) => {
            bytes.truncate(len);
            Ok(content.map(|content| (content, bytes)))
        }
        Err(Errno::AGAIN) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The type of a record, by the control messages that came with it.
fn content(mut control: &[u8]) -> Option<ContentType> {
    while let Ok((_, header, data)) = uapi::cmsg_read(&mut control) {
        if (header.cmsg_level, header.cmsg_type) == (SOL_TLS, TLS_GET_RECORD_TYPE) {
            return data.first().copied().map(ContentType::from);
        }
    }
    None
}

fn errno<T>(result: uapi::Result<T>) -> Result<T, Errno> {
    result.map_err(|errno| Errno::from_raw_os_error(errno.0))
}
