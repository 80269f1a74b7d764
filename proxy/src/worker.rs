//! What both pipelines of a worker share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::Config;
use crate::identity::{Authorization, MeshTls};
use crate::net::{Dialler, LocalAddresses};
use crate::route::RouteTable;
use crate::telemetry::{Direction, Metrics, Recorder};
use crate::upstream::{
    Destination, DestinationError, Directory, Endpoint, EndpointSet, Member, Policy, Pools, PoolsSettings,
    SWEEP, Security, Upstream,
};

/// Answers of the directory that a worker keeps; a full cache is emptied.
const MAX_KNOWN: usize = 4096;
/// How long a destination whose server spoke first is believed to be opaque: addresses get new owners.
const OPAQUE_FOR: Duration = Duration::from_secs(600);
/// Limit for connecting to the workload. Only a full accept queue keeps it silent, and the kernel knocks again
/// after 1 s and 3 s: a burst then waits as it would without a sidecar.
const WORKLOAD_CONNECT: Duration = Duration::from_secs(5);
/// Packet mark of what the inbound side dials, where marks exempt from the redirect.
const WORKLOAD_MARK_AFTER: u32 = 1;

/// What all workers read and the control thread publishes.
pub struct Shared {
    /// The config in force, compiled.
    pub effective: ArcSwap<Effective>,
    /// The certificate in use.
    pub tls: Arc<MeshTls>,
    /// Where requests go.
    pub directory: Directory,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The pod's addresses.
    pub local: LocalAddresses,
    /// Ports that the proxy itself listens on.
    pub own_ports: Vec<u16>,
    /// Turns true when peers shall send no more requests.
    pub inbound_draining: watch::Receiver<bool>,
    /// The proxy is stopping: the workload is told to use its connections no more.
    pub stopping: Arc<AtomicBool>,
    /// Turns true when the workload is done.
    pub outbound_draining: watch::Receiver<bool>,
    /// Exempts our sockets from the redirect where uids can't.
    pub mark: Option<u32>,
    /// A request for this path panics: the test of what a panic ends.
    pub panic_path: Option<String>,
}

/// The config in force, compiled.
pub struct Effective {
    /// As it was written.
    pub config: Arc<Config>,
    /// The trust domain.
    pub trust_domain: Arc<str>,
    /// Who may do what on the inbound side.
    pub authorization: Authorization,
    /// Routes of outbound requests.
    pub routes: RouteTable,
}

impl Effective {
    /// Compiles a config.
    pub fn new(config: Arc<Config>) -> Self {
        Self {
            trust_domain: config.trust_domain().into(),
            authorization: Authorization::new(config.trust_domain(), config.inbound.allow.as_deref()),
            routes: RouteTable::new(&config.routes),
            config,
        }
    }
}

/// One worker: a thread with its own runtime, connections and caches.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Counts and logs.
    pub recorder: Rc<Recorder>,
    /// Connections to peers.
    pub peers: Pools,
    /// Connections to the workload.
    pub workload: Pools,
    /// The empty label.
    pub unnamed: Arc<str>,
    rng: RefCell<SmallRng>,
    known: RefCell<Known>,
    opaque: RefCell<HashMap<SocketAddr, Instant>>,
    ports: RefCell<HashMap<SocketAddr, WorkloadPort>>,
}

/// A port of the workload: an upstream with one endpoint.
pub type WorkloadPort = (Arc<Upstream>, Arc<Endpoint>);

/// Answers of the directory, for as long as its generation lasts.
#[derive(Default)]
struct Known {
    generation: u64,
    destinations: HashMap<SocketAddr, HashMap<Box<str>, Destination>>,
    configured: HashMap<(Arc<str>, u16), Arc<Upstream>>,
    count: usize,
}

impl Known {
    fn refresh(&mut self, generation: u64) {
        if self.generation != generation || self.count >= MAX_KNOWN {
            *self = Self { generation, ..Self::default() };
        }
    }
}

impl Worker {
    /// A worker without connections.
    pub fn new(shared: Arc<Shared>, recorder: Recorder) -> Rc<Self> {
        let recorder = Rc::new(recorder);
        let pools = |dialler| {
            Pools::new(PoolsSettings { dialler, tls: shared.tls.clone(), recorder: recorder.clone() })
        };
        let workload_mark = shared.mark.map(|mark| mark + WORKLOAD_MARK_AFTER);
        Rc::new(Self {
            peers: pools(Dialler::to_peers(shared.mark)),
            workload: pools(Dialler::to_workload(workload_mark)),
            shared,
            recorder,
            unnamed: "".into(),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            known: RefCell::default(),
            opaque: RefCell::default(),
            ports: RefCell::default(),
        })
    }

