//! The faults that a proxy must survive, and what a caller is told of each. The README's table of
//! faults says the same; who changes one changes both.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{Backlog, listen};

use crate::support::pki::shop;
use crate::support::serve::ok;
use crate::support::wait::{self, PATIENCE};
use crate::support::wire::Ending;
use crate::support::{API, Connection, Mesh, Message, Pair, tls, web_config};

/// Asserts the row of the table: status and error type.
fn assert_told(answer: &Message, status: u16, error: &str) {
    assert_eq!(
        (answer.status(), answer.proxy_error().as_deref()),
        (status, Some(error)),
        "{answer:?} {}",
        answer.text()
    );
}

#[test]
fn a_workload_that_nobody_started_gives_502_connection_refused() {
    let pair = Pair::new();
    let answer = pair.get(8080, "/");
    assert_told(&answer, 502, "connection_refused");
    pair.web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "502")], 1.0);
}

#[test]
fn a_peer_without_a_sidecar_that_refuses_gives_502_connection_refused() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _sidecar = mesh.sidecar(&web).config(web_config()).start();
    assert_told(&web.connect(api.at(8080)).get(API, "/"), 502, "connection_refused");
}

#[test]
fn a_peer_that_no_way_leads_to_gives_502_destination_ip_unroutable() {
    let mesh = Mesh::new();
    let (web, fake) = (mesh.pod("web"), mesh.pod("fake"));
    web.add_hosts(&format!("{} {API}", fake.address));
    let reject = ["REJECT", "--reject-with", "icmp-host-unreachable"];
    fake.run(&[&["iptables", "-w", "-A", "INPUT", "-p", "tcp", "-j"][..], &reject].concat());
    let _sidecar = mesh.sidecar(&web).config(web_config()).start();
    assert_told(&web.connect(fake.at(8080)).get(API, "/"), 502, "destination_ip_unroutable");
    web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "502")], 1.0);
}

#[test]
fn a_peer_of_the_mesh_without_a_sidecar_gives_502_tls_protocol_error_or_the_alert_that_it_sent() {
    let mesh = Mesh::new();
    let (web, fake) = (mesh.pod("web"), mesh.pod("fake"));
    web.add_hosts(&format!("{} {API}", fake.address));
    let _sidecar = mesh.sidecar(&web).config(web_config()).start();
    let _plain = fake.serve(8080, |mut connection| {
        connection.take(1);
        connection.send("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        let _ = connection.take_all();
    });
    let config = tls::server_config(&mesh.pki.identity(&shop("api")), &[], true);
    let _tls_of_its_own = fake.serve(8443, move |connection| drop(tls::server(&config, connection)));
    let config = tls::server_config(&mesh.pki.identity(&shop("api")), &["h2"], true);
    let _tls_that_objects = fake.serve(8444, move |connection| drop(tls::server(&config, connection)));
    for (port, reason, told) in [
        (8080, "protocol", "tls_protocol_error"),
        (8443, "not_mesh", "tls_protocol_error"),
        (8444, "alert", "tls_alert_received"),
    ] {
        assert_told(&web.connect(fake.at(port)).get(API, "/"), 502, told);
        let labels = [("direction", "outbound"), ("result", "failure"), ("reason", reason)];
        web.wait_for_metric("outrigger_tls_handshakes_total", &labels, 1.0);
    }
}

#[test]
fn a_proxy_without_a_certificate_says_that_the_fault_is_its_own() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _api_sidecar = mesh.sidecar(&api).start();
    let _web_sidecar = mesh
        .sidecar(&web)
        .config(web_config())
        .without_certificate_files()
        .arguments(["--certificate", "/nowhere/tls.crt", "--key", "/nowhere/tls.key"])
        .without_waiting()
        .start();
    wait::until("the sidecar listens", || web.try_connect(([127, 0, 0, 1], 15021)).is_ok());
    let workload = api.serve_echo(8080);
    let answer = web.connect(api.at(8080)).get(API, "/");
    assert_told(&answer, 503, "proxy_configuration_error");
    assert!(answer.text().contains("this proxy has no certificate yet"), "{}", answer.text());
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    assert_eq!(workload.accepted(), 0);
    web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "503")], 1.0);
    let labels = [("direction", "outbound"), ("result", "failure"), ("reason", "not_certified")];
    web.wait_for_metric("outrigger_tls_handshakes_total", &labels, 1.0);
}

