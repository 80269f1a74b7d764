use std::sync::atomic::AtomicUsize;

use super::*;
use crate::upstream::{Endpoint, Security};

mod model;

fn config() -> config::Breaker {
    config::Breaker::default()
}

fn seconds(seconds: u64) -> Option<config::Duration> {
    Some(Duration::from_secs(seconds).into())
}

fn endpoints<const N: usize>() -> [EndpointId; N] {
    std::array::from_fn(|_| {
        Endpoint::new(([10, 0, 0, 1], 80).into(), false, Security::Plain, "10.0.0.1".try_into().unwrap()).id
    })
}

/// A moment that has a past.
fn start() -> Instant {
    since_epoch(Instant::now());
    Instant::now() + Duration::from_secs(1000)
}

fn fail(
    breaker: &Breaker,
    at: impl IntoIterator<Item = EndpointId>,
    of: usize,
    now: Instant,
) -> Option<Change> {
    breaker.try_pass(now).unwrap().ended(Outcome::Failure, at, of, now)
}

fn succeed(breaker: &Breaker, now: Instant) -> Option<Change> {
    breaker.try_pass(now).unwrap().ended(Outcome::Success, None, 0, now)
}

/// A breaker with one endpoint that has just opened, and until when it is.
fn opened(config: &config::Breaker, now: Instant) -> (Breaker, Instant) {
    let breaker = Breaker::new(config);
    let mut change = None;
    while change.is_none() {
        change = fail(&breaker, None, 1, now);
    }
    let Some(Change::Opened { open_for, .. }) = change else { panic!("{change:?}") };
    (breaker, now + open_for)
}

#[test]
fn five_failures_in_a_row_within_the_window_open_it_if_they_touch_half_of_the_endpoints() {
    const X: Option<usize> = None;
    /// A success in the row.
    const OK: usize = usize::MAX;
    let ids = endpoints::<4>();
    for (what, available, failures, opens) in [
        ("five at the only one", 1, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)][..], Some(5)),
        ("four", 1, &[(0, 0), (0, 0), (0, 0), (0, 0)], X),
        ("a success between", 1, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, OK), (0, 0)], X),
        ("five after a success", 1, &[(0, 0), (0, OK), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], Some(7)),
        ("spread over thirty seconds", 1, &[(0, 0), (7, 0), (8, 0), (7, 0), (8, 0)], Some(5)),
        ("spread over more", 1, &[(0, 0), (8, 0), (8, 0), (7, 0), (8, 0)], X),
        ("the last five count", 1, &[(0, 0), (8, 0), (8, 0), (7, 0), (8, 0), (0, 0)], Some(6)),
        ("one of two", 2, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], Some(5)),
        ("one of three", 3, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], X),
        ("two of three", 3, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 1)], Some(5)),
        ("the second late", 3, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 2)], Some(7)),
        ("two of four, one too long ago", 4, &[(0, 3), (31, 0), (0, 0), (0, 0), (0, 0), (0, 0)], X),
        ("two of four, far apart", 4, &[(0, 3), (30, 0), (0, 0), (0, 0), (0, 0)], Some(5)),
        ("none available", 0, &[(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)], Some(5)),
    ] {
        let breaker = Breaker::new(&config());
        let mut now = start();
        let mut opened = None;
        for (i, (after, at)) in failures.iter().enumerate() {
            now += Duration::from_secs(*after);
            let change = match *at {
                OK => succeed(&breaker, now),
                at => fail(&breaker, Some(ids[at]), available, now),
            };
            if change.is_some() {
                opened = Some(i + 1);
                break;
            }
        }
        assert_eq!(opened, opens, "{what}");
        let state = if opens.is_some() { BreakerState::Open } else { BreakerState::Closed };
        assert_eq!(breaker.state(now), state, "{what}");
        assert_eq!(breaker.try_pass(now).is_err(), opens.is_some(), "{what}");
    }
}

