//! Who is believed: each wrong certificate there is, shown by a client and by a server.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::support::pki::{Identity, Leaf, Pki, shop};
use crate::support::{API, Mesh, Pair, tls, wait, web_config};

/// Certificates that nobody in the mesh may accept, each with what is wrong with it.
fn wrong_certificates(pki: &Pki) -> Vec<(&'static str, Identity)> {
    let now = SystemTime::now();
    let day = Duration::from_secs(24 * 3600);
    let right = || Leaf::of(&shop("api"));
    vec![
        ("signed by another root", Pki::new().identity(&shop("api"))),
        ("another trust domain", pki.identity("spiffe://elsewhere.example/ns/shop/sa/api")),
        (
            "expired",
            pki.issue(&Leaf {
                not_before: now - 2 * day,
                not_after: now - Duration::from_secs(60),
                ..right()
            }),
        ),
        ("not yet valid", pki.issue(&Leaf { not_before: now + day, not_after: now + 2 * day, ..right() })),
        ("no SPIFFE ID", pki.issue(&Leaf { uris: Vec::new(), ..right() })),
        (
            "a URI that is no SPIFFE ID",
            pki.issue(&Leaf { uris: vec!["https://cluster.local/ns/shop/sa/api".into()], ..right() }),
        ),
        ("two SPIFFE IDs", pki.issue(&Leaf { uris: vec![shop("api"), shop("web")], ..right() })),
    ]
}

#[test]
fn a_server_with_a_wrong_certificate_gets_no_request() {
    let mesh = Mesh::new();
    let (web, fake) = (mesh.pod("web"), mesh.pod("fake"));
    web.add_hosts(&format!("{} {API} pinned.shop.svc.cluster.local", fake.address));
    let config = format!(
        "{}  pinned: {{hosts: [pinned.shop.svc.cluster.local], identity: \"{}\"}}\n",
        web_config(),
        shop("api")
    );
    let _sidecar = mesh.sidecar(&web).config(config).start();
    let mut cases: Vec<(&str, &str, Identity)> =
        wrong_certificates(&mesh.pki).into_iter().map(|(what, identity)| (what, API, identity)).collect();
    cases.push((
        "another namespace than the name's",
        API,
        mesh.pki.identity("spiffe://cluster.local/ns/other/sa/api"),
    ));
    cases.push((
        "another service account than the pinned one",
        "pinned.shop.svc.cluster.local",
        mesh.pki.identity(&shop("web")),
    ));
    let mut port = 8080;
    for (what, host, identity) in cases {
        let (alpn, received) = serve_tls(&fake, port, &identity);
        let answer = web.connect(fake.at(port)).get(host, "/secret");
        assert_eq!(answer.status(), 502, "{what}: {answer:?}");
        assert_eq!(answer.proxy_error().as_deref(), Some("tls_certificate_error"), "{what}: {answer:?}");
        let words = match what {
            "signed by another root" => "both sides need the same roots",
            "expired" => "/ns/shop/sa/api, is refused: it expired at 20",
            "not yet valid" => "/ns/shop/sa/api, is refused: it is not valid before 20",
            "no SPIFFE ID" => "it names no SPIFFE ID",
            "a URI that is no SPIFFE ID" => "`https://cluster.local/ns/shop/sa/api` is no SPIFFE ID",
            "two SPIFFE IDs" => "it names 2 URIs",
            _ => "expected spiffe://cluster.local/ns/shop/",
        };
        assert!(answer.text().contains(words), "{what}: {}", answer.text());
        wait::until("the proxy came with mesh TLS", || alpn.lock().expect("not poisoned").is_some());
        // The connection has ended when `received` is filled.
        let received =
            wait::eventually("the connection ends", || received.lock().expect("not poisoned").clone());
        assert!(
            received.is_empty(),
            "{what}: the request was sent: {:?}",
            String::from_utf8_lossy(&received)
        );
        port += 1;
    }
    // The same peer with the right certificate gets the request: what failed above was the certificate.
    for host in [API, "pinned.shop.svc.cluster.local"] {
        let (alpn, received) = serve_tls(&fake, port, &mesh.pki.identity(&shop("api")));
        web.connect(fake.at(port)).get(host, "/secret");
        assert_eq!(alpn.lock().expect("not poisoned").as_deref(), Some("outrigger-h2"));
        let received =
            wait::eventually("the connection ends", || received.lock().expect("not poisoned").clone());
        assert!(received.starts_with(b"PRI * HTTP/2.0\r\n"), "{received:?}");
        port += 1;
    }
    // Another root, expired, not yet valid, none, a strange one and two; then three that are somebody else. Each request
    // is tried three times.
    for (reason, count) in [("certificate", 18.0), ("identity", 9.0)] {
        let labels = [("direction", "outbound"), ("result", "failure"), ("reason", reason)];
        web.wait_for_metric("outrigger_tls_handshakes_total", &labels, count);
        assert_eq!(web.metric("outrigger_tls_handshakes_total", &labels), count, "{reason}");
    }
}

type Seen<T> = Arc<Mutex<Option<T>>>;

