//! Opening connections so that the redirect lets them pass.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::{TcpSocket, TcpStream};

/// The inbound side dials the workload from these addresses: the redirect lets them pass, so that a
/// workload's own calls to itself can be told from ours.
const WORKLOAD_SOURCE_V4: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);
const WORKLOAD_SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// Unacknowledged data older than this ends the connection: the peer's machine is gone.
pub(super) const USER_TIMEOUT: Duration = Duration::from_secs(15);
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a connection could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DialError {
    /// The peer, or something on the way, refused.
    #[error("connection to {0} refused")]
    Refused(SocketAddr),
    /// Nothing answered in time.
    #[error("no answer from {0} within {1:?}")]
    Timeout(SocketAddr, Duration),
    /// There is no way to the address.
    #[error("{0} is unreachable: {1}")]
    Unreachable(SocketAddr, io::ErrorKind),
    /// This process or machine has no socket left.
    #[error("no socket left to reach {0}: {1}; raise the limit on open files")]
    Exhausted(SocketAddr, io::ErrorKind),
}

/// Opens connections of one side of the proxy.
#[derive(Clone, Copy, Debug)]
pub struct Dialler {
    mark: Option<u32>,
    to_workload: bool,
}

impl Dialler {
    /// Connections to peers; `mark` exempts them from the redirect where uids can't.
    pub fn to_peers(mark: Option<u32>) -> Self {
        Self { mark, to_workload: false }
    }

    /// Connections of the inbound side to the workload.
    pub fn to_workload(mark: Option<u32>) -> Self {
        Self { mark, to_workload: true }
    }

    /// Opens a connection, within `limit`.
    ///
    /// # Errors
    /// What kept it from opening, by kind.
    pub async fn dial(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream, DialError> {
        let socket = self.socket(address).map_err(|e| Self::explain(address, limit, &e))?;
        match tokio::time::timeout(limit, socket.connect(address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Self::explain(address, limit, &error)),
            Err(_) => Err(DialError::Timeout(address, limit)),
        }
    }

    fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if self.to_workload {
            let source: IpAddr = match address {
                SocketAddr::V4(_) => WORKLOAD_SOURCE_V4.into(),
                SocketAddr::V6(_) => WORKLOAD_SOURCE_V6.into(),
            };
            // Without this each connection would hold a port whatever its destination, and 28000
            // connections would be all.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(source, 0).into())?;
        } else {
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            socket.set_tcp_keepalive(
                &socket2::TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3),
            )?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    }

    fn explain(address: SocketAddr, limit: Duration, error: &io::Error) -> DialError {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => DialError::Refused(address),
            io::ErrorKind::TimedOut => DialError::Timeout(address, limit),
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => {
                DialError::Exhausted(address, error.kind())
            }
            kind => match error.raw_os_error().map(nix::errno::Errno::from_raw) {
                Some(nix::errno::Errno::EMFILE | nix::errno::Errno::ENFILE | nix::errno::Errno::ENOBUFS) => {
                    DialError::Exhausted(address, kind)
                }
                _ => DialError::Unreachable(address, kind),
            },
        }
    }
}
