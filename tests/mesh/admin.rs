//! What an operator asks the admin port: what goes on, what goes wrong, and why.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::serve::{ok, respond};
use crate::support::{API, Connection, Mesh, Pair, wait, web_config};

const ADMIN: ([u8; 4], u16) = ([127, 0, 0, 1], 15000);

/// The status that curl sees, and what the answer says.
fn curl(pod: &Pod, arguments: &[&str]) -> (u16, String) {
    let command = [&["curl", "-sS", "-g", "--max-time", "10", "-w", "\n%{http_code}"], arguments].concat();
    let output = pod.run(&command);
    let (text, status) = output.rsplit_once('\n').expect("curl says the status last");
    (status.parse().unwrap_or_else(|_| panic!("a status, not {status}")), text.to_owned())
}

/// Begins to look on; the head of the answer is read.
fn tap(pod: &Pod, query: &str) -> Connection {
    let mut connection = pod.connect(ADMIN);
    connection.send(format!("GET /tap{query} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let head = connection.head();
    assert_eq!(head.status(), 200, "{head:?}");
    connection
}

/// The next line of a tap.
fn next(connection: &mut Connection) -> Value {
    let chunk = connection.chunk();
    serde_json::from_slice(&chunk)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&chunk)))
}

#[test]
fn only_loopback_names_and_no_website_get_an_answer_and_what_changes_state_is_a_post() {
    let mut pair = Pair::new();
    let pod = &pair.web;
    const VERSION: &str = "http://127.0.0.1:15000/version";
    const QUIT: &str = "http://127.0.0.1:15000/quit";
    const LOG: &str = "http://127.0.0.1:15000/log";
    for (arguments, status) in [
        (&[VERSION][..], 200),
        (&["http://[::1]:15000/version"], 200),
        (&["http://localhost:15000/version"], 200),
        (&["-H", "Host: LOCALHOST", VERSION], 200),
        (&["-H", "Host: [::1]:15000", VERSION], 200),
        (&["--http1.0", "-H", "Host:", VERSION], 403),
        (&["-H", "Host: evil.example", VERSION], 403),
        (&["-H", "Host: localhost.evil.example:15000", VERSION], 403),
        (&["-H", "Host: [::2]:15000", VERSION], 403),
        (&["-H", "Host: 10.77.0.1:15000", VERSION], 403),
        (&["-H", "Host: 2130706433", VERSION], 403),
        (&["-H", "Host: evil.example", "http://127.0.0.1:15000/tap"], 403),
        (&["-H", "Origin: null", VERSION], 200),
        (&[QUIT], 405),
        (&["-I", QUIT], 405),
        (&["-X", "PUT", QUIT], 405),
        (&["-X", "POST", "-H", "Origin: null", QUIT], 403),
        (&["-X", "POST", "-H", "Origin: http://evil.example", QUIT], 403),
        (&["-X", "POST", "-H", "Origin: https://127.0.0.1:15000", QUIT], 403),
        (&["-X", "POST", "-H", "Origin: http://127.0.0.1:80", QUIT], 403),
        (&["-X", "POST", "-H", "Host: evil.example", "-H", "Origin: http://evil.example", QUIT], 403),
        (&["-d", "debug", "-H", "Origin: null", LOG], 403),
        (&["-d", "debug", "-H", "Origin: http://127.0.0.1:15000", LOG], 200),
    ] {
        let (got, text) = curl(pod, arguments);
        assert_eq!(got, status, "{arguments:?}: {text}");
    }
    assert_eq!(
        pair.web.admin("/log")["level"],
        "debug",
        "of all that would change something, the last one did"
    );
    assert!(pair.web_sidecar.running());
    assert_eq!(curl(&pair.web, &["-X", "POST", QUIT]).0, 202);
    assert_eq!(pair.web_sidecar.ended().code(), Some(130));
}

#[test]
fn told_so_the_admin_port_is_reached_from_elsewhere_by_address_and_says_so_in_the_log() {
    let mesh = Mesh::new();
    let (web, outside) = (mesh.pod("web"), mesh.pod("outside"));
    let address = web.address.to_string();
    // Without the redirect, as beside an edge.
    let sidecar = mesh.sidecar(&web).rules_stand().arguments(["--admin-address", &address]).start();
    assert!(
        sidecar.output().contains(&format!("the admin port listens on {address}:15000")),
        "{}",
        sidecar.output()
    );
    let url = format!("http://{address}:15000/version");
    assert_eq!(curl(&outside, &[&url]).0, 200);
    assert_eq!(curl(&outside, &["-H", "Host: web.example:15000", &url]).0, 403, "a name may be anybody's");
    let quit = format!("http://{address}:15000/quit");
    assert_eq!(curl(&outside, &["-X", "POST", "-H", "Origin: http://evil.example", &quit]).0, 403);
    assert_eq!(web.ask_own(15000, "/version").status(), 200, "loopback has it all the same");
    assert!(outside.try_connect(web.at(15001)).is_err(), "nothing else of the proxy moved");
}

