//! HTTP/1.0 and HTTP/1.1 through both sidecars, as programs speak it that know of no proxy.

use crate::support::serve::{ok, respond};
use crate::support::wire::Ending;
use crate::support::{API, Pair, bytes};

#[test]
fn a_request_crosses_both_sidecars_over_mesh_tls() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let answer = pair.get(8080, "/orders?id=1");
    assert_eq!(answer.status(), 200);
    assert!(answer.text().starts_with("GET /orders?id=1 HTTP/1.1\n"), "{}", answer.text());
    assert!(answer.text().contains(&format!("host: {API}\n")), "{}", answer.text());
    pair.web.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "outbound"), ("tls", "mesh"), ("code", "200")],
        1.0,
    );
    pair.api.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "inbound"), ("tls", "mesh"), ("code", "200")],
        1.0,
    );
}

#[test]
fn http_1_0_gets_its_own_version_and_the_connection_closed() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| {
        assert_eq!(request.start, "GET /old HTTP/1.0", "the workload sees the version that was spoken");
        ok("old")
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("GET /old HTTP/1.0\r\nHost: {API}\r\n\r\n"));
    let (answer, end) = connection.take_all();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.") && answer.contains(" 200 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nold"), "a 1.0 client gets no chunks: {answer}");
    assert_eq!(end, Ending::Closed);
}

#[test]
fn http_1_0_with_a_response_of_unknown_length_gets_no_chunks() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end");
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("GET / HTTP/1.0\r\nHost: {API}\r\n\r\n"));
    let (answer, end) = connection.take_all();
    let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
    assert!(answer.ends_with("\r\n\r\nuntil the end") && !answer.contains("transfer-encoding"), "{answer}");
    assert_eq!(end, Ending::Closed);
}

#[test]
fn one_connection_carries_many_requests() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let mut connection = pair.connect(8080);
    for number in 0..50 {
        let answer = connection.get(API, &format!("/{number}"));
        assert!(answer.text().starts_with(&format!("GET /{number} HTTP/1.1\n")), "{}", answer.text());
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let mut connection = pair.connect(8080);
    let mut requests = String::new();
    for number in 0..20 {
        requests += &format!("POST /{number} HTTP/1.1\r\nHost: {API}\r\nContent-Length: 3\r\n\r\nabc");
    }
    connection.send(requests);
    for number in 0..20 {
        let answer = connection.response("POST").text();
        assert!(answer.starts_with(&format!("POST /{number} ")) && answer.ends_with("\n\nabc"), "{answer}");
    }
}

#[test]
fn chunked_bodies_cross_in_both_directions_with_their_trailers() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        while let Some(request) = connection.request() {
            let seen = request.trailer("x-checksum").unwrap_or("no trailer").to_owned();
            let length = request.body.len();
            connection.send(format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-seen, x-answer\r\n\r\n\
                 4\r\nfour\r\n6\r\nsix666\r\n0\r\nx-seen: {seen} {length}\r\nx-answer: 42\r\n\r\n"
            ));
        }
    });
    let mut connection = pair.connect(8080);
    for _ in 0..2 {
        let answer = connection.ask(format!(
            "POST / HTTP/1.1\r\nHost: {API}\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-checksum\r\n\r\n\
             5\r\nhello\r\n7;extension=1\r\n, world\r\n0\r\nx-checksum: abc\r\n\r\n"
        ));
        assert_eq!(answer.text(), "foursix666");
        assert_eq!(answer.trailer("x-seen"), Some("abc 12"), "{answer:?}");
        assert_eq!(answer.trailer("x-answer"), Some("42"), "{answer:?}");
    }
}

#[test]
fn a_large_chunked_body_arrives_unaltered() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| ok(&request.body));
    let body = bytes(3_000_000);
    let mut request =
        format!("POST / HTTP/1.1\r\nHost: {API}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
    for chunk in body.chunks(70_001) {
        request.extend(format!("{:x}\r\n", chunk.len()).bytes());
        request.extend(chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    let mut connection = pair.connect(8080);
    assert!(connection.ask(request).body == body, "the body was altered on its way");
}

#[test]
fn a_response_of_unknown_length_arrives_whole() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n");
        connection.send(bytes(300_000));
    });
    let answer = pair.get(8080, "/");
    assert_eq!(answer.status(), 200);
    assert!(answer.body == bytes(300_000), "{} bytes", answer.body.len());
}

#[test]
fn a_response_of_unknown_length_that_breaks_off_is_not_taken_for_whole() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n");
        connection.reset();
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    let (rest, _) = connection.take_all();
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(
        !rest.ends_with("0\r\n\r\n") || rest.contains(" 502 "),
        "a broken body must not end well: {rest}"
    );
}

