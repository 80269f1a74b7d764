//! The inbound hop: a workload that is late, full or not there.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::{MESHED, with_body};
use crate::support::serve::{ok, respond};
use crate::support::{API, Mesh, Pair, wait, web_config};

#[test]
fn a_workload_that_starts_half_a_second_late_costs_no_request() {
    let pair = Pair::new();
    let requests =
        [with_body("GET", API, b""), with_body("POST", API, b"once"), with_body("POST", API, &[7; 200_000])];
    let mut connections: Vec<_> = requests
        .iter()
        .map(|request| {
            let mut connection = pair.connect(8080);
            connection.send(request);
            connection
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    let came = Arc::<AtomicUsize>::default();
    let counter = came.clone();
    let _server = pair.api.serve_http(8080, move |request| {
        counter.fetch_add(1, SeqCst);
        ok(request.body.len().to_string())
    });
    let answers: Vec<_> = connections.iter_mut().map(|connection| connection.response("GET")).collect();
    let told: Vec<_> = answers.iter().map(|answer| (answer.status(), answer.text())).collect();
    assert_eq!(told, [(200, "0".into()), (200, "4".into()), (200, "200000".into())]);
    assert_eq!(came.load(SeqCst), 3);
    assert!(pair.web.metric("outrigger_retries_total", &[]) < 1.0, "nobody further out had to try again");
}

#[test]
fn a_workload_that_has_enough_to_do_gets_no_more_and_its_callers_go_elsewhere() {
    let mesh = Mesh::new();
    let web = mesh.pod("web");
    let [busy, other] = ["busy", "other"].map(|name| mesh.pod(name));
    let limited = "inbound: {concurrency: {limit: 2}}\n";
    let _sidecars = [mesh.sidecar(&busy).config(limited).start(), mesh.sidecar(&other).start()];
    let (alone, both) = ("alone.shop.svc.cluster.local", "both.shop.svc.cluster.local");
    web.add_hosts(&format!("{} {alone} {both}", busy.address));
    let policy = "identity: any, balance: roundRobin, outlier: {enabled: false}, breaker: {enabled: false}";
    let config = format!(
        "{MESHED}  alone: {{hosts: [{alone}], discovery: {{static: [\"{}\"]}}, retry: {{attempts: 0}}, {policy}}}
  both: {{hosts: [{both}], discovery: {{static: [\"{0}\", \"{}\"]}}, {policy}}}\n",
        busy.at(8080),
        other.at(8080)
    );
    let _sidecar = mesh.sidecar(&web).config(config).start();
    let (begun, began) = mpsc::channel();
    let end = Arc::<AtomicBool>::default();
    let ended = end.clone();
    let _busy = busy.serve(8080, move |mut connection| {
        while let Some(request) = connection.request() {
            if request.target() == "/long" {
                begun.send(()).expect("the test waits");
                wait::until("the test lets go", || ended.load(SeqCst));
            }
            connection.send(ok("busy"));
        }
    });
    let _other = other.serve_http(8080, |_| ok("other"));
    let mut long: Vec<_> = (0..2).map(|_| web.connect(busy.at(8080))).collect();
    for connection in &mut long {
        connection.send(format!("GET /long HTTP/1.1\r\nHost: {alone}\r\n\r\n"));
        began.recv_timeout(wait::PATIENCE).expect("the workload is asked");
    }
    let asked = Instant::now();
    for _ in 0..20 {
        let answer = web.connect(busy.at(8080)).get(alone, "/");
        assert_eq!(answer.status(), 503, "{answer:?}");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.proxy_error().as_deref(), Some("connection_limit_reached"));
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "at once: {:?} for 20", asked.elapsed());
    let asked = Instant::now();
    // Even what may not be processed twice: it was not processed once.
    for number in 0..10 {
        let answer = web.connect(busy.at(8080)).ask(with_body("POST", both, b"once"));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "other"), "request {number}");
    }
    assert!(
        asked.elapsed() < Duration::from_secs(4),
        "without waiting for the full one: {:?}",
        asked.elapsed()
    );
    end.store(true, SeqCst);
    for connection in &mut long {
        assert_eq!(connection.response("GET").status(), 200);
    }
    wait::until("there is room again", || web.connect(busy.at(8080)).get(alone, "/").status() == 200);
}

#[test]
fn the_breaker_of_a_workload_that_is_not_there_answers_at_once_until_it_is() {
    let config = "inbound: {connectRetry: 300ms, breaker: {consecutiveFailures: 3, openFor: 6s}}\n";
    let web = format!(
        "{}  api: {{hosts: [{API}], discovery: {{static: [\"10.77.0.2:8080\"]}}, identity: any, retry: {{attempts: 0}}, breaker: {{enabled: false}}}}\n",
        web_config()
    );
    let pair = Pair::with(&web, config);
    for _ in 0..3 {
        let answer = pair.get(8080, "/");
        assert_eq!((answer.status(), answer.proxy_error().as_deref()), (502, Some("connection_refused")));
    }
    let began = Instant::now();
    for _ in 0..5 {
        let answer = pair.get(8080, "/");
        assert_eq!(
            (answer.status(), answer.proxy_error().as_deref()),
            (503, Some("destination_unavailable"))
        );
        assert!(
            answer.header("retry-after").is_some() && answer.text().contains("breaker"),
            "{}",
            answer.text()
        );
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "nobody connected anew: {:?}", began.elapsed());
    pair.api.wait_for_metric("outrigger_breaker_state", &[("upstream", "workload:8080")], 2.0);
    let _server = pair.api.serve_http(8080, |_| respond("503 Service Unavailable", "", "its own"));
    wait::until("a probe has found it", || pair.get(8080, "/").text() == "its own");
    // What it answers is its own matter.
    for _ in 0..10 {
        assert_eq!(pair.get(8080, "/").text(), "its own");
    }
}
