//! Opaque bytes, carried both ways; both pipelines use it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use outrigger_ca::SpiffeId;
use outrigger_ca::tls_fault::Worded;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep_until;

use crate::http::LocalResponse;
use crate::net::{ClientAddress, Copied, Forgery, Guarded, Prefixed, copy_both_ways, readable};
use crate::telemetry::{Direction, Recorder, TcpLabels, TcpRecord, Tls};
use crate::upstream::{
    Attempt, ConnectError, ConnectionPlace, DestinationError, Endpoint, EndpointId, Open, Outcome, Pools,
    Transport, Upstream, log_change,
};

/// Time for the first request on a connection that nothing but requests can go by: as long as strict ports wait.
pub const WAIT_FOR_REQUEST: Duration = Duration::from_secs(10);

/// Why opaque bytes are not carried.
#[derive(Debug, Error)]
pub enum OpaqueError {
    /// Nobody knows where they go.
    #[error(transparent)]
    Destination(#[from] DestinationError),
    /// The upstream has no endpoint.
    #[error("upstream {0} has no endpoint")]
    NoEndpoint(Arc<str>),
    /// No connection to the endpoint.
    #[error("upstream {0}: {1}")]
    Connect(Arc<str>, ConnectError),
    /// The upstream's circuit breaker is open.
    #[error("upstream {0}: {1}")]
    BreakerOpen(Arc<str>, Open),
}

impl OpaqueError {
    /// Whether waiting for requests is of no use: the endpoint does not answer, or a limit is reached, of the
    /// upstream or of open files. Other errors are about bytes without a name; requests may have one.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Connect(_, ConnectError::Dial(_) | ConnectError::Full { .. }))
    }

    /// The label `reason`, and what the access log says.
    pub fn reason(&self) -> (&'static str, LocalResponse) {
        match self {
            Self::Destination(error) => ("destination_unknown", LocalResponse::destination(error)),
            Self::NoEndpoint(_) => {
                ("no_endpoint", LocalResponse::new(crate::http::ProxyError::NO_ENDPOINT, self.to_string()))
            }
            Self::Connect(upstream, error) => ("connect_failed", LocalResponse::connect(upstream, error)),
            Self::BreakerOpen(upstream, open) => {
                ("breaker_open", LocalResponse::breaker_open(upstream, *open))
            }
        }
    }
}

/// The way out of opaque bytes: an open connection to an endpoint.
pub struct Way {
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    transport: Transport,
    expires: Option<Instant>,
    peer: Option<SpiffeId>,
    tls: Tls,
    /// What the server said before the client spoke.
    first_bytes: BytesMut,
    /// The server was reset before the client spoke. Its socket tells that once, so it is kept.
    broken: bool,
    _place: ConnectionPlace,
}

/// A connection of a client.
pub trait ClientStream: AsyncRead + AsyncWrite + Unpin {
    /// The socket below, to be reset when the other side was.
    fn socket(&self) -> &TcpStream;
}

impl ClientStream for TcpStream {
    fn socket(&self) -> &TcpStream {
        self
    }
}

impl<S: ClientStream> ClientStream for Prefixed<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().socket()
    }
}

impl<S: ClientStream> ClientStream for Guarded<S> {
    fn socket(&self) -> &TcpStream {
        self.get_ref().socket()
    }
}

impl<S: ClientStream> ClientStream for Worded<tokio_rustls::server::TlsStream<S>> {
    fn socket(&self) -> &TcpStream {
        self.0.get_ref().0.socket()
    }
}

/// Who carries, for whom.
pub struct Carrying<'a> {
    /// Counts and logs.
    pub recorder: &'a Recorder,
    /// The pipeline.
    pub direction: Direction,
    /// The client.
    pub client: ClientAddress,
    /// When the connection was accepted.
    pub accepted: Instant,
    /// The client's verified identity and the end of its certificate, on the inbound side.
    pub client_peer: Option<(&'a SpiffeId, Instant)>,
}

