//! Which requests go where: routes, what they do to requests and responses, and how an endpoint is chosen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::outside::{Outside, SHOP, upstream};
use crate::support::serve::{Server, ok, respond};
use crate::support::{Connection, Message, bytes, wait};

/// Sends `GET path` with further `fields` on an open connection.
fn get(connection: &mut Connection, path: &str, fields: &str) -> Message {
    connection.ask(format!("GET {path} HTTP/1.1\r\nHost: {SHOP}\r\n{fields}\r\n"))
}

/// How often each endpoint answered `count` requests, which differ by nothing.
fn shares(bed: &Outside, count: usize, fields: &str) -> BTreeMap<String, usize> {
    let mut connection = bed.connect();
    let mut shares = BTreeMap::new();
    for _ in 0..count {
        let answer = get(&mut connection, "/", fields);
        assert_eq!(answer.status(), 200, "{answer:?}");
        *shares.entry(answer.text()).or_default() += 1;
    }
    shares
}

#[test]
fn a_request_goes_by_the_most_specific_route_that_matches_it() {
    // The least specific come first: the order in the file must not decide.
    let routes = [
        ("below-example", "host: '*.example'"),
        ("below-shop", "host: '*.shop.example'"),
        ("host", "host: shop.example"),
        ("prefix", "host: shop.example, path: {prefix: /a}"),
        ("longer-prefix", "host: shop.example, path: {prefix: /a/b}"),
        ("regex", "host: shop.example, path: {regex: '/a/[a-z]+'}"),
        ("exact", "host: shop.example, path: {exact: /a/b}"),
        ("query", "host: shop.example, path: {prefix: /c}, query: [{name: v, value: {exact: '2'}}]"),
        (
            "queries",
            "host: shop.example, path: {prefix: /c}, query: [{name: v, value: {exact: '2'}}, {name: w, value: {present: true}}]",
        ),
        (
            "header",
            "host: shop.example, path: {prefix: /c}, headers: [{name: x-tier, value: {regex: 'gold|silver'}}]",
        ),
        (
            "headers",
            "host: shop.example, path: {prefix: /c}, headers: [{name: x-tier, value: {exact: gold}}, {name: x-old, value: {present: false}}]",
        ),
        ("method", "host: shop.example, path: {prefix: /c}, methods: [PUT, DELETE]"),
        ("first", "host: shop.example, path: {prefix: /same}"),
        ("second", "host: shop.example, path: {prefix: /same}"),
    ];
    let mut config = String::from("upstreams:\n") + &upstream("all", &[8080], "hosts: [shop.example]");
    config += "routes:\n";
    for (name, matches) in routes {
        config += &format!(
            "  - {{name: {name}, match: [{{{matches}}}], upstreams: [{{name: all}}], requestHeaders: {{set: [{{name: x-route, value: {name}}}]}}}}\n"
        );
    }
    let bed = Outside::new(&config);
    let _server = bed.far.serve_echo(8080);
    let gold = "x-tier: gold\r\n";
    for (host, method, path, fields, want) in [
        ("shop.example", "GET", "/", "", "host"),
        ("SHOP.example:80", "GET", "/", "", "host"),
        ("a.shop.example", "GET", "/a/b", "", "below-shop"),
        ("b.a.shop.example", "GET", "/", "", "below-shop"),
        ("other.example", "GET", "/", "", "below-example"),
        ("shop.example", "GET", "/ab", "", "host"),
        ("shop.example", "GET", "/a", "", "prefix"),
        ("shop.example", "GET", "/a/7", "", "prefix"),
        ("shop.example", "GET", "/a/b/7", "", "longer-prefix"),
        ("shop.example", "GET", "/a/x?b", "", "regex"),
        ("shop.example", "GET", "/a/b?c", "", "exact"),
        ("shop.example", "GET", "/c", "", "host"),
        ("shop.example", "GET", "/c?v=2", "", "query"),
        ("shop.example", "GET", "/c?v=1&v=2", "", "host"),
        ("shop.example", "GET", "/c?w&v=2", "", "queries"),
        ("shop.example", "GET", "/c?w&v=2", "x-tier: silver\r\n", "header"),
        ("shop.example", "GET", "/c", "x-tier: golden\r\n", "host"),
        ("shop.example", "GET", "/c?w&v=2", gold, "headers"),
        ("shop.example", "GET", "/c", "x-tier: gold\r\nx-old: 1\r\n", "header"),
        ("shop.example", "PUT", "/c?w&v=2", gold, "method"),
        ("shop.example", "GET", "/same", "", "first"),
    ] {
        let what = format!("{method} {host} {path} {fields:?}");
        let answer = bed
            .connect()
            .ask(format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n{fields}\r\n"));
        assert_eq!(answer.status(), 200, "{what}: {answer:?}");
        let went = answer.text().lines().find_map(|line| line.strip_prefix("x-route: ")).map(str::to_owned);
        assert_eq!(went.as_deref(), Some(want), "{what}");
    }
    assert!(
        bed.web.metric("outrigger_requests_total", &[("direction", "outbound"), ("route", "regex")]) == 1.0
    );
}

#[test]
fn upstreams_get_the_shares_that_their_weights_say() {
    let mut config = String::from("upstreams:\n");
    for (name, port) in [("most", 8081), ("some", 8082), ("none", 8083)] {
        config += &upstream(name, &[port], "");
    }
    config += "routes: [{name: split, match: [{host: shop.example}], upstreams: [{name: most, weight: 80}, {name: some, weight: 20}, {name: none, weight: 0}]}]\n";
    let bed = Outside::new(&config);
    let _servers = [8081, 8082, 8083].map(|port| bed.serve_number(port));
    let shares = shares(&bed, 1000, "");
    // Six standard deviations of a binomial distribution are 76.
    assert!((720..=880).contains(&shares["8081"]), "{shares:?}");
    assert_eq!(shares.get("8083"), None, "{shares:?}");
}

#[test]
fn a_subset_gets_only_what_is_routed_to_its_tags() {
    let endpoints = [(8081, "stable"), (8082, "stable"), (8083, "canary")].map(|(port, version)| {
        format!("{{address: \"10.77.0.2:{port}\", tags: {{version: {version}, tier: web}}}}")
    });
    let config = format!(
        "upstreams: {{shop: {{anyDestination: true, tls: none, balance: random, discovery: {{static: [{}]}}}}}}
routes:
  - {{name: testers, match: [{{host: {SHOP}, headers: [{{name: x-tester, value: {{present: true}}}}]}}], upstreams: [{{name: shop, subset: {{version: canary}}}}]}}
  - {{name: nobody, match: [{{host: {SHOP}, path: {{prefix: /nobody}}}}], upstreams: [{{name: shop, subset: {{version: canary, tier: db}}}}]}}
  - {{name: others, match: [{{host: {SHOP}}}], upstreams: [{{name: shop, subset: {{version: stable}}, weight: 9}}, {{name: shop, subset: {{version: canary}}}}]}}
",
        endpoints.join(", ")
    );
    let bed = Outside::new(&config);
    let _servers = [8081, 8082, 8083].map(|port| bed.serve_number(port));
    assert_eq!(shares(&bed, 30, "x-tester: 1\r\n"), BTreeMap::from([("8083".to_owned(), 30)]));
    let others = shares(&bed, 600, "");
    // Expected are 60, and six standard deviations are 44.
    assert!((16..=104).contains(&others["8083"]), "{others:?}");
    assert!(others["8081"] > 100 && others["8082"] > 100, "{others:?}");
    let refused = bed.ask("GET", "/nobody", "");
    assert_eq!((refused.status(), refused.proxy_error().as_deref()), (503, Some("destination_unavailable")));
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
}

#[test]
fn routes_change_header_fields_host_and_path_and_answer_themselves() {
    let edits = "requestHeaders: {remove: [x-secret], set: [{name: x-set, value: new}], add: [{name: x-add, value: more}]}, responseHeaders: {remove: [x-internal], set: [{name: x-tier, value: gold}], add: [{name: x-list, value: b}]}";
    let to = "upstreams: [{name: shop}]";
    let host = format!("host: {SHOP}");
    let mut config = String::from("upstreams:\n");
    config += &upstream("shop", &[8080], &format!("hosts: [{SHOP}], retry: {{attempts: 0}}"));
    config += &upstream("away", &[9], "retry: {attempts: 0}");
    config += "routes:\n";
    for route in [
        format!("name: edits, match: [{{{host}, path: {{prefix: /edits}}}}], {to}, {edits}"),
        format!(
            "name: prefix, match: [{{{host}, path: {{prefix: /old}}}}], {to}, rewrite: {{host: other.example, path: {{prefix: /new}}}}"
        ),
        format!(
            "name: full, match: [{{{host}, path: {{prefix: /full}}}}], {to}, rewrite: {{path: {{full: /all}}}}"
        ),
        format!(
            "name: moved, match: [{{{host}, path: {{prefix: /moved}}}}], redirect: {{scheme: https, host: new.example, path: {{prefix: /here}}, status: 301}}, responseHeaders: {{set: [{{name: x-tier, value: gold}}]}}"
        ),
        format!(
            "name: teapot, match: [{{{host}, path: {{exact: /teapot}}}}], respond: {{status: 418, body: short, headers: {{x-own: '1'}}}}"
        ),
        format!(
            "name: away, match: [{{{host}, path: {{exact: /away}}}}], upstreams: [{{name: away}}], responseHeaders: {{remove: [proxy-status], set: [{{name: x-tier, value: gold}}]}}"
        ),
    ] {
        config += &format!("  - {{{route}}}\n");
    }
    let bed = Outside::new(&config);
    let _server = bed.far.serve_http(8080, |request| {
        let mut said = request.start.clone();
        for (name, value) in &request.headers {
            said += &format!("\n{}: {value}", name.to_ascii_lowercase());
        }
        respond("200 OK", "X-Internal: 1\r\nX-Tier: lead\r\nX-List: a\r\n", said)
    });
    let answer = bed.ask("GET", "/edits", "x-secret: 1\r\nx-secret: 2\r\nx-set: old\r\nx-add: some\r\n");
    let said = answer.text();
    let fields: BTreeSet<&str> = said.lines().filter(|line| line.starts_with("x-")).collect();
    assert_eq!(fields, BTreeSet::from(["x-set: new", "x-add: some", "x-add: more"]), "{said}");
    assert_eq!(answer.header("x-internal"), None);
    assert_eq!(answer.header("x-tier"), Some("gold"));
    assert_eq!(answer.header_values("x-list"), ["a", "b"]);

    let said = bed.ask("GET", "/old/thing?a=/old", "").text();
    assert!(
        said.starts_with("GET /new/thing?a=/old HTTP/1.1") && said.contains("host: other.example"),
        "{said}"
    );
    let said = bed.ask("POST", "/full/x?q=1", "Content-Length: 0\r\n").text();
    assert!(said.starts_with("POST /all?q=1 HTTP/1.1") && said.contains(&format!("host: {SHOP}")), "{said}");

    let moved = bed.ask("GET", "/moved/a?b", "");
    assert_eq!((moved.status(), moved.header("location")), (301, Some("https://new.example/here/a?b")));
    assert_eq!((moved.header("x-tier"), moved.header("proxy-status")), (Some("gold"), None));
    let fixed = bed.ask("GET", "/teapot", "");
    assert_eq!((fixed.status(), fixed.text().as_str(), fixed.header("x-own")), (418, "short", Some("1")));

    // An error of the proxy's own is no response of the route's.
    let error = bed.ask("GET", "/away", "");
    assert_eq!((error.status(), error.header("x-tier")), (502, None), "{error:?}");
    assert_eq!(error.proxy_error().as_deref(), Some("connection_refused"));
}

#[test]
fn what_a_route_changes_crosses_the_mesh_in_both_versions_of_http() {
    let mut config = String::from("upstreams:\n");
    config += &format!(
        "  api: {{hosts: [{SHOP}], anyDestination: true, tls: mesh, identity: any, discovery: {{static: [\"10.77.0.3:8080\", \"10.77.0.3:8081\"]}}}}\n"
    );
    for port in [8080, 8081] {
        config += &format!(
            "  api-{port}: {{anyDestination: true, tls: mesh, identity: any, discovery: {{static: [\"10.77.0.3:{port}\"]}}}}\n"
        );
    }
    config += "routes:\n";
    for port in [8080, 8081] {
        config += &format!(
            "  - {{name: to-{port}, match: [{{host: {SHOP}, path: {{prefix: /{port}}}}}], upstreams: [{{name: api-{port}}}], rewrite: {{host: other.example, path: {{prefix: /new}}}}, requestHeaders: {{set: [{{name: x-set, value: '1'}}]}}, responseHeaders: {{set: [{{name: x-tier, value: gold}}]}}}}\n"
        );
    }
    let bed = Outside::new(&config);
    let api = bed.mesh.pod("api");
    let _sidecar = bed.mesh.sidecar(&api).start();
    let _one = api.serve_echo(8080);
    let answer = bed.ask("GET", "/8080/a?b", "");
    let said = answer.text();
    assert!(said.starts_with("GET /new/a?b HTTP/1.1") && said.contains("host: other.example\n"), "{said}");
    assert!(said.contains("x-set: 1\n") && answer.header("x-tier") == Some("gold"), "{answer:?}");

    std::fs::create_dir_all(api.directory.join("files/new")).expect("make a directory");
    api.write("files/new/a", "over HTTP/2");
    let files = api.directory.join("files").display().to_string();
    let mut two = api.start(&["nghttpd", "--no-tls", "--verbose", "--htdocs", &files, "8081"]);
    wait::until("nghttpd listens", || api.try_connect(([127, 0, 0, 1], 8081)).is_ok());
    let url = "http://10.77.0.2/8081/a?b";
    let said = bed.web.run(&["curl", "-sSi", "--http2-prior-knowledge", "-H", "Host: shop.example", url]);
    assert!(said.contains("over HTTP/2") && said.contains("x-tier: gold"), "{said}");
    two.wait_for_output(":authority: other.example");
    two.wait_for_output("x-set: 1");
}

#[test]
fn faults_delay_and_abort_their_share_of_the_requests() {
    let mut config = String::from("upstreams:\n") + &upstream("shop", &[8080], "");
    config += &format!(
        "routes:
  - {{name: aborts, match: [{{host: {SHOP}}}], upstreams: [{{name: shop}}], fault: {{abort: {{status: 503, percent: 30}}}}}}
  - {{name: waits, match: [{{host: {SHOP}, path: {{prefix: /waits}}}}], upstreams: [{{name: shop}}], fault: {{delay: {{duration: 2s, percent: 50}}}}}}
"
    );
    let bed = Outside::new(&config);
    let (_server, served) = bed.serve_counted(8080);
    let mut connection = bed.connect();
    let answers: Vec<_> = (0..400).map(|_| get(&mut connection, "/", "")).collect();
    let aborted: Vec<_> = answers.iter().filter(|answer| answer.status() == 503).collect();
    // Expected are 120, and six standard deviations are 55.
    assert!((65..=175).contains(&aborted.len()), "{} of 400 were aborted", aborted.len());
    assert!(
        aborted
            .iter()
            .all(|answer| answer.header("proxy-status").is_some_and(|it| it.contains("fault on purpose")))
    );
    assert_eq!(served.load(Ordering::SeqCst), 400 - aborted.len(), "an aborted request is not sent");
    // Faults are none of the upstream's: neither its breaker nor an ejection has to do with them.
    assert!(answers.iter().all(|answer| answer.status() == 200 || answer.status() == 503));

    // At once, so that those that wait do so together.
    let delayed = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    let started = Instant::now();
                    assert_eq!(bed.ask("GET", "/waits", "").status(), 200);
                    started.elapsed() >= Duration::from_secs(2)
                })
            })
            .collect();
        asked.into_iter().map(|asked| asked.join().expect("an answer")).filter(|delayed| *delayed).count()
    });
    assert!((1..=19).contains(&delayed), "{delayed} of 20 waited");
}

