//! When an endpoint is asked, and what its answers mean.

use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::HealthCheck;
use crate::telemetry::Metrics;
use crate::upstream::{Endpoint, Health};

/// Until it is tried again what could not be asked.
const ASKED_AGAIN: Duration = Duration::from_millis(500);

/// When an endpoint is asked, and how many answers of one kind mean something.
#[derive(Debug)]
pub(super) struct Schedule {
    interval: Duration,
    /// Share of the interval.
    jitter: f64,
    pub(super) timeout: Duration,
    unhealthy_after: u32,
    healthy_after: u32,
}

/// What came of one check, in words.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The endpoint is well.
    Passed(String),
    /// It is not.
    Failed(String),
    /// It could not be asked, and that is not its fault.
    NotAsked(String),
}

/// An endpoint that is checked, and what is told of it.
pub(super) struct Checked<'a> {
    pub(super) upstream: &'a str,
    pub(super) endpoint: &'a Arc<Endpoint>,
    /// What it is asked, in a few words.
    pub(super) what: &'a str,
    pub(super) metrics: &'a Metrics,
}

impl Schedule {
    pub(super) fn of(check: &HealthCheck) -> Self {
        Self {
            interval: check.interval(),
            jitter: f64::from(check.jitter_percent()) / 100.0,
            timeout: check.timeout(),
            unhealthy_after: check.unhealthy_after(),
            healthy_after: check.healthy_after(),
        }
    }

    /// The time over which checks are spread that would start at once.
    pub(super) fn spread(&self) -> Duration {
        self.interval.mul_f64(self.jitter)
    }

    /// From the start of one check to that of the next.
    fn pause(&self) -> Duration {
        let share: f64 = rand::rng().random_range(-self.jitter..=self.jitter);
        self.interval.mul_f64((1.0 + share).max(0.0))
    }
}

/// The results so far.
#[derive(Debug)]
struct Tally {
    health: Health,
    /// Results in a row that speak against it.
    against: u32,
}

impl Tally {
    /// Takes a result in. Gives how many there are and must be in a row until it changes something, if it speaks against
    /// what holds.
    fn take(&mut self, passed: bool, schedule: &Schedule) -> Option<(u32, u32)> {
        let found = if passed { Health::Healthy } else { Health::Unhealthy };
        let enough = match self.health {
            _ if self.health == found => {
                self.against = 0;
                return None;
            }
            Health::Unknown => 1,
            Health::Healthy => schedule.unhealthy_after,
            Health::Unhealthy => schedule.healthy_after,
        };
        self.against += 1;
        if self.against < enough {
            return Some((self.against, enough));
        }
        *self = Self { health: found, against: 0 };
        None
    }
}

/// Checks an endpoint for ever, the first time at once.
pub(super) async fn keep_checked(checked: &Checked<'_>, schedule: &Schedule, ask: impl AsyncFn() -> Outcome) {
    let mut tally = Tally { health: checked.endpoint.standing.health(), against: 0 };
    loop {
        let started = Instant::now();
        let outcome = timeout(schedule.timeout, ask())
            .await
            .unwrap_or_else(|_| Outcome::Failed(format!("no answer within {:?}", schedule.timeout)));
        let pause = match outcome {
            Outcome::Passed(why) => checked.take(true, &why, &mut tally, schedule),
            Outcome::Failed(why) => checked.take(false, &why, &mut tally, schedule),
            Outcome::NotAsked(why) => {
                let words = format!("{}: not asked: {why}", checked.what);
                checked.endpoint.standing.set_health(tally.health, words);
                schedule.interval.min(ASKED_AGAIN)
            }
        };
        sleep_until(started + pause).await;
    }
}

impl Checked<'_> {
    /// Tells of a result; gives the pause until the next check.
    fn take(&self, passed: bool, why: &str, tally: &mut Tally, schedule: &Schedule) -> Duration {
        let (result, results) = if passed { ("success", "successes") } else { ("failure", "failures") };
        self.metrics.health_checks.inc([self.upstream, result]);
        let before = tally.health;
        let against = tally.take(passed, schedule);
        let mut words = format!("{}: {why}", self.what);
        if let Some((count, enough)) = against {
            words += &format!(" ({count} of {enough} {results} in a row)");
        }
        if tally.health != before {
            let (upstream, address) = (self.upstream, self.endpoint.address);
            match tally.health {
                Health::Healthy => tracing::info!("upstream {upstream}: endpoint {address} is in: {words}"),
                _ => tracing::warn!("upstream {upstream}: endpoint {address} is out: {words}"),
            }
        }
        self.endpoint.standing.set_health(tally.health, words);
        schedule.pause()
    }
}
