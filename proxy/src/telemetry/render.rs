//! Which metrics are shown, under which names, in which order.

use super::exposition::{Exposition, Label};
use super::family::lock;
use super::labels::{Direction, Labels};
use super::metrics::Metrics;
use super::process;
use super::traffic::TcpSeries;

impl Metrics {
    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = Exposition::default();
        self.render_requests(&mut text);
        self.render_tcp(&mut text);
        self.render_connections(&mut text);
        self.render_upstreams(&mut text);
        self.render_certificates_and_config(&mut text);
        self.render_self(&mut text);
        process::render(self.started, &mut text);
        text.finish()
    }

    fn render_requests(&self, text: &mut Exposition) {
        let name = "outrigger_requests_total";
        text.family(name, "counter", "Requests by what became of them.");
        for (labels, series) in self.requests.snapshot() {
            let [code, grpc_status] = [number(labels.code), number(labels.grpc_status)];
            text.sample(
                name,
                &[
                    ("direction", labels.direction.as_str()),
                    ("route", &labels.route),
                    ("upstream", &labels.upstream),
                    ("code", &code),
                    ("grpc_status", &grpc_status),
                    ("tls", labels.tls.as_str()),
                    ("peer", labels.peer()),
                ],
                series.count.get(),
            );
        }
        let name = "outrigger_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "From the head of a request to the end of its response, in seconds.",
        );
        for (labels, durations) in self.durations.snapshot() {
            let grpc_status = number(labels.grpc_status);
            text.histogram(
                name,
                &[
                    ("direction", labels.direction.as_str()),
                    ("route", &labels.route),
                    ("upstream", &labels.upstream),
                    ("grpc_status", &grpc_status),
                    ("tls", labels.tls.as_str()),
                    ("peer", labels.peer()),
                ],
                &durations.values(),
            );
        }
    }

    fn render_tcp(&self, text: &mut Exposition) {
        let snapshot = self.tcp.snapshot();
        let mut family = |name: &str, kind: &str, help: &str, value: fn(&TcpSeries) -> i64| {
            text.family(name, kind, help);
            for (labels, series) in &snapshot {
                text.sample(name, &tcp_labels(labels), value(series));
            }
        };
        let name = "outrigger_tcp_connections_opened_total";
        family(
            name,
            "counter",
            "Opaque TCP connections that began.",
            |series| series.opened.get() as i64,
        );
        let name = "outrigger_tcp_open_connections";
        family(
            name,
            "gauge",
            "Opaque TCP connections that are open.",
            |series| series.open.get(),
        );
        let name = "outrigger_tcp_received_bytes_total";
        family(name, "counter", "Bytes from clients.", |series| {
            series.received_bytes.get() as i64
        });
        let name = "outrigger_tcp_sent_bytes_total";
        family(name, "counter", "Bytes to clients.", |series| {
            series.sent_bytes.get() as i64
        });

        let name = "outrigger_tcp_connections_closed_total";
        text.family(
            name,
            "counter",
            "Opaque TCP connections that ended, by reason.",
        );
        for (labels, series) in &snapshot {
            let [direction, upstream, tls, peer] = tcp_labels(labels);
            for (reason, count) in &*lock(&series.closed) {
                text.sample(
                    name,
                    &[direction, upstream, tls, peer, ("reason", reason)],
                    count,
                );
            }
        }
    }

    fn render_connections(&self, text: &mut Exposition) {
        let name = "outrigger_connections_open";
        text.family(name, "gauge", "Client connections that are open.");
        for direction in [Direction::Inbound, Direction::Outbound] {
            let open = self.connections_open.of(direction).get();
            text.sample(name, &[("direction", direction.as_str())], open);
        }
        let help = "Client connections that were refused, by reason.";
        self.connections_refused
            .render("outrigger_connections_refused_total", help, text);
        let help = "What strict mode would have refused and audit mode let in, by reason.";
        self.audit_would_refuse
            .render("outrigger_audit_would_refuse_total", help, text);
        let help = "Responses that ended before they were whole, by who ended them: upstream or client.";
        self.responses_incomplete
            .render("outrigger_responses_incomplete_total", help, text);
        let help = "TLS handshakes by result, and by the reason of a failure.";
        self.tls_handshakes
            .render("outrigger_tls_handshakes_total", help, text);
    }

    fn render_upstreams(&self, text: &mut Exposition) {
        self.endpoints
            .render("outrigger_endpoints", "Endpoints by state.", text);
        self.pool_connections.render(
            "outrigger_pool_connections",
            "Connections in the pools.",
            text,
        );
        let help = "Requests that wait for a connection.";
        self.pool_pending_requests
            .render("outrigger_pool_pending_requests", help, text);
        self.dns_lookups.render(
            "outrigger_dns_lookups_total",
            "DNS lookups by result.",
            text,
        );
        if let Some(age) = self.dns_age.shown() {
            let help = "Age of the oldest DNS answer in use, in seconds.";
            text.single("outrigger_dns_age_seconds", "gauge", help, age);
        }
    }

    fn render_certificates_and_config(&self, text: &mut Exposition) {
        let expiry = [
            ("workload", &self.certificate_expiry_workload),
            ("root", &self.certificate_expiry_root),
        ];
        if expiry.iter().any(|(_, gauge)| gauge.shown().is_some()) {
            let name = "outrigger_certificate_expiry_seconds";
            text.family(
                name,
                "gauge",
                "When a certificate ends, in seconds since 1970.",
            );
            for (kind, gauge) in expiry {
                if let Some(seconds) = gauge.shown() {
                    text.sample(name, &[("kind", kind)], seconds);
                }
            }
        }
        let renewals = self.certificate_renewals.get();
        let help = "Certificates got after the first one.";
        text.single(
            "outrigger_certificate_renewals_total",
            "counter",
            help,
            renewals,
        );
        let failures = self.certificate_failures.get();
        let help = "Failed attempts to get or load a certificate.";
        text.single(
            "outrigger_certificate_failures_total",
            "counter",
            help,
            failures,
        );
        if let Some(reachable) = self.ca_reachable.shown() {
            let help = "1 if the CA answered last time, else 0.";
            text.single("outrigger_ca_reachable", "gauge", help, reachable);
        }
        self.config_reloads.render(
            "outrigger_config_reloads_total",
            "Config reloads by result.",
            text,
        );
        if let Some(seconds) = self.config_last_reload_success.shown() {
            let name = "outrigger_config_last_reload_success_timestamp_seconds";
            text.single(
                name,
                "gauge",
                "When a config was last taken over, in seconds since 1970.",
                seconds,
            );
        }
    }

    fn render_self(&self, text: &mut Exposition) {
        let name = "outrigger_metric_series_overflowed_total";
        text.family(
            name,
            "counter",
            "How often a series became `other`, because its family was full.",
        );
        let families = [
            ("requests_total", &self.requests.overflowed),
            ("request_duration_seconds", &self.durations.overflowed),
            ("tcp", &self.tcp.overflowed),
        ];
        for (family, overflowed) in families {
            text.sample(name, &[("family", family)], overflowed.get());
        }
        let help = "Lines of the access log that were dropped.";
        text.single(
            "outrigger_log_dropped_total",
            "counter",
            help,
            self.log_dropped.get(),
        );
        let help = "Panics, each of which ended one connection.";
        text.single("outrigger_panics_total", "counter", help, self.panics.get());
        text.family(
            "outrigger_build_info",
            "gauge",
            "Always 1; the label names the version.",
        );
        text.sample(
            "outrigger_build_info",
            &[("version", env!("CARGO_PKG_VERSION"))],
            1,
        );
    }
}