#[test]
fn the_tap_shows_requests_as_they_end_by_filter_and_opaque_connections() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.target().starts_with("/broken") {
        true => respond("500 Internal Server Error", "", "no"),
        false => ok("yes"),
    });
    let _opaque = pair.api.serve(7000, |mut connection| {
        let (all, _) = connection.take_all();
        connection.send(all);
    });
    let mut all = tap(&pair.web, "");
    let mut broken = tap(&pair.web, "?status=5xx&path=/b&method=GET&direction=outbound&limit=1");
    let mut inbound = tap(&pair.api, "?direction=inbound&upstream=workload:8080");
    for path in ["/", "/broken?token=secret", "/broken"] {
        pair.get(8080, path);
    }
    let first = next(&mut broken);
    assert_eq!(
        (&first["code"], &first["path"], &first["peer"]),
        (&500.into(), &"/broken".into(), &shop("api").into())
    );
    assert!(broken.chunk().is_empty(), "one was asked for");
    for (path, code) in [("/", 200), ("/broken", 500), ("/broken", 500)] {
        for (seen, peer) in [(next(&mut all), "api"), (next(&mut inbound), "web")] {
            assert_eq!(
                (&seen["path"], &seen["code"], &seen["peer"]),
                (&path.into(), &code.into(), &shop(peer).into())
            );
            assert!(!seen.to_string().contains("secret"));
        }
    }
    let mut connection = pair.connect(7000);
    connection.send([0; 1000]);
    connection.finish();
    connection.take_all();
    let seen = next(&mut all);
    assert_eq!((&seen["upstream"], &seen["reason"]), (&"api-7000".into(), &"end".into()), "{seen}");
    assert_eq!((&seen["received_bytes"], &seen["sent_bytes"]), (&1000.into(), &1000.into()));
    let (status, text) = curl(&pair.web, &["http://127.0.0.1:15000/tap?status=6"]);
    assert_eq!(status, 400);
    assert!(text.contains("404 or 5xx or 500-503"), "{text}");
}

#[test]
fn server_sent_events_carry_the_same() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |_| ok("yes"));
    let mut events = pair.web.connect(ADMIN);
    events.send("GET /tap HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    let head = events.head();
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    pair.get(8080, "/orders");
    let event = String::from_utf8(events.chunk()).expect("text");
    let data = event.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).expect("an event");
    let seen: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(seen["path"], "/orders");
}

#[test]
fn a_reader_that_reads_nothing_stops_no_request_and_learns_how_many_it_has_missed() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |_| ok("yes"));
    let mut stalled = tap(&pair.web, "?direction=outbound");
    let mut connection = pair.connect(8080);
    // A path that fills the buffers of the kernel too: what is not read is dropped in the end.
    let path = format!("/{}", "x".repeat(900));
    let (mut sent, mut dropped) = (0_u64, 0.0);
    while dropped == 0.0 {
        for _ in 0..500 {
            assert_eq!(connection.get(API, &path).status(), 200);
        }
        sent += 500;
        assert!(sent < 40_000, "the reader was too slow, and nothing was dropped");
        dropped = pair.web.metric("outrigger_tap_dropped_total", &[]);
    }
    let labels = [("direction", "outbound")];
    assert_eq!(pair.web.metric("outrigger_requests_total", &labels), sent as f64);
    connection.get(API, "/last");
    let (mut shown, mut missed) = (0, 0);
    loop {
        let line = next(&mut stalled);
        match line["dropped"].as_u64() {
            Some(count) => missed += count,
            None => shown += 1,
        }
        if line["path"] == "/last" || shown + missed == sent + 1 {
            break;
        }
    }
    assert_eq!(
        (shown + missed, missed as f64),
        (sent + 1, pair.web.metric("outrigger_tap_dropped_total", &[]))
    );
    drop(stalled);
    connection.get(API, "/after");
    assert_eq!(pair.web.metric("outrigger_requests_total", &labels), (sent + 2) as f64);
}

