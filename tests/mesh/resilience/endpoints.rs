//! One endpoint of three dies, hangs, slows down, fails or leaves: callers hardly notice.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::load::{Load, Tally, bad, total};
use super::{Bench, ENDPOINTS, SURE, Trio, endpoint};
use crate::grpc::{peer, python};
use crate::health::{standing, wait_for_standing};
use crate::support::dns::{Dns, Reply};
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::{API, Mesh, wait};

/// Between two requests of a client.
const OFTEN: Duration = Duration::from_millis(20);

fn workload(pod: &Pod, delay: u32) -> Process {
    let delay = delay.to_string();
    let mut server = pod.start(&[&python(), &peer("workload.py"), "0.0.0.0:8080", &pod.name, &delay]);
    server.wait_for_output("serving");
    server
}

fn told(tally: &Tally) -> Vec<&str> {
    tally.keys().map(String::as_str).collect()
}

#[test]
fn no_get_fails_when_a_workload_and_a_sidecar_are_killed_and_come_back() {
    let mut trio = Trio::new(&format!(
        "  api: {{hosts: [{API}], discovery: {{static: [{{all}}]}}, identity: any, balance: roundRobin, outlier: {{ejection: 2s}}}}\n"
    ));
    let mut workloads = trio.pods.each_ref().map(|pod| workload(pod, 20));
    let [one, two, _] = &trio.pods;
    let load = Load::start(&trio.web, one.at(8080), API, 4, OFTEN);
    for name in ["one", "two", "three"] {
        assert_eq!(bad(&load.until_told(&format!("200 {name}"))), Tally::new());
    }

    workloads[0].signal(Signal::SIGKILL);
    wait_for_standing(&trio.web, "api", one.at(8080), "out for");
    assert_eq!(bad(&load.take()), Tally::new(), "the workload of one was killed");
    workloads[0] = workload(one, 20);
    // Only one of three may be out at once.
    wait::until("the workload of one is back", || standing(&trio.web, "api", one.at(8080)) == "in");
    assert_eq!(bad(&load.take()), Tally::new(), "the workload of one came back");
    load.until_told("200 one");

    trio.sidecars[1].signal(Signal::SIGKILL);
    wait_for_standing(&trio.web, "api", two.at(8080), "out for");
    assert_eq!(bad(&load.take()), Tally::new(), "the sidecar of two was killed");
    trio.sidecars[1] = trio.mesh.sidecar(two).rules_stand().start();
    wait::until("the sidecar of two is back", || standing(&trio.web, "api", two.at(8080)) == "in");
    assert_eq!(bad(&load.take()), Tally::new(), "the sidecar of two came back");
    load.until_told("200 two");
    assert_eq!(bad(&load.end()), Tally::new());
    assert!(trio.web.metric("outrigger_retries_total", &[("upstream", "api")]) >= 1.0);
}

#[test]
fn a_paused_sidecar_or_workload_is_left_alone_once_it_is_ejected_and_asked_again_when_it_goes_on() {
    let endpoints =
        "discovery: {static: [{all}]}, identity: any, balance: roundRobin, outlier: {ejection: 6s}";
    let trio = Trio::new(&format!(
        "  api: {{hosts: [{API}], {endpoints}, timeout: 1500ms, retry: {{attempts: 0}}}}
  sure: {{hosts: [{SURE}], {endpoints}, retry: {{perTryTimeout: 700ms}}}}\n"
    ));
    let workloads = trio.pods.each_ref().map(|pod| workload(pod, 0));
    let [one, two, _] = &trio.pods;
    let loads = [API, SURE].map(|host| Load::start(&trio.web, one.at(8080), host, 3, OFTEN));
    let [api, sure] = &loads;
    for (paused, pod) in [(&trio.sidecars[0], one), (&workloads[1], two)] {
        let back = format!("200 {}", pod.name);
        loads.iter().for_each(|load| _ = load.until_told(&back));
        paused.signal(Signal::SIGSTOP);
        for (upstream, load) in [("api", api), ("sure", sure)] {
            wait_for_standing(&trio.web, upstream, pod.at(8080), "out for");
            // What was on its way to it ends meanwhile.
            let met = load.told_within(Duration::from_millis(1700));
            println!("{upstream}: {met:?}");
        }
        let told_to_sure = sure.take();
        assert_eq!(bad(&told_to_sure), Tally::new(), "each try has its own timeout");
        let after = api.told_within(Duration::from_secs(1));
        assert!(
            !after.contains_key(&back) && bad(&after).is_empty(),
            "{} is left alone: {after:?}",
            pod.name
        );
        assert!(total(&after) > 20, "{after:?}");
        paused.signal(Signal::SIGCONT);
        loads.iter().for_each(|load| _ = load.until_told(&back));
    }
    let rest = sure.take();
    assert_eq!(bad(&rest), Tally::new());
}

