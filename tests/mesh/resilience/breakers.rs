//! An upstream that fails as a whole: its breaker, and what callers get instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::{Bench, ENDPOINTS, endpoint, with_body};
use crate::support::serve::{ok, respond};
use crate::support::{API, wait};

#[test]
fn a_breaker_opens_when_most_endpoints_fail_and_closes_after_a_probe_that_succeeds() {
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{{all}}]}}, balance: roundRobin, retry: {{attempts: 0}},
    outlier: {{enabled: false}}, breaker: {{openFor: 4s, maxOpenFor: 4s}}}}\n"
    ));
    let state = || bench.upstream("api")["breaker"]["state"].as_str().expect("a state").to_owned();
    let gauge = |value: f64| {
        wait::until(&format!("the gauge shows {value}"), || {
            let shown = bench.web.metric("outrigger_breaker_state", &[("upstream", "api")]);
            (shown - value).abs() < f64::EPSILON
        });
    };
    // One of three is a matter of its ejection.
    bench.endpoints[0].set_failing(100);
    let failed = (0..30).filter(|_| bench.get(API).status() == 503).count();
    assert_eq!((failed, state().as_str()), (10, "closed"));
    gauge(0.0);

    bench.set_failing(100);
    wait::until("the breaker is open", || bench.get(API).status() == 503 && state() == "open");
    let (asked, began) = (bench.asked(), Instant::now());
    for _ in 0..10 {
        let answer = bench.get(API);
        assert_eq!(answer.status(), 503, "{answer:?}");
        assert_eq!(answer.proxy_error().as_deref(), Some("destination_unavailable"));
        assert!(answer.text().contains("the circuit breaker is open"), "{}", answer.text());
        let after: u64 = answer.header("retry-after").expect("a time").parse().expect("seconds");
        assert!((1..=5).contains(&after), "{after} s");
    }
    // A slow machine may see it half-open by now.
    if began.elapsed() < Duration::from_secs(2) {
        assert_eq!(bench.asked(), asked, "nothing is sent");
    }
    gauge(2.0);

    wait::until("a probe has failed", || {
        let answer = bench.get(API);
        assert_eq!(answer.status(), 503);
        bench.asked() > asked
    });
    assert_eq!(bench.upstream("api")["breaker"]["opened"], 2, "{}", bench.upstream("api"));
    bench.set_failing(0);
    wait::until("a probe has succeeded", || bench.get(API).status() == 200);
    assert_eq!(state(), "closed");
    assert!((0..20).all(|_| bench.get(API).status() == 200));
    gauge(0.0);
}

#[test]
fn a_breaker_that_is_half_open_lets_as_many_probes_pass_at_once_as_it_says() {
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{{all}}]}}, retry: {{attempts: 0}}, outlier: {{enabled: false}},
    breaker: {{openFor: 3s, maxOpenFor: 3s, probes: 2}}}}\n"
    ));
    bench.set_failing(100);
    let state = || bench.upstream("api")["breaker"]["state"].as_str().expect("a state").to_owned();
    wait::until("the breaker is open", || bench.get(API).status() == 503 && state() == "open");
    bench.set_failing(0);
    for endpoint in &bench.endpoints {
        endpoint.delay.store(3000, SeqCst);
    }
    let before = bench.asked();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| wait::until("the breaker is closed", || bench.get(API).status() == 200));
        }
        wait::until("it is probed", || bench.asked() > before);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(bench.asked() - before, 2, "of eight");
    });
    assert_eq!(state(), "closed");
    assert!(bench.asked() >= before + 8);
}

#[test]
fn a_fallback_answers_where_the_upstream_can_not() {
    let at = ENDPOINTS[0];
    let upstream = |name: &str, more: &str| {
        format!(
            "  {name}: {{hosts: [{name}.example], tls: none, anyDestination: true, discovery: {{static: [{{all}}]}}, retry: {{attempts: 1}}, {more}}}\n"
        )
    };
    let off = "breaker: {enabled: false}, outlier: {enabled: false}";
    let bench = Bench::new(&[
        upstream("fixed", &format!("{off}, fallback: {{status: 200, body: sorry, headers: {{x-from: fallback}}}}")),
        upstream("other", &format!("{off}, fallback: {{upstream: spare}}")),
        upstream("closed", &format!("{off}, fallback: {{status: 503, body: closed}}")),
        format!("  spare: {{tls: none, discovery: {{static: [\"{at}:8085\"]}}, {off}, fallback: {{status: 500}}}}\n"),
        "  empty: {hosts: [empty.example], tls: none, anyDestination: true, discovery: {file: {path: /nowhere}},\n".into(),
        "    fallback: {status: 203, body: nobody}}\n".into(),
    ].concat());
    let spare_is_well = Arc::new(AtomicBool::new(true));
    let well = spare_is_well.clone();
    let _spare = bench.api.serve_http(8085, move |request| match well.load(SeqCst) {
        true => ok([b"spare got ", request.body.as_slice()].concat()),
        false => respond("502 Bad Gateway", "", "ill as well"),
    });
    for host in ["fixed.example", "other.example"] {
        let answer = bench.get(host);
        assert_eq!(answer.status(), 200);
        assert!(answer.text().starts_with("10.77.0."), "{host} is well: {}", answer.text());
    }
    bench.set_failing(100);

    let answer = bench.get("fixed.example");
    assert_eq!(
        (answer.status(), answer.text().as_str(), answer.header("x-from")),
        (200, "sorry", Some("fallback"))
    );
    assert_eq!(answer.header("proxy-status"), Some("outrigger; received-status=503"));
    let answer = bench.get("closed.example");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "closed"));
    // No proxy further out shall try it again.
    let status = answer.header("proxy-status").expect("what it stands for");
    assert_eq!(status, "outrigger; received-status=503; outrigger-retries=exhausted");
    let answer = bench.get("empty.example");
    assert_eq!((answer.status(), answer.text().as_str()), (203, "nobody"));

    let ask = |method: &str| bench.web.connect(endpoint(0)).ask(with_body(method, "other.example", b"this"));
    let answer = ask("PUT");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "spare got this"));
    // It has been processed, as far as anybody knows.
    assert_eq!(ask("POST").status(), 503);
    spare_is_well.store(false, SeqCst);
    let answer = ask("PUT");
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (502, "ill as well"),
        "its own fallback does not apply"
    );
}

