//! What an upstream's `protocol` states, whatever its callers speak.

use crate::grpc::{peer, python};
use crate::support::outside::{Outside, SHOP, upstream};
use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::respond;
use crate::support::wire::Ending;
use crate::support::{API, Pair, bytes, wait};

/// A client and a pod outside the mesh, whose port 9000 is an upstream that speaks `protocol`.
fn speaking(protocol: &str) -> Outside {
    let fields = format!("hosts: [{SHOP}], protocol: {protocol}, streamIdleTimeout: 5s");
    Outside::new(&(String::from("upstreams:\n") + &upstream("shop", &[9000], &fields)))
}

/// Speaks HTTP/2 by prior knowledge and nothing else, with a trailer behind each response.
fn nghttpd(pod: &Pod) -> Process {
    let root = pod.directory.join("www");
    std::fs::create_dir_all(&root).expect("make a directory");
    std::fs::write(root.join("file"), bytes(200_000)).expect("write a file");
    let root = root.display().to_string();
    let server = pod.start(&[
        "nghttpd",
        "--no-tls",
        "--echo-upload",
        "--trailer",
        "x-checksum: abc",
        "--htdocs",
        &root,
        "9000",
    ]);
    wait::until("nghttpd listens", || pod.try_connect(([127, 0, 0, 1], 9000)).is_ok());
    server
}

#[test]
fn an_http_1_request_is_understood_by_a_server_that_speaks_http_2_only() {
    let bed = speaking("http2");
    let _server = nghttpd(&bed.far);
    let mut connection = bed.connect();
    let file = connection.ask(format!("GET /file HTTP/1.1\r\nHost: {SHOP}\r\n\r\n"));
    assert_eq!(file.status(), 200, "{}", file.start);
    assert!(file.body == bytes(200_000));

    // On the same connection, with a body whose length nobody knows before, and one that waits for an interim 100.
    let chunked = connection.ask(format!(
        "POST /echo HTTP/1.1\r\nHost: {SHOP}\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ));
    assert_eq!((chunked.status(), chunked.text().as_str()), (200, "hello"));
    assert_eq!(chunked.trailer("x-checksum"), Some("abc"), "{:?}", chunked.headers);
    let upload = bed.web.write("upload", bytes(1 << 20)).display().to_string();
    let got = bed.web.directory.join("got").display().to_string();
    bed.web.run(&[
        "curl",
        "-sSf",
        "--http1.1",
        "-H",
        "Expect: 100-continue",
        "-H",
        &format!("Host: {SHOP}"),
        "--data-binary",
        &format!("@{upload}"),
        "-o",
        &got,
        &format!("http://{}/echo", bed.far.at(80)),
    ]);
    assert!(std::fs::read(&got).expect("curl wrote a file") == bytes(1 << 20));
}

#[test]
fn the_peers_sidecar_speaks_http_2_with_its_workload_where_the_upstream_says_so() {
    let config = format!(
        "upstreams: {{api: {{hosts: [{API}], protocol: http2, tls: mesh, discovery: {{static: [\"10.77.0.2:9000\"]}}, identity: \"{}\"}}}}",
        shop("api")
    );
    let pair = Pair::with(&config, "");
    let _server = nghttpd(&pair.api);
    let file = pair.get(9000, "/file");
    assert_eq!(file.status(), 200, "{file:?}");
    assert!(file.body == bytes(200_000));
}

#[test]
fn a_grpc_call_goes_as_it_is_to_an_upstream_that_speaks_grpc() {
    let bed = speaking("grpc");
    let mut server = bed.far.start(&[&python(), &peer("grpc_server.py"), "0.0.0.0:9000"]);
    server.wait_for_output("serving");
    bed.web.add_hosts(&format!("{} {SHOP}", bed.far.address));
    let said = bed.web.run(&[&python(), &peer("grpc_client.py"), &format!("{SHOP}:9000"), "unary"]);
    assert!(said.contains("echo hello") && said.contains("last"), "{said}");
}

#[test]
fn an_http_2_request_is_understood_by_a_server_that_speaks_http_1_only() {
    let bed = speaking("http1");
    let _server = bed.far.serve_http(9000, |request| {
        let seen = format!(
            "{} host={} cookie={} body={}",
            request.start,
            request.header("host").unwrap_or("none"),
            request.header("cookie").unwrap_or("none"),
            request.text()
        );
        let chunk = format!("{:x}\r\n{seen}\r\n0\r\nx-checksum: abc\r\n\r\n", seen.len());
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum\r\n\r\n{chunk}")
    });
    let ask = |arguments: &[&str]| {
        let mut command = vec!["nghttp", "--verbose", "-H", "cookie: a=1", "-H", "cookie: b=2"];
        let authority = format!(":authority: {SHOP}");
        let target = format!("http://{}/here?now", bed.far.at(80));
        command.extend(["-H", &authority]);
        command.extend(arguments);
        command.push(&target);
        bed.web.run(&command)
    };
    let said = ask(&[]);
    assert!(said.contains(&format!("GET /here?now HTTP/1.1 host={SHOP} cookie=a=1; b=2 body=")), "{said}");
    assert!(said.contains("x-checksum: abc"), "{said}");
    let upload = bed.web.write("upload", "hello").display().to_string();
    let said = ask(&["--data", &upload]);
    assert!(said.contains("POST /here?now HTTP/1.1") && said.contains("body=hello"), "{said}");
}

#[test]
fn an_upgrade_is_answered_by_http_2_as_if_none_had_been_asked_for() {
    let bed = speaking("http2");
    let _server = nghttpd(&bed.far);
    let answer = bed.ask("GET", "/file", "Connection: Upgrade\r\nUpgrade: websocket\r\n");
    assert_eq!((answer.status(), answer.body.len()), (200, 200_000), "{}", answer.start);
}

#[test]
fn what_looks_like_a_request_is_nothing_but_bytes_to_an_upstream_that_speaks_tcp() {
    let config = String::from("upstreams:\n") + &upstream("store", &[9000], "protocol: tcp");
    let bed = Outside::new(&config);
    let _servers = [9000, 9001].map(|port| {
        bed.far.serve(port, |mut connection| {
            if let Ok(bytes) = connection.try_take_until(b"!") {
                connection.send(bytes);
            }
        })
    });
    // A method, and then nothing that could be HTTP.
    const SAID: &[u8] = b"GET / HTTP/1.1\r\nno field at all\r\n\r\n!";
    let ask = |port| {
        let mut connection = bed.web.connect(bed.far.at(port));
        connection.send(SAID);
        connection.take_all()
    };
    assert_eq!(ask(9000), (SAID.to_vec(), Ending::Closed));
    // Nobody said so of the other.
    let (refused, _) = ask(9001);
    assert!(refused.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&refused));
}

#[test]
fn a_fallback_is_spoken_to_in_its_own_version() {
    let first = upstream(
        "shop",
        &[9001],
        &format!("hosts: [{SHOP}], protocol: http1, fallback: {{upstream: spare}}"),
    );
    let spare = upstream("spare", &[9000], "protocol: http2");
    let bed = Outside::new(&format!("upstreams:\n{first}{spare}"));
    let _failing = bed.far.serve_http(9001, |_| respond("503 Service Unavailable", "", "failing"));
    let _spare = nghttpd(&bed.far);
    let answer = bed.ask("GET", "/file", "");
    assert_eq!((answer.status(), answer.body.len()), (200, 200_000), "{}", answer.start);
}