#[test]
fn a_paused_endpoint_does_not_take_in_all_callers_that_set_no_timeout_and_is_asked_again_soon_after() {
    const CLIENTS: u32 = 8;
    let trio =
        Trio::new(&format!("  api: {{hosts: [{API}], discovery: {{static: [{{all}}]}}, identity: any}}\n"));
    let workloads = trio.pods.each_ref().map(|pod| workload(pod, 0));
    let one = &trio.pods[0];
    let load = Load::start(&trio.web, one.at(8080), API, CLIENTS, OFTEN);
    let back = format!("200 {}", one.name);
    load.until_told(&back);
    workloads[0].signal(Signal::SIGSTOP);
    // Long enough for the average of before to fade, by which it would look better than the others.
    load.told_within(Duration::from_secs(15));
    let endpoints = trio.web.admin("/upstreams")["api"]["endpoints"].clone();
    let told = load.told_within(Duration::from_secs(1));
    println!("{endpoints}\n{told:?}");
    assert!(total(&told) > 20 && !told.contains_key(&back) && bad(&told).is_empty(), "{told:?}");
    workloads[0].signal(Signal::SIGCONT);
    // Those that waited are answered at once; then its turn comes again.
    load.told_within(Duration::from_secs(2));
    load.until_told(&back);
    assert_eq!(bad(&load.end()), Tally::new());
}

#[test]
fn a_slowed_endpoint_gets_fewer_requests_and_one_that_fails_a_share_is_ejected_until_it_is_well() {
    const RATED: &str = "rated.example";
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{{all}}]}}}}
  rated: {{hosts: [{RATED}], tls: none, discovery: {{static: [{{all}}]}}, balance: roundRobin, breaker: {{enabled: false}},
    outlier: {{ejection: 2s, successRate: {{interval: 1s, minimumRequests: 10, minimumEndpoints: 3, deviationsTenths: 10}}}}}}\n"
    ));
    let load = Load::start(&bench.web, endpoint(0), API, 4, OFTEN);
    load.until_told(&format!("200 {}", ENDPOINTS[1]));
    bench.endpoints[1].delay.store(300, std::sync::atomic::Ordering::SeqCst);
    load.told_within(Duration::from_secs(1));
    let told_slowly = load.told_within(Duration::from_secs(2));
    let slow = told_slowly.get(&format!("200 {}", ENDPOINTS[1])).copied().unwrap_or_default();
    assert!(slow * 10 < total(&told_slowly) && bad(&told_slowly).is_empty(), "{told_slowly:?}");
    assert_eq!(told_slowly.len(), if slow > 0 { 3 } else { 2 }, "{told_slowly:?}");
    assert!(total(&told_slowly) > 100, "{told_slowly:?}");
    load.end();

    bench.endpoints[1].delay.store(0, std::sync::atomic::Ordering::SeqCst);
    let load = Load::start(&bench.web, endpoint(0), RATED, 4, OFTEN);
    load.until_told(&format!("200 {}", ENDPOINTS[2]));
    bench.endpoints[2].set_failing(40);
    wait_for_standing(&bench.web, "rated", endpoint(2), "success rate");
    assert_eq!(bad(&load.take()), Tally::new(), "what fails is tried again elsewhere");
    bench.endpoints[2].set_failing(100);
    // It may come back on probation once more, and is out again by its next failure.
    wait_for_standing(&bench.web, "rated", endpoint(2), "failures in a row");
    bench.endpoints[2].set_failing(0);
    let until_back = load.until_told(&format!("200 {}", ENDPOINTS[2]));
    assert_eq!(bad(&until_back), Tally::new());
}

#[test]
fn an_endpoint_that_leaves_dns_under_load_gets_no_more_requests_until_it_is_back() {
    let mesh = Mesh::new();
    let resolver = mesh.pod("resolver");
    let dns = Dns::serve(&resolver);
    let name = "shop.example";
    let say = |addresses: &[usize]| {
        dns.set(name, Reply::Addresses(addresses.iter().map(|index| ENDPOINTS[*index]).collect()));
    };
    say(&[0, 1, 2]);
    let bench = Bench::in_mesh(
        mesh,
        &format!(
            "  shop: {{hosts: [{name}], tls: none, anyDestination: true, balance: roundRobin, discovery: {{dns: {{name: {name}, port: 8080}}}}}}\n"
        ),
        &["--dns-server", &dns.address.to_string()],
    );
    let load = Load::start(&bench.web, endpoint(0), name, 4, OFTEN);
    let all = ENDPOINTS.map(|address| format!("200 {address}"));
    all.iter().for_each(|told| _ = load.until_told(told));
    for (index, others) in [(0, [1, 2]), (2, [0, 1])] {
        say(&others);
        wait::until("it has left the set", || {
            bench.upstream("shop")["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == 2)
        });
        let tally = load.told_within(Duration::from_millis(1200));
        let expected = others.map(|other| all[other].as_str());
        assert_eq!(told(&tally), expected, "without {}", ENDPOINTS[index]);
        dns.set(name, Reply::Silence);
        let tally = load.told_within(Duration::from_millis(1500));
        assert_eq!(told(&tally), expected, "the last good answer while DNS keeps silent");
        say(&[0, 1, 2]);
        let tally = load.until_told(&all[index]);
        assert_eq!(bad(&tally), Tally::new());
    }
    assert_eq!(bad(&load.end()), Tally::new());
}
