//! What happened between two looks, and the last of these in a row.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::{Value, json};

use super::{LAST_MINUTE, SAMPLES, per_second};
use crate::telemetry::metric::{BUCKETS, BucketCounts};

/// What was counted between two looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tick {
    pub requests: u64,
    pub errors: u64,
    pub retries: u64,
    pub durations: BucketCounts,
}

impl Tick {
    pub fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.retries += other.retries;
        for (own, other) in self.durations.iter_mut().zip(&other.durations) {
            *own += other;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.requests == 0 && self.durations.iter().all(|count| *count == 0)
    }

    /// What it comes to over `seconds`, for people and `outrigger top`.
    pub fn describe(&self, seconds: f64) -> Value {
        json!({
            "requestsPerSecond": per_second(self.requests, seconds),
            "errorsPerSecond": per_second(self.errors, seconds),
            "retriesPerSecond": per_second(self.retries, seconds),
            "successShare": success_share(self.requests, self.errors),
            "p50Ms": quantile(&self.durations, 0.5),
            "p95Ms": quantile(&self.durations, 0.95),
            "p99Ms": quantile(&self.durations, 0.99),
        })
    }
}

/// Nothing succeeds or fails where nothing is asked.
pub(super) fn success_share(requests: u64, errors: u64) -> Option<f64> {
    (requests > 0).then(|| 1.0 - errors.min(requests) as f64 / requests as f64)
}

/// The duration, in milliseconds to the microsecond, within which this share of the requests ended: within its bucket
/// by a straight line, as Prometheus' `histogram_quantile` does. Over the last bound it is the last bound.
pub(super) fn quantile(counts: &BucketCounts, share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = share * total as f64;
    let (mut below, mut from) = (0.0, Duration::ZERO);
    for (bound, count) in BUCKETS.iter().zip(counts) {
        let count = *count as f64;
        if below + count >= rank && count > 0.0 {
            let within = (*bound - from).mul_f64(((rank - below) / count).clamp(0.0, 1.0));
            return Some((from + within).as_micros() as f64 / 1e3);
        }
        below += count;
        from = *bound;
    }
    Some(from.as_micros() as f64 / 1e3)
}

/// A tick as it is kept for ten minutes: 24 bytes instead of 160.
#[derive(Clone, Copy, Debug)]
struct Sample {
    requests: u32,
    errors: u32,
    retries: u32,
    /// Milliseconds at 50, 95 and 99 %.
    latency: [Option<f32>; 3],
}

/// The ticks of ten minutes in which something happened, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Course {
    samples: VecDeque<(u64, Sample)>,
    /// Those of the last minute in full: quantiles of several ticks can't be told from quantiles of each.
    recent: VecDeque<(u64, Tick)>,
    /// Requests in `samples`: how busy it was.
    pub requests: u64,
}

impl Course {
    pub fn push(&mut self, number: u64, tick: &Tick) {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let sample = Sample {
            requests: count(tick.requests),
            errors: count(tick.errors),
            retries: count(tick.retries),
            latency: [0.5, 0.95, 0.99].map(|share| quantile(&tick.durations, share).map(|ms| ms as f32)),
        };
        self.requests += u64::from(sample.requests);
        self.samples.push_back((number, sample));
        self.recent.push_back((number, *tick));
    }

