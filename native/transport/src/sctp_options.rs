//! The socket options of SCTP, as RFC 6458 and the kernel's `linux/sctp.h` lay them out.
//!
//! A one-to-one socket has one association at most, so that an option set on it holds for that one,
//! or, before there is one, for the one to come; those that a listener accepts begin with its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;

use rustix::io::Errno;
use socket2::Socket;

use crate::Address;
use crate::address::canonical;
use crate::options::each;

const SOL_SCTP: i32 = 132;
const SCTP_RTOINFO: i32 = 0;
const SCTP_ASSOCINFO: i32 = 1;
const SCTP_NODELAY: i32 = 3;
const SCTP_PEER_ADDR_PARAMS: i32 = 9;
const SCTP_SOCKOPT_BINDX_ADD: i32 = 100;
const SCTP_GET_PEER_ADDRS: i32 = 108;
const SCTP_GET_LOCAL_ADDRS: i32 = 109;

/// Bit of `spp_flags`: heartbeats are sent, at the interval given.
const SPP_HB_ENABLE: u32 = 1;

/// Bit of `spp_flags`: a heartbeat is sent now.
const SPP_HB_DEMAND: u32 = 4;

/// Bit of `spp_flags`: packets are as long as `spp_pathmtu` says.
const SPP_PMTUD_DISABLE: u32 = 16;

/// The longest packets, in bytes. A receiver tells that it has room again once that is a packet's worth,
/// and its room is 100 kB by default: with the 64 KiB of a loopback a sender that has filled the room
/// would be told by its own retransmission timer, after seconds.
const LONGEST_PACKET: u32 = 16_000;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Room for the addresses of one end: those of 500 interfaces.
const ADDRESSES: usize = 16 * 1024;

/// How soon a path, and how soon the connection, is given up. What is absent keeps the system's
/// default (`net.sctp.*` of sysctl); times are milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SctpOpts {
    /// How often a path on which nothing passes is asked whether it works; to this the kernel adds
    /// the path's retransmission timeout.
    pub heartbeat: Option<u32>,
    /// A path is given up when more than so many sendings in a row were not answered on it.
    pub path_max_retrans: Option<u16>,
    /// The connection is given up when more than so many sendings in a row were not answered.
    pub max_retrans: Option<u16>,
    /// The retransmission timeout before anything was measured.
    pub rto_initial: Option<u32>,
    /// The shortest retransmission timeout.
    pub rto_min: Option<u32>,
    /// The longest one.
    pub rto_max: Option<u32>,
}

impl SctpOpts {
    /// Sets these.
    pub fn apply(&self, socket: &Socket) -> io::Result<()> {
        if self.heartbeat.is_some() || self.path_max_retrans.is_some() {
            set(socket, SCTP_PEER_ADDR_PARAMS, &self.path_params())?;
        }
        each(self.max_retrans, |max| set_max_retrans(socket, max))?;
        if self.rto_initial.is_some() || self.rto_min.is_some() || self.rto_max.is_some() {
            set(socket, SCTP_RTOINFO, &self.timeouts())?;
        }
        Ok(())
    }

    /// `struct sctp_paddrparams`, packed; no address, which is every path. A 0 changes nothing.
    fn path_params(&self) -> [u8; 156] {
        let mut params = [0; 156];
        if let Some(heartbeat) = self.heartbeat {
            put(&mut params, 132, &heartbeat.to_ne_bytes()); // spp_hbinterval
            put(&mut params, 146, &SPP_HB_ENABLE.to_ne_bytes()); // spp_flags
        }
        let retrans = self.path_max_retrans.unwrap_or(0);
        put(&mut params, 136, &retrans.to_ne_bytes()); // spp_pathmaxrxt
        params
    }

    /// `struct sctp_rtoinfo`. A 0 changes nothing.
    fn timeouts(&self) -> [u8; 16] {
        let mut info = [0; 16];
        let times = [self.rto_initial, self.rto_max, self.rto_min];
        for (at, time) in [4, 8, 12].into_iter().zip(times) {
            put(&mut info, at, &time.unwrap_or(0).to_ne_bytes());
        }
        info
    }

