//! What a worker records of each request and connection.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hashbrown::HashTable;
use http::{Method, Version};
use outrigger_ca::SpiffeId;

use super::access_log::AccessLog;
use super::failures::Failures;
use super::labels::{Direction, Labels, Tls};
use super::metric::Histogram;
use super::metrics::Metrics;
use super::tap::Tap;
use super::trace::{Hop, Spans, span_of};
use super::traffic::{RequestSeries, TcpSeries, lock};

/// Most series that a worker keeps at hand; a full cache is emptied, which costs one slow lookup each.
const CACHE_BOUND: usize = 4096;
/// A cached series that was not used between that many sweeps leaves the cache.
const UNUSED_SWEEPS: u32 = 2;

/// Counts and logs; one a worker thread. On the usual way a record costs no lock and no allocation: the
/// series is found in a cache of the worker's own, and the counters are atomics.
#[derive(Debug)]
pub struct Recorder {
    metrics: Arc<Metrics>,
    access_log: AccessLog,
    tap: Tap,
    failures: Arc<Failures>,
    spans: Option<Spans>,
    cache: RefCell<HashTable<Cached>>,
    sweeps: Cell<u32>,
}

/// A series by what its requests have in common. Routes and upstreams are compared by address: the `Arc`s
/// kept in `labels` make sure that an address stays taken.
#[derive(Debug)]
struct Cached {
    hash: u64,
    labels: Labels,
    series: Weak<RequestSeries>,
    used: Cell<u32>,
}

/// One request that has ended.
#[derive(Clone, Copy, Debug)]
pub struct RequestRecord<'a> {
    /// The pipeline.
    pub direction: Direction,
    /// The route's name. Keep one `Arc` a route: series are found by its address.
    pub route: &'a Arc<str>,
    /// The upstream's name. Keep one `Arc` an upstream: series are found by its address.
    pub upstream: &'a Arc<str>,
    /// The response's status.
    pub code: u16,
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
    /// The status of a gRPC call.
    pub grpc_status: Option<u16>,
    /// What protected the connection to the peer.
    pub tls: Tls,
    /// The peer's verified identity: inbound the client's, outbound the endpoint's.
    pub peer: Option<&'a SpiffeId>,
    /// From the request's head to the end of its response.
    pub duration: Duration,
    /// The method.
    pub method: &'a Method,
    /// The path; a query is not logged, since it may hold credentials.
    pub path: &'a str,
    /// The authority that was asked for.
    pub authority: &'a str,
    /// What the client spoke.
    pub version: Version,
    /// Bytes of the request's body.
    pub received_bytes: u64,
    /// Bytes of the response's body.
    pub sent_bytes: u64,
    /// Where the request was sent, if it was.
    pub endpoint: Option<SocketAddr>,
    /// Tries after the first.
    pub retries: u32,
    /// One more try was not allowed by the budget.
    pub retry_refused: bool,
    /// Who sent it.
    pub client: SocketAddr,
    /// The value of `Proxy-Status`, if the proxy answered itself.
    pub proxy_status: Option<&'a str>,
    /// Its place in its trace, if requests are traced.
    pub trace: Option<&'a Hop>,
}

/// What opaque TCP connections are told apart by.
#[derive(Clone, Copy, Debug)]
pub struct TcpLabels<'a> {
    /// The pipeline.
    pub direction: Direction,
    /// The upstream's name.
    pub upstream: &'a Arc<str>,
    /// What protects the connection to the peer.
    pub tls: Tls,
    /// The peer's verified identity.
    pub peer: Option<&'a SpiffeId>,
}

