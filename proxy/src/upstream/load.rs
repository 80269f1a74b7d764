//! The load of one endpoint: a latency average that jumps to peaks, times the requests in flight.
//!
//! Peak EWMA as Finagle describes it, where slower answers count at once and faster ones are believed slowly, but no
//! single answer counts whole: an endpoint that paused once would be left alone for long among others just like it. Two
//! things are added to it. An endpoint that does not answer is as slow as it has been silent, or requests would go on to
//! one that is paused, the more the longer ago its last answer was. And one that was very slow gets a request now and
//! then that finds out how it is now, or it would be left alone for a minute after it is well.

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
/// What a failed request counts as, at least: the time a dead peer usually costs. Endpoints that are as slow are probed.
const FAILED: Duration = Duration::from_secs(1);
/// How long an endpoint that was very slow neither gets a request nor answers one before it is probed: as long as half
/// of a peak is remembered, about.
const PROBE_AFTER: Duration = DECAY;
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
    /// The same of the first request after it, or after it had none in flight.
    waiting_since: AtomicU64,
    /// The same of the last request.
    begun: AtomicU64,
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
        let silent = self.silent_for(now).as_secs_f64();
        let expected = match self.in_flight() {
            _ if average.max(silent) >= FAILED.as_secs_f64() && self.is_due_for_probe(now) => 0.0,
            0 if average == 0.0 => 0.0,
            _ if average == 0.0 => UNKNOWN_SECONDS.max(silent),
            _ => (average * self.decay(now)).max(silent),
        };
        expected.max(f64::MIN_POSITIVE)
    }

    fn begin(&self, now: Instant) {
        let now = since_epoch(now);
        let had_none = self.in_flight.fetch_add(1, Relaxed) == 0;
        if had_none || self.waiting_since.load(Relaxed) <= self.updated.load(Relaxed) {
            self.waiting_since.store(now, Relaxed);
        }
        self.begun.store(now, Relaxed);
    }

    /// How long requests have waited without an answer to any of them. One whose answer is long in coming by its nature
    /// does not make an endpoint silent that answers others.
    fn silent_for(&self, now: Instant) -> Duration {
        let since = self.waiting_since.load(Relaxed);
        if self.in_flight() == 0 || since <= self.updated.load(Relaxed) {
            return Duration::ZERO;
        }
        Duration::from_nanos(since_epoch(now).saturating_sub(since))
    }

    /// Whether nothing is known of it that is not old, and nothing is on its way that might tell.
    fn is_due_for_probe(&self, now: Instant) -> bool {
        let last = self.begun.load(Relaxed).max(self.updated.load(Relaxed));
        since_epoch(now).saturating_sub(last) >= PROBE_AFTER.as_nanos() as u64
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
        let began = since_epoch(now).saturating_sub(latency.as_nanos() as u64);
        let is_of_probe = average >= FAILED.as_secs_f64()
            && began.saturating_sub(self.updated.load(Relaxed)) >= PROBE_AFTER.as_nanos() as u64;
        let next = if average == 0.0 || is_of_probe {
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
        endpoint.load.begin(now);
        Self { endpoint: endpoint.clone(), started: now }
    }

    /// The response's headers are there; the last of the request came at `asked`, if not before it was sent.
    pub fn answered(&self, asked: Option<Instant>, now: Instant) {
        self.endpoint.load.observe(self.took(asked, now), now);
    }

    /// There was no response: counts as a slow one, or an endpoint that fails fast would look the best.
    pub fn failed(&self, asked: Option<Instant>, now: Instant) {
        self.endpoint.load.observe_failure(self.took(asked, now).max(FAILED), now);
    }

    fn took(&self, asked: Option<Instant>, now: Instant) -> Duration {
        now.saturating_duration_since(asked.map_or(self.started, |asked| asked.max(self.started)))
    }

    /// There is no response yet, and nobody waits any longer for it: an average that is below that is too low.
    pub fn waited(&self, asked: Option<Instant>, now: Instant) {
        let waited = self.took(asked, now);
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

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn known(now: Instant) -> Load {
        let load = Load::default();
        load.begin(now);
        load.observe(Duration::from_millis(2), now);
        load.in_flight.fetch_sub(1, Relaxed);
        load
    }

    #[test]
    fn an_endpoint_that_does_not_answer_is_as_slow_as_it_is_silent() {
        let start = epoch() + seconds(1);
        let paused = known(start);
        paused.begin(start + seconds(20));
        assert!(paused.expected_latency(start + seconds(20)) <= 0.002, "it has not been silent before");
        paused.begin(start + seconds(22));
        assert!((paused.expected_latency(start + seconds(23)) - 3.0).abs() < 1e-9);
        // All it was sent comes back late, or is given up.
        paused.observe(seconds(3), start + seconds(23));
        paused.in_flight.store(0, Relaxed);
        paused.begin(start + seconds(24));
        assert!(paused.expected_latency(start + seconds(24)) <= 3.0);
    }

    #[test]
    fn a_request_that_waits_by_its_nature_does_not_make_its_endpoint_slow() {
        let start = epoch() + seconds(1);
        let load = known(start);
        load.begin(start);
        for number in 1..100 {
            let now = start + Duration::from_millis(number * 100);
            load.begin(now);
            assert!(load.expected_latency(now) <= 0.1, "{}", load.expected_latency(now));
            load.observe(Duration::from_millis(2), now + Duration::from_millis(2));
            load.in_flight.fetch_sub(1, Relaxed);
        }
    }

    #[test]
    fn who_was_given_up_is_not_waited_for() {
        let start = epoch() + seconds(1);
        let load = known(start);
        load.begin(start);
        load.in_flight.fetch_sub(1, Relaxed);
        load.begin(start + seconds(100));
        assert!(load.expected_latency(start + seconds(100)) < 0.01);
    }

    #[test]
    fn a_very_slow_endpoint_is_probed_one_by_one_and_believed_when_it_is_well() {
        let start = epoch() + seconds(1);
        let (load, well) = (known(start), known(start));
        load.begin(start);
        load.observe_failure(seconds(12), start + seconds(12));
        load.in_flight.fetch_sub(1, Relaxed);
        let is_better = |after: u64| {
            let now = start + seconds(12 + after);
            well.observe(Duration::from_millis(2), now);
            load.expected_latency(now) < well.expected_latency(now)
        };
        assert!(!is_better(9));
        assert!(is_better(10), "nothing was heard of it for 10 s");
        load.begin(start + seconds(22));
        assert!(!is_better(10), "one is enough");
        assert!(!is_better(19));
        assert!(is_better(20), "it is silent, and another one tells whether it still is");
        load.begin(start + seconds(32));
        let answered = start + seconds(32) + Duration::from_millis(2);
        load.observe(Duration::from_millis(2), answered);
        let expected = load.expected_latency(answered);
        assert!(expected < 0.003, "{expected}: what was long ago is not held against it");
    }

    #[test]
    fn an_endpoint_that_is_only_slower_than_others_is_not_probed() {
        let start = epoch() + seconds(1);
        let load = known(start);
        load.observe_failure(Duration::from_millis(900), start);
        assert!(load.expected_latency(start + seconds(10)) > 0.3);
        load.observe(Duration::from_millis(2), start + seconds(10));
        assert!(load.expected_latency(start + seconds(10)) > 0.3);
    }

    #[test]
    fn what_a_client_takes_to_send_its_request_is_not_the_endpoints() {
        let address = std::net::SocketAddr::from(([10, 0, 0, 1], 80));
        let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
        let endpoint = Endpoint::new(address, false, super::super::Security::Plain, name);
        let start = epoch() + seconds(1);
        for (asked, took) in [(None, 5), (Some(0), 5), (Some(4), 1)] {
            let begun = start + seconds(10);
            let in_flight = InFlight::begin(&endpoint, begun);
            let asked = asked.map(|asked| if asked == 0 { start } else { begun + seconds(asked) });
            assert_eq!(in_flight.took(asked, begun + seconds(5)), seconds(took));
        }
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
        InFlight::begin(&endpoint, now).answered(None, now + Duration::from_millis(2));
        InFlight::begin(&endpoint, now).failed(None, now + Duration::from_millis(1));
        assert_eq!(endpoint.latency(), FAILED);
    }
}
