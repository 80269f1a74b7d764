//! What holds of whole pickers.

mod simulation;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::config::{Balance, HashKey, HashPolicy, Outlier};
use crate::upstream::{
    Attempt, Endpoint, EndpointSet, EndpointState, Health, InFlight, Member, Policy, Security, Upstream,
};

const REQUESTS: usize = 10_000;

fn hash_policy() -> HashPolicy {
    HashPolicy { key: HashKey::SourceAddress }
}

fn ring() -> Balance {
    Balance::RingHash(hash_policy())
}

fn maglev() -> Balance {
    Balance::Maglev(hash_policy())
}

fn balancers() -> [Balance; 6] {
    [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random, ring(), maglev()]
}

/// The endpoint of a number.
fn member(number: usize) -> Member {
    let address = SocketAddr::from(([10, 0, (number >> 8) as u8, number as u8], 8080));
    let name = rustls::pki_types::ServerName::IpAddress(address.ip().into());
    Member::new(Endpoint::new(address, false, Security::Plain, name))
}

fn weighted(number: usize, weight: u32) -> Member {
    Member { weight, ..member(number) }
}

fn upstream(policy: Policy, members: Vec<Member>) -> Upstream {
    let upstream = Upstream::new("api", policy, false);
    upstream.update(EndpointSet { members, ..EndpointSet::default() });
    upstream
}

fn balanced_by(balance: Balance, members: Vec<Member>) -> Upstream {
    upstream(Policy { balance, ..Policy::default() }, members)
}

fn rng() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

/// The share of each member, in the order of the set.
fn shares_at(upstream: &Upstream, choice: &Choice<'_>) -> Vec<f64> {
    let mut rng = rng();
    let mut counts: HashMap<EndpointId, usize> = HashMap::new();
    for number in 0..REQUESTS {
        let key = Some(hash_key(&number.to_le_bytes()));
        if let Some(endpoint) = upstream.choose(&Choice { key, ..*choice }, &mut rng) {
            *counts.entry(endpoint.id).or_default() += 1;
        }
    }
    let set = upstream.set();
    let share = |endpoint: &Arc<Endpoint>| *counts.get(&endpoint.id).unwrap_or(&0) as f64 / REQUESTS as f64;
    set.endpoints().map(share).collect()
}

fn shares(upstream: &Upstream) -> Vec<f64> {
    shares_at(upstream, &Choice::at(Instant::now()))
}

fn assert_shares(got: &[f64], want: &[f64], what: &str) {
    let close = got.len() == want.len() && got.iter().zip(want).all(|(got, want)| (got - want).abs() <= 0.02);
    assert!(close, "{what}: {got:.3?}, not {want:.3?}");
}

