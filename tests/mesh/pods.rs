//! The test bed itself: without a mesh, pods reach each other and nothing is altered.

use crate::support::wire::Ending;
use crate::support::{API, Mesh, bytes};

#[test]
fn pods_reach_each_other_over_both_families_and_by_name() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _server = api.serve_echo(8080);
    assert!(web.connect(api.at(8080)).get(API, "/x").text().starts_with("GET /x HTTP/1.1\n"));
    let said =
        web.run(&["curl", "--silent", "--show-error", "--fail", &format!("http://{API}:8080/by-name")]);
    assert!(said.starts_with("GET /by-name HTTP/1.1\n"), "{said}");
    let six = api.serve_at((api.address6, 8081).into(), |mut connection| connection.send("six"));
    assert_eq!(web.connect((api.address6, 8081)).take_all(), (b"six".to_vec(), Ending::Closed));
    assert_eq!(six.accepted(), 1);
}

#[test]
fn a_large_body_crosses_unaltered_without_a_mesh() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    let _server = api.serve_http(8080, |request| crate::support::serve::ok(&request.body));
    let body = bytes(1 << 20);
    let mut request =
        format!("POST / HTTP/1.1\r\nHost: {API}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
    request.extend(&body);
    assert_eq!(web.connect(api.at(8080)).ask(request).body, body);
}
