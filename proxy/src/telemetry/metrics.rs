//! All metrics of the process by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use super::family::{CounterFamily, GaugeFamily};
use super::labels::Direction;
use super::metric::{Counter, Gauge, Histogram};
use super::traffic::{RequestSeries, SeriesMap, TcpSeries};

/// Most series of a family of requests or connections; what is more becomes `other`.
const SERIES_BOUND: usize = 10_000;
/// Most label sets of the histogram: each is 19 lines, and so these are about 7 MB of text.
const HISTOGRAMS_BOUND: usize = 2_000;
/// Between two sweeps for idle series.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The metrics of this process. Make one, share it in an `Arc`. Counting is done by handles that are
/// atomics; [`render`](Self::render) is meant for the control thread, and no worker waits for it.
#[derive(Debug)]
pub struct Metrics {
    pub(super) started: SystemTime,
    /// Counts the sweeps, so that recorders know when to sweep their caches.
    pub(super) sweeps: AtomicU32,
    pub(super) requests: SeriesMap<RequestSeries>,
    pub(super) durations: SeriesMap<Histogram>,
    pub(super) tcp: SeriesMap<TcpSeries>,

    /// TLS handshakes by `direction`, `result` (`success`, `failure`) and `reason` of a failure.
    pub tls_handshakes: CounterFamily<3>,
    /// When the workload's certificate ends, in seconds since 1970; not shown before it is set.
    pub certificate_expiry_workload: Gauge,
    /// When the first of the roots ends, in seconds since 1970; not shown before it is set.
    pub certificate_expiry_root: Gauge,
    /// Certificates got after the first one.
    pub certificate_renewals: Counter,
    /// Attempts to get or load a certificate that failed.
    pub certificate_failures: Counter,
    /// 1 if the CA answered last time, else 0; not shown before it is set.
    pub ca_reachable: Gauge,
    /// Config reloads by `result` (`success`, `failure`).
    pub config_reloads: CounterFamily<1>,
    /// When a config was last taken over, in seconds since 1970; not shown before it is set.
    pub config_last_reload_success: Gauge,
    /// Client connections that are open.
    pub connections_open: PerDirection<Arc<Gauge>>,
    /// Client connections that were refused, by `direction` and `reason`.
    pub connections_refused: CounterFamily<2>,
    /// Connections and requests that strict mode would have refused, let in by `audit`; by `direction`
    /// and `reason`.
    pub audit_would_refuse: CounterFamily<2>,
    /// Responses that ended before they were whole: `by` says whether the upstream broke off or the client left.
    pub responses_incomplete: CounterFamily<2>,
    /// Endpoints by `upstream` and `state`.
    pub endpoints: GaugeFamily<2>,
    /// Connections in the pools by `upstream`.
    pub pool_connections: GaugeFamily<1>,
    /// Requests that wait for a connection by `upstream`.
    pub pool_pending_requests: GaugeFamily<1>,
    /// DNS lookups by `result`.
    pub dns_lookups: CounterFamily<1>,
    /// Age of the oldest DNS answer that is in use, in seconds; not shown before it is set.
    pub dns_age: Gauge,
    /// Lines of the access log that were dropped, because the queue was full or writing failed.
    pub log_dropped: Arc<Counter>,
    /// Panics, each of which ended one connection.
    pub panics: Counter,
}

/// One for each [`Direction`].
#[derive(Debug, Default)]
pub struct PerDirection<T> {
    inbound: T,
    outbound: T,
}

impl<T> PerDirection<T> {
    /// The one of `direction`.
    pub fn of(&self, direction: Direction) -> &T {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Nothing counted yet. The process counts as started now.
    pub fn new() -> Self {
        Self {
            started: SystemTime::now(),
            sweeps: AtomicU32::new(0),
            requests: SeriesMap::new(SERIES_BOUND),
            durations: SeriesMap::new(HISTOGRAMS_BOUND),
            tcp: SeriesMap::new(SERIES_BOUND),
            tls_handshakes: CounterFamily::new(["direction", "result", "reason"]),
            certificate_expiry_workload: Gauge::unset(),
            certificate_expiry_root: Gauge::unset(),
            certificate_renewals: Counter::default(),
            certificate_failures: Counter::default(),
            ca_reachable: Gauge::unset(),
            config_reloads: CounterFamily::new(["result"]),
            config_last_reload_success: Gauge::unset(),
            connections_open: PerDirection::default(),
            connections_refused: CounterFamily::new(["direction", "reason"]),
            audit_would_refuse: CounterFamily::new(["direction", "reason"]),
            responses_incomplete: CounterFamily::new(["direction", "by"]),
            endpoints: GaugeFamily::new(["upstream", "state"]),
            pool_connections: GaugeFamily::new(["upstream"]),
            pool_pending_requests: GaugeFamily::new(["upstream"]),
            dns_lookups: CounterFamily::new(["result"]),
            dns_age: Gauge::unset(),
            log_dropped: Arc::default(),
            panics: Counter::default(),
        }
    }

    /// Removes, as long as it runs, series of traffic that were idle for 10 minutes. Run it on the control thread.
    pub async fn keep_swept(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.sweep();
        }
    }

    pub(super) fn sweep(&self) {
        // Requests first: their series hold their histograms.
        self.requests.sweep();
        self.durations.sweep();
        self.tcp.sweep();
        let now = Instant::now();
        self.endpoints.forget(now);
        self.pool_connections.forget(now);
        self.pool_pending_requests.forget(now);
        self.sweeps.fetch_add(1, Relaxed);
    }
}
