//! The three kinds of metric, as atomics: counting never waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Follows a total that somebody else counts; a smaller one changes nothing.
    pub fn raise_to(&self, total: u64) {
        self.0.fetch_max(total, Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down. Starts at 0, and is shown from the start.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// Stands for "never set". No gauge here ever counts that far down.
const UNSET: i64 = i64::MIN;

impl Gauge {
    /// A gauge that is shown only once it was [`set`](Self::set): for what this process may not have at all,
    /// as a certificate. Only `set` is meaningful on it.
    pub(super) fn unset() -> Self {
        Self(AtomicI64::new(UNSET))
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `amount`, which may be negative.
    pub fn add(&self, amount: i64) {
        self.0.fetch_add(amount, Relaxed);
    }

    /// Replaces the value.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value now; 0 if it was never set.
    pub fn get(&self) -> i64 {
        self.shown().unwrap_or(0)
    }

    /// The value to show, if there is one.
    pub(super) fn shown(&self) -> Option<i64> {
        Some(self.0.load(Relaxed)).filter(|value| *value != UNSET)
    }

    /// Counts one until the returned guard is dropped: right on every way out, panics too.
    pub fn hold(self: &Arc<Self>) -> Held {
        self.inc();
        Held(Arc::clone(self))
    }
}

/// One that a [`Gauge`] counts as long as this lives.
#[derive(Debug)]
#[must_use = "it counts only while it lives"]
pub struct Held(Arc<Gauge>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The buckets' upper bounds: from what a hop in a fast network takes to what only a slow workload does.
pub(super) const BUCKETS: [(Duration, &str); 16] = [
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2500), "2.5"),
    (Duration::from_secs(5), "5"),
    (Duration::from_secs(10), "10"),
    (Duration::from_secs(30), "30"),
    (Duration::from_secs(60), "60"),
];

/// How long things took, by buckets.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last one holds what is over every bound.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_nanoseconds: AtomicU64,
}

/// A histogram's state, ready to be written.
pub(super) struct HistogramValues {
    /// Cumulative, one for each of [`BUCKETS`].
    pub buckets: [u64; BUCKETS.len()],
    /// All of them.
    pub count: u64,
    /// Their sum.
    pub sum: Duration,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let bucket = BUCKETS.partition_point(|(bound, _)| *bound < duration);
        self.counts[bucket].fetch_add(1, Relaxed);
        // 584 years fit.
        self.sum_nanoseconds
            .fetch_add(duration.as_nanos() as u64, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    pub fn values(&self) -> HistogramValues {
        let mut count = 0;
        let mut buckets = [0; BUCKETS.len()];
        for (cumulative, own) in buckets.iter_mut().zip(&self.counts) {
            count += own.load(Relaxed);
            *cumulative = count;
        }
        count += self.counts[BUCKETS.len()].load(Relaxed);
        let sum = Duration::from_nanos(self.sum_nanoseconds.load(Relaxed));
        HistogramValues {
            buckets,
            count,
            sum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_falls_into_that_bounds_bucket() {
        let cases = [
            (Duration::ZERO, 0),
            (Duration::from_micros(500), 0),
            (Duration::from_nanos(500_001), 1),
            (Duration::from_secs(60), 15),
            (Duration::from_secs(61), 16),
        ];
        for (duration, bucket) in cases {
            let histogram = Histogram::default();
            histogram.observe(duration);
            let values = histogram.values();
            let first = values.buckets.iter().position(|count| *count == 1);
            assert_eq!(first.unwrap_or(BUCKETS.len()), bucket, "{duration:?}");
            assert_eq!((values.count, values.sum), (1, duration));
        }
    }

    #[test]
    fn bounds_are_written_as_they_are() {
        for (bound, text) in BUCKETS {
            assert_eq!(text.parse(), Ok(bound.as_secs_f64()));
        }
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn a_gauge_that_was_never_set_is_not_shown() {
        let gauge = Gauge::unset();
        assert_eq!((gauge.shown(), gauge.get()), (None, 0));
        gauge.set(7);
        assert_eq!((gauge.shown(), gauge.get()), (Some(7), 7));
    }

    #[test]
    fn a_guard_counts_as_long_as_it_lives() {
        let gauge = Arc::new(Gauge::default());
        let held = gauge.hold();
        assert_eq!(gauge.get(), 1);
        drop(held);
        assert_eq!(gauge.get(), 0);
    }
}
