//! Whether an endpoint is in or out, and why.
//!
//! Health checks and ejection write here; the picker is made anew when something here changes.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::load::since_epoch;
use super::outlier::Record;

/// What active health checks found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not checked yet. Where endpoints are checked it is out until its first success.
    Unknown,
    /// In.
    Healthy,
    /// Out.
    Unhealthy,
}

/// How an endpoint counts in `outrigger_endpoints`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// In.
    Healthy,
    /// Out for a time by what requests met there.
    Ejected,
    /// Out by health checks, or not checked yet.
    Unhealthy,
}

impl EndpointState {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Endpoints of an upstream by what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct States {
    /// In.
    pub healthy: usize,
    /// Ejected.
    pub ejected: usize,
    /// Out by health checks.
    pub unhealthy: usize,
    /// Of the set no more, and still in use.
    pub draining: usize,
}

/// Whether an endpoint is in or out, and why.
#[derive(Debug, Default)]
pub struct Standing {
    /// A [`Health`].
    health: AtomicU8,
    /// Nanoseconds after the epoch; 0: never.
    ejected_until: AtomicU64,
    /// It would be ejected, were not too many out already. Nanoseconds after the epoch; 0: no.
    spared_until: AtomicU64,
    /// Nanoseconds after the epoch since which it is in; 0 while it is out.
    in_since: AtomicU64,
    /// For people only.
    reasons: Mutex<Reasons>,
    joined: OnceLock<Joined>,
    pub(super) record: Record,
}

#[derive(Debug, Default)]
struct Reasons {
    health: Option<Arc<str>>,
    /// When health checks last put it in or out.
    health_since: Option<Instant>,
    /// Why it was last ejected, and when.
    ejection: Option<(Arc<str>, Instant)>,
}

/// The upstream that an endpoint belongs to.
#[derive(Debug)]
struct Joined {
    stale_at: Arc<StaleAt>,
    is_checked: bool,
    at: Instant,
}

/// What an endpoint's standing is, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// In or out.
    pub state: EndpointState,
    /// For how long; `None` where nobody has taken note.
    pub lasts: Option<Duration>,
    /// Why.
    pub why: String,
}

impl Standing {
    /// Tells it whose it is; only the first time counts.
    pub(super) fn join(&self, stale_at: &Arc<StaleAt>, is_checked: bool) {
        self.joined.get_or_init(|| Joined { stale_at: stale_at.clone(), is_checked, at: Instant::now() });
    }

    /// What a health check found, and the words for it on the admin port.
    pub fn set_health(&self, health: Health, why: impl Into<Arc<str>>) {
        let has_changed = {
            let mut reasons = self.reasons();
            reasons.health = Some(why.into());
            let has_changed = self.health.swap(health as u8, Ordering::Release) != health as u8;
            if has_changed {
                reasons.health_since = Some(Instant::now());
            }
            has_changed
        };
        if has_changed {
            self.changed();
        }
    }

    /// What health checks found last.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            health if health == Health::Healthy as u8 => Health::Healthy,
            health if health == Health::Unhealthy as u8 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// How long health checks have found it as they do now; `None` where nothing is checked.
    pub fn health_for(&self, now: Instant) -> Option<Duration> {
        self.reasons().health_since.map(|since| now.saturating_duration_since(since))
    }

    /// Puts it out until then (nanoseconds after the epoch).
    pub(super) fn eject(&self, until: u64, why: Arc<str>, now: Instant) {
        self.reasons().ejection = Some((why, now));
        self.ejected_until.store(until, Ordering::Release);
        self.changed();
    }

    /// Notes that it fails and stays in until then (nanoseconds after the epoch) because no more may be out.
    pub(super) fn spare(&self, until: u64, why: Arc<str>, now: Instant) {
        self.reasons().ejection = Some((why, now));
        self.spared_until.store(until, Ordering::Release);
        self.changed();
    }

    /// It has answered.
    pub(super) fn recovered(&self) {
        if self.spared_until() != 0 {
            self.spared_until.store(0, Ordering::Release);
            self.changed();
        }
    }

    pub(super) fn spared_until(&self) -> u64 {
        self.spared_until.load(Ordering::Acquire)
    }

    pub(super) fn is_spared(&self, now: u64) -> bool {
        self.spared_until() > now
    }

