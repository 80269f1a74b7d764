use std::cell::{Cell, RefCell};
use std::net::SocketAddr;

use rustls::pki_types::ServerName;
use tokio::task::{LocalSet, yield_now};
use tokio::time::sleep;

use super::schedule::Outcome;
use super::*;
use crate::config::{HealthCheck, HttpCheck};
use crate::telemetry::Metrics;
use crate::upstream::{EndpointSet, Health, Member, Security};

const SECOND: Duration = Duration::from_secs(1);

fn endpoint(address: &str) -> Arc<Endpoint> {
    let address: SocketAddr = address.parse().unwrap();
    Endpoint::new(address, false, Security::Plain, ServerName::IpAddress(address.ip().into()))
}

fn set(endpoints: &[&Arc<Endpoint>]) -> EndpointSet {
    let members = endpoints.iter().map(|endpoint| Member::new((*endpoint).clone())).collect();
    EndpointSet { members, ..EndpointSet::default() }
}

fn schedule(change: impl FnOnce(&mut HealthCheck)) -> Schedule {
    let mut check = HealthCheck { jitter_percent: Some(0), ..HealthCheck::default() };
    change(&mut check);
    Schedule::of(&check)
}

fn passed() -> Outcome {
    Outcome::Passed("200".into())
}

fn failed() -> Outcome {
    Outcome::Failed("503".into())
}

/// Checks `endpoint` by `ask` for as long as `time`, on the paused clock.
async fn check_for(
    time: Duration,
    endpoint: &Arc<Endpoint>,
    schedule: &Schedule,
    ask: impl AsyncFn() -> Outcome,
) -> Metrics {
    let metrics = Metrics::new();
    let checked = schedule::Checked { upstream: "api", endpoint, what: "GET /healthz", metrics: &metrics };
    let _ = tokio::time::timeout(time, keep_checked(&checked, schedule, ask)).await;
    metrics
}

/// When `ask` was called, each time at once answered by a success.
async fn times(time: Duration, schedule: &Schedule) -> Vec<Duration> {
    let start = tokio::time::Instant::now();
    let times = RefCell::new(Vec::new());
    let ask = async || {
        times.borrow_mut().push(start.elapsed());
        passed()
    };
    check_for(time, &endpoint("10.0.0.1:80"), schedule, ask).await;
    times.into_inner()
}

#[tokio::test(start_paused = true)]
async fn the_first_check_is_at_once_and_the_next_ones_an_interval_apart() {
    let schedule = schedule(|check| check.interval = Some((2 * SECOND).into()));
    let times = times(7 * SECOND, &schedule).await;
    assert_eq!(times, [0, 2, 4, 6].map(|seconds| seconds * SECOND));
}

#[tokio::test(start_paused = true)]
async fn the_time_a_check_takes_is_part_of_the_interval() {
    let (start, times) = (tokio::time::Instant::now(), RefCell::new(Vec::new()));
    let ask = async || {
        times.borrow_mut().push(start.elapsed());
        sleep(SECOND / 2).await;
        passed()
    };
    let schedule = schedule(|check| check.interval = Some(SECOND.into()));
    check_for(5 * SECOND / 2, &endpoint("10.0.0.1:80"), &schedule, ask).await;
    assert_eq!(times.into_inner(), [0, 1, 2].map(|seconds| seconds * SECOND));
}

#[tokio::test(start_paused = true)]
async fn pauses_lie_within_the_jitter_and_differ() {
    for percent in [10, 50, 100] {
        let schedule = schedule(|check| check.jitter_percent = Some(percent));
        let times = times(2000 * SECOND, &schedule).await;
        let pauses: Vec<f64> = times
            .windows(2)
            .map(|two| (two[1] - two[0]).as_secs_f64())
            .filter(|pause| *pause > 0.0)
            .collect();
        assert!((150..=250).contains(&pauses.len()), "{percent}: {} checks in 200 intervals", pauses.len());
        let least = pauses.iter().copied().fold(f64::MAX, f64::min);
        let most = pauses.iter().copied().fold(0.0, f64::max);
        let spread = 10.0 * f64::from(percent) / 100.0;
        // To a millisecond: the clock's own grain.
        assert!(
            least >= 10.0 - spread - 0.001 && most <= 10.0 + spread + 0.001,
            "{percent}: {least} to {most}"
        );
        assert!(most - least > spread, "{percent}: {least} to {most}");
    }
}