/// An empty label value is, to Prometheus, no label.
fn number(value: Option<u16>) -> String {
    value.map(|number| number.to_string()).unwrap_or_default()
}

fn tcp_labels(labels: &Labels) -> [Label<'_>; 4] {
    [
        ("direction", labels.direction.as_str()),
        ("upstream", &labels.upstream),
        ("tls", labels.tls.as_str()),
        ("peer", labels.peer()),
    ]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The rules that `promtool check metrics` has, as far as they can be broken here.
    #[test]
    fn every_family_has_help_a_type_a_fitting_name_and_appears_once() {
        let metrics = Metrics::new();
        let gauges = [
            &metrics.certificate_expiry_workload,
            &metrics.ca_reachable,
            &metrics.config_last_reload_success,
        ];
        gauges
            .into_iter()
            .chain([&metrics.dns_age])
            .for_each(|gauge| gauge.set(1));
        let text = metrics.render();
        let mut seen = BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let (name, help) = help
                .strip_prefix("# HELP ")
                .unwrap()
                .split_once(' ')
                .unwrap();
            assert!(help.ends_with('.'), "{name}");
            let kind = lines
                .next()
                .unwrap()
                .strip_prefix(&format!("# TYPE {name} "))
                .unwrap();
            assert_eq!(
                name.ends_with("_total"),
                kind == "counter",
                "{name} is a {kind}"
            );
            assert!(seen.insert(name), "{name} appears twice");
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                assert!(sample.starts_with(name), "{sample} stands under {name}");
            }
        }
        assert!(seen.contains("outrigger_certificate_expiry_seconds"));
    }

    #[test]
    fn what_this_process_may_not_have_is_shown_only_once_it_is_there() {
        let metrics = Metrics::new();
        assert!(!metrics.render().contains("outrigger_ca_reachable"));
        metrics.ca_reachable.set(0);
        metrics.certificate_expiry_root.set(1_800_000_000);
        let text = metrics.render();
        assert!(text.contains("\noutrigger_ca_reachable 0\n"));
        assert!(
            text.contains("\noutrigger_certificate_expiry_seconds{kind=\"root\"} 1800000000\n")
        );
        assert!(!text.contains("kind=\"workload\""));
    }
}
