//! An upstream and its current set of endpoints.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rand::Rng;
use tokio::sync::watch;

use super::balance::{Choice, Picker, Subset};
use super::counted::Turnover;
use super::load::since_epoch;
use super::outlier::Ejections;
use super::queue::Queue;
use super::standing::{EndpointState, StaleAt, States};
use super::{Breaker, ConcurrencyLimit, Endpoint, EndpointId, Policy, RetryBudget, RetryPolicy};

/// How exactly the last use is known, in nanoseconds: workers that all wrote the time for each request would
/// pass the cache line around.
const USE_NOTED_EVERY: u64 = 1_000_000_000;
/// Subsets that a picker is made for. Routes bound them, but those of earlier configs stay until there are this many.
const MAX_SUBSETS: usize = 256;

/// A named service that requests are sent to.
#[derive(Debug)]
pub struct Upstream {
    /// Its name in metrics, logs and on the admin port.
    pub name: Arc<str>,
    /// Its policy.
    pub policy: Policy,
    /// Requests that name it may go there whatever address was dialled.
    pub any_destination: bool,
    set: ArcSwap<EndpointSet>,
    picker: ArcSwap<Picker>,
    stale_at: Arc<StaleAt>,
    making: Mutex<Making>,
    /// Is told when endpoints came or left.
    pub(super) changes: watch::Sender<()>,
    pub(super) ejections: Ejections,
    /// Lets requests pass, or none while it is open.
    pub breaker: Breaker,
    /// How many retries are left.
    pub retry_budget: RetryBudget,
    /// Limit of the requests under way at once.
    pub concurrency: Option<Arc<ConcurrencyLimit>>,
    /// Requests under way, where `pool.maxRequests` is stated.
    pub(super) requests: AtomicUsize,
    /// Nanoseconds after the epoch of [`since_epoch`].
    last_used: AtomicU64,
    pub(super) connections: AtomicUsize,
    pub(super) pending: AtomicUsize,
    /// Who waits for a connection, and who is to close one.
    pub(super) queue: Queue,
    pub(super) turnover: Turnover,
}

/// What only those need who make a new set or picker.
#[derive(Debug, Default)]
struct Making {
    /// The subsets that were asked for.
    subsets: Vec<Subset>,
    /// Endpoints that left the set, until nobody uses them.
    left: Vec<Weak<Endpoint>>,
}

/// The endpoints of an upstream, as one answer of discovery gave them.
#[derive(Debug, Default)]
pub struct EndpointSet {
    /// What the answer is of ([`crate::resolve::Answer::name`]); `None` without one, and where nobody was asked.
    pub name: Option<Arc<str>>,
    /// The endpoints.
    pub members: Vec<Member>,
    /// Further addresses that stand for the service: its VIPs.
    pub vips: Vec<IpAddr>,
    /// Where the answer came from: `hosts`, `mesh`, `dns`, `static`.
    pub source: &'static str,
    /// When the answer came.
    pub refreshed: Option<Instant>,
    /// The last lookup's failure, when it failed.
    pub error: Option<Arc<str>>,
    /// The request timeout that the service's owner declared.
    pub request_timeout: Option<Duration>,
    /// The upstream's policy with the number of retries that the service's owner declared; `None` where that is not
    /// stated, or the config states one.
    pub retry: Option<Arc<RetryPolicy>>,
}

/// An endpoint, and what discovery says of its place in the set. It may change without a connection being dropped.
#[derive(Clone, Debug)]
pub struct Member {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Share of the requests, relative to the other members; 0 for none.
    pub weight: u32,
    /// 0 is used first; a level with a larger number only as far as those before it have too few healthy endpoints.
    pub priority: u32,
    /// Availability zone.
    pub zone: Option<Arc<str>>,
    /// Tags by which a route's `subset` chooses.
    pub tags: Arc<BTreeMap<String, String>>,
}