#[test]
fn a_request_that_failed_at_several_endpoints_touches_them_all_and_one_at_none_the_whole_upstream() {
    let ids = endpoints::<2>();
    let now = start();
    for (at, opens) in [(&ids[..1], false), (&ids[..], true), (&[], true)] {
        let breaker = Breaker::new(&config());
        let changes: Vec<_> = (0..5).filter_map(|_| fail(&breaker, at.iter().copied(), 4, now)).collect();
        assert_eq!(changes.len(), usize::from(opens), "{at:?}");
    }
}

#[test]
fn a_share_of_failures_opens_it_once_there_were_enough_requests() {
    for (percent, minimum, successes, failures, opens) in [
        (50, 20, 10, 10, true),
        (50, 20, 9, 10, false),
        (50, 20, 11, 10, false),
        (50, 1, 0, 1, true),
        (100, 10, 1, 30, false),
        (1, 100, 99, 1, true),
    ] {
        let rate = config::FailureRate { percent, minimum_requests: Some(minimum) };
        let config =
            config::Breaker { failure_rate: Some(rate), consecutive_failures: Some(1000), ..config() };
        let breaker = Breaker::new(&config);
        assert!(breaker.counts_every_5xx());
        let now = start();
        for _ in 0..successes {
            assert_eq!(succeed(&breaker, now), None);
        }
        let change = (0..failures).find_map(|_| fail(&breaker, None, 1, now));
        assert_eq!(change.is_some(), opens, "{failures} of {}", successes + failures);
        if let Some(change) = change {
            let why = Why::Rate { failures, requests: successes + failures };
            assert!(matches!(change, Change::Opened { why: found, .. } if found == why), "{change:?}");
        }
    }
}

#[test]
fn a_share_is_taken_over_the_window_and_anew_after_the_breaker_was_open() {
    let rate = config::FailureRate { percent: 50, minimum_requests: Some(10) };
    let config = config::Breaker {
        failure_rate: Some(rate),
        consecutive_failures: Some(1000),
        window: seconds(10),
        ..config()
    };
    let breaker = Breaker::new(&config);
    let now = start();
    let old = breaker.try_pass(now).unwrap();
    for _ in 0..100 {
        succeed(&breaker, now);
    }
    let now = now + Duration::from_secs(5);
    assert_eq!((0..9).find_map(|_| fail(&breaker, None, 1, now)), None);
    let now = now + Duration::from_secs(5);
    let Some(Change::Opened { open_for, .. }) = fail(&breaker, None, 1, now) else {
        panic!("the successes are forgotten, ten failures of ten requests are left");
    };
    let now = now + open_for;
    assert_eq!(succeed(&breaker, now), Some(Change::Closed));
    assert_eq!(old.ended(Outcome::Success, None, 1, now), None);
    assert_eq!(breaker.describe(now)["recentRequests"], 0);
    assert_eq!((0..9).find_map(|_| fail(&breaker, None, 1, now)), None);
    assert!(fail(&breaker, None, 1, now).is_some());
}

#[test]
fn an_open_breaker_refuses_until_its_time_is_over_then_one_probe_passes() {
    let now = start();
    let (breaker, until) = opened(&config(), now);
    let just_before = until - Duration::from_nanos(1);
    assert_eq!(breaker.try_pass(now).unwrap_err().retry_after, until - now);
    assert_eq!(breaker.try_pass(just_before).unwrap_err().retry_after, Duration::from_nanos(1));
    assert_eq!(breaker.state(just_before), BreakerState::Open);
    assert_eq!(breaker.state(until), BreakerState::HalfOpen);
    let probe = breaker.try_pass(until).unwrap();
    assert!(probe.is_probe());
    assert_eq!(breaker.try_pass(until).unwrap_err(), Open { retry_after: WHILE_PROBED });
    assert_eq!(probe.ended(Outcome::Success, None, 1, until), Some(Change::Closed));
    assert!(!breaker.try_pass(until).unwrap().is_probe());
    assert_eq!(breaker.transitions(), Transitions { opened: 1, half_opened: 1, closed: 1 });
}