#[test]
fn a_workload_that_is_behind_with_accepting_gets_its_requests_late() {
    let pair = Pair::new();
    let listener = pair.api.listen(([0, 0, 0, 0], 8080));
    listen(&listener, Backlog::new(0).expect("a length")).expect("shorten the accept queue");
    let _fills_the_queue = pair.api.try_connect(([127, 0, 0, 1], 8080)).expect("connect");
    let mut late = pair.connect(8080);
    late.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    // The kernel has knocked a second time by then.
    late.assert_silent_for(Duration::from_millis(1500));
    std::thread::spawn(move || {
        let accepted: Vec<_> = listener.incoming().take(2).map(|socket| socket.expect("accept")).collect();
        let mut connection = Connection::new(accepted[1].try_clone().expect("share a socket"));
        connection.request().expect("a request");
        connection.send(ok("at last"));
    });
    assert_eq!(late.response("GET").text(), "at last");
}

#[test]
fn a_peer_killed_before_its_response_gives_502_connection_terminated() {
    let pair = Pair::new();
    let (sender, arrived) = mpsc::channel();
    let _server = pair.api.serve(8080, move |mut connection| {
        connection.request();
        sender.send(()).expect("the test waits");
        let _ = connection.take_all();
    });
    let mut connection = pair.connect(8080);
    // A method that may not be tried again.
    connection.send(format!("POST / HTTP/1.1\r\nHost: {API}\r\nContent-Length: 0\r\n\r\n"));
    arrived.recv_timeout(PATIENCE).expect("the request arrives");
    pair.api_sidecar.signal(Signal::SIGKILL);
    assert_told(&connection.response("POST"), 502, "connection_terminated");
    pair.web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "502")], 1.0);
}

#[test]
fn a_peer_killed_in_the_middle_of_a_response_breaks_the_body_off() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        let chunked = connection.request().is_some_and(|request| request.target() == "/chunked");
        let head = if chunked {
            "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        } else {
            "Content-Length: 8\r\n\r\nhalf"
        };
        connection.send(format!("HTTP/1.1 200 OK\r\n{head}"));
        let _ = connection.take_all();
    });
    let (mut sized, mut chunked) = (pair.connect(8080), pair.connect(8080));
    sized.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    chunked.send(format!("GET /chunked HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    assert_eq!((sized.head().status(), sized.take(4)), (200, b"half".to_vec()));
    assert_eq!((chunked.head().status(), chunked.chunk()), (200, b"half".to_vec()));
    pair.api_sidecar.signal(Signal::SIGKILL);
    assert_eq!(sized.take_all().0, b"", "half a body stays half a body");
    assert_eq!(chunked.take_all().0, b"", "no last chunk is made up");
    pair.web.wait_for_metric("outrigger_responses_incomplete_total", &[("by", "upstream")], 2.0);
    wait::until("the proxy goes on", || pair.get(8080, "/").status() == 502);
}

#[test]
fn a_peer_that_accepts_and_says_nothing_gives_502_connection_timeout_after_a_second() {
    let mesh = Mesh::new();
    let (web, fake) = (mesh.pod("web"), mesh.pod("fake"));
    web.add_hosts(&format!("{} {API}", fake.address));
    let _sidecar = mesh.sidecar(&web).config(web_config()).start();
    let _server = fake.serve(8080, |mut connection| {
        let _ = connection.take_all();
    });
    let start = Instant::now();
    assert_told(&web.connect(fake.at(8080)).get(API, "/"), 502, "connection_timeout");
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "the limit is a second, not {:?}",
        start.elapsed()
    );
    let labels = [("direction", "outbound"), ("result", "failure"), ("reason", "timeout")];
    web.wait_for_metric("outrigger_tls_handshakes_total", &labels, 1.0);
}

