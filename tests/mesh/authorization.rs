//! `inbound.allow`: which identities may do what.

use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::wire::Ending;
use crate::support::{API, Connection, Mesh, Pair, tls, web_config};

const RULES: &str = r#"
inbound:
  allow:
    - identities: ["spiffe://cluster.local/ns/shop/sa/web"]
      ports: [8080]
      methods: [GET, POST]
      paths: [{prefix: /orders}, {exact: /health}]
    - identities: ["spiffe://cluster.local/ns/ops/*"]
      ports: [8080, 7000]
    - identities: ["spiffe://cluster.local/ns/shop/sa/web"]
      ports: [9000]
"#;

struct Bed {
    _sidecar: Process,
    outside: Pod,
    api: Pod,
    mesh: Mesh,
}

impl Bed {
    fn new() -> Self {
        let mesh = Mesh::new();
        let (outside, api) = (mesh.pod("outside"), mesh.pod("api"));
        let _sidecar = mesh.sidecar(&api).config(RULES).start();
        Self { _sidecar, outside, api, mesh }
    }

    fn connect(&self, id: &str, port: u16, alpn: &str) -> Connection {
        let identity = self.mesh.pki.identity(id);
        let socket = self.outside.try_connect(self.api.at(port)).expect("connect");
        tls::client(&tls::client_config(Some(&identity), &[alpn]), socket).expect("a handshake").0
    }
}

#[test]
fn a_request_must_satisfy_one_rule_as_a_whole() {
    let bed = Bed::new();
    let _servers = (bed.api.serve_echo(8080), bed.api.serve_echo(9000));
    let (web, ops, other) = (shop("web"), "spiffe://cluster.local/ns/ops/sa/any".to_owned(), shop("webby"));
    for (id, port, method, path, status) in [
        (&web, 8080, "GET", "/orders", 200),
        (&web, 8080, "POST", "/orders/7?x=/admin", 200),
        (&web, 8080, "GET", "/health", 200),
        (&web, 8080, "GET", "/health/deep", 403),
        (&web, 8080, "GET", "/ordersandmore", 403),
        (&web, 8080, "GET", "/admin?x=/orders", 403),
        (&web, 8080, "DELETE", "/orders", 403),
        (&web, 8080, "GET", "/orders/../admin", 403),
        (&web, 8080, "GET", "/orders/%2e%2e/admin", 403),
        (&web, 9000, "DELETE", "/anything", 200),
        (&ops, 8080, "DELETE", "/admin", 200),
        (&ops, 9000, "GET", "/", 403),
        (&other, 8080, "GET", "/orders", 403),
        (&other, 9000, "GET", "/", 403),
    ] {
        let answer = bed
            .connect(id, port, "outrigger-h1")
            .ask(format!("{method} {path} HTTP/1.1\r\nHost: {API}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(answer.status(), status, "{id} {port} {method} {path}: {answer:?}");
        if status == 403 {
            assert_eq!(answer.proxy_error().as_deref(), Some("http_request_denied"), "{answer:?}");
        }
    }
    bed.api.wait_for_metric("outrigger_requests_total", &[("direction", "inbound"), ("code", "403")], 8.0);
}

#[test]
fn a_port_with_rules_on_methods_or_paths_refuses_opaque_bytes() {
    let bed = Bed::new();
    let (guarded, open) = (
        bed.api.serve_echo(8080),
        bed.api.serve(7000, |mut connection| {
            let got = connection.take(3);
            connection.send(got);
        }),
    );
    // Else a request could be smuggled past the rules as bytes that nobody parses.
    let mut smuggler = bed.connect(&shop("web"), 8080, "outrigger-tcp");
    let _ = smuggler.try_send(format!("DELETE /admin HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    assert!(smuggler.try_head().is_err());
    assert_eq!(guarded.accepted(), 0);
    let mut allowed = bed.connect("spiffe://cluster.local/ns/ops/sa/any", 7000, "outrigger-tcp");
    allowed.send("abc");
    assert_eq!(allowed.take(3), b"abc");
    let mut denied = bed.connect(&shop("web"), 7000, "outrigger-tcp");
    let _ = denied.try_send("abc");
    assert!(denied.take_all().0.is_empty());
    assert_eq!(open.accepted(), 1, "who is not allowed does not reach the workload");
}

#[test]
fn a_method_that_nobody_knows_is_told_403_where_rules_forbid_it() {
    let pair = Pair::with(&web_config(), RULES);
    let server = pair.api.serve_echo(8080);
    for method in ["get", "BREW", "x-y"] {
        let answer = pair.connect(8080).ask(format!("{method} /orders HTTP/1.1\r\nHost: {API}\r\n\r\n"));
        assert_eq!(answer.status(), 403, "{method}: {answer:?}");
        assert_eq!(answer.proxy_error().as_deref(), Some("http_request_denied"), "{answer:?}");
    }
    assert_eq!(server.accepted(), 0);
}

#[test]
fn plaintext_has_no_identity_and_so_satisfies_no_rule_that_names_one() {
    let mesh = Mesh::new();
    let (outside, api) = (mesh.pod("outside"), mesh.pod("api"));
    let _sidecar = mesh.sidecar(&api).config(format!("mtls: permissive\n{RULES}")).start();
    let _server = api.serve_echo(8080);
    assert_eq!(outside.connect(api.at(8080)).get(API, "/orders").status(), 403);
    let mut opaque = outside.connect(api.at(7000));
    opaque.send("\0\x01\x02");
    assert_eq!(opaque.take_all(), (Vec::new(), Ending::Reset));
}
