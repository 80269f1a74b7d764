//! What an upstream may cost: timeouts, limits of its connections and requests; and a config that changes under load.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::grpc::{call, serve as serve_grpc};
use crate::support::outside::{Outside, SHOP, upstream};
use crate::support::serve::{Server, ok, respond};
use crate::support::{API, Connection, Message, Pair, wait};

/// An answer that is given at once, on a machine with two busy cores.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// Nothing but what a test is about may take an endpoint out.
const ALWAYS_IN: &str = "outlier: {enabled: false}, breaker: {enabled: false}";

/// A server that answers `/hold` when it is told to, other paths at once, and all with its number.
struct Holding {
    server: Server,
    released: Arc<AtomicBool>,
    held: Arc<AtomicUsize>,
}

impl Holding {
    fn new(bed: &Outside, port: u16) -> Self {
        let (released, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_released, holds) = (released.clone(), held.clone());
        let server = bed.far.serve_http(port, move |request| {
            if request.target() == "/hold" {
                holds.fetch_add(1, Ordering::SeqCst);
                wait::until("the test lets go", || is_released.load(Ordering::SeqCst));
            }
            ok(port.to_string())
        });
        Self { server, released, held }
    }

    fn wait_for(&self, count: usize) {
        wait::until(&format!("{count} requests are held"), || self.held.load(Ordering::SeqCst) == count);
    }

    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

/// Sends `GET path` to `host`, and does not wait for the answer.
fn begin(bed: &Outside, host: &str, path: &str) -> Connection {
    let mut connection = bed.connect();
    connection.send(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    connection
}

fn assert_turned_away(answer: &Message) {
    assert_eq!(answer.status(), 503, "{answer:?}");
    assert_eq!(answer.proxy_error().as_deref(), Some("connection_limit_reached"));
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
}

/// What came of it, and how long that took.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed())
}

#[test]
fn a_request_waits_as_long_as_its_route_or_its_upstream_says_and_a_try_is_given_up_earlier() {
    let mut config = String::from("upstreams:\n");
    config += &upstream("silent", &[8082], &format!("hosts: [{SHOP}], timeout: 3s, {ALWAYS_IN}"));
    config += &upstream(
        "either",
        &[8081, 8082],
        &format!(
            "hosts: [either.example], balance: roundRobin, timeout: 15s, retry: {{perTryTimeout: 300ms, minRetriesPerSecond: 100}}, {ALWAYS_IN}"
        ),
    );
    config += &format!(
        "routes:
  - {{name: short, match: [{{host: {SHOP}, path: {{prefix: /short}}}}], upstreams: [{{name: silent}}], timeout: 500ms}}
  - {{name: usual, match: [{{host: {SHOP}}}], upstreams: [{{name: silent}}]}}
"
    );
    let bed = Outside::new(&config);
    let _server = bed.serve_number(8081);
    let silent = bed.far.serve(8082, |mut connection| while connection.fill().is_ok() {});
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (path, least, most) in [("/short", 500, 2500), ("/usual", 3000, 8000)] {
                let (answer, took) = timed(|| bed.ask("GET", path, ""));
                assert_eq!(answer.status(), 504, "{answer:?}");
                assert_eq!(answer.proxy_error().as_deref(), Some("http_response_timeout"));
                let took = took.as_millis();
                assert!((least..most).contains(&took), "{path} took {took} ms");
            }
        });
        scope.spawn(|| {
            let mut connection = bed.connect();
            for _ in 0..10 {
                let answer = connection.get("either.example", "/");
                assert_eq!((answer.status(), answer.text().as_str()), (200, "8081"), "{answer:?}");
            }
        });
    });
    assert!(silent.accepted() >= 5, "nobody was tried in vain: {}", silent.accepted());
    // What may have been processed is not tried again.
    let mut connection = bed.connect();
    let post = "POST / HTTP/1.1\r\nHost: either.example\r\nContent-Length: 2\r\n\r\nab";
    let statuses: Vec<u16> = (0..6).map(|_| connection.ask(post).status()).collect();
    assert!(statuses.contains(&504) && statuses.contains(&200), "{statuses:?}");
}

