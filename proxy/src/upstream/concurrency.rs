//! The limit of requests under way at once: fixed, or as many as the upstream serves without getting slower.
//! What is over it is refused at once: a queue would only make everybody wait, those longest who matter no more.
//!
//! The adaptive limit is Netflix' Gradient2 (concurrency-limits, `Gradient2Limit`): latency of late against its
//! long-run average. Growth is as in its elder `GradientLimit`: not smoothed, by the square root of the limit, the
//! headroom that Envoy's gradient controller takes too. Neither Envoy's probing for the least latency, which
//! lets hardly anybody pass meanwhile, nor a plain minimum, which Netflix found to shed without need where some
//! requests are cheaper than others.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

use super::load::since_epoch;
use crate::config;

/// What a refused caller is told to wait: the least that `Retry-After` can say. A place is free sooner, but not for
/// all who were refused.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// An adaptive limit never falls below: with less, too little is under way to measure by.
const LEAST: u32 = 10;
/// Where an adaptive limit starts; `Gradient2Limit`'s default. The first latencies are what later ones are compared
/// with, so they must not be those of a crowd; a hundred are reached in three seconds.
const FIRST: f64 = 20.0;
/// Latencies are taken together over this time at least. Netflix takes a second, Envoy a tenth of one.
const WINDOW: Duration = Duration::from_millis(250);
/// And that many at least; Netflix' default.
const LEAST_SAMPLES: u32 = 10;
/// Latency may grow by half before the limit falls; `Gradient2Limit`'s default.
const TOLERANCE: f64 = 1.5;
/// The limit falls by at most half of itself, of which a fifth is believed each time; Netflix' defaults.
const STEEPEST: f64 = 0.5;
const SMOOTHING: f64 = 0.2;
/// What the limit may grow by in a window, at least; `SquareRootFunction`'s default.
const LEAST_GROWTH: f64 = 4.0;
/// An upstream that has become faster than half of the long-run average pulls it down by that much in a window.
const FORGET_SLOWNESS: f64 = 0.9;
/// Time constant of the long-run average: for so long an overload is told from an upstream that has become slower.
/// Netflix' 600 windows of a second.
const LONG_RUN: Duration = Duration::from_secs(600);

/// The limit of requests under way at once; all workers share it, without a lock on a request's way.
#[derive(Debug)]
pub struct ConcurrencyLimit {
    in_flight: AtomicU32,
    limit: AtomicU32,
    /// Of an adaptive limit.
    adaptive: Option<Adaptive>,
}

/// The limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{limit} requests are under way, which is the limit")]
pub struct Full {
    /// The limit now.
    pub limit: u32,
    /// After this time it may be worth to ask again.
    pub retry_after: Duration,
}

/// A place for one request; free again when dropped.
#[derive(Debug)]
#[must_use = "the place is free again when this is dropped"]
pub struct Permit {
    limit: Arc<ConcurrencyLimit>,
    entered: Instant,
}

/// What is measured in the window that runs, and what was learnt from those before.
#[derive(Debug)]
struct Adaptive {
    samples: AtomicU32,
    latencies_nanoseconds: AtomicU64,
    /// Most requests under way at once.
    peak: AtomicU32,
    /// When the window is over, in nanoseconds after the epoch of [`since_epoch`]; 0 before the first.
    window_ends: AtomicU64,
    gradient: Mutex<Gradient>,
}

/// What the windows together say.
#[derive(Debug)]
struct Gradient {
    limit: f64,
    most: f64,
    /// Latency in the long run, in seconds, and when it was last updated.
    long_run: Option<(f64, Instant)>,
}

impl ConcurrencyLimit {
    /// A limit with nothing under way. An adaptive one starts at 20, or at its maximum.
    pub fn new(config: &config::Concurrency) -> Arc<Self> {
        let adaptive = config.adaptive.map(|most| Adaptive {
            samples: AtomicU32::new(0),
            latencies_nanoseconds: AtomicU64::new(0),
            peak: AtomicU32::new(0),
            window_ends: AtomicU64::new(0),
            gradient: Mutex::new(Gradient::new(most)),
        });
        let limit = config.adaptive.map_or(u32::MAX, |most| Gradient::new(most).limit());
        let limit = config.limit.unwrap_or(limit);
        Arc::new(Self { in_flight: AtomicU32::new(0), limit: AtomicU32::new(limit), adaptive })
    }

