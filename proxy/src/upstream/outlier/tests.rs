use std::net::SocketAddr;

use super::super::{Choice, EndpointSet, Health, Member, Policy, Security};
use super::*;
use crate::config::Outlier;

/// Seconds after a moment that no state begins at.
struct Clock(Instant);

impl Clock {
    fn new() -> Self {
        // Later than what the process calls its beginning.
        Self(Instant::now() + Duration::from_secs(3600))
    }

    fn at(&self, seconds: u64) -> Instant {
        self.0 + Duration::from_secs(seconds)
    }
}

fn upstream(outlier: Outlier, endpoints: u16) -> (Upstream, Vec<Arc<Endpoint>>) {
    let upstream = Upstream::new("api", Policy { outlier, ..Policy::default() }, false);
    let endpoints: Vec<_> = (1..=endpoints)
        .map(|port| {
            let address = SocketAddr::from(([10, 0, 0, 1], port));
            Endpoint::new(address, false, Security::Plain, "10.0.0.1".try_into().unwrap())
        })
        .collect();
    upstream.update(EndpointSet {
        members: endpoints.iter().cloned().map(Member::new).collect(),
        ..EndpointSet::default()
    });
    (upstream, endpoints)
}

fn ends(upstream: &Upstream, endpoint: &Arc<Endpoint>, attempts: &[Attempt], now: Instant) {
    attempts.iter().for_each(|attempt| upstream.attempt_ended(endpoint, *attempt, now));
}

use Attempt::{Abandoned, Answered, ConnectFailed, Failed};

#[test]
fn failures_in_a_row_eject_and_nothing_else_does() {
    let clock = Clock::new();
    let off = || Outlier { enabled: Some(false), ..Outlier::default() };
    let cases: [(&str, Outlier, &[Attempt], bool); 9] = [
        ("five failures", Outlier::default(), &[Failed; 5], true),
        ("four failures", Outlier::default(), &[Failed; 4], false),
        ("an answer between", Outlier::default(), &[Failed, Failed, Failed, Answered, Failed, Failed], false),
        (
            "what was abandoned counts as nothing",
            Outlier::default(),
            &[Failed, Failed, Abandoned, Failed, Failed, Abandoned, Failed],
            true,
        ),
        ("two failed connects", Outlier::default(), &[ConnectFailed; 2], true),
        ("failed connects not in a row", Outlier::default(), &[ConnectFailed, Failed, ConnectFailed], false),
        (
            "both kinds together",
            Outlier { connect_failures: Some(9), ..Outlier::default() },
            &[Failed, ConnectFailed, Failed, ConnectFailed, Failed],
            true,
        ),
        (
            "one if one is enough",
            Outlier { consecutive_failures: Some(1), ..Outlier::default() },
            &[Failed],
            true,
        ),
        ("switched off", off(), &[ConnectFailed; 20], false),
    ];
    for (case, outlier, attempts, ejected) in cases {
        let (upstream, endpoints) = upstream(outlier, 2);
        ends(&upstream, &endpoints[0], attempts, clock.at(0));
        let state = endpoints[0].standing.state(clock.at(0));
        assert_eq!(state == EndpointState::Ejected, ejected, "{case}");
        assert_eq!(endpoints[1].standing.state(clock.at(0)), EndpointState::Healthy, "{case}");
    }
}

#[test]
fn an_endpoint_is_out_for_longer_each_time_and_forgiven_slowly() {
    let clock = Clock::new();
    let outlier = Outlier { max_ejection: Some(Duration::from_secs(80).into()), ..Outlier::default() };
    let (upstream, endpoints) = upstream(outlier, 2);
    let endpoint = &endpoints[0];
    let is_out = |second| endpoint.standing.state(clock.at(second)) == EndpointState::Ejected;
    ends(&upstream, endpoint, &[Failed; 5], clock.at(0));
    assert!(is_out(29) && !is_out(30));
    // What ends while it is out proves nothing.
    ends(&upstream, endpoint, &[Answered, Failed, Failed], clock.at(10));
    assert!(is_out(29) && !is_out(30));
    // Its first failure puts it out again.
    ends(&upstream, endpoint, &[Failed], clock.at(31));
    assert!(is_out(90) && !is_out(91));
    // A failed connect too; and there is a longest time.
    ends(&upstream, endpoint, &[ConnectFailed], clock.at(92));
    assert!(is_out(171) && !is_out(172));
    // A success ends the probation.
    ends(&upstream, endpoint, &[Answered, Failed, Failed, Failed, Failed], clock.at(172));
    assert!(!is_out(172));
    // In for two ejection times: of three ejections one is still known.
    ends(&upstream, endpoint, &[Failed], clock.at(172 + 61));
    assert!(is_out(172 + 61 + 59) && !is_out(172 + 61 + 60));
    // In for very long: none is.
    ends(&upstream, endpoint, &[Failed], clock.at(10_000));
    assert!(is_out(10_029) && !is_out(10_030));
}