#[test]
fn the_time_of_a_try_begins_when_its_request_has_ended_and_a_slow_client_is_nobodys_fault() {
    let mut config = String::from("upstreams:\n");
    for (name, port) in [("shop", 8081), ("silent", 8082)] {
        config += &upstream(
            name,
            &[port],
            &format!(
                "hosts: [{name}.example], retry: {{perTryTimeout: 300ms}}, breaker: {{consecutiveFailures: 3}}"
            ),
        );
    }
    let bed = Outside::new(&config);
    let (_server, came) = bed.serve_counted(8081);
    let silent = bed.far.serve(8082, |mut connection| while connection.fill().is_ok() {});
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let mut connection = bed.connect();
                connection.send("PUT / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n\r\n");
                for piece in ["a", "b", "c", "d"] {
                    std::thread::sleep(Duration::from_millis(400));
                    connection.send(piece);
                }
                let answer = connection.response("PUT");
                assert_eq!((answer.status(), answer.text().as_str()), (200, "8081"), "{answer:?}");
            });
        }
    });
    assert_eq!(came.load(Ordering::SeqCst), 6, "none is sent twice");
    let shop = &bed.web.admin("/upstreams")["shop"];
    assert_eq!(
        (&shop["breaker"]["state"], &shop["breaker"]["opened"]),
        (&"closed".into(), &0.into()),
        "{shop}"
    );
    // Half a second from the request's end, and not from its beginning, to the end of the last try.
    let mut connection = bed.connect();
    connection.send("PUT / HTTP/1.1\r\nHost: silent.example\r\nContent-Length: 2\r\n\r\na");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(silent.accepted(), 1, "there is no other try as long as the request has not ended");
    connection.send("b");
    let answer = connection.response("PUT");
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert_eq!(silent.accepted(), 3);
}

#[test]
fn a_body_and_opaque_bytes_that_stand_still_are_ended_and_slow_ones_are_not() {
    let mut config = String::from("upstreams:\n");
    config += &upstream("shop", &[8081], &format!("hosts: [{SHOP}], streamIdleTimeout: 1s"));
    config += &upstream("opaque", &[8082], "protocol: tcp, streamIdleTimeout: 1s");
    let bed = Outside::new(&config);
    let _shop = bed.far.serve(8081, |mut connection| {
        while let Ok(request) = connection.try_head() {
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
            for number in 0..8 {
                if number == 4 && request.target() == "/stuck" {
                    let _ = connection.fill();
                    return;
                }
                std::thread::sleep(Duration::from_millis(300));
                if connection.try_send("x").is_err() {
                    return;
                }
            }
        }
    });
    let _opaque = bed.far.serve(8082, |mut connection| {
        while let Some(Ok(())) = connection.fill_within(wait::PATIENCE) {
            if connection.try_send("y").is_err() {
                return;
            }
        }
    });
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(bed.ask("GET", "/steady", "").text(), "xxxxxxxx"));
        scope.spawn(|| {
            let mut connection = begin(&bed, SHOP, "/stuck");
            assert_eq!(connection.head().status(), 200);
            let ((body, _), took) = timed(|| connection.take_all());
            assert_eq!(body, b"xxxx", "it broke off where it stood still");
            assert!(took < Duration::from_secs(8), "{took:?}");
        });
        scope.spawn(|| {
            // The workload reads no body: it is the request that stands still.
            let mut connection = bed.connect();
            connection.send(format!("POST /stuck HTTP/1.1\r\nHost: {SHOP}\r\nContent-Length: 9\r\n\r\nab"));
            let (_, took) = timed(|| connection.take_all());
            assert!(took < Duration::from_secs(8), "{took:?}");
        });
        scope.spawn(|| {
            let mut connection = bed.web.connect(bed.far.at(8082));
            for _ in 0..6 {
                connection.send(b"\0\x01binary");
                assert_eq!(connection.take(1), b"y");
                std::thread::sleep(Duration::from_millis(400));
            }
            let (ended, took) = timed(|| connection.fill());
            assert!(ended.is_err() && took < Duration::from_secs(8), "{ended:?} after {took:?}");
        });
    });
    bed.web.wait_for_metric(
        "outrigger_tcp_connections_closed_total",
        &[("direction", "outbound"), ("upstream", "opaque"), ("reason", "idle_timeout")],
        1.0,
    );
}