proptest! {
    #![proptest_config(Config { cases: 40, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Config::default() })]

    #[test]
    fn every_balancer_honours_weights_within_two_percent(
        weights in prop::collection::vec(prop_oneof![Just(0_u32), 1..6_u32, 1..1000_u32], 1..9),
    ) {
        let sum: u32 = weights.iter().sum();
        prop_assume!(sum > 0);
        let want: Vec<f64> = weights.iter().map(|weight| f64::from(*weight) / f64::from(sum)).collect();
        for balance in balancers() {
            let members = weights.iter().enumerate().map(|(number, weight)| weighted(number, *weight));
            let upstream = balanced_by(balance.clone(), members.collect());
            let got = shares(&upstream);
            let close = got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 0.02);
            prop_assert!(close, "{balance:?}: {got:.3?}, not {want:.3?}");
        }
    }

    #[test]
    fn what_was_tried_is_never_taken_while_another_is_in(
        tried in prop::collection::vec(any::<bool>(), 1..7),
        priorities in prop::collection::vec(0..3_u32, 7),
        out in prop::collection::vec(any::<bool>(), 7),
        key in any::<u64>(),
    ) {
        for balance in balancers() {
            let members: Vec<_> = (0..tried.len())
                .map(|number| Member { priority: priorities[number], ..weighted(number, number as u32 + 1) })
                .collect();
            // Without panic, so that who is in is plain.
            let outlier = Outlier { panic_below_percent: Some(0), ..Outlier::default() };
            let upstream = upstream(Policy { balance, outlier, ..Policy::default() }, members.clone());
            let is_in = |number: usize| !out[number];
            for (number, member) in members.iter().enumerate().filter(|(number, _)| !is_in(*number)) {
                member.endpoint.standing.set_health(Health::Unhealthy, format!("{number}"));
            }
            let chosen_before: Vec<EndpointId> =
                members.iter().zip(&tried).filter(|(_, tried)| **tried).map(|(m, _)| m.endpoint.id).collect();
            let choice = Choice { key: Some(key), tried: &chosen_before, ..Choice::at(Instant::now()) };
            let chosen = upstream.choose(&choice, &mut rng());
            let chosen = chosen.map(|c| members.iter().position(|m| m.endpoint.id == c.id).unwrap());
            let any_in = (0..tried.len()).any(is_in);
            let any_free = (0..tried.len()).any(|number| is_in(number) && !tried[number]);
            prop_assert_eq!(chosen.is_some(), any_in);
            if let Some(chosen) = chosen {
                prop_assert!(is_in(chosen));
                prop_assert!(!any_free || !tried[chosen]);
            }
        }
    }

    #[test]
    fn no_key_but_those_of_the_one_that_goes_moves_on_a_ring_and_few_do_in_maglevs_table(
        endpoints in 2..20_usize,
        seed in 0..60_000_usize,
    ) {
        for (balance, may_move) in [(ring(), 0.0), (maglev(), 0.01)] {
            let all: Vec<_> = (0..endpoints).map(|number| member(seed + number)).collect();
            let upstream = balanced_by(balance.clone(), all.clone());
            let place = |key: usize| {
                let key = Some(hash_key(&key.to_le_bytes()));
                upstream.choose(&Choice { key, ..Choice::at(Instant::now()) }, &mut rng()).unwrap().id
            };
            let before: Vec<_> = (0..REQUESTS).map(place).collect();
            let gone = all[seed % endpoints].endpoint.id;
            let count = |after: &[EndpointId]| {
                let moved = before.iter().zip(after).filter(|(before, after)| before != after);
                let (its, others): (Vec<_>, Vec<_>) = moved.partition(|(before, _)| **before == gone);
                (its.len() as f64 / REQUESTS as f64, others.len() as f64 / REQUESTS as f64)
            };
            let share = 1.0 / endpoints as f64;
            // Put out, it leaves the keys of the others alone whatever the table.
            all[seed % endpoints].endpoint.standing.set_health(Health::Unhealthy, "away");
            let (its, others) = count(&(0..REQUESTS).map(place).collect::<Vec<_>>());
            if endpoints > 2 {
                prop_assert!((its - share).abs() <= 0.02 && others == 0.0, "{balance:?} out: {its} {others}");
            }
            let left = all.iter().filter(|m| m.endpoint.id != gone).cloned().collect();
            upstream.update(EndpointSet { members: left, ..EndpointSet::default() });
            let (its, others) = count(&(0..REQUESTS).map(place).collect::<Vec<_>>());
            prop_assert!((its - share).abs() <= 0.02, "{balance:?} gone: {its}, not {share}");
            prop_assert!(others <= may_move, "{balance:?}: {others} of the others' keys moved");
        }
    }
}

#[test]
fn power_of_two_choices_gives_the_most_loaded_endpoint_nothing() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest] {
        let members: Vec<_> = (0..3).map(member).collect();
        let upstream = balanced_by(balance.clone(), members.clone());
        let now = Instant::now();
        let _busy: Vec<_> = (0..9).map(|_| InFlight::begin(&members[0].endpoint, now)).collect();
        assert_shares(&shares(&upstream), &[0.0, 0.5, 0.5], &format!("{balance:?}"));
    }
}

