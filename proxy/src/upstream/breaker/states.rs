//! The states of a breaker and what leads from one to the next. No clock, no sharing: those are the breaker's.
//!
//! ```text
//! Closed ── enough failures ──▶ Open ── its time is over ──▶ HalfOpen
//!   ▲                            ▲                             │ │
//!   │                            └──────── a probe fails ──────┘ │
//!   └─────────────────────────────── a probe succeeds ───────────┘
//! ```

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use crate::config;
use crate::upstream::EndpointId;

/// More failures in a row are not told apart: their times are kept, and a config must not fill the memory with them.
const MOST_CONSECUTIVE_FAILURES: u32 = 10_000;
/// Share of the open time by which it is drawn shorter or longer. Proxies that saw the same outage would else probe
/// at the same moment.
const JITTER: f64 = 0.2;

/// When a breaker opens, and for how long.
#[derive(Debug)]
pub(super) struct Rules {
    consecutive_failures: usize,
    pub(super) window: Duration,
    pub(super) failure_rate: Option<FailureRate>,
    open_for: Duration,
    max_open_for: Duration,
    probes: usize,
}

/// A share of failures that opens a breaker.
#[derive(Debug)]
pub(super) struct FailureRate {
    percent: u64,
    minimum_requests: u64,
}

/// What a breaker does now.
#[derive(Debug)]
pub(super) enum State {
    Closed(Closed),
    Open(Open),
    HalfOpen(HalfOpen),
}

/// Lets all pass, and remembers the failures since the last success.
#[derive(Debug, Default)]
pub(super) struct Closed {
    /// Times of the last failures, no more than the rule asks for.
    failures: VecDeque<Instant>,
    /// When each endpoint failed last.
    endpoints: HashMap<EndpointId, Instant>,
    /// The last failure that was no endpoint's in particular.
    unattributed: Option<Instant>,
    /// Where it comes from, unless it was never open.
    closed: Option<(Instant, Openings)>,
}

/// Lets nobody pass until its time is over.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) until: Instant,
    pub(super) open_for: Duration,
    pub(super) why: Why,
    openings: Openings,
}

/// Lets a few pass, whose success decides.
#[derive(Debug)]
pub(super) struct HalfOpen {
    /// When the probes under way began.
    probes: Vec<Instant>,
    pub(super) why: Why,
    openings: Openings,
}

/// How often in a row it opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Openings(u32);

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// So many failures in a row.
    InARow {
        /// How many.
        failures: usize,
        /// The endpoints they were met at.
        endpoints: usize,
        /// The endpoints that were available.
        available: usize,
    },
    /// Too large a share of failures.
    Rate {
        /// Failures within the window.
        failures: u64,
        /// Requests within the window.
        requests: u64,
    },
    /// It was half-open, and a probe failed.
    Probe,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow { failures, endpoints, available } => {
                write!(f, "{failures} failures in a row, at {endpoints} endpoints; {available} are available")
            }
            Self::Rate { failures, requests } => write!(f, "{failures} of {requests} requests failed"),
            Self::Probe => f.write_str("a probe failed"),
        }
    }
}

impl Rules {
    pub(super) fn new(config: &config::Breaker) -> Self {
        let failure_rate = config.failure_rate.as_ref().map(|rate| FailureRate {
            percent: rate.percent.into(),
            minimum_requests: rate.minimum_requests().max(1).into(),
        });
        Self {
            consecutive_failures: config.consecutive_failures().clamp(1, MOST_CONSECUTIVE_FAILURES) as usize,
            window: config.window(),
            failure_rate,
            open_for: config.open_for(),
            max_open_for: config.max_open_for().max(config.open_for()),
            probes: config.probes().max(1) as usize,
        }
    }

    fn is_recent(&self, then: Instant, now: Instant) -> bool {
        now.saturating_duration_since(then) <= self.window
    }

    /// The time to stay open: doubled each time, then drawn from around there, never over the maximum.
    fn open_for(&self, Openings(openings): Openings, rng: &mut impl Rng) -> Duration {
        let doubled =
            2_u32.checked_pow(openings.saturating_sub(1)).and_then(|n| self.open_for.checked_mul(n));
        let time = doubled.unwrap_or(self.max_open_for).min(self.max_open_for);
        let longest = time.mul_f64(1.0 + JITTER).min(self.max_open_for);
        rng.random_range(time.mul_f64(1.0 - JITTER)..=longest)
    }
}

