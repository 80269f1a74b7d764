//! How the rules of balancing are put together: made once a change, read for each request without a lock.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt};

use super::levels::{self, Health};
use super::maglev::Maglev;
use super::ring::Ring;
use super::round_robin::RoundRobin;
use super::weights::Weights;
use super::{Choice, Subset, mix};
use crate::config::Balance;
use crate::upstream::{Endpoint, EndpointId, EndpointState, Member, Policy};

/// What a weight of 1 counts, so that slow start can make it less.
const WEIGHT_UNIT: u64 = 1024;
/// The share of its weight that slow start begins with, lest the first request be long in coming: Envoy's default.
const SLOW_START_FROM: f64 = 0.1;
/// Steps of a slow start.
const SLOW_START_STEPS: u32 = 20;
/// The first of two choices, drawn by weight, is left for the second where it is so many times as loaded. With less,
/// chance takes from the weights: with 1, 85 of 100 came to an endpoint that weighs 90. With this, weights are met within
/// 1.5 %, an endpoint 3 times as slow as the others gets less than half of its share, one 10 times as slow next to nothing
/// (peak EWMA, simulated: `tests/simulation.rs`).
const CLEARLY: f64 = 2.5;
/// Requests that are added on both sides of that comparison: one alone, of few, is chance.
const FEW: f64 = 1.5;
/// Slow start steps no oftener than this: each step makes the picker anew.
const SLOW_START_STEP: Duration = Duration::from_millis(100);

/// Chooses endpoints of a set as it was when this was made.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Picker {
    whole: Plan,
    subsets: Vec<(Subset, Plan)>,
    available: usize,
    /// Nanoseconds after the epoch at which an ejection ends or slow start steps.
    stale_at: u64,
}

/// Where the requests go that may go to one subset.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Plan {
    /// Those that get requests, and behind them those that get only what was tried everywhere before.
    groups: Vec<Group>,
}

/// The endpoints of a priority level on one side of the border of this proxy's zone.
#[derive(Debug)]
struct Group {
    side: Side,
    /// Of 2^32 requests those up to this one are for the groups up to this one.
    share_until: u64,
    /// All on this side, those too that are out and no candidates.
    all: Vec<EndpointId>,
    candidates: Vec<Candidate>,
    balancer: Balancer,
}

/// What tells the groups of a plan apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    priority: u32,
    is_local: bool,
}

#[derive(Debug)]
struct Candidate {
    endpoint: Arc<Endpoint>,
    is_in: bool,
    weight: f64,
}

#[derive(Debug)]
enum Balancer {
    PeakEwma(Weights),
    LeastRequest(Weights),
    RoundRobin(RoundRobin),
    Random(Weights),
    Hash(Arc<Hashed>),
}

/// A table of a consistent hash, over all endpoints of a group: one that is out is passed over, so that the keys of
/// the others stay where they are.
#[derive(Debug)]
struct Hashed {
    of: Vec<(EndpointId, u32)>,
    table: Table,
}

#[derive(Debug)]
enum Table {
    Ring(Ring),
    Maglev(Maglev),
}

impl Picker {
    /// The picker of these members and each of `subsets`. What is dear or must go on is taken over from the one
    /// `before`: tables and whose turn it is.
    pub(in crate::upstream) fn new(
        policy: &Policy,
        members: &[Member],
        subsets: &[Subset],
        before: &Self,
        now: u64,
    ) -> Self {
        let mut making = Making { policy, now, stale_at: u64::MAX };
        let weighted: Vec<Weighted<'_>> = members
            .iter()
            .map(|member| making.weigh(member))
            .filter(|weighted| weighted.member.weight > 0)
            .collect();
        let whole = making.plan(&weighted, Some(&before.whole));
        let plans = subsets.iter().map(|subset| {
            let chosen: Vec<_> =
                weighted.iter().filter(|one| subset.holds(&one.member.tags)).copied().collect();
            (subset.clone(), making.plan(&chosen, before.plan(Some(subset))))
        });
        let candidates = whole.groups.iter().flat_map(|group| &group.candidates);
        let available = candidates.filter(|candidate| candidate.is_in).count();
        let subsets = plans.collect();
        Self { whole, subsets, available, stale_at: making.stale_at }
    }

    /// How many endpoints requests may go to.
    pub(in crate::upstream) fn available(&self) -> usize {
        self.available
    }

    /// When something that it was made of ends by itself.
    pub(in crate::upstream) fn stale_at(&self) -> u64 {
        self.stale_at
    }

    /// The plan of a subset; `None` if it was made without that.
    pub(in crate::upstream) fn plan(&self, subset: Option<&Subset>) -> Option<&Plan> {
        match subset {
            None => Some(&self.whole),
            Some(subset) => self.subsets.iter().find(|(known, _)| known == subset).map(|(_, plan)| plan),
        }
    }
}