    /// Takes a place for one request.
    ///
    /// # Errors
    ///
    /// All places are taken.
    pub fn try_enter(self: &Arc<Self>, now: Instant) -> Result<Permit, Full> {
        let limit = self.limit();
        let enter = |in_flight: u32| (in_flight < limit).then(|| in_flight + 1);
        match self.in_flight.fetch_update(Relaxed, Relaxed, enter) {
            Err(_) => Err(Full { limit, retry_after: RETRY_AFTER }),
            Ok(before) => {
                if let Some(adaptive) = &self.adaptive {
                    adaptive.peak.fetch_max(before + 1, Relaxed);
                }
                Ok(Permit { limit: Arc::clone(self), entered: now })
            }
        }
    }

    /// Requests that may be under way at once, now.
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Limit and use, for people.
    pub fn describe(&self) -> Value {
        json!({
            "limit": self.limit(),
            "inFlight": self.in_flight(),
            "adaptive": self.adaptive.is_some(),
        })
    }

    fn observe(&self, latency: Duration, now: Instant) {
        let Some(adaptive) = &self.adaptive else { return };
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        adaptive.latencies_nanoseconds.fetch_add(nanoseconds, Relaxed);
        let samples = adaptive.samples.fetch_add(1, Relaxed) + 1;
        if samples >= LEAST_SAMPLES
            && since_epoch(now) >= adaptive.window_ends.load(Relaxed)
            && let Some(limit) = adaptive.end_window(self.in_flight(), now)
        {
            self.limit.store(limit, Relaxed);
        }
    }
}

