//! One address of an upstream.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;

use super::load::{Load, since_epoch};
use super::{Security, Standing};
use crate::identity::HandshakeError;

/// How long permissive mode believes that a peer has no sidecar.
const PLAIN_FOR: Duration = Duration::from_secs(60);

/// What permissive mode found out about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not tried, or too long ago.
    Unknown,
    /// It has a sidecar, and is never again spoken to without.
    Meshed,
    /// It has none.
    Plain,
}

/// Names an endpoint for as long as the process runs; a worker's pool is found by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

/// One address of an upstream, and how it is spoken to.
#[derive(Debug)]
pub struct Endpoint {
    /// Its name within this process.
    pub id: EndpointId,
    /// Where it listens.
    pub address: SocketAddr,
    /// The mesh's discovery declared the port opaque.
    pub opaque: bool,
    /// How the connection is secured.
    pub security: Security,
    /// SNI of mesh connections: the service's name, or the address where there is none.
    pub server_name: ServerName<'static>,
    /// Whether it is in or out, and why.
    pub standing: Standing,
    pub(super) load: Load,
    /// Nanoseconds after the epoch at which it left its upstream's set; 0 while it is in it.
    gone: AtomicU64,
    /// What failed there last. Only failures write it, and wait for nobody.
    last_error: Mutex<Option<(Arc<str>, Instant)>>,
    /// 0: unknown; `MESHED`; else the nanoseconds after the epoch until which it counts as plain.
    verdict: AtomicU64,
}

const MESHED: u64 = u64::MAX;

impl Endpoint {
    /// An endpoint that has not been spoken to yet.
    pub fn new(
        address: SocketAddr,
        opaque: bool,
        security: Security,
        server_name: ServerName<'static>,
    ) -> Arc<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Arc::new(Self {
            id: EndpointId(NEXT.fetch_add(1, Relaxed)),
            address,
            opaque,
            security,
            server_name,
            standing: Standing::default(),
            load: Load::default(),
            gone: AtomicU64::new(0),
            last_error: Mutex::default(),
            verdict: AtomicU64::new(0),
        })
    }

    /// What permissive mode knows about it.
    pub fn verdict(&self, now: Instant) -> Verdict {
        match self.verdict.load(Relaxed) {
            MESHED => Verdict::Meshed,
            until if until > since_epoch(now) => Verdict::Plain,
            _ => Verdict::Unknown,
        }
    }

    /// Learns from a handshake that was tried. What a sidecar can't have answered means that there is
    /// none; a sidecar that is somebody else stays a sidecar.
    pub(super) fn learn<T>(&self, made: &Result<T, HandshakeError>) {
        match made {
            Ok(_) | Err(HandshakeError::Identity { .. }) => self.verdict.store(MESHED, Relaxed),
            Err(HandshakeError::NotCertified) => {}
            Err(_) if self.verdict.load(Relaxed) == MESHED => {}
            Err(_) => self.verdict.store(since_epoch(Instant::now() + PLAIN_FOR), Relaxed),
        }
    }

    /// Whether this is still the same endpoint, so that connections and averages may be kept.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.address == other.address
            && self.opaque == other.opaque
            && self.server_name == other.server_name
            && self.security == other.security
    }

    /// It is no longer of its upstream's set: its connections close as soon as nobody uses them.
    pub(super) fn leave(&self) {
        self.gone.store(since_epoch(Instant::now()).max(1), Relaxed);
    }

    /// Whether it has left its upstream's set.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed) != 0
    }

    /// How long ago it left its upstream's set; `None` while it is in it.
    pub fn gone_for(&self, now: Instant) -> Option<Duration> {
        match self.gone.load(Relaxed) {
            0 => None,
            gone => Some(Duration::from_nanos(since_epoch(now).saturating_sub(gone))),
        }
    }

    /// Remembers in words what failed. Of two at the same moment one is as good as the other.
    pub fn note_error(&self, words: impl FnOnce() -> String, now: Instant) {
        match self.last_error.try_lock() {
            Ok(mut last) => *last = Some((words().into(), now)),
            Err(TryLockError::Poisoned(last)) => *last.into_inner() = Some((words().into(), now)),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// What failed last, and when.
    pub fn last_error(&self) -> Option<(Arc<str>, Instant)> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight()
    }

    /// The latency average.
    pub fn latency(&self) -> Duration {
        self.load.latency()
    }
}