impl FailureRate {
    /// Whether so many failures are too many.
    pub(super) fn is_reached(&self, failures: u64, requests: u64) -> bool {
        requests >= self.minimum_requests && failures * 100 >= requests * self.percent
    }
}

impl Closed {
    /// A success, whoever it was met at, ends the row.
    pub(super) fn succeeded(&mut self) {
        self.failures.clear();
        self.endpoints.clear();
        self.unattributed = None;
    }

    /// Takes a failure in that was met at `endpoints`. Says why this is the one too many, if it is: the row is long
    /// enough within the window, and touches half of the `available` endpoints. One bad endpoint among many is a
    /// matter of its ejection.
    pub(super) fn failed(
        &mut self,
        endpoints: impl IntoIterator<Item = EndpointId>,
        available: usize,
        now: Instant,
        rules: &Rules,
    ) -> Option<Why> {
        self.failures.push_back(now);
        if self.failures.len() > rules.consecutive_failures {
            self.failures.pop_front();
        }
        let mut attributed = false;
        for endpoint in endpoints {
            attributed = true;
            self.endpoints.insert(endpoint, now);
        }
        if !attributed {
            self.unattributed = Some(now);
        }
        self.failures.retain(|then| rules.is_recent(*then, now));
        self.endpoints.retain(|_, then| rules.is_recent(*then, now));
        self.unattributed = self.unattributed.filter(|then| rules.is_recent(*then, now));
        let touched = self.endpoints.len();
        let is_wide = self.unattributed.is_some() || touched * 2 >= available;
        (self.failures.len() >= rules.consecutive_failures && is_wide).then_some(Why::InARow {
            failures: self.failures.len(),
            endpoints: touched,
            available,
        })
    }

    /// Failures in a row now.
    pub(super) fn failures(&self, now: Instant, rules: &Rules) -> usize {
        self.failures.iter().filter(|then| rules.is_recent(**then, now)).count()
    }

    /// Opens. Was it open until less than a window ago, then for longer than that time: an upstream that answers
    /// a probe and breaks down under all the rest must not be tried so again and again.
    pub(super) fn open(&self, why: Why, now: Instant, rules: &Rules, rng: &mut impl Rng) -> Open {
        let before = match self.closed {
            Some((closed, openings)) if rules.is_recent(closed, now) => openings,
            _ => Openings(0),
        };
        Open::after(before, why, now, rules, rng)
    }
}

impl Open {
    fn after(Openings(before): Openings, why: Why, now: Instant, rules: &Rules, rng: &mut impl Rng) -> Self {
        let openings = Openings(before.saturating_add(1));
        let open_for = rules.open_for(openings, rng);
        Self { until: now + open_for, open_for, why, openings }
    }

    pub(super) fn half_open(&self) -> HalfOpen {
        HalfOpen { probes: Vec::new(), why: self.why, openings: self.openings }
    }
}

impl HalfOpen {
    /// Takes a probe's place if one is free. A probe that has got no answer for as long as the breaker was first
    /// open loses its place to the next: a request that hangs must not keep all others out.
    pub(super) fn begin_probe(&mut self, now: Instant, rules: &Rules) -> bool {
        self.probes.retain(|began| now.saturating_duration_since(*began) < rules.open_for);
        let is_free = self.probes.len() < rules.probes;
        if is_free {
            self.probes.push(now);
        }
        is_free
    }

    /// The time until a place is free: at the latest when the oldest probe has lost its own.
    pub(super) fn next_probe(&self, now: Instant, rules: &Rules) -> Duration {
        if self.probes.len() < rules.probes {
            return Duration::ZERO;
        }
        let oldest = self.probes.iter().min().copied().unwrap_or(now);
        (oldest + rules.open_for).saturating_duration_since(now)
    }

    /// Gives the place of the probe that `began` then to the next.
    pub(super) fn end_probe(&mut self, began: Instant) {
        if let Some(at) = self.probes.iter().position(|probe| *probe == began) {
            self.probes.swap_remove(at);
        }
    }

    /// Probes under way.
    pub(super) fn probes(&self) -> usize {
        self.probes.len()
    }

    /// A probe succeeded.
    pub(super) fn close(&self, now: Instant) -> Closed {
        Closed { closed: Some((now, self.openings)), ..Closed::default() }
    }

    /// A probe failed.
    pub(super) fn open(&self, now: Instant, rules: &Rules, rng: &mut impl Rng) -> Open {
        Open::after(self.openings, Why::Probe, now, rules, rng)
    }
}
