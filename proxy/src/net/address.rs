//! Addresses that must not be mixed up, each a type of its own.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// The address of whoever opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddress(pub SocketAddr);

/// Where the client of a redirected connection wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDestination(pub SocketAddr);

impl OriginalDestination {
    /// Reads what iptables recorded before its redirect.
    ///
    /// # Errors
    /// The system's: a connection that no rule redirected has none, and the caller must then treat
    /// the socket's own address as the destination.
    pub fn of(stream: &TcpStream) -> io::Result<Self> {
        let address = if stream.local_addr()?.is_ipv6() {
            let raw = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
            SocketAddr::from(std::net::SocketAddrV6::new(
                raw.sin6_addr.s6_addr.into(),
                u16::from_be(raw.sin6_port),
                0,
                0,
            ))
        } else {
            let raw = getsockopt(stream, sockopt::OriginalDst)?;
            SocketAddr::from((u32::from_be(raw.sin_addr.s_addr).to_be_bytes(), u16::from_be(raw.sin_port)))
        };
        Ok(Self(address))
    }

    /// The address without the port.
    pub fn ip(&self) -> IpAddr {
        self.0.ip()
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.0.port()
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OriginalDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
