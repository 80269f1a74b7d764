//! `outrigger ca`: certificates and the trust bundle over TLS.
//!
//! This file binds, accepts and stops; `service` answers requests, `metrics` counts them.

mod metrics;
mod service;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, AuthorityError, Lifetimes, Signer, Storage};
use crate::tls_fault::{Worded, handshake, words};
use crate::tokens::{TokenOptions, Tokens, TokensError};
use crate::verify::provider;
use crate::{Certificate, LogPace};
use metrics::Metrics;
use service::Service;

/// A client that connects and says nothing is gone after this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Clients ask rarely, once a connection; this bounds what a slow or hostile one can hold.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(60);
/// After SIGTERM, what is in flight gets this long.
const DRAIN: Duration = Duration::from_secs(10);
/// More wait in the accept queue. At 50 KiB a connection this bounds memory to 50 MiB.
const MOST_CONNECTIONS: usize = 1024;
/// How often the files are looked at when nobody asks for anything.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Out of file descriptors, accepting fails at once and again; a pause keeps the CPU for what frees them.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Each pause would be a line.
static REFUSALS: LogPace = LogPace::new();

/// How a CA is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to listen. An unspecified IPv6 address takes IPv4 too, and means 0.0.0.0 without IPv6.
    pub listen: SocketAddr,
    pub storage: Storage,
    pub trust_domain: String,
    /// What the CA's own certificate is called beside its SPIFFE ID, for clients that verify the name that they dial:
    /// host names, lower case.
    pub dns_names: Vec<String>,
    pub lifetimes: Lifetimes,
    pub tokens: TokenOptions,
    /// Where to serve `/metrics` in plain text; nowhere unless given.
    pub metrics: Option<SocketAddr>,
}

/// Why a CA does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("`{0}` is no trust domain: use a-z, 0-9, `.`, `-`, `_`")]
    TrustDomain(String),
    #[error("a certificate lifetime of {0:?} is too short: give at least 10 s")]
    Lifetime(Duration),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("the CA's own certificate could not be made: {0}")]
    Own(String),
    #[error("the address {address} can't be listened on: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("TLS can't be set up: {}", words(.0))]
    Tls(#[from] rustls::Error),
    #[error("metrics can't be set up: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// A CA that listens.
pub struct Server {
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    own: Arc<OwnCertificate>,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
}

/// What requests need.
struct Shared {
    authority: Authority,
    tokens: Tokens,
    lifetimes: Lifetimes,
    metrics: Metrics,
}

impl Server {
    /// Opens keys and tokens, and listens. Needs a tokio runtime.
    pub async fn bind(options: Options) -> Result<Self, ServerError> {
        let lifetimes = options.lifetimes;
        if !crate::spiffe::valid_trust_domain(&options.trust_domain) {
            return Err(ServerError::TrustDomain(options.trust_domain));
        }
        if lifetimes.certificate < Duration::from_secs(10) {
            return Err(ServerError::Lifetime(lifetimes.certificate));
        }
        let tokens = Tokens::open(&options.tokens, &options.trust_domain)?;
        let now = SystemTime::now();
        let authority = Authority::open(&options.storage, &options.trust_domain, lifetimes, now)?;
        let own =
            OwnCertificate::new(authority.snapshot(now).signer.clone(), options.dns_names, lifetimes, now)?;
        let own = Arc::new(own);
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(own.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Every connection is a full handshake, so that a rotated certificate shows at once.
        config.send_tls13_tickets = 0;
        let metrics_listener = match options.metrics {
            Some(address) => Some(listen(address)?),
            None => None,
        };
        Ok(Self {
            listener: listen(options.listen)?,
            metrics_listener,
            own,
            tls: TlsAcceptor::from(Arc::new(config)),
            shared: Arc::new(Shared { authority, tokens, lifetimes, metrics: Metrics::new()? }),
        })
    }

    /// Where it listens, with the port that was given out where 0 was asked for.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` is done, then finishes what is in flight, 10 s at most.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (stop, stopped) = watch::channel(false);
        let mut connections = JoinSet::new();
        let permits = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        if let Some(listener) = self.metrics_listener {
            tokio::spawn(metrics::serve(listener, self.shared.clone(), stopped.clone()));
        }
        let housekeeping = tokio::spawn(keep_house(self.own.clone(), self.shared.clone()));
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = accept(&self.listener, &permits) => accepted,
                // Finished ones are taken out as they come, so that the set does not grow.
                Some(_) = connections.join_next() => continue,
            };
            let Some((stream, permit)) = accepted else {
                continue;
            };
            let (tls, shared, stopped) = (self.tls.clone(), self.shared.clone(), stopped.clone());
            connections.spawn(async move {
                serve_connection(stream, tls, shared, stopped).await;
                drop(permit);
            });
        }
        drop(self.listener);
        housekeeping.abort();
        stop.send_replace(true);
        let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("stopped with requests still in flight after {DRAIN:?}");
        }
    }
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            if let Some(times) = REFUSALS.count(std::time::Instant::now()) {
                tracing::warn!(times, %error, "a connection could not be accepted");
            }
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let peer = stream.peer_addr().ok();
    // Only a missed latency optimization when it fails.
    let _ = stream.set_nodelay(true);
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake(tls.accept(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            shared.metrics.refused("handshake");
            return tracing::debug!(?peer, %error, "TLS handshake failed");
        }
        Err(_) => {
            shared.metrics.refused("handshake");
            return tracing::debug!(?peer, "TLS handshake took too long");
        }
    };
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT).max_buf_size(64 << 10);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(16).max_header_list_size(64 << 10);
    let service = Service::new(shared, peer);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(Worded(stream)), service));
    let end = Instant::now() + CONNECTION_LIFETIME;
    tokio::select! {
        result = &mut connection => return note_end(peer, result),
        () = sleep_until(end) => {}
        _ = stopped.wait_for(|stopped| *stopped) => {}
    }
    connection.as_mut().graceful_shutdown();
    if let Ok(result) = timeout(DRAIN, connection).await {
        note_end(peer, result);
    }
}