#[test]
fn the_last_good_response_answers_while_the_upstream_fails_and_while_its_breaker_is_open() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [\"{at}:8081\"]}}, retry: {{attempts: 0}},
    breaker: {{consecutiveFailures: 3, openFor: 60s}}, fallback: {{cache: {{maxAge: 60s}}}}}}\n"
    ));
    let is_well = Arc::new(AtomicBool::new(true));
    let (well, asked) = (is_well.clone(), Arc::<AtomicUsize>::default());
    let counter = asked.clone();
    let _server = bench.api.serve_http(8081, move |request| {
        counter.fetch_add(1, SeqCst);
        match request.target() {
            _ if !well.load(SeqCst) => respond("503 Service Unavailable", "", "ill"),
            "/private" => respond("200 OK", "Cache-Control: private, max-age=60\r\n", "mine"),
            _ => respond("200 OK", "Cache-Control: max-age=60\r\nX-Mark: kept\r\n", "good"),
        }
    });
    let get = |path: &str| bench.web.connect((at, 8081)).get(API, path);
    for path in ["/", "/private", "/"] {
        let answer = get(path);
        assert_eq!((answer.status(), answer.header("age"), answer.header("cache-status")), (200, None, None));
    }
    assert_eq!(asked.load(SeqCst), 3, "while all is well nothing is answered out of the cache");

    is_well.store(false, SeqCst);
    std::thread::sleep(Duration::from_millis(1100));
    let assert_kept = || {
        let answer = get("/");
        assert_eq!(
            (answer.status(), answer.text().as_str(), answer.header("x-mark")),
            (200, "good", Some("kept"))
        );
        let age: u64 = answer.header("age").expect("an age").parse().expect("seconds");
        assert!((1..60).contains(&age), "{age} s");
        let cache = answer.header("cache-status").expect("what the cache did").to_owned();
        assert!(cache.starts_with("outrigger"), "{cache}");
    };
    assert_kept();
    let answer = get("/private");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "ill"), "of one client only");
    assert_eq!(get("/never-seen").status(), 503);
    wait::until("the breaker is open", || {
        get("/never-seen");
        bench.upstream("api")["breaker"]["state"] == "open"
    });
    let before = asked.load(SeqCst);
    assert_kept();
    assert_eq!(get("/never-seen").proxy_error().as_deref(), Some("destination_unavailable"));
    assert_eq!(asked.load(SeqCst), before, "nothing is sent");
}

#[test]
fn the_last_good_response_of_a_subset_is_for_nobody_elses_callers() {
    let at = ENDPOINTS[0];
    let endpoints = [("t1", 8081), ("t2", 8082)]
        .map(|(tenant, port)| format!("{{address: \"{at}:{port}\", tags: {{tenant: {tenant}}}}}"));
    let routes = ["t1", "t2"].map(|tenant| {
        format!(
            "- {{name: {tenant}, match: [{{host: {API}, headers: [{{name: x-tenant, value: {{exact: {tenant}}}}}]}}], upstreams: [{{name: api, subset: {{tenant: {tenant}}}}}]}}\n"
        )
    });
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{}]}}, retry: {{attempts: 0}}, outlier: {{enabled: false}}, fallback: {{cache: {{maxAge: 60s}}}}}}
routes:\n{}",
        endpoints.join(", "),
        routes.concat()
    ));
    let is_well = Arc::new(AtomicBool::new(true));
    let _servers = [("of t1", 8081), ("of t2", 8082)].map(|(text, port)| {
        let well = is_well.clone();
        bench.api.serve_http(port, move |_| match well.load(SeqCst) {
            true => respond("200 OK", "Cache-Control: max-age=60\r\n", text),
            false => respond("503 Service Unavailable", "", "ill"),
        })
    });
    let get = |tenant: &str| {
        bench
            .web
            .connect((at, 8081))
            .ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\nX-Tenant: {tenant}\r\n\r\n"))
    };
    assert_eq!(get("t1").text(), "of t1");
    is_well.store(false, SeqCst);
    let answer = get("t2");
    assert_eq!((answer.status(), answer.text().as_str()), (503, "ill"), "nothing of t2's is kept");
    assert_eq!(get("t1").text(), "of t1");
}
