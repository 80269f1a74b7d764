//! The breaker against a naive model of it: one that keeps every event, and looks at all of them each time.

use proptest::prelude::*;
use rand::RngExt;

use super::*;

/// What is done to a breaker.
#[derive(Clone, Debug)]
enum Step {
    Wait(Duration),
    /// A request asks to pass.
    Ask,
    /// One of the requests under way ends. The numbers are taken modulo what there is.
    End {
        which: usize,
        outcome: Outcome,
        at: Option<usize>,
        available: usize,
    },
    /// The caller of one of the requests under way leaves.
    Leave {
        which: usize,
    },
}

/// A request under way: the model's half, and the breaker's.
struct UnderWay<'a> {
    /// Changes of the model before it began.
    changes: u64,
    /// When it took a probe's place, if it did.
    probe: Option<Instant>,
    pass: Pass<'a>,
}

struct Event {
    at: Instant,
    endpoint: Option<EndpointId>,
    outcome: Outcome,
}

enum Now {
    /// Events since it closed.
    Closed {
        events: Vec<Event>,
        since: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    HalfOpen {
        probes: Vec<Instant>,
    },
}

struct Model {
    config: config::Breaker,
    now: Now,
    changes: u64,
    transitions: Transitions,
    /// How often it opened in a row.
    openings: u32,
    rng: SmallRng,
}

impl Model {
    fn new(config: &config::Breaker, rng: SmallRng) -> Self {
        Self {
            config: config.clone(),
            now: Now::Closed { events: Vec::new(), since: None },
            changes: 0,
            transitions: Transitions::default(),
            openings: 0,
            rng,
        }
    }

    /// Whether a request passes, and whether as a probe.
    fn ask(&mut self, now: Instant) -> Result<Option<Instant>, Duration> {
        if let Now::Open { until } = self.now {
            if now < until {
                return Err(until - now);
            }
            self.change(Now::HalfOpen { probes: Vec::new() });
            self.transitions.half_opened += 1;
        }
        let Now::HalfOpen { probes } = &mut self.now else { return Ok(None) };
        probes.retain(|began| now - *began < self.config.open_for());
        if probes.len() == self.config.probes() as usize {
            return Err(Duration::from_secs(1));
        }
        probes.push(now);
        Ok(Some(now))
    }

    fn leave(&mut self, changes: u64, probe: Option<Instant>) {
        if let (Now::HalfOpen { probes }, Some(began)) = (&mut self.now, probe)
            && changes == self.changes
            && let Some(at) = probes.iter().position(|probe| *probe == began)
        {
            probes.remove(at);
        }
    }

    /// Whether it opens (true) or closes (false).
    fn end(&mut self, under_way: &UnderWay<'_>, event: Event, available: usize) -> Option<bool> {
        self.leave(under_way.changes, under_way.probe);
        if under_way.changes != self.changes {
            return None;
        }
        let (at, outcome) = (event.at, event.outcome);
        let opens = match &mut self.now {
            Now::Open { .. } => return None,
            Now::HalfOpen { .. } => outcome == Outcome::Failure,
            Now::Closed { events, .. } => {
                events.push(event);
                if outcome == Outcome::Success || !self.is_too_much(available, at) {
                    return None;
                }
                true
            }
        };
        if opens {
            self.open(at);
        } else {
            self.change(Now::Closed { events: Vec::new(), since: Some(at) });
            self.transitions.closed += 1;
        }
        Some(opens)
    }

    fn is_too_much(&self, available: usize, now: Instant) -> bool {
        let Now::Closed { events, .. } = &self.now else { return false };
        let window = self.config.window();
        let row: Vec<_> = events
            .iter()
            .rev()
            .take_while(|event| event.outcome == Outcome::Failure)
            .filter(|event| now - event.at <= window)
            .collect();
        let mut touched: Vec<_> = row.iter().filter_map(|event| event.endpoint).collect();
        touched.sort_unstable();
        touched.dedup();
        let is_wide = row.iter().any(|event| event.endpoint.is_none()) || touched.len() * 2 >= available;
        if row.len() >= self.config.consecutive_failures() as usize && is_wide {
            return true;
        }
        let Some(rate) = &self.config.failure_rate else { return false };
        // Parts of the window are forgotten as a whole.
        let tick = |at: Instant| since_epoch(at) / (window.as_nanos() as u64 / 10);
        let counted: Vec<_> = events.iter().filter(|event| tick(event.at) + 10 > tick(now)).collect();
        let failures = counted.iter().filter(|event| event.outcome == Outcome::Failure).count();
        counted.len() >= rate.minimum_requests() as usize
            && failures * 100 >= counted.len() * usize::from(rate.percent)
    }

