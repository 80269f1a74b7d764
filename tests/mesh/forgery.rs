//! Nobody tells the workload in the mesh's name who calls: not by bytes that only lenient servers take for requests.

use std::sync::mpsc;
use std::time::Duration;

use crate::grpc::{peer, python};
use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::Server;
use crate::support::wire::Ending;
use crate::support::{API, Connection, Mesh, Pair, tls, wait, web_config};

const FIELDS: &str =
    "Host: a\r\nConnection: close\r\nOutrigger-Client-Id: spiffe://cluster.local/ns/shop/sa/ADMIN\r\n\r\n";
const PROXY_1: &[u8] = b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n";
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x30\x39\x1f\x90";

const HTTP2: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
/// `GET http://a/`, and who it claims to come from.
const FORGED_HEADERS: &[u8] =
    b"\0\0\x21\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a\0\x13outrigger-client-id\x05ADMIN";

/// First lines that Python's `http.server` takes for those of requests.
const LENIENT: [&str; 10] = [
    "GET\t/ HTTP/1.1\r\n",
    "GET /\tHTTP/1.1\r\n",
    "GET\x0b/\x0cHTTP/1.1\r\n",
    "GET\x1f/ HTTP/1.1\r\n",
    "\x1cGET / HTTP/1.1\r\n",
    "GET\t/\r\n",
    "GET /\r\n",
    "GET key\r\n",
    "GET key\r\nFrom x\r\n",
    "GET x\tHTTP/1.+1\r\n",
];

fn lenient() -> impl Iterator<Item = Vec<u8>> {
    let latin = [b"GET\xa0/\x85HTTP/1.1\r\n".to_vec()];
    let lines = LENIENT.iter().map(|line| line.as_bytes().to_vec()).chain(latin);
    lines.map(|line| [&line, FIELDS.as_bytes()].concat())
}

fn serve_python(pod: &Pod) -> Process {
    let mut server = pod.start(&[&python(), &peer("http_server.py"), "7000"]);
    server.wait_for_output("serving");
    server
}

/// What came back, whatever the end.
fn say(mut connection: Connection, pieces: &[&[u8]]) -> (String, Ending) {
    for piece in pieces {
        if connection.try_send(piece).is_err() {
            break;
        }
        // So that each is read by itself, and the first after the proxy has waited for more.
        std::thread::sleep(Duration::from_millis(if pieces.len() > 1 { 150 } else { 0 }));
    }
    let (said, end) = connection.take_all();
    (String::from_utf8_lossy(&said).into_owned(), end)
}

fn connect_as(pair: &Pair, from: &Pod, port: u16) -> Connection {
    let identity = pair.mesh.pki.identity(&shop("mallory"));
    let socket = from.try_connect(pair.api.at(port)).expect("connect");
    tls::client(&tls::client_config(Some(&identity), &["outrigger-tcp"]), socket).expect("a handshake").0
}

fn refused(pod: &Pod) -> f64 {
    let labels = [("direction", "inbound"), ("reason", "bad_request")];
    pod.metric("outrigger_connections_refused_total", &labels)
}

#[test]
fn a_lenient_server_gets_no_forged_caller_from_a_peer_s_opaque_bytes() {
    let pair = Pair::new();
    let _server = serve_python(&pair.api);
    let outside = pair.mesh.pod("outside");
    for request in lenient() {
        let text = request.escape_ascii().to_string();
        let whole = say(connect_as(&pair, &outside, 7000), &[&request]);
        assert!(!whole.0.contains("ADMIN"), "{text}: {whole:?}");
        let pieces = say(connect_as(&pair, &outside, 7000), &[&request[..1], &request[1..6], &request[6..]]);
        assert!(!pieces.0.contains("ADMIN"), "{text} in pieces: {pieces:?}");
        // By the own sidecar of a workload, too.
        let from_web = say(pair.connect(7000), &[&request]);
        assert!(!from_web.0.contains("ADMIN"), "{text} of a workload: {from_web:?}");
    }
    let attempts = 3.0 * lenient().count() as f64;
    wait::until("each is counted", || refused(&pair.api) >= attempts);
    // Requests are served as ever, and those in opaque bytes as well.
    let request = format!("GET / HTTP/1.1\r\n{FIELDS}");
    let own = say(connect_as(&pair, &outside, 7000), &[request.as_bytes()]);
    assert!(own.0.contains(&format!("called by ['{}']", shop("mallory"))), "{own:?}");
    let text = pair.get(7000, "/").text();
    assert_eq!(text, format!("called by ['{}']\n", shop("web")));
}