#[test]
fn each_time_it_opens_again_it_stays_open_twice_as_long_up_to_a_limit() {
    let (breaker, mut now) = opened(&config(), start());
    for (doubled, most) in [(20, 24), (40, 48), (60, 60), (60, 60)] {
        let Some(Change::Opened { open_for, why: Why::Probe }) = fail(&breaker, None, 1, now) else {
            panic!("a probe that fails opens the breaker");
        };
        let range = Duration::from_secs(doubled).mul_f64(0.8)..=Duration::from_secs(most);
        assert!(range.contains(&open_for), "{open_for:?} is not in {range:?}");
        now += open_for;
    }
    // Closed, but not for long.
    assert_eq!(succeed(&breaker, now), Some(Change::Closed));
    now += Duration::from_secs(30);
    let reopened = (0..5).find_map(|_| fail(&breaker, None, 1, now));
    assert!(matches!(reopened, Some(Change::Opened { open_for, .. }) if open_for.as_secs() >= 48));
    now += Duration::from_secs(60);
    assert_eq!(succeed(&breaker, now), Some(Change::Closed));
    now += Duration::from_secs(31);
    let reopened = (0..5).find_map(|_| fail(&breaker, None, 1, now));
    assert!(matches!(reopened, Some(Change::Opened { open_for, .. }) if open_for.as_secs() <= 12));
}

#[test]
fn the_time_it_stays_open_differs_from_breaker_to_breaker() {
    let now = start();
    let times: Vec<_> = (0..100).map(|_| opened(&config(), now).1 - now).collect();
    let (least, most) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    assert!(*least >= Duration::from_secs(8) && *most <= Duration::from_secs(12), "{least:?} {most:?}");
    assert!(*most - *least > Duration::from_secs(2), "{least:?} {most:?}");
}

#[test]
fn no_more_probes_pass_at_once_than_configured_and_the_first_success_decides() {
    let config = config::Breaker { probes: Some(2), ..config() };
    let (breaker, now) = opened(&config, start());
    let (first, second) = (breaker.try_pass(now).unwrap(), breaker.try_pass(now).unwrap());
    assert!(breaker.try_pass(now).is_err());
    assert_eq!(first.ended(Outcome::Success, None, 1, now), Some(Change::Closed));
    assert_eq!(second.ended(Outcome::Failure, None, 1, now), None, "it was decided before");
    assert_eq!(breaker.state(now), BreakerState::Closed);
    assert_eq!(breaker.describe(now)["failuresInARow"], 0);
}

#[test]
fn a_probe_whose_caller_left_or_that_hangs_makes_room_for_the_next() {
    let (breaker, now) = opened(&config(), start());
    drop(breaker.try_pass(now).unwrap());
    let hangs = breaker.try_pass(now).unwrap();
    let later = now + Duration::from_secs(9);
    assert!(breaker.try_pass(later).is_err());
    let later = now + Duration::from_secs(10);
    let next = breaker.try_pass(later).unwrap();
    drop(hangs);
    assert!(breaker.try_pass(later).is_err(), "the place is the next probe's");
    drop(next);
    assert!(breaker.try_pass(later).is_ok());
}

#[test]
fn a_probe_that_answers_late_still_decides() {
    let (breaker, now) = opened(&config(), start());
    let late = breaker.try_pass(now).unwrap();
    let now = now + Duration::from_secs(60);
    let _next = breaker.try_pass(now).unwrap();
    assert_eq!(late.ended(Outcome::Success, None, 1, now), Some(Change::Closed));
}

#[test]
fn what_began_before_a_change_says_nothing_after_it() {
    let now = start();
    let breaker = Breaker::new(&config());
    let old: Vec<_> = (0..20).map(|_| breaker.try_pass(now).unwrap()).collect();
    let changes = old.into_iter().filter_map(|pass| pass.ended(Outcome::Failure, None, 1, now));
    assert_eq!(changes.count(), 1, "once open, it does not open again");

    let breaker = Breaker::new(&config());
    let mut old: Vec<_> = (0..6).map(|_| breaker.try_pass(now).unwrap()).collect();
    let change = (0..5).find_map(|_| fail(&breaker, None, 1, now));
    let Some(Change::Opened { open_for, .. }) = change else { panic!("{change:?}") };
    assert_eq!(old.pop().unwrap().ended(Outcome::Success, None, 1, now), None);
    assert_eq!(breaker.state(now), BreakerState::Open, "an old success does not close it");
    let now = now + open_for;
    assert_eq!(succeed(&breaker, now), Some(Change::Closed));
    for pass in old {
        assert_eq!(pass.ended(Outcome::Failure, None, 1, now), None);
    }
    assert_eq!(breaker.state(now), BreakerState::Closed, "old failures do not open it");
}