    /// What holds on this socket.
    pub fn of(socket: &Socket) -> io::Result<Self> {
        let mut params = [0; 156];
        get(socket, SCTP_PEER_ADDR_PARAMS, &mut params)?;
        let mut association = [0; 20];
        get(socket, SCTP_ASSOCINFO, &mut association)?;
        let mut times = [0; 16];
        get(socket, SCTP_RTOINFO, &mut times)?;
        Ok(Self {
            heartbeat: Some(u32::from_ne_bytes(take(&params, 132))),
            path_max_retrans: Some(u16::from_ne_bytes(take(&params, 136))),
            max_retrans: Some(u16::from_ne_bytes(take(&association, 4))),
            rto_initial: Some(u32::from_ne_bytes(take(&times, 4))),
            rto_max: Some(u32::from_ne_bytes(take(&times, 8))),
            rto_min: Some(u32::from_ne_bytes(take(&times, 12))),
        })
    }
}

/// For a connection the kernel refuses a number greater than those of all paths together, at this
/// moment: so each path has it for as long.
fn set_max_retrans(socket: &Socket, max: u16) -> io::Result<()> {
    let set = || set(socket, SCTP_ASSOCINFO, &association(max));
    let of_paths = |max| SctpOpts {
        path_max_retrans: max,
        ..SctpOpts::default()
    };
    match set() {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
            let before = of_paths(SctpOpts::of(socket)?.path_max_retrans);
            of_paths(Some(max)).apply(socket)?;
            let done = set();
            before.apply(socket)?;
            done
        }
        done => done,
    }
}

/// `struct sctp_assocparams`. A 0 changes nothing.
fn association(max_retrans: u16) -> [u8; 20] {
    let mut params = [0; 20];
    put(&mut params, 4, &max_retrans.to_ne_bytes()); // sasoc_asocmaxrxt
    params
}

/// Makes a new connection ready. Asks at once on each path whether it works: of all but the first
/// that is not known yet, and nothing is sent on them, which by default takes three seconds. And lets
/// packets be no longer than [`LONGEST_PACKET`], where all paths could carry longer ones.
pub(crate) fn prepare(socket: &Socket) -> io::Result<()> {
    let mut params = [0; 156];
    get(socket, SCTP_PEER_ADDR_PARAMS, &mut params)?;
    let long = u32::from_ne_bytes(take(&params, 138)) > LONGEST_PACKET;
    let mut params = [0; 156];
    let flags = if long {
        put(&mut params, 138, &LONGEST_PACKET.to_ne_bytes()); // spp_pathmtu
        SPP_HB_DEMAND | SPP_PMTUD_DISABLE
    } else {
        SPP_HB_DEMAND
    };
    put(&mut params, 146, &flags.to_ne_bytes()); // spp_flags
    set(socket, SCTP_PEER_ADDR_PARAMS, &params)
}

pub(crate) fn set_nodelay(socket: &Socket, on: bool) -> io::Result<()> {
    set(socket, SCTP_NODELAY, &i32::from(on).to_ne_bytes())
}

pub(crate) fn nodelay(socket: &Socket) -> io::Result<bool> {
    let mut on = [0; 4];
    get(socket, SCTP_NODELAY, &mut on)?;
    Ok(i32::from_ne_bytes(on) != 0)
}

/// Binds a bound socket to one more address, with the port it has.
pub(crate) fn bind_also(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    set(socket, SCTP_SOCKOPT_BINDX_ADD, &sockaddr(address))
}

/// The local addresses of a connection.
pub(crate) fn local_addresses(socket: &Socket) -> io::Result<Vec<Address>> {
    addresses(socket, SCTP_GET_LOCAL_ADDRS)
}

/// The peer's addresses.
pub(crate) fn peer_addresses(socket: &Socket) -> io::Result<Vec<Address>> {
    addresses(socket, SCTP_GET_PEER_ADDRS)
}

/// `struct sctp_getaddrs`: the association, how many there are, and the addresses one after another.
fn addresses(socket: &Socket, option: i32) -> io::Result<Vec<Address>> {
    let mut bytes = vec![0; ADDRESSES];
    // 0 would ask what the socket is bound to, any other number what its one association has.
    put(&mut bytes, 0, &1_i32.to_ne_bytes());
    // The length that the kernel says is, for local addresses, too short by the head.
    get(socket, option, &mut bytes)?;
    let count = u32::from_ne_bytes(take(&bytes, 4)) as usize;
    let addresses = parse(&bytes[8..]).take(count);
    Ok(addresses
        .map(|address| Address::Ip(canonical(address)))
        .collect())
}