#[test]
fn a_lenient_server_gets_no_forged_caller_from_outside_the_mesh() {
    let mesh = Mesh::new();
    let (outside, api) = (mesh.pod("outside"), mesh.pod("api"));
    let _sidecar = mesh.sidecar(&api).config("mtls: permissive").start();
    let _server = serve_python(&api);
    for request in lenient() {
        let text = request.escape_ascii().to_string();
        for pieces in [&[&request[..]][..], &[&request[..1], &request[1..6], &request[6..]]] {
            let said = say(outside.connect(api.at(7000)), pieces);
            assert!(!said.0.contains("ADMIN"), "{text} in {}: {said:?}", pieces.len());
        }
    }
    let request = format!("GET / HTTP/1.1\r\n{FIELDS}");
    let said = say(outside.connect(api.at(7000)), &[request.as_bytes()]);
    assert!(said.0.contains("called by None"), "{said:?}");
}

#[test]
fn a_proxy_header_carries_no_request_past_the_proxy_but_on_a_port_declared_opaque() {
    let pair = Pair::with(&web_config(), "inbound: {opaquePorts: [7000, 7002]}");
    let config = format!(
        "daemon off; pid {d}/nginx.pid; error_log stderr; master_process off;\nuser root;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
         server {{ listen 8080 proxy_protocol; listen 7000 proxy_protocol;\n\
         listen 8082 proxy_protocol http2; listen 7002 proxy_protocol http2;\n\
         location / {{ return 200 \"called by $http_outrigger_client_id\"; }} }} }}",
        d = pair.api.directory.display()
    );
    let config = pair.api.write("nginx.conf", config).display().to_string();
    let _nginx = pair.api.start(&["nginx", "-c", &config]);
    wait::until("nginx serves", || pair.api.try_connect(([127, 0, 0, 1], 8080)).is_ok());
    let outside = pair.mesh.pod("outside");
    let request = format!("GET / HTTP/1.1\r\n{FIELDS}");
    for header in [PROXY_1, PROXY_2] {
        let whole = [header, request.as_bytes()].concat();
        for pieces in [&[&whole[..]][..], &[header, request.as_bytes()], &[&whole[..9], &whole[9..]]] {
            let said = say(connect_as(&pair, &outside, 8080), pieces);
            assert_eq!(said.0, "", "{}", whole.escape_ascii());
        }
        let said = say(connect_as(&pair, &outside, 7000), &[&whole]).0;
        assert!(said.contains("called by spiffe://cluster.local/ns/shop/sa/ADMIN"), "{said}");
        // HTTP/2 begins in the middle of a line behind binary addresses.
        let whole = [header, HTTP2, SETTINGS, FORGED_HEADERS].concat();
        let at = header.len() + 5;
        for pieces in [&[&whole[..]][..], &[header, &whole[header.len()..]], &[&whole[..at], &whole[at..]]] {
            let said = say(connect_as(&pair, &outside, 8082), pieces);
            assert!(!said.0.contains("ADMIN"), "{}: {said:?}", whole.escape_ascii());
            assert_eq!(said.1, Ending::Reset, "{}", whole.escape_ascii());
        }
        let mut declared_opaque = connect_as(&pair, &outside, 7002);
        declared_opaque.send(&whole);
        declared_opaque.take_until(b"called by ADMIN");
    }
    // The server itself refuses a header in pieces.
    assert!(refused(&pair.api) >= 8.0);
}

#[test]
fn a_port_declared_http_takes_requests_only() {
    let pair =
        Pair::with(&web_config(), "inbound: {ports: {8080: {protocol: http1}, 7001: {protocol: grpc}}}");
    let servers = [8080, 7001].map(|port| pair.api.serve_echo(port));
    let outside = pair.mesh.pod("outside");
    let request = format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n");
    for (port, server) in [8080, 7001].into_iter().zip(&servers) {
        for bytes in [&b"\0\x01\x02\n"[..], b"GET\t/ HTTP/1.1\r\n", request.as_bytes()] {
            let said = say(connect_as(&pair, &outside, port), &[bytes]);
            assert_eq!(said, (String::new(), Ending::Reset), "port {port}: {}", bytes.escape_ascii());
        }
        assert_eq!(server.accepted(), 0, "port {port}");
    }
    let labels = [("direction", "inbound"), ("reason", "denied")];
    assert_eq!(pair.api.metric("outrigger_connections_refused_total", &labels), 6.0);
    // Also of a client that is silent at first.
    let mut late = pair.connect(8080);
    late.assert_silent_for(Duration::from_millis(400));
    assert_eq!(late.get(API, "/late").status(), 200);
}

/// A workload that greets its clients; what they say then.
fn greeting(pod: &Pod, port: u16, greeting: &'static [u8]) -> (Server, mpsc::Receiver<Vec<u8>>) {
    let (sender, heard) = mpsc::channel();
    let server = pod.serve(port, move |mut connection| {
        connection.send(greeting);
        // The test may have ended.
        let _ = sender.send(connection.take_all().0);
    });
    (server, heard)
}

#[test]
fn a_client_that_lets_the_workload_speak_first_forges_nothing_either() {
    for mode in ["strict", "permissive"] {
        let pair = Pair::with(&web_config(), &format!("mtls: {mode}"));
        let outside = pair.mesh.pod("outside");
        let (_mail, mail_heard) = greeting(&pair.api, 7000, b"220 mail.example\r\n");
        let (_http2, http2_heard) = greeting(&pair.api, 7001, SETTINGS);
        let connect = |port| match mode {
            "strict" => connect_as(&pair, &outside, port),
            _ => outside.connect(pair.api.at(port)),
        };
        let mut mail = connect(7000);
        assert_eq!(mail.take(4), b"220 ", "{mode}");
        mail.send("EHLO a\r\n");
        mail.send(format!("GET\t/ HTTP/1.1\r\n{FIELDS}"));
        let _ = mail.take_all();
        let heard = mail_heard.recv_timeout(wait::PATIENCE).expect("the connection ends");
        assert!(!String::from_utf8_lossy(&heard).contains("ADMIN"), "{mode}: {}", heard.escape_ascii());
        // What is served as HTTP/2 never arrives as it was written: a frame that nobody knows is dropped.
        let mut http2 = connect(7001);
        http2.assert_silent_for(Duration::from_millis(300));
        http2.send([HTTP2, SETTINGS].concat());
        http2.send(b"\0\0\x06\xee\0\0\0\0\0FORGED");
        http2.send(b"\0\0\x06\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a");
        let (said, _) = {
            http2.finish();
            http2.take_all()
        };
        assert!(said.len() > SETTINGS.len(), "{mode}: the proxy answers: {}", said.escape_ascii());
        if let Ok(heard) = http2_heard.recv_timeout(Duration::from_secs(1)) {
            assert!(!String::from_utf8_lossy(&heard).contains("FORGED"), "{mode}: {}", heard.escape_ascii());
        }
    }
}

/// An upgrade to HTTP/2 that a lenient server grants itself, behind a body that ends in no newline.
#[test]
fn http_2_that_begins_behind_a_body_does_not_arrive() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let (_server, heard) = greeting(&pair.api, 7000, b"");
    let upgrade = b"FOO\t/ HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc";
    for pieces in [&[&upgrade[..], HTTP2][..], &[&[&upgrade[..], HTTP2].concat()]] {
        let said = say(connect_as(&pair, &outside, 7000), pieces);
        assert_eq!(said.1, Ending::Reset, "{}", pieces.len());
        let heard = heard.recv_timeout(wait::PATIENCE).expect("the connection ends");
        assert!(!heard.ends_with(b"\r\nSM\r\n\r\n"), "{}", heard.escape_ascii());
    }
}
