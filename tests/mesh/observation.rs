//! What can be seen: metrics, readiness, access log, admin port.

use serde_json::Value;

use crate::support::pki::shop;
use crate::support::serve::respond;
use crate::support::{API, Mesh, Pair, wait};

#[test]
fn every_request_is_counted_once_with_who_what_and_how_long() {
    let pair = Pair::new();
    let _server = pair.api.serve_http(8080, |request| match request.target() {
        "/teapot" => respond("418 I'm a teapot", "", "short and stout"),
        _ => respond("200 OK", "", "ok"),
    });
    let mut connection = pair.connect(8080);
    for path in ["/", "/", "/teapot"] {
        connection.get(API, path);
    }
    for (pod, direction, peer) in [(&pair.web, "outbound", shop("api")), (&pair.api, "inbound", shop("web"))]
    {
        let labels =
            |code| [("direction", direction), ("tls", "mesh"), ("peer", peer.as_str()), ("code", code)];
        pod.wait_for_metric("outrigger_requests_total", &labels("200"), 2.0);
        pod.wait_for_metric("outrigger_requests_total", &labels("418"), 1.0);
        assert_eq!(pod.metric("outrigger_requests_total", &labels("200")), 2.0);
        assert_eq!(pod.metric("outrigger_request_duration_seconds_count", &labels("200")[..3]), 3.0);
        assert_eq!(
            pod.metric("outrigger_tls_handshakes_total", &[("direction", direction), ("result", "success")]),
            1.0
        );
        let expiry = pod.metric("outrigger_certificate_expiry_seconds", &[("kind", "workload")]);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        assert!((23.0 * 3600.0..24.5 * 3600.0).contains(&(expiry - now)), "{expiry}");
    }
}

#[test]
fn opaque_connections_and_their_bytes_are_counted() {
    let pair = Pair::new();
    let _server = pair.api.serve(7000, |mut connection| {
        let (all, _) = connection.take_all();
        connection.send(all);
    });
    let mut connection = pair.connect(7000);
    connection.send([0; 1000]);
    connection.finish();
    assert_eq!(connection.take_all().0.len(), 1000);
    for (pod, direction) in [(&pair.web, "outbound"), (&pair.api, "inbound")] {
        let labels = [("direction", direction), ("tls", "mesh")];
        pod.wait_for_metric("outrigger_tcp_connections_closed_total", &labels, 1.0);
        assert_eq!(pod.metric("outrigger_tcp_connections_opened_total", &labels), 1.0);
        assert_eq!(pod.metric("outrigger_tcp_open_connections", &labels), 0.0);
        assert_eq!(pod.metric("outrigger_tcp_received_bytes_total", &labels), 1000.0);
        assert_eq!(pod.metric("outrigger_tcp_sent_bytes_total", &labels), 1000.0);
    }
}

#[test]
fn the_access_log_has_a_line_of_json_a_request_and_no_secrets() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let api_sidecar = mesh.sidecar(&api).arguments(["--access-log", "stdout"]).start();
    let _web_sidecar = mesh.sidecar(&web).config(crate::support::mesh::web_config()).start();
    let _server = api.serve_echo(8080);
    web.connect(api.at(8080)).ask(format!(
        "POST /orders?q=%22a HTTP/1.1\r\nHost: {API}\r\nAuthorization: Bearer top-secret\r\nCookie: crumb\r\nContent-Length: 4\r\n\r\nbody"
    ));
    let line = wait::eventually("the request is logged", || {
        let output = api_sidecar.output();
        output.lines().find(|line| line.contains("/orders")).map(str::to_owned)
    });
    let entry: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
    for (key, value) in [
        ("direction", Value::from("inbound")),
        ("method", "POST".into()),
        ("authority", API.into()),
        ("code", 200.into()),
        ("peer", shop("web").into()),
        ("tls", "mesh".into()),
        ("received_bytes", 4.into()),
    ] {
        assert_eq!(entry[key], value, "{key} in {line}");
    }
    for secret in ["top-secret", "crumb", "body\"", "authorization"] {
        assert!(!api_sidecar.output().to_ascii_lowercase().contains(secret), "{secret} was logged");
    }
}

#[test]
fn a_sidecar_that_has_no_certificate_yet_is_alive_and_not_ready() {
    let mesh = Mesh::new();
    let pod = mesh.pod("api");
    let token = pod.write("token", "nobody-will-ask").display().to_string();
    let mut sidecar = mesh
        .sidecar(&pod)
        .without_certificate_files()
        .arguments(["--ca", "127.0.0.1:1", "--token-file", &token])
        .without_waiting()
        .start();
    wait::until("the health port answers", || pod.try_connect(([127, 0, 0, 1], 15021)).is_ok());
    assert_eq!(pod.ask_own(15021, "/livez").status(), 200);
    let answer = pod.ask_own(15021, "/readyz");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().contains("certificate"), "it says why: {}", answer.text());
    pod.wait_for_metric("outrigger_certificate_failures_total", &[], 1.0);
    assert!(sidecar.running());
}

