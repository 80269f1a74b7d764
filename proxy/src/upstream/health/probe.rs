//! Asks one endpoint once, over connections like those that requests would have.

use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderValue, Request, Response, Uri, Version};
use thiserror::Error;

use super::schedule::Outcome;
use super::{grpc, http as http_check, tcp};
use crate::config::{self, HealthCheck, is_not_redirected};
use crate::identity::HandshakeError;
use crate::net::{ORIGINAL_VERSION, version_to_mesh};
use crate::telemetry::Metrics;
use crate::upstream::{
    ConnectError, Endpoint, EndpointPool, Pools, PoolsSettings, Security, StreamLease, Upstream,
};

/// What checks say who they are.
pub(super) const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("outrigger/", env!("CARGO_PKG_VERSION")));

/// What an endpoint is asked.
#[derive(Debug)]
pub(super) enum Question {
    Http(http_check::Get),
    Tcp(tcp::Connect),
    Grpc(grpc::Check),
}

impl Question {
    /// `None` if the check states none of them, which its rules refuse.
    pub(super) fn of(check: &HealthCheck, upstream: &config::Upstream) -> Option<Self> {
        let host = upstream.hosts.first().map(String::as_str);
        if let Some(http) = &check.http {
            return Some(Self::Http(http_check::Get::new(http, host, upstream.protocol)));
        }
        if let Some(grpc) = &check.grpc {
            return Some(Self::Grpc(grpc::Check::new(grpc, host)));
        }
        check.tcp.as_ref().map(|_| Self::Tcp(tcp::Connect::within(check.timeout())))
    }

    /// In a few words.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Http(get) => &get.name,
            Self::Tcp(_) => "connect",
            Self::Grpc(_) => "grpc health",
        }
    }
}

/// Where a question goes.
pub(super) struct Target {
    /// Not the one that requests use: it has the policy of checks.
    pub(super) upstream: Arc<Upstream>,
    pub(super) endpoint: Arc<Endpoint>,
    /// The endpoint is one for checks alone.
    is_apart: bool,
}

impl Target {
    /// `port` is another one of the same address.
    pub(super) fn new(upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>, port: Option<u16>) -> Self {
        let (endpoint, is_apart) = match port.filter(|port| *port != endpoint.address.port()) {
            None => (endpoint.clone(), false),
            Some(port) => (at_port(endpoint, port), true),
        };
        Self { upstream: upstream.clone(), endpoint, is_apart }
    }

    /// The authority of requests that nobody stated one for.
    pub(super) fn authority(&self) -> String {
        self.endpoint.address.to_string()
    }

    /// The whole URI, as HTTP/2 has it.
    ///
    /// # Errors
    /// It can't be one.
    pub(super) fn uri(&self, authority: &str, path: &str) -> Result<Uri, http::Error> {
        let scheme = if matches!(self.endpoint.security, Security::Server { .. }) { "https" } else { "http" };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
    }
}

/// The same peer at another port of its address.
fn at_port(endpoint: &Endpoint, port: u16) -> Arc<Endpoint> {
    let mut address = endpoint.address;
    address.set_port(port);
    let security = match &endpoint.security {
        // Its sidecar lets this port alone: nobody there speaks mesh TLS, whoever the peer is.
        Security::Mesh(_) | Security::Try(_) if is_not_redirected(port) => Security::Plain,
        security => security.clone(),
    };
    Endpoint::new(address, endpoint.opaque, security, endpoint.server_name.clone())
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.is_apart {
            // Nobody else tells the pools.
            self.endpoint.leave();
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("lost before the answer: {0}")]
    Http2(#[from] h2::Error),
    #[error("lost before the answer: {0}")]
    Http1(#[from] hyper::Error),
    #[error("can't be asked: {0}")]
    Request(#[from] http::Error),
    /// The answer is none.
    #[error("{0}")]
    Nonsense(String),
}

/// Asks.
pub(super) struct Prober {
    pub(super) pools: Pools,
    metrics: Arc<Metrics>,
}

impl Prober {
    pub(super) fn new(settings: PoolsSettings) -> Self {
        Self { metrics: settings.recorder.metrics().clone(), pools: Pools::new(settings) }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Asks once; the caller limits the time.
    pub(super) async fn ask(&self, target: &Target, question: &Question) -> Outcome {
        let mut tries_left = 2;
        loop {
            let pool = self.pools.of(&target.upstream, &target.endpoint);
            let answer = match question {
                Question::Http(get) => get.ask(&pool, target).await,
                Question::Tcp(connect) => connect.ask(&pool, target).await,
                Question::Grpc(check) => check.ask(&pool, target).await,
            };
            match answer {
                Ok(outcome) => return outcome,
                // Permissive mode found no sidecar, or a connection that was kept from earlier has ended, which says
                // nothing about the endpoint.
                Err(
                    ProbeError::Connect(ConnectError::NotMeshed(_))
                    | ProbeError::Http1(_)
                    | ProbeError::Http2(_),
                ) if tries_left > 0 => tries_left -= 1,
                Err(ProbeError::Connect(ConnectError::Handshake {
                    error: error @ HandshakeError::NotCertified,
                    ..
                })) => return Outcome::NotAsked(error.to_string()),
                Err(error) => return Outcome::Failed(error.to_string()),
            }
        }
    }
}

/// Sends a request on an HTTP/2 connection. `version` is what it shall be when it comes out of the mesh.
pub(super) async fn send_multiplexed(
    pool: &std::rc::Rc<EndpointPool>,
    target: &Target,
    mut head: Request<()>,
    version: Version,
    content: Option<Bytes>,
) -> Result<(Response<RecvStream>, StreamLease), ProbeError> {
    if pool.is_meshed() {
        head.headers_mut().insert(ORIGINAL_VERSION, version_to_mesh(version));
    }
    let mut lease = pool.stream(&target.upstream).await?;
    let unanswered = Unanswered(Some(pool));
    let (response, mut sender) = lease.send(head, content.is_none())?;
    if let Some(content) = content {
        sender.send_data(content, true)?;
    }
    let response = response.await?;
    unanswered.is_answered();
    Ok((response, lease))
}

/// A request without an answer: its connection may be what does not answer, so the next check gets another one.
struct Unanswered<'a>(Option<&'a EndpointPool>);

impl Unanswered<'_> {
    fn is_answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0 {
            pool.multiplexed.retire();
        }
    }
}