    /// Closes unused connections, for as long as the worker runs.
    pub async fn keep_swept(self: Rc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            let now = Instant::now();
            self.peers.sweep(now);
            self.workload.sweep(now);
        }
    }

    /// The config in force.
    pub fn effective(&self) -> arc_swap::Guard<Arc<Effective>> {
        self.shared.effective.load()
    }

    /// Runs `f` with this worker's random numbers.
    pub fn random<T>(&self, f: impl FnOnce(&mut SmallRng) -> T) -> T {
        f(&mut self.rng.borrow_mut())
    }

    /// Where a request for `host`, dialled at `dialled`, goes; opaque bytes have no host.
    ///
    /// # Errors
    /// Nobody knows.
    pub async fn locate(
        &self,
        host: Option<&str>,
        dialled: SocketAddr,
    ) -> Result<Destination, DestinationError> {
        let key = host.unwrap_or_default();
        let generation = self.shared.directory.generation();
        {
            let mut known = self.known.borrow_mut();
            known.refresh(generation);
            if let Some(destination) = known.destinations.get(&dialled).and_then(|hosts| hosts.get(key)) {
                return Ok(destination.clone());
            }
        }
        // Boxed: asked once a destination, and the future of every request would be as large as this one.
        let destination = Box::pin(self.shared.directory.locate(host.map(Into::into), dialled)).await?;
        let mut known = self.known.borrow_mut();
        known.refresh(generation);
        known.count += 1;
        known.destinations.entry(dialled).or_default().insert(key.into(), destination.clone());
        Ok(destination)
    }

    /// The configured upstream `name`.
    ///
    /// # Errors
    /// The config has none, or it can't be made.
    pub async fn configured(&self, name: &Arc<str>, port: u16) -> Result<Arc<Upstream>, DestinationError> {
        let generation = self.shared.directory.generation();
        let key = (name.clone(), port);
        {
            let mut known = self.known.borrow_mut();
            known.refresh(generation);
            if let Some(upstream) = known.configured.get(&key) {
                return Ok(upstream.clone());
            }
        }
        let upstream = Box::pin(self.shared.directory.configured(name.clone(), port)).await?;
        let mut known = self.known.borrow_mut();
        known.refresh(generation);
        known.count += 1;
        known.configured.insert(key, upstream.clone());
        Ok(upstream)
    }

    /// The workload's port as an upstream of one endpoint.
    pub fn workload_at(&self, address: SocketAddr) -> WorkloadPort {
        let mut ports = self.ports.borrow_mut();
        if ports.len() >= MAX_KNOWN {
            ports.clear();
        }
        ports
            .entry(address)
            .or_insert_with(|| {
                // The workload had no such limits without a sidecar.
                let policy = Policy {
                    connect_timeout: WORKLOAD_CONNECT,
                    max_connections: usize::MAX,
                    max_pending_requests: usize::MAX,
                    ..Policy::default()
                };
                let upstream = Upstream::new(format!("workload:{}", address.port()), policy, false);
                let name = ServerName::IpAddress(address.ip().into());
                let endpoint = Endpoint::new(address, false, Security::Plain, name);
                upstream.update(EndpointSet {
                    members: vec![Member::new(endpoint.clone())],
                    source: "workload",
                    ..EndpointSet::default()
                });
                (Arc::new(upstream), endpoint)
            })
            .clone()
    }

    /// Panics if the test of what a panic ends says so.
    pub fn panic_if_told(&self, path: &str) {
        if let Some(told) = &self.shared.panic_path {
            assert!(told != path, "panic on {path}, as --panic-path says");
        }
    }

    /// Whether a server spoke first at this destination.
    pub fn is_remembered_opaque(&self, destination: SocketAddr) -> bool {
        self.opaque.borrow().get(&destination).is_some_and(|since| since.elapsed() < OPAQUE_FOR)
    }

    /// A server spoke first there.
    pub fn remember_opaque(&self, destination: SocketAddr) {
        let mut opaque = self.opaque.borrow_mut();
        if opaque.len() >= MAX_KNOWN {
            opaque.clear();
        }
        opaque.insert(destination, Instant::now());
    }

    /// Counts a connection that was refused, and resets it: an opaque caller gets a reset, never a hang.
    pub fn refuse(&self, stream: TcpStream, direction: Direction, reason: &'static str) {
        self.shared.metrics.connections_refused.inc([direction.as_str(), reason]);
        reset(&stream);
    }
}

/// Has the connection end with a reset when it is dropped.
pub fn reset(stream: &TcpStream) {
    // Fails only when the connection is gone already.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
