//! The DNS server: over TLS with mesh identities, and plain over UDP and TCP where that is asked for.
//!
//! This file binds, accepts and stops; `datagrams` and `stream` carry messages, `secure` does TLS.

mod datagrams;
mod secure;
mod stream;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use outrigger_ca::LogPace;
use outrigger_ca::workload::Status;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::Directory;
use crate::forward::Forwarder;
use secure::Secure;
use stream::Pace;
pub(crate) use stream::framed;

/// Anybody may connect there, so few at once and none for long: clients come over TCP for a single large answer.
const MOST_PLAIN_CONNECTIONS: usize = 256;
const PLAIN_PACE: Pace = Pace { idle: Duration::from_secs(10) };
/// Out of file descriptors, accepting fails at once and again; a pause keeps the CPU for what frees them.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Each pause would be a line.
static REFUSALS: LogPace = LogPace::new();
/// When stopping, answers that are under way get this long.
const DRAIN: Duration = Duration::from_secs(3);
/// A free port for TCP may be taken for UDP; both being free is found within this many attempts.
const PORT_ATTEMPTS: usize = 16;

/// What a server is and does.
pub struct Options {
    /// DNS over TLS with mutual authentication.
    pub secure: Option<SecureOptions>,
    /// Where to listen for plain DNS, UDP and TCP.
    pub plain: Option<SocketAddr>,
    /// Servers that are asked about names outside the cluster's domain, the first first; none: such questions are refused.
    pub forward: Vec<SocketAddr>,
    /// A packet mark (SO_MARK) for questions to those, so that redirect rules let them pass. Needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
}

/// DNS over TLS.
pub struct SecureOptions {
    /// Where to listen. `[::]` takes IPv4 too, and means 0.0.0.0 without IPv6.
    pub listen: SocketAddr,
    /// Clients must have a certificate of this trust domain.
    pub trust_domain: String,
    /// The server's own certificate, and the roots that clients' are verified by.
    pub certificate: watch::Receiver<Arc<Status>>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("the address {address} can't be listened on: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error(
        "there is nothing to listen on: give a certificate source for DNS over TLS, or an address for plain DNS"
    )]
    Nothing,
}

/// A server that listens.
pub struct Server {
    shared: Arc<Shared>,
    secure: Option<(TcpListener, Secure)>,
    plain: Option<(TcpListener, UdpSocket)>,
}

/// What answers come out of.
struct Shared {
    directory: Directory,
    forwarder: Forwarder,
}

impl Server {
    /// Listens on all addresses. Needs a tokio runtime.
    pub fn bind(options: Options, directory: Directory) -> Result<Self, ServerError> {
        if options.secure.is_none() && options.plain.is_none() {
            return Err(ServerError::Nothing);
        }
        let secure = match options.secure {
            Some(secure) => {
                Some((listen(secure.listen)?, Secure::new(&secure.trust_domain, secure.certificate)))
            }
            None => None,
        };
        let plain = options.plain.map(listen_plain).transpose()?;
        let forwarder = Forwarder::new(options.forward, options.mark);
        Ok(Self { shared: Arc::new(Shared { directory, forwarder }), secure, plain })
    }

    /// Where DNS over TLS is served, with the port that was given out where 0 was asked for.
    pub fn secure_address(&self) -> Option<SocketAddr> {
        self.secure.as_ref()?.0.local_addr().ok()
    }

    /// Where plain DNS is served.
    pub fn plain_address(&self) -> Option<SocketAddr> {
        self.plain.as_ref()?.0.local_addr().ok()
    }

    /// Serves until `shutdown` is done, then finishes the answers that are under way, 3 s at most.
    ///
    /// DNS over TLS begins with the first certificate; connections wait until then.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        if let Some((listener, secure)) = self.secure {
            tasks.spawn(secure.serve(listener, self.shared.clone(), stopped.clone()));
        }
        if let Some((listener, socket)) = self.plain {
            tasks.spawn(serve_plain(listener, self.shared.clone(), stopped.clone()));
            tasks.spawn(datagrams::serve(socket, self.shared.clone(), stopped));
        }
        shutdown.await;
        stop.send_replace(true);
        let finished = timeout(DRAIN, async { while tasks.join_next().await.is_some() {} });
        if finished.await.is_err() {
            tracing::warn!("stopped with answers still under way after {DRAIN:?}");
        }
    }
}

/// Plain DNS over TCP.
async fn serve_plain(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(MOST_PLAIN_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer, permit) = tokio::select! {
            accepted = accept(&listener, &permits) => accepted,
            // Finished ones are taken out as they come, so that the set does not grow.
            Some(_) = connections.join_next() => continue,
            () = stop(&mut stopped) => break,
        };
        let (shared, stopped) = (shared.clone(), stopped.clone());
        connections.spawn(async move {
            stream::serve(stream, peer, &shared, PLAIN_PACE, stop_of(stopped)).await;
            drop(permit);
        });
    }
    while connections.join_next().await.is_some() {}
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, IpAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            // The semaphore is never closed.
            std::future::pending::<()>().await;
            continue;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                // Only a missed latency optimization when it fails.
                let _ = stream.set_nodelay(true);
                return (stream, peer.ip().to_canonical(), permit);
            }
            Err(error) => {
                if let Some(times) = REFUSALS.count(std::time::Instant::now()) {
                    tracing::warn!(times, %error, "a connection could not be accepted");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Done when the server stops.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is a stop too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn stop_of(mut stopped: watch::Receiver<bool>) {
    stop(&mut stopped).await;
}

/// TCP and UDP on the same port.
fn listen_plain(address: SocketAddr) -> Result<(TcpListener, UdpSocket), ServerError> {
    let mut attempt = 1;
    loop {
        let listener = listen(address)?;
        let refused = |source| ServerError::Listen { address, source };
        let port = listener.local_addr().map_err(refused)?.port();
        match bind_datagrams(SocketAddr::new(address.ip(), port)) {
            Ok(socket) => return Ok((listener, socket)),
            Err(_) if address.port() == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(source) => return Err(refused(source)),
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listen = |address: SocketAddr| {
        let socket = socket(address, Type::STREAM, Protocol::TCP)?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    with_ipv4_instead(address, listen).map_err(|source| ServerError::Listen { address, source })
}

fn bind_datagrams(address: SocketAddr) -> io::Result<UdpSocket> {
    with_ipv4_instead(address, |address| {
        UdpSocket::from_std(socket(address, Type::DGRAM, Protocol::UDP)?.into())
    })
}

/// `[::]` means 0.0.0.0 on a machine without IPv6.
fn with_ipv4_instead<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(address).or_else(|error| {
        let taken =
            error.kind() == io::ErrorKind::AddrInUse || error.kind() == io::ErrorKind::PermissionDenied;
        if address.ip() == Ipv6Addr::UNSPECIFIED && !taken {
            return bind((Ipv4Addr::UNSPECIFIED, address.port()).into());
        }
        Err(error)
    })
}

fn socket(address: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let stream = kind == Type::STREAM;
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    // For UDP it would let a second server take over the port unseen.
    if stream {
        socket.set_reuse_address(true)?;
    }
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}