#[test]
fn requests_in_flight_count_by_weight() {
    let members = vec![weighted(0, 3), weighted(1, 1)];
    let upstream = balanced_by(Balance::LeastRequest, members.clone());
    let mut rng = rng();
    let now = Instant::now();
    let in_flight: Vec<_> = (0..400)
        .map(|_| InFlight::begin(&upstream.choose(&Choice::at(now), &mut rng).unwrap(), now))
        .collect();
    assert_eq!(in_flight.len(), 400);
    let share = f64::from(members[0].endpoint.in_flight()) / 400.0;
    assert!((share - 0.75).abs() < 0.02, "{share}");
}

#[test]
fn peak_ewma_leaves_a_slow_endpoint_to_itself() {
    let members: Vec<_> = (0..3).map(member).collect();
    let upstream = balanced_by(Balance::PeakEwma, members.clone());
    let now = Instant::now();
    for (member, millis) in members.iter().zip([2, 2, 500]) {
        InFlight::begin(&member.endpoint, now).answered(None, now + Duration::from_millis(millis));
    }
    assert_eq!(shares_at(&upstream, &Choice::at(now + Duration::from_secs(1)))[2], 0.0);
}

#[test]
fn without_endpoints_there_is_no_choice() {
    for balance in balancers() {
        for members in [vec![], vec![weighted(0, 0), weighted(1, 0)]] {
            let upstream = balanced_by(balance.clone(), members);
            assert!(upstream.choose(&Choice::at(Instant::now()), &mut rng()).is_none());
        }
    }
}

#[test]
fn a_key_goes_to_one_endpoint_from_every_proxy_and_without_a_key_all_are_used() {
    for balance in [ring(), maglev()] {
        let [one, other] = [0, 1].map(|_| balanced_by(balance.clone(), (0..5).map(member).collect()));
        let mut rng = rng();
        for key in 0..100_u64 {
            let choice = Choice { key: Some(hash_key(&key.to_le_bytes())), ..Choice::at(Instant::now()) };
            let chosen = [&one, &other].map(|upstream| upstream.choose(&choice, &mut rng).unwrap().address);
            assert_eq!(chosen[0], chosen[1]);
        }
        let mut used: Vec<_> =
            (0..100).map(|_| one.choose(&Choice::at(Instant::now()), &mut rng).unwrap().address).collect();
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), 5);
    }
    // The hash is the documented one.
    assert_eq!(hash_key(b""), 0x2d06_8005_38d3_94c2);
}

#[test]
fn a_level_is_used_as_far_as_those_before_it_have_too_few_healthy_endpoints() {
    for balance in balancers() {
        let members: Vec<_> =
            (0..6).map(|number| Member { priority: number / 4, ..member(number as usize) }).collect();
        let upstream = balanced_by(balance.clone(), members.clone());
        let quarter = [0.25, 0.25, 0.25, 0.25, 0.0, 0.0];
        assert_shares(&shares(&upstream), &quarter, &format!("{balance:?}: all healthy"));
        for member in &members[..2] {
            member.endpoint.standing.set_health(Health::Unhealthy, "away");
        }
        // Half of the first level is healthy: it takes 70 %.
        let shares = shares(&upstream);
        assert_shares(
            &[shares[2] + shares[3], shares[4] + shares[5]],
            &[0.7, 0.3],
            &format!("{balance:?}: half healthy"),
        );
        assert_eq!(shares[..2], [0.0, 0.0]);
    }
}

