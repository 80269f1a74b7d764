//! The circuit breaker of an upstream: after failures all over it, requests are refused at once for a while
//! instead of waiting for what does not come, and a few probes find out when it is well again.
//!
//! It counts the outcomes of requests, after their retries; that of single endpoints is a matter of their
//! ejection. All workers share it. While it is closed and nothing fails, a request costs two relaxed loads of
//! one word; whatever changes the state takes a mutex.

mod states;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use thiserror::Error;

pub use self::states::Why;
use self::states::{Closed, Rules, State};
use super::EndpointId;
use super::load::since_epoch;
use super::recent::Recent;
use crate::config;

/// What a caller is told to wait where probes are under way: the least that `Retry-After` can say.
const WHILE_PROBED: Duration = Duration::from_secs(1);

/// The circuit breaker of an upstream.
#[derive(Debug)]
pub struct Breaker {
    enabled: bool,
    rules: Rules,
    /// A [`Gate`]: what a request has to know. Written with `state` locked only.
    gate: AtomicU64,
    /// Nanoseconds after the epoch of [`since_epoch`] until which an open breaker is open.
    open_until: AtomicU64,
    /// Requests and failures within the window, where a failure rate is configured.
    rate: Option<Counts>,
    state: Mutex<Shared>,
    opened: AtomicU64,
    half_opened: AtomicU64,
    closed: AtomicU64,
}

#[derive(Debug)]
struct Counts {
    requests: Recent,
    failures: Recent,
}

#[derive(Debug)]
struct Shared {
    state: State,
    /// When it came to that.
    since: Instant,
    rng: SmallRng,
}

/// What a breaker does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// It lets all requests pass.
    Closed,
    /// It lets a few requests pass, to find out.
    HalfOpen,
    /// It refuses all requests.
    Open,
}

/// How a request ended, after its retries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Anything but a failure.
    Success,
    /// Connect error, reset, timeout, 502, 503 or 504; every 5xx where [`Breaker::counts_every_5xx`].
    Failure,
}

/// The breaker does not let a request pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the circuit breaker is open")]
pub struct Open {
    /// After this time it may be worth to ask again.
    pub retry_after: Duration,
}

/// What the end of a request changed; to be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It opened.
    Opened {
        /// For how long.
        open_for: Duration,
        /// The reason.
        why: Why,
    },
    /// A probe succeeded.
    Closed,
}

/// How often a breaker changed since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transitions {
    /// To open.
    pub opened: u64,
    /// To half-open.
    pub half_opened: u64,
    /// Back to closed.
    pub closed: u64,
}

/// Lets one request pass. Dropped before it [`ended`](Self::ended), as when the caller left, it counts as nothing.
#[derive(Debug)]
#[must_use = "the breaker learns from how the request ended"]
pub struct Pass<'a> {
    breaker: &'a Breaker,
    right: Right,
}

/// By what right a request passed.
#[derive(Debug)]
enum Right {
    /// The breaker was closed.
    Closed { generation: u64 },
    /// It was half-open, and the request took a probe's place then.
    Probe { generation: u64, began: Instant },
    /// It has ended.
    Used,
}

/// State and generation in one word. The generation grows with every change of state: what began before a change
/// says nothing about what is after it.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const CLOSED: u64 = 0;
    /// Closed, and the last outcome was a failure: a success has a row to end.
    const FAILING: u64 = 1;
    const OPEN: u64 = 2;
    const HALF_OPEN: u64 = 3;

    fn new(generation: u64, phase: u64) -> Self {
        Self(generation << 2 | phase)
    }

    fn phase(self) -> u64 {
        self.0 & 3
    }

    fn generation(self) -> u64 {
        self.0 >> 2
    }
}

impl Breaker {
    /// A closed breaker.
    pub fn new(config: &config::Breaker) -> Self {
        Self::with_rng(config, SmallRng::from_rng(&mut rand::rng()))
    }

    fn with_rng(config: &config::Breaker, rng: SmallRng) -> Self {
        let rules = Rules::new(config);
        let rate = rules
            .failure_rate
            .is_some()
            .then(|| Counts { requests: Recent::new(rules.window), failures: Recent::new(rules.window) });
        Self {
            enabled: config.enabled(),
            rules,
            gate: AtomicU64::new(Gate::new(0, Gate::CLOSED).0),
            open_until: AtomicU64::new(0),
            rate,
            state: Mutex::new(Shared { state: State::Closed(Closed::default()), since: Instant::now(), rng }),
            opened: AtomicU64::new(0),
            half_opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
        }
    }

    /// Whether 5xx other than 502, 503 and 504 are failures too: where a failure rate is configured.
    pub fn counts_every_5xx(&self) -> bool {
        self.rate.is_some()
    }