#[test]
fn a_peer_that_drops_every_packet_gives_502_connection_timeout() {
    let mesh = Mesh::new();
    let (web, fake) = (mesh.pod("web"), mesh.pod("fake"));
    web.add_hosts(&format!("{} {API}", fake.address));
    fake.run(&["iptables", "-w", "-A", "INPUT", "-p", "tcp", "-j", "DROP"]);
    let _sidecar = mesh.sidecar(&web).config(web_config()).start();
    assert_told(&web.connect(fake.at(8080)).get(API, "/"), 502, "connection_timeout");
    let mut opaque = web.connect(fake.at(7000));
    opaque.send("\0\x01\x02");
    assert_eq!(opaque.take_all(), (Vec::new(), Ending::Reset), "an opaque caller gets a reset, never a hang");
}

#[test]
fn a_workload_slower_than_the_route_s_timeout_gives_504() {
    let config = format!(
        "{}  api: {{hosts: [{API}], identity: \"{}\"}}\n\
         routes: [{{name: api, match: [{{host: {API}}}], upstreams: [{{name: api}}], timeout: 300ms}}]\n",
        web_config(),
        shop("api")
    );
    let pair = Pair::with(&config, "");
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        let _ = connection.take_all();
    });
    assert_told(&pair.get(8080, "/"), 504, "http_response_timeout");
    pair.web.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "outbound"), ("route", "api"), ("code", "504")],
        1.0,
    );
}

#[test]
fn a_header_section_over_64_kib_or_over_100_fields_gives_431() {
    let pair = Pair::new();
    let workload = pair.api.serve_echo(8080);
    let long = format!("GET / HTTP/1.1\r\nHost: {API}\r\nX-Long: {}\r\n\r\n", "a".repeat(66 * 1024));
    let many: String = (0..101).map(|number| format!("x-{number}: 1\r\n")).collect();
    for request in [long, format!("GET / HTTP/1.1\r\nHost: {API}\r\n{many}\r\n")] {
        let mut connection = pair.connect(8080);
        let _ = connection.try_send(request);
        assert_eq!(connection.head().status(), 431);
    }
    assert_eq!(workload.accepted(), 0);
    pair.web.wait_for_metric("outrigger_connections_refused_total", &[("reason", "bad_request")], 2.0);
    // What is allowed still passes.
    let mut connection = pair.connect(8080);
    let answer =
        connection.ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\nX-Long: {}\r\n\r\n", "a".repeat(50 * 1024)));
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_hundred_fields_of_the_client_pass_and_one_more_is_told_431() {
    let pair = Pair::new();
    let workload = pair.api.serve_echo(8080);
    let fields = |count| (0..count).map(|number| format!("x-{number}: 1\r\n")).collect::<String>();
    // `Upgrade` has a connection of its own, on which HTTP/1.1 crosses the mesh.
    for (more, others) in [("", 1), ("Connection: upgrade\r\nUpgrade: other\r\n", 3)] {
        let request =
            |count: usize| format!("GET / HTTP/1.1\r\nHost: {API}\r\n{more}{}\r\n", fields(count - others));
        let answer = pair.connect(8080).ask(request(100));
        assert_eq!(answer.status(), 200, "{more:?} {answer:?}");
        assert!(answer.text().contains(&format!("\nx-{}: 1\n", 99 - others)), "{}", answer.text());
        assert_told(&pair.connect(8080).ask(request(101)), 431, "http_request_error");
    }
    assert_eq!(workload.accepted(), 2);
}

#[test]
fn a_response_with_a_hundred_fields_and_no_length_passes() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        let fields: String = (0..100).map(|number| format!("x-{number}: 1\r\n")).collect();
        connection.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\nbody"));
    });
    for more in ["", "Connection: upgrade\r\nUpgrade: other\r\n"] {
        let answer = pair.connect(8080).ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\n{more}\r\n"));
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"), "{more:?} {answer:?}");
    }
}

