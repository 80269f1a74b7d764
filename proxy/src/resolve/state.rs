//! How one lookup after another changes what is known of a target.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{Answer, Snapshot, Source};
use super::outcome::Outcome;

/// How long a good answer outlives the first definite "no such name": a DNS server that restarts says so for a moment.
const GONE_GRACE: Duration = Duration::from_secs(30);
/// Pauses after failures: the first one, and the longest. What was never answered is asked for again sooner when somebody
/// wants it.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The part of an answer's life after which it is asked for again; below 1, so that it is there before the old one ends.
const REFRESH_AT: std::ops::Range<f64> = 0.7..0.9;

/// What a follower remembers between lookups.
#[derive(Default)]
pub(super) struct State {
    answer: Option<Arc<Answer>>,
    confirmed: Option<Instant>,
    gone_since: Option<Instant>,
    failures: u32,
}

/// What follows from a lookup.
pub(super) struct Step {
    pub snapshot: Snapshot,
    /// When to look again.
    pub again_in: Duration,
    /// A word for metrics.
    pub result: &'static str,
}

impl State {
    /// Takes in what a lookup came to.
    pub(super) fn absorb(&mut self, outcome: Outcome, now: Instant) -> Step {
        match outcome {
            Outcome::Found(answer) => {
                let again_in = refresh_in(answer.valid_for);
                self.good(answer, now);
                self.failures = 0;
                self.step(None, again_in, now, "found")
            }
            Outcome::Degraded(answer, error) => {
                let again_in = refresh_in(answer.valid_for);
                // What discovery said of meshing and accounts is worth more than newer addresses without it.
                let keeps = self
                    .answer
                    .as_ref()
                    .is_some_and(|last| last.source == Source::Mesh && last.name == answer.name);
                if !keeps {
                    self.good(answer, now);
                }
                self.gone_since = None;
                self.step(Some(error), again_in, now, "degraded")
            }
            Outcome::Absent { error, valid_for } => {
                let gone_since = *self.gone_since.get_or_insert(now);
                if now.duration_since(gone_since) >= GONE_GRACE {
                    self.answer = None;
                }
                self.failures = 0;
                self.step(Some(error), valid_for, now, "not_found")
            }
            Outcome::Failed(error) => {
                let pause = RETRY.0.saturating_mul(1 << self.failures.min(10));
                let pause = pause.min(RETRY.1).mul_f64(rand::random_range(0.5..=1.0));
                self.failures = self.failures.saturating_add(1);
                self.step(Some(error), pause, now, "failed")
            }
        }
    }

    /// Keeps the value that is there where nothing but its life has changed, so that who compares pointers sees so.
    fn good(&mut self, answer: Answer, now: Instant) {
        self.gone_since = None;
        self.confirmed = Some(now);
        let unchanged = self.answer.as_ref().is_some_and(|last| {
            let valid_for = last.valid_for;
            **last == Answer { valid_for, ..answer.clone() }
        });
        if !unchanged {
            self.answer = Some(Arc::new(answer));
        }
    }

    fn step(
        &self,
        error: Option<super::answer::LookupError>,
        again_in: Duration,
        now: Instant,
        result: &'static str,
    ) -> Step {
        let confirmed = self.answer.as_ref().and(self.confirmed);
        Step {
            snapshot: Snapshot {
                answer: self.answer.clone(),
                error: error.map(Arc::new),
                refreshed: confirmed.unwrap_or(now),
                owners: None,
            },
            again_in,
            result,
        }
    }
}

/// Spread, so that what was asked together is not asked together for ever.
fn refresh_in(valid_for: Duration) -> Duration {
    valid_for.mul_f64(rand::random_range(REFRESH_AT))
}

#[cfg(test)]
mod tests {
    use super::super::answer::{LookupError, ResolvedEndpoint};
    use super::*;

    fn answer(source: Source, address: &str, seconds: u64) -> Answer {
        Answer {
            name: "api.example".into(),
            endpoints: vec![ResolvedEndpoint::at(address.parse().unwrap())],
            vips: Vec::new(),
            dropped: Vec::new(),
            source,
            service: None,
            valid_for: Duration::from_secs(seconds),
        }
    }

