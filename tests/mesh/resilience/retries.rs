//! What is tried again, and what is not.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::{Bench, ENDPOINTS, Trio, endpoint, with_body};
use crate::grpc::{peer, python};
use crate::support::outside::{self, Outside};
use crate::support::pod::Pod;
use crate::support::serve::{Server, ok, respond};
use crate::support::{API, bytes};

/// Nothing but retries keeps a request from an endpoint or from failing.
const BARE: &str = "tls: none, balance: roundRobin, outlier: {enabled: false}, breaker: {enabled: false}";

const OFF: &str = "outlier: {enabled: false}, breaker: {enabled: false}";

/// Counts the requests that come to a port of `pod`; `answer` is told how many came before.
fn count<B: AsRef<[u8]>>(
    pod: &Pod,
    port: u16,
    answer: impl Fn(usize, &[u8]) -> B + Send + Sync + 'static,
) -> (Arc<AtomicUsize>, Server) {
    let came = Arc::<AtomicUsize>::default();
    let counter = came.clone();
    let server = pod.serve_http(port, move |request| answer(counter.fetch_add(1, SeqCst), &request.body));
    (came, server)
}

fn retries(web: &Pod, upstream: &str) -> f64 {
    web.metric("outrigger_retries_total", &[("upstream", upstream)])
}

