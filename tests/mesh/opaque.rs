//! Bytes that are not HTTP: either side may speak first, either may stop first.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::grpc::{peer, python};
use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::serve::{Server, respond};
use crate::support::wire::Ending;
use crate::support::{API, Mesh, Pair, bytes, tls, wait, web_config};

/// What a MySQL server says before the client has said anything.
const BANNER: &[u8] = b"J\0\0\0\n8.0.36\0banner of a server that speaks first";

fn serve_banner(pair: &Pair, port: u16) -> Server {
    pair.api.serve(port, |mut connection| {
        connection.send(BANNER);
        let question = connection.take(5);
        connection.send(question);
    })
}

#[test]
fn a_server_that_speaks_first_is_heard_on_a_port_declared_opaque() {
    let pair = Pair::new();
    let _server = serve_banner(&pair, 3306);
    let mut connection = pair.connect(3306);
    assert_eq!(connection.take(BANNER.len()), BANNER);
    connection.send("query");
    assert_eq!(connection.take_all(), (b"query".to_vec(), Ending::Closed));
    pair.api.wait_for_metric(
        "outrigger_tcp_connections_opened_total",
        &[("direction", "inbound"), ("tls", "mesh")],
        1.0,
    );
}

#[test]
fn a_server_that_speaks_first_is_heard_on_a_port_nobody_declared() {
    let pair = Pair::new();
    let _server = serve_banner(&pair, 7000);
    for _ in 0..2 {
        let mut connection = pair.connect(7000);
        assert_eq!(connection.take(BANNER.len()), BANNER);
        connection.send("query");
        assert_eq!(connection.take_all(), (b"query".to_vec(), Ending::Closed));
    }
}

#[test]
fn a_slow_client_of_an_undeclared_port_is_still_heard_as_http() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(7000);
    let mut connection = pair.connect(7000);
    // Longer than the 100 ms after which the proxy dials without having heard anything.
    connection.assert_silent_for(Duration::from_millis(400));
    let answer = connection.get(API, "/late");
    assert!(answer.text().contains(&format!("outrigger-client-id: {}", shop("web"))), "{}", answer.text());
}

#[test]
fn opaque_bytes_of_a_client_that_speaks_first_cross_in_both_directions() {
    let pair = Pair::new();
    let _server = pair.api.serve(7000, |mut connection| {
        let (all, end) = connection.take_all();
        assert_eq!(end, Ending::Closed);
        connection.send(all);
    });
    let mut connection = pair.connect(7000);
    let mut sent = b"\0\x01not http at all\n".to_vec();
    sent.extend(bytes(500_000));
    connection.send(&sent);
    connection.finish();
    let (got, end) = connection.take_all();
    assert!(got == sent, "{} of {} bytes came back", got.len(), sent.len());
    assert_eq!(end, Ending::Closed);
}

#[test]
fn the_server_may_close_its_half_first() {
    let pair = Pair::new();
    let (sender, heard) = mpsc::channel();
    let _server = pair.api.serve(7000, move |mut connection| {
        connection.take(5);
        connection.send("bye");
        connection.finish();
        let _ = sender.send(connection.take_all());
    });
    let mut connection = pair.connect(7000);
    connection.send("\0\x01\x02\x03\x04");
    assert_eq!(connection.take_all(), (b"bye".to_vec(), Ending::Closed));
    connection.send("still talking");
    connection.finish();
    let heard = heard.recv_timeout(wait::PATIENCE).expect("the server hears the rest");
    assert_eq!(heard, (b"still talking".to_vec(), Ending::Closed));
}

#[test]
fn a_reset_of_the_server_reaches_the_client_as_a_reset() {
    let pair = Pair::new();
    let _server = pair.api.serve(7000, |mut connection| {
        connection.take(5);
        connection.reset();
    });
    let mut connection = pair.connect(7000);
    connection.send("\0\x01\x02\x03\x04");
    assert_eq!(connection.take_all(), (Vec::new(), Ending::Reset));
}