#[test]
fn a_response_with_a_header_section_over_64_kib_gives_502() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.target() {
        "/long" => {
            format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\nContent-Length: 0\r\n\r\n", "a".repeat(80 * 1024))
                .into_bytes()
        }
        _ => ok("short"),
    });
    assert_told(&pair.get(8080, "/long"), 502, "http_protocol_error");
    assert_eq!(pair.get(8080, "/").status(), 200);
}

#[test]
fn a_workload_that_answers_garbage_gives_502() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        connection.send("\0\x01\x02 this is no response\r\n\r\n");
    });
    assert_told(&pair.get(8080, "/"), 502, "http_protocol_error");
}

#[test]
fn a_response_that_breaks_off_right_behind_its_head_arrives_as_far_as_it_came_each_time() {
    let pair = Pair::with(&web_config(), "inbound: {ports: {8081: {mtls: permissive}}}");
    let outside = pair.mesh.pod("outside");
    let answer = |mut connection: Connection| {
        let path = connection.request().map(|request| request.target().to_owned());
        connection.send("HTTP/1.1 200 OK\r\n");
        connection.send(match path.as_deref() {
            Some("/head") => "Content-Length: 50\r\n\r\n",
            Some("/part") => "Content-Length: 50\r\n\r\nhello",
            Some("/chunk") => "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\n",
            _ => "Transfer-Encoding: chunked\r\n\r\nno size\r\n",
        });
    };
    let (_meshed, _plain) = (pair.api.serve(8080, answer), pair.api.serve(8081, answer));
    // `Upgrade` has a connection of its own, on which HTTP/1.1 crosses the mesh.
    let upgrade = "Connection: upgrade\r\nUpgrade: other\r\n";
    for (from, port, more) in [(&pair.web, 8080, ""), (&pair.web, 8080, upgrade), (&outside, 8081, "")] {
        for (path, body) in
            [("/head", ""), ("/part", "hello"), ("/chunk", "5\r\nhello\r\n"), ("/garbage", "")]
        {
            for number in 0..150 {
                let what = format!("{path} to {port} {more:?}, request {number}");
                let mut connection = from.connect(pair.api.at(port));
                connection.send(format!("GET {path} HTTP/1.1\r\nHost: {API}\r\n{more}\r\n"));
                let head =
                    connection.try_head().unwrap_or_else(|end| panic!("{what}: {end:?} without a head"));
                assert_eq!(head.status(), 200, "{what}: {head:?}");
                let (rest, _) = connection.take_all();
                assert_eq!(String::from_utf8_lossy(&rest), body, "{what}");
            }
        }
    }
}

#[test]
fn a_response_with_a_transfer_coding_that_is_not_chunked_alone_gives_502() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| {
        let coding = request.target()[1..].replace('+', "\r\nTransfer-Encoding: ").replace('_', " ");
        let body = if request.method() == "HEAD" { "" } else { "4\r\nbody\r\n0\r\n\r\n" };
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n{body}")
    });
    for coding in ["gzip,_chunked", "gzip", "chunked+chunked", "gzip+chunked", "chunked,"] {
        assert_told(&pair.get(8080, &format!("/{coding}")), 502, "http_protocol_error");
        // And what is not refused keeps the circuit breaker closed.
        let answer = pair.get(8080, "/Chunked");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "body"), "{answer:?}");
    }
    // What has no body has nothing that could be read wrongly.
    let head = pair.connect(8080).ask(format!("HEAD /gzip,_chunked HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    assert_eq!(head.status(), 200, "{head:?}");
}

#[test]
fn a_request_with_a_transfer_coding_that_is_not_chunked_alone_is_refused() {
    let pair = Pair::new();
    let workload = pair.api.serve_echo(8080);
    for (coding, status) in [
        ("gzip, chunked", 501),
        ("gzip\r\nTransfer-Encoding: chunked", 501),
        ("chunked\r\nTransfer-Encoding: chunked", 501),
        // Where such a body ends nobody knows (RFC 9112 6.3).
        ("chunked, identity", 400),
        ("xchunked", 400),
        ("gzip", 400),
    ] {
        let answer = pair
            .connect(8080)
            .ask(format!("POST / HTTP/1.1\r\nHost: {API}\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"));
        assert_told(&answer, status, "http_request_error");
    }
    assert_eq!(workload.accepted(), 0);
}

#[test]
fn a_request_that_breaks_http_gets_400_and_never_reaches_the_workload() {
    let pair = Pair::new();
    let workload = pair.api.serve_echo(8080);
    for request in [
        format!("GET / HTTP/1.1\r\nHost: {API}\r\nbad header\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {API}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {API}\r\nContent-Length: -1\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nHost: {API}\r\nHost: other.example\r\n\r\n"),
        "GET / HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nHost: {API}, other.example\r\n\r\n"),
        format!("GET http://user@{API}/ HTTP/1.1\r\nHost: {API}\r\n\r\n"),
    ] {
        let answer = pair.connect(8080).ask(&request);
        assert_eq!(answer.status(), 400, "{request:?}: {answer:?}");
    }
    assert_eq!(workload.accepted(), 0);
}

