//! An upstream and its current set of endpoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand::Rng;
use tokio::sync::Notify;

use super::{Endpoint, balance};
use crate::config::Protocol;

/// What an upstream's owner decided about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Limit for TCP connect and TLS handshake, each.
    pub connect_timeout: Duration,
    /// Connections, all workers together.
    pub max_connections: usize,
    /// Requests that may wait for a connection.
    pub max_pending_requests: usize,
    /// Time a connection may stay unused.
    pub idle_timeout: Duration,
    /// What is spoken with it.
    pub protocol: Protocol,
    /// From the end of the request to the response's headers, unless a route says otherwise.
    pub request_timeout: Option<Duration>,
}

/// A named service that requests are sent to.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in metrics, logs and on the admin port.
    pub name: Arc<str>,
    /// Its policy.
    pub policy: Policy,
    /// Requests that name it may go there whatever address was dialled.
    pub any_destination: bool,
    set: ArcSwap<EndpointSet>,
    pub(super) connections: AtomicUsize,
    pub(super) pending: AtomicUsize,
    pub(super) connection_freed: Notify,
}

/// The endpoints of an upstream, as one answer of discovery gave them.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Further addresses that stand for the service: its VIPs.
    pub vips: Vec<IpAddr>,
    /// Where the answer came from: `hosts`, `mesh`, `dns`, `static`.
    pub source: &'static str,
    /// When the answer came.
    pub refreshed: Option<Instant>,
    /// The last lookup's failure, when it failed.
    pub error: Option<Arc<str>>,
    /// The request timeout that the service's owner declared.
    pub request_timeout: Option<Duration>,
}

impl Upstream {
    /// An upstream without endpoints yet.
    pub fn new(name: impl Into<Arc<str>>, policy: Policy, any_destination: bool) -> Self {
        Self {
            name: name.into(),
            policy,
            any_destination,
            set: ArcSwap::default(),
            connections: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            connection_freed: Notify::new(),
        }
    }

    /// The endpoints now.
    pub fn set(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.set.load()
    }

    /// Puts a new answer in place; endpoints that stay the same keep their connections and averages.
    pub fn update(&self, mut next: EndpointSet) {
        let now = self.set.load();
        for endpoint in &mut next.endpoints {
            if let Some(known) = now.endpoints.iter().find(|known| known.is_same(endpoint)) {
                *endpoint = known.clone();
            }
        }
        self.set.store(Arc::new(next));
    }

    /// Chooses the endpoint for one request.
    pub fn choose(&self, now: Instant, rng: &mut impl Rng) -> Option<Arc<Endpoint>> {
        balance::choose(&self.set.load().endpoints, now, rng).cloned()
    }

    /// Whether `address` is one of the endpoints or stands for the service.
    pub fn holds(&self, address: SocketAddr) -> bool {
        let set = self.set.load();
        set.vips.contains(&address.ip()) || set.endpoints.iter().any(|e| e.address.ip() == address.ip())
    }

    /// Whether `address`, port included, is one of the endpoints, or its address stands for the service.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let set = self.set.load();
        set.vips.contains(&address.ip()) || set.endpoints.iter().any(|e| e.address == address)
    }

    /// Connections open, all workers together.
    pub fn open_connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Requests waiting for a connection.
    pub fn pending_requests(&self) -> usize {
        self.pending.load(Relaxed)
    }
}
