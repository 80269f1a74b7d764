//! What flows, read from the sidecars' metrics: one line a second.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

/// Durations are those of the last ten seconds: a second of gentle load has too few requests for a p99.
const DURATION_WINDOW: usize = 10;

/// The head of the columns that a [`Line`] fills.
pub const HEAD: &str =
    "    time  requests/s   hops/s       p50       p99     mTLS   tcp open   failed/s  retries/s";

/// What one sidecar has counted since it started, of its outbound side: each hop has one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    requests: f64,
    connections: f64,
    over_mesh: f64,
    failed: f64,
    retries: f64,
    open_connections: f64,
    /// Requests at most that long, from their heads to the ends of their responses: upper bound in seconds as it is
    /// written, count.
    buckets: BTreeMap<String, f64>,
}

impl Counts {
    /// Reads an exposition in Prometheus' text format.
    pub fn read(exposition: &str) -> Self {
        let mut counts = Self::default();
        for (name, labels, value) in exposition.lines().filter_map(sample) {
            if label(&labels, "direction") != Some("outbound") {
                continue;
            }
            match name {
                "outrigger_requests_total" => {
                    counts.requests += value;
                    if label(&labels, "code").is_some_and(|code| code.starts_with('5')) {
                        counts.failed += value;
                    }
                }
                "outrigger_tcp_connections_opened_total" => counts.connections += value,
                "outrigger_tcp_open_connections" => counts.open_connections += value,
                "outrigger_retries_total" => counts.retries += value,
                "outrigger_request_duration_seconds_bucket" => {
                    if let Some(bound) = label(&labels, "le") {
                        *counts.buckets.entry(bound.into()).or_default() += value;
                    }
                }
                _ => {}
            }
            let counted =
                matches!(name, "outrigger_requests_total" | "outrigger_tcp_connections_opened_total");
            if counted && label(&labels, "tls") == Some("mesh") {
                counts.over_mesh += value;
            }
        }
        counts
    }

    /// What was added since `earlier`. A count that went down began anew: series go when they have been idle.
    fn since(&self, earlier: &Self) -> Self {
        let growth = |now: f64, then: f64| if now < then { now } else { now - then };
        Self {
            requests: growth(self.requests, earlier.requests),
            connections: growth(self.connections, earlier.connections),
            over_mesh: growth(self.over_mesh, earlier.over_mesh),
            failed: growth(self.failed, earlier.failed),
            retries: growth(self.retries, earlier.retries),
            open_connections: self.open_connections,
            buckets: self
                .buckets
                .iter()
                .map(|(bound, count)| {
                    (bound.clone(), growth(*count, earlier.buckets.get(bound).copied().unwrap_or_default()))
                })
                .collect(),
        }
    }
}

/// The mesh's figures from one second to the next.
#[derive(Debug, Default)]
pub struct Figures {
    previous: Vec<Counts>,
    durations: VecDeque<BTreeMap<String, f64>>,
}

impl Figures {
    /// Takes each sidecar's counts, the entry's first, and says what happened since the last time.
    pub fn line(&mut self, elapsed: Duration, counts: Vec<Counts>) -> Line {
        let none = Counts::default();
        let grown: Vec<Counts> = counts
            .iter()
            .enumerate()
            .map(|(index, now)| now.since(self.previous.get(index).unwrap_or(&none)))
            .collect();
        let first = self.previous.is_empty();
        self.previous = counts;
        if first {
            // Counts since the start are no figure of one second.
            return Line { elapsed, ..Line::default() };
        }
        let entry = grown.first().unwrap_or(&none);
        self.durations.push_back(entry.buckets.clone());
        if self.durations.len() > DURATION_WINDOW {
            self.durations.pop_front();
        }
        let sum = |of: fn(&Counts) -> f64| grown.iter().map(of).sum::<f64>();
        let (hops, connections) = (sum(|counts| counts.requests), sum(|counts| counts.connections));
        Line {
            elapsed,
            requests: entry.requests,
            hops,
            p50: self.quantile(0.50),
            p99: self.quantile(0.99),
            over_mesh: (hops + connections > 0.0)
                .then(|| sum(|counts| counts.over_mesh) / (hops + connections)),
            open_connections: sum(|counts| counts.open_connections),
            failed: sum(|counts| counts.failed),
            retries: sum(|counts| counts.retries),
        }
    }

    /// Seconds within which a share `q` of the window's requests was over; linear within a bucket, as
    /// Prometheus' `histogram_quantile` has it.
    fn quantile(&self, q: f64) -> Option<f64> {
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for second in &self.durations {
            for (bound, count) in second {
                let Ok(bound) = bound.parse::<f64>() else {
                    continue;
                };
                match buckets.iter_mut().find(|(known, _)| known.total_cmp(&bound).is_eq()) {
                    Some((_, sum)) => *sum += count,
                    None => buckets.push((bound, *count)),
                }
            }
        }
        buckets.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let rank = buckets.last().map(|(_, all)| all * q).filter(|rank| *rank > 0.0)?;
        let (mut lower_bound, mut lower_count) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                let share = (rank - lower_count) / (count - lower_count);
                // Beyond the last bound nothing is known but that it was later.
                return Some(if bound.is_finite() {
                    lower_bound + (bound - lower_bound) * share
                } else {
                    lower_bound
                });
            }
            (lower_bound, lower_count) = (bound, count);
        }
        None
    }
}