#[test]
fn head_has_the_length_and_no_body_and_the_connection_goes_on() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.method() {
        "HEAD" => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n".as_bytes().to_vec(),
        _ => ok("body"),
    });
    let mut connection = pair.connect(8080);
    let answer = connection.ask(format!("HEAD / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    assert_eq!((answer.status(), answer.header("content-length")), (200, Some("12345")));
    assert_eq!(connection.get(API, "/").text(), "body");
}

#[test]
fn responses_204_and_304_have_no_body_and_the_connection_goes_on() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.target() {
        "/204" => b"HTTP/1.1 204 No Content\r\nx-is: 204\r\n\r\n".to_vec(),
        "/304" => b"HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\nContent-Length: 77\r\n\r\n".to_vec(),
        _ => ok("body"),
    });
    let mut connection = pair.connect(8080);
    let answer = connection.get(API, "/204");
    assert_eq!((answer.status(), answer.header("x-is")), (204, Some("204")));
    assert!(
        answer.header_values("transfer-encoding").is_empty() && answer.header("content-length").is_none(),
        "{answer:?}"
    );
    let answer = connection.get(API, "/304");
    assert_eq!((answer.status(), answer.header("etag")), (304, Some("\"a\"")));
    assert_eq!(answer.header("content-length"), Some("77"), "what a 200 would have (RFC 9110 8.6)");
    assert!(answer.header_values("transfer-encoding").is_empty(), "{answer:?}");
    let answer = connection.ask(format!("HEAD /304 HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    assert_eq!((answer.status(), answer.header("content-length")), (304, Some("77")));
    assert_eq!(connection.get(API, "/after").text(), "body");
    let mut connection = pair.connect(8080);
    connection.send(format!("GET /304 HTTP/1.0\r\nHost: {API}\r\n\r\n"));
    let (answer, end) = connection.take_all();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("content-length: 77\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert_eq!(end, Ending::Closed);
}

#[test]
fn an_interim_100_reaches_the_client_when_the_workload_sends_it() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        let head = connection.head();
        assert_eq!(head.header("expect").map(str::to_ascii_lowercase).as_deref(), Some("100-continue"));
        connection.send("HTTP/1.1 100 Continue\r\n\r\n");
        let body = connection.take(5);
        connection.send(ok(body));
    });
    let mut connection = pair.connect(8080);
    connection
        .send(format!("PUT / HTTP/1.1\r\nHost: {API}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"));
    // The body is sent only after the interim response: who waits for the other is now decided.
    assert_eq!(connection.head().status(), 100);
    connection.send("hello");
    let answer = connection.response("PUT");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
}

#[test]
fn no_interim_100_is_made_up_when_the_workload_sends_none() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.head();
        connection.send(respond("417 Expectation Failed", "Connection: close\r\n", "no"));
    });
    let mut connection = pair.connect(8080);
    connection
        .send(format!("PUT / HTTP/1.1\r\nHost: {API}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"));
    assert_eq!(connection.head().status(), 417, "the first response is the workload's own");
}

#[test]
fn curl_and_nginx_speak_through_the_mesh() {
    let pair = Pair::new();
    let root = pair.api.directory.join("www");
    std::fs::create_dir(&root).expect("make a directory");
    std::fs::write(root.join("file"), bytes(200_000)).expect("write a file");
    let config = format!(
        "daemon off; pid {d}/nginx.pid; error_log stderr; master_process off;\nuser root;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
         server {{ listen 8080; root {d}/www; }} }}",
        d = pair.api.directory.display()
    );
    let config = pair.api.write("nginx.conf", config).display().to_string();
    let _nginx = pair.api.start(&["nginx", "-c", &config]);
    let at_home = "http://127.0.0.1:8080/file";
    crate::support::wait::until("nginx serves", || {
        pair.api.try_run(&["curl", "-sf", at_home]).status.success()
    });
    let url = format!("http://{API}:8080/file");
    let target = pair.web.directory.join("got").display().to_string();
    pair.web.run(&["curl", "--silent", "--show-error", "--fail", "--output", &target, &url]);
    assert!(std::fs::read(&target).expect("curl wrote a file") == bytes(200_000));
    let range = pair.web.run(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--range",
        "0-9",
        "--write-out",
        "%{http_code}",
        "--output",
        &target,
        &url,
    ]);
    assert_eq!(range, "206");
    assert_eq!(std::fs::read(&target).expect("curl wrote a file"), bytes(10));
}