impl Member {
    /// A member like any other: weight 1, priority 0, neither zone nor tags.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { endpoint, weight: 1, priority: 0, zone: None, tags: Arc::default() }
    }

    /// Whether requests are spread over `other` as over this.
    fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.endpoint, &other.endpoint)
            && (self.weight, self.priority) == (other.weight, other.priority)
            && self.zone == other.zone
            && self.tags == other.tags
    }
}

impl Upstream {
    /// An upstream without endpoints yet.
    pub fn new(name: impl Into<Arc<str>>, policy: Policy, any_destination: bool) -> Self {
        Self {
            name: name.into(),
            any_destination,
            set: ArcSwap::default(),
            picker: ArcSwap::default(),
            stale_at: Arc::default(),
            making: Mutex::default(),
            changes: watch::Sender::new(()),
            ejections: Ejections::default(),
            breaker: Breaker::new(&policy.breaker),
            retry_budget: RetryBudget::new(&policy.retry_budget),
            concurrency: policy.concurrency.as_ref().map(ConcurrencyLimit::new),
            requests: AtomicUsize::new(0),
            last_used: AtomicU64::new(0),
            connections: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            queue: Queue::default(),
            turnover: Turnover::default(),
            policy,
        }
    }

    /// The endpoints now.
    pub fn set(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.set.load()
    }

    /// Puts a new answer in place; endpoints that stay the same keep their connections, averages and standing.
    /// Returns whether what was decided by the set before may be decided otherwise now.
    pub fn update(&self, mut next: EndpointSet) -> bool {
        let mut making = self.making();
        let before = self.set.load_full();
        for member in &mut next.members {
            match before.endpoints().find(|known| known.is_same(&member.endpoint)) {
                Some(known) => member.endpoint = known.clone(),
                None => member.endpoint.standing.join(&self.stale_at, self.policy.checks_health),
            }
        }
        let changed = !before.decides_like(&next);
        let is_spread_alike = before.members.len() == next.members.len()
            && before.members.iter().zip(&next.members).all(|(before, next)| before.is_same(next));
        making.left.retain(|left| left.strong_count() > 0);
        for gone in before.endpoints().filter(|gone| !next.endpoints().any(|stays| Arc::ptr_eq(stays, gone)))
        {
            gone.leave();
            making.left.push(Arc::downgrade(gone));
        }
        self.set.store(Arc::new(next));
        if !is_spread_alike {
            self.make_picker(&making, since_epoch(Instant::now()));
            self.changes.send_replace(());
        }
        changed
    }

    /// The upstream itself is let go of: its connections close as soon as nobody uses them.
    pub(super) fn leave(&self) {
        self.set.load().endpoints().for_each(|endpoint| endpoint.leave());
        self.changes.send_replace(());
    }

    /// The endpoint for one try of a request: the one that was dialled by its own address, if any, else one of all.
    pub fn pick(
        &self,
        dialled: Option<&Arc<Endpoint>>,
        choice: &Choice<'_>,
        rng: &mut impl Rng,
    ) -> Option<Arc<Endpoint>> {
        match dialled {
            Some(endpoint) => {
                self.note_use(choice.now);
                Some(endpoint.clone())
            }
            None => self.choose(choice, rng),
        }
    }

    /// Chooses the endpoint for one try of a request.
    pub fn choose(&self, choice: &Choice<'_>, rng: &mut impl Rng) -> Option<Arc<Endpoint>> {
        let now = since_epoch(choice.now);
        self.note_use_at(now);
        // Who finds another at it takes the picker there is.
        if self.stale_at.is_due(now)
            && let Some(making) = self.try_making()
        {
            self.make_picker(&making, now);
        }
        let picker = self.picker.load();
        match picker.plan(choice.subset) {
            Some(plan) => plan.pick(choice, rng).cloned(),
            None => {
                self.make_picker_for(choice.subset, now);
                self.picker.load().plan(choice.subset)?.pick(choice, rng).cloned()
            }
        }
    }