/// Speaks HTTP/2, answers each PING, and takes nothing of any request's body.
fn serve_closed_windows(bed: &Outside, port: u16) -> Server {
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    bed.far.serve(port, |mut connection| {
        connection.take_until(b"SM\r\n\r\n");
        // SETTINGS_INITIAL_WINDOW_SIZE: 0.
        connection.send([0, 0, 6, SETTINGS, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
        loop {
            let head = connection.take(9);
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let content = connection.take(length);
            match (head[3], head[4]) {
                (SETTINGS, 0) => connection.send([0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0]),
                (PING, 0) => connection.send([&[0, 0, 8, PING, ACK, 0, 0, 0, 0], &content[..]].concat()),
                _ => {}
            }
        }
    })
}

#[test]
fn a_receiver_that_takes_nothing_ends_its_request_and_keeps_no_copy_from_others() {
    let mut config = String::from("upstreams:\n");
    config += &upstream(
        "closed",
        &[8081],
        "hosts: [closed.example], protocol: http2, timeout: 1s, streamIdleTimeout: 1s, retry: {attempts: 0}",
    );
    config += &upstream(
        "copies",
        &[8081],
        &format!("protocol: http2, timeout: 1s, retry: {{attempts: 0}}, {ALWAYS_IN}"),
    );
    config += &upstream("shop", &[8082], &format!("hosts: [{SHOP}]"));
    config += &upstream("heard", &[8083], "");
    config += &format!(
        "routes:
  - {{name: copied, match: [{{host: {SHOP}, path: {{prefix: /copied}}}}], upstreams: [{{name: shop}}], mirror: {{upstream: copies}}}}
  - {{name: heard, match: [{{host: {SHOP}, path: {{prefix: /heard}}}}], upstreams: [{{name: shop}}], mirror: {{upstream: heard}}}}
"
    );
    let bed = Outside::new(&config);
    let _closed = serve_closed_windows(&bed, 8081);
    let _shop = bed.serve_number(8082);
    let (_heard, heard) = bed.serve_counted(8083);
    // By its end the windows are known to be closed.
    assert_eq!(bed.connect().get("closed.example", "/").status(), 504);
    let (answer, took) = timed(|| {
        bed.connect().ask("POST / HTTP/1.1\r\nHost: closed.example\r\nContent-Length: 5\r\n\r\nhello")
    });
    assert_eq!(answer.status(), 504, "{answer:?}");
    assert_eq!(answer.proxy_error().as_deref(), Some("http_response_timeout"));
    assert!(took < Duration::from_secs(5), "{took:?}");

    let mut connection = bed.connect();
    for _ in 0..120 {
        let answer = connection
            .ask(format!("POST /copied HTTP/1.1\r\nHost: {SHOP}\r\nContent-Length: 5\r\n\r\nhello"));
        assert_eq!(answer.text(), "8082");
    }
    wait::until("requests are copied again", || {
        assert_eq!(connection.get(SHOP, "/heard").text(), "8082");
        heard.load(Ordering::SeqCst) > 0
    });
}

#[test]
fn a_callers_deadline_is_passed_on_without_the_time_that_was_spent_and_is_kept() {
    let config = format!(
        "{}  api: {{hosts: [{API}]}}
routes:
  - {{name: late, match: [{{host: {API}}}], upstreams: [{{name: api}}], fault: {{delay: {{duration: 3s}}}}}}
",
        crate::support::web_config()
    );
    let pair = Pair::with(&config, "");
    let _server = serve_grpc(&pair.api);
    let _silent = pair.api.serve(8080, |mut connection| while connection.fill().is_ok() {});
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let remaining = call(&pair, "deadline")["remaining"].as_f64().expect("a number");
            assert!((0.5..=4.0).contains(&remaining), "{remaining} s of 7 s reached the server, 3 s late");
        });
        scope.spawn(|| {
            // A caller that does not look at the clock itself.
            let ask = format!(
                "POST /test.Echo/Wait HTTP/1.1\r\nHost: {API}\r\nContent-Type: application/grpc\r\nTE: trailers\r\ngrpc-timeout: 4S\r\nContent-Length: 0\r\n\r\n"
            );
            let (answer, took) = timed(|| pair.connect(8080).ask(&ask));
            assert_eq!((answer.status(), answer.header("grpc-status")), (200, Some("4")), "{answer:?}");
            assert!((3000..7000).contains(&took.as_millis()), "{took:?}");
        });
    });
}