/// A member, and what it weighs now.
#[derive(Clone, Copy)]
struct Weighted<'a> {
    member: &'a Member,
    weight: u64,
    is_in: bool,
    /// It is in, and not only because no more may be ejected.
    is_well: bool,
}

/// A picker being made.
struct Making<'a> {
    policy: &'a Policy,
    now: u64,
    stale_at: u64,
}

impl Making<'_> {
    fn weigh<'m>(&mut self, member: &'m Member) -> Weighted<'m> {
        let standing = &member.endpoint.standing;
        let is_in = standing.state_at(self.now) == EndpointState::Healthy;
        if standing.is_ejected(self.now) {
            self.stale_at = self.stale_at.min(standing.ejected_until());
        }
        let is_spared = standing.is_spared(self.now);
        if is_spared {
            self.stale_at = self.stale_at.min(standing.spared_until());
        }
        let whole = u64::from(member.weight) * WEIGHT_UNIT;
        let weight = match self.policy.slow_start {
            None => whole,
            Some(slow_start) => {
                let grown = standing.in_for(is_in, self.now).as_secs_f64() / slow_start.as_secs_f64();
                if is_in && grown < 1.0 {
                    let step = (slow_start / SLOW_START_STEPS).max(SLOW_START_STEP);
                    self.stale_at = self.stale_at.min(self.now + step.as_nanos() as u64);
                    (whole as f64 * grown.max(SLOW_START_FROM)) as u64
                } else {
                    whole
                }
            }
        };
        Weighted { member, weight, is_in, is_well: is_in && !is_spared }
    }

    fn plan(&self, members: &[Weighted<'_>], before: Option<&Plan>) -> Plan {
        let mut priorities: Vec<u32> = members.iter().map(|one| one.member.priority).collect();
        priorities.sort_unstable();
        priorities.dedup();
        let of_level = |priority: u32| -> Vec<Weighted<'_>> {
            members.iter().filter(|one| one.member.priority == priority).copied().collect()
        };
        let levels: Vec<_> = priorities.iter().map(|priority| of_level(*priority)).collect();
        let healths: Vec<_> = levels
            .iter()
            .map(|level| Health { healthy: level.iter().filter(|one| one.is_in).count(), all: level.len() })
            .collect();
        let shares = levels::shares(&healths, self.policy.outlier.panic_below_percent());
        let mut groups: Vec<(f64, Group)> = Vec::new();
        for ((mut level, priority), level_share) in levels.into_iter().zip(priorities).zip(shares) {
            // In panic the lost endpoints of the own zone would count as its capacity, and keep its requests.
            let zone_share = if level_share.panics { None } else { self.zone_share(&level) };
            if level_share.panics {
                level.iter_mut().for_each(|one| one.is_in = true);
            }
            let is_local = |one: &Weighted<'_>| zone_share.is_some() && self.is_local(one);
            let (local, other): (Vec<_>, Vec<_>) = level.into_iter().partition(is_local);
            let zone_share = zone_share.unwrap_or(0.0);
            for (is_local, members, share) in [(true, local, zone_share), (false, other, 1.0 - zone_share)] {
                let side = Side { priority, is_local };
                if members.iter().any(|one| one.is_in) {
                    groups.push((share * level_share.share, self.group(side, members, before)));
                }
            }
        }
        // Stable: of those that get nothing the nearer level stays in front.
        groups.sort_by_key(|(share, _)| *share <= 0.0);
        let last = groups.iter().rposition(|(share, _)| *share > 0.0);
        let mut sum = 0.0;
        let groups = groups.into_iter().enumerate().map(|(index, (share, group))| {
            sum += share;
            let whole = 1_u64 << 32;
            let share_until = if Some(index) == last { whole } else { (sum * whole as f64) as u64 };
            Group { share_until: share_until.min(whole), ..group }
        });
        Plan { groups: groups.collect() }
    }

    fn is_local(&self, one: &Weighted<'_>) -> bool {
        self.policy.zone.is_some() && one.member.zone == self.policy.zone
    }

    /// The share of a level's requests that stays in this proxy's zone; `None` where no zone is preferred.
    fn zone_share(&self, level: &[Weighted<'_>]) -> Option<f64> {
        self.policy.zone.as_ref()?;
        let mut zones: Vec<&str> = level.iter().filter_map(|one| one.member.zone.as_deref()).collect();
        zones.sort_unstable();
        zones.dedup();
        let capacity = |counts: &dyn Fn(&Weighted<'_>) -> bool| -> u64 {
            level.iter().filter(|one| one.is_well && counts(one)).map(|one| one.weight).sum()
        };
        let (local, all) = (capacity(&|one| self.is_local(one)), capacity(&|_| true));
        (all > 0).then(|| levels::local_share(local, all, zones.len()))
    }

    fn group(&self, side: Side, mut members: Vec<Weighted<'_>>, before: Option<&Plan>) -> Group {
        let before = before.and_then(|plan| plan.groups.iter().find(|group| group.side == side));
        let all = members.iter().map(|one| one.member.endpoint.id).collect();
        let hashes = matches!(self.policy.balance, Balance::RingHash(_) | Balance::Maglev(_));
        if !hashes {
            members.retain(|one| one.is_in);
        }
        let weights: Vec<u64> = members.iter().map(|one| one.weight.max(1)).collect();
        let balancer = match &self.policy.balance {
            Balance::PeakEwma => Balancer::PeakEwma(Weights::new(&weights)),
            Balance::LeastRequest => Balancer::LeastRequest(Weights::new(&weights)),
            Balance::Random => Balancer::Random(Weights::new(&weights)),
            Balance::RoundRobin => {
                let turn = before.and_then(|group| match &group.balancer {
                    Balancer::RoundRobin(robin) => Some(robin.turn.clone()),
                    _ => None,
                });
                Balancer::RoundRobin(RoundRobin::new(&weights, turn))
            }
            Balance::RingHash(_) => {
                let make = |members: &[_]| Table::Ring(Ring::new(members));
                Balancer::Hash(Hashed::of(&members, before, make))
            }
            Balance::Maglev(_) => {
                let make = |members: &[_]| Table::Maglev(Maglev::new(members));
                Balancer::Hash(Hashed::of(&members, before, make))
            }
        };
        let candidates = members.iter().zip(&weights).map(|(one, weight)| Candidate {
            endpoint: one.member.endpoint.clone(),
            is_in: one.is_in,
            weight: *weight as f64,
        });
        Group { side, share_until: 0, all, candidates: candidates.collect(), balancer }
    }
}