    fn make_picker_for(&self, subset: Option<&Subset>, now: u64) {
        let mut making = self.making();
        if let Some(subset) = subset.filter(|subset| !making.subsets.contains(subset)) {
            if making.subsets.len() >= MAX_SUBSETS {
                making.subsets.clear();
            }
            making.subsets.push(subset.clone());
        }
        self.make_picker(&making, now);
    }

    /// Makes the picker anew. Those who choose meanwhile use the one before.
    fn make_picker(&self, making: &MutexGuard<'_, Making>, now: u64) {
        self.stale_at.renew(|| {
            let before = self.picker.load();
            let picker = Picker::new(&self.policy, &self.set.load().members, &making.subsets, &before, now);
            let stale_at = picker.stale_at();
            self.picker.store(Arc::new(picker));
            stale_at
        });
    }

    fn making(&self) -> MutexGuard<'_, Making> {
        // A half-made picker is none: the one before is still in place.
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_making(&self) -> Option<MutexGuard<'_, Making>> {
        match self.making.try_lock() {
            Ok(making) => Some(making),
            Err(TryLockError::Poisoned(making)) => Some(making.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// How many endpoints requests may go to, for the breaker: those that are in, and in panic all.
    pub fn available(&self) -> usize {
        self.picker.load().available()
    }

    /// The endpoints that have left the set and are still in use.
    pub fn leaving(&self) -> Vec<Arc<Endpoint>> {
        self.making().left.iter().filter_map(Weak::upgrade).collect()
    }

    /// What share of the requests each endpoint gets now that may be chosen, before loads are compared: by priority
    /// level, zone and weight. One that is out has none, or in panic mode its part all the same.
    pub fn shares(&self, subset: Option<&Subset>, now: Instant) -> HashMap<EndpointId, f64> {
        let now = since_epoch(now);
        if self.stale_at.is_due(now) {
            self.make_picker(&self.making(), now);
        }
        if self.picker.load().plan(subset).is_none() {
            self.make_picker_for(subset, now);
        }
        self.picker.load().plan(subset).map(|plan| plan.shares()).unwrap_or_default()
    }

    /// How far the slow start of an endpoint has come that is in, from 0 to below 1; `None` once it is over.
    pub fn slow_start_of(&self, endpoint: &Endpoint, now: Instant) -> Option<f64> {
        let whole = self.policy.slow_start?;
        let since = endpoint.standing.in_since();
        let grown =
            Duration::from_nanos(since_epoch(now).saturating_sub(since)).as_secs_f64() / whole.as_secs_f64();
        (since != 0 && grown < 1.0).then_some(grown)
    }

    /// How many endpoints are in, out and leaving.
    pub fn states(&self, now: Instant) -> States {
        let mut states = States {
            draining: self.making().left.iter().filter(|left| left.strong_count() > 0).count(),
            ..States::default()
        };
        for endpoint in self.set.load().endpoints() {
            match endpoint.standing.state(now) {
                EndpointState::Healthy => states.healthy += 1,
                EndpointState::Ejected => states.ejected += 1,
                EndpointState::Unhealthy => states.unhealthy += 1,
            }
        }
        states
    }

    /// The endpoint that listens at `address`; none where the address stands for the whole service.
    pub fn endpoint_at(&self, address: SocketAddr) -> Option<Arc<Endpoint>> {
        let set = self.set.load();
        if set.vips.contains(&address.ip()) {
            return None;
        }
        set.endpoints().find(|endpoint| endpoint.address == address).cloned()
    }

    /// Remembers that it was used, to about a second.
    pub(super) fn note_use(&self, now: Instant) {
        self.note_use_at(since_epoch(now));
    }

    fn note_use_at(&self, now: u64) {
        if now.saturating_sub(self.last_used.load(Relaxed)) >= USE_NOTED_EVERY {
            self.last_used.store(now, Relaxed);
        }
    }

    /// Greater for what was used later.
    pub(super) fn last_used(&self) -> u64 {
        self.last_used.load(Relaxed)
    }

    /// Whether `address` is one of the endpoints or stands for the service.
    pub fn holds(&self, address: SocketAddr) -> bool {
        let set = self.set.load();
        set.vips.contains(&address.ip()) || set.endpoints().any(|e| e.address.ip() == address.ip())
    }

    /// Whether `address`, port included, is one of the endpoints, or its address stands for the service.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        let set = self.set.load();
        set.vips.contains(&address.ip()) || set.endpoints().any(|e| e.address == address)
    }

    /// Connections open, all workers together.
    pub fn open_connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// Connections opened so far.
    pub fn opened_connections(&self) -> u64 {
        self.turnover.opened()
    }

    /// Connections that ended so far, by the name of each [`CloseReason`](super::CloseReason).
    pub fn closed_connections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.turnover.closed()
    }