    /// When its last ejection ends or ended, in nanoseconds after the epoch; 0 before the first.
    pub(super) fn ejected_until(&self) -> u64 {
        self.ejected_until.load(Ordering::Acquire)
    }

    pub(super) fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until() > now
    }

    /// Whether it counts as available.
    pub fn state(&self, now: Instant) -> EndpointState {
        self.state_at(since_epoch(now))
    }

    pub(super) fn state_at(&self, now: u64) -> EndpointState {
        let is_checked = self.joined.get().is_some_and(|joined| joined.is_checked);
        match self.health() {
            Health::Unhealthy => EndpointState::Unhealthy,
            Health::Unknown if is_checked => EndpointState::Unhealthy,
            _ if self.is_ejected(now) => EndpointState::Ejected,
            _ => EndpointState::Healthy,
        }
    }

    /// In or out and why, for `/upstreams`.
    pub fn describe(&self, now: Instant) -> String {
        let at = since_epoch(now);
        let reasons = self.reasons();
        let or = |reason: &Option<Arc<str>>, else_| reason.as_deref().unwrap_or(else_).to_owned();
        match self.state_at(at) {
            EndpointState::Unhealthy => format!("out: {}", or(&reasons.health, "not checked yet")),
            EndpointState::Ejected => {
                let left = Duration::from_nanos(self.ejected_until() - at).as_secs_f64();
                let why = reasons.ejection.as_ref().map_or("ejected", |(why, _)| why);
                format!("out for {left:.1} s: {why}")
            }
            EndpointState::Healthy if self.is_spared(at) => {
                let why = reasons.ejection.as_ref().map_or("it fails", |(why, _)| why);
                format!("in, as no more may be out: {why}")
            }
            EndpointState::Healthy => match (&reasons.health, self.health()) {
                (Some(health), Health::Healthy) => format!("in: {health}"),
                _ => "in".into(),
            },
        }
    }

    /// In or out, for how long and why, for those who look for what is wrong.
    pub fn explain(&self, now: Instant) -> Described {
        let at = since_epoch(now);
        let state = self.state_at(at);
        let reasons = self.reasons();
        let joined = self.joined.get().map(|joined| joined.at);
        let checked = |health: &Arc<str>| format!("health check: {health}");
        let (since, why) = match state {
            EndpointState::Unhealthy => {
                let why = reasons
                    .health
                    .as_ref()
                    .map_or_else(|| "health check: none has ended yet".into(), checked);
                (reasons.health_since.or(joined), why)
            }
            EndpointState::Ejected => {
                let left = Duration::from_nanos(self.ejected_until().saturating_sub(at)).as_secs_f64();
                let (why, since) = match &reasons.ejection {
                    Some((why, since)) => (&**why, Some(*since)),
                    None => ("by its failures", None),
                };
                (since, format!("ejected: {why}; back in {left:.1} s"))
            }
            EndpointState::Healthy if self.is_spared(at) => {
                let (why, since) = match &reasons.ejection {
                    Some((why, since)) => (&**why, Some(*since)),
                    None => ("it fails", None),
                };
                (since, format!("in, as no more may be out: {why}"))
            }
            EndpointState::Healthy => {
                // It came back when its last ejection was over.
                let back = match self.ejected_until() {
                    0 => None,
                    until => now.checked_sub(Duration::from_nanos(at.saturating_sub(until))),
                };
                let why = match (&reasons.health, self.health()) {
                    (Some(health), Health::Healthy) => checked(health),
                    _ => "nothing speaks against it".into(),
                };
                ([reasons.health_since, joined, back].into_iter().flatten().max(), why)
            }
        };
        Described { state, lasts: since.map(|since| now.saturating_duration_since(since)), why }
    }

    /// Since when it gets requests without a break, in nanoseconds after the epoch; 0 while it is out, or where nobody
    /// takes note because it has no slow start.
    pub(super) fn in_since(&self) -> u64 {
        self.in_since.load(Ordering::Relaxed)
    }

    /// Notes whether it is in; gives how long it has been.
    pub(super) fn in_for(&self, is_in: bool, now: u64) -> Duration {
        let since = match (is_in, self.in_since.load(Ordering::Relaxed)) {
            (false, _) => 0,
            (true, 0) => now.max(1),
            (true, since) => since,
        };
        self.in_since.store(since, Ordering::Relaxed);
        Duration::from_nanos(now.saturating_sub(since))
    }

    fn changed(&self) {
        if let Some(joined) = self.joined.get() {
            joined.stale_at.set_now();
        }
    }

    fn reasons(&self) -> MutexGuard<'_, Reasons> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the picker of an upstream must be made anew, in nanoseconds after the epoch.