/// One second of the mesh.
#[derive(Debug, Default, PartialEq)]
pub struct Line {
    elapsed: Duration,
    requests: f64,
    hops: f64,
    p50: Option<f64>,
    p99: Option<f64>,
    over_mesh: Option<f64>,
    open_connections: f64,
    failed: f64,
    retries: f64,
}

impl fmt::Display for Line {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs();
        let milliseconds =
            |duration: Option<f64>| duration.map_or("-".into(), |s| format!("{:.1} ms", s * 1000.0));
        // Rounded down: 100 % is said only if it is so.
        let share = self.over_mesh.map_or("-".into(), |share| format!("{} %", (share * 100.0).floor()));
        write!(
            out,
            "{:>5}:{:02}  {:>10}  {:>7}  {:>8}  {:>8}  {:>7}  {:>9}  {:>9}  {:>9}",
            seconds / 60,
            seconds % 60,
            self.requests,
            self.hops,
            milliseconds(self.p50),
            milliseconds(self.p99),
            share,
            self.open_connections,
            self.failed,
            self.retries
        )
    }
}

type Labels<'a> = Vec<(&'a str, &'a str)>;

fn label<'a>(labels: &Labels<'a>, name: &str) -> Option<&'a str> {
    labels.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

/// Reads a line of the text format. Values keep their escapes: the labels looked at have none.
fn sample(line: &str) -> Option<(&str, Labels<'_>, f64)> {
    if line.starts_with('#') {
        return None;
    }
    let name_length = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_length);
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        while let Some((key, after)) = rest.trim_start_matches(',').split_once("=\"") {
            let end = end_of_value(after)?;
            labels.push((key, &after[..end]));
            rest = &after[end + 1..];
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
        }
    }
    Some((name, labels, rest.split_whitespace().next()?.parse().ok()?))
}

/// The first quotation mark that no backslash stands before.
fn end_of_value(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPOSITION: &str = r#"# HELP outrigger_requests_total Requests.
# TYPE outrigger_requests_total counter
outrigger_requests_total{direction="outbound",route="a\"},b",upstream="api",code="200",grpc_status="",tls="mesh",peer="x"} 6
outrigger_requests_total{direction="outbound",route="",upstream="api",code="503",tls="none"} 2
outrigger_requests_total{direction="inbound",route="",upstream="api",code="503",tls="mesh"} 100
outrigger_tcp_connections_opened_total{direction="outbound",tls="mesh"} 2
outrigger_tcp_open_connections{direction="outbound",tls="mesh"} 1
outrigger_request_duration_seconds_bucket{direction="outbound",le="0.001"} 4
outrigger_request_duration_seconds_bucket{direction="outbound",le="0.01"} 8
outrigger_request_duration_seconds_bucket{direction="outbound",le="+Inf"} 8
outrigger_build_info{version="0.1.0"} 1
process_open_fds 12
"#;

    #[test]
    fn the_outbound_side_is_counted() {
        let counts = Counts::read(EXPOSITION);
        let buckets = [("0.001", 4.0), ("0.01", 8.0), ("+Inf", 8.0)];
        let expected = Counts {
            requests: 8.0,
            connections: 2.0,
            over_mesh: 8.0,
            failed: 2.0,
            retries: 0.0,
            open_connections: 1.0,
            buckets: buckets.map(|(bound, count)| (bound.to_string(), count)).into(),
        };
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_line_says_what_happened_since_the_one_before() {
        let mut figures = Figures::default();
        let counts = Counts::read(EXPOSITION);
        assert_eq!(figures.line(Duration::ZERO, vec![Counts::default()]), Line::default());
        let line = figures.line(Duration::from_secs(61), vec![counts.clone()]);
        assert_eq!(
            line.to_string(),
            "    1:01           8        8    1.0 ms    9.8 ms     80 %          1          2          0"
        );
        let quiet = figures.line(Duration::from_secs(62), vec![counts]);
        assert_eq!(
            quiet.to_string(),
            "    1:02           0        0    1.0 ms    9.8 ms        -          1          0          0"
        );
        assert_eq!(HEAD.len(), quiet.to_string().len());
    }

    #[test]
    fn a_series_that_began_anew_counts_from_zero() {
        let earlier = Counts { requests: 10.0, ..Counts::default() };
        let now = Counts { requests: 3.0, ..Counts::default() };
        assert_eq!(now.since(&earlier).requests, 3.0);
    }

    #[test]
    fn what_took_longer_than_the_last_bound_is_said_to_have_taken_the_last_bound() {
        let buckets = [("1".to_string(), 0.0), ("+Inf".to_string(), 5.0)].into();
        let figures = Figures { previous: Vec::new(), durations: [buckets].into() };
        assert_eq!(figures.quantile(0.5), Some(1.0));
        assert_eq!(Figures::default().quantile(0.5), None);
    }
}