#[test]
fn the_own_zone_is_preferred_and_its_neighbours_take_what_it_has_too_little_for() {
    let in_zone = |number: usize, zone: &str| Member { zone: Some(zone.into()), ..member(number) };
    for balance in balancers() {
        let policy = Policy { balance: balance.clone(), zone: Some("a".into()), ..Policy::default() };
        let members: Vec<_> =
            ["a", "a", "b", "b"].iter().enumerate().map(|(number, zone)| in_zone(number, zone)).collect();
        let upstream = upstream(policy, members.clone());
        assert_shares(&shares(&upstream), &[0.5, 0.5, 0.0, 0.0], &format!("{balance:?}: all healthy"));
        members[0].endpoint.standing.set_health(Health::Unhealthy, "away");
        // Of three healthy ones half would be the zone's part, and it has one: two thirds of that.
        let shares = shares(&upstream);
        assert_shares(
            &[shares[0], shares[1], shares[2] + shares[3]],
            &[0.0, 2.0 / 3.0, 1.0 / 3.0],
            &format!("{balance:?}: one away"),
        );
        members[1].endpoint.standing.set_health(Health::Unhealthy, "away");
        let shares = self::shares(&upstream);
        assert_eq!(shares[..2], [0.0, 0.0], "{balance:?}: the zone is away");
    }
}

/// Three endpoints in the own zone `a`, one each in `b` and `c`.
fn three_zones(balance: &Balance, outlier: Outlier) -> (Upstream, Vec<Member>) {
    let policy = Policy { balance: balance.clone(), zone: Some("a".into()), outlier, ..Policy::default() };
    let in_zone = |(number, zone): (usize, &&str)| Member { zone: Some((*zone).into()), ..member(number) };
    let members: Vec<_> = ["a", "a", "a", "b", "c"].iter().enumerate().map(in_zone).collect();
    (upstream(policy, members.clone()), members)
}

#[test]
fn in_panic_no_zone_is_preferred() {
    for balance in balancers() {
        let (upstream, members) = three_zones(&balance, Outlier::default());
        for member in &members[..3] {
            member.endpoint.standing.set_health(Health::Unhealthy, "away");
        }
        assert_shares(&shares(&upstream), &[0.2; 5], &format!("{balance:?}"));
    }
}

#[test]
fn a_zone_that_fails_is_not_preferred_for_the_endpoint_that_may_not_be_ejected() {
    for balance in balancers() {
        let (upstream, members) = three_zones(&balance, Outlier::default());
        let now = Instant::now();
        // Of five two may be out, and two of five are no panic.
        for member in &members[..3] {
            for _ in 0..2 {
                upstream.attempt_ended(&member.endpoint, Attempt::ConnectFailed, now);
            }
        }
        let third = &members[2].endpoint;
        assert_eq!(third.standing.state(now), EndpointState::Healthy);
        assert_shares(&shares(&upstream), &[0.0, 0.0, 0.0, 0.5, 0.5], &format!("{balance:?}"));
        assert_eq!(third.standing.describe(now), "in, as no more may be out: 2 failed connects in a row");
        upstream.attempt_ended(third, Attempt::Answered, now);
        assert_shares(&shares(&upstream), &[0.0, 0.0, 1.0, 0.0, 0.0], &format!("{balance:?}: it answers"));
    }
}

#[test]
fn another_try_leaves_the_zone() {
    for balance in balancers() {
        let (upstream, members) = three_zones(&balance, Outlier::default());
        let tried = [members[0].endpoint.id];
        let choice = Choice { tried: &tried, ..Choice::at(Instant::now()) };
        let shares = shares_at(&upstream, &choice);
        assert_eq!(shares[..3], [0.0; 3], "{balance:?}: {shares:?}");
        members[0].endpoint.standing.set_health(Health::Unhealthy, "away");
        let shares = shares_at(&upstream, &choice);
        assert_eq!(shares[..3], [0.0; 3], "{balance:?}, and the one that was tried is out: {shares:?}");
    }
}

