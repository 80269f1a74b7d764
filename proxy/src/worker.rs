//! What both pipelines of a worker share.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::Request;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::{self, Config};
use crate::filters::Mirrors;
use crate::http::{Fallback, Recording};
use crate::identity::{Authorization, MeshTls};
use crate::net::{Body, Dialler, LocalAddresses};
use crate::route::RouteTable;
use crate::telemetry::trace::{Environment, Spans, Tracing, Trust};
use crate::telemetry::{Direction, Failures, Metrics, OpenConnections, Recorder, Tap};
use crate::upstream::{Destination, DestinationError, Directory, Pools, PoolsSettings, SWEEP, Upstream};
use crate::workload::{Workload, WorkloadPort};

/// Answers of the directory that a worker keeps; a full cache is emptied.
const MAX_KNOWN: usize = 4096;
/// How long a destination whose server spoke first is believed to be opaque: addresses get new owners.
const OPAQUE_FOR: Duration = Duration::from_secs(600);
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
    /// Shows requests to those who look on.
    pub tap: Tap,
    /// What failed last.
    pub failures: Arc<Failures>,
    /// The connections of clients that are open.
    pub connections: OpenConnections,
    /// Where the spans of traced requests go.
    pub spans: Spans,
    /// The pod's addresses.
    pub local: LocalAddresses,
    /// Ports that the proxy itself listens on.
    pub own_ports: Vec<u16>,
    /// Turns true when peers shall send no more requests.
    pub inbound_draining: watch::Receiver<bool>,
    /// When the workload was last told that retries are exhausted.
    pub exhausted: Moment,
    /// The proxy is stopping: the workload is told to use its connections no more.
    pub stopping: Arc<AtomicBool>,
    /// Turns true when the workload is done.
    pub outbound_draining: watch::Receiver<bool>,
    /// Exempts our sockets from the redirect where uids can't.
    pub mark: Option<u32>,
    /// A request for this path panics: the test of what a panic ends.
    pub panic_path: Option<String>,
}

/// A moment that all workers share, or none yet.
#[derive(Debug)]
pub struct Moment {
    start: Instant,
    /// Nanoseconds after `start`; 0 for none.
    nanoseconds: AtomicU64,
}

impl Moment {
    /// None yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), nanoseconds: AtomicU64::new(0) }
    }

    fn nanoseconds_at(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.start).as_nanos()).unwrap_or(u64::MAX)
    }

    /// It is this one now.
    pub fn set(&self, moment: Instant) {
        self.nanoseconds.store(self.nanoseconds_at(moment).max(1), Relaxed);
    }

    /// Whether there is one that is not before `other`.
    pub fn is_after(&self, other: Instant) -> bool {
        let nanoseconds = self.nanoseconds.load(Relaxed);
        nanoseconds != 0 && nanoseconds >= self.nanoseconds_at(other)
    }
}

impl Default for Moment {
    fn default() -> Self {
        Self::new()
    }
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
    /// What is done when an upstream fails, by its name.
    pub fallbacks: HashMap<String, Fallback>,
    /// Some upstream takes opaque bytes, so that its connections must be told from others before they are read.
    pub has_opaque_upstreams: bool,
    /// The workload's ports.
    pub workload: Arc<Workload>,
    /// How requests are traced, if they are.
    pub tracing: Option<Tracing>,
}

impl Effective {
    /// Compiles a config.
    pub fn new(config: Arc<Config>) -> Self {
        Self::make(config, None)
    }

    /// Compiles a config that takes this one's place: what lasts is handed on.
    pub fn followed_by(&self, config: Arc<Config>) -> Self {
        Self::make(config, Some(self))
    }

    fn make(config: Arc<Config>, before: Option<&Self>) -> Self {
        let fallback = |(name, upstream): (&String, &config::Upstream)| {
            let before = before.and_then(|before| before.fallbacks.get(name));
            Some((name.clone(), Fallback::new(upstream.fallback.as_ref()?, before)?))
        };
        Self {
            trust_domain: config.trust_domain().into(),
            authorization: Authorization::new(config.trust_domain(), config.inbound.allow.as_deref()),
            routes: match before {
                Some(before) => RouteTable::after(&before.routes, &config.routes),
                None => RouteTable::new(&config.routes),
            },
            fallbacks: config.upstreams.iter().filter_map(fallback).collect(),
            has_opaque_upstreams: config
                .upstreams
                .values()
                .any(|upstream| upstream.protocol == config::Protocol::Tcp),
            workload: match before {
                Some(before) if before.workload.is_of(&config.inbound) => before.workload.clone(),
                _ => Arc::new(Workload::new(&config.inbound)),
            },
            tracing: Tracing::of(config.tracing.as_ref(), &Environment::of_process()),
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
    /// This worker's random numbers.
    pub rng: RefCell<SmallRng>,
    /// Copies of requests under way.
    pub mirrors: Mirrors,
    known: RefCell<Known>,
    opaque: RefCell<HashMap<SocketAddr, Instant>>,
    ports: RefCell<KnownPorts>,
}

/// Ports of the workload, for as long as the config has the same policy for them.
#[derive(Default)]
struct KnownPorts {
    of: Option<Arc<Workload>>,
    ports: HashMap<SocketAddr, WorkloadPort>,
}

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
            mirrors: Mirrors::default(),
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

    /// Has `request` enter its trace, if requests are traced.
    pub fn trace(
        &self,
        request: &mut Request<Body>,
        recording: &mut Recording,
        route: Option<&config::RouteTracing>,
    ) {
        if let Some(tracing) = &self.effective().tracing {
            recording.traced(self.random(|rng| tracing.enter(request, route, Trust::Continue, rng)));
        }
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
        let effective = self.effective();
        let mut known = self.ports.borrow_mut();
        if !known.of.as_ref().is_some_and(|known| Arc::ptr_eq(known, &effective.workload)) {
            *known = KnownPorts { of: Some(effective.workload.clone()), ports: HashMap::new() };
        }
        if known.ports.len() >= MAX_KNOWN {
            known.ports.clear();
        }
        known.ports.entry(address).or_insert_with(|| effective.workload.port(address)).clone()
    }

    /// The workload is told that retries are exhausted.
    pub fn note_exhausted(&self) {
        self.shared.exhausted.set(Instant::now());
    }

    /// Whether the workload was told so since then. A request of that time that it can't serve most likely failed for
    /// it; tried again from further out, all tries of both would multiply.
    pub fn was_exhausted_since(&self, then: Instant) -> bool {
        self.shared.exhausted.is_after(then)
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
