//! Strict, permissive and audit: what is let in, and how peers are called.

use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::wire::Ending;
use crate::support::{API, Mesh, Pair, tls, wait};

/// A pod `api` with a sidecar in `mode`, and a pod without a sidecar.
fn server(mode: &str, config: &str) -> (Process, Pod, Pod, Mesh) {
    let mesh = Mesh::new();
    let (outside, api) = (mesh.pod("outside"), mesh.pod("api"));
    let sidecar = mesh.sidecar(&api).config(format!("mtls: {mode}\n{config}")).start();
    (sidecar, outside, api, mesh)
}

#[test]
fn a_strict_port_refuses_plaintext_and_says_so_to_http() {
    let (_sidecar, outside, api, _mesh) = server("strict", "");
    let workload = api.serve_echo(8080);
    let answer = outside.connect(api.at(8080)).get(API, "/");
    assert_eq!(answer.status(), 403, "{answer:?}");
    assert_eq!(answer.proxy_error().as_deref(), Some("http_request_denied"), "{answer:?}");
    let mut opaque = outside.connect(api.at(8080));
    opaque.send("\0\x01\x02 not http\n");
    assert_eq!(opaque.take_all(), (Vec::new(), Ending::Reset));
    assert_eq!(workload.accepted(), 0);
    api.wait_for_metric("outrigger_connections_refused_total", &[("reason", "plaintext")], 2.0);
}

#[test]
fn a_strict_port_resets_tls_without_the_mesh_s_mark() {
    let (_sidecar, outside, api, mesh) = server("strict", "");
    let workload = api.serve_echo(8080);
    let identity = mesh.pki.identity(&shop("web"));
    for alpn in [&[][..], &["h2", "http/1.1"], &["outrigger"]] {
        let socket = outside.try_connect(api.at(8080)).expect("connect");
        let outcome = tls::client(&tls::client_config(Some(&identity), alpn), socket);
        let error = outcome.err().unwrap_or_else(|| panic!("{alpn:?} got a handshake"));
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{alpn:?}: {error}");
    }
    assert_eq!(workload.accepted(), 0);
    api.wait_for_metric("outrigger_connections_refused_total", &[("reason", "tls_without_mesh")], 3.0);
}

#[test]
fn a_strict_port_does_not_let_a_silent_server_first_caller_wait_for_ever() {
    let (_sidecar, outside, api, _mesh) = server("strict", "");
    let workload = api.serve(3306, |mut connection| connection.send("banner"));
    let mut connection = outside.connect(api.at(3306));
    assert_eq!(connection.take_all(), (Vec::new(), Ending::Reset));
    assert_eq!(workload.accepted(), 0, "the banner of a strict port is for the mesh only");
    api.wait_for_metric("outrigger_connections_refused_total", &[("reason", "silent")], 1.0);
}

#[test]
fn a_permissive_port_lets_plaintext_in_without_an_identity() {
    let (_sidecar, outside, api, mesh) = server("permissive", "");
    let _workload = api.serve_echo(8080);
    let answer = outside
        .connect(api.at(8080))
        .ask(format!("GET / HTTP/1.1\r\nHost: {API}\r\nOutrigger-Client-Id: {}\r\n\r\n", shop("admin")));
    assert_eq!(answer.status(), 200);
    assert!(!answer.text().contains("outrigger-"), "an identity came in over plaintext: {}", answer.text());
    // Opaque bytes and a workload's own TLS are let in as well.
    let _echo = api.serve(7000, |mut connection| {
        let (all, _) = connection.take_all();
        connection.send(all);
    });
    let mut opaque = outside.connect(api.at(7000));
    opaque.send("\0\x01\x02");
    opaque.finish();
    assert_eq!(opaque.take_all().0, b"\0\x01\x02");
    let own = tls::server_config(&mesh.pki.identity("spiffe://a/b"), &["own"], false);
    let _own = api.serve(7443, move |connection| {
        let (mut inner, _) = tls::server(&own, connection).expect("the workload's own handshake");
        inner.send("inner");
    });
    let socket = outside.try_connect(api.at(7443)).expect("connect");
    let (mut inner, alpn) = tls::client(&tls::client_config(None, &["own"]), socket).expect("a handshake");
    assert_eq!((alpn.as_deref(), inner.take(5)), (Some("own"), b"inner".to_vec()));
    // Who comes with mesh TLS is known by its identity, as ever.
    let socket = outside.try_connect(api.at(8080)).expect("connect");
    let identity = mesh.pki.identity(&shop("web"));
    let (mut meshed, _) =
        tls::client(&tls::client_config(Some(&identity), &["outrigger-h1"]), socket).expect("a handshake");
    assert!(meshed.get(API, "/").text().contains(&format!("outrigger-client-id: {}", shop("web"))));
}