impl Hashed {
    /// The table of `members`, taken over from the group `before` if that had the same.
    fn of(
        members: &[Weighted<'_>],
        before: Option<&Group>,
        make: impl FnOnce(&[(std::net::SocketAddr, u64)]) -> Table,
    ) -> Arc<Self> {
        let of: Vec<_> = members.iter().map(|one| (one.member.endpoint.id, one.member.weight)).collect();
        if let Some(Balancer::Hash(known)) = before.map(|group| &group.balancer)
            && known.of == of
        {
            return known.clone();
        }
        let weighted: Vec<_> =
            members.iter().map(|one| (one.member.endpoint.address, u64::from(one.member.weight))).collect();
        Arc::new(Self { of, table: make(&weighted) })
    }
}

impl Table {
    fn find(&self, key: u64) -> usize {
        match self {
            Self::Ring(ring) => ring.find(key),
            Self::Maglev(maglev) => maglev.find(key),
        }
    }

    fn owner(&self, index: usize) -> usize {
        match self {
            Self::Ring(ring) => ring.owner(index),
            Self::Maglev(maglev) => maglev.owner(index),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Ring(ring) => ring.len(),
            Self::Maglev(maglev) => maglev.len(),
        }
    }
}

impl Plan {
    /// The share of the requests of each endpoint that may be chosen, before loads are compared.
    pub(in crate::upstream) fn shares(&self) -> HashMap<EndpointId, f64> {
        let mut shares = HashMap::new();
        let mut before = 0;
        for group in &self.groups {
            let of_group = group.share_until.saturating_sub(before) as f64 / (1_u64 << 32) as f64;
            before = before.max(group.share_until);
            let weight = |candidate: &Candidate| if candidate.is_in { candidate.weight } else { 0.0 };
            let all: f64 = group.candidates.iter().map(weight).sum();
            for candidate in group.candidates.iter().filter(|candidate| candidate.is_in) {
                shares.insert(candidate.endpoint.id, of_group * weight(candidate) / all);
            }
        }
        shares
    }

    /// The endpoint for one try.
    pub(in crate::upstream) fn pick(
        &self,
        choice: &Choice<'_>,
        rng: &mut impl Rng,
    ) -> Option<&Arc<Endpoint>> {
        let first = match &self.groups[..] {
            [] => return None,
            [only] => match &only.candidates[..] {
                [only] => return Some(&only.endpoint),
                _ => 0,
            },
            // Nearly always one group gets all.
            [first, ..] if first.share_until >> 32 != 0 => 0,
            groups => {
                let drawn = choice.key.map_or_else(|| rng.random::<u32>().into(), |key| mix(key) >> 32);
                groups.iter().position(|group| drawn < group.share_until).unwrap_or(0)
            }
        };
        let first = if choice.tried.is_empty() { first } else { self.over_the_border(first, choice.tried) };
        let others = self.groups.iter().enumerate().filter(|(index, _)| *index != first);
        let picked = self.groups[first]
            .pick(choice, rng)
            .or_else(|| others.map(|(_, group)| group).find_map(|group| group.pick(choice, rng)));
        // All that are in were tried.
        picked.or_else(|| self.groups[first].pick(&Choice { tried: &[], ..*choice }, rng))
    }

