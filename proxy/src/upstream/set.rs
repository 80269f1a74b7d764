//! An upstream and its current set of endpoints.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand::Rng;
use tokio::sync::Notify;

use super::load::since_epoch;
use super::{Endpoint, balance};
use crate::config::Protocol;

/// How exactly the last use is known, in nanoseconds: workers that all wrote the time for each request would
/// pass the cache line around.
const USE_NOTED_EVERY: u64 = 1_000_000_000;

/// What an upstream's owner decided about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Limit for TCP connect and TLS handshake, each.
    pub connect_timeout: Duration,
    /// Connections, all workers together.
    pub max_connections: usize,
    /// Requests that may wait for a connection.
    pub max_pending_requests: usize,
    /// Requests under way at once, all workers together.
    pub max_requests: usize,
    /// Requests after which a connection takes no more.
    pub max_requests_per_connection: u64,
    /// Age from which on a connection takes no more requests.
    pub max_connection_age: Option<Duration>,
    /// Time a connection may stay unused.
    pub idle_timeout: Duration,
    /// Time a body or an opaque connection may stand still.
    pub stream_idle_timeout: Option<Duration>,
    /// What is spoken with it.
    pub protocol: Protocol,
    /// From the end of the request to the response's headers, unless a route says otherwise.
    pub request_timeout: Option<Duration>,
}

impl Policy {
    /// Whether a connection that was opened then and has carried that many requests takes one more.
    pub(super) fn keeps_connection(&self, opened: Instant, requests: u64, now: Instant) -> bool {
        requests < self.max_requests_per_connection
            && self.max_connection_age.is_none_or(|age| now.saturating_duration_since(opened) < age)
    }
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
    /// Nanoseconds after the epoch of [`since_epoch`].
    last_used: AtomicU64,
    pub(super) connections: AtomicUsize,
    pub(super) pending: AtomicUsize,
    pub(super) connection_freed: Notify,
}

/// The endpoints of an upstream, as one answer of discovery gave them.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// The full name that answered; `None` without an answer, and where nobody was asked.
    pub name: Option<Arc<str>>,
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
            last_used: AtomicU64::new(0),
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
    /// Returns whether what was decided by the set before may be decided otherwise now.
    pub fn update(&self, mut next: EndpointSet) -> bool {
        let now = self.set.load();
        for endpoint in &mut next.endpoints {
            if let Some(known) = now.endpoints.iter().find(|known| known.is_same(endpoint)) {
                *endpoint = known.clone();
            }
        }
        let changed = !now.decides_like(&next);
        self.set.store(Arc::new(next));
        changed
    }

    /// Chooses the endpoint for one request.
    pub fn choose(&self, now: Instant, rng: &mut impl Rng) -> Option<Arc<Endpoint>> {
        self.note_use(now);
        balance::choose(&self.set.load().endpoints, now, rng).cloned()
    }

    /// The endpoint that listens at `address`; none where the address stands for the whole service.
    pub fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let set = self.set.load();
        if set.vips.contains(&address.ip()) {
            return None;
        }
        set.endpoints.iter().find(|endpoint| endpoint.address == address).cloned()
    }

    /// Remembers that it was used, to about a second.
    pub(super) fn note_use(&self, now: Instant) {
        let now = since_epoch(now);
        if now.saturating_sub(self.last_used.load(Relaxed)) >= USE_NOTED_EVERY {
            self.last_used.store(now, Relaxed);
        }
    }

    /// Greater for what was used later.
    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Relaxed)
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

impl EndpointSet {
    /// Whether nobody would decide otherwise by `next`: the same name, addresses and endpoints, in any order.
    fn decides_like(&self, next: &Self) -> bool {
        self.name == next.name
            && self.vips.len() == next.vips.len()
            && self.vips.iter().all(|vip| next.vips.contains(vip))
            && self.endpoints.len() == next.endpoints.len()
            && self.endpoints.iter().all(|now| next.endpoints.iter().any(|next| Arc::ptr_eq(now, next)))
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::super::Security;
    use super::*;

    fn set(name: Option<&str>, addresses: &[&str], vips: &[&str], security: &Security) -> EndpointSet {
        let endpoint = |address: &&str| {
            let address: SocketAddr = address.parse().unwrap();
            let server_name = ServerName::IpAddress(address.ip().into());
            Endpoint::new(address, 1, false, security.clone(), server_name)
        };
        EndpointSet {
            name: name.map(Into::into),
            endpoints: addresses.iter().map(endpoint).collect(),
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            refreshed: Some(Instant::now()),
            ..EndpointSet::default()
        }
    }

    #[test]
    fn only_another_name_address_or_security_changes_what_is_decided() {
        const ONE: &str = "10.0.0.1:80";
        const TWO: &str = "10.0.0.2:80";
        const VIP: &[&str] = &["10.96.0.1"];
        let refused = Security::Refused("a reason");
        let upstream = Upstream::new("api", Policy::default(), false);
        let steps = [
            ("the first answer", set(Some("api"), &[ONE, TWO], VIP, &Security::Plain), true),
            ("the same once more", set(Some("api"), &[ONE, TWO], VIP, &Security::Plain), false),
            ("another order", set(Some("api"), &[TWO, ONE], VIP, &Security::Plain), false),
            ("an address less", set(Some("api"), &[TWO], VIP, &Security::Plain), true),
            ("another address", set(Some("api"), &[ONE], VIP, &Security::Plain), true),
            ("other security", set(Some("api"), &[ONE], VIP, &refused), true),
            ("no VIP", set(Some("api"), &[ONE], &[], &refused), true),
            ("another owner", set(Some("db"), &[ONE], &[], &refused), true),
            ("no such name", set(None, &[], &[], &refused), true),
            ("still no such name", set(None, &[], &[], &refused), false),
        ];
        for (step, next, changed) in steps {
            assert_eq!(upstream.update(next), changed, "{step}");
        }
    }

    #[test]
    fn an_endpoint_is_found_by_its_address_and_a_vip_is_none() {
        let upstream = Upstream::new("api", Policy::default(), false);
        upstream.update(set(Some("api"), &["10.0.0.1:80", "10.96.0.1:80"], &["10.96.0.1"], &Security::Plain));
        let at = |address: &str| upstream.endpoint_at(address.parse().unwrap()).map(|found| found.address);
        assert_eq!(at("10.0.0.1:80"), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(at("10.0.0.1:81"), None);
        assert_eq!(at("10.96.0.1:80"), None);
    }
}
