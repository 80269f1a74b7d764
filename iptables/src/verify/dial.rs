//! One connection, and where it arrives.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, setfsgid};
use socket2::{Domain, SockRef, Socket, Type};

use super::Outcome;
use crate::Owner;

/// All of this happens within the machine, where even a busy kernel answers sooner.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection to make.
pub(super) struct Dial {
    /// Where it should arrive. Port 0 means one that is free, dialled directly.
    pub listening: SocketAddr,
    pub destination: SocketAddr,
    pub source: Option<IpAddr>,
    pub caller: Caller,
}

/// Whom the rules should take the connection for.
#[derive(Clone, Copy)]
pub(super) enum Caller {
    Workload,
    Proxy(Owner),
}

/// What arrived.
pub(super) struct Seen {
    pub destination: SocketAddr,
    pub original: Option<SocketAddr>,
}

/// Why nothing arrived.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("something listens on {0} already, a running sidecar perhaps: run this before it starts")]
    Taken(SocketAddr),
    #[error("may not act as the proxy: {0}")]
    NotTheProxy(String),
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, io::Error),
    #[error("{0}")]
    Dial(io::Error),
    #[error("a connection was made, but with something else")]
    Elsewhere,
}

impl DialError {
    pub(super) fn outcome(self, meant: &str) -> Outcome {
        match self {
            Self::Taken(_) | Self::NotTheProxy(_) | Self::Listen(..) => Outcome::Skipped(self.to_string()),
            Self::Dial(_) | Self::Elsewhere => Outcome::Failed(format!("{meant} ({self})")),
        }
    }
}

impl Dial {
    pub(super) fn run(self) -> Result<Seen, DialError> {
        let listener = TcpListener::bind(self.listening).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => DialError::Taken(self.listening),
            _ => DialError::Listen(self.listening, error),
        })?;
        let destination = if self.destination.port() == 0 {
            listener.local_addr().map_err(DialError::Dial)?
        } else {
            self.destination
        };
        // The group that opens a socket is the thread's, so a thread of its own takes the proxy's.
        let client = thread::scope(|scope| {
            let dialling = scope.spawn(|| connect(destination, self.source, self.caller));
            dialling.join().unwrap_or(Err(DialError::Elsewhere))
        })?;
        let caller = client.local_addr().map_err(DialError::Dial)?.as_socket();
        // Limits accept as well (socket(7), SO_RCVTIMEO).
        SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).map_err(DialError::Dial)?;
        loop {
            let Ok((server, peer)) = listener.accept() else {
                return Err(DialError::Elsewhere);
            };
            if Some(peer) != caller {
                continue;
            }
            let server = SockRef::from(&server);
            let original = match destination {
                SocketAddr::V4(_) => server.original_dst_v4(),
                SocketAddr::V6(_) => server.original_dst_v6(),
            };
            return Ok(Seen { destination, original: original.ok().and_then(|address| address.as_socket()) });
        }
    }
}

fn connect(destination: SocketAddr, source: Option<IpAddr>, caller: Caller) -> Result<Socket, DialError> {
    if let Caller::Proxy(Owner::User { gid, .. }) = caller {
        let gid = Gid::from_raw(gid);
        setfsgid(gid);
        // It reports no error; a second call tells what the first one did.
        if setfsgid(gid) != gid {
            return Err(DialError::NotTheProxy(format!("taking group {gid} needs the capability SETGID")));
        }
    }
    let socket =
        Socket::new(Domain::for_address(destination), Type::STREAM, None).map_err(DialError::Dial)?;
    if let Caller::Proxy(Owner::Mark { proxy, .. }) = caller {
        socket
            .set_mark(proxy)
            .map_err(|error| DialError::NotTheProxy(format!("setting the mark {proxy}: {error}")))?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into()).map_err(DialError::Dial)?;
    }
    socket.connect_timeout(&destination.into(), PATIENCE).map_err(DialError::Dial)?;
    Ok(socket)
}