#[test]
fn certificate_files_that_do_not_exist_are_named_in_the_log_and_in_readiness() {
    let mesh = Mesh::new();
    let pod = mesh.pod("api");
    let mut sidecar = mesh
        .sidecar(&pod)
        .without_certificate_files()
        .arguments(["--certificate", "/nowhere/tls.crt", "--key", "/nowhere/tls.key"])
        .without_waiting()
        .start();
    pod.wait_for_metric("outrigger_certificate_failures_total", &[], 3.0);
    let answer = pod.ask_own(15021, "/readyz");
    assert_eq!(answer.status(), 503);
    let named = "there is no file `/nowhere/tls.crt`, `/nowhere/tls.key`";
    for said in [answer.text(), sidecar.output()] {
        assert!(said.contains(named) && said.contains("--certificate, --key and --trust-bundle"), "{said}");
    }
    let output = sidecar.output();
    assert_eq!(output.lines().filter(|line| line.contains("ERROR")).count(), 1, "once: {output}");
    assert!(sidecar.running(), "it goes on looking");
}

#[test]
fn the_log_level_is_shown_and_changed_and_one_that_does_not_exist_is_refused() {
    let pair = Pair::new();
    assert_eq!(pair.web.admin("/log")["level"], "info");
    let set = |level: &str| {
        let length = level.len();
        let request =
            format!("POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{level}");
        pair.web.connect(([127, 0, 0, 1], 15000)).ask(request)
    };
    let answer = set("foo");
    assert_eq!(answer.status(), 400);
    assert!(answer.text().contains("off, error, warn, info, debug, trace"), "{}", answer.text());
    assert_eq!(pair.web.admin("/log")["level"], "info");
    assert!(!pair.web_sidecar.output().contains("DEBUG"), "{}", pair.web_sidecar.output());
    assert_eq!(set("debug").status(), 200);
    assert_eq!(pair.web.admin("/log")["level"], "debug");
    pair.get(8080, "/");
    wait::until("it counts", || pair.web_sidecar.output().contains("DEBUG"));
}

#[test]
fn the_admin_port_shows_the_state_and_no_secret() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    pair.get(8080, "/");
    let config = pair.web.admin("/config");
    assert!(config.to_string().contains("svc.cluster.local"), "{config}");
    let certificates = pair.web.admin("/certificates");
    assert_eq!(certificates["workload"]["id"], shop("web"), "{certificates}");
    let upstreams = pair.web.admin("/upstreams");
    assert!(upstreams.to_string().contains(&pair.api.at(8080).to_string()), "{upstreams}");
    assert!(pair.web.admin("/version").to_string().contains(env!("CARGO_PKG_VERSION")));
    let key = std::fs::read_to_string(pair.web.directory.join("tls.key")).expect("the key");
    let secret = key.lines().nth(1).expect("a line of it");
    for shown in [&config, &certificates, &upstreams] {
        assert!(!shown.to_string().contains(secret));
    }
}

#[test]
fn the_admin_port_answers_only_on_loopback_and_only_to_loopback_names() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let answer = pair.web.connect(([127, 0, 0, 1], 15000)).get("rebound.example", "/config");
    assert!([403, 421].contains(&answer.status()), "{answer:?}");
    let answer = pair.web.connect(([127, 0, 0, 1], 15000)).get("localhost:15000", "/quit");
    assert_eq!(answer.status(), 405, "what changes state is POST");
    // From outside, the proxy's own ports are redirected to the inbound side, which resets them.
    for port in [15000, 15001, 15006] {
        let answer = outside.try_connect(pair.web.at(port)).map(|socket| {
            let mut connection = crate::support::Connection::new(socket);
            let _ = connection.try_send("GET /config HTTP/1.1\r\nHost: localhost\r\n\r\n");
            connection.take_all()
        });
        assert!(
            answer.as_ref().is_err() || answer.as_ref().is_ok_and(|(bytes, _)| bytes.is_empty()),
            "{port}: {answer:?}"
        );
    }
    // Metrics and health are for everyone who can reach the pod.
    for (port, path) in [(15020, "/metrics"), (15021, "/readyz")] {
        assert_eq!(outside.connect(pair.web.at(port)).get(&pair.web.address.to_string(), path).status(), 200);
    }
}

#[test]
fn a_meshed_pod_reads_the_metrics_and_the_health_of_another() {
    let pair = Pair::new();
    for host in [API.to_owned(), pair.api.address.to_string()] {
        for (port, path) in [(15020, "/metrics"), (15021, "/readyz")] {
            let answer = pair.web.connect(pair.api.at(port)).get(&host, path);
            assert_eq!(answer.status(), 200, "{host}:{port}{path}: {answer:?} {}", answer.text());
        }
    }
}