    /// The group on the other side of the zone's border, if something of `drawn` was tried and nothing of that: what
    /// befell one endpoint often befalls its zone.
    fn over_the_border(&self, drawn: usize, tried: &[EndpointId]) -> usize {
        let was_tried = |group: &Group| group.all.iter().any(|one| tried.contains(one));
        let side = self.groups[drawn].side;
        if !was_tried(&self.groups[drawn]) {
            return drawn;
        }
        let other = self.groups.iter().position(|group| {
            group.side.priority == side.priority && group.side != side && !was_tried(group)
        });
        other.unwrap_or(drawn)
    }
}

impl Group {
    /// `None` if all its endpoints that are in were tried.
    fn pick(&self, choice: &Choice<'_>, rng: &mut impl Rng) -> Option<&Arc<Endpoint>> {
        let is_free =
            |candidate: &Candidate| candidate.is_in && !choice.tried.contains(&candidate.endpoint.id);
        let by_load = |weights: &Weights, rng: &mut _, latency: &dyn Fn(&Candidate) -> f64| {
            let (a, b) = two_of(&self.candidates, weights, rng);
            let is_loaded = |a: &Candidate, b: &Candidate| {
                let [load, others] = loads(a, b);
                load * latency(a) > CLEARLY * others * latency(b)
            };
            match (is_free(a), is_free(b)) {
                (true, true) if is_loaded(a, b) => Some(b),
                (true, _) => Some(a),
                (false, true) => Some(b),
                (false, false) => None,
            }
        };
        let candidate = match &self.balancer {
            Balancer::PeakEwma(weights) => {
                by_load(weights, rng, &|candidate| candidate.endpoint.load.expected_latency(choice.now))
            }
            Balancer::LeastRequest(weights) => by_load(weights, rng, &|_| 1.0),
            Balancer::Random(weights) => Some(&self.candidates[weights.draw(rng)]).filter(|one| is_free(one)),
            Balancer::RoundRobin(robin) => {
                let turns = if choice.tried.is_empty() { 1 } else { self.candidates.len() };
                (0..turns).map(|_| &self.candidates[robin.next()]).find(|one| is_free(one))
            }
            Balancer::Hash(hashed) => return self.by_hash(hashed, choice, &is_free, rng),
        };
        candidate.or_else(|| self.any(&is_free, rng)).map(|candidate| &candidate.endpoint)
    }

    /// The endpoint of the key, or the next one that is free.
    fn by_hash(
        &self,
        hashed: &Hashed,
        choice: &Choice<'_>,
        is_free: &dyn Fn(&Candidate) -> bool,
        rng: &mut impl Rng,
    ) -> Option<&Arc<Endpoint>> {
        let start = hashed.table.find(choice.key.unwrap_or_else(|| rng.random()));
        let owner = |index: usize| &self.candidates[hashed.table.owner(index)];
        let first = owner(start);
        if is_free(first) {
            return Some(&first.endpoint);
        }
        if !self.candidates.iter().any(is_free) {
            return None;
        }
        let next = (start + 1..start + hashed.table.len()).map(owner).find(|one| is_free(one));
        next.map(|candidate| &candidate.endpoint)
    }

    /// Any that is free.
    fn any(&self, is_free: &dyn Fn(&Candidate) -> bool, rng: &mut impl Rng) -> Option<&Candidate> {
        let (behind, from) = self.candidates.split_at(rng.random_range(0..self.candidates.len()));
        from.iter().chain(behind).find(|one| is_free(one))
    }
}

/// The requests in flight at each of two candidates, relative to what its weight entitles it to of those at both.
fn loads(a: &Candidate, b: &Candidate) -> [f64; 2] {
    let in_flight = [a, b].map(|one| f64::from(one.endpoint.in_flight()));
    let due = (in_flight[0] + in_flight[1]) / (a.weight + b.weight);
    [(a, in_flight[0]), (b, in_flight[1])].map(|(one, its)| (its + FEW) / (one.weight * due + FEW))
}

/// Power of two choices: of two endpoints taken at random the second, if the first is clearly more loaded. Mitzenmacher, "The Power of Two Choices
/// in Randomized Load Balancing": nearly as good as knowing them all, and no herd runs to the one that looks best.
fn two_of<'c>(
    candidates: &'c [Candidate],
    weights: &Weights,
    rng: &mut impl Rng,
) -> (&'c Candidate, &'c Candidate) {
    let first = weights.draw(rng);
    (&candidates[first], &candidates[weights.draw_other(first, rng)])
}