#[test]
fn as_many_connections_are_open_and_as_many_requests_wait_as_the_pool_allows() {
    let one = "pool: {maxConnections: 1, maxPendingRequests: 1}, connectTimeout: 10s";
    let mut config = String::from("upstreams:\n");
    config += &upstream("shop", &[8081], &format!("hosts: [{SHOP}], {one}"));
    config += &upstream(
        "three",
        &[8082, 8083, 8084],
        "hosts: [three.example], balance: roundRobin, pool: {maxConnections: 2}, connectTimeout: 1s",
    );
    let bed = Outside::new(&config);
    let holding = Holding::new(&bed, 8081);
    let mut held = begin(&bed, SHOP, "/hold");
    holding.wait_for(1);
    let mut waiting = begin(&bed, SHOP, "/");
    bed.web.wait_for_metric("outrigger_pool_pending_requests", &[("upstream", "shop")], 1.0);
    let (answer, took) = timed(|| bed.ask("GET", "/", ""));
    assert_turned_away(&answer);
    assert!(took < AT_ONCE, "{took:?}");
    holding.release();
    for connection in [&mut held, &mut waiting] {
        assert_eq!(connection.response("GET").status(), 200);
    }
    assert_eq!(holding.server.accepted(), 1, "never more than one connection");

    // Connections that nobody uses must not keep others from being opened.
    let _servers = [8082, 8083, 8084].map(|port| bed.serve_number(port));
    let mut connection = bed.connect();
    let mut answers = BTreeMap::new();
    for _ in 0..12 {
        let answer = connection.get("three.example", "/");
        assert_eq!(answer.status(), 200, "{answer:?}");
        *answers.entry(answer.text()).or_insert(0) += 1;
    }
    assert_eq!(answers, BTreeMap::from(["8082", "8083", "8084"].map(|port| (port.to_owned(), 4))));
    assert!(bed.web.metric("outrigger_pool_connections", &[("upstream", "three")]) <= 2.0);
}

#[test]
fn a_connection_that_one_worker_does_not_use_is_no_limit_to_the_others() {
    let limit = format!("hosts: [{SHOP}], pool: {{maxConnections: 1}}, connectTimeout: 1s");
    let config = format!("workers: 4\nupstreams:\n{}", upstream("shop", &[8081], &limit));
    let bed = Outside::new(&config);
    let _server = bed.serve_number(8081);
    // The kernel spreads them over the workers.
    let mut connections: Vec<_> = (0..16).map(|_| bed.connect()).collect();
    for _ in 0..3 {
        for connection in &mut connections {
            let answer = connection.get(SHOP, "/");
            assert_eq!(answer.status(), 200, "{answer:?}");
        }
    }
    // And when all ask at once.
    for connection in &mut connections {
        connection.send(format!("GET / HTTP/1.1\r\nHost: {SHOP}\r\n\r\n"));
    }
    for connection in &mut connections {
        let answer = connection.response("GET");
        assert_eq!(answer.status(), 200, "{answer:?}");
    }
    assert!(bed.web.metric("outrigger_pool_connections", &[("upstream", "shop")]) <= 1.0);
}

