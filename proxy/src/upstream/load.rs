//! The load of one endpoint: a latency average that jumps to peaks, times the requests in flight.
//!
//! Peak EWMA as Finagle describes it: a slow answer counts at once, a fast one is believed slowly.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Endpoint;

/// Half of a peak is forgotten after about 7 seconds; Finagle's and linkerd's default.
const DECAY: Duration = Duration::from_secs(10);
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
        let next = if sample >= average {
            sample
        } else {
            let keep = self.decay(now);
            average * keep + sample * (1.0 - keep)
        };
        self.average.store(next.to_bits(), Relaxed);
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
        self.endpoint.load.observe(took.max(FAILED), now);
    }

    /// There is no response yet, and nobody waits any longer for it: an average that is below that is too low.
    pub fn waited(&self, now: Instant) {
        let waited = now.saturating_duration_since(self.started);
        if waited > self.endpoint.latency() {
            self.endpoint.load.observe(waited, now);
        }
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
    fn a_peak_counts_at_once_and_fades() {
        let load = Load::default();
        let start = epoch() + Duration::from_secs(1);
        load.observe(Duration::from_millis(2), start);
        load.observe(Duration::from_millis(200), start);
        let peak = load.expected_latency(start);
        assert!((peak - 0.2).abs() < 1e-9, "{peak}");
        load.observe(Duration::from_millis(2), start + Duration::from_millis(10));
        assert!(load.expected_latency(start + Duration::from_millis(10)) > 0.19);
        assert!(load.expected_latency(start + Duration::from_secs(60)) < 0.001);
    }
}