fn note_end(peer: Option<SocketAddr>, result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!(?peer, error, "a connection ended badly");
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    let attempt = |address: SocketAddr| {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM.cloexec().nonblocking(),
            Some(socket2::Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        if address.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    let result = attempt(address).or_else(|error| {
        let no_ipv6 = matches!(
            error.raw_os_error().map(nix::errno::Errno::from_raw),
            Some(nix::errno::Errno::EAFNOSUPPORT | nix::errno::Errno::EADDRNOTAVAIL)
        );
        if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6 {
            return attempt((Ipv4Addr::UNSPECIFIED, address.port()).into());
        }
        Err(error)
    });
    result.map_err(|source| ServerError::Listen { address, source })
}

/// The certificate that the CA presents, renewed at half of its life and when the issuer changes.
struct OwnCertificate {
    current: ArcSwap<Own>,
    dns_names: Vec<String>,
    lifetimes: Lifetimes,
}

struct Own {
    certificate: Certificate,
    signer: Arc<Signer>,
    renew_at: SystemTime,
}

impl Own {
    fn new(
        signer: Arc<Signer>,
        dns_names: &[String],
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, ServerError> {
        let make = |dns_names| {
            let made = signer.own_certificate(dns_names, lifetimes.certificate, now);
            made.map_err(|error| ServerError::Own(error.to_string()))
        };
        let mut certificate = make(dns_names)?;
        // An issuer that was given may be constrained to other names; the mesh's own clients need none.
        if let Err(error) = signer.verify(&certificate, now) {
            tracing::warn!(%error, "the CA's own certificate goes without DNS names: give others with --dns-name");
            certificate = make(&[])?;
        }
        let left = certificate.not_after().duration_since(now).unwrap_or_default();
        Ok(Self { certificate, signer, renew_at: now + left / 2 })
    }
}

impl OwnCertificate {
    fn new(
        signer: Arc<Signer>,
        dns_names: Vec<String>,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, ServerError> {
        let current = ArcSwap::from_pointee(Own::new(signer, &dns_names, lifetimes, now)?);
        Ok(Self { current, dns_names, lifetimes })
    }

    fn refresh(&self, signer: &Arc<Signer>, now: SystemTime) {
        let current = self.current.load();
        let fresh = now < current.renew_at
            && current.signer.same_key(signer)
            && current.certificate.not_before() <= now;
        if fresh {
            return;
        }
        match Own::new(signer.clone(), &self.dns_names, self.lifetimes, now) {
            Ok(own) => self.current.store(Arc::new(own)),
            Err(error) => tracing::error!(%error, "going on with the CA's old certificate"),
        }
    }
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.current.load().certificate.fmt(f)
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().certificate.certified_key())
    }
}

async fn keep_house(own: Arc<OwnCertificate>, shared: Arc<Shared>) {
    loop {
        let now = SystemTime::now();
        let snapshot = shared.authority.snapshot(now);
        own.refresh(&snapshot.signer, now);
        shared.metrics.roots(&snapshot.roots);
        if let Err(error) = shared.authority.prune(now) {
            tracing::warn!(%error, "old roots could not be removed");
        }
        sleep(HOUSEKEEPING).await;
    }
}
