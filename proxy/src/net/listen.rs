//! Listening sockets: our own, one a worker, or handed in by a supervisor.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use thiserror::Error;

use super::dial::{KEEPALIVE, USER_TIMEOUT};

/// Long enough for a burst of connections to wait while a worker is busy; the kernel caps it at
/// `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// systemd's protocol: handed-in sockets begin after the standard three.
const FIRST_HANDED_IN: RawFd = 3;

/// What a listening socket is for; also its name in `LISTEN_FDNAMES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The workload's connections, redirected.
    Outbound,
    /// Peers' connections, redirected.
    Inbound,
    /// The admin port.
    Admin,
    /// Prometheus metrics.
    Metrics,
    /// Readiness and liveness.
    Health,
}

impl Role {
    const ALL: [Self; 5] = [Self::Outbound, Self::Inbound, Self::Admin, Self::Metrics, Self::Health];

    /// The role's name in `LISTEN_FDNAMES` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
            Self::Health => "health",
        }
    }

    /// Only what others must reach listens on more than loopback.
    fn loopback_only(self) -> bool {
        matches!(self, Self::Outbound | Self::Admin)
    }
}

/// Why a port could not be listened on.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The system refused.
    #[error("can't listen on {address} for {}: {source}{}", role.name(), hint(source))]
    Bind {
        /// What the socket was for.
        role: Role,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// `LISTEN_FDNAMES` names something unknown.
    #[error("LISTEN_FDNAMES names `{0}`; known: outbound, inbound, admin, metrics, health")]
    UnknownName(String),
    /// `LISTEN_FDS` and `LISTEN_FDNAMES` don't fit each other.
    #[error("LISTEN_FDS is {fds}, LISTEN_FDNAMES has {names} names: name every socket")]
    NamesMissing {
        /// Number of sockets.
        fds: usize,
        /// Number of names.
        names: usize,
    },
    /// A handed-in descriptor is not a listening TCP socket.
    #[error("file descriptor {0} of LISTEN_FDS is not open: {1}")]
    NotASocket(RawFd, io::Error),
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has the port: stop it or choose another port",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => "",
    }
}

/// Sockets that a supervisor handed in, by role.
pub type HandedIn = BTreeMap<Role, Vec<TcpListener>>;

/// Listens on `port` with a socket for each address family the role needs. SO_REUSEPORT lets each worker
/// have its own.
///
/// # Errors
/// The first address that can't be listened on; IPv6 is left out where the machine has none.
pub fn bind_listeners(role: Role, port: u16) -> Result<Vec<TcpListener>, ListenError> {
    let (v4, v6): (IpAddr, IpAddr) = if role.loopback_only() {
        (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())
    } else {
        (Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into())
    };
    let first = bind(SocketAddr::new(v4, port)).map_err(|source| ListenError::Bind {
        role,
        address: (v4, port).into(),
        source,
    })?;
    let mut listeners = vec![first];
    match bind(SocketAddr::new(v6, port)) {
        Ok(listener) => listeners.push(listener),
        Err(error) if is_missing_family(&error) => {}
        Err(source) => return Err(ListenError::Bind { role, address: (v6, port).into(), source }),
    }
    Ok(listeners)
}

/// Listens on `port` at these addresses, and on loopback, of the families that the machine has.
///
/// # Errors
/// The first address that can't be listened on.
pub fn bind_listeners_at(
    role: Role,
    addresses: &[IpAddr],
    port: u16,
) -> Result<Vec<TcpListener>, ListenError> {
    // One for all of a family has loopback's too.
    let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let beside = loopback.into_iter().zip(all).filter_map(|(loopback, all)| {
        (!addresses.contains(&all) && !addresses.contains(&loopback)).then_some(loopback)
    });
    let mut listeners = Vec::new();
    for (address, is_asked_for) in
        addresses.iter().map(|one| (*one, true)).chain(beside.map(|one| (one, false)))
    {
        let address = SocketAddr::new(address, port);
        match bind(address) {
            Ok(listener) => listeners.push(listener),
            Err(error) if !is_asked_for && is_missing_family(&error) => {}
            Err(source) => return Err(ListenError::Bind { role, address, source }),
        }
    }
    Ok(listeners)
}

fn is_missing_family(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    for_accepted(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Options that accepted connections inherit: each answer goes out at once, and a peer whose machine is
/// gone is noticed.
fn for_accepted(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3))
}

/// Takes the sockets that a supervisor handed in by systemd's protocol: `LISTEN_FDS`,
/// `LISTEN_FDNAMES` and, if set, `LISTEN_PID`. Call it once, before anything else opens a file.
///
/// # Errors
/// Names that are unknown or missing, descriptors that are not open.
pub fn handed_in_sockets() -> Result<HandedIn, ListenError> {
    let variable = |name| std::env::var(name).ok();
    let ours = variable("LISTEN_PID").is_none_or(|pid| pid == std::process::id().to_string());
    let count = variable("LISTEN_FDS").and_then(|n| n.parse().ok()).filter(|_| ours).unwrap_or(0);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names: Vec<&str> = names.split(':').filter(|n| !n.is_empty()).collect();
    let mut sockets = HandedIn::new();
    if count == 0 {
        return Ok(sockets);
    }
    if names.len() != count {
        return Err(ListenError::NamesMissing { fds: count, names: names.len() });
    }
    for (fd, name) in (FIRST_HANDED_IN..).zip(names) {
        let role = Role::ALL
            .into_iter()
            .find(|role| role.name() == name)
            .ok_or_else(|| ListenError::UnknownName(name.into()))?;
        let owned = take(fd).map_err(|error| ListenError::NotASocket(fd, error))?;
        let listener = TcpListener::from(owned);
        listener
            .set_nonblocking(true)
            .and_then(|()| for_accepted(&SockRef::from(&listener)))
            .map_err(|error| ListenError::NotASocket(fd, error))?;
        sockets.entry(role).or_default().push(listener);
    }
    Ok(sockets)
}

#[allow(unsafe_code)]
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: systemd's protocol gives this process the descriptors from 3 on; this function is called
    // once for each, before the process opens any other, so nothing else owns them.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        Ok(_) => Ok(owned),
        Err(error) => {
            // Not open: dropping it would close a number that is not ours.
            std::mem::forget(owned);
            Err(error.into())
        }
    }
}