#[test]
fn an_opaque_connection_to_a_port_where_nobody_listens_is_reset() {
    let pair = Pair::new();
    let mut connection = pair.connect(7000);
    connection.send("\0\x01\x02\x03\x04");
    assert_eq!(connection.take_all(), (Vec::new(), Ending::Reset));
}

#[test]
fn a_silent_client_of_a_port_where_nobody_listens_is_reset() {
    let pair = Pair::new();
    let mut connection = pair.connect(7000);
    assert_eq!(connection.take_all(), (Vec::new(), Ending::Reset));
}

#[test]
fn a_silent_client_of_a_port_with_rules_on_methods_may_still_send_requests() {
    let pair = Pair::with(&web_config(), "inbound: {allow: [{methods: [GET]}]}");
    let server = pair.api.serve_echo(7000);
    let mut connection = pair.connect(7000);
    connection.assert_silent_for(Duration::from_millis(500));
    assert_eq!(server.accepted(), 0, "such a port gets no connection but for requests");
    assert_eq!(connection.get(API, "/late").status(), 200);
    // Nothing that was refused is heard of.
    let refused = [("direction", "inbound"), ("reason", "denied")];
    assert_eq!(pair.api.metric("outrigger_connections_refused_total", &refused), 0.0);
}

#[test]
fn a_silent_client_that_leads_nowhere_is_reset_after_ten_seconds() {
    let with_rules = "inbound: {allow: [{methods: [GET]}]}";
    let nobody = "  nobody: {discovery: {static: [\"10.77.0.2:9001\"]}, identity: \"spiffe://cluster.local/ns/a/sa/b\"}\n";
    let pair = Pair::with(&format!("{}{nobody}", web_config()), with_rules);
    let _server = pair.api.serve_echo(7000);
    // One whose peer is of the mesh and has no known identity, one of another identity than expected, and one of a
    // port that takes requests only, as the peer's sidecar says.
    let silent: Vec<_> = [9000, 9001, 7000]
        .into_iter()
        .map(|port| {
            let mut connection = pair.connect(port);
            std::thread::spawn(move || {
                let started = Instant::now();
                (port, connection.take_all(), started.elapsed())
            })
        })
        .collect();
    for client in silent {
        let (port, end, after) = client.join().expect("a client");
        assert_eq!(end, (Vec::new(), Ending::Reset), "port {port}");
        let bound = Duration::from_secs(9)..Duration::from_secs(15);
        assert!(bound.contains(&after), "port {port}: {after:?}");
    }
}