/// One opaque TCP connection that has ended.
#[derive(Clone, Copy, Debug)]
pub struct TcpRecord<'a> {
    /// What it was counted under when it opened.
    pub labels: TcpLabels<'a>,
    /// Why it ended, a few words joined by `_`, as `end` or `connect_failed`.
    pub reason: &'static str,
    /// From accepting to the end.
    pub duration: Duration,
    /// All bytes from the client.
    pub received_bytes: u64,
    /// All bytes to the client.
    pub sent_bytes: u64,
    /// Where it was carried to, if it was.
    pub endpoint: Option<SocketAddr>,
    /// Who opened it.
    pub client: SocketAddr,
    /// What would be in `Proxy-Status` if there were headers.
    pub proxy_status: Option<&'a str>,
}

/// An opaque TCP connection that is counted as open. Give it back with [`Recorder::tcp_closed`]; if it is
/// dropped instead, as in a panic, it counts as closed for the reason `aborted`.
#[derive(Debug)]
#[must_use = "the connection counts as open while this lives"]
pub struct OpenTcp {
    series: Arc<TcpSeries>,
    received_bytes: u64,
    sent_bytes: u64,
    reason: &'static str,
}

impl OpenTcp {
    /// Shows the bytes carried so far before the end, for connections that live long: totals, not steps.
    pub fn carried(&mut self, received_bytes: u64, sent_bytes: u64) {
        self.series.received_bytes.add(received_bytes.saturating_sub(self.received_bytes));
        self.series.sent_bytes.add(sent_bytes.saturating_sub(self.sent_bytes));
        self.received_bytes = self.received_bytes.max(received_bytes);
        self.sent_bytes = self.sent_bytes.max(sent_bytes);
    }
}

impl Drop for OpenTcp {
    fn drop(&mut self) {
        self.series.open.dec();
        *lock(&self.series.closed).entry(self.reason).or_default() += 1;
    }
}

impl Recorder {
    /// Records into `metrics` and `access_log`.
    pub fn new(metrics: Arc<Metrics>, access_log: AccessLog) -> Self {
        let sweeps = Cell::new(metrics.sweeps.load(Relaxed));
        let tap = Tap::new(metrics.tap_dropped.clone());
        Self {
            metrics,
            access_log,
            tap,
            failures: Arc::default(),
            spans: None,
            cache: RefCell::default(),
            sweeps,
        }
    }

    /// Shows what it records to those who look on by `tap`, and notes what failed in `failures`.
    pub fn seen_by(self, tap: Tap, failures: Arc<Failures>) -> Self {
        Self { tap, failures, ..self }
    }

    /// Gives the spans of requests that are traced to `spans`.
    pub fn with_spans(self, spans: Spans) -> Self {
        Self { spans: Some(spans), ..self }
    }

    /// The metrics that this records into.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Counts a request, logs it, shows it to those who look on, and gives its span away.
    pub fn request(&self, record: &RequestRecord<'_>) {
        self.sweep_cache();
        let series = self.series(record);
        series.count.inc();
        series.durations.observe(record.duration);
        if record.retries > 0 {
            series.retries.add(record.retries.into());
        }
        if record.retry_refused {
            series.retries_refused.inc();
        }
        self.access_log.request(record);
        self.tap.request(record);
        self.failures.request(record);
        if let Some(Hop { context, sampled: Some(sampled) }) = record.trace
            && let Some(spans) = &self.spans
        {
            spans.offer(Box::new(span_of(record, context, sampled)));
        }
    }

    /// Counts an opaque TCP connection as open.
    pub fn tcp_opened(&self, labels: &TcpLabels<'_>) -> OpenTcp {
        let labels = Labels {
            direction: labels.direction,
            tls: labels.tls,
            route: Arc::default(),
            upstream: Arc::clone(labels.upstream),
            code: None,
            grpc_status: None,
            peer: labels.peer.cloned(),
        };
        let series = self.metrics.traffic.tcp.get(&labels, |_| TcpSeries::default());
        series.opened.inc();
        series.open.inc();
        OpenTcp { series, received_bytes: 0, sent_bytes: 0, reason: "aborted" }
    }

