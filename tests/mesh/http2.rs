//! HTTP/2 by prior knowledge.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::support::pki::shop;
use crate::support::serve::ok;
use crate::support::{API, Connection, Pair, bytes, tls, wait};

fn nghttpd(pair: &Pair, arguments: &[&str]) -> crate::support::process::Process {
    let root = pair.api.directory.join("www");
    std::fs::create_dir_all(&root).expect("make a directory");
    std::fs::write(root.join("file"), bytes(200_000)).expect("write a file");
    let root = root.display().to_string();
    let mut command = vec!["nghttpd", "--no-tls", "--htdocs", &root];
    command.extend(arguments);
    command.push("9000");
    let server = pair.api.start(&command);
    wait::until("nghttpd listens", || pair.api.try_connect(([127, 0, 0, 1], 9000)).is_ok());
    server
}

#[test]
fn http_2_by_prior_knowledge_arrives_as_http_2() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let target = pair.web.directory.join("got").display().to_string();
    let version = pair.web.run(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--http2-prior-knowledge",
        "--write-out",
        "%{http_version}",
        "--output",
        &target,
        &format!("http://{API}:9000/file"),
    ]);
    assert_eq!(version, "2");
    assert!(std::fs::read(&target).expect("curl wrote a file") == bytes(200_000));
    pair.api.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "inbound"), ("tls", "mesh"), ("code", "200")],
        1.0,
    );
}

#[test]
fn many_streams_of_few_connections_all_get_their_answers() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let said = pair.web.run(&[
        "h2load",
        "--requests=2000",
        "--clients=4",
        "--max-concurrent-streams=50",
        &format!("http://{API}:9000/file"),
    ]);
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 2000 2xx"), "{said}");
}

#[test]
fn trailers_of_an_http_2_response_arrive() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &["--trailer", "x-checksum: abc"]);
    let said = pair.web.run(&["nghttp", "--verbose", "--null-out", &format!("http://{API}:9000/file")]);
    assert!(said.contains("x-checksum: abc"), "{said}");
}

#[test]
fn an_upload_over_http_2_arrives_whole() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &["--echo-upload"]);
    let upload = pair.web.write("upload", bytes(1 << 20)).display().to_string();
    let target = pair.web.directory.join("got").display().to_string();
    pair.web.run(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--http2-prior-knowledge",
        "--data-binary",
        &format!("@{upload}"),
        "--output",
        &target,
        &format!("http://{API}:9000/echo"),
    ]);
    assert!(std::fs::read(&target).expect("curl wrote a file") == bytes(1 << 20));
}

#[test]
fn more_requests_at_once_than_one_connection_has_streams_are_all_carried() {
    // A mesh connection has 200 streams; none of these is answered before all have arrived.
    const AT_ONCE: usize = 450;
    let pair = Pair::new();
    let arrived = Arc::new((Mutex::new(0), Condvar::new()));
    let count = Arc::clone(&arrived);
    let _server = pair.api.serve_http(8080, move |_| {
        let (count, all) = &*count;
        let mut count = count.lock().expect("not poisoned");
        *count += 1;
        all.notify_all();
        drop(all.wait_timeout_while(count, wait::PATIENCE, |count| *count < AT_ONCE));
        ok("here")
    });
    let ask = |_| {
        let mut connection = pair.connect(8080);
        connection.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
        connection
    };
    let mut connections: Vec<_> = (0..AT_ONCE).map(ask).collect();
    let (count, all) = &*arrived;
    let (count, _) = all
        .wait_timeout_while(count.lock().expect("not poisoned"), wait::PATIENCE / 2, |count| *count < AT_ONCE)
        .expect("not poisoned");
    if *count < AT_ONCE {
        let told = connections.iter_mut().filter_map(|connection| {
            connection
                .fill_within(Duration::from_millis(1))
                .map(|filled| filled.map(|()| connection.response("GET")))
        });
        panic!(
            "{count} of {AT_ONCE} requests reached the workload; the others: {:?}",
            told.collect::<Vec<_>>()
        );
    }
    drop(count);
    for connection in &mut connections {
        assert_eq!(connection.response("GET").text(), "here");
    }
    let opened =
        pair.api.metric("outrigger_tls_handshakes_total", &[("direction", "inbound"), ("result", "success")]);
    assert!((3.0..=20.0).contains(&opened), "{opened} mesh connections for {AT_ONCE} requests at once");
}

#[test]
fn a_hundred_fields_pass_over_http_2_and_one_more_is_told_431() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let url = format!("http://{API}:9000/file");
    for (count, status) in [(100, "HTTP/2 200"), (101, "HTTP/2 431")] {
        let fields: Vec<String> = (0..count).map(|number| format!("x-{number}: 1")).collect();
        let mut command = vec!["curl", "--silent", "--http2-prior-knowledge", "--head", &url];
        // Nothing that curl would add by itself.
        for field in fields.iter().map(String::as_str).chain(["user-agent:", "accept:"]) {
            command.extend(["--header", field]);
        }
        let said = pair.web.run(&command);
        assert!(said.starts_with(status), "{count} fields: {said}");
        if count == 101 {
            assert!(said.contains("proxy-status: outrigger; error=http_request_error"), "{said}");
        }
    }
    pair.web.wait_for_metric("outrigger_requests_total", &[("direction", "outbound"), ("code", "431")], 1.0);
}