    /// Requests waiting for a connection.
    pub fn pending_requests(&self) -> usize {
        self.pending.load(Relaxed)
    }
}

impl EndpointSet {
    /// The endpoints of the members.
    pub fn endpoints(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.members.iter().map(|member| &member.endpoint)
    }

    /// Whether nobody would decide otherwise by `next`: the same name, addresses and endpoints, in any order.
    fn decides_like(&self, next: &Self) -> bool {
        self.name == next.name
            && self.vips.len() == next.vips.len()
            && self.vips.iter().all(|vip| next.vips.contains(vip))
            && self.members.len() == next.members.len()
            && self.endpoints().all(|now| next.endpoints().any(|next| Arc::ptr_eq(now, next)))
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::ServerName;

    use super::super::Security;
    use super::*;

    fn set(name: Option<&str>, addresses: &[&str], vips: &[&str], security: &Security) -> EndpointSet {
        let endpoint = |address: &&str| {
            let address: SocketAddr = address.parse().unwrap();
            let server_name = ServerName::IpAddress(address.ip().into());
            Member::new(Endpoint::new(address, false, security.clone(), server_name))
        };
        EndpointSet {
            name: name.map(Into::into),
            members: addresses.iter().map(endpoint).collect(),
            vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
            refreshed: Some(Instant::now()),
            ..EndpointSet::default()
        }
    }

    #[test]
    fn only_another_name_address_or_security_changes_what_is_decided() {
        const ONE: &str = "10.0.0.1:80";
        const TWO: &str = "10.0.0.2:80";
        const VIP: &[&str] = &["10.96.0.1"];
        let refused = Security::Refused("a reason");
        let upstream = Upstream::new("api", Policy::default(), false);
        let steps = [
            ("the first answer", set(Some("api"), &[ONE, TWO], VIP, &Security::Plain), true),
            ("the same once more", set(Some("api"), &[ONE, TWO], VIP, &Security::Plain), false),
            ("another order", set(Some("api"), &[TWO, ONE], VIP, &Security::Plain), false),
            ("an address less", set(Some("api"), &[TWO], VIP, &Security::Plain), true),
            ("another address", set(Some("api"), &[ONE], VIP, &Security::Plain), true),
            ("other security", set(Some("api"), &[ONE], VIP, &refused), true),
            ("no VIP", set(Some("api"), &[ONE], &[], &refused), true),
            ("another owner", set(Some("db"), &[ONE], &[], &refused), true),
            ("no such name", set(None, &[], &[], &refused), true),
            ("still no such name", set(None, &[], &[], &refused), false),
        ];
        for (step, next, changed) in steps {
            assert_eq!(upstream.update(next), changed, "{step}");
        }
    }

    #[test]
    fn an_endpoint_is_found_by_its_address_and_a_vip_is_none() {
        let upstream = Upstream::new("api", Policy::default(), false);
        upstream.update(set(Some("api"), &["10.0.0.1:80", "10.96.0.1:80"], &["10.96.0.1"], &Security::Plain));
        let at = |address: &str| upstream.endpoint_at(address.parse().unwrap()).map(|found| found.address);
        assert_eq!(at("10.0.0.1:80"), Some("10.0.0.1:80".parse().unwrap()));
        assert_eq!(at("10.0.0.1:81"), None);
        assert_eq!(at("10.96.0.1:80"), None);
    }
}