#[test]
fn garbage_of_every_kind_ends_one_connection_and_nothing_else() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _workload = pair.api.serve_echo(8080);
    // A record header of TLS with nonsense, an unfinished ClientHello, HTTP/2 frames gone wrong.
    let mut garbage: Vec<Vec<u8>> = vec![
        b"\x16\x03\x01\x00\x05hello".to_vec(),
        b"\x16\x03\x01\xff\xff\x01\xff\xff\xff".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"GET".to_vec(),
        vec![0; 100_000],
    ];
    let mut state = 1_u32;
    garbage.extend((0..50).map(|_| {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (*state >> 24) as u8
        };
        (0..500).map(|_| next(&mut state)).collect()
    }));
    for bytes in &garbage {
        let mut connection = outside.connect(pair.api.at(8080));
        let _ = connection.try_send(bytes);
        let _ = connection.socket.shutdown(std::net::Shutdown::Write);
        let (answer, _) = connection.take_all();
        assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{bytes:?}");
    }
    // The same inside mesh TLS, from a peer whose certificate is right.
    let identity = pair.mesh.pki.identity(&shop("mallory"));
    for alpn in ["outrigger-h2", "outrigger-h1"] {
        for bytes in garbage.iter().take(20) {
            let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
            let (mut connection, _) =
                tls::client(&tls::client_config(Some(&identity), &[alpn]), socket).expect("a handshake");
            let _ = connection.try_send(bytes);
            let _ = connection.socket.shutdown(std::net::Shutdown::Write);
            let (answer, _) = connection.take_all();
            assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{alpn} {bytes:?}");
        }
    }
    assert_eq!(pair.get(8080, "/").status(), 200);
    assert_eq!(pair.api.metric("outrigger_panics_total", &[]), 0.0);
}

/// Sends `drop_by_drop` a byte a second until the peer ends the connection; gives what it said.
fn drip(connection: &mut Connection, drop_by_drop: u8) -> (Vec<u8>, Ending) {
    wait::within(Duration::from_secs(60), "the slow client is cut off", || {
        match connection.fill_within(Duration::from_secs(1)) {
            None => {
                let _ = connection.try_send([drop_by_drop]);
                None
            }
            Some(_) => Some(()),
        }
    });
    connection.take_all()
}

#[test]
fn a_slow_loris_is_told_408_and_cut_off() {
    let pair = Pair::new();
    let workload = pair.api.serve_echo(8080);
    let mut connection = pair.connect(8080);
    connection.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\nX-Slow: "));
    let (answer, _) = drip(&mut connection, b'a');
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(workload.accepted(), 0);
    pair.web.wait_for_metric("outrigger_connections_refused_total", &[("reason", "slow_headers")], 1.0);
}

#[test]
fn a_slow_client_hello_is_cut_off() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let mut connection = outside.connect(pair.api.at(8080));
    connection.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03");
    assert_eq!(drip(&mut connection, 7).0, b"");
}