    /// Lets go of what is too old at tick `now`.
    pub fn forget(&mut self, now: u64) {
        while let Some((number, old)) = self.samples.front()
            && number + SAMPLES <= now
        {
            self.requests -= u64::from(old.requests);
            self.samples.pop_front();
        }
        while self.recent.front().is_some_and(|(number, _)| number + LAST_MINUTE <= now) {
            self.recent.pop_front();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// All of the last minute in one.
    pub fn last_minute(&self) -> Tick {
        let mut sum = Tick::default();
        for (_, tick) in &self.recent {
            sum.add(tick);
        }
        sum
    }

    /// The ticks after `since` up to `now`, oldest first; what is `null` had no request.
    pub fn describe(&self, since: u64, now: u64) -> Value {
        let mut samples = self.samples.iter().skip_while(|(number, _)| *number <= since).peekable();
        let length = usize::try_from(now.saturating_sub(since)).unwrap_or_default();
        let [mut requests, mut errors, mut retries] = [(); 3].map(|()| Vec::with_capacity(length));
        let mut latency = [(); 3].map(|()| Vec::with_capacity(length));
        for number in since + 1..=now {
            let sample = samples.next_if(|(of, _)| *of == number).map(|(_, sample)| sample);
            requests.push(sample.map_or(0, |sample| sample.requests));
            errors.push(sample.map_or(0, |sample| sample.errors));
            retries.push(sample.map_or(0, |sample| sample.retries));
            for (place, values) in latency.iter_mut().enumerate() {
                let value = sample.and_then(|sample| sample.latency[place]);
                values.push(value.map(|ms| (f64::from(ms) * 1e3).round() / 1e3));
            }
        }
        let [p50, p95, p99] = latency;
        json!({
            "requests": requests, "errors": errors, "retries": retries,
            "p50Ms": p50, "p95Ms": p95, "p99Ms": p99,
        })
    }

    /// Requests and errors of ten minutes in `parts` equal parts up to `now`, oldest first.
    pub fn outline(&self, parts: usize, now: u64) -> Value {
        let [mut requests, mut errors] = [(); 2].map(|()| vec![0_u64; parts]);
        for (number, sample) in &self.samples {
            let age = now.saturating_sub(*number).min(SAMPLES - 1);
            let place = usize::try_from((SAMPLES - 1 - age) * parts as u64 / SAMPLES).unwrap_or_default();
            requests[place] += u64::from(sample.requests);
            errors[place] += u64::from(sample.errors);
        }
        json!({ "requests": requests, "errors": errors })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: &[(usize, u64)]) -> BucketCounts {
        let mut counts = BucketCounts::default();
        for (bucket, count) in of {
            counts[*bucket] = *count;
        }
        counts
    }

    #[test]
    fn quantiles_are_those_that_prometheus_computes_of_the_same_buckets() {
        // histogram_quantile(q, …) of cumulative buckets with the same bounds.
        type Case = (&'static [(usize, u64)], f64, Option<f64>);
        let cases: [Case; 8] = [
            (&[], 0.5, None),
            (&[(0, 10)], 0.5, Some(0.25)),
            (&[(1, 4)], 0.5, Some(0.75)),
            (&[(4, 100)], 0.99, Some(9.95)),
            (&[(0, 50), (4, 50)], 0.5, Some(0.5)),
            (&[(0, 98), (8, 2)], 0.99, Some(175.0)),
            (&[(16, 3)], 0.5, Some(60_000.0)),
            (&[(2, 1), (16, 1)], 0.99, Some(60_000.0)),
        ];
        for (of, share, expected) in cases {
            assert_eq!(quantile(&counts(of), share), expected, "{of:?} at {share}");
        }
    }

    fn tick(requests: u64, errors: u64) -> Tick {
        Tick { requests, errors, retries: 0, durations: counts(&[(1, requests)]) }
    }

    #[test]
    fn ticks_without_requests_are_shown_as_zero_and_ticks_before_since_are_not_shown() {
        let mut course = Course::default();
        course.push(2, &tick(3, 1));
        course.push(4, &tick(5, 0));
        let shown = course.describe(1, 5);
        assert_eq!(shown["requests"], json!([3, 0, 5, 0]));
        assert_eq!(shown["errors"], json!([1, 0, 0, 0]));
        assert_eq!(shown["p50Ms"], json!([0.75, null, 0.75, null]));
        assert_eq!(course.describe(4, 5)["requests"], json!([0]));
        assert_eq!(course.describe(5, 5)["requests"], json!([]));
        assert_eq!(course.describe(9, 5)["requests"], json!([]));
    }

    #[test]
    fn what_is_older_than_ten_minutes_goes_and_the_last_minute_is_a_minute() {
        let mut course = Course::default();
        for number in 1..=SAMPLES + 10 {
            course.push(number, &tick(1, 0));
            course.forget(number);
        }
        assert_eq!(course.samples.len() as u64, SAMPLES);
        assert_eq!(course.requests, SAMPLES);
        assert_eq!(course.last_minute().requests, LAST_MINUTE);
        course.forget(3 * SAMPLES);
        assert!(course.is_empty());
        assert_eq!((course.requests, course.last_minute().requests), (0, 0));
    }

    #[test]
    fn an_outline_has_every_request_once_in_the_order_of_time() {
        let mut course = Course::default();
        for number in 1..=SAMPLES {
            course.push(number, &tick(number % 2, 0));
        }
        assert_eq!(course.outline(20, SAMPLES)["requests"], json!([8, 7].repeat(10)));
        let late = course.outline(20, SAMPLES + SAMPLES / 2);
        assert_eq!(late["requests"].as_array().unwrap()[10..], vec![json!(0); 10][..]);
    }
}
