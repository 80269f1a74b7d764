//! Counters and gauges of the crate `prometheus`, each with the one thing that it lacks here.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};

/// A counter that follows a total which somebody else counts.
#[derive(Debug)]
pub struct TotalCounter(pub(super) IntCounter);

impl TotalCounter {
    /// Takes over the total; a smaller one changes nothing. To be called by one task only, since two at once
    /// could count the same twice.
    pub fn raise_to(&self, total: u64) {
        self.0.inc_by(total.saturating_sub(self.0.get()));
    }
}

/// A gauge of what is open now.
#[derive(Debug)]
pub struct OpenGauge(pub(super) IntGauge);

impl OpenGauge {
    /// How many are open.
    pub fn get(&self) -> i64 {
        self.0.get()
    }

    /// Counts one until the returned guard is dropped: right on every way out, panics too.
    pub fn hold(&self) -> Held {
        self.0.inc();
        Held(self.0.clone())
    }
}

/// One that an [`OpenGauge`] counts as long as this lives.
#[derive(Debug)]
#[must_use = "it counts only while it lives"]
pub struct Held(IntGauge);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A gauge that is shown only once it was set: for what this process may not have at all, as a certificate.
#[derive(Clone, Debug)]
pub struct LateGauge {
    gauge: IntGauge,
    shown: Arc<AtomicBool>,
}

impl LateGauge {
    pub(super) fn new(gauge: IntGauge) -> Self {
        Self { gauge, shown: Arc::default() }
    }

    /// Replaces the value, and shows it from now on.
    pub fn set(&self, value: i64) {
        self.gauge.set(value);
        self.shown.store(true, Ordering::Release);
    }
}

impl Collector for LateGauge {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if self.shown.load(Ordering::Acquire) { self.gauge.collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_follows_a_total_but_never_down() {
        let counter = TotalCounter(IntCounter::new("n_total", "Number.").unwrap());
        for (total, count) in [(3, 3), (3, 3), (2, 3), (7, 7)] {
            counter.raise_to(total);
            assert_eq!(counter.0.get(), count);
        }
    }

    #[test]
    fn a_guard_counts_as_long_as_it_lives() {
        let gauge = OpenGauge(IntGauge::new("open", "Open ones.").unwrap());
        let held = gauge.hold();
        assert_eq!(gauge.get(), 1);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }
}