#[test]
fn a_subset_is_those_members_that_have_all_its_tags() {
    let tags = |tags: &[(&str, &str)]| -> BTreeMap<String, String> {
        tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let tagged = |number, of: &[(&str, &str)]| Member { tags: Arc::new(tags(of)), ..member(number) };
    assert!(Subset::new(&tags(&[])).is_none());
    for balance in balancers() {
        let upstream = balanced_by(
            balance,
            vec![
                tagged(0, &[("version", "v1")]),
                tagged(1, &[("version", "v2"), ("size", "big")]),
                tagged(2, &[("version", "v2")]),
            ],
        );
        for (of, want) in [
            (&[("version", "v2")][..], [0.0, 0.5, 0.5]),
            (&[("version", "v2"), ("size", "big")], [0.0, 1.0, 0.0]),
            (&[("version", "v3")], [0.0; 3]),
        ] {
            let subset = Subset::new(&tags(of));
            let choice = Choice { subset: subset.as_ref(), ..Choice::at(Instant::now()) };
            assert_shares(&shares_at(&upstream, &choice), &want, &format!("{of:?}"));
        }
        let third = 1.0 / 3.0;
        assert_shares(&shares(&upstream), &[third; 3], "all");
    }
}

#[test]
fn a_new_endpoint_starts_slowly() {
    let start = Instant::now() + Duration::from_secs(3600);
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let policy = Policy {
            balance: balance.clone(),
            slow_start: Some(Duration::from_secs(100)),
            ..Policy::default()
        };
        let old = member(0);
        let upstream = upstream(policy, vec![old.clone()]);
        // Long in by now.
        let new = member(1);
        upstream.update(EndpointSet { members: vec![old, new.clone()], ..EndpointSet::default() });
        new.endpoint.standing.in_for(false, 0);
        new.endpoint.standing.set_health(Health::Healthy, "connected");
        for (second, weight) in [(0, 0.1), (5, 0.1), (50, 0.5), (75, 0.75), (100, 1.0)] {
            let choice = Choice::at(start + Duration::from_secs(second));
            let want = [1.0 / (1.0 + weight), weight / (1.0 + weight)];
            assert_shares(&shares_at(&upstream, &choice), &want, &format!("{balance:?} after {second} s"));
        }
    }
}

#[test]
fn a_changed_weight_keeps_the_endpoint_and_its_connections() {
    let upstream = balanced_by(Balance::Random, vec![weighted(0, 1), weighted(1, 1)]);
    let before = upstream.set().members[0].endpoint.id;
    let changed = upstream
        .update(EndpointSet { members: vec![weighted(0, 9), weighted(1, 1)], ..EndpointSet::default() });
    assert!(!changed);
    assert_eq!(upstream.set().members[0].endpoint.id, before);
    assert_shares(&shares(&upstream), &[0.9, 0.1], "after");
}

#[test]
fn an_endpoint_that_left_drains_while_somebody_uses_it() {
    let upstream = balanced_by(Balance::PeakEwma, vec![member(0), member(1)]);
    let now = Instant::now();
    let leaves = upstream.set().members[0].endpoint.clone();
    let request = InFlight::begin(&leaves, now);
    drop(leaves);
    upstream.update(EndpointSet { members: vec![member(1)], ..EndpointSet::default() });
    assert!(request.endpoint().is_gone());
    assert_eq!((upstream.states(now).healthy, upstream.states(now).draining), (1, 1));
    drop(request);
    assert_eq!(upstream.states(now).draining, 0);
}

/// Not a test of anything: prints what a choice costs. Run it with `--release --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn nanoseconds_a_choice() {
    for endpoints in [1, 3, 100] {
        for balance in balancers() {
            let upstream = balanced_by(balance.clone(), (0..endpoints).map(member).collect());
            let mut rng = rng();
            let now = Instant::now();
            const TIMES: u64 = 2_000_000;
            for number in 0..TIMES {
                let choice = Choice { key: Some(mix(number)), ..Choice::at(now) };
                std::hint::black_box(upstream.choose(&choice, &mut rng));
            }
            let each = now.elapsed().as_nanos() as f64 / TIMES as f64;
            println!("{endpoints:3} endpoints, {balance:?}: {each:.1} ns");
        }
    }
}