#[test]
fn a_request_too_many_is_turned_away_at_once_and_the_others_go_on() {
    let mut config = String::from("upstreams:\n");
    let limits = [
        ("requests", 8081, "pool: {maxRequests: 2}", 2..=2),
        ("fixed", 8082, "concurrency: {limit: 3}", 3..=3),
        ("adaptive", 8083, "concurrency: {adaptive: 30}", 10..=30),
    ];
    for (name, port, limit, _) in &limits {
        config += &upstream(name, &[*port], &format!("hosts: [{name}.example], {limit}"));
    }
    let bed = Outside::new(&config);
    for (name, port, _, places) in limits {
        let host = format!("{name}.example");
        let holding = Holding::new(&bed, port);
        let asked: Vec<_> = (0..40).map(|_| begin(&bed, &host, "/hold")).collect();
        let (refused, mut held): (Vec<_>, Vec<_>) = asked
            .into_iter()
            .map(|mut connection| {
                let refused = match connection.fill_within(Duration::from_millis(300)) {
                    Some(Ok(())) => Some(connection.response("GET")),
                    _ => None,
                };
                (connection, refused)
            })
            .partition(|(_, refused)| refused.is_some());
        refused.iter().filter_map(|(_, answer)| answer.as_ref()).for_each(assert_turned_away);
        assert!(places.contains(&held.len()), "{name}: {} of 40 are under way", held.len());
        holding.wait_for(held.len());
        let (answer, took) = timed(|| begin(&bed, &host, "/").response("GET"));
        assert_turned_away(&answer);
        assert!(took < AT_ONCE, "{name}: {took:?}");
        holding.release();
        for (connection, _) in &mut held {
            assert_eq!(connection.response("GET").status(), 200, "{name}");
        }
        assert_eq!(begin(&bed, &host, "/").response("GET").status(), 200, "{name}: there is room again");
    }
}

/// Asks on several connections at once until `until`; each answer must be good. Gives how many came.
fn load(hosts: &[(&Outside, &str)], connections: usize, until: impl Fn() -> bool + Sync) -> usize {
    let count = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for &(bed, host) in hosts {
            for _ in 0..connections {
                let (until, count) = (&until, &count);
                scope.spawn(move || {
                    let mut connection = bed.connect();
                    while !until() {
                        let answer = connection.get(host, "/");
                        assert_eq!(answer.status(), 200, "{host}: {answer:?}");
                        count.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(2));
                    }
                });
            }
        }
    });
    count.into_inner()
}

#[test]
fn connections_are_replaced_by_their_requests_and_their_age_and_go_when_unused_without_a_failed_request() {
    let mut config = String::from("outbound: {meshDomains: [svc.cluster.local]}\nupstreams:\n");
    config += &upstream("often", &[8081], "hosts: [often.example], pool: {maxRequestsPerConnection: 10}");
    config += &upstream("aged", &[8082], "hosts: [aged.example], pool: {maxConnectionAge: 1s}");
    config += &upstream("idle", &[8083], "hosts: [idle.example], pool: {idleTimeout: 1s}");
    for (name, limit) in
        [("mesh-often", "maxRequestsPerConnection: 10"), ("mesh-aged", "maxConnectionAge: 1s")]
    {
        config += &format!(
            "  {name}: {{hosts: [{name}.example], anyDestination: true, tls: mesh, identity: any, discovery: {{static: [\"10.77.0.3:8080\"]}}, pool: {{{limit}}}}}\n"
        );
    }
    let bed = Outside::new(&config);
    let api = bed.mesh.pod("api");
    let _api_sidecar = bed.mesh.sidecar(&api).start();
    let _api_server = api.serve_http(8080, |_| ok("api"));
    let ports = [8081, 8082];
    let servers = ports.map(|port| bed.far.serve_http(port, |_| ok("far")));
    let (ended, endings) = mpsc::channel();
    let _idle = bed.far.serve(8083, move |mut connection| {
        while connection.request().is_some() {
            connection.send(ok("idle"));
        }
        let _ = ended.send(());
    });
    let handshakes = || bed.web.metric("outrigger_tls_handshakes_total", &[("direction", "outbound")]);

    let asked = Instant::now();
    assert_eq!(begin(&bed, "idle.example", "/").response("GET").status(), 200);
    // Few requests a connection: one of 10 takes as long as a handshake.
    let asks = AtomicUsize::new(0);
    load(&[(&bed, "often.example"), (&bed, "mesh-often.example")], 2, || {
        asks.fetch_add(1, Ordering::SeqCst) >= 400
    });
    assert!(servers[0].accepted() >= 15, "{} connections for about 200 requests", servers[0].accepted());
    let by_requests = handshakes();
    assert!(by_requests >= 15.0, "{by_requests} handshakes for about 200 requests");

    let started = Instant::now();
    let count =
        load(&[(&bed, "aged.example"), (&bed, "mesh-aged.example")], 2, || started.elapsed().as_secs() >= 7);
    assert!(count > 200, "{count}");
    assert!(servers[1].accepted() >= 6, "{} connections in 7 s, each of 1 s", servers[1].accepted());
    // Whether an HTTP/2 connection is too old is looked at every 5 s.
    assert!(handshakes() - by_requests >= 2.0, "{} handshakes in 7 s", handshakes() - by_requests);

    endings.recv_timeout(wait::PATIENCE).expect("the unused connection is closed");
    assert!(asked.elapsed() > Duration::from_secs(1));
    assert_eq!(begin(&bed, "idle.example", "/").response("GET").status(), 200, "and another is opened");
    // Too old for another request, unused or not.
    begin(&bed, "aged.example", "/").response("GET");
    let before = servers[1].accepted();
    std::thread::sleep(Duration::from_millis(1500));
    begin(&bed, "aged.example", "/").response("GET");
    assert_eq!(servers[1].accepted() - before, 1);
}