#[test]
fn at_most_the_stated_share_is_out_and_of_several_always_one_may_be() {
    let clock = Clock::new();
    for (endpoints, percent, want) in [
        (1, None, 0),
        (1, Some(100), 1),
        (2, None, 1),
        (3, None, 1),
        (4, None, 2),
        (9, None, 4),
        (10, Some(10), 1),
        (5, Some(10), 1),
        (5, Some(0), 1),
        (4, Some(100), 4),
    ] {
        let outlier = Outlier { max_ejected_percent: percent, ..Outlier::default() };
        let (upstream, all) = upstream(outlier, endpoints);
        for endpoint in &all {
            ends(&upstream, endpoint, &[Failed; 50], clock.at(0));
        }
        assert_eq!(upstream.states(clock.at(1)).ejected, want, "{endpoints} endpoints, {percent:?} %");
        // Another may go when one is back.
        ends(&upstream, &all[0], &[Failed; 50], clock.at(31));
        assert_eq!(
            upstream.states(clock.at(32)).ejected,
            want.min(1),
            "{endpoints} endpoints, {percent:?} %"
        );
    }
}

#[test]
fn an_endpoint_is_ejected_whose_success_rate_lies_far_below_the_others() {
    let clock = Clock::new();
    // Successes of 200 requests each; the ports that are out afterwards.
    let cases: [(&[u32], u32, &[u16]); 6] = [
        (&[199, 200, 198, 200, 100], 19, &[5]),
        (&[199, 200, 198, 200, 197], 30, &[]),
        (&[100, 100, 100, 100, 100], 19, &[]),
        // So few can't lie 1.9 deviations off.
        (&[200, 200, 100], 19, &[]),
        (&[200, 200, 100], 10, &[3]),
        // Too few endpoints.
        (&[200, 100], 5, &[]),
    ];
    for (successes, deviations, want) in cases {
        let success_rate = SuccessRate {
            deviations_tenths: Some(deviations),
            minimum_endpoints: Some(3),
            ..SuccessRate::default()
        };
        // Only rates are to decide.
        let outlier = Outlier {
            consecutive_failures: Some(u32::MAX),
            success_rate: Some(success_rate),
            ..Outlier::default()
        };
        let (upstream, endpoints) = upstream(outlier, successes.len() as u16);
        for (endpoint, successes) in endpoints.iter().zip(successes) {
            for request in 0..200 {
                let attempt = if request < *successes { Answered } else { Failed };
                upstream.attempt_ended(endpoint, attempt, clock.at(0));
            }
        }
        let out = |second| -> Vec<u16> {
            let is_out = |e: &&Arc<Endpoint>| e.standing.state(clock.at(second)) == EndpointState::Ejected;
            endpoints.iter().filter(is_out).map(|endpoint| endpoint.address.port()).collect()
        };
        upstream.attempt_ended(&endpoints[0], Answered, clock.at(9));
        assert_eq!(out(9), [0; 0], "before the interval's end: {successes:?}");
        upstream.attempt_ended(&endpoints[0], Answered, clock.at(10));
        assert_eq!(out(10), want, "{successes:?}");
        // What counted once does not count again.
        upstream.attempt_ended(&endpoints[0], Answered, clock.at(60));
        assert_eq!(out(60), [0; 0], "{successes:?}");
    }
}

#[test]
fn an_ejected_endpoint_gets_nothing_until_it_is_back_and_panic_uses_all() {
    let clock = Clock::new();
    let (upstream, endpoints) = upstream(Outlier::default(), 3);
    let ports = |second| -> Vec<u16> {
        let mut rng = rand::rng();
        let mut ports: Vec<u16> = (0..200)
            .map(|_| upstream.choose(&Choice::at(clock.at(second)), &mut rng).unwrap().address.port())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    assert_eq!(ports(0), [1, 2, 3]);
    ends(&upstream, &endpoints[1], &[ConnectFailed; 2], clock.at(1));
    assert_eq!(ports(1), [1, 3]);
    assert_eq!(upstream.available(), 2);
    assert_eq!(ports(30), [1, 3]);
    assert_eq!(ports(31), [1, 2, 3]);
    endpoints[0].standing.set_health(Health::Unhealthy, "refused");
    assert_eq!(ports(32), [2, 3]);
    endpoints[1].standing.set_health(Health::Unhealthy, "refused");
    assert_eq!(ports(33), [1, 2, 3], "below half of them healthy all are used");
    assert_eq!(upstream.available(), 3);
    let states = upstream.states(clock.at(33));
    assert_eq!((states.healthy, states.unhealthy), (1, 2));
    endpoints[0].standing.set_health(Health::Healthy, "connected");
    assert_eq!(ports(34), [1, 3]);
}