    /// Asks to let one request pass.
    ///
    /// # Errors
    ///
    /// It is open, or half-open and probed already.
    pub fn try_pass(&self, now: Instant) -> Result<Pass<'_>, Open> {
        let gate = self.gate();
        match gate.phase() {
            Gate::CLOSED | Gate::FAILING => Ok(self.pass(gate)),
            // A storm of requests is refused without the mutex.
            Gate::OPEN if since_epoch(now) < self.open_until.load(Relaxed) => {
                let left = self.open_until.load(Relaxed).saturating_sub(since_epoch(now));
                Err(Open { retry_after: Duration::from_nanos(left) })
            }
            _ => self.try_probe(now),
        }
    }

    fn try_probe(&self, now: Instant) -> Result<Pass<'_>, Open> {
        let mut shared = self.lock();
        if let State::Open(open) = &shared.state {
            if let Some(left) = open.until.checked_duration_since(now).filter(|left| !left.is_zero()) {
                return Err(Open { retry_after: left });
            }
            let half_open = open.half_open();
            self.enter(&mut shared, State::HalfOpen(half_open), Gate::HALF_OPEN, now);
            self.half_opened.fetch_add(1, Relaxed);
        }
        // A probe may have succeeded since the gate was read.
        let State::HalfOpen(half_open) = &mut shared.state else { return Ok(self.pass(self.gate())) };
        if !half_open.begin_probe(now, &self.rules) {
            return Err(Open { retry_after: WHILE_PROBED });
        }
        let generation = self.gate().generation();
        Ok(Pass { breaker: self, right: Right::Probe { generation, began: now } })
    }

    fn pass(&self, gate: Gate) -> Pass<'_> {
        Pass { breaker: self, right: Right::Closed { generation: gate.generation() } }
    }

    /// A request that passed while it was closed succeeded.
    fn succeeded(&self, generation: u64, now: Instant) {
        let gate = self.gate();
        if gate.generation() != generation {
            return;
        }
        if let Some(rate) = &self.rate {
            rate.requests.add(now);
        }
        if gate.phase() != Gate::FAILING {
            return;
        }
        let mut shared = self.lock();
        if self.gate().generation() != generation {
            return;
        }
        if let State::Closed(closed) = &mut shared.state {
            closed.succeeded();
            self.gate.store(Gate::new(generation, Gate::CLOSED).0, Relaxed);
        }
    }

    /// A request that passed while it was closed failed.
    fn failed(
        &self,
        generation: u64,
        endpoints: impl IntoIterator<Item = EndpointId>,
        available: usize,
        now: Instant,
    ) -> Option<Change> {
        if !self.enabled {
            return None;
        }
        let mut guard = self.lock();
        if self.gate().generation() != generation {
            return None;
        }
        let Shared { state, rng, .. } = &mut *guard;
        let State::Closed(closed) = state else { return None };
        self.gate.store(Gate::new(generation, Gate::FAILING).0, Relaxed);
        let in_a_row = closed.failed(endpoints, available, now, &self.rules);
        let why = self.rate_reached(now).or(in_a_row)?;
        let open = closed.open(why, now, &self.rules, rng);
        Some(self.open(&mut guard, open, now))
    }

    /// Counts a failure in, and says whether they are too many of all requests.
    fn rate_reached(&self, now: Instant) -> Option<Why> {
        let (rate, rule) = (self.rate.as_ref()?, self.rules.failure_rate.as_ref()?);
        rate.requests.add(now);
        rate.failures.add(now);
        let (requests, failures) = (rate.requests.count(now), rate.failures.count(now));
        rule.is_reached(failures, requests).then_some(Why::Rate { failures, requests })
    }

    /// A probe has ended.
    fn probe_ended(&self, generation: u64, began: Instant, outcome: Outcome, now: Instant) -> Option<Change> {
        let mut guard = self.lock();
        if self.gate().generation() != generation {
            return None;
        }
        let Shared { state, rng, .. } = &mut *guard;
        let State::HalfOpen(half_open) = state else { return None };
        half_open.end_probe(began);
        match outcome {
            Outcome::Success => {
                let closed = half_open.close(now);
                if let Some(rate) = &self.rate {
                    rate.requests.clear();
                    rate.failures.clear();
                }
                self.enter(&mut guard, State::Closed(closed), Gate::CLOSED, now);
                self.closed.fetch_add(1, Relaxed);
                Some(Change::Closed)
            }
            Outcome::Failure => {
                let open = half_open.open(now, &self.rules, rng);
                Some(self.open(&mut guard, open, now))
            }
        }
    }

    /// The caller of a probe left.
    fn probe_dropped(&self, generation: u64, began: Instant) {
        let mut shared = self.lock();
        if let State::HalfOpen(half_open) = &mut shared.state
            && self.gate().generation() == generation
        {
            half_open.end_probe(began);
        }
    }

    fn open(&self, shared: &mut Shared, open: states::Open, now: Instant) -> Change {
        let (open_for, why) = (open.open_for, open.why);
        self.open_until.store(since_epoch(open.until), Relaxed);
        self.enter(shared, State::Open(open), Gate::OPEN, now);
        self.opened.fetch_add(1, Relaxed);
        Change::Opened { open_for, why }
    }

    /// Changes the state; `shared` shows that the mutex is held.
    fn enter(&self, shared: &mut Shared, state: State, phase: u64, now: Instant) {
        shared.state = state;
        shared.since = now;
        self.gate.store(Gate::new(self.gate().generation() + 1, phase).0, Relaxed);
    }

    fn gate(&self) -> Gate {
        Gate(self.gate.load(Relaxed))
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a request meets now. One that is open until a time that has passed is half-open for the next request.
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.gate().phase() {
            Gate::OPEN if since_epoch(now) < self.open_until.load(Relaxed) => BreakerState::Open,
            Gate::OPEN | Gate::HALF_OPEN => BreakerState::HalfOpen,
            _ => BreakerState::Closed,
        }
    }

    /// How often it changed, for a counter.
    pub fn transitions(&self) -> Transitions {
        Transitions {
            opened: self.opened.load(Relaxed),
            half_opened: self.half_opened.load(Relaxed),
            closed: self.closed.load(Relaxed),
        }
    }

    /// Its state and why, for people.
    pub fn describe(&self, now: Instant) -> Value {
        if !self.enabled {
            return json!({ "state": "off" });
        }
        let shared = self.lock();
        let mut value = match &shared.state {
            State::Closed(closed) => json!({ "failuresInARow": closed.failures(now, &self.rules) }),
            State::Open(open) => json!({
                "why": open.why.to_string(),
                "openForSeconds": open.until.saturating_duration_since(now).as_secs_f64(),
                // The first request after that is one.
                "nextProbeInSeconds": open.until.saturating_duration_since(now).as_secs_f64(),
            }),
            State::HalfOpen(half_open) => {
                json!({
                    "why": half_open.why.to_string(),
                    "probes": half_open.probes(),
                    "nextProbeInSeconds": half_open.next_probe(now, &self.rules).as_secs_f64(),
                })
            }
        };
        value["state"] = self.state(now).as_str().into();
        value["sinceSeconds"] = now.saturating_duration_since(shared.since).as_secs_f64().into();
        value["opened"] = self.transitions().opened.into();
        if let Some(rate) = &self.rate {
            value["recentRequests"] = rate.requests.count(now).into();
            value["recentFailures"] = rate.failures.count(now).into();
        }
        value
    }
}