#[test]
fn a_request_whose_caller_left_counts_as_nothing() {
    let now = start();
    let breaker = Breaker::new(&config());
    for _ in 0..4 {
        fail(&breaker, None, 1, now);
    }
    drop(breaker.try_pass(now).unwrap());
    assert!(fail(&breaker, None, 1, now).is_some(), "it did not end the row");
}

#[test]
fn a_breaker_that_is_switched_off_never_opens() {
    let rate = config::FailureRate { percent: 1, minimum_requests: Some(1) };
    let config = config::Breaker { enabled: Some(false), failure_rate: Some(rate), ..config() };
    let breaker = Breaker::new(&config);
    let now = start();
    for _ in 0..100 {
        assert_eq!(fail(&breaker, None, 1, now), None);
    }
    assert_eq!(breaker.describe(now)["state"], "off");
}

#[test]
fn people_are_told_the_state_and_its_reason() {
    let now = start();
    let breaker = Breaker::new(&config());
    fail(&breaker, None, 1, now);
    let mut told = breaker.describe(now);
    assert!(told["sinceSeconds"].take().is_f64());
    let closed = json!({ "state": "closed", "failuresInARow": 1, "opened": 0, "sinceSeconds": null });
    assert_eq!(told, closed);
    assert_eq!(breaker.describe(now + Duration::from_secs(31))["failuresInARow"], 0);
    let ids = endpoints::<2>();
    let change = (0..4).find_map(|i| fail(&breaker, Some(ids[i % 2]), 3, now)).unwrap();
    let told = breaker.describe(now);
    assert_eq!(told["state"], "open");
    assert_eq!(told["why"], "5 failures in a row, at 2 endpoints; 3 are available");
    let open_for = told["openForSeconds"].as_f64().unwrap();
    let words = format!(
        "the breaker is open for {open_for:.1} s: 5 failures in a row, at 2 endpoints; 3 are available"
    );
    assert_eq!(change.to_string(), words);
    let later = now + Duration::from_secs(13);
    assert_eq!(breaker.describe(later)["state"], "half-open");
    assert_eq!(breaker.describe(now + Duration::from_secs(3))["sinceSeconds"], 3.0);
    let left = breaker.describe(now + Duration::from_secs(3))["nextProbeInSeconds"].as_f64().unwrap();
    assert!((left - (open_for - 3.0)).abs() < 1e-6, "{left}");
    let _probe = breaker.try_pass(later).unwrap();
    let told = breaker.describe(later + Duration::from_secs(1));
    assert_eq!((&told["probes"], &told["sinceSeconds"]), (&1.into(), &1.0.into()));
    assert_eq!(told["nextProbeInSeconds"], 9.0, "when the probe under way has lost its place");
}

#[test]
fn workers_that_all_ask_at_once_get_no_more_probes_than_there_are() {
    let now = start();
    for _ in 0..50 {
        let config = config::Breaker { probes: Some(3), ..config() };
        let (breaker, until) = opened(&config, now);
        let passed = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Never dropped: the place stays taken.
                    let passes: Vec<_> = (0..5).filter_map(|_| breaker.try_pass(until).ok()).collect();
                    passed.fetch_add(passes.len(), Relaxed);
                    std::mem::forget(passes);
                });
            }
        });
        assert_eq!(passed.into_inner(), 3);
    }
}

#[test]
fn workers_that_fail_at_once_open_it_once() {
    let now = start();
    for _ in 0..50 {
        let breaker = Breaker::new(&config());
        let opened = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Ok(pass) = breaker.try_pass(now) {
                        if pass.ended(Outcome::Failure, None, 1, now).is_some() {
                            opened.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(opened.into_inner(), 1);
        assert_eq!(breaker.transitions().opened, 1);
    }
}
