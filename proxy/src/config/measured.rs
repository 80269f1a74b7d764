//! How long requests took, out of what a running proxy's `/metrics` answers (Prometheus' text format).

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

const HISTOGRAM: &str = "outrigger_request_duration_seconds_bucket";

/// Fewer requests have no 99th percentile to speak of: it would be the slowest of them.
const MINIMUM_REQUESTS: u64 = 100;

/// A text that is not the metrics of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MeasuredError {
    /// Something else altogether.
    #[error("no metric of Outrigger is in it: is it what `/metrics` of a proxy answers?")]
    OfSomethingElse,
    /// A line is cut off, or no metric.
    #[error("line {0} is not a metric in Prometheus' text format: is it whole?")]
    Line(usize),
}

/// How long a workload's outbound requests took, by what they went through.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    routes: BTreeMap<String, Durations>,
    /// Of requests that no route matched.
    upstreams: BTreeMap<String, Durations>,
}

/// What 99 of 100 requests took at most, from the head of a request to the end of its response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Percentile99 {
    /// How long. Within a bucket of the histogram it is taken as evenly spread, as Prometheus' `histogram_quantile` does.
    pub(super) duration: Duration,
    /// Whether it is longer by an unknown time: the histogram ends there.
    pub(super) is_least: bool,
    /// Out of how many requests.
    pub(super) requests: u64,
}

/// Requests that took up to a bound (seconds), cumulated; the last bound is infinite.
#[derive(Clone, Debug, Default)]
struct Durations(Vec<(f64, u64)>);

impl Measured {
    /// Reads the answer of `/metrics`, or those of several proxies one after the other.
    ///
    /// # Errors
    /// It is something else, or cut off.
    pub fn read(text: &str) -> Result<Self, MeasuredError> {
        let mut measured = Self::default();
        let mut is_ours = false;
        for (index, line) in text.lines().enumerate() {
            is_ours |= line.starts_with("outrigger_");
            let Some(rest) = line.strip_prefix(HISTOGRAM) else {
                continue;
            };
            measured.add(rest).ok_or(MeasuredError::Line(index + 1))?;
        }
        if is_ours { Ok(measured) } else { Err(MeasuredError::OfSomethingElse) }
    }

    /// Whether no request was measured.
    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.upstreams.is_empty()
    }

    pub(super) fn of_route(&self, name: &str) -> Option<Percentile99> {
        self.routes.get(name)?.percentile_99()
    }

    pub(super) fn of_upstream(&self, name: &str) -> Option<Percentile99> {
        self.upstreams.get(name)?.percentile_99()
    }

    /// One bucket: `{labels} count`, and perhaps a time.
    fn add(&mut self, line: &str) -> Option<()> {
        let (labels, rest) = labels(line)?;
        // Counts are whole, and yet floating-point numbers in this format.
        let count: f64 = rest.split_whitespace().next()?.parse().ok()?;
        let bound: f64 = labels.get("le")?.parse().ok()?;
        if !(count.is_finite() && count >= 0.0) || bound.is_nan() {
            return None;
        }
        if labels.get("direction").is_some_and(|direction| direction == "outbound") {
            let label = |name| labels.get(name).cloned().unwrap_or_default();
            let (route, upstream) = (label("route"), label("upstream"));
            let durations = if route.is_empty() {
                self.upstreams.entry(upstream).or_default()
            } else {
                self.routes.entry(route).or_default()
            };
            durations.add(bound, count as u64);
        }
        Some(())
    }
}

impl Durations {
    fn add(&mut self, bound: f64, count: u64) {
        let at = self.0.partition_point(|(other, _)| *other < bound);
        match self.0.get_mut(at) {
            Some((same, sum)) if *same == bound => *sum += count,
            _ => self.0.insert(at, (bound, count)),
        }
    }

    fn percentile_99(&self) -> Option<Percentile99> {
        let (_, requests) = *self.0.last()?;
        if requests < MINIMUM_REQUESTS {
            return None;
        }
        let rank = requests as f64 * 0.99;
        let index = self.0.iter().position(|(_, count)| *count as f64 >= rank)?;
        let (upper, upto) = self.0[index];
        let (lower, before) = match index.checked_sub(1) {
            Some(previous) => self.0[previous],
            None => (0.0, 0),
        };
        let is_least = upper.is_infinite();
        let share = (rank - before as f64) / upto.saturating_sub(before).max(1) as f64;
        let seconds = if is_least { lower } else { lower + (upper - lower) * share.clamp(0.0, 1.0) };
        let duration = Duration::try_from_secs_f64(seconds).ok()?;
        Some(Percentile99 { duration, is_least, requests })
    }
}