#[test]
fn ten_thousand_silent_connections_do_not_keep_others_out() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raise the limit of open files");
    assert!(most >= 14_000, "the test itself needs 10 000 open files, and others run; the limit is {most}");
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _workload = pair.api.serve_echo(8080);
    let address = pair.api.at(8080);
    let silent: Vec<_> = outside.enter(|| {
        let connect = || std::net::TcpStream::connect_timeout(&address, PATIENCE).expect("connect");
        (0..10_000).map(|_| connect()).collect()
    });
    for _ in 0..20 {
        assert_eq!(pair.get(8080, "/").status(), 200);
    }
    let now = pair.api_sidecar.memory_kib("VmRSS");
    assert!(now < 192 << 10, "{now} KiB for 10 000 connections");
    drop(silent);
    wait::until("their places are free again", || {
        pair.api.metric("outrigger_connections_open", &[("direction", "inbound")]) < 10.0
    });
    assert_eq!(pair.get(8080, "/").status(), 200);
}

#[test]
fn exhausted_file_descriptors_pause_accepting_and_kill_nothing() {
    let mesh = Mesh::new();
    let (web, api, outside) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("outside"));
    web.add_hosts(&format!("{} {API}", api.address));
    let mut api_sidecar = mesh.sidecar(&api).through(&["prlimit", "--nofile=80:80"]).start();
    let _web_sidecar = mesh.sidecar(&web).config(web_config()).start();
    let _workload = api.serve_echo(8080);
    let exhausted_at = Instant::now();
    let silent: Vec<_> =
        (0..200).map(|_| outside.try_connect(api.at(8080)).expect("the kernel accepts")).collect();
    wait::until("the descriptors are used up", || api_sidecar.open_files() >= 78);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(api_sidecar.running());
    drop(silent);
    wait::until("accepts resume", || web.connect(api.at(8080)).get(API, "/").status() == 200);
    assert!(api_sidecar.running());
    // Twenty tries a second would be as many lines.
    api.wait_for_metric("outrigger_connections_refused_total", &[("reason", "exhausted")], 1.0);
    let output = api_sidecar.output();
    let lines = output.matches("can't accept connections").count();
    let most = usize::try_from(exhausted_at.elapsed().as_secs()).expect("few") + 2;
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}: {output}");
}

#[test]
fn a_panic_ends_one_connection_and_not_the_process() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _api_sidecar = mesh.sidecar(&api).arguments(["--panic-path", "/panic"]).start();
    let _web_sidecar = mesh.sidecar(&web).config(web_config()).start();
    let (sender, arrived) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let _server = api.serve_http(8080, move |request| {
        if request.target() == "/held" {
            sender.send(()).expect("the test waits");
            released.lock().expect("one").recv_timeout(PATIENCE).expect("the test lets go");
        }
        ok("fine")
    });
    // An opaque connection and a request in flight are other connections of the same worker.
    let mut other = web.connect(api.at(8080));
    other.send(format!("GET /held HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    arrived.recv_timeout(PATIENCE).expect("the request arrives");
    let answer = web.connect(api.at(8080)).get(API, "/panic");
    assert!([500, 502].contains(&answer.status()), "{answer:?}");
    api.wait_for_metric("outrigger_panics_total", &[], 1.0);
    release.send(()).expect("the workload waits");
    let survived = other.response("GET");
    assert!(
        [200, 502].contains(&survived.status()),
        "its own mesh connection may have been the one that ended: {survived:?}"
    );
    assert_eq!(web.connect(api.at(8080)).get(API, "/").text(), "fine");
}

#[test]
fn a_connection_to_the_proxy_s_own_port_is_refused_and_does_not_loop() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let own = [
        // Straight at the listeners, past the rules: there is no original destination.
        (&pair.web, std::net::SocketAddr::from(([127, 0, 0, 1], 15001))),
        (&pair.web, std::net::SocketAddr::from(([127, 0, 0, 1], 15006))),
        // Redirected, with the listener itself as the original destination.
        (&outside, pair.api.at(15006)),
        (&pair.web, pair.api.at(15006)),
        (&pair.web, pair.web.at(15001)),
        (&pair.web, pair.web.at(15006)),
    ];
    for (from, to) in own {
        let mut connection = match from.try_connect(to) {
            Ok(socket) => Connection::new(socket),
            Err(_) => continue,
        };
        let _ = connection.try_send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
        if let Ok(answer) = connection.try_head() {
            assert!(answer.status() >= 400, "{to}: {answer:?}");
        }
    }
    let _server = pair.api.serve_echo(8080);
    assert_eq!(pair.get(8080, "/").status(), 200);
    for pod in [&pair.web, &pair.api] {
        assert!(pod.metric("outrigger_connections_refused_total", &[("reason", "own_listener")]) >= 1.0);
        let open = pod.metric("outrigger_connections_open", &[]);
        assert!(open < 20.0, "{open} connections are open: one calls itself in a circle");
    }
}

