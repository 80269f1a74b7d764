//! Active health checks: an endpoint that says it is not well, or says nothing, is left alone until it is well again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::grpc::{peer, python};
use crate::support::API;
use crate::support::mesh::Mesh;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::wait;

/// Checks often, so that a test is short.
const OFTEN: &str = "interval: 500ms, timeout: 400ms, unhealthyAfter: 3, healthyAfter: 2";
/// By when an endpoint is out that was well: three failures at 500 ms, the time of the last one, and a slow machine.
const OUT_WITHIN: Duration = Duration::from_secs(6);
const MESHED: &str =
    "outbound: {meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}\nupstreams:\n";

/// What the admin port of `pod` says about an endpoint of `upstream`.
pub fn standing(pod: &Pod, upstream: &str, address: SocketAddr) -> String {
    let address = Value::String(address.to_string());
    let all = pod.admin("/upstreams");
    let endpoints = all[upstream]["endpoints"].as_array();
    let found = endpoints.into_iter().flatten().find(|endpoint| endpoint["address"] == address);
    found.map_or_else(String::new, |endpoint| endpoint["standing"].as_str().unwrap_or_default().to_owned())
}

/// Waits until the standing of an endpoint contains `want`; gives how long that took.
pub fn wait_for_standing(pod: &Pod, upstream: &str, address: SocketAddr, want: &str) -> Duration {
    let (started, mut last) = (Instant::now(), String::new());
    let what = format!("{address} of {upstream} is {want:?}");
    wait::until(&what, || {
        let now = standing(pod, upstream, address);
        if now != last {
            println!("{address} of {upstream} is {now:?}");
            last = now;
        }
        last.contains(want)
    });
    started.elapsed()
}

/// A workload that says its name, and whether it is well.
fn serve(pod: &Pod, is_well: &Arc<AtomicBool>) -> Server {
    let (name, is_well) = (pod.name.clone(), is_well.clone());
    pod.serve_http(8080, move |request| {
        if request.start.contains(" /healthz ") && !is_well.load(Ordering::SeqCst) {
            return respond("503 Service Unavailable", "", "unwell");
        }
        ok(&name)
    })
}

/// Who answers 30 requests.
fn answering(web: &Pod, any: &Pod) -> BTreeSet<String> {
    let mut connection = web.connect(any.at(8080));
    (0..30)
        .map(|_| {
            let answer = connection.get(API, "/");
            assert_eq!(answer.status(), 200, "{}", answer.text());
            answer.text().trim().to_owned()
        })
        .collect()
}

#[test]
fn an_endpoint_that_fails_its_check_or_is_stopped_is_left_alone_until_it_is_well_again() {
    let mesh = Mesh::new();
    let web = mesh.pod("web");
    let pods = ["one", "two", "three"].map(|name| mesh.pod(name));
    let [one, two, three] = &pods;
    let _sidecars = pods.each_ref().map(|pod| mesh.sidecar(pod).start());
    let well = [true; 2].map(|is_well| Arc::new(AtomicBool::new(is_well)));
    let _servers = (serve(one, &well[0]), serve(two, &well[1]));
    std::fs::create_dir(three.directory.join("files")).expect("make a directory");
    three.write("files/healthz", "well");
    three.write("files/index.html", "three");
    let files = three.directory.join("files").display().to_string();
    let stopped = three.start(&[&python(), "-m", "http.server", "8080", "--directory", &files]);
    wait::until("three listens", || three.try_connect(([127, 0, 0, 1], 8080)).is_ok());

    let all = pods.each_ref().map(|pod| format!("\"{}\"", pod.at(8080))).join(", ");
    // Without ejection, so that nothing but checks takes an endpoint out.
    let config = format!(
        "{MESHED}  api: {{hosts: [{API}], discovery: {{static: [{all}]}}, identity: any, outlier: {{enabled: false}},
        healthCheck: {{http: {{path: /healthz}}, {OFTEN}}}}}\n"
    );
    web.add_hosts(&format!("{} {API}", one.address));
    let _sidecar = mesh.sidecar(&web).config(config).start();
    assert_eq!(web.connect(one.at(8080)).get(API, "/").status(), 200, "before the first check");
    for pod in &pods {
        wait_for_standing(&web, "api", pod.at(8080), "in: GET /healthz: 200");
    }
    let everybody: BTreeSet<_> = ["one", "two", "three"].map(String::from).into();
    wait::until("everybody answers", || answering(&web, one) == everybody);

    well[0].store(false, Ordering::SeqCst);
    let took = wait_for_standing(&web, "api", one.at(8080), "out: GET /healthz: 503");
    assert!(took < OUT_WITHIN, "after {took:?}");
    let others: BTreeSet<_> = ["two", "three"].map(String::from).into();
    assert!(answering(&web, one).is_subset(&others));
    web.wait_for_metric("outrigger_health_checks_total", &[("upstream", "api"), ("result", "failure")], 3.0);
    web.wait_for_metric("outrigger_endpoints", &[("upstream", "api"), ("state", "unhealthy")], 1.0);
    well[0].store(true, Ordering::SeqCst);
    wait_for_standing(&web, "api", one.at(8080), "in: GET /healthz: 200");
    wait::until("one answers again", || answering(&web, one).contains("one"));

    stopped.signal(Signal::SIGSTOP);
    let took = wait_for_standing(&web, "api", three.at(8080), "out: GET /healthz: no answer within 400ms");
    assert!(took < OUT_WITHIN, "after {took:?}");
    let others: BTreeSet<_> = ["one", "two"].map(String::from).into();
    assert!(answering(&web, one).is_subset(&others));
    stopped.signal(Signal::SIGCONT);
    wait_for_standing(&web, "api", three.at(8080), "in: GET /healthz: 200");
    wait::until("three answers again", || answering(&web, one).contains("three"));
}

