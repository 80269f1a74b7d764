//! Shows the series of requests and TCP connections to the registry.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::gathered::Family;
use super::labels::Labels;
use super::traffic::{RequestSeries, TcpSeries, Traffic, lock};

/// What there is to show of one series, for one family.
type Value = fn(&TcpSeries) -> f64;
type RequestValue = fn(&RequestSeries) -> u64;

pub(super) struct TrafficCollector {
    traffic: Arc<Traffic>,
    requests: [(Family, RequestValue); 3],
    durations: Family,
    tcp: [(Family, Value); 4],
    tcp_closed: Family,
}

impl TrafficCollector {
    pub fn new(traffic: Arc<Traffic>) -> Self {
        let tcp_labels = ["direction", "upstream", "tls", "peer"];
        let request_labels = ["direction", "route", "upstream", "code", "grpc_status", "tls", "peer"];
        let requests = |name, help, value: RequestValue| {
            (Family::new(MetricType::COUNTER, name, help, &request_labels), value)
        };
        let tcp = |kind, name, help, value: Value| (Family::new(kind, name, help, &tcp_labels), value);
        Self {
            traffic,
            requests: [
                requests("outrigger_requests_total", "Requests by what became of them.", |series| {
                    series.count.get()
                }),
                requests(
                    "outrigger_retries_total",
                    "Tries after the first, by what became of their requests in the end.",
                    |series| series.retries.get(),
                ),
                requests(
                    "outrigger_retries_refused_total",
                    "Tries that the retry budget did not allow.",
                    |series| series.retries_refused.get(),
                ),
            ],
            durations: Family::new(
                MetricType::HISTOGRAM,
                "outrigger_request_duration_seconds",
                "From the head of a request to the end of its response, in seconds.",
                &["direction", "route", "upstream", "grpc_status", "tls", "peer"],
            ),
            tcp: [
                tcp(
                    MetricType::COUNTER,
                    "outrigger_tcp_connections_opened_total",
                    "Opaque TCP connections that began.",
                    |series| series.opened.get() as f64,
                ),
                tcp(
                    MetricType::GAUGE,
                    "outrigger_tcp_open_connections",
                    "Opaque TCP connections that are open.",
                    |series| series.open.get() as f64,
                ),
                tcp(
                    MetricType::COUNTER,
                    "outrigger_tcp_received_bytes_total",
                    "Bytes from clients.",
                    |series| series.received_bytes.get() as f64,
                ),
                tcp(MetricType::COUNTER, "outrigger_tcp_sent_bytes_total", "Bytes to clients.", |series| {
                    series.sent_bytes.get() as f64
                }),
            ],
            tcp_closed: Family::new(
                MetricType::COUNTER,
                "outrigger_tcp_connections_closed_total",
                "Opaque TCP connections that ended, by reason.",
                &["direction", "upstream", "tls", "peer", "reason"],
            ),
        }
    }

    fn requests(&self) -> impl Iterator<Item = MetricFamily> {
        let series = self.traffic.requests.snapshot();
        self.requests.iter().map(move |(family, value)| {
            // Most series have no retries.
            let counted = series.iter().filter(|(_, series)| value(series) > 0);
            let samples = counted.map(|(labels, series)| {
                let values = [
                    labels.direction.as_str(),
                    &labels.route,
                    &labels.upstream,
                    &number(labels.code),
                    &number(labels.grpc_status),
                    labels.tls.as_str(),
                    labels.peer(),
                ];
                family.sample(&values, value(series) as f64)
            });
            family.with(samples.collect())
        })
    }

    fn durations(&self) -> MetricFamily {
        let series = self.traffic.durations.snapshot();
        let samples = series.iter().map(|(labels, durations)| {
            let values = [
                labels.direction.as_str(),
                &labels.route,
                &labels.upstream,
                &number(labels.grpc_status),
                labels.tls.as_str(),
                labels.peer(),
            ];
            self.durations.histogram(&values, durations.gathered())
        });
        self.durations.with(samples.collect())
    }

    fn tcp(&self) -> Vec<MetricFamily> {
        let series = self.traffic.tcp.snapshot();
        let of_value = |(family, value): &(Family, Value)| {
            let samples =
                series.iter().map(|(labels, series)| family.sample(&tcp_values(labels), value(series)));
            family.with(samples.collect())
        };
        let mut families: Vec<_> = self.tcp.iter().map(of_value).collect();
        let mut closed = Vec::new();
        for (labels, series) in &series {
            let [direction, upstream, tls, peer] = tcp_values(labels);
            for (reason, count) in &*lock(&series.closed) {
                let values = [direction, upstream, tls, peer, reason];
                closed.push(self.tcp_closed.sample(&values, *count as f64));
            }
        }
        families.push(self.tcp_closed.with(closed));
        families
    }
}

impl Collector for TrafficCollector {
    fn desc(&self) -> Vec<&Desc> {
        let tcp = self.tcp.iter().map(|(family, _)| family);
        let requests = self.requests.iter().map(|(family, _)| family);
        [&self.durations, &self.tcp_closed].into_iter().chain(requests).chain(tcp).map(Family::desc).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.tcp();
        families.extend(self.requests());
        families.push(self.durations());
        families
    }
}

/// An empty label value is, to Prometheus, no label.
fn number(value: Option<u16>) -> String {
    value.map(|number| number.to_string()).unwrap_or_default()
}

fn tcp_values(labels: &Labels) -> [&str; 4] {
    [labels.direction.as_str(), &labels.upstream, labels.tls.as_str(), labels.peer()]
}