#[tokio::test(start_paused = true)]
async fn thresholds_decide_and_the_first_result_counts_alone() {
    use Health::{Healthy, Unhealthy};
    let schedule = schedule(|check| {
        check.interval = Some(SECOND.into());
        (check.unhealthy_after, check.healthy_after) = (Some(3), Some(2));
    });
    // Result by result (`+` a success), and what holds after each.
    let cases: [(&str, &[Health]); 5] = [
        ("+", &[Healthy]),
        ("-", &[Unhealthy]),
        (
            "+--+--+---",
            &[Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy],
        ),
        ("-+-++", &[Unhealthy, Unhealthy, Unhealthy, Unhealthy, Healthy]),
        ("+---++", &[Healthy, Healthy, Healthy, Unhealthy, Unhealthy, Healthy]),
    ];
    for (results, want) in cases {
        let endpoint = endpoint("10.0.0.1:80");
        let (next, found) = (Cell::new(0), RefCell::new(Vec::new()));
        let ask = async || {
            if next.get() > 0 {
                found.borrow_mut().push(endpoint.standing.health());
            }
            let result = results.as_bytes().get(next.replace(next.get() + 1));
            if result == Some(&b'-') { failed() } else { passed() }
        };
        let time = SECOND * u32::try_from(results.len()).unwrap() + SECOND / 2;
        let metrics = check_for(time, &endpoint, &schedule, ask).await;
        assert_eq!(found.into_inner(), want, "{results}");
        let failures = results.bytes().filter(|result| *result == b'-').count();
        let counted = format!("{{result=\"failure\",upstream=\"api\"}} {failures}\n");
        assert_eq!(metrics.render().contains(&counted), failures > 0, "{results}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_check_found_is_said_in_words() {
    let schedule = schedule(|check| check.interval = Some(SECOND.into()));
    let endpoint = endpoint("10.0.0.1:80");
    let (next, said) = (Cell::new(0), RefCell::new(Vec::new()));
    let ask = async || {
        said.borrow_mut().push(endpoint.standing.describe(Instant::now()));
        match next.replace(next.get() + 1) {
            0 | 4 => passed(),
            1..=3 => failed(),
            _ => Outcome::NotAsked("no certificate".into()),
        }
    };
    check_for(5 * SECOND + SECOND * 3 / 4, &endpoint, &schedule, ask).await;
    let want = [
        "in",
        "in: GET /healthz: 200",
        "in: GET /healthz: 503 (1 of 3 failures in a row)",
        "in: GET /healthz: 503 (2 of 3 failures in a row)",
        "out: GET /healthz: 503",
        "out: GET /healthz: 200 (1 of 2 successes in a row)",
        // What can't be asked is asked again sooner, and changes nothing.
        "out: GET /healthz: not asked: no certificate",
    ];
    assert_eq!(said.into_inner(), want);
}

#[tokio::test(start_paused = true)]
async fn a_check_that_takes_too_long_has_failed() {
    let schedule = schedule(|check| check.timeout = Some((SECOND / 4).into()));
    let endpoint = endpoint("10.0.0.1:80");
    check_for(SECOND / 5, &endpoint, &schedule, std::future::pending).await;
    assert_eq!(endpoint.standing.health(), Health::Unknown);
    check_for(SECOND / 3, &endpoint, &schedule, std::future::pending).await;
    assert_eq!(endpoint.standing.health(), Health::Unhealthy);
    assert_eq!(endpoint.standing.describe(Instant::now()), "out: GET /healthz: no answer within 250ms");
}

/// Counts for how many endpoints there is a task now.
struct Running(Rc<Cell<usize>>);

impl Running {
    fn start(running: &Rc<Cell<usize>>) -> Self {
        running.set(running.get() + 1);
        Self(running.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_endpoint_has_one_task_which_ends_when_the_endpoint_leaves_or_the_upstream_goes() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let upstream = Arc::new(Upstream::new("api", Policy::default(), false));
            let (running, started) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
            let (counting, noting) = (running.clone(), started.clone());
            let following = follow(
                Arc::downgrade(&upstream),
                upstream.changes.subscribe(),
                move |endpoint, is_one_of_many| {
                    assert!(!is_one_of_many);
                    noting.borrow_mut().push(endpoint.address.to_string());
                    let running = Running::start(&counting);
                    async move {
                        let _running = running;
                        std::future::pending::<()>().await;
                    }
                },
            );
            let following = spawn_local(following);
            let (one, two, three) =
                (endpoint("10.0.0.1:80"), endpoint("10.0.0.2:80"), endpoint("10.0.0.3:80"));
            let steps: [(&[&Arc<Endpoint>], &[&str]); 4] = [
                (&[], &[]),
                (&[&one, &two], &["10.0.0.1:80", "10.0.0.2:80"]),
                (&[&two, &three], &["10.0.0.3:80"]),
                (&[&two], &[]),
            ];
            for (endpoints, newly) in steps {
                started.borrow_mut().clear();
                upstream.update(set(endpoints));
                settle().await;
                started.borrow_mut().sort();
                assert_eq!(*started.borrow(), newly);
                assert_eq!(running.get(), endpoints.len());
            }
            upstream.leave();
            settle().await;
            assert_eq!(running.get(), 0, "the upstream was let go of");
            drop(upstream);
            settle().await;
            assert!(following.is_finished());
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_goes_without_a_word_takes_its_checks_along() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let upstream = Arc::new(Upstream::new("api", Policy::default(), false));
            let one = endpoint("10.0.0.1:80");
            upstream.update(set(&[&one]));
            let running = Rc::new(Cell::new(0));
            let counting = running.clone();
            spawn_local(follow(Arc::downgrade(&upstream), upstream.changes.subscribe(), move |_, _| {
                let running = Running::start(&counting);
                async move {
                    let _running = running;
                    std::future::pending::<()>().await;
                }
            }));
            settle().await;
            assert_eq!(running.get(), 1);
            drop(upstream);
            settle().await;
            assert_eq!(running.get(), 0);
        })
        .await;
}

#[test]
fn a_plan_is_made_of_what_an_upstream_states() {
    let http = |path: &str| HttpCheck { path: path.into(), host: None, expected: Vec::new() };
    let of = |check| {
        let upstream = config::Upstream { health_check: check, ..config::Upstream::default() };
        Plan::of(&upstream).map(|plan| (plan.question.name().to_owned(), plan.port))
    };
    assert_eq!(of(None), None);
    let check = HealthCheck { http: Some(http("/healthz")), port: Some(81), ..HealthCheck::default() };
    assert_eq!(of(Some(check)), Some(("GET /healthz".into(), Some(81))));
    let check = HealthCheck { tcp: Some(Default::default()), ..HealthCheck::default() };
    assert_eq!(of(Some(check)), Some(("connect".into(), None)));
    let check = HealthCheck { grpc: Some(Default::default()), ..HealthCheck::default() };
    assert_eq!(of(Some(check)), Some(("grpc health".into(), None)));
}

#[test]
fn another_port_is_the_same_peer_unless_its_sidecar_lets_the_port_alone() {
    use outrigger_ca::ExpectedIdentity;
    let mesh = Security::Mesh(ExpectedIdentity::TrustDomain("cluster.local".into()));
    let apart = Arc::new(Upstream::new("api", Policy::default(), false));
    for (security, port, want) in [
        (&mesh, None, &mesh),
        (&mesh, Some(80), &mesh),
        (&mesh, Some(8081), &mesh),
        (&mesh, Some(15021), &Security::Plain),
        (&Security::Plain, Some(8081), &Security::Plain),
        (&Security::Refused("unknown"), Some(15021), &Security::Refused("unknown")),
    ] {
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let endpoint =
            Endpoint::new(address, false, security.clone(), ServerName::IpAddress(address.ip().into()));
        let target = Target::new(&apart, &endpoint, port);
        assert_eq!(target.endpoint.address.port(), port.unwrap_or(80));
        assert_eq!(&target.endpoint.security, want, "{security:?} {port:?}");
        let checked = target.endpoint.clone();
        drop(target);
        // The pools close the connections of what is gone, and those to the endpoint itself may not be meant.
        assert_eq!(checked.is_gone(), !Arc::ptr_eq(&checked, &endpoint));
    }
}