impl Way {
    /// Opens a connection to `endpoint`.
    ///
    /// # Errors
    /// What kept it from opening.
    pub async fn open(
        pools: &Pools,
        upstream: &Arc<Upstream>,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Self, OpaqueError> {
        let mut pool = pools.of(upstream, endpoint);
        let mut opened = pool.opaque(upstream).await;
        if let Err(ConnectError::NotMeshed(_)) = opened {
            // Permissive mode found no sidecar there.
            pool = pools.of(upstream, endpoint);
            opened = pool.opaque(upstream).await;
        }
        let (transport, peer, place) =
            opened.map_err(|error| OpaqueError::Connect(upstream.name.clone(), error))?;
        Ok(Self {
            upstream: upstream.clone(),
            endpoint: endpoint.clone(),
            tls: match &peer {
                Some(_) => Tls::Mesh,
                None if pool.is_server_tls() => Tls::Server,
                None => Tls::Plain,
            },
            expires: peer.as_ref().map(|peer| peer.expires),
            peer: peer.map(|peer| peer.id),
            transport,
            first_bytes: BytesMut::new(),
            broken: false,
            _place: place,
        })
    }

    /// Waits until one side speaks or ends; whether that was the server. `None` when the client is gone.
    pub async fn server_speaks_first(&mut self, client: &TcpStream) -> Option<bool> {
        tokio::select! {
            biased;
            found = readable(client) => found.ok().map(|()| false),
            read = self.transport.read_buf(&mut self.first_bytes) => {
                self.broken = read.is_err();
                Some(true)
            }
        }
    }

    /// As [`Self::server_speaks_first`], for a client whose first bytes are read into `first_bytes`.
    pub async fn server_speaks_before<C: ClientStream>(
        &mut self,
        client: &mut C,
        first_bytes: &mut BytesMut,
    ) -> Option<bool> {
        tokio::select! {
            biased;
            read = client.read_buf(first_bytes) => read.ok().map(|_| false),
            read = self.transport.read_buf(&mut self.first_bytes) => {
                self.broken = read.is_err();
                Some(true)
            }
        }
    }

    /// The name of the upstream that it leads to.
    pub fn upstream_name(&self) -> &Arc<str> {
        &self.upstream.name
    }

    /// Whether the server has spoken, or ended, before the client did.
    pub fn server_has_spoken(&self) -> bool {
        self.broken || !self.first_bytes.is_empty()
    }

    /// Whether what the server said first may be how it greets a client that is about to send requests: HTTP/2's
    /// SETTINGS, or a response.
    pub fn server_may_await_requests(&self) -> bool {
        let is_settings = matches!(&self.first_bytes[..], [_, _, _, 4, _, 0, 0, 0, 0, ..]);
        is_settings || self.first_bytes.starts_with(b"HTTP/")
    }

    /// Whether the server has said something that is not HTTP: servers answer `408` to a client that
    /// opened a connection and had nothing to say yet.
    pub fn server_spoke_opaquely(&self) -> bool {
        !self.first_bytes.is_empty() && !self.first_bytes.starts_with(b"HTTP/")
    }

    /// Carries bytes until both sides have ended, or either was reset, or a certificate ends. Whether reading the
    /// client's ended with [`Forgery`].
    pub async fn carry<C: ClientStream>(self, carrying: &Carrying<'_>, mut client: C) -> bool {
        let client_id = carrying.client_peer.map(|(id, _)| id);
        let labels = TcpLabels {
            direction: carrying.direction,
            upstream: &self.upstream.name,
            tls: if client_id.is_some() { Tls::Mesh } else { self.tls },
            peer: client_id.or(self.peer.as_ref()),
        };
        let open = carrying.recorder.tcp_opened(&labels);
        let expires =
            [self.expires, carrying.client_peer.map(|(_, expires)| expires)].into_iter().flatten().min();
        let has_spoken = !self.first_bytes.is_empty();
        let mut server = Prefixed::new(self.first_bytes, self.transport);
        let idle_timeout = self.upstream.policy.stream_idle_timeout;
        let mut copied = Copied::default();
        let mut forged = false;
        let reason = tokio::select! {
            biased;
            () = std::future::ready(()), if self.broken => "reset",
            result = copy_both_ways(&mut client, &mut server, &mut copied, idle_timeout) => match result {
                Ok(()) => "end",
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => "idle_timeout",
                Err(error) => {
                    forged = Forgery::is(&error);
                    "reset"
                }
            },
            () = certificate_ends(expires) => "certificate_expired",
        };
        if self.peer.is_some() {
            // That the peer's sidecar let us in says nothing of its workload, where it resets what can't go on.
            let has_spoken = has_spoken || copied.sent > 0;
            let attempt = match reason {
                "reset" if !has_spoken && (self.broken || copied.server_failed) => Attempt::Failed,
                "reset" if !has_spoken => Attempt::Abandoned,
                _ => Attempt::Answered,
            };
            let now = Instant::now();
            if attempt == Attempt::Failed {
                self.endpoint.note_error(|| "it reset the connection before a byte".into(), now);
            }
            self.upstream.attempt_ended(&self.endpoint, attempt, now);
        }
        if reason != "end" {
            crate::worker::reset(client.socket());
            crate::worker::reset(server.get_ref().socket());
        }
        carrying.recorder.tcp_closed(
            open,
            &TcpRecord {
                labels,
                reason,
                duration: carrying.accepted.elapsed(),
                received_bytes: copied.received,
                sent_bytes: copied.sent,
                endpoint: Some(self.endpoint.address),
                client: carrying.client.0,
                proxy_status: None,
            },
        );
        forged
    }
}

impl Carrying<'_> {
    /// Counts and logs a connection that is not carried.
    pub fn refused(&self, upstream: &Arc<str>, error: &OpaqueError) {
        let (reason, response) = error.reason();
        let client_id = self.client_peer.map(|(id, _)| id);
        let labels = TcpLabels {
            direction: self.direction,
            upstream,
            tls: if client_id.is_some() { Tls::Mesh } else { Tls::Plain },
            peer: client_id,
        };
        let open = self.recorder.tcp_opened(&labels);
        self.recorder.tcp_closed(
            open,
            &TcpRecord {
                labels,
                reason,
                duration: self.accepted.elapsed(),
                received_bytes: 0,
                sent_bytes: 0,
                endpoint: None,
                client: self.client.0,
                proxy_status: Some(&response.proxy_status()),
            },
        );
    }
}