/// What a mirror's upstream got: start lines, one field and bodies.
type Copies = Arc<Mutex<Vec<Message>>>;

fn serve_mirror(bed: &Outside, port: u16) -> (Server, Copies) {
    let copies = Copies::default();
    let kept = copies.clone();
    let server = bed.far.serve_http(port, move |request| {
        kept.lock().expect("not poisoned").push(request.clone());
        respond("500 Internal Server Error", "X-Mirror: 1\r\n", "from the mirror")
    });
    (server, copies)
}

#[test]
fn a_mirror_gets_copies_and_nobody_waits_for_it() {
    let mut config = String::from("upstreams:\n") + &upstream("shop", &[8080], "");
    for (name, port) in [("mirror", 8081), ("silent", 8082), ("dead", 9)] {
        config += &upstream(name, &[port], "timeout: 10s");
    }
    config += "routes:\n";
    for (name, mirror) in [
        ("mirror", "upstream: mirror"),
        ("half", "upstream: mirror, percent: 50"),
        ("silent", "upstream: silent"),
        ("dead", "upstream: dead"),
    ] {
        config += &format!(
            "  - {{name: {name}, match: [{{host: {SHOP}, path: {{prefix: /{name}}}}}], upstreams: [{{name: shop}}], mirror: {{{mirror}}}, requestHeaders: {{set: [{{name: x-edited, value: '1'}}]}}}}\n"
        );
    }
    let bed = Outside::new(&config);
    let _server = bed.far.serve_http(8080, |request| ok(request.body.len().to_string()));
    let (_mirror, copies) = serve_mirror(&bed, 8081);
    let silent = bed.far.serve(8082, |mut connection| while connection.fill().is_ok() {});

    let body = bytes(1000);
    let mut post =
        format!("POST /mirror/a?b HTTP/1.1\r\nHost: {SHOP}\r\nX-Own: 7\r\nContent-Length: 1000\r\n\r\n")
            .into_bytes();
    post.extend(&body);
    let answer = bed.connect().ask(&post);
    assert_eq!((answer.status(), answer.text().as_str(), answer.header("x-mirror")), (200, "1000", None));
    let count = || copies.lock().expect("not poisoned").len();
    wait::until("the copy arrives", || count() == 1);
    {
        let copies = copies.lock().expect("not poisoned");
        assert_eq!(copies[0].start, "POST /mirror/a?b HTTP/1.1");
        assert_eq!((copies[0].header("x-own"), copies[0].header("x-edited")), (Some("7"), Some("1")));
        assert_eq!((copies[0].header("host"), &copies[0].body), (Some(SHOP), &body));
    }
    // A body of chunks, too.
    let answer =
        bed.ask("POST", "/mirror/chunks", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n");
    assert_eq!(answer.text(), "5");
    wait::until("the second copy arrives", || count() == 2);
    assert_eq!(copies.lock().expect("not poisoned")[1].body, b"abcde");

    // What is too large to keep arrives where it should, and is not mirrored: the next one's copy comes, its does not.
    let large = 100 * 1024;
    let mut post = format!("POST /mirror/large HTTP/1.1\r\nHost: {SHOP}\r\nContent-Length: {large}\r\n\r\n")
        .into_bytes();
    post.extend(bytes(large));
    assert_eq!(bed.connect().ask(&post).text(), large.to_string());
    let mut chunks = format!("POST /mirror/large-chunks HTTP/1.1\r\nHost: {SHOP}\r\nTransfer-Encoding: chunked\r\n\r\n{large:x}\r\n").into_bytes();
    chunks.extend(bytes(large));
    chunks.extend(b"\r\n0\r\n\r\n");
    assert_eq!(bed.connect().ask(&chunks).text(), large.to_string());
    assert_eq!(bed.ask("GET", "/mirror/last", "").status(), 200);
    wait::until("the last copy arrives", || count() == 3);
    assert_eq!(copies.lock().expect("not poisoned")[2].target(), "/mirror/last");

    // More than the copies that may be under way at once: those of a mirror that is silent are left out in the end.
    let started = Instant::now();
    for path in ["/silent", "/dead"] {
        let mut connection = bed.connect();
        for _ in 0..150 {
            assert_eq!(get(&mut connection, path, "").status(), 200);
        }
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert!(silent.accepted() > 0, "nothing went to the silent mirror");

    wait::until("places are free again", || {
        let before = count();
        bed.ask("GET", "/mirror/again", "");
        std::thread::sleep(Duration::from_millis(100));
        count() > before
    });
    // Whatever became of them, somebody can see it.
    let expecting = "Expect: 100-continue\r\nContent-Length: 0\r\n";
    assert_eq!(bed.ask("POST", "/mirror/expect", expecting).status(), 200);
    let counted = |upstream: &str, result: &str| {
        bed.web.metric("outrigger_mirrored_requests_total", &[("upstream", upstream), ("result", result)])
    };
    wait::until("the copies are counted", || counted("mirror", "sent") >= 4.0);
    assert_eq!(bed.ask("GET", "/dead", "").status(), 200);
    wait::until("those that nobody got, too", || counted("dead", "failed") >= 1.0);
    assert_eq!((counted("mirror", "dropped_body"), counted("mirror", "dropped_connection")), (2.0, 1.0));
    assert!(counted("silent", "dropped_too_many") >= 1.0);

    let before = count();
    let mut connection = bed.connect();
    for _ in 0..200 {
        assert_eq!(get(&mut connection, "/half", "").status(), 200);
    }
    wait::until("about half of the copies arrive", || count() - before >= 58);
    assert!(count() - before <= 142, "{} of 200", count() - before);
}

/// The endpoint of each of 60 values of a header field.
fn homes(bed: &Outside) -> BTreeMap<u32, String> {
    let mut connection = bed.connect();
    let home = |user| {
        let answer = get(&mut connection, "/", &format!("x-user: {user}\r\n"));
        assert_eq!(answer.status(), 200, "{answer:?}");
        (user, answer.text())
    };
    (0..60).map(home).collect()
}

#[test]
fn round_robin_is_even_and_a_key_stays_at_its_endpoint_when_another_goes() {
    let ports = [8081, 8082, 8083];
    let config = |balance: &str, more: &str| {
        format!(
            "upstreams:\n{}",
            upstream("shop", &ports, &format!("hosts: [{SHOP}], balance: {balance}{more}"))
        )
    };
    let bed = Outside::new(&config("roundRobin", ""));
    let mut servers = ports.map(|port| Some(bed.serve_number(port)));
    let even: BTreeMap<_, _> = ports.map(|port| (port.to_string(), 100)).into();
    assert_eq!(shares(&bed, 300, ""), even);

    for (balance, gone) in [("ringHash", 0), ("maglev", 1)] {
        bed.reconfigure(&config(&format!("{{{balance}: {{key: {{header: x-user}}}}}}"), ""));
        wait::until("the balancer is another", || bed.web.admin("/config").to_string().contains(balance));
        let before = homes(&bed);
        assert_eq!(homes(&bed), before, "{balance}: the same key goes to the same endpoint");
        let used: BTreeSet<_> = before.values().cloned().collect();
        assert_eq!(used.len(), 3, "{balance}: {before:?}");
        servers[gone] = None;
        let after = homes(&bed);
        for (user, home) in &before {
            if *home == ports[gone].to_string() {
                assert_ne!(after[user], *home, "{balance}: {user}");
            } else {
                assert_eq!(after[user], *home, "{balance}: {user}");
            }
        }
        servers[gone] = Some(bed.serve_number(ports[gone]));
    }
}

#[test]
fn an_endpoint_that_leaves_the_set_takes_only_its_own_keys_along() {
    let mesh_config = |file: &str| {
        format!(
            "upstreams: {{shop: {{hosts: [{SHOP}], anyDestination: true, tls: none, balance: {{ringHash: {{key: {{header: x-user}}}}}}, discovery: {{file: {{path: {file}}}}}}}}}\n"
        )
    };
    let files = tempfile::tempdir().expect("make a directory");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(files.path(), everybody).expect("open a directory");
    let file = files.path().join("endpoints.yaml");
    let write = |ports: &[u16]| {
        let endpoints: Vec<_> =
            ports.iter().map(|port| format!("{{address: \"10.77.0.2:{port}\"}}")).collect();
        let fresh = files.path().join("fresh");
        std::fs::write(&fresh, format!("[{}]\n", endpoints.join(", "))).expect("write a file");
        std::fs::rename(fresh, &file).expect("replace a file");
    };
    write(&[8081, 8082, 8083]);
    let bed = Outside::new(&mesh_config(&file.display().to_string()));
    let _servers = [8081, 8082, 8083].map(|port| bed.serve_number(port));
    let before = homes(&bed);
    write(&[8081, 8083]);
    wait::until("two endpoints are left", || {
        bed.web.admin("/upstreams")["shop"]["endpoints"]
            .as_array()
            .is_some_and(|endpoints| endpoints.len() == 2)
    });
    let after = homes(&bed);
    assert!(before.values().any(|home| home == "8082"), "{before:?}");
    for (user, home) in &before {
        assert!(
            after[user] != "8082" && (after[user] == *home || home == "8082"),
            "{user}: {before:?} {after:?}"
        );
    }
    write(&[8081, 8082, 8083]);
    wait::until("all keys are at home again", || homes(&bed) == before);
}

#[test]
fn a_cookie_is_set_once_and_keeps_its_client_at_one_endpoint_and_so_does_an_address() {
    let ports = [8081, 8082, 8083];
    let mut config = String::from("upstreams:\n");
    config += &upstream(
        "shop",
        &ports,
        &format!(
            "hosts: [{SHOP}], balance: {{maglev: {{key: {{cookie: {{name: at, path: /shop, ttl: 1h}}}}}}}}"
        ),
    );
    config +=
        &upstream("source", &ports, "hosts: [source.example], balance: {ringHash: {key: sourceAddress}}");
    let bed = Outside::new(&config);
    let _servers = ports.map(|port| bed.serve_number(port));
    let mut used = BTreeSet::new();
    for _ in 0..12 {
        let first = bed.ask("GET", "/", "Cookie: other=1\r\n");
        let set = first.header("set-cookie").expect("a cookie is set").to_owned();
        let pair = set.split(';').next().unwrap_or_default();
        assert!(
            pair.starts_with("at=") && set.contains("; Path=/shop") && set.contains("; Max-Age=3600"),
            "{set}"
        );
        used.insert(first.text());
        let mut connection = bed.connect();
        for _ in 0..10 {
            let next = get(&mut connection, "/", &format!("Cookie: other=1; {pair}\r\n"));
            assert_eq!((next.text(), next.header("set-cookie")), (first.text(), None), "{set}");
        }
    }
    assert!(used.len() > 1, "twelve clients are all at {used:?}");

    let mut homes = BTreeSet::new();
    for number in 101..113 {
        let address = format!("10.77.0.{number}");
        bed.web.run(&["ip", "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        let ask = "for i in 1 2 3 4 5; do curl -sS --interface \"$0\" -H 'Host: source.example' http://10.77.0.2/; echo; done";
        let answers = bed.web.run(&["sh", "-c", ask, &address]);
        let of_one: BTreeSet<_> = answers.lines().map(str::to_owned).collect();
        assert_eq!(of_one.len(), 1, "{address} is at {answers}");
        homes.extend(of_one);
    }
    assert!(homes.len() > 1, "twelve clients are all at {homes:?}");
}

#[test]
fn the_own_zone_and_the_first_level_get_all_requests_as_long_as_they_are_well() {
    let endpoint = |port: u16, more: &str| format!("{{address: \"10.77.0.2:{port}\", {more}}}");
    let mut config = String::from("zone: a\nupstreams:\n");
    for (name, more, endpoints) in [
        ("zones", "preferZone: true", [endpoint(8081, "zone: b"), endpoint(8082, "zone: a")]),
        ("levels", "preferZone: false", [endpoint(8081, "priority: 1"), endpoint(8082, "priority: 0")]),
    ] {
        config += &format!(
            "  {name}: {{hosts: [{name}.example], anyDestination: true, tls: none, {more}, discovery: {{static: [{}]}}}}\n",
            endpoints.join(", ")
        );
    }
    let bed = Outside::new(&config);
    let _other = bed.serve_number(8081);
    let asked = |host: &str| -> BTreeMap<String, usize> {
        let mut connection = bed.connect();
        let mut answers = BTreeMap::new();
        for _ in 0..60 {
            let answer = connection.get(host, "/");
            assert_eq!(answer.status(), 200, "{host}: {answer:?}");
            *answers.entry(answer.text()).or_default() += 1;
        }
        answers
    };
    for host in ["zones.example", "levels.example"] {
        let near = bed.serve_number(8082);
        assert_eq!(asked(host), BTreeMap::from([("8082".to_owned(), 60)]), "{host}");
        drop(near);
        assert_eq!(
            asked(host),
            BTreeMap::from([("8081".to_owned(), 60)]),
            "{host}: the other one takes over"
        );
    }
}

#[test]
fn a_zone_that_is_lost_takes_no_request_with_it() {
    let endpoint = |port: u16, zone: &str| format!("{{address: \"10.77.0.2:{port}\", zone: {zone}}}");
    let own = [8081, 8082, 8083].map(|port| endpoint(port, "a"));
    let others = [endpoint(8084, "b"), endpoint(8085, "c")];
    let bed = Outside::new(&format!(
        "zone: a\nupstreams:\n  shop: {{hosts: [{SHOP}], anyDestination: true, tls: none, preferZone: true, breaker: {{enabled: false}}, retry: {{minRetriesPerSecond: 100}}, discovery: {{static: [{}, {}]}}}}\n",
        own.join(", "),
        others.join(", ")
    ));
    let _well = [bed.serve_number(8084), bed.serve_number(8085)];
    let mut connection = bed.connect();
    // Of the five two may be out: the third one's failures must not count as the zone's capacity.
    for number in 0..100 {
        let answer = connection.get(SHOP, "/");
        assert_eq!(answer.status(), 200, "request {number}: {answer:?}");
    }
}