#[derive(Debug)]
pub(super) struct StaleAt(AtomicU64);

impl Default for StaleAt {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl StaleAt {
    pub(super) fn is_due(&self, now: u64) -> bool {
        now >= self.0.load(Ordering::Relaxed)
    }

    /// Something that it was made of has changed.
    pub(super) fn set_now(&self) {
        self.0.store(0, Ordering::Release);
    }

    /// Runs `make`, which gives when its result is stale. What changes while it runs is not lost.
    pub(super) fn renew(&self, make: impl FnOnce() -> u64) {
        self.0.swap(u64::MAX, Ordering::AcqRel);
        let next = make();
        self.0.fetch_min(next, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_whether_it_is_in_and_why() {
        let now = Instant::now() + Duration::from_secs(60);
        let standing = Standing::default();
        assert_eq!((standing.state(now), &*standing.describe(now)), (EndpointState::Healthy, "in"));
        standing.eject(since_epoch(now) + 1_500_000_000, "5 failures in a row".into(), now);
        assert_eq!(standing.state(now), EndpointState::Ejected);
        assert_eq!(standing.describe(now), "out for 1.5 s: 5 failures in a row");
        standing.set_health(Health::Unhealthy, "GET /healthz: 500");
        assert_eq!(standing.state(now), EndpointState::Unhealthy);
        assert_eq!(standing.describe(now), "out: GET /healthz: 500");
        let later = now + Duration::from_secs(2);
        standing.set_health(Health::Healthy, "GET /healthz: 200");
        assert_eq!(standing.state(later), EndpointState::Healthy);
        assert_eq!(standing.describe(later), "in: GET /healthz: 200");
    }

    #[test]
    fn it_says_for_how_long_it_has_been_so_and_why() {
        let now = Instant::now() + Duration::from_secs(60);
        let after = |seconds| now + Duration::from_secs(seconds);
        let told = |standing: &Standing, at| {
            let Described { state, lasts, why } = standing.explain(at);
            (state, lasts.map(|lasts| lasts.as_secs()), why)
        };
        let standing = Standing::default();
        let nothing = "nothing speaks against it".to_owned();
        assert_eq!(told(&standing, now), (EndpointState::Healthy, None, nothing.clone()));
        standing.eject(since_epoch(after(30)), "5 failures in a row (ejection 1)".into(), now);
        let why = "ejected: 5 failures in a row (ejection 1); back in 20.0 s".to_owned();
        assert_eq!(told(&standing, after(10)), (EndpointState::Ejected, Some(10), why));
        assert_eq!(told(&standing, after(37)), (EndpointState::Healthy, Some(7), nothing));
        standing.set_health(Health::Unhealthy, "connect: connection refused");
        let (state, _, why) = told(&standing, after(40));
        assert_eq!((state, &*why), (EndpointState::Unhealthy, "health check: connect: connection refused"));
        standing.join(&Arc::default(), true);
        let new = Standing::default();
        new.join(&Arc::default(), true);
        assert_eq!(new.explain(after(1)).why, "health check: none has ended yet");
    }

    #[test]
    fn where_endpoints_are_checked_a_new_one_is_out_until_its_first_success() {
        let now = Instant::now();
        let standing = Standing::default();
        standing.join(&Arc::default(), true);
        assert_eq!(standing.describe(now), "out: not checked yet");
        standing.set_health(Health::Healthy, "connected");
        assert_eq!(standing.state(now), EndpointState::Healthy);
    }

    #[test]
    fn a_change_while_a_picker_is_made_makes_another() {
        let stale_at = StaleAt::default();
        assert!(!stale_at.is_due(7));
        stale_at.renew(|| 9);
        assert!(!stale_at.is_due(8) && stale_at.is_due(9));
        stale_at.renew(|| {
            stale_at.set_now();
            9
        });
        assert!(stale_at.is_due(1));
    }
}
