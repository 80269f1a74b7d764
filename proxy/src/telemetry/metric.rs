//! What a series of traffic is made of: atomics alone, so that counting never waits.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::proto;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn inc(&self) {
        self.add(1);
    }

    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Becomes what `other` is; gives by how much it was behind.
    pub fn catch_up(&self, other: &Self) -> u64 {
        let value = other.get();
        value - self.0.swap(value, Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicI64);

impl Gauge {
    pub fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    pub fn dec(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

/// The buckets' upper bounds: from what a hop in a fast network takes to what only a slow workload does.
pub(super) const BUCKETS: [Duration; 16] = [
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
];

/// A count for each bucket, and one for what is over every bound. Not cumulative.
pub(super) type BucketCounts = [u64; BUCKETS.len() + 1];

/// How long things took, by buckets.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// Not cumulative; the last one holds what is over every bound.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_nanoseconds: AtomicU64,
    /// What the history has seen of `counts`.
    seen: [AtomicU64; BUCKETS.len() + 1],
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let bucket = BUCKETS.partition_point(|bound| *bound < duration);
        self.counts[bucket].fetch_add(1, Relaxed);
        // 584 years fit.
        self.sum_nanoseconds.fetch_add(duration.as_nanos() as u64, Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// What was observed since this was called last. There is one caller, the history.
    pub fn fresh(&self) -> BucketCounts {
        let mut fresh = BucketCounts::default();
        for (place, (count, seen)) in fresh.iter_mut().zip(self.counts.iter().zip(&self.seen)) {
            let count = count.load(Relaxed);
            *place = count - seen.swap(count, Relaxed);
        }
        fresh
    }

    /// Its state as the registry wants it: cumulative, in seconds.
    pub fn gathered(&self) -> proto::Histogram {
        let mut count = 0;
        let bucket = |(bound, own): (&Duration, &AtomicU64)| {
            count += own.load(Relaxed);
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound.as_secs_f64());
            bucket.set_cumulative_count(count);
            bucket
        };
        let buckets = BUCKETS.iter().zip(&self.counts).map(bucket).collect();
        count += self.counts[BUCKETS.len()].load(Relaxed);
        let sum = Duration::from_nanos(self.sum_nanoseconds.load(Relaxed));
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets);
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum.as_secs_f64());
        histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_on_a_bound_falls_into_that_bounds_bucket() {
        assert!(BUCKETS.is_sorted());
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
            let gathered = histogram.gathered();
            let buckets = gathered.get_bucket();
            let first = buckets.iter().position(|bucket| bucket.cumulative_count() == 1);
            assert_eq!(first.unwrap_or(BUCKETS.len()), bucket, "{duration:?}");
            let total = (gathered.get_sample_count(), gathered.get_sample_sum());
            assert_eq!(total, (1, duration.as_secs_f64()));
        }
    }
}
