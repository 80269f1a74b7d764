//! All metrics of the process by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::collector::TrafficCollector;
use super::family::{CounterFamily, GaugeFamily, NamedCounters};
use super::labels::Direction;
use super::process::ProcessCollector;
use super::single::{LateGauge, OpenGauge, TotalCounter};
use super::traffic::Traffic;

/// The media type of what [`Metrics::render`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Between two sweeps for idle series.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The metrics of this process. Make one, share it in an `Arc`. Counting is done by handles that are
/// atomics; [`render`](Self::render) is meant for the control thread, and no worker waits for it.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Counts the sweeps, so that recorders know when to sweep their caches.
    pub(super) sweeps: AtomicU32,
    pub(super) traffic: Arc<Traffic>,

    /// TLS handshakes by `direction`, `result` (`success`, `failure`) and `reason` of a failure.
    pub tls_handshakes: CounterFamily<3>,
    /// When the workload's certificate ends, in seconds since 1970; not shown before it is set.
    pub certificate_expiry_workload: LateGauge,
    /// When the first of the roots ends, in seconds since 1970; not shown before it is set.
    pub certificate_expiry_root: LateGauge,
    /// Certificates got after the first one.
    pub certificate_renewals: TotalCounter,
    /// Attempts to get or load a certificate that failed.
    pub certificate_failures: TotalCounter,
    /// 1 if the CA answered last time, else 0; not shown before it is set.
    pub ca_reachable: LateGauge,
    /// Config reloads by `result` (`success`, `failure`).
    pub config_reloads: CounterFamily<1>,
    /// When a config was last taken over, in seconds since 1970; not shown before it is set.
    pub config_last_reload_success: LateGauge,
    /// Client connections that are open.
    pub connections_open: PerDirection<OpenGauge>,
    /// Client connections that were refused, by `direction` and `reason`.
    pub connections_refused: CounterFamily<2>,
    /// Connections and requests that strict mode would have refused, let in by `audit`; by `direction`
    /// and `reason`.
    pub audit_would_refuse: CounterFamily<2>,
    /// Responses that ended before they were whole: `by` says whether the upstream broke off or the client left.
    pub responses_incomplete: CounterFamily<2>,
    /// Endpoints by `upstream` and `state`.
    pub endpoints: GaugeFamily<2>,
    /// Active health checks by `upstream` and `result` (`success`, `failure`).
    pub health_checks: NamedCounters<2>,
    /// Requests of routes with a mirror by `upstream`, the mirror's, and `result`: `sent`, `failed` (no response came),
    /// or `dropped_…` and why.
    pub mirrored_requests: NamedCounters<2>,
    /// Connections in the pools by `upstream`.
    pub pool_connections: GaugeFamily<1>,
    /// Requests that wait for a connection by `upstream`.
    pub pool_pending_requests: GaugeFamily<1>,
    /// What the circuit breaker of an `upstream` does: 0 closed, 1 half-open, 2 open.
    pub breaker_state: GaugeFamily<1>,
    /// DNS lookups by `result`.
    pub dns_lookups: CounterFamily<1>,
    /// Age of the oldest DNS answer that is in use, in seconds; not shown before it is set.
    pub dns_age: LateGauge,
    /// Age of the endpoints in use by `upstream`, in seconds: how long ago whoever named them last said so.
    pub discovery_age: GaugeFamily<1>,
    /// Lines of the access log that were dropped, because the queue was full or writing failed.
    pub log_dropped: IntCounter,
    /// Panics, each of which ended one connection.
    pub panics: IntCounter,
}

/// One for each [`Direction`].
#[derive(Debug)]
pub struct PerDirection<T> {
    inbound: T,
    outbound: T,
}

