//! What happens to fields on the way: RFC 9110 section 7.6.1, and the mesh's own.

use crate::support::pki::shop;
use crate::support::serve::{ok, respond};
use crate::support::{API, Message, Pair};

/// The fields that `serve_echo` says it received.
fn received(answer: &Message) -> Vec<String> {
    let text = answer.text();
    text.lines().skip(1).take_while(|line| !line.is_empty()).map(str::to_owned).collect()
}

fn names(fields: &[String]) -> Vec<&str> {
    fields.iter().filter_map(|field| field.split(':').next()).collect()
}

#[test]
fn hop_by_hop_fields_of_a_request_end_at_the_first_hop() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let answer = pair.connect(8080).ask(format!(
        "GET / HTTP/1.1\r\nHost: {API}\r\nConnection: keep-alive, x-hop, X-Other\r\nX-Hop: 1\r\nx-other: 2\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: keep-alive\r\nTE: gzip\r\nX-Stays: here\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    ));
    let fields = received(&answer);
    let names = names(&fields);
    for gone in ["x-hop", "x-other", "keep-alive", "proxy-connection", "te"] {
        assert!(!names.contains(&gone), "{gone} is for one hop only: {fields:?}");
    }
    assert!(fields.contains(&"x-stays: here".to_owned()), "{fields:?}");
    let forwarded = fields.iter().find(|field| field.starts_with("x-forwarded-for: "));
    assert!(
        forwarded.is_some_and(|field| field.contains("192.0.2.1")),
        "a sidecar keeps what was there: {fields:?}"
    );
}

#[test]
fn a_field_that_must_not_be_nominated_survives_connection() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let answer = pair.connect(8080).ask(format!(
        "GET / HTTP/1.1\r\nHost: {API}\r\nConnection: x-forwarded-for, host\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    ));
    let fields = received(&answer);
    assert!(
        fields.iter().any(|field| field.starts_with("x-forwarded-for: ") && field.contains("192.0.2.1")),
        "{fields:?}"
    );
    assert!(fields.contains(&format!("host: {API}")), "{fields:?}");
}

#[test]
fn hop_by_hop_fields_of_a_response_end_at_the_first_hop() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |_| {
        respond(
            "200 OK",
            "Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Stays: here\r\n",
            "ok",
        )
    });
    let answer = pair.get(8080, "/");
    assert_eq!(answer.header("x-stays"), Some("here"));
    for gone in ["x-hop", "keep-alive", "proxy-connection"] {
        assert!(answer.header(gone).is_none(), "{gone} is for one hop only: {answer:?}");
    }
}

#[test]
fn an_offered_upgrade_to_h2c_is_not_taken_up() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let answer = pair.connect(8080).ask(format!(
        "GET / HTTP/1.1\r\nHost: {API}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    ));
    assert_eq!(answer.status(), 200);
    let fields = received(&answer);
    let names = names(&fields);
    assert!(!names.contains(&"upgrade") && !names.contains(&"http2-settings"), "{fields:?}");
}

#[test]
fn the_workload_learns_who_called_and_a_caller_cannot_forge_it() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let answer = pair.connect(8080).ask(format!(
        "GET / HTTP/1.1\r\nHost: {API}\r\noutrigger-client-id: {}\r\nOutrigger-Client-Id: {}\r\noutrigger-version: 2\r\noutrigger-anything: x\r\n\r\n",
        shop("admin"),
        shop("root")
    ));
    let fields = received(&answer);
    let own: Vec<_> = fields.iter().filter(|field| field.starts_with("outrigger-")).collect();
    assert_eq!(own, [&format!("outrigger-client-id: {}", shop("web"))], "{fields:?}");
}

#[test]
fn a_workload_s_own_outrigger_fields_do_not_reach_the_caller() {
    let pair = Pair::new();
    let _server = pair
        .api
        .serve_http(8080, |_| respond("200 OK", "outrigger-version: 9\r\nOutrigger-Client-Id: x\r\n", "ok"));
    let answer = pair.get(8080, "/");
    assert!(
        answer.headers.iter().all(|(name, _)| !name.to_ascii_lowercase().starts_with("outrigger-")),
        "{answer:?}"
    );
}

#[test]
fn outside_the_mesh_no_field_of_the_mesh_is_sent() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _server = outside.serve_echo(8080);
    // The address is in the mesh's network: plaintext takes the statement that it has no sidecar.
    drop(pair.web_sidecar);
    let config = "outbound: {meshNetworks: [10.77.0.0/24], unmeshed: [10.77.0.3/32]}";
    let _sidecar = pair.mesh.sidecar(&pair.web).config(config).rules_stand().start();
    let answer = pair
        .web
        .connect(outside.at(8080))
        .ask("GET / HTTP/1.1\r\nHost: 10.77.0.3:8080\r\nOutrigger-Client-Id: x\r\n\r\n");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(!answer.text().contains("outrigger-"), "{}", answer.text());
}

#[test]
fn repeated_fields_and_odd_bytes_in_values_stay_as_they_were() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| {
        let cookies = request.header_values("x-many").join("|");
        let mut response = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nx-odd: caf".to_vec();
        response.extend([0xe9]);
        response.extend(format!("\r\nContent-Length: {}\r\n\r\n{cookies}", cookies.len()).bytes());
        response
    });
    let answer = pair
        .connect(8080)
        .ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\nX-Many: one\r\nX-Many: two, three\r\n\r\n"));
    assert_eq!(answer.text(), "one|two, three");
    assert_eq!(answer.header_values("set-cookie"), ["a=1", "b=2"]);
    assert!(answer.header("x-odd").is_some_and(|value| value.starts_with("caf")), "{answer:?}");
}

#[test]
fn a_request_with_two_lengths_never_reaches_the_workload_as_two_requests() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| ok(&request.start));
    let mut connection = pair.connect(8080);
    connection.send(format!(
        "POST / HTTP/1.1\r\nHost: {API}\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: {API}\r\n\r\n"
    ));
    connection.finish();
    let (answer, _) = connection.take_all();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    // RFC 9112 6.1: the length by chunks counts and the connection closes after it, or 400.
    assert!(!answer.contains("/smuggled"), "{answer}");
    assert!(answer.starts_with("HTTP/1.1 400 ") || answer.contains("POST / HTTP/1.1"), "{answer}");
}

/// The README says which.
#[test]
fn bytes_that_no_target_may_hold_are_refused_and_all_others_arrive_but_a_fragment() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let ask = |target: &[u8]| {
        let rest = format!(" HTTP/1.1\r\nHost: {API}\r\n\r\n");
        pair.connect(8080).ask([b"GET ", target, rest.as_bytes()].concat())
    };
    for (before, refused) in [("/a", "<>`"), ("/a?b", "<>\"")] {
        for byte in b'!'..=0xff {
            let target = [before.as_bytes(), &[byte], b"c"].concat();
            let answer = ask(&target);
            if refused.contains(char::from(byte)) || byte > b'~' {
                let told = (answer.status(), answer.proxy_error());
                assert_eq!(told, (400, Some("http_request_error".to_owned())), "{before} {byte:#x}");
                continue;
            }
            let arrives = if byte == b'#' { before } else { std::str::from_utf8(&target).expect("ASCII") };
            let text = answer.text();
            assert!(text.starts_with(&format!("GET {arrives} HTTP/1.1\n")), "{before} {byte:#x}: {text}");
        }
    }
    let text = ask("/é?é".as_bytes()).text();
    assert!(text.starts_with("GET /é?é HTTP/1.1\n"), "{text}");
}