/// A `struct sockaddr_in` or `sockaddr_in6`.
fn sockaddr(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => {
            let mut bytes = vec![0; 16];
            put(&mut bytes, 0, &AF_INET.to_ne_bytes());
            put(&mut bytes, 2, &port);
            put(&mut bytes, 4, &address.ip().octets());
            bytes
        }
        SocketAddr::V6(address) => {
            let mut bytes = vec![0; 28];
            put(&mut bytes, 0, &AF_INET6.to_ne_bytes());
            put(&mut bytes, 2, &port);
            put(&mut bytes, 4, &address.flowinfo().to_be_bytes());
            put(&mut bytes, 8, &address.ip().octets());
            put(&mut bytes, 24, &address.scope_id().to_ne_bytes());
            bytes
        }
    }
}

/// Such structures one after another, as far as they are whole and of a family known here.
fn parse(mut bytes: &[u8]) -> impl Iterator<Item = SocketAddr> {
    std::iter::from_fn(move || {
        let family = u16::from_ne_bytes(*bytes.first_chunk()?);
        let size = match family {
            AF_INET => 16,
            AF_INET6 => 28,
            _ => return None,
        };
        let (one, rest) = bytes.split_at_checked(size)?;
        bytes = rest;
        let port = u16::from_be_bytes(take(one, 2));
        Some(match family {
            AF_INET => SocketAddr::new(Ipv4Addr::from(take::<4>(one, 4)).into(), port),
            _ => {
                let ip = Ipv6Addr::from(take::<16>(one, 8));
                let flow = u32::from_be_bytes(take(one, 4));
                let scope = u32::from_ne_bytes(take(one, 24));
                SocketAddrV6::new(ip, port, flow, scope).into()
            }
        })
    })
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn take<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut value = [0; N];
    value.copy_from_slice(&bytes[at..at + N]);
    value
}

fn set(socket: &Socket, option: i32, value: &[u8]) -> io::Result<()> {
    Ok(uapi::setsockopt(
        socket.as_raw_fd(),
        SOL_SCTP,
        option,
        value,
    )?)
}

fn get(socket: &Socket, option: i32, value: &mut [u8]) -> io::Result<()> {
    uapi::getsockopt(socket.as_raw_fd(), SOL_SCTP, option, value)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_laid_out_as_the_kernel_does() {
        let four: SocketAddr = "10.1.2.3:258".parse().unwrap();
        let mut expected = vec![0; 16];
        put(&mut expected, 0, &2_u16.to_ne_bytes());
        put(&mut expected, 2, &[1, 2, 10, 1, 2, 3]);
        assert_eq!(sockaddr(four), expected);
        let six = SocketAddrV6::new("fd00::1".parse().unwrap(), 258, 0, 7).into();
        let bytes = sockaddr(six);
        assert_eq!(bytes.len(), 28);
        assert_eq!((&bytes[2..4], bytes[8], bytes[23]), (&[1, 2][..], 0xfd, 1));
        let both = [sockaddr(four), bytes].concat();
        assert_eq!(parse(&both).collect::<Vec<_>>(), [four, six]);
    }

    #[test]
    fn what_is_cut_off_or_of_another_family_ends_the_addresses() {
        let one = sockaddr("10.1.2.3:258".parse().unwrap());
        for len in 0..16 {
            assert_eq!(parse(&one[..len]).count(), 0, "{len} bytes");
        }
        let other = [&one[..], &77_u16.to_ne_bytes(), &[0; 40]].concat();
        assert_eq!(parse(&other).count(), 1);
    }

    #[test]
    fn an_option_that_is_absent_changes_nothing() {
        let none = SctpOpts::default();
        assert_eq!((none.path_params(), none.timeouts()), ([0; 156], [0; 16]));
        let some = SctpOpts {
            heartbeat: Some(0x0102_0304),
            path_max_retrans: Some(5),
            rto_min: Some(6),
            ..none
        };
        let params = some.path_params();
        assert_eq!(u32::from_ne_bytes(take(&params, 132)), 0x0102_0304);
        assert_eq!(u16::from_ne_bytes(take(&params, 136)), 5);
        assert_eq!(u32::from_ne_bytes(take(&params, 146)), SPP_HB_ENABLE);
        assert_eq!(u32::from_ne_bytes(take(&some.timeouts(), 12)), 6);
        assert_eq!(u16::from_ne_bytes(take(&association(9), 4)), 9);
    }
}
