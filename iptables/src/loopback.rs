//! The address ::6 on `lo`.
//!
//! The inbound side dials the workload at the original destination, from an address that tells this traffic from
//! all other: 127.0.0.6 for IPv4, which is the kernel's as all of 127.0.0.0/8. For IPv6 only ::1 is, so ::6 has
//! to be put there before a socket can be bound to it. Asked of the kernel by netlink, so that an image needs no
//! `ip` program for it.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv6Addr};

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Family;

/// Why ::6 could not be put on `lo` or be taken away.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    #[error("not permitted to {0} the address ::6 on lo: run as root with the capability NET_ADMIN")]
    NotPermitted(&'static str),
    #[error(
        "IPv6 is switched off on lo, so ::6 can't be put there: run `sysctl -w net.ipv6.conf.lo.disable_ipv6=0`, or leave IPv6 out (--ipv6 off)"
    )]
    SwitchedOff,
    #[error("cannot {action} the address ::6 on lo: {source}; to leave IPv6 out, say --ipv6 off")]
    Refused { action: &'static str, source: io::Error },
}

/// Puts ::6 on `lo`, if it is not there.
pub(crate) fn add_inbound_source() -> Result<(), LoopbackError> {
    let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    match request(libc::RTM_NEWADDR, flags) {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => LoopbackError::NotPermitted("put"),
            Some(libc::EACCES) => LoopbackError::SwitchedOff,
            _ => LoopbackError::Refused { action: "put", source: error },
        }),
    }
}

/// Takes ::6 from `lo`, if it is there.
pub(crate) fn remove_inbound_source() -> Result<(), LoopbackError> {
    if !inbound_source_is_there() {
        return Ok(());
    }
    match request(libc::RTM_DELADDR, 0) {
        Ok(()) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EPERM) => LoopbackError::NotPermitted("remove"),
            _ => LoopbackError::Refused { action: "remove", source: error },
        }),
    }
}

/// Whether an address of this pod is ::6.
pub(crate) fn inbound_source_is_there() -> bool {
    let digits = format!("{:032x}", inbound_source().to_bits());
    std::fs::read_to_string("/proc/thread-self/net/if_inet6")
        .is_ok_and(|addresses| addresses.lines().any(|line| line.starts_with(&digits)))
}

fn inbound_source() -> Ipv6Addr {
    match Family::Ipv6.inbound_source() {
        IpAddr::V6(address) => address,
        IpAddr::V4(address) => address.to_ipv6_mapped(),
    }
}

/// Sends one request about ::6 on `lo` to the kernel (rtnetlink(7)) and reads its answer.
fn request(kind: u16, flags: i32) -> io::Result<()> {
    let index = nix::net::if_::if_nametoindex("lo")?;
    let mut socket =
        Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    socket.send(&message(kind, flags, index))?;
    let mut answer = [0; 4096];
    let length = socket.read(&mut answer)?;
    // struct nlmsghdr (16 bytes), then struct nlmsgerr, which begins with the negated error number, 0 for none.
    let field = |at: usize| answer[..length].get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    match field(16).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// struct nlmsghdr, struct ifaddrmsg and the attributes IFA_LOCAL, IFA_ADDRESS and IFA_CACHEINFO.
fn message(kind: u16, flags: i32, interface: u32) -> Vec<u8> {
    const PREFIX: u8 = 128;
    // Without duplicate address detection, which would leave the address unusable for a moment.
    const ADDRESS_FLAGS: u8 = libc::IFA_F_NODAD as u8;
    let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    let mut body =
        vec![u8::try_from(libc::AF_INET6).unwrap_or_default(), PREFIX, ADDRESS_FLAGS, libc::RT_SCOPE_HOST];
    body.extend(interface.to_ne_bytes());
    for attribute in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend(20_u16.to_ne_bytes());
        body.extend(attribute.to_ne_bytes());
        body.extend(inbound_source().octets());
    }
    // Deprecated from the start (RFC 6724, rule 3), so that the kernel never picks it as a source by itself. struct
    // ifa_cacheinfo: preferred and valid lifetime in seconds, two time stamps.
    body.extend(20_u16.to_ne_bytes());
    body.extend(libc::IFA_CACHEINFO.to_ne_bytes());
    for number in [0, u32::MAX, 0, 0] {
        body.extend(number.to_ne_bytes());
    }
    let mut message = Vec::new();
    message.extend(u32::try_from(16 + body.len()).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
    let (sequence, port): (u32, u32) = (1, 0);
    message.extend(sequence.to_ne_bytes());
    message.extend(port.to_ne_bytes());
    message.extend(body);
    message
}