/// The config number `number` of those that take turns: where requests for the shop go, an upstream that always
/// changes, and ones that never do.
fn changing(number: usize) -> String {
    // What is called `blue` in one is somewhere else in the other: half of each would lead to the wrong place.
    let (to, not_to, blue, green) = match number % 2 {
        0 => ("blue", "green", 8081, 8089),
        _ => ("green", "blue", 8089, 8082),
    };
    let mut config = String::from("outbound: {meshDomains: [svc.cluster.local]}\nupstreams:\n");
    config += &upstream("blue", &[blue], "");
    config += &upstream("green", &[green], "");
    // There only now and then, and yet nobody may miss it.
    let shown = format!("now-{}", number % 3);
    config += &upstream(&shown, &[8083], "");
    config += &upstream("other", &[8084], &format!("hosts: [other.example], timeout: {}s", 10 + number));
    config += "  mesh: {hosts: [mesh.example], anyDestination: true, tls: mesh, identity: any, discovery: {static: [\"10.77.0.3:8080\"]}}\n";
    config += &upstream(
        "ejecting",
        &[8083, 8085],
        "hosts: [ejecting.example], balance: roundRobin, outlier: {consecutiveFailures: 3, ejection: 300s}, breaker: {enabled: false}",
    );
    config += &upstream(
        "broken",
        &[8086],
        "hosts: [broken.example], retry: {attempts: 0}, outlier: {enabled: false}, breaker: {consecutiveFailures: 3, openFor: 300s, maxOpenFor: 300s}",
    );
    config += &format!(
        "routes:
  - {{name: shop, match: [{{host: {SHOP}}}], upstreams: [{{name: {to}}}]}}
  - {{name: rest, match: [{{host: rest.example}}], upstreams: [{{name: {not_to}}}]}}
  - {{name: now, match: [{{host: now.example}}], upstreams: [{{name: {shown}}}]}}
"
    );
    config
}