    /// Counts the end of an opaque TCP connection and logs it.
    pub fn tcp_closed(&self, mut open: OpenTcp, record: &TcpRecord<'_>) {
        open.carried(record.received_bytes, record.sent_bytes);
        open.reason = record.reason;
        drop(open);
        self.access_log.tcp(record);
        self.tap.tcp(record);
        self.failures.tcp(record);
    }

    /// Counts a TLS handshake; `Err` has the value of the label `reason`.
    pub fn tls_handshake(&self, direction: Direction, result: Result<(), &'static str>) {
        let (result, reason) = match result {
            Ok(()) => ("success", ""),
            Err(reason) => ("failure", reason),
        };
        self.metrics.tls_handshakes.inc([direction.as_str(), result, reason]);
    }

    fn series(&self, record: &RequestRecord<'_>) -> Arc<RequestSeries> {
        let hash = hash(record);
        if let Some(cached) = self.cache.borrow().find(hash, |cached| is_of(&cached.labels, record))
            && let Some(series) = cached.series.upgrade()
        {
            cached.used.set(self.sweeps.get());
            return series;
        }
        self.look_up(hash, record)
    }

    #[cold]
    fn look_up(&self, hash: u64, record: &RequestRecord<'_>) -> Arc<RequestSeries> {
        let labels = Labels {
            direction: record.direction,
            tls: record.tls,
            route: Arc::clone(record.route),
            upstream: Arc::clone(record.upstream),
            code: Some(record.code),
            grpc_status: record.grpc_status,
            peer: record.peer.cloned(),
        };
        let series = self.metrics.traffic.requests.get(&labels, |labels| RequestSeries {
            count: Default::default(),
            retries: Default::default(),
            retries_refused: Default::default(),
            seen: Default::default(),
            durations: self
                .metrics
                .traffic
                .durations
                .get(&Labels { code: None, ..labels.clone() }, |_| Histogram::default()),
        });
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= CACHE_BOUND {
            cache.clear();
        }
        if let Ok(dead) = cache.find_entry(hash, |cached| is_of(&cached.labels, record)) {
            dead.remove();
        }
        let used = Cell::new(self.sweeps.get());
        let cached = Cached { hash, labels, series: Arc::downgrade(&series), used };
        cache.insert_unique(hash, cached, |cached| cached.hash);
        series
    }

    /// After the metrics were swept, lets go of what is dead, unused, or of routes that are gone.
    fn sweep_cache(&self) {
        let sweeps = self.metrics.sweeps.load(Relaxed);
        if self.sweeps.replace(sweeps) != sweeps {
            self.cache.borrow_mut().retain(|cached| {
                cached.series.strong_count() > 0 && sweeps.wrapping_sub(cached.used.get()) <= UNUSED_SWEEPS
            });
        }
    }
}

fn is_of(labels: &Labels, record: &RequestRecord<'_>) -> bool {
    Arc::ptr_eq(&labels.route, record.route)
        && Arc::ptr_eq(&labels.upstream, record.upstream)
        && labels.code == Some(record.code)
        && labels.grpc_status == record.grpc_status
        && labels.direction == record.direction
        && labels.tls == record.tls
        && labels.peer.as_ref() == record.peer
}

/// Multiply and rotate, as Firefox's hash tables do: a few instructions for the few words there are.
/// Nobody outside chooses them: names are configured or resolved, and identities come from the CA.
fn hash(record: &RequestRecord<'_>) -> u64 {
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    let small = u64::from(record.code)
        | u64::from(record.grpc_status.unwrap_or(u16::MAX)) << 16
        | (record.direction as u64) << 32
        | (record.tls as u64) << 40;
    let mut hash = mix(small, Arc::as_ptr(record.route).addr() as u64);
    hash = mix(hash, Arc::as_ptr(record.upstream).addr() as u64);
    if let Some(peer) = record.peer {
        for word in peer.as_str().as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            hash = mix(hash, u64::from_le_bytes(bytes));
        }
    }
    // The table takes its place from the low bits, and multiplying mixes upwards only.
    hash ^ (hash >> 32)
}

#[cfg(test)]
mod tests;