impl Permit {
    /// The response's headers are there, or the time for them is over; the last of the request came at `asked`, if
    /// not before it entered. Of a request that failed at once nothing is learnt: don't call it.
    pub fn answered(&self, asked: Option<Instant>, now: Instant) {
        let since = asked.map_or(self.entered, |asked| asked.max(self.entered));
        self.limit.observe(now.saturating_duration_since(since), now);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limit.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Adaptive {
    /// Ends the window, and gives the next limit; nothing if another worker is about to do so, or just did.
    fn end_window(&self, in_flight: u32, now: Instant) -> Option<u32> {
        let mut gradient = match self.gradient.try_lock() {
            Ok(gradient) => gradient,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if since_epoch(now) < self.window_ends.load(Relaxed) {
            return None;
        }
        self.window_ends.store(since_epoch(now + WINDOW), Relaxed);
        let samples = self.samples.swap(0, Relaxed).max(1);
        let latencies = Duration::from_nanos(self.latencies_nanoseconds.swap(0, Relaxed));
        let peak = self.peak.swap(in_flight, Relaxed);
        gradient.learn(latencies.as_secs_f64() / f64::from(samples), peak, now);
        Some(gradient.limit())
    }
}

impl Gradient {
    fn new(most: u32) -> Self {
        let most = f64::from(most);
        Self { limit: FIRST.min(most), most, long_run: None }
    }

    fn limit(&self) -> u32 {
        self.limit as u32
    }

    /// Takes in a window: its mean latency in seconds, and the most requests that were under way at once.
    fn learn(&mut self, latency: f64, peak: u32, now: Instant) {
        let latency = latency.max(f64::EPSILON);
        let long_run = self.update_long_run(latency, now);
        if f64::from(peak) < self.limit / 2.0 {
            // What is far from the limit says nothing about it.
            return;
        }
        let gradient = (TOLERANCE * long_run / latency).clamp(STEEPEST, 1.0);
        let next = self.limit * gradient + self.limit.sqrt().max(LEAST_GROWTH);
        let next = if next < self.limit { self.limit + (next - self.limit) * SMOOTHING } else { next };
        self.limit = next.max(LEAST.into()).min(self.most);
    }

    fn update_long_run(&mut self, latency: f64, now: Instant) -> f64 {
        let average = self.long_run.map_or(latency, |(average, then)| {
            let passed = now.saturating_duration_since(then);
            let keep = (-passed.as_secs_f64() / LONG_RUN.as_secs_f64()).exp();
            let average = average * keep + latency * (1.0 - keep);
            if average > latency * 2.0 { average * FORGET_SLOWNESS } else { average }
        });
        self.long_run = Some((average, now));
        average
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use proptest::prelude::*;

    use super::*;

    const STEP: Duration = Duration::from_millis(1);

    fn fixed(limit: u32) -> Arc<ConcurrencyLimit> {
        ConcurrencyLimit::new(&config::Concurrency { limit: Some(limit), adaptive: None })
    }

    fn adaptive(most: u32) -> Arc<ConcurrencyLimit> {
        ConcurrencyLimit::new(&config::Concurrency { limit: None, adaptive: Some(most) })
    }

    /// An upstream whose latency depends on the requests under way, and callers who come again at once.
    struct Upstream {
        limit: Arc<ConcurrencyLimit>,
        now: Instant,
        /// By the end of each, the next one last.
        under_way: BinaryHeap<std::cmp::Reverse<(Instant, usize)>>,
        permits: Vec<Option<Permit>>,
        refused: u64,
    }

    impl Upstream {
        fn behind(limit: Arc<ConcurrencyLimit>) -> Self {
            let now = Instant::now() + Duration::from_secs(1000);
            Self { limit, now, under_way: BinaryHeap::new(), permits: Vec::new(), refused: 0 }
        }

        /// So many callers ask for so long; a request that meets so many under way takes what `latency` says.
        fn serve(&mut self, callers: usize, time: Duration, latency: impl Fn(usize) -> Duration) {
            let end = self.now + time;
            while self.now < end {
                while let Some(std::cmp::Reverse((done, place))) = self.under_way.peek().copied() {
                    if done > self.now {
                        break;
                    }
                    self.under_way.pop();
                    self.permits[place].take().unwrap().answered(None, self.now);
                }
                while self.under_way.len() < callers {
                    let Ok(permit) = self.limit.try_enter(self.now) else {
                        self.refused += 1;
                        break;
                    };
                    let place = self.permits.iter().position(Option::is_none).unwrap_or_else(|| {
                        self.permits.push(None);
                        self.permits.len() - 1
                    });
                    self.permits[place] = Some(permit);
                    let done = self.now + latency(self.under_way.len() + 1);
                    self.under_way.push(std::cmp::Reverse((done, place)));
                }
                self.now += STEP;
            }
        }
    }

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn as_many_are_under_way_as_the_limit_says_and_one_more_is_refused() {
        let limit = fixed(3);
        let now = Instant::now();
        let mut permits: Vec<_> = (0..3).map(|_| limit.try_enter(now).unwrap()).collect();
        assert_eq!(limit.try_enter(now).unwrap_err(), Full { limit: 3, retry_after: Duration::from_secs(1) });
        permits.pop();
        permits.push(limit.try_enter(now).unwrap());
        assert!(limit.try_enter(now).is_err());
        assert_eq!(limit.describe(), json!({ "limit": 3, "inFlight": 3, "adaptive": false }));
        drop(permits);
        assert_eq!(limit.in_flight(), 0);
    }

    #[test]
    fn a_fixed_limit_stays_whatever_the_latency() {
        let mut upstream = Upstream::behind(fixed(30));
        upstream.serve(100, milliseconds(2_000), |_| milliseconds(10));
        upstream.serve(100, milliseconds(2_000), |_| milliseconds(100));
        assert_eq!(upstream.limit.limit(), 30);
    }

    #[test]
    fn an_adaptive_limit_falls_when_latency_doubles_and_recovers() {
        let mut upstream = Upstream::behind(adaptive(100));
        assert_eq!(upstream.limit.limit(), 20);
        upstream.serve(200, milliseconds(4_000), |_| milliseconds(10));
        assert_eq!(upstream.limit.limit(), 100);
        upstream.serve(200, milliseconds(2_000), |_| milliseconds(20));
        assert!(upstream.limit.limit() < 85, "{}", upstream.limit.limit());
        upstream.serve(200, milliseconds(18_000), |_| milliseconds(20));
        assert!((20..=27).contains(&upstream.limit.limit()), "{}", upstream.limit.limit());
        upstream.serve(200, milliseconds(4_000), |_| milliseconds(10));
        assert_eq!(upstream.limit.limit(), 100);
    }

    #[test]
    fn latency_that_grows_a_little_costs_nobody_a_place() {
        let mut upstream = Upstream::behind(adaptive(100));
        upstream.serve(200, milliseconds(5_000), |_| milliseconds(10));
        upstream.serve(200, milliseconds(10_000), |_| milliseconds(14));
        assert_eq!(upstream.limit.limit(), 100);
    }

    #[test]
    fn an_upstream_that_serves_twenty_at_once_is_not_given_many_more() {
        let mut upstream = Upstream::behind(adaptive(1000));
        let latency = |under_way: usize| milliseconds(10).mul_f64((under_way as f64 / 20.0).max(1.0));
        upstream.serve(1000, milliseconds(30_000), latency);
        assert!((25..=45).contains(&upstream.limit.limit()), "{}", upstream.limit.limit());
        assert!(upstream.refused > 0);
    }

    #[test]
    fn an_upstream_that_hangs_falls_to_the_least_once_its_requests_have_timed_out() {
        let mut upstream = Upstream::behind(adaptive(100));
        upstream.serve(200, milliseconds(5_000), |_| milliseconds(10));
        upstream.serve(200, milliseconds(60_000), |_| milliseconds(1_000));
        assert_eq!(upstream.limit.limit(), 10);
    }

    #[test]
    fn an_upstream_that_became_slower_for_good_is_used_in_full_again_after_some_minutes() {
        let mut upstream = Upstream::behind(adaptive(50));
        upstream.serve(60, milliseconds(10_000), |_| milliseconds(100));
        upstream.serve(60, milliseconds(30_000), |_| milliseconds(200));
        assert!(upstream.limit.limit() < 25, "{}", upstream.limit.limit());
        upstream.serve(60, milliseconds(600_000), |_| milliseconds(200));
        assert_eq!(upstream.limit.limit(), 50);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_move() {
        let mut upstream = Upstream::behind(adaptive(100));
        upstream.serve(9, milliseconds(5_000), |_| milliseconds(10));
        assert_eq!(upstream.limit.limit(), 20);
        upstream.serve(9, milliseconds(5_000), |_| milliseconds(50));
        assert_eq!(upstream.limit.limit(), 20);
    }

    #[test]
    fn the_slow_first_answers_of_a_cold_upstream_are_forgotten_within_seconds() {
        let mut upstream = Upstream::behind(adaptive(100));
        upstream.serve(200, milliseconds(300), |_| milliseconds(200));
        upstream.serve(200, milliseconds(10_000), |_| milliseconds(10));
        upstream.serve(200, milliseconds(20_000), |_| milliseconds(40));
        assert!(upstream.limit.limit() < 30, "{}", upstream.limit.limit());
    }

    #[test]
    fn workers_never_have_more_under_way_than_the_limit_and_give_every_place_back() {
        let limit = fixed(5);
        let now = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        let permits = [limit.try_enter(now), limit.try_enter(now)];
                        assert!(limit.in_flight() <= 5);
                        drop(permits);
                    }
                });
            }
        });
        assert_eq!(limit.in_flight(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Each window: its mean latency in microseconds, its peak and its length in milliseconds.
        #[test]
        fn an_adaptive_limit_stays_between_ten_and_its_maximum(
            most in 1..2_000_u32,
            windows in proptest::collection::vec((0..10_000_000_u64, 0..3_000_u32, 0..60_000_u64), 1..200),
        ) {
            let mut gradient = Gradient::new(most);
            let mut now = Instant::now();
            for (microseconds, peak, after) in windows {
                now += milliseconds(after);
                gradient.learn(microseconds as f64 / 1e6, peak, now);
                let limit = gradient.limit();
                prop_assert!((LEAST.min(most)..=most).contains(&limit), "{limit}");
            }
        }
    }
}
