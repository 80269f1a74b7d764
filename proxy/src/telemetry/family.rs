//! Families of counters with a few labels, for what does not happen on every request.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prometheus::{IntCounter, IntCounterVec};

use super::traffic::lock;

/// Counters told apart by `N` labels whose values are fixed in the code, so that they are few.
#[derive(Debug)]
pub struct CounterFamily<const N: usize>(IntCounterVec);

impl<const N: usize> CounterFamily<N> {
    /// On a vector that has `N` labels.
    pub(super) fn new(counters: IntCounterVec) -> Self {
        Self(counters)
    }

    /// Adds one to the counter of these label values, which is shown from then on.
    pub fn inc(&self, values: [&'static str; N]) {
        self.0.with_label_values(&values).inc();
    }
}

/// A counter that stood still for this long goes, as the series of traffic do.
const IDLE_FOR: Duration = Duration::from_secs(600);
/// Most counters of such a family; what is more counts as `other`.
const COUNTERS_BOUND: usize = 1_000;

/// Counters told apart by `N` labels of any value. One that stood still for 10 minutes is shown no more, and starts
/// from nothing if it is counted on.
#[derive(Debug)]
pub struct NamedCounters<const N: usize> {
    counters: IntCounterVec,
    counted: Mutex<BTreeMap<[Arc<str>; N], Instant>>,
    overflowed: IntCounter,
}

impl<const N: usize> NamedCounters<N> {
    /// On a vector that has `N` labels. How often a counter had to be `other` is counted in `overflowed`.
    pub(super) fn new(counters: IntCounterVec, overflowed: IntCounter) -> Self {
        Self { counters, counted: Mutex::default(), overflowed }
    }

    /// Adds one to the counter of these label values.
    pub fn inc(&self, values: [&str; N]) {
        let mut counted = lock(&self.counted);
        let mut shown = values;
        let mut key = values.map(Arc::from);
        if counted.len() >= COUNTERS_BOUND && !counted.contains_key(&key) {
            self.overflowed.inc();
            shown = ["other"; N];
            key = shown.map(Arc::from);
        }
        counted.insert(key, Instant::now());
        self.counters.with_label_values(&shown).inc();
    }

    pub(super) fn forget(&self, now: Instant) {
        lock(&self.counted).retain(|values, last| {
            let kept = now.saturating_duration_since(*last) < IDLE_FOR;
            if !kept {
                // It fails only if there is no such counter, which is what is wanted.
                let _ = self.counters.remove_label_values(values);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector as _;
    use prometheus::{Opts, TextEncoder};

    use super::*;

    #[test]
    fn a_family_shows_a_sample_for_each_set_of_label_values() {
        let opts = Opts::new("h_total", "Handshakes.");
        let counters = IntCounterVec::new(opts, &["result", "reason"]).unwrap();
        let family = CounterFamily::new(counters.clone());
        family.inc(["ok", ""]);
        family.inc(["ok", ""]);
        family.inc(["failure", "alert"]);
        let text = TextEncoder::new().encode_to_string(&counters.collect()).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        let expected = [
            "# HELP h_total Handshakes.",
            "# TYPE h_total counter",
            "h_total{reason=\"\",result=\"ok\"} 2",
            "h_total{reason=\"alert\",result=\"failure\"} 1",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_named_counter_counts_on_until_it_stood_still_for_long() {
        let counters = IntCounterVec::new(Opts::new("checks_total", "Checks."), &["upstream"]).unwrap();
        let overflowed = IntCounter::new("n_total", "Number.").unwrap();
        let family = NamedCounters::new(counters.clone(), overflowed.clone());
        let shown_after = |passed: Duration| {
            family.forget(Instant::now() + passed);
            let families = counters.collect();
            let samples = families[0].get_metric().iter();
            samples.map(|sample| sample.get_counter().get_value()).collect::<Vec<_>>()
        };
        family.inc(["api"]);
        family.inc(["api"]);
        assert_eq!(shown_after(IDLE_FOR - Duration::from_secs(60)), [2.0]);
        assert!(shown_after(IDLE_FOR).is_empty());
        family.inc(["api"]);
        assert_eq!(shown_after(Duration::ZERO), [1.0]);
    }

    #[test]
    fn named_counters_beyond_the_bound_count_as_other() {
        let counters = IntCounterVec::new(Opts::new("checks_total", "Checks."), &["upstream"]).unwrap();
        let overflowed = IntCounter::new("n_total", "Number.").unwrap();
        let family = NamedCounters::new(counters.clone(), overflowed.clone());
        for number in 0..COUNTERS_BOUND + 3 {
            family.inc([&number.to_string()]);
        }
        family.inc(["0"]);
        assert_eq!(overflowed.get(), 3);
        assert_eq!(counters.with_label_values(&["other"]).get(), 3);
        assert_eq!(counters.with_label_values(&["0"]).get(), 2);
    }
}