/// The labels `{name="value",…}` that a line begins with, and what follows them.
fn labels(line: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    let mut rest = line.strip_prefix('{')?;
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, value) = rest.split_once("=\"")?;
        let (value, after) = quoted(value)?;
        labels.insert(name.to_owned(), value);
        rest = after;
    }
}

/// A text up to its closing quote, with `\"`, `\\` and `\n` for what they stand for; and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(labels: &str, bound: &str, count: u64) -> String {
        format!("{HISTOGRAM}{{direction=\"outbound\",{labels},le=\"{bound}\"}} {count}\n")
    }

    fn of_route(buckets: &[(&str, u64)]) -> Option<Percentile99> {
        let buckets: String =
            buckets.iter().map(|(bound, count)| bucket("route=\"r\"", bound, *count)).collect();
        Measured::read(&format!("outrigger_build_info 1\n{buckets}")).unwrap().of_route("r")
    }

    #[test]
    fn the_percentile_lies_within_its_bucket() {
        for (buckets, milliseconds, is_least) in [
            (&[("0.1", 100), ("0.2", 100), ("+Inf", 100)][..], 99, false),
            (&[("0.1", 980), ("0.2", 1000), ("+Inf", 1000)], 150, false),
            (&[("0.1", 990), ("0.2", 1000), ("+Inf", 1000)], 100, false),
            (&[("0.1", 0), ("0.2", 0), ("0.5", 200), ("+Inf", 200)], 497, false),
            (&[("0.1", 100), ("60", 900), ("+Inf", 1000)], 60_000, true),
        ] {
            let found = of_route(buckets).unwrap();
            assert_eq!(found.duration.as_secs_f64(), f64::from(milliseconds) / 1000.0, "{buckets:?}");
            assert_eq!(found.is_least, is_least, "{buckets:?}");
        }
    }

    #[test]
    fn few_requests_have_no_percentile() {
        assert_eq!(of_route(&[("0.1", 99), ("+Inf", 99)]), None);
        assert_eq!(of_route(&[]), None);
    }

    #[test]
    fn series_that_differ_otherwise_are_one_measurement() {
        let text = [
            "# HELP outrigger_request_duration_seconds From the head of a request.\n".to_owned(),
            bucket("route=\"r\",upstream=\"a\",peer=\"x\"", "0.1", 60),
            bucket("route=\"r\",upstream=\"a\",peer=\"x\"", "+Inf", 60),
            bucket("route=\"r\",upstream=\"b\",peer=\"\"", "0.1", 0),
            bucket("route=\"r\",upstream=\"b\",peer=\"\"", "0.2", 140),
            bucket("route=\"r\",upstream=\"b\",peer=\"\"", "+Inf", 140),
            bucket("route=\"\",upstream=\"b\"", "+Inf", 500),
            format!("{HISTOGRAM}{{direction=\"inbound\",route=\"r\",le=\"+Inf\"}} 9000 1700000000000\n"),
            "outrigger_request_duration_seconds_sum{route=\"r\"} 1.5\n".to_owned(),
        ]
        .concat();
        let measured = Measured::read(&text).unwrap();
        assert_eq!(measured.of_route("r").unwrap().requests, 200);
        assert_eq!(measured.of_upstream("b").unwrap().requests, 500);
        assert_eq!(measured.of_upstream("a"), None);
    }

    #[test]
    fn quoted_names_are_read_as_they_are() {
        let text = bucket(r#"route="a \"b\", {c}=\\ \n""#, "+Inf", 100);
        assert!(Measured::read(&text).unwrap().of_route("a \"b\", {c}=\\ \n").is_some());
    }

    #[test]
    fn what_is_not_the_metrics_of_a_proxy_is_refused() {
        for text in ["", "<html></html>", "go_goroutines 7\n"] {
            assert_eq!(Measured::read(text).err(), Some(MeasuredError::OfSomethingElse), "{text}");
        }
        for line in ["{le=\"1", "{le=\"1\"}", "{le=\"x\"} 1", "{le=\"1\"} x", "{} 1", " 1", "{le=\"1\"} NaN"]
        {
            let text = format!("outrigger_build_info 1\n{HISTOGRAM}{line}\n");
            assert_eq!(Measured::read(&text).err(), Some(MeasuredError::Line(2)), "{line}");
        }
        assert!(Measured::read("outrigger_build_info 1\n").unwrap().is_empty());
    }
}
