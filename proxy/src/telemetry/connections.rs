//! The connections of clients that are open, for whoever asks what hangs on this proxy.
//!
//! A connection is written down when it is accepted, and what it proves to be as it proves it; a request finds nothing
//! to do here but to compare a pointer.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use outrigger_ca::SpiffeId;

use super::labels::{Direction, Tls};
use super::single::Held;

/// All open connections of clients; cheap to clone, all clones are one.
#[derive(Clone, Debug, Default)]
pub struct OpenConnections(Arc<Register>);

#[derive(Debug, Default)]
struct Register {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    direction: Direction,
    client: SocketAddr,
    opened: Instant,
    known: Mutex<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    destination: Option<SocketAddr>,
    speaks: &'static str,
    tls: Tls,
    peer: Option<SpiffeId>,
    upstream: Option<Arc<str>>,
}

/// A connection of a client; it counts as open while this lives.
#[derive(Debug)]
#[must_use = "the connection counts as open while this lives"]
pub struct OpenConnection {
    register: OpenConnections,
    number: u64,
    entry: Arc<Entry>,
    /// Where the name of the upstream lies that was noted last: nearly always the next one is the same.
    upstream: AtomicPtr<u8>,
    _held: Held,
}

/// What is known of an open connection.
#[derive(Clone, Debug)]
pub struct ConnectionSeen {
    /// The pipeline.
    pub direction: Direction,
    /// Who opened it.
    pub client: SocketAddr,
    /// Where it was to go.
    pub destination: Option<SocketAddr>,
    /// `http1`, `http2`, `tcp`, or `unknown` while it is silent.
    pub speaks: &'static str,
    /// What protects it where it comes from a peer.
    pub tls: Tls,
    /// Who the peer proved to be.
    pub peer: Option<SpiffeId>,
    /// Where its last request went.
    pub upstream: Option<Arc<str>>,
    /// When it was accepted.
    pub opened: Instant,
}

impl OpenConnections {
    /// Writes a connection down that was accepted now; `held` is its place in the gauge.
    pub fn opened(&self, held: Held, direction: Direction, client: SocketAddr) -> OpenConnection {
        let known =
            Known { destination: None, speaks: "unknown", tls: Tls::Plain, peer: None, upstream: None };
        let entry = Arc::new(Entry { direction, client, opened: Instant::now(), known: Mutex::new(known) });
        let number = self.0.next.fetch_add(1, Relaxed);
        self.lock().insert(number, entry.clone());
        OpenConnection { register: self.clone(), number, entry, upstream: AtomicPtr::default(), _held: held }
    }

    /// All of them, in no order.
    pub fn all(&self) -> Vec<ConnectionSeen> {
        let entries: Vec<Arc<Entry>> = self.lock().values().cloned().collect();
        let seen = entries.iter().map(|entry| {
            let Known { destination, speaks, tls, peer, upstream } = entry.known().clone();
            let Entry { direction, client, opened, .. } = **entry;
            ConnectionSeen { direction, client, destination, speaks, tls, peer, upstream, opened }
        });
        seen.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnection {
    /// It was to go there.
    pub fn goes_to(&self, destination: SocketAddr) {
        self.entry.known().destination = Some(destination);
    }

    /// Opaque bytes are carried to this upstream.
    pub fn carries(&self, upstream: &Arc<str>) {
        self.speaks("tcp");
        self.is_for(upstream);
    }

    /// What is spoken on it: `http1` or `http2`.
    pub fn speaks(&self, what: &'static str) {
        self.entry.known().speaks = what;
    }

    /// It came by mesh TLS, from this peer.
    pub fn is_from(&self, peer: &SpiffeId) {
        let mut known = self.entry.known();
        known.tls = Tls::Mesh;
        known.peer = Some(peer.clone());
    }

    /// What it carries goes to this upstream.
    pub fn is_for(&self, upstream: &Arc<str>) {
        // What is noted is kept, and so its address is nobody else's.
        let name = Arc::as_ptr(upstream).cast::<u8>().cast_mut();
        if self.upstream.load(Relaxed) != name {
            self.entry.known().upstream = Some(upstream.clone());
            self.upstream.store(name, Relaxed);
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.register.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn a_connection_is_listed_with_what_it_proved_to_be_until_it_ends() {
        let (metrics, all) = (Metrics::new(), OpenConnections::default());
        let gauge = metrics.connections_open.of(Direction::Inbound);
        let client = ([10, 0, 0, 5], 40_000).into();
        let open = all.opened(gauge.hold(), Direction::Inbound, client);
        let [silent] = &all.all()[..] else { panic!("one is open") };
        assert_eq!((silent.speaks, silent.tls, &silent.peer), ("unknown", Tls::Plain, &None));
        let peer = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        open.goes_to(([10, 0, 0, 7], 8080).into());
        open.speaks("http2");
        open.is_from(&peer);
        for upstream in ["workload:8080", "workload:9090"] {
            open.is_for(&upstream.into());
        }
        let [seen] = &all.all()[..] else { panic!("one is open") };
        assert_eq!((seen.speaks, seen.tls, &seen.peer), ("http2", Tls::Mesh, &Some(peer)));
        assert_eq!((seen.client, seen.destination), (client, Some(([10, 0, 0, 7], 8080).into())));
        assert_eq!(seen.upstream.as_deref(), Some("workload:9090"), "of its last request");
        drop(open);
        assert!(all.all().is_empty());
        assert_eq!(gauge.get(), 0);
    }
}