#[test]
fn a_post_is_tried_again_only_where_nobody_has_processed_it() {
    let at = ENDPOINTS[0];
    let upstream = |name: &str, endpoints: &str| {
        format!("  {name}: {{hosts: [{name}.example], {BARE}, discovery: {{static: [{endpoints}]}}}}\n")
    };
    let bench = Bench::new(&format!(
        "{}{}{}routes:
- {{name: idempotent, match: [{{host: failing.example, path: {{prefix: /safe}}}}], upstreams: [{{name: failing}}], idempotent: true}}
- {{name: other, match: [{{host: failing.example}}], upstreams: [{{name: failing}}]}}\n",
        upstream("refusing", &format!("\"{at}:8080\", \"{at}:9999\"")),
        upstream("failing", &format!("\"{at}:8081\", \"{at}:8082\"")),
        upstream("resetting", &format!("\"{at}:8083\", \"{at}:8084\"")),
    ));
    for _ in 0..10 {
        let mut connection = bench.web.connect(endpoint(0));
        let answer = connection.ask(with_body("POST", "refusing.example", b"once"));
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    assert_eq!(bench.asked(), 10);
    assert!(retries(&bench.web, "refusing") >= 4.0, "many met a closed port first");

    let unavailable = |_: usize, _: &[u8]| respond("503 Service Unavailable", "", "no");
    let failing = [8081, 8082].map(|port| count(&bench.api, port, unavailable));
    let came = || failing.iter().map(|(came, _)| came.swap(0, SeqCst)).sum::<usize>();
    let ask = |method: &str, path: &str| {
        let head =
            format!("{method} {path} HTTP/1.1\r\nHost: failing.example\r\nContent-Length: 4\r\n\r\nonce");
        bench.web.connect((at, 8081)).ask(head)
    };
    for (method, path, want) in
        [("POST", "/", 1), ("PATCH", "/", 1), ("POST", "/safe", 3), ("PUT", "/", 3), ("DELETE", "/", 3)]
    {
        let answer = ask(method, path);
        assert_eq!((answer.status(), answer.text().as_str()), (503, "no"), "the last try's response");
        assert_eq!(came(), want, "{method} {path}");
    }

    let came = Arc::<AtomicUsize>::default();
    let _resetting = [8083, 8084].map(|port| {
        let came = came.clone();
        bench.api.serve(port, move |mut connection| {
            connection.request();
            came.fetch_add(1, SeqCst);
            connection.reset();
        })
    });
    for (method, want) in [("POST", 1), ("GET", 3)] {
        let answer = bench.web.connect((at, 8083)).ask(with_body(method, "resetting.example", b""));
        assert_eq!(
            (answer.status(), answer.proxy_error().as_deref(), came.swap(0, SeqCst)),
            (502, Some("connection_terminated"), want),
            "{method}"
        );
    }
}

#[test]
fn a_post_whose_peer_says_that_its_workload_was_not_reached_is_tried_elsewhere() {
    let trio = Trio::new(&format!(
        "  api: {{hosts: [{API}], discovery: {{static: [{{all}}]}}, identity: any, balance: roundRobin, outlier: {{enabled: false}}}}\n"
    ));
    // Nobody listens at two and three.
    let (came, _server) = count(&trio.pods[0], 8080, |_, body| ok(body));
    for number in 0..4 {
        let body = format!("number {number}");
        let answer = trio.web.connect(trio.pods[0].at(8080)).ask(with_body("POST", API, body.as_bytes()));
        assert_eq!((answer.status(), answer.text()), (200, body));
    }
    assert_eq!(came.load(SeqCst), 4);
    assert!(retries(&trio.web, "api") >= 3.0, "{} retries", retries(&trio.web, "api"));
}

#[test]
fn only_the_peer_s_sidecar_is_believed_that_a_post_was_not_processed() {
    let trio = Trio::new(&format!(
        "  api: {{hosts: [{API}], discovery: {{static: [{{all}}]}}, identity: any, fallback: {{upstream: spare}}, {OFF}}}
  spare: {{tls: none, discovery: {{static: [\"10.77.0.9:8085\"]}}, {OFF}}}\n"
    ));
    let lie = |_: usize, _: &[u8]| {
        respond("503 Service Unavailable", "Connection: close\r\noutrigger-unprocessed: 1\r\n", "done")
    };
    let workloads = trio.pods.each_ref().map(|pod| count(pod, 8080, lie));
    let came = || workloads.iter().map(|(came, _)| came.swap(0, SeqCst)).sum::<usize>();
    let ask = || trio.web.connect(trio.pods[0].at(8080)).ask(with_body("POST", API, b"once"));
    let answer = ask();
    assert_eq!((answer.status(), answer.header("outrigger-unprocessed")), (503, None), "{answer:?}");
    assert_eq!(came(), 1, "a workload has seen it");
    drop(workloads);
    // Where the workloads are not reached, a spare without a sidecar is asked, whose word is nothing either.
    let outside = trio.mesh.pod("outside");
    outside.run(&["ip", "addr", "add", "10.77.0.9/24", "dev", "eth0"]);
    let (came, _spare) = count(&outside, 8085, lie);
    assert_eq!(ask().status(), 503);
    assert_eq!(came.load(SeqCst), 1);
    let by = |tls: &str| trio.web.metric("outrigger_requests_total", &[("upstream", "spare"), ("tls", tls)]);
    assert_eq!((by("none"), by("mesh")), (1.0, 0.0));
}

#[test]
fn a_body_of_up_to_64_kib_is_sent_again_while_it_streams_and_a_larger_one_is_not() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], {BARE}, discovery: {{static: [\"{at}:8081\", \"{at}:8082\"]}}}}
  failing: {{hosts: [failing.example], {BARE}, discovery: {{static: [\"{at}:8083\", \"{at}:8084\"]}}}}
  refusing: {{hosts: [refusing.example], {BARE}, discovery: {{static: [\"{at}:8082\", \"{at}:9999\"]}}}}\n"
    ));
    // The first says no as soon as it sees the head, the second echoes; they take turns.
    let (saw_head, head_seen) = mpsc::channel();
    let _failing = bench.api.serve(8081, move |mut connection| {
        while connection.try_head().is_ok() {
            connection.take(10);
            let _ = saw_head.send(());
            connection.send(respond("503 Service Unavailable", "Connection: close\r\n", "early"));
        }
    });
    let (came, _echo) = count(&bench.api, 8082, |_, body| ok(body));
    let mut whole = 0;
    for _ in 0..4 {
        let body = bytes(60_000);
        let mut connection = bench.web.connect((at, 8081));
        connection.send(format!("PUT / HTTP/1.1\r\nHost: {API}\r\nContent-Length: {}\r\n\r\n", body.len()));
        connection.send(&body[..10_000]);
        // The other endpoint waits for the rest.
        let failed = head_seen.recv_timeout(Duration::from_millis(500)).is_ok();
        connection.send(&body[10_000..]);
        let answer = connection.response("PUT");
        assert!(
            answer.status() == 200 && answer.body == body,
            "{}: {} bytes",
            answer.status(),
            answer.body.len()
        );
        whole += usize::from(failed);
    }
    assert!(whole >= 2 && came.load(SeqCst) == 4, "{whole} of {} were sent again", came.load(SeqCst));

    // Of a larger one, what has gone by is not there any more; what never went out is.
    let unavailable = |_: usize, _: &[u8]| respond("503 Service Unavailable", "", "read");
    let failing = [8083, 8084].map(|port| count(&bench.api, port, unavailable));
    for (size, tries) in [(60_000, 3), (200_000, 1)] {
        let answer = bench.web.connect((at, 8083)).ask(with_body("PUT", "failing.example", &bytes(size)));
        assert_eq!((answer.status(), answer.text().as_str()), (503, "read"));
        let came: usize = failing.iter().map(|(came, _)| came.swap(0, SeqCst)).sum();
        assert_eq!(came, tries, "{size} bytes");
    }
    for _ in 0..4 {
        let answer =
            bench.web.connect((at, 8082)).ask(with_body("POST", "refusing.example", &bytes(200_000)));
        assert!(
            answer.status() == 200 && answer.body == bytes(200_000),
            "{} {}",
            answer.status(),
            answer.body.len()
        );
    }
    assert!(retries(&bench.web, "refusing") >= 2.0);
}

#[test]
fn a_body_in_thousands_of_small_pieces_is_sent_again() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], {BARE}, discovery: {{static: [\"{at}:8081\", \"{at}:8082\"]}}}}
  calls: {{hosts: [calls.example], {BARE}, discovery: {{static: [\"{at}:50051\"]}}}}
routes:
- {{name: calls, match: [{{host: calls.example}}], upstreams: [{{name: calls}}], idempotent: true}}\n"
    ));
    let (failed, _ill) = count(&bench.api, 8081, |_, _| respond("503 Service Unavailable", "", "ill"));
    let (_, _echo) = count(&bench.api, 8082, |_, body| ok(body));
    let body: Vec<u8> = bytes(3000);
    let mut put = format!("PUT / HTTP/1.1\r\nHost: {API}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for byte in &body {
        put.extend([b"1\r\n", &[*byte][..], b"\r\n"].concat());
    }
    put.extend(b"0\r\n\r\n");
    for _ in 0..4 {
        let answer = bench.web.connect((at, 8081)).ask(&put);
        assert!(answer.status() == 200 && answer.body == body, "{} {}", answer.status(), answer.body.len());
    }
    assert!(failed.load(SeqCst) >= 2);

    bench.web.add_hosts(&format!("{at} calls.example"));
    let mut server = bench.api.start(&[&python(), &peer("grpc_server.py"), "0.0.0.0:50051"]);
    server.wait_for_output("serving");
    let said =
        bench.web.run(&[&python(), &peer("grpc_client.py"), "calls.example:50051", "flaky_client_stream"]);
    let said: serde_json::Value =
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(said["answer"], "call 3 of 3000", "{said}");
}

#[test]
fn a_server_that_asks_for_patience_is_waited_for_no_longer_than_configured() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  soon: {{hosts: [soon.example], {BARE}, discovery: {{static: [\"{at}:8081\"]}}}}
  late: {{hosts: [late.example], {BARE}, discovery: {{static: [\"{at}:8082\"]}}}}\n"
    ));
    let first_fails = |seconds: u32| {
        move |before: usize, _: &[u8]| match before {
            0 => respond("503 Service Unavailable", &format!("Retry-After: {seconds}\r\n"), "later"),
            _ => ok("now"),
        }
    };
    let (soon, _soon) = count(&bench.api, 8081, first_fails(1));
    let (late, _late) = count(&bench.api, 8082, first_fails(30));
    let began = Instant::now();
    let answer = bench.web.connect((at, 8081)).get("soon.example", "/");
    assert_eq!((answer.status(), soon.load(SeqCst)), (200, 2), "{answer:?}");
    assert!(began.elapsed() >= Duration::from_secs(1), "it was to wait for a second: {:?}", began.elapsed());
    let answer = bench.web.connect((at, 8082)).get("late.example", "/");
    assert_eq!((answer.status(), answer.header("retry-after"), late.load(SeqCst)), (503, Some("30"), 1));
}

#[test]
fn a_grpc_call_that_finds_the_server_unavailable_is_tried_again_where_it_is_idempotent() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  safe: {{hosts: [safe.example], {BARE}, discovery: {{static: [\"{at}:50051\"]}}}}
  unsafe: {{hosts: [unsafe.example], {BARE}, discovery: {{static: [\"{at}:50051\"]}}}}
routes:
- {{name: safe, match: [{{host: safe.example}}], upstreams: [{{name: safe}}], idempotent: true}}\n"
    ));
    bench.web.add_hosts(&format!("{at} safe.example unsafe.example"));
    let mut server = bench.api.start(&[&python(), &peer("grpc_server.py"), "0.0.0.0:50051"]);
    server.wait_for_output("serving");
    let call = |host: &str| {
        let said = bench.web.run(&[&python(), &peer("grpc_client.py"), &format!("{host}:50051"), "flaky"]);
        serde_json::from_str::<serde_json::Value>(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    // The server says UNAVAILABLE to every call but each third.
    assert_eq!(call("safe.example")["answer"], "call 3");
    assert_eq!(retries(&bench.web, "safe"), 2.0);
    assert_eq!(call("unsafe.example")["code"], "UNAVAILABLE");
    assert_eq!(call("unsafe.example")["code"], "UNAVAILABLE");
    assert_eq!(call("unsafe.example")["answer"], "call 6");
    assert_eq!(retries(&bench.web, "unsafe"), 0.0);
}

#[test]
fn what_a_response_that_is_tried_again_says_of_its_endpoint_is_not_said_of_the_next() {
    let policy = "hosts: [shop.example], balance: {ringHash: {key: {header: x-user}}}, breaker: {enabled: false}, \
                  retry: {on: [\"500\"]}, outlier: {consecutiveFailures: 3, ejection: 60s}";
    let bed = Outside::new(&format!("upstreams:\n{}", outside::upstream("shop", &[8081, 8082], policy)));
    let answering = |status: &'static str| move |_: usize, _: &[u8]| respond(status, "", "");
    let (tried_first, _first) = count(&bed.far, 8081, answering("500 Internal Server Error"));
    let (tried_next, _next) = count(&bed.far, 8082, answering("503 Service Unavailable"));
    // A caller whose requests go to the first endpoint first: its 500 is a good answer as ejection sees it.
    let caller = (0..100)
        .map(|number| format!("x-user: {number}\r\n"))
        .find(|caller| {
            let before = tried_first.load(SeqCst);
            bed.ask("GET", "/", caller);
            tried_first.load(SeqCst) > before
        })
        .expect("a key of either endpoint");
    let standing = || {
        let upstreams = bed.web.admin("/upstreams");
        let endpoints = upstreams["shop"]["endpoints"].as_array().cloned().unwrap_or_default();
        let next = endpoints.into_iter().find(|endpoint| endpoint["address"] == "10.77.0.2:8082");
        next.map(|endpoint| endpoint["standing"].to_string()).unwrap_or_default()
    };
    for _ in 0..20 {
        bed.ask("GET", "/", &caller);
    }
    assert!(tried_next.load(SeqCst) >= 3);
    assert!(standing().contains("out for"), "{}", standing());
}