#[test]
fn a_silent_client_beyond_the_limit_of_connections_is_reset_at_once() {
    let config =
        web_config().replace("\"10.77.0.2:7000\"]}", "\"10.77.0.2:7000\"]}, pool: {maxConnections: 1}");
    assert_ne!(config, web_config());
    let pair = Pair::with(&config, "");
    let server = pair.api.serve(7000, |mut connection| {
        let _ = connection.take_all();
    });
    let mut first = pair.connect(7000);
    first.send("\0\x01\x02");
    crate::support::wait::until("the first is carried", || server.accepted() == 1);
    let started = Instant::now();
    assert_eq!(pair.connect(7000).take_all(), (Vec::new(), Ending::Reset));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_reset_of_a_server_that_never_spoke_reaches_a_silent_client_as_a_reset() {
    let pair = Pair::new();
    let _at_once = pair.api.serve(7000, |connection| connection.reset());
    let _later = pair.api.serve(7001, |connection| {
        std::thread::sleep(Duration::from_millis(300));
        connection.reset();
    });
    for port in [7000, 7001] {
        let mut connection = pair.connect(port);
        assert_eq!(connection.take_all(), (Vec::new(), Ending::Reset), "port {port}");
    }
}

/// A server that greets, and one that answers at the end of what it is sent.
fn serve_who_needs_no_question(pod: &Pod) -> [Server; 2] {
    let greets = pod.serve(7000, |mut connection| connection.send("welcome"));
    let answers = pod.serve(7001, |mut connection| {
        let (got, end) = connection.take_all();
        assert_eq!((got.len(), end), (0, Ending::Closed));
        connection.send("nothing came");
    });
    [greets, answers]
}

/// Clients that end without a byte, at once and after the silence that has the proxy dial.
fn hear_without_asking(from: &Pod, to: &Pod) {
    for (port, said) in [(7000, "welcome"), (7001, "nothing came")] {
        for pause in [0, 300] {
            let mut connection = from.connect(to.at(port));
            std::thread::sleep(Duration::from_millis(pause));
            connection.finish();
            let heard = connection.take_all();
            assert_eq!(heard, (said.into(), Ending::Closed), "port {port} after {pause} ms");
        }
    }
}

#[test]
fn a_client_that_ends_without_a_byte_hears_what_the_server_says() {
    let pair = Pair::new();
    let [greets, answers] = serve_who_needs_no_question(&pair.api);
    hear_without_asking(&pair.web, &pair.api);
    assert_eq!(
        (greets.accepted(), answers.accepted()),
        (2, 2),
        "each client is one connection of the server"
    );
}

#[test]
fn a_plaintext_client_that_ends_without_a_byte_hears_what_the_server_says() {
    let mesh = Mesh::new();
    let (outside, api) = (mesh.pod("outside"), mesh.pod("api"));
    let _sidecar = mesh.sidecar(&api).config("mtls: permissive").start();
    let [greets, answers] = serve_who_needs_no_question(&api);
    hear_without_asking(&outside, &api);
    assert_eq!(
        (greets.accepted(), answers.accepted()),
        (2, 2),
        "each client is one connection of the server"
    );
}

#[test]
fn a_client_that_resets_without_a_byte_is_not_carried() {
    let pair = Pair::new();
    let server = pair.api.serve(7000, |mut connection| connection.send("welcome"));
    for _ in 0..5 {
        pair.connect(7000).reset();
    }
    // One that comes later is served, and those before it were not.
    assert_eq!(pair.connect(7000).take_all(), (b"welcome".to_vec(), Ending::Closed));
    assert_eq!(server.accepted(), 1);
}

#[test]
fn a_client_that_ends_without_a_byte_on_a_port_with_rules_on_methods_gets_its_end() {
    let pair = Pair::with(&web_config(), "inbound: {allow: [{methods: [GET]}]}");
    let server = pair.api.serve(7000, |mut connection| connection.send("welcome"));
    let mut connection = pair.connect(7000);
    connection.finish();
    assert_eq!(connection.take_all(), (Vec::new(), Ending::Closed));
    assert_eq!(server.accepted(), 0);
}

#[test]
fn a_workload_s_own_tls_passes_through_untouched() {
    let pair = Pair::new();
    let private = crate::support::pki::Pki::new().identity("spiffe://elsewhere/ns/a/sa/b");
    let config = tls::server_config(&private, &["own-protocol"], false);
    let _server = pair.api.serve(7443, move |connection| {
        let (mut inner, alpn) = tls::server(&config, connection).expect("the workload's own handshake");
        assert_eq!(alpn.as_deref(), Some("own-protocol"));
        let question = inner.take(5);
        inner.send(question);
    });
    let socket = pair.web.try_connect(pair.api.at(7443)).expect("connect");
    let config = tls::client_config(None, &["other", "own-protocol"]);
    let (mut inner, alpn) = tls::client(&config, socket).expect("a handshake with the workload itself");
    assert_eq!(alpn.as_deref(), Some("own-protocol"));
    inner.send("hello");
    assert_eq!(inner.take(5), b"hello");
    pair.api.wait_for_metric(
        "outrigger_tcp_connections_opened_total",
        &[("direction", "inbound"), ("tls", "mesh")],
        1.0,
    );
}

#[test]
fn openssl_and_socat_speak_tls_through_the_mesh() {
    let pair = Pair::new();
    let identity = pair.mesh.pki.identity("spiffe://elsewhere/ns/a/sa/b");
    let both =
        pair.api.write("own.pem", format!("{}{}", identity.certificate, identity.key)).display().to_string();
    let mut socat = pair.api.start(&[
        "socat",
        "-d",
        "-d",
        &format!("OPENSSL-LISTEN:7443,reuseaddr,fork,cert={both},verify=0"),
        "EXEC:cat",
    ]);
    socat.wait_for_output("listening on");
    let said = pair.web.run(&[
        "sh",
        "-c",
        &format!(
            "echo through-the-mesh | timeout 20 socat -t 5 - OPENSSL:{}:7443,verify=0",
            pair.api.address
        ),
    ]);
    assert_eq!(said, "through-the-mesh\n");
    let said = pair.web.run(&[
        "sh",
        "-c",
        &format!(
            "timeout 20 openssl s_client -connect {}:7443 -servername {API} </dev/null 2>/dev/null",
            pair.api.address
        ),
    ]);
    assert!(
        said.contains("BEGIN CERTIFICATE")
            && identity.certificate.lines().nth(1).is_some_and(|line| said.contains(line)),
        "{said}"
    );
}

#[test]
fn redis_speaks_through_the_mesh() {
    let config = format!(
        "outbound: {{meshNetworks: [10.77.0.0/24]}}\nupstreams: {{store: {{discovery: {{static: [\"10.77.0.2:6379\"]}}, protocol: tcp, identity: \"{}\"}}}}",
        shop("api")
    );
    let pair = Pair::with(&config, "");
    let mut redis = pair.api.start(&[
        "redis-server",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        "/",
    ]);
    redis.wait_for_output("Ready to accept connections");
    let address = pair.api.address.to_string();
    assert_eq!(pair.web.run(&["redis-cli", "-h", &address, "set", "key", "value"]), "OK\n");
    assert_eq!(pair.web.run(&["redis-cli", "-h", &address, "get", "key"]), "value\n");
}

#[test]
fn websockets_work_with_their_subprotocol_and_close_code() {
    let pair = Pair::new();
    let mut server = pair.api.start(&[&python(), &peer("websocket_server.py"), "8080"]);
    server.wait_for_output("serving");
    let said = pair.web.run(&[&python(), &peer("websocket_client.py"), &format!("ws://{API}:8080/chat")]);
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        said,
        serde_json::json!({"subprotocol": "chat", "text": "hello", "binary": true, "code": 4001})
    );
}

#[test]
fn any_other_upgrade_becomes_opaque_bytes_after_the_101() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        let request = connection.request().expect("a request");
        assert_eq!(request.header("upgrade"), Some("raven/1"));
        assert!(
            request.header("connection").is_some_and(|value| value.to_ascii_lowercase().contains("upgrade"))
        );
        // Bytes right behind the head belong to the new protocol.
        connection
            .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\ncaw");
        let (rest, end) = connection.take_all();
        assert_eq!(end, Ending::Closed);
        connection.send(rest);
    });
    let mut connection = pair.connect(8080);
    connection
        .send(format!("GET / HTTP/1.1\r\nHost: {API}\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n"));
    let answer = connection.head();
    assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("raven/1")));
    assert_eq!(connection.take(3), b"caw");
    connection.send(bytes(100_000));
    connection.finish();
    assert!(connection.take_all() == (bytes(100_000), Ending::Closed));
}

#[test]
fn a_refused_upgrade_is_an_ordinary_response() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |_| respond("400 Bad Request", "", "no ravens"));
    let mut connection = pair.connect(8080);
    let answer = connection
        .ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n"));
    assert_eq!((answer.status(), answer.text().as_str()), (400, "no ravens"));
}