impl Pass<'_> {
    /// The request has ended. `endpoints` are those at which a failure was met (one, or all that were tried), none
    /// if it was not an endpoint's: then it counts as one of the whole upstream. `available` is how many endpoints
    /// may be chosen now. Both are looked at for failures only.
    pub fn ended(
        mut self,
        outcome: Outcome,
        endpoints: impl IntoIterator<Item = EndpointId>,
        available: usize,
        now: Instant,
    ) -> Option<Change> {
        match (std::mem::replace(&mut self.right, Right::Used), outcome) {
            (Right::Closed { generation }, Outcome::Success) => {
                self.breaker.succeeded(generation, now);
                None
            }
            (Right::Closed { generation }, Outcome::Failure) => {
                self.breaker.failed(generation, endpoints, available, now)
            }
            (Right::Probe { generation, began }, outcome) => {
                self.breaker.probe_ended(generation, began, outcome, now)
            }
            (Right::Used, _) => None,
        }
    }

    /// Whether it decides if a half-open breaker closes.
    pub fn is_probe(&self) -> bool {
        matches!(self.right, Right::Probe { .. })
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Right::Probe { generation, began } = self.right {
            self.breaker.probe_dropped(generation, began);
        }
    }
}

impl BreakerState {
    /// As the metric `outrigger_breaker_state` shows it.
    pub fn as_metric(self) -> i64 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half-open",
            Self::Open => "open",
        }
    }
}

/// Says in the log that the breaker of `upstream` changed.
pub fn log_change(upstream: &super::Upstream, change: Option<Change>) {
    match change {
        Some(change @ Change::Opened { .. }) => tracing::warn!("upstream {}: {change}", upstream.name),
        Some(change @ Change::Closed) => tracing::info!("upstream {}: {change}", upstream.name),
        None => {}
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened { open_for, why } => {
                write!(f, "the breaker is open for {:.1} s: {why}", open_for.as_secs_f64())
            }
            Self::Closed => f.write_str("the breaker is closed again: a probe succeeded"),
        }
    }
}