    fn open(&mut self, now: Instant) {
        if let Now::Closed { since, .. } = self.now
            && since.is_none_or(|since| now - since > self.config.window())
        {
            self.openings = 0;
        }
        self.openings += 1;
        let mut time = self.config.open_for();
        for _ in 1..self.openings {
            time = (time * 2).min(self.config.max_open_for());
        }
        let longest = time.mul_f64(1.2).min(self.config.max_open_for());
        let until = now + self.rng.random_range(time.mul_f64(0.8)..=longest);
        self.change(Now::Open { until });
        self.transitions.opened += 1;
    }

    fn change(&mut self, next: Now) {
        self.now = next;
        self.changes += 1;
    }

    fn state(&self, now: Instant) -> BreakerState {
        match self.now {
            Now::Closed { .. } => BreakerState::Closed,
            Now::Open { until } if now < until => BreakerState::Open,
            Now::Open { .. } | Now::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

/// Runs the steps on both, and compares what is seen after each.
fn compare(config: &config::Breaker, seed: u64, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let ids = endpoints::<6>();
    let breaker = Breaker::with_rng(config, SmallRng::seed_from_u64(seed));
    let mut model = Model::new(config, SmallRng::seed_from_u64(seed));
    let mut now = start();
    let mut under_way: Vec<UnderWay<'_>> = Vec::new();
    for step in steps {
        match step {
            Step::Wait(time) => now += time,
            Step::Ask => match (model.ask(now), breaker.try_pass(now)) {
                (Ok(probe), Ok(pass)) => {
                    prop_assert_eq!(pass.is_probe(), probe.is_some());
                    under_way.push(UnderWay { changes: model.changes, probe, pass });
                }
                (Err(wait), Err(open)) => prop_assert_eq!(open.retry_after, wait),
                (model, breaker) => prop_assert!(false, "model: {:?}, breaker: {:?}", model, breaker),
            },
            Step::End { .. } | Step::Leave { .. } if under_way.is_empty() => {}
            Step::End { which, outcome, at, available } => {
                let request = under_way.swap_remove(which % under_way.len());
                let endpoint = at.map(|at| ids[at % ids.len()]);
                let changes = model.end(&request, Event { at: now, endpoint, outcome }, available);
                let change = request.pass.ended(outcome, endpoint, available, now);
                prop_assert_eq!(change.map(|change| change != Change::Closed), changes);
            }
            Step::Leave { which } => {
                let request = under_way.swap_remove(which % under_way.len());
                model.leave(request.changes, request.probe);
            }
        }
        prop_assert_eq!(breaker.state(now), model.state(now));
        prop_assert_eq!(breaker.transitions(), model.transitions);
    }
    Ok(())
}

fn some_config() -> impl Strategy<Value = config::Breaker> {
    let rate = (1..=100_u8, 1..12_u32)
        .prop_map(|(percent, minimum)| config::FailureRate { percent, minimum_requests: Some(minimum) });
    (1..7_u32, 1..20_u64, proptest::option::of(rate), 1..15_u64, 1..5_u64, 1..4_u32).prop_map(
        |(failures, window, failure_rate, open_for, times, probes)| config::Breaker {
            enabled: None,
            consecutive_failures: Some(failures),
            window: seconds(window),
            failure_rate,
            open_for: seconds(open_for),
            max_open_for: seconds(open_for * times),
            probes: Some(probes),
        },
    )
}

fn some_step() -> impl Strategy<Value = Step> {
    let wait = prop_oneof![
        Just(Duration::ZERO),
        (0..500_u64).prop_map(Duration::from_millis),
        (0..20_000_u64).prop_map(Duration::from_millis),
        (0..15_u64).prop_map(Duration::from_secs),
    ];
    let outcome = prop_oneof![1 => Just(Outcome::Success), 4 => Just(Outcome::Failure)];
    let end = (any::<usize>(), outcome, proptest::option::weighted(0.9, any::<usize>()), 0..7_usize)
        .prop_map(|(which, outcome, at, available)| Step::End { which, outcome, at, available });
    prop_oneof![
        2 => wait.prop_map(Step::Wait),
        6 => Just(Step::Ask),
        6 => end,
        1 => any::<usize>().prop_map(|which| Step::Leave { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_does_what_a_model_does_that_forgets_nothing(
        config in some_config(),
        seed: u64,
        steps in proptest::collection::vec(some_step(), 1..150),
    ) {
        compare(&config, seed, steps)?;
    }
}