#[test]
fn a_reader_gives_its_place_back_when_it_leaves_and_a_ninth_is_refused() {
    let pair = Pair::new();
    let mut readers: Vec<Connection> = (0..8).map(|_| tap(&pair.web, "")).collect();
    let refused = pair.web.ask_own(15000, "/tap");
    assert_eq!(refused.status(), 503, "{}", refused.text());
    readers.pop();
    wait::until("a place is free", || {
        let mut connection = pair.web.connect(ADMIN);
        connection.send("GET /tap HTTP/1.1\r\nHost: localhost\r\n\r\n");
        connection.head().status() == 200
    });
}

/// `api` at three addresses: one that answers, one that refuses, one that answers 503.
fn one_of_three_is_well(panic_below_percent: u8) -> String {
    format!(
        "outbound: {{meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}}
upstreams:
  api:
    hosts: [{API}]
    anyDestination: true
    discovery: {{static: [\"10.77.0.2:8080\", \"10.77.0.2:8081\", \"10.77.0.2:8082\"]}}
    identity: \"{}\"
    retry: {{attempts: 2}}
    outlier: {{consecutiveFailures: 2, connectFailures: 2, maxEjectedPercent: 67, panicBelowPercent: {panic_below_percent}}}
    breaker: {{enabled: false}}
    balance: roundRobin
",
        shop("api")
    )
}

fn by_address(upstream: &Value, port: u16) -> Value {
    let endpoints = upstream["endpoints"].as_array().expect("endpoints");
    let is_it = |endpoint: &&Value| endpoint["address"] == format!("10.77.0.2:{port}");
    endpoints.iter().find(is_it).unwrap_or_else(|| panic!("{port} in {upstream}")).clone()
}

#[test]
fn an_endpoint_says_since_when_and_why_it_is_out_and_what_failed_there_last() {
    let pair = Pair::with(&one_of_three_is_well(0), "inbound: {connectRetry: 0s}");
    let _well = pair.api.serve_http(8080, |_| ok("yes"));
    let _unwell = pair.api.serve_http(8082, |_| respond("503 Service Unavailable", "", "no"));
    let mut connection = pair.connect(8080);
    let shown = wait::eventually("both are ejected", || {
        let answer = connection.get(API, "/");
        assert_eq!(
            answer.status(),
            200,
            "retried at another: {answer:?} {}",
            pair.web.admin("/upstreams")["api"]
        );
        let upstream = pair.web.admin("/upstreams")["api"].clone();
        [8081, 8082].iter().all(|port| by_address(&upstream, *port)["state"] == "ejected").then_some(upstream)
    });
    for (port, what) in [(8081, "it answered with 50"), (8082, "it answered with 503")] {
        let out = by_address(&shown, port);
        let why = out["why"].as_str().expect("words");
        assert!(why.starts_with("ejected: 2 f") && why.contains("in a row"), "{why}");
        assert!(out["lastError"]["what"].as_str().expect("words").starts_with(what), "{out}");
        assert!(out["lastError"]["secondsAgo"].is_f64() && out["sinceSeconds"].is_f64(), "{out}");
        assert_eq!(out["share"], 0.0);
    }
    let well = by_address(&shown, 8080);
    assert_eq!((&well["state"], &well["why"]), (&"healthy".into(), &"nothing speaks against it".into()));
    assert_eq!((&well["share"], &well["lastError"]), (&1.0.into(), &Value::Null));
    assert_eq!(shown["discovery"]["provider"], "static");
    assert!(shown["pool"]["connections"].as_u64().is_some_and(|count| count >= 1), "{shown}");
    // For people the same.
    let (status, page) = curl(&pair.web, &["-H", "Accept: text/html", "http://127.0.0.1:15000/upstreams"]);
    assert_eq!(status, 200);
    assert!(page.contains("■ ejected") && page.contains("it answered with 503"), "{page}");
    let inbound = pair.api.admin("/upstreams")["workload:8081"].clone();
    let refused = by_address(&inbound, 8081)["lastError"]["what"].clone();
    assert!(refused.as_str().is_some_and(|what| what.contains("refused")), "{inbound}");
}

#[test]
fn in_panic_mode_an_endpoint_says_why_it_gets_requests_all_the_same() {
    let pair = Pair::with(&one_of_three_is_well(50), "inbound: {connectRetry: 0s}");
    let _well = pair.api.serve_http(8080, |_| ok("yes"));
    let _unwell = pair.api.serve_http(8082, |_| respond("503 Service Unavailable", "", "no"));
    let mut connection = pair.connect(8080);
    let shown = wait::eventually("both are out and get requests all the same", || {
        connection.get(API, "/");
        let upstream = pair.web.admin("/upstreams")["api"].clone();
        [8081, 8082].iter().all(|port| by_address(&upstream, *port)["state"] == "panic").then_some(upstream)
    });
    let why = by_address(&shown, 8081)["why"].clone();
    let why = why.as_str().expect("words");
    assert!(why.starts_with("panic mode, less than 50 % are in") && why.contains("ejected: 2 f"), "{why}");
    assert_eq!(by_address(&shown, 8082)["share"], 0.333);
}

#[test]
fn the_last_failures_say_why() {
    let pair = Pair::with(&web_config(), "inbound: {connectRetry: 0s, allow: [{ports: [8080]}]}");
    let _server = pair.api.serve_http(8080, |request| match request.target().starts_with("/broken") {
        true => respond("500 Internal Server Error", "", "no"),
        false => ok("yes"),
    });
    pair.get(8080, "/");
    pair.get(8080, "/broken?token=secret");
    assert_eq!(pair.get(8081, "/denied").status(), 403);
    let failures = pair.web.admin("/failures");
    let [failure] = &failures["failures"].as_array().expect("a list")[..] else {
        panic!("one failed: {failures}")
    };
    assert_eq!((&failure["path"], &failure["code"]), (&"/broken".into(), &500.into()));
    let upstream = failure["upstream"].as_str().expect("a name");
    assert_eq!(failure["why"], format!("{upstream} answered with 500"));
    let failures = pair.api.admin("/failures");
    let whys: Vec<&str> = failures["failures"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|failure| failure["why"].as_str().expect("words"))
        .collect();
    let denied = format!("{} may not GET this path on port 8081", shop("web"));
    assert_eq!(whys, [&*denied, "workload:8080 answered with 500"], "the newest first");
    assert!(!failures.to_string().contains("secret"));
}

#[test]
fn open_connections_are_listed_with_upstream_tls_and_peer() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |_| ok("yes"));
    let _opaque = pair.api.serve(7000, |mut connection| {
        connection.take_all();
    });
    let mut connection = pair.connect(8080);
    connection.get(API, "/");
    let mut opaque = pair.connect(7000);
    opaque.send("x");
    let listed = wait::eventually("both are there", || {
        let listed = pair.web.admin("/connections");
        let all = listed["oldest"].as_array().expect("a list");
        let spoken: BTreeSet<&str> = all.iter().filter_map(|one| one["speaks"].as_str()).collect();
        (spoken == BTreeSet::from(["http1", "tcp"])).then_some(listed)
    });
    assert_eq!((&listed["outbound"], &listed["notListed"]), (&2.into(), &0.into()));
    let http = &listed["oldest"][0];
    assert_eq!(http["destination"], pair.api.at(8080).to_string());
    assert_eq!(http["upstream"], format!("{API}:8080"));
    assert_eq!(listed["toUpstreams"]["api-7000"]["connections"], 1);
    let inbound = wait::eventually("the peer is known", || {
        let listed = pair.api.admin("/connections");
        let peer = shop("web");
        let groups = listed["fromClients"].as_array().expect("a list").clone();
        groups
            .iter()
            .any(|group| {
                let wanted = json!({
                    "direction": "inbound", "upstream": "workload:8080", "tls": "mesh", "peer": peer, "connections": 1,
                });
                *group == wanted
            })
            .then_some(listed)
    });
    assert!(inbound["oldest"].to_string().contains("\"http2\""), "{inbound}");
    drop((connection, opaque));
    wait::until("they are gone", || pair.web.admin("/connections")["oldest"] == json!([]));
}

#[test]
fn why_says_what_the_request_then_meets() {
    let config = format!(
        "outbound: {{meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}}
upstreams:
  api:
    hosts: [{API}]
    discovery: {{static: [\"10.77.0.2:8080\"]}}
    identity: \"{id}\"
    timeout: 5s
  canary:
    discovery: {{static: [\"10.77.0.2:9090\"]}}
    identity: \"{id}\"
routes:
  - name: rest
    match: [{{host: {API}}}]
    upstreams: [{{name: api}}]
  - name: canary
    match: [{{host: {API}, path: {{prefix: /orders}}, headers: [{{name: x-canary, value: {{exact: \"yes\"}}}}]}}]
    requestHeaders: {{set: [{{name: x-routed, value: canary}}]}}
    upstreams: [{{name: canary}}]
    timeout: 2s
  - name: gone
    match: [{{host: {API}, path: {{exact: /gone}}}}]
    respond: {{status: 410}}
",
        id = shop("api")
    );
    let allow = format!("inbound: {{allow: [{{identities: [\"{}\"], methods: [GET]}}]}}", shop("web"));
    let pair = Pair::with(&config, &allow);
    let _api = pair.api.serve_http(8080, |_| ok("api"));
    let _canary = pair.api.serve_http(9090, |_| ok("canary"));
    let why = |query: &str| pair.web.admin(&format!("/why?{query}"));
    let url = format!("url=http://{API}:8080");

    let told = why(&format!("{url}/orders/7"));
    assert_eq!(told["route"]["name"], "rest", "{told:#}");
    let canary_misses = json!({ "route": "canary", "why": "the header x-canary is not `yes`" });
    let gone_misses = json!({ "route": "gone", "why": "the path is not exactly /gone" });
    assert_eq!(told["route"]["passedOver"], json!([gone_misses, canary_misses]));
    assert_eq!((&told["upstream"]["name"], &told["chosen"]), (&"api".into(), &"10.77.0.2:8080".into()));
    assert_eq!(told["upstream"]["timeoutSeconds"], 5.0);
    assert_eq!(told["mtls"], format!("mesh TLS, expecting {}", shop("api")));
    assert_eq!(pair.get(8080, "/orders/7").text(), "api");

    let told = why(&format!("{url}/orders/7&header=x-canary:yes"));
    assert_eq!(
        (&told["route"]["name"], &told["chosen"]),
        (&"canary".into(), &"10.77.0.2:9090".into()),
        "{told:#}"
    );
    assert_eq!(
        (&told["route"]["filters"], &told["upstream"]["timeoutSeconds"]),
        (&json!(["requestHeaders"]), &2.0.into())
    );
    let request = format!("GET /orders/7 HTTP/1.1\r\nHost: {API}\r\nX-Canary: yes\r\n\r\n");
    assert_eq!(pair.connect(8080).ask(request).text(), "canary");

    let told = why(&format!("{url}/gone"));
    assert_eq!(told["callerGets"], "what the route itself answers (respond)");
    assert_eq!(pair.get(8080, "/gone").status(), 410);

    // A forged name goes nowhere else than it was dialled to.
    let told = why(&format!("{url}/&address=10.77.0.1:8080"));
    assert_eq!(
        (&told["route"], &told["destination"]["routedHost"]),
        (&Value::Null, &Value::Null),
        "{told:#}"
    );

    let told = why("url=http://nobody.svc.cluster.local/&address=10.77.0.2");
    assert!(told["callerGets"].as_str().is_some_and(|gets| gets.starts_with("503, dns_error")), "{told:#}");
    let answer = pair.connect(80).get("nobody.svc.cluster.local", "/");
    assert_eq!((answer.status(), answer.proxy_error().as_deref()), (503, Some("dns_error")));

    let (status, text) = curl(&pair.web, &["http://127.0.0.1:15000/why?uri=x"]);
    assert!(status == 400 && text.contains("ask as /why?url="), "{text}");

    let asked = |method: &str, peer: &str| {
        pair.api.admin(&format!("/why?direction=inbound&port=8080&path=/x&method={method}&peer={peer}"))
    };
    let told = asked("GET", &shop("web"));
    assert_eq!(
        (&told["allowed"], &told["why"]),
        (&true.into(), &json!(["rule 1 of inbound.allow lets it in"]))
    );
    let told = asked("POST", &shop("web"));
    assert_eq!((&told["allowed"], &told["why"]), (&false.into(), &json!(["rule 1: it is for GET"])));
    let request = format!("POST /x HTTP/1.1\r\nHost: {API}\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(pair.connect(8080).ask(request).status(), 403);
    let told = asked("GET", "");
    assert_eq!(told["allowed"], false);
    assert!(told["why"].to_string().contains("mesh TLS only"), "{told}");
}

#[test]
fn every_page_is_html_for_a_browser_and_json_for_a_program() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    pair.get(8080, "/<img src=x>");
    for path in [
        "upstreams",
        "failures",
        "routes",
        "connections",
        "certificates",
        "config",
        "version",
        "log",
        "why?url=http://10.77.0.2:8080",
    ] {
        let url = format!("http://127.0.0.1:15000/{path}");
        let (status, text) = curl(&pair.web, &[&url]);
        assert_eq!(status, 200, "{path}");
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{path}: {text}");
        let (status, text) = curl(&pair.web, &["-H", "Accept: text/html,*/*;q=0.8", &url]);
        assert_eq!(status, 200, "{path}");
        assert!(
            text.starts_with("<!doctype html>") && text.contains("href=\"/upstreams\""),
            "{path}: {text}"
        );
        assert!(!text.contains("<img"), "{path}");
    }
}