#[test]
fn an_answer_to_head_and_a_304_keep_their_length_over_http_2() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let head = |port| {
        let url = format!("http://{API}:{port}/file");
        pair.web.run(&["curl", "--silent", "--http2-prior-knowledge", "--head", &url])
    };
    let said = head(9000);
    assert!(said.starts_with("HTTP/2 200") && said.contains("content-length: 200000"), "{said}");
    // nghttpd's 304 has no length.
    let _server = pair.api.serve(8080, |mut connection| {
        connection.send(frame(4, 0, 0, &[]));
        connection.take_until(b"SM\r\n\r\n");
        next_headers(&mut connection);
        // `:status: 304`, and `content-length` by its name in the static table.
        connection.send(frame(1, END_STREAM | END_HEADERS, 1, &[0x8b, 0x0f, 0x0d, 2, b'7', b'7']));
        let _ = connection.take_all();
    });
    let said = head(8080);
    assert!(said.starts_with("HTTP/2 304") && said.contains("content-length: 77"), "{said}");
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a small frame").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The payload of the next HEADERS.
fn next_headers(connection: &mut Connection) -> Vec<u8> {
    loop {
        let head = connection.take(9);
        let payload =
            connection.take(usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]));
        if head[3] == 1 {
            return payload;
        }
    }
}

/// A mesh connection over which the test speaks HTTP/2 itself, with the preface and SETTINGS sent.
fn raw_http2(pair: &Pair, outside: &crate::support::pod::Pod) -> Connection {
    let identity = pair.mesh.pki.identity(&shop("mallory"));
    let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
    let config = tls::client_config(Some(&identity), &["outrigger-h2"]);
    let (mut connection, _) = tls::client(&config, socket).expect("a handshake");
    connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    connection.send(frame(4, 0, 0, &[]));
    connection
}

/// `GET /` for the host `a`, by HPACK's static table.
const REQUEST: &[u8] = &[0x82, 0x86, 0x84, 0x41, 1, b'a'];
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HPACK literal with an indexed name of the static table, or a name of its own.
fn literal(index: u8, name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![index];
    for text in [name, value].into_iter().filter(|text| !text.is_empty()) {
        field.push(u8::try_from(text.len()).expect("a short text"));
        field.extend(text.bytes());
    }
    field
}

#[test]
fn host_stands_for_an_authority_that_is_missing_and_must_not_differ_from_one() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let authority = |value: &str| literal(0x41, "", value);
    let host = |value: &str| literal(0, "host", value);
    let with_port = format!("{API}:9000");
    for (fields, status) in [
        (vec![authority(API)], "200"),
        (vec![host(API)], "200"),
        (vec![host(&with_port)], "200"),
        (vec![authority(API), host(&API.to_uppercase())], "200"),
        (vec![authority(API), host("other")], "400"),
        (vec![authority(API), host(&with_port)], "400"),
        (vec![host(API), host(API)], "400"),
        (vec![host("two words")], "400"),
        (vec![], "400"),
    ] {
        // GET http, and the path.
        let mut block = vec![0x82, 0x86];
        block.extend(literal(0x04, "", "/file"));
        block.extend(fields.concat());
        let mut connection = pair.connect(9000);
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        connection.send(frame(4, 0, 0, &[]));
        connection.send(frame(1, END_STREAM | END_HEADERS, 1, &block));
        let answer = next_headers(&mut connection);
        // The static table's entries for `:status`; the dynamic table is empty yet.
        let told = match answer[0] {
            0x88 => "200",
            0x8c => "400",
            _ => "another status",
        };
        assert_eq!(told, status, "{}", String::from_utf8_lossy(&block));
    }
}

#[test]
fn a_flood_of_resets_ends_the_connection_and_nothing_else() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let workload = pair.api.serve_echo(8080);
    let mut flood = raw_http2(&pair, &outside);
    // CVE-2023-44487: each request is taken back before it can be answered.
    let ended = (0..20_000).any(|number| {
        let stream = 2 * number + 1;
        let mut frames = frame(1, END_STREAM | END_HEADERS, stream, REQUEST);
        frames.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        flood.try_send(frames).is_err()
    });
    assert!(ended, "20 000 resets were taken");
    assert_eq!(pair.get(8080, "/").status(), 200);
    assert!(workload.accepted() < 2_000, "{} connections reached the workload", workload.accepted());
}

#[test]
fn a_flood_of_continuations_ends_the_connection_and_nothing_else() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _workload = pair.api.serve_echo(8080);
    let mut flood = raw_http2(&pair, &outside);
    // A header section that never ends: VU#421644.
    flood.send(frame(1, END_STREAM, 1, REQUEST));
    let mut field = vec![0, 1, b'x', 0x7f, 0x81, 0x7e];
    field.extend([b'a'; 16_000]);
    let ended = (0..20_000).any(|_| flood.try_send(frame(9, 0, 1, &field)).is_err());
    assert!(ended, "320 MB of header section were taken");
    assert!(pair.api_sidecar.memory_kib("VmHWM") < 64 << 10);
    assert_eq!(pair.get(8080, "/").status(), 200);
}