impl<T> PerDirection<T> {
    fn new(make: impl Fn(Direction) -> T) -> Self {
        Self { inbound: make(Direction::Inbound), outbound: make(Direction::Outbound) }
    }

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
        let making = Making(Registry::new());
        let open =
            making.gauges("outrigger_connections_open", "Client connections that are open.", ["direction"]);
        let overflowed = making.registered(IntCounterVec::new(
            Opts::new(
                "outrigger_metric_series_overflowed_total",
                "How often a series became `other`, because its family was full.",
            ),
            &["family"],
        ));
        let traffic = Arc::new(Traffic::new(&overflowed));
        making.register(TrafficCollector::new(Arc::clone(&traffic)));
        making.register(ProcessCollector::new(SystemTime::now()));
        let version = Opts::new("outrigger_build_info", "Always 1; the label names the version.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        making.registered(IntGauge::with_opts(version)).set(1);
        let certificate_expiry = |kind| {
            let opts = Opts::new(
                "outrigger_certificate_expiry_seconds",
                "When a certificate ends, in seconds since 1970.",
            );
            making.late_gauge(opts.const_label("kind", kind))
        };
        Self {
            sweeps: AtomicU32::new(0),
            traffic,
            tls_handshakes: making.counters(
                "outrigger_tls_handshakes_total",
                "TLS handshakes by result, and by the reason of a failure.",
                ["direction", "result", "reason"],
            ),
            certificate_expiry_workload: certificate_expiry("workload"),
            certificate_expiry_root: certificate_expiry("root"),
            certificate_renewals: TotalCounter(
                making
                    .counter("outrigger_certificate_renewals_total", "Certificates got after the first one."),
            ),
            certificate_failures: TotalCounter(making.counter(
                "outrigger_certificate_failures_total",
                "Failed attempts to get or load a certificate.",
            )),
            ca_reachable: making
                .late_gauge(Opts::new("outrigger_ca_reachable", "1 if the CA answered last time, else 0.")),
            config_reloads: making.counters(
                "outrigger_config_reloads_total",
                "Config reloads by result.",
                ["result"],
            ),
            config_last_reload_success: making.late_gauge(Opts::new(
                "outrigger_config_last_reload_success_timestamp_seconds",
                "When a config was last taken over, in seconds since 1970.",
            )),
            connections_open: PerDirection::new(|direction| {
                OpenGauge(open.with_label_values(&[direction.as_str()]))
            }),
            connections_refused: making.counters(
                "outrigger_connections_refused_total",
                "Client connections that were refused, by reason.",
                ["direction", "reason"],
            ),
            audit_would_refuse: making.counters(
                "outrigger_audit_would_refuse_total",
                "What strict mode would have refused and audit mode let in, by reason.",
                ["direction", "reason"],
            ),
            responses_incomplete: making.counters(
                "outrigger_responses_incomplete_total",
                "Responses that ended before they were whole, by who ended them: upstream or client.",
                ["direction", "by"],
            ),
            endpoints: GaugeFamily::new(making.gauges(
                "outrigger_endpoints",
                "Endpoints by state: healthy, ejected, unhealthy, draining.",
                ["upstream", "state"],
            )),
            health_checks: NamedCounters::new(making.registered(IntCounterVec::new(
                Opts::new("outrigger_health_checks_total", "Active health checks by result."),
                &["upstream", "result"],
            ))),
            mirrored_requests: NamedCounters::new(making.registered(IntCounterVec::new(
                Opts::new(
                    "outrigger_mirrored_requests_total",
                    "Requests of routes with a mirror by what became of their copies.",
                ),
                &["upstream", "result"],
            ))),
            pool_connections: GaugeFamily::new(making.gauges(
                "outrigger_pool_connections",
                "Connections in the pools.",
                ["upstream"],
            )),
            pool_pending_requests: GaugeFamily::new(making.gauges(
                "outrigger_pool_pending_requests",
                "Requests that wait for a connection.",
                ["upstream"],
            )),
            breaker_state: GaugeFamily::new(making.gauges(
                "outrigger_breaker_state",
                "What the circuit breaker does: 0 closed, 1 half-open, 2 open.",
                ["upstream"],
            )),
            dns_lookups: making.counters("outrigger_dns_lookups_total", "DNS lookups by result.", ["result"]),
            dns_age: making.late_gauge(Opts::new(
                "outrigger_dns_age_seconds",
                "Age of the oldest DNS answer in use, in seconds.",
            )),
            discovery_age: GaugeFamily::new(making.gauges(
                "outrigger_discovery_age_seconds",
                "How long ago the endpoints in use were last confirmed, in seconds.",
                ["upstream"],
            )),
            log_dropped: making
                .counter("outrigger_log_dropped_total", "Lines of the access log that were dropped."),
            panics: making.counter("outrigger_panics_total", "Panics, each of which ended one connection."),
            registry: making.0,
        }
    }

    /// Everything in Prometheus' text format, in the order of the names. A family that has no sample yet is
    /// left out.
    pub fn render(&self) -> String {
        self.forget_gauges();
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .expect("what a registry gathers has names and samples")
    }

    /// Removes, as long as it runs, series of traffic that were idle for 10 minutes. Run it on the control thread.
    pub async fn keep_swept(&self) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.sweep();
        }
    }

    pub(super) fn sweep(&self) {
        self.traffic.sweep();
        self.forget_gauges();
        self.health_checks.forget(Instant::now());
        self.mirrored_requests.forget(Instant::now());
        self.sweeps.fetch_add(1, Relaxed);
    }

    fn forget_gauges(&self) {
        let now = Instant::now();
        self.discovery_age.forget(now);
        self.endpoints.forget(now);
        self.pool_connections.forget(now);
        self.pool_pending_requests.forget(now);
        self.breaker_state.forget(now);
    }
}