/// A TLS server that shows `identity` and ends each connection at the first bytes that come.
fn serve_tls(
    pod: &crate::support::pod::Pod,
    port: u16,
    identity: &Identity,
) -> (Seen<String>, Seen<Vec<u8>>) {
    let (alpn, received): (Seen<String>, Seen<Vec<u8>>) = Default::default();
    let config = tls::server_config(identity, &["outrigger-h2", "outrigger-h1", "outrigger-tcp"], true);
    let (alpn_sender, sender) = (Arc::clone(&alpn), Arc::clone(&received));
    std::mem::forget(pod.serve(port, move |connection| {
        // The client may end the handshake with an alert: that too is "nothing received".
        let mut got = Vec::new();
        match tls::server(&config, connection) {
            Ok((mut connection, alpn)) => {
                *alpn_sender.lock().expect("not poisoned") = Some(alpn.unwrap_or_default());
                if let Ok(bytes) = connection.try_take_until(b"\n") {
                    got = bytes;
                }
            }
            Err(_) => *alpn_sender.lock().expect("not poisoned") = Some("handshake ended".into()),
        }
        sender.lock().expect("not poisoned").get_or_insert(got);
    }));
    (alpn, received)
}

#[test]
fn a_client_with_a_wrong_certificate_reaches_no_workload() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let server = pair.api.serve_echo(8080);
    let mut cases: Vec<(&str, Option<Identity>)> = wrong_certificates(&pair.mesh.pki)
        .into_iter()
        .map(|(what, identity)| (what, Some(identity)))
        .collect();
    cases.push(("no certificate", None));
    let failures = cases.len();
    for (what, identity) in cases {
        for alpn in ["outrigger-h2", "outrigger-h1", "outrigger-tcp"] {
            let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
            // With TLS 1.3 the client's handshake ends before its certificate is looked at.
            if let Ok((mut connection, _)) =
                tls::client(&tls::client_config(identity.as_ref(), &[alpn]), socket)
            {
                let _ = connection.try_send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
                let answer = connection.try_head();
                assert!(answer.is_err(), "{what}, {alpn}: {answer:?}");
            }
        }
    }
    assert_eq!(server.accepted(), 0, "no connection was made to the workload");
    pair.api.wait_for_metric(
        "outrigger_tls_handshakes_total",
        &[("direction", "inbound"), ("result", "failure")],
        3.0 * failures as f64,
    );
    let right = pair.mesh.pki.identity(&shop("anybody"));
    let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
    let (mut connection, alpn) =
        tls::client(&tls::client_config(Some(&right), &["outrigger-h1"]), socket).expect("a handshake");
    assert_eq!(alpn.as_deref(), Some("outrigger-h1"));
    let answer = connection.get(API, "/");
    assert!(
        answer.text().contains(&format!("outrigger-client-id: {}", shop("anybody"))),
        "{}",
        answer.text()
    );
}

#[test]
fn a_peer_of_the_mesh_cannot_forge_its_identity_in_a_header() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _server = pair.api.serve_echo(8080);
    let identity = pair.mesh.pki.identity(&shop("mallory"));
    let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
    let (mut connection, _) =
        tls::client(&tls::client_config(Some(&identity), &["outrigger-h1"]), socket).expect("a handshake");
    let answer = connection.ask(format!(
        "GET / HTTP/1.1\r\nHost: {API}\r\nOutrigger-Client-Id: {}\r\noutrigger-secret: x\r\n\r\n",
        shop("admin")
    ));
    let text = answer.text();
    let own: Vec<_> = text.lines().filter(|line| line.starts_with("outrigger-")).collect();
    assert_eq!(own, [format!("outrigger-client-id: {}", shop("mallory"))]);
}

#[test]
fn tls_1_2_is_not_spoken_in_the_mesh() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let identity = pair.mesh.pki.identity(&shop("web"));
    identity.write(&outside.directory);
    let said = outside.try_run(&[
        "sh", "-c",
        &format!(
            "echo | timeout 20 openssl s_client -connect {}:8080 -alpn outrigger-h1 -cert {d}/tls.crt -key {d}/tls.key -tls1_2",
            pair.api.address,
            d = outside.directory.display()
        ),
    ]);
    assert!(!said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    let said = outside.try_run(&[
        "sh", "-c",
        &format!(
            "echo | timeout 20 openssl s_client -connect {}:8080 -alpn outrigger-h1 -cert {d}/tls.crt -key {d}/tls.key -tls1_3",
            pair.api.address,
            d = outside.directory.display()
        ),
    ]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[test]
fn certificate_files_are_read_again_when_they_change() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    assert_eq!(pair.get(8080, "/").status(), 200);
    pair.mesh.pki.identity(&shop("renamed")).write(&pair.web.directory);
    wait::until("the new certificate is in use", || {
        pair.web.admin("/certificates")["workload"]["id"] == shop("renamed")
    });
    // Another port is another endpoint, and so a new connection.
    let _another = pair.api.serve_echo(8081);
    let text = pair.get(8081, "/").text();
    assert!(text.contains(&format!("outrigger-client-id: {}", shop("renamed"))), "{text}");
}

#[test]
fn a_client_hello_in_small_segments_is_recognized() {
    let pair = Pair::new();
    let outside = pair.mesh.pod("outside");
    let _server = pair.api.serve_echo(8080);
    let identity = pair.mesh.pki.identity(&shop("web"));
    let socket = outside.try_connect(pair.api.at(8080)).expect("connect");
    let config = tls::client_config(Some(&identity), &["outrigger-h1"]);
    let mut connection = tls::client_in_segments(&config, socket, 100).expect("a handshake");
    assert_eq!(connection.get(API, "/").status(), 200);
}
