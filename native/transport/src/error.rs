//! One error type for the crate: a kind to match on and a sentence to read.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

/// What went wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The operating system said so.
    Os(Errno),
    /// It took longer than allowed.
    Timeout,
    /// The connection, or this end of it, was closed.
    Closed,
    /// The peer sent what it must not send.
    BadMessage,
    /// TLS: a certificate, a key or a handshake.
    Tls,
    /// No such node, name or file.
    NotFound,
    /// An option or address that makes no sense here.
    BadOption,
    /// Longer than the format allows.
    TooLong,
    /// A directory in which others could replace our socket.
    UnsafeDirectory,
    /// EPMD answered what is no answer.
    BadReply,
    /// The name is registered already.
    DuplicateName,
    /// A file descriptor that is no stream socket.
    NotAStream,
}

impl Kind {
    /// Its name as Erlang spells it: a POSIX name in lower case, or the kind itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Os(errno) => posix(errno).map_or("eio", |(_, name, _)| name),
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::BadMessage => "bad_message",
            Self::Tls => "tls",
            Self::NotFound => "not_found",
            Self::BadOption => "bad_option",
            Self::TooLong => "too_long",
            Self::UnsafeDirectory => "unsafe_directory",
            Self::BadReply => "bad_reply",
            Self::DuplicateName => "duplicate_name",
            Self::NotAStream => "not_a_stream",
        }
    }
}

/// Why something failed. Its text is one sentence that says what, where and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Error {
    kind: Kind,
    sentence: String,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: Kind, sentence: impl Into<String>) -> Self {
        let sentence = sentence.into();
        Self { kind, sentence }
    }

    /// What the operating system refused: "cannot listen on tcp 127.0.0.1:80: permission denied".
    pub fn os(what: impl Display, error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(errno) => {
                let (reason, name) = match posix(errno) {
                    Some((_, name, reason)) => (reason.to_owned(), name),
                    None => (error.to_string(), "eio"),
                };
                Self::new(Kind::Os(errno), format!("{what}: {reason} ({name})"))
            }
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::closed(what),
            None => Self::new(Kind::Os(Errno::IO), format!("{what}: {error}")),
        }
    }

    /// The peer went away.
    pub(crate) fn closed(what: impl Display) -> Self {
        Self::new(
            Kind::Closed,
            format!("{what}: the peer closed the connection"),
        )
    }

    /// What to match on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts what was being done in front.
    pub(crate) fn during(self, what: impl Display) -> Self {
        Self::new(self.kind, format!("{what}: {}", self.sentence))
    }
}

type Posix = (Errno, &'static str, &'static str);

fn posix(errno: Errno) -> Option<Posix> {
    POSIX.iter().copied().find(|(known, ..)| *known == errno)
}

static POSIX: &[Posix] = &[
    (
        Errno::ACCESS,
        "eacces",
        "permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE, a path needs a directory this user may write",
    ),
    (
        Errno::ADDRINUSE,
        "eaddrinuse",
        "the address is in use; choose another one or stop the program that has it",
    ),
    (
        Errno::ADDRNOTAVAIL,
        "eaddrnotavail",
        "no interface of this host has that address; choose one that `ip address` shows",
    ),
    (
        Errno::AFNOSUPPORT,
        "eafnosupport",
        "this host does not support that address family; is IPv6 switched off?",
    ),
    (
        Errno::AGAIN,
        "eagain",
        "the peer's queue of waiting connections is full",
    ),
    (
        Errno::BADF,
        "ebadf",
        "there is no open file descriptor with that number",
    ),
    (
        Errno::CONNABORTED,
        "econnaborted",
        "the connection was aborted",
    ),
    (
        Errno::CONNREFUSED,
        "econnrefused",
        "connection refused; nothing listens there",
    ),
    (
        Errno::CONNRESET,
        "econnreset",
        "the peer reset the connection",
    ),
    (
        Errno::EXIST,
        "eexist",
        "something with that name exists already",
    ),
    (Errno::HOSTDOWN, "ehostdown", "the host is down"),
    (Errno::HOSTUNREACH, "ehostunreach", "no route to the host"),
    (Errno::INTR, "eintr", "interrupted"),
    (
        Errno::INVAL,
        "einval",
        "the operating system does not accept that value",
    ),
    (Errno::IO, "eio", "input/output error"),
    (Errno::LOOP, "eloop", "too many symbolic links"),
    (
        Errno::MFILE,
        "emfile",
        "this process has too many open files; raise the limit (ulimit -n)",
    ),
    (Errno::NAMETOOLONG, "enametoolong", "the name is too long"),
    (Errno::NETDOWN, "enetdown", "the network is down"),
    (
        Errno::NETUNREACH,
        "enetunreach",
        "the network is unreachable",
    ),
    (
        Errno::NFILE,
        "enfile",
        "the host has too many open files; raise fs.file-max",
    ),
    (
        Errno::NOBUFS,
        "enobufs",
        "the kernel has no buffer space left",
    ),
    (Errno::NODEV, "enodev", "there is no such device"),
    (Errno::NOENT, "enoent", "there is no such file or directory"),
    (Errno::NOMEM, "enomem", "the kernel is out of memory"),
    (Errno::NOSPC, "enospc", "no space is left on the device"),
    (Errno::NOTCONN, "enotconn", "the socket is not connected"),
    (Errno::NOTDIR, "enotdir", "part of the path is no directory"),
    (Errno::NOTSOCK, "enotsock", "it is no socket"),
    (
        Errno::OPNOTSUPP,
        "eopnotsupp",
        "the operation is not supported",
    ),
    (
        Errno::PERM,
        "eperm",
        "the operation is not permitted; a firewall or a sandbox forbids it",
    ),
    (Errno::PIPE, "epipe", "the peer closed the connection"),
    (Errno::PROTO, "eproto", "protocol error"),
    (
        Errno::PROTONOSUPPORT,
        "eprotonosupport",
        "this host does not support that protocol",
    ),
    (
        Errno::PROTOTYPE,
        "eprototype",
        "what listens there is a socket of another type",
    ),
    (Errno::ROFS, "erofs", "the file system is read-only"),
    (
        Errno::TIMEDOUT,
        "etimedout",
        "the host did not answer in time",
    ),
];