#[test]
fn an_upstream_without_an_endpoint_gives_503_destination_unavailable() {
    let config = format!(
        "{}  gone: {{hosts: [gone.example], anyDestination: true, discovery: {{dns: {{name: gone.invalid}}}}}}\n",
        web_config()
    );
    let mesh = Mesh::new();
    let (web, resolver) = (mesh.pod("web"), mesh.pod("resolver"));
    let dns = crate::support::dns::Dns::serve(&resolver);
    let server = dns.address.to_string();
    let _sidecar = mesh.sidecar(&web).config(config).arguments(["--dns-server", &server]).start();
    let answer = web.connect(resolver.at(8080)).get("gone.example", "/");
    assert_told(&answer, 503, "destination_unavailable");
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    web.wait_for_metric("outrigger_requests_total", &[("code", "503")], 1.0);
}

#[test]
fn a_pool_at_its_limits_gives_503_connection_limit_reached_at_once() {
    let config = format!(
        "{}  api: {{hosts: [{API}], identity: \"{}\", pool: {{maxConnections: 1, maxPendingRequests: 1}}}}\n",
        web_config(),
        shop("api")
    );
    let pair = Pair::with(&config, "");
    let _server = pair.api.serve(8080, |mut connection| {
        connection.head();
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n");
        let _ = connection.take_all();
    });
    // Each upgrade has a mesh connection to itself.
    let upgrade = format!("GET / HTTP/1.1\r\nHost: {API}\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n");
    let mut first = pair.connect(8080);
    first.send(&upgrade);
    assert_eq!(first.head().status(), 101);
    // One more may wait; of those beyond, everyone is told at once.
    let mut others: Vec<_> = (0..3).map(|_| pair.connect(8080)).collect();
    for other in &mut others {
        other.send(&upgrade);
    }
    pair.web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "503")], 2.0);
    let told = others.iter_mut().filter_map(|other| {
        let answered = other.fill_within(Duration::from_millis(500)).is_some();
        answered.then(|| other.response("GET"))
    });
    let told: Vec<_> = told.collect();
    assert!(told.len() >= 2, "{told:?}");
    for answer in told {
        assert_told(&answer, 503, "connection_limit_reached");
        assert!(answer.header("retry-after").is_some(), "{answer:?}");
    }
}

#[test]
fn a_peer_that_refuses_our_certificate_gives_502_and_gets_no_request_through() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    // The client trusts the server's root and its own; the server knows only the former.
    let other = crate::support::pki::Pki::new();
    let both = web.write("both.pem", format!("{}{}", mesh.pki.bundle, other.bundle));
    let _api_sidecar = mesh.sidecar(&api).start();
    let setup = mesh.sidecar(&web).config(web_config()).identity(other.identity(&shop("web")));
    let _web_sidecar = setup.trust_bundle(Some(both)).start();
    let workload = api.serve_echo(8080);
    let answer = web.connect(api.at(8080)).get(API, "/");
    // With TLS 1.3 the refusal comes after the handshake: a request that is being written then may break off before
    // the alert is read.
    let error = answer.proxy_error();
    let known = ["tls_alert_received", "connection_terminated"];
    assert!(error.as_deref().is_some_and(|error| known.contains(&error)), "{answer:?}");
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert_eq!(workload.accepted(), 0);
    let labels = [("direction", "inbound"), ("result", "failure"), ("reason", "certificate")];
    api.wait_for_metric("outrigger_tls_handshakes_total", &labels, 1.0);
}