#[test]
fn a_tcp_check_finds_out_whether_the_workload_listens_behind_a_sidecar_and_without_one() {
    let mesh = Mesh::new();
    let (web, api, outside) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("outside"));
    let _api_sidecar = mesh.sidecar(&api).start();
    let config = format!(
        "{MESHED}  db: {{discovery: {{static: [\"{}\"]}}, identity: any, healthCheck: {{tcp: {{}}, {OFTEN}}}}}
  old: {{discovery: {{static: [\"{}\"]}}, tls: none, healthCheck: {{tcp: {{}}, {OFTEN}}}}}
  proxy: {{discovery: {{static: [\"{}\"]}}, identity: any, healthCheck: {{http: {{path: /readyz}}, port: 15021, {OFTEN}}}}}\n",
        api.at(7000),
        outside.at(7000),
        api.at(7001),
    );
    let _sidecar = mesh.sidecar(&web).config(config).start();
    let places = [("db", &api), ("old", &outside)];
    for (upstream, pod) in places {
        // The first that goes there has the upstream made; nobody answers.
        drop(web.try_connect(pod.at(7000)));
        let want = if upstream == "db" { "out: connect: the peer's sidecar ended" } else { "refused" };
        wait_for_standing(&web, upstream, pod.at(7000), want);
    }
    let _servers = places.map(|(_, pod)| pod.serve(7000, |mut connection| drop(connection.request())));
    for (upstream, pod) in places {
        wait_for_standing(&web, upstream, pod.at(7000), "in: connect: connected");
    }
    drop(web.try_connect(api.at(7001)));
    wait_for_standing(&web, "proxy", api.at(7001), "in: GET /readyz: 200");
}

#[test]
fn a_grpc_check_asks_for_the_health_of_a_service_behind_a_sidecar_and_without_one() {
    let mesh = Mesh::new();
    let (web, api, outside) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("outside"));
    let _api_sidecar = mesh.sidecar(&api).start();
    let serve = |pod: &Pod| -> Process {
        let state = pod.write("state", "1").display().to_string();
        let mut server = pod.start(&[&python(), &peer("health_of_grpc.py"), "0.0.0.0:50051", &state]);
        server.wait_for_output("serving");
        server
    };
    let _servers = [serve(&api), serve(&outside)];
    let config = format!(
        "{MESHED}  shop: {{discovery: {{static: [\"{}\"]}}, identity: any, healthCheck: {{grpc: {{service: shop}}, {OFTEN}}}}}
  old: {{discovery: {{static: [\"{}\"]}}, tls: none, protocol: grpc, healthCheck: {{grpc: {{service: shop}}, {OFTEN}}}}}
  whole: {{discovery: {{static: [\"{}\"]}}, identity: any, healthCheck: {{grpc: {{}}, port: 50051, {OFTEN}}}}}\n",
        api.at(50051),
        outside.at(50051),
        api.at(50052),
    );
    let _sidecar = mesh.sidecar(&web).config(config).start();
    for (upstream, pod) in [("shop", &api), ("old", &outside)] {
        drop(web.try_connect(pod.at(50051)));
        wait_for_standing(&web, upstream, pod.at(50051), "in: grpc health: SERVING");
        pod.write("state", "2");
        wait_for_standing(&web, upstream, pod.at(50051), "out: grpc health: NOT_SERVING");
        pod.write("state", "1");
        wait_for_standing(&web, upstream, pod.at(50051), "in: grpc health: SERVING");
    }
    drop(web.try_connect(api.at(50052)));
    wait_for_standing(&web, "whole", api.at(50052), "out: grpc health: the call failed: NOT_FOUND");
}