/// Makes metrics and registers them.
struct Making(Registry);

impl Making {
    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.registered(IntCounter::new(name, help))
    }

    fn late_gauge(&self, opts: Opts) -> LateGauge {
        self.registered(IntGauge::with_opts(opts).map(LateGauge::new))
    }

    fn counters<const N: usize>(&self, name: &str, help: &str, labels: [&str; N]) -> CounterFamily<N> {
        let counters = IntCounterVec::new(Opts::new(name, help), &labels);
        CounterFamily::new(self.registered(counters))
    }

    fn gauges<const N: usize>(&self, name: &str, help: &str, labels: [&str; N]) -> IntGaugeVec {
        self.registered(IntGaugeVec::new(Opts::new(name, help), &labels))
    }

    fn registered<M: Collector + Clone + 'static>(&self, metric: prometheus::Result<M>) -> M {
        let metric = metric.expect(WRITTEN_HERE);
        self.register(metric.clone());
        metric
    }

    fn register(&self, collector: impl Collector + 'static) {
        self.0.register(Box::new(collector)).expect(WRITTEN_HERE);
    }
}

/// Why neither making a metric nor registering it fails.
const WRITTEN_HERE: &str = "names and help are written in this module, valid, and each name once";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::labels::{Labels, Tls};
    use crate::telemetry::metric::{Counter, Histogram};
    use crate::telemetry::traffic::{RequestSeries, TcpSeries, lock};

    /// The rules that `promtool check metrics` has, as far as they can be broken here.
    #[test]
    fn every_family_has_help_a_type_a_fitting_name_and_appears_once() {
        let metrics = with_a_sample_of_everything();
        let text = metrics.render();
        let mut seen = BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let (name, help) = help.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{name}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
            assert!(seen.insert(name), "{name} appears twice");
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                assert!(sample.starts_with(name), "{sample} stands under {name}");
            }
        }
        assert_eq!(seen.len(), 40, "of each family there is a sample: {seen:?}");
    }

    fn with_a_sample_of_everything() -> Metrics {
        let metrics = Metrics::new();
        for gauge in [
            &metrics.certificate_expiry_workload,
            &metrics.ca_reachable,
            &metrics.config_last_reload_success,
            &metrics.dns_age,
        ] {
            gauge.set(1);
        }
        metrics.tls_handshakes.inc(["inbound", "success", ""]);
        metrics.config_reloads.inc(["success"]);
        metrics.connections_refused.inc(["inbound", "denied"]);
        metrics.audit_would_refuse.inc(["inbound", "plain"]);
        metrics.responses_incomplete.inc(["inbound", "client"]);
        metrics.dns_lookups.inc(["success"]);
        metrics.discovery_age.with(["api"]).set(1);
        metrics.endpoints.with(["api", "healthy"]).set(1);
        metrics.health_checks.inc(["api", "success"]);
        metrics.mirrored_requests.inc(["api", "sent"]);
        metrics.pool_connections.with(["api"]).set(1);
        metrics.pool_pending_requests.with(["api"]).set(1);
        metrics.breaker_state.with(["api"]).set(1);
        let labels = Labels {
            direction: Direction::Inbound,
            tls: Tls::Mesh,
            route: "main".into(),
            upstream: "api".into(),
            code: None,
            grpc_status: None,
            peer: None,
        };
        let traffic = &metrics.traffic;
        let durations = traffic.durations.get(&labels, |_| Histogram::default());
        let [count, retries, retries_refused] = [(); 3].map(|()| {
            let counter = Counter::default();
            counter.inc();
            counter
        });
        let request = RequestSeries { count, retries, retries_refused, durations };
        traffic.requests.get(&labels, |_| request);
        let tcp = traffic.tcp.get(&labels, |_| TcpSeries::default());
        lock(&tcp.closed).insert("end", 1);
        metrics
    }

    #[test]
    fn what_this_process_may_not_have_is_shown_only_once_it_is_there() {
        let metrics = Metrics::new();
        assert!(!metrics.render().contains("outrigger_ca_reachable"));
        metrics.ca_reachable.set(0);
        metrics.certificate_expiry_root.set(1_800_000_000);
        let text = metrics.render();
        assert!(text.contains("\noutrigger_ca_reachable 0\n"));
        assert!(text.contains("\noutrigger_certificate_expiry_seconds{kind=\"root\"} 1800000000\n"));
        assert!(!text.contains("kind=\"workload\""));
    }
}
