//! All metrics of the process by name.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::collector::TrafficCollector;
use super::family::{CounterFamily, NamedCounters};
use super::labels::Direction;
use super::process::ProcessCollector;
use super::readings::{Readers, ReadingsCollector, UpstreamReading};
use super::reference::MetricReference;
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
    readers: Readers,
    reference: Vec<MetricReference>,

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
    /// Active health checks by `upstream` and `result` (`success`, `failure`).
    pub health_checks: NamedCounters<2>,
    /// Requests of routes with a mirror by `upstream`, the mirror's, and `result`: `sent`, `failed` (no response came),
    /// or `dropped_…` and why.
    pub mirrored_requests: NamedCounters<2>,
    /// DNS lookups by `result`.
    pub dns_lookups: CounterFamily<1>,
    /// Age of the oldest DNS answer that is in use, in seconds; not shown before it is set.
    pub dns_age: LateGauge,
    /// Finished spans that were dropped, by `reason`.
    pub trace_spans_dropped: CounterFamily<1>,
    /// Lines of the access log that were dropped, because the queue was full or writing failed.
    pub log_dropped: IntCounter,
    /// What the tap did not show to a reader that was too slow.
    pub tap_dropped: IntCounter,
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
        let making = Making::default();
        let open =
            making.gauges("outrigger_connections_open", "Client connections that are open.", ["direction"]);
        let overflowed = making.registered(IntCounterVec::new(
            Opts::new(
                "outrigger_metric_series_overflowed_total",
                "How often a series became `other`, because its family was full.",
            ),
            &["family"],
        ));
        let overflow_of = |family: &str| overflowed.with_label_values(&[family]);
        let traffic = Arc::new(Traffic::new(&overflowed));
        making.register(TrafficCollector::new(Arc::clone(&traffic)));
        let readers = Readers::default();
        making.register(ReadingsCollector::new(
            readers.clone(),
            overflow_of("upstream"),
            overflow_of("endpoint"),
        ));
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
        let mut metrics = Self {
            sweeps: AtomicU32::new(0),
            traffic,
            readers,
            reference: Vec::new(),
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
            health_checks: NamedCounters::new(
                making.registered(IntCounterVec::new(
                    Opts::new("outrigger_health_checks_total", "Active health checks by result."),
                    &["upstream", "result"],
                )),
                overflow_of("health_checks_total"),
            ),
            mirrored_requests: NamedCounters::new(
                making.registered(IntCounterVec::new(
                    Opts::new(
                        "outrigger_mirrored_requests_total",
                        "Requests of routes with a mirror by what became of their copies.",
                    ),
                    &["upstream", "result"],
                )),
                overflow_of("mirrored_requests_total"),
            ),
            dns_lookups: making.counters("outrigger_dns_lookups_total", "DNS lookups by result.", ["result"]),
            dns_age: making.late_gauge(Opts::new(
                "outrigger_dns_age_seconds",
                "Age of the oldest DNS answer in use, in seconds.",
            )),
            trace_spans_dropped: making.counters(
                "outrigger_trace_spans_dropped_total",
                "Finished spans that were dropped, by reason.",
                ["reason"],
            ),
            log_dropped: making
                .counter("outrigger_log_dropped_total", "Lines of the access log that were dropped."),
            tap_dropped: making.counter(
                "outrigger_tap_dropped_total",
                "Exchanges that the tap did not show to a reader that was too slow.",
            ),
            panics: making.counter("outrigger_panics_total", "Panics, each of which ended one connection."),
            registry: making.registry,
        };
        metrics.reference = making.families.into_inner();
        metrics.reference.sort_by_key(|family| family.name.clone());
        // A certificate's kinds are registered one by one.
        metrics.reference.dedup_by_key(|family| family.name.clone());
        metrics
    }

    /// Has upstreams read by `reader` whenever metrics are rendered. Only the first reader counts.
    pub fn read_upstreams_by(&self, reader: impl Fn() -> Vec<UpstreamReading> + Send + Sync + 'static) {
        self.readers.set(Box::new(reader));
    }

    /// All families there can be, in the order of their names.
    pub fn reference(&self) -> &[MetricReference] {
        &self.reference
    }

    /// Everything in Prometheus' text format, in the order of the names. A family that has no sample yet is
    /// left out.
    pub fn render(&self) -> String {
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
        self.health_checks.forget(Instant::now());
        self.mirrored_requests.forget(Instant::now());
        self.sweeps.fetch_add(1, Relaxed);
    }
}

/// Makes metrics and registers them.
#[derive(Default)]
struct Making {
    registry: Registry,
    families: RefCell<Vec<MetricReference>>,
}

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
        self.families.borrow_mut().extend(collector.desc().into_iter().map(MetricReference::of));
        self.registry.register(Box::new(collector)).expect(WRITTEN_HERE);
    }
}

/// Why neither making a metric nor registering it fails.
const WRITTEN_HERE: &str = "names and help are written in this module, valid, and each name once";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::telemetry::EndpointReading;
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
            let family = metrics.reference().iter().find(|family| family.name == name).unwrap();
            assert_eq!(family.kind, kind, "{name}");
            assert!(seen.insert(name), "{name} appears twice");
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                assert!(sample.starts_with(name), "{sample} stands under {name}");
                let labels = sample.split(['{', ',']).skip(1).filter_map(|label| label.split_once('='));
                let labels: BTreeSet<&str> =
                    labels.map(|(name, _)| name).filter(|name| *name != "le").collect();
                assert_eq!(labels, family.labels.iter().map(String::as_str).collect(), "{name}");
            }
        }
        let registered: BTreeSet<&str> =
            metrics.reference().iter().map(|family| family.name.as_str()).collect();
        assert_eq!(seen, registered, "of each family there is a sample");
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
        metrics.trace_spans_dropped.inc(["queue_full"]);
        metrics.health_checks.inc(["api", "success"]);
        metrics.mirrored_requests.inc(["api", "sent"]);
        let endpoint = EndpointReading {
            address: ([10, 0, 0, 1], 80).into(),
            state: "healthy",
            in_flight: 1,
            latency: Some(Duration::from_millis(1)),
        };
        let upstream = UpstreamReading {
            name: "api".into(),
            discovery_age: Some(Duration::from_secs(1)),
            states: vec![("healthy", 1)],
            endpoints: vec![endpoint],
            closed: vec![("idle", 1)],
            ..UpstreamReading::default()
        };
        metrics.read_upstreams_by(move || vec![upstream.clone()]);
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
        let request = RequestSeries { count, retries, retries_refused, durations, seen: Default::default() };
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