#[test]
fn audit_lets_plaintext_in_and_names_whom_strict_would_have_refused() {
    let (sidecar, outside, api, _mesh) = server("audit", "");
    let _workload = api.serve_echo(8080);
    assert_eq!(outside.connect(api.at(8080)).get(API, "/").status(), 200);
    wait::until("the log names the caller", || sidecar.output().contains(&outside.address.to_string()));
    api.wait_for_metric("outrigger_audit_would_refuse_total", &[], 1.0);
}

#[test]
fn one_port_may_be_exempt_from_strict() {
    let (_sidecar, outside, api, _mesh) = server("strict", "inbound: {ports: {9090: {mtls: permissive}}}");
    let (_exempt, _other) = (api.serve_echo(9090), api.serve_echo(8080));
    assert_eq!(outside.connect(api.at(9090)).get(API, "/").status(), 200);
    assert_eq!(outside.connect(api.at(8080)).get(API, "/").status(), 403);
}

#[test]
fn one_port_may_be_stricter_than_the_rest() {
    let (_sidecar, outside, api, _mesh) = server("permissive", "inbound: {ports: {8080: {mtls: strict}}}");
    let (_open, _closed) = (api.serve_echo(9090), api.serve_echo(8080));
    assert_eq!(outside.connect(api.at(9090)).get(API, "/").status(), 200);
    assert_eq!(outside.connect(api.at(8080)).get(API, "/").status(), 403);
}

#[test]
fn a_permissive_client_uses_tls_where_it_can_and_plaintext_where_it_must() {
    let pair = Pair::with("mtls: permissive", "");
    let plain = pair.mesh.pod("plain");
    pair.web.add_hosts(&format!("{} plain.shop.svc.cluster.local", plain.address));
    let (_meshed, _plain) = (pair.api.serve_echo(8080), plain.serve_echo(8080));
    let answer = pair.get(8080, "/");
    assert!(
        answer.text().contains(&format!("outrigger-client-id: {}", shop("web"))),
        "{answer:?} {}",
        answer.text()
    );
    let answer = pair.web.connect(plain.at(8080)).get("plain.shop.svc.cluster.local", "/");
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(!answer.text().contains("outrigger-"), "{}", answer.text());
}

#[test]
fn a_permissive_client_never_falls_back_for_a_peer_known_to_be_meshed() {
    let mesh = Mesh::new();
    let (web, plain) = (mesh.pod("web"), mesh.pod("plain"));
    web.add_hosts(&format!("{} {API}", plain.address));
    let _sidecar =
        mesh.sidecar(&web).config("mtls: permissive\noutbound: {meshDomains: [svc.cluster.local]}").start();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = std::sync::Arc::clone(&seen);
    let server = plain.serve(8080, move |mut connection| {
        let first = connection.take(1);
        sink.lock().expect("not poisoned").extend(first);
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let answer = web.connect(plain.at(8080)).get(API, "/");
    assert_eq!(answer.status(), 502, "{answer:?}");
    assert!(server.accepted() > 0);
    // 22 begins a TLS record; a `G` would be the request in plaintext.
    assert!(seen.lock().expect("not poisoned").iter().all(|byte| *byte == 22), "{seen:?}");
}

#[test]
fn a_strict_client_sends_no_plaintext_to_a_peer_of_the_mesh_that_has_no_sidecar() {
    let mesh = Mesh::new();
    let (web, plain) = (mesh.pod("web"), mesh.pod("plain"));
    web.add_hosts(&format!("{} {API}", plain.address));
    let _sidecar = mesh.sidecar(&web).config(crate::support::mesh::web_config()).start();
    let _server = plain.serve_echo(8080);
    assert_eq!(web.connect(plain.at(8080)).get(API, "/").status(), 502);
    let answer = web.connect(plain.at(8080)).get(&plain.address.to_string(), "/");
    assert_eq!((answer.status(), answer.proxy_error().as_deref()), (502, Some("destination_ip_prohibited")));
}

#[test]
fn a_permissive_client_without_a_certificate_source_speaks_plaintext_but_never_to_the_mesh() {
    let mesh = Mesh::new();
    let (web, plain) = (mesh.pod("web"), mesh.pod("plain"));
    web.add_hosts(&format!("{} {API} plain.example", plain.address));
    let config = "mtls: permissive\noutbound: {meshDomains: [svc.cluster.local]}";
    let _sidecar = mesh.sidecar(&web).without_certificate_files().trust_bundle(None).config(config).start();
    let server = plain.serve_echo(8080);
    assert_eq!(web.connect(plain.at(8080)).get("plain.example", "/").status(), 200);
    let accepted = server.accepted();
    let answer = web.connect(plain.at(8080)).get(API, "/");
    assert_eq!((answer.status(), answer.proxy_error().as_deref()), (503, Some("proxy_configuration_error")));
    assert_eq!(server.accepted(), accepted);
}
