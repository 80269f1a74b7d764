//! The load of one endpoint: a latency average that jumps to peaks, times the requests in flight.
//!
//! Peak EWMA as Finagle describes it, where slower answers count at once and faster ones are believed slowly, but no
//! single answer counts whole: an endpoint that paused once would be left alone for long among others just like it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Endpoint;

/// Half of a peak is forgotten after about 7 seconds; Finagle's and linkerd's default.
const DECAY: Duration = Duration::from_secs(10);
/// A slower answer raises the average to so many times what it was at most. Three slow ones in a row more than triple it.
const MOST_RISE: f64 = 1.5;
/// A faster answer takes the average at least so much of the way to itself, however soon after the one before it comes.
const LEAST_FALL: f64 = 1.0 / 16.0;
/// What a failed request counts as, at least: the time a dead peer usually costs.
const FAILED: Duration = Duration::from_secs(1);
/// What an endpoint is taken for before its first answer while it has a request: a crowd must not wait for that answer.
/// While it has none it counts as faster than any other, so that it gets a try.
const UNKNOWN_SECONDS: f64 = 0.001;

/// Requests in flight and the latency average, in atomics: all workers share them.
#[derive(Debug, Default)]
pub(super) struct Load {
    in_flight: AtomicU32,
    /// Bits of an `f64`, seconds; 0.0 before the first answer.
    average: AtomicU64,
    /// Nanoseconds after `epoch()` of the last answer.
    updated: AtomicU64,
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Nanoseconds after the first call; an `Instant` that fits an atomic.
pub(super) fn since_epoch(now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(epoch()).as_nanos()).unwrap_or(u64::MAX)
}

impl Load {
    /// The latency that a new request would meet were it alone; comparable between endpoints.
    pub(super) fn expected_latency(&self, now: Instant) -> f64 {
        let average = f64::from_bits(self.average.load(Relaxed));
        let expected = match self.in_flight() {
            0 if average == 0.0 => 0.0,
            _ if average == 0.0 => UNKNOWN_SECONDS,
            _ => average * self.decay(now),
        };
        expected.max(f64::MIN_POSITIVE)
    }

    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// The latency average.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_secs_f64(f64::from_bits(self.average.load(Relaxed)))
    }

    /// Two workers may overwrite each other here: one sample more or less does not matter.
    fn observe(&self, latency: Duration, now: Instant) {
        let sample = latency.as_secs_f64();
        let average = f64::from_bits(self.average.load(Relaxed));
        let next = if average == 0.0 {
            sample
        } else if sample >= average {
            sample.min(average * MOST_RISE)
        } else {
            let keep = self.decay(now).min(1.0 - LEAST_FALL);
            average * keep + sample * (1.0 - keep)
        };
        self.set(next, now);
    }

    /// A failure is no chance: it counts whole.
    fn observe_failure(&self, latency: Duration, now: Instant) {
        let average = f64::from_bits(self.average.load(Relaxed));
        self.set(latency.as_secs_f64().max(average), now);
    }

    fn set(&self, average: f64, now: Instant) {
        self.average.store(average.to_bits(), Relaxed);
        self.updated.store(since_epoch(now), Relaxed);
    }

    fn decay(&self, now: Instant) -> f64 {
        let elapsed = since_epoch(now).saturating_sub(self.updated.load(Relaxed));
        (-(elapsed as f64) / DECAY.as_nanos() as f64).exp()
    }
}

/// One request in flight to an endpoint; counted out when dropped.
#[derive(Debug)]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    started: Instant,
}

impl InFlight {
    /// Counts a request in.
    pub fn begin(endpoint: &Arc<Endpoint>, now: Instant) -> Self {
        endpoint.load.in_flight.fetch_add(1, Relaxed);
        Self { endpoint: endpoint.clone(), started: now }
    }

    /// The response's headers are there.
    pub fn answered(&self, now: Instant) {
        self.endpoint.load.observe(now.saturating_duration_since(self.started), now);
    }

    /// There was no response: counts as a slow one, or an endpoint that fails fast would look the best.
    pub fn failed(&self, now: Instant) {
        let took = now.saturating_duration_since(self.started);
        self.endpoint.load.observe_failure(took.max(FAILED), now);
    }

    /// The endpoint it is in flight to.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_without_an_answer_yet_gets_a_try_and_no_crowd() {
        let (known, unknown) = (Load::default(), Load::default());
        let now = epoch() + Duration::from_secs(1);
        known.observe(Duration::from_micros(50), now);
        assert!(unknown.expected_latency(now) < known.expected_latency(now));
        unknown.in_flight.fetch_add(1, Relaxed);
        assert!(unknown.expected_latency(now) > known.expected_latency(now));
    }

    #[test]
    fn slow_answers_count_soon_and_a_single_one_does_not_count_whole() {
        let load = Load::default();
        let start = epoch() + Duration::from_secs(1);
        let millis = |load: &Load| load.expected_latency(start) * 1000.0;
        load.observe(Duration::from_millis(2), start);
        load.observe(Duration::from_millis(200), start);
        assert!((millis(&load) - 3.0).abs() < 1e-9, "{}", millis(&load));
        for _ in 0..11 {
            load.observe(Duration::from_millis(200), start);
        }
        assert!((millis(&load) - 200.0).abs() < 1e-9, "{}", millis(&load));
        load.observe(Duration::from_millis(2), start);
        assert!(millis(&load) > 180.0, "{}", millis(&load));
        let later = start + Duration::from_secs(60);
        assert!(load.expected_latency(later) < 0.001);
        load.observe(Duration::from_millis(2), later);
        assert!(load.expected_latency(later) < 0.003);
    }

    #[test]
    fn a_failure_counts_as_a_second_at_once() {
        let endpoint = Endpoint::new(
            std::net::SocketAddr::from(([10, 0, 0, 1], 80)),
            false,
            crate::upstream::Security::Plain,
            "10.0.0.1".try_into().unwrap(),
        );
        let now = epoch() + Duration::from_secs(1);
        InFlight::begin(&endpoint, now).answered(now + Duration::from_millis(2));
        InFlight::begin(&endpoint, now).failed(now + Duration::from_millis(1));
        assert_eq!(endpoint.latency(), FAILED);
    }
}