/// Opens a way to an endpoint that `choose` gives, told which ones were tried; another one is tried where one does not
/// answer, as often as the upstream's retries and their budget allow. How it went counts for endpoint and breaker.
///
/// # Errors
/// What kept the last one from opening.
pub async fn open_way(
    pools: &Pools,
    upstream: &Arc<Upstream>,
    choose: impl Fn(&[EndpointId]) -> Option<Arc<Endpoint>>,
) -> Result<Box<Way>, OpaqueError> {
    let pass = upstream
        .breaker
        .try_pass(Instant::now())
        .map_err(|open| OpaqueError::BreakerOpen(upstream.name.clone(), open))?;
    upstream.retry_budget.note_request(Instant::now());
    let mut tried = Vec::new();
    let mut last = OpaqueError::NoEndpoint(upstream.name.clone());
    let retries =
        upstream.set().retry.as_ref().map_or(upstream.policy.retry.attempts(), |retry| retry.attempts());
    for _ in 0..=retries {
        let Some(endpoint) = choose(&tried).filter(|endpoint| !tried.contains(&endpoint.id)) else { break };
        if !tried.is_empty() && !upstream.retry_budget.try_retry(Instant::now()) {
            break;
        }
        tried.push(endpoint.id);
        let opened = Way::open(pools, upstream, &endpoint).await;
        let now = Instant::now();
        match opened {
            Ok(way) => {
                if way.peer.is_none() {
                    upstream.attempt_ended(&endpoint, Attempt::Answered, now);
                }
                log_change(upstream, pass.ended(Outcome::Success, None, 0, now));
                return Ok(Box::new(way));
            }
            Err(error) => {
                if matches!(&error, OpaqueError::Connect(_, error) if error.is_ours()) {
                    return Err(error);
                }
                endpoint.note_error(|| error.to_string(), now);
                upstream.attempt_ended(&endpoint, Attempt::ConnectFailed, now);
                last = error;
            }
        }
    }
    if !tried.is_empty() {
        let now = Instant::now();
        log_change(upstream, pass.ended(Outcome::Failure, tried, upstream.available(), now));
    }
    Err(last)
}

async fn certificate_ends(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::net::DialError;

    #[test]
    fn limits_and_endpoints_that_do_not_answer_are_final_and_what_a_name_may_mend_is_not() {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let full = ConnectError::Full { upstream: "api".into(), limit: 1, what: "connections" };
        let dial = |error| ConnectError::Dial(error);
        let kind = std::io::ErrorKind::Other;
        for (error, is_final) in [
            (full, true),
            (dial(DialError::Refused(address)), true),
            (dial(DialError::Exhausted(address, kind)), true),
            (ConnectError::Refused(address, "no identity"), false),
            (ConnectError::NotMeshed(address), false),
        ] {
            let text = error.to_string();
            assert_eq!(OpaqueError::Connect("api".into(), error).is_final(), is_final, "{text}");
        }
        assert!(!OpaqueError::NoEndpoint("api".into()).is_final());
        assert!(!OpaqueError::Destination(DestinationError::Overload).is_final());
    }
}