    fn failed() -> LookupError {
        LookupError::Failed {
            target: "api.example:80".into(),
            reason: "no answer".into(),
            undenied: Vec::new(),
        }
    }

    fn absent() -> Outcome {
        Outcome::Absent {
            error: LookupError::NotFound("api.example:80".into()),
            valid_for: Duration::from_secs(5),
        }
    }

    fn first_address(step: &Step) -> Option<String> {
        let answer = step.snapshot.answer.as_ref()?;
        Some(answer.endpoints[0].address.to_string())
    }

    #[test]
    fn an_answer_is_asked_for_again_before_it_ends() {
        let mut state = State::default();
        for seconds in [1, 5, 60] {
            let step =
                state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.1:80", seconds)), Instant::now());
            let life = Duration::from_secs(seconds);
            assert!(step.again_in < life && step.again_in >= life.mul_f64(0.7));
            assert!(step.snapshot.error.is_none());
        }
    }

    #[test]
    fn the_last_good_answer_stays_while_lookups_fail_and_its_age_grows() {
        let start = Instant::now();
        let mut state = State::default();
        state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.1:80", 5)), start);
        let mut pauses = Vec::new();
        for failure in 1..=8 {
            let step = state.absorb(Outcome::Failed(failed()), start + Duration::from_secs(failure * 3600));
            assert_eq!(first_address(&step).as_deref(), Some("10.0.0.1:80"));
            assert_eq!(step.snapshot.refreshed, start);
            assert!(step.snapshot.error.is_some());
            pauses.push(step.again_in);
        }
        assert!(pauses[0] <= RETRY.0 && pauses[7] > pauses[0] && pauses[7] <= RETRY.1);

        let later = start + Duration::from_secs(40_000);
        let step = state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.2:80", 5)), later);
        assert_eq!(first_address(&step).as_deref(), Some("10.0.0.2:80"));
        assert_eq!(step.snapshot.refreshed, later);
        assert!(step.snapshot.error.is_none());
        let step = state.absorb(Outcome::Failed(failed()), later);
        assert!(step.again_in <= RETRY.0, "a success begins the backoff anew");
    }

    #[test]
    fn a_name_that_is_gone_is_believed_gone_after_the_grace() {
        let start = Instant::now();
        let mut state = State::default();
        assert!(state.absorb(absent(), start).snapshot.answer.is_none());
        state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.1:80", 5)), start);
        for (after, there) in [(5, true), (34, true), (35, false), (40, false)] {
            let step = state.absorb(absent(), start + Duration::from_secs(after));
            assert_eq!(first_address(&step).is_some(), there, "{after}");
            assert_eq!(step.again_in, Duration::from_secs(5));
        }
        let found = Outcome::Found(answer(Source::Dns, "10.0.0.1:80", 5));
        state.absorb(found, start + Duration::from_secs(50));
        let step = state.absorb(absent(), start + Duration::from_secs(60));
        assert!(first_address(&step).is_some(), "the grace begins anew");
    }

    #[test]
    fn addresses_of_ordinary_dns_do_not_replace_what_discovery_said() {
        let start = Instant::now();
        let degraded = || Outcome::Degraded(answer(Source::Dns, "10.0.0.9:80", 2), failed());

        let mut state = State::default();
        let step = state.absorb(degraded(), start);
        assert_eq!(first_address(&step).as_deref(), Some("10.0.0.9:80"));
        assert!(step.snapshot.error.is_some());

        state.absorb(Outcome::Found(answer(Source::Mesh, "10.0.0.1:80", 5)), start);
        let step = state.absorb(degraded(), start + Duration::from_secs(5));
        assert_eq!(first_address(&step).as_deref(), Some("10.0.0.1:80"));
        assert!(step.snapshot.error.is_some());
        assert_eq!(step.snapshot.refreshed, start);
    }

    #[test]
    fn an_answer_that_only_lives_longer_is_the_same_answer() {
        let start = Instant::now();
        let mut state = State::default();
        let first = state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.1:80", 5)), start);
        let second = state.absorb(Outcome::Found(answer(Source::Dns, "10.0.0.1:80", 4)), start);
        let (first, second) = (first.snapshot.answer.unwrap(), second.snapshot.answer.unwrap());
        assert!(Arc::ptr_eq(&first, &second));
    }
}