#[test]
fn a_config_that_changes_under_load_costs_no_request_and_leaves_alone_what_it_does_not_change() {
    let bed = Outside::new(&changing(0));
    let api = bed.mesh.pod("api");
    let _api_sidecar = bed.mesh.sidecar(&api).start();
    let _api_server = api.serve_http(8080, |_| ok("api"));
    let _servers =
        [8081, 8082, 8083, 8084, 8089].map(|port| bed.far.serve_http(port, move |_| ok(port.to_string())));
    let fails = |_: &Message| respond("503 Service Unavailable", "", "broken");
    let _ejected = bed.far.serve_http(8085, fails);
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = reached.clone();
    let _broken = bed.far.serve_http(8086, move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        fails(request)
    });
    let ask = |host: &str| begin(&bed, host, "/").response("GET");
    wait::until("an endpoint is ejected", || {
        ask("ejecting.example");
        bed.web.metric("outrigger_endpoints", &[("upstream", "ejecting"), ("state", "ejected")]) == 1.0
    });
    wait::until("a breaker is open", || {
        ask("broken.example").header("proxy-status").is_some_and(|it| it.contains("breaker"))
    });
    assert_eq!(ask("mesh.example").text(), "api");
    let (standing, reached_before) = (bed.web.admin("/upstreams"), reached.load(Ordering::SeqCst));
    let handshakes = || bed.web.metric("outrigger_tls_handshakes_total", &[("direction", "outbound")]);
    let handshakes_before = handshakes();

    let done = AtomicBool::new(false);
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (host, right) in [
            (SHOP, &["8081", "8082"][..]),
            (SHOP, &["8081", "8082"]),
            ("rest.example", &["8089"]),
            ("now.example", &["8083"]),
            ("other.example", &["8084"]),
            ("mesh.example", &["api"]),
        ] {
            let (bed, done, answered) = (&bed, &done, &answered);
            scope.spawn(move || {
                let mut connection = bed.connect();
                while !done.load(Ordering::SeqCst) {
                    let answer = connection.get(host, "/");
                    let is_right = answer.status() == 200 && right.contains(&answer.text().as_str());
                    if !is_right {
                        done.store(true, Ordering::SeqCst);
                        panic!("{host}: {answer:?}: {}", answer.text());
                    }
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        for number in 1..=40 {
            bed.reconfigure(&changing(number));
            std::thread::sleep(Duration::from_millis(100));
        }
        bed.reconfigure(&changing(41));
        wait::until("the last config is in force", || {
            bed.web.admin("/config")["config"]["upstreams"]["other"]["timeout"] == "51s"
        });
        done.store(true, Ordering::SeqCst);
    });
    println!("{} answers while the config changed", answered.load(Ordering::SeqCst));
    let reloads = bed.web.metric("outrigger_config_reloads_total", &[("result", "success")]);
    assert!(reloads >= 15.0, "only {reloads} configs were in force");
    assert!(answered.load(Ordering::SeqCst) > 300, "{answered:?}");

    assert_eq!(handshakes(), handshakes_before, "an upstream that did not change keeps its connections");
    let now = bed.web.admin("/upstreams");
    for (upstream, field) in [("ejecting", "endpoints"), ("broken", "breaker")] {
        let about = |all: &serde_json::Value| all[upstream][field].to_string();
        let word = if upstream == "ejecting" { "out" } else { "open" };
        assert!(about(&standing).contains(word) && about(&now).contains(word), "{standing:#} {now:#}");
    }
    assert_eq!(ask("broken.example").status(), 503);
    assert_eq!(reached.load(Ordering::SeqCst), reached_before, "the breaker stays open");
    for _ in 0..6 {
        assert_eq!(ask("ejecting.example").text(), "8083");
    }

    // A broken file changes nothing, and says so.
    bed.reconfigure(&changing(0).replace("name: blue", "name: bleu"));
    bed.web.wait_for_metric("outrigger_config_reloads_total", &[("result", "failure")], 1.0);
    let config = bed.web.admin("/config");
    let said = config["rejected"].as_str().unwrap_or_default();
    assert!(said.contains("bleu") && said.contains("sidecar.yaml:"), "{config:#}");
    assert!(bed.sidecar.output().contains("the running config stays"), "{}", bed.sidecar.output());
    assert_eq!(ask(SHOP).text(), "8082", "as the last right one says");
    bed.reconfigure(&changing(2));
    wait::until("a right file is taken again", || bed.web.admin("/config")["rejected"].is_null());
    assert_eq!(ask(SHOP).text(), "8081");
}
