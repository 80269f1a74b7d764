//! `outrigger ca` as the mesh's source of certificates: in service, away, killed, impersonated.

use std::path::PathBuf;

use nix::sys::signal::Signal;

use crate::grpc::{peer, python};
use crate::support::mesh::wait_until_ready;
use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::Server;
use crate::support::{API, Mesh, tls, wait};

/// A mesh whose certificates come from the real CA: `web` and `api` as ever, and the pod `ca`.
pub struct Authority {
    pub process: Process,
    pub web: Pod,
    pub api: Pod,
    pub ca: Pod,
    pub mesh: Mesh,
    arguments: Vec<String>,
}

impl Authority {
    /// Starts the CA with `arguments`; it knows the tokens of `web` and `api`.
    pub fn new(arguments: &[&str]) -> Self {
        let mesh = Mesh::new();
        let (web, api, ca) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("ca"));
        let mut tokens = String::new();
        for pod in [&web, &api] {
            let token = pod.write("token", format!("token-of-{}", pod.name)).display().to_string();
            let hash = pod.run(&[&pod.binary(), "ca", "hash-token", "--token-file", &token]);
            tokens += &format!("- {{sha256: {}, identity: \"{}\"}}\n", hash.trim(), shop(&pod.name));
        }
        web.add_hosts(&format!("{} {API}", api.address));
        let tokens = ca.write("tokens.yaml", tokens).display().to_string();
        let mut all: Vec<String> = ["ca", "--tokens", &tokens].map(str::to_owned).into();
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let process = start(&ca, &all, "keys", 15012);
        Self { process, web, api, ca, mesh, arguments: all }
    }

    /// Starts a CA of the same settings again, or a second one, on `port`.
    pub fn start_again(&self, port: u16) -> Process {
        start(&self.ca, &self.arguments, "keys", port)
    }

    /// The directory of the CA's keys.
    pub fn keys(&self) -> String {
        self.ca.directory.join("keys").display().to_string()
    }

    /// The roots that the CA hands out now.
    pub fn bundle(&self) -> String {
        self.ca.run(&[&self.ca.binary(), "ca", "bundle", "--directory", &self.keys()])
    }

    /// A sidecar whose certificate comes from the CA at `port`.
    pub fn sidecar(&self, pod: &Pod, port: u16, trust_bundle: Option<PathBuf>, more: &[&str]) -> Process {
        let address = self.ca.at(port).to_string();
        let token = pod.directory.join("token").display().to_string();
        self.mesh
            .sidecar(pod)
            .without_certificate_files()
            .trust_bundle(trust_bundle)
            .config(crate::support::mesh::web_config())
            .arguments(["--ca", &address, "--token-file", &token])
            .arguments(more.iter().copied())
            .without_waiting()
            .start()
    }
}

fn start(ca: &Pod, arguments: &[String], directory: &str, port: u16) -> Process {
    let keys = ca.directory.join(directory).display().to_string();
    let listen = format!("0.0.0.0:{port}");
    let binary = ca.binary();
    let mut line = vec![binary.as_str()];
    line.extend(arguments.iter().map(String::as_str));
    line.extend(["--directory", &keys, "--listen", &listen]);
    let mut process = ca.start(&line);
    wait::until("the CA listens", || {
        assert!(process.running(), "the CA ended: {}", process.output());
        ca.try_connect(ca.at(port)).is_ok()
    });
    process
}

/// Two sidecars with certificates of the CA, and an echo server.
fn serving(bed: &Authority, more: &[&str]) -> (Process, Process, Server) {
    let mut api = bed.sidecar(&bed.api, 15012, None, more);
    let mut web = bed.sidecar(&bed.web, 15012, None, more);
    wait_until_ready(&bed.api, &mut api);
    wait_until_ready(&bed.web, &mut web);
    (api, web, bed.api.serve_echo(8080))
}

#[test]
fn sidecars_get_their_certificates_from_the_ca_by_their_tokens() {
    let bed = Authority::new(&[]);
    let _running = serving(&bed, &[]);
    let answer = bed.web.connect(bed.api.at(8080)).get(API, "/");
    assert!(
        answer.text().contains(&format!("outrigger-client-id: {}", shop("web"))),
        "{answer:?} {}",
        answer.text()
    );
    assert_eq!(bed.api.admin("/certificates")["workload"]["id"], shop("api"));
    for pod in [&bed.web, &bed.api] {
        pod.wait_for_metric("outrigger_ca_reachable", &[], 1.0);
        let files = pod.try_run(&[
            "grep",
            "-rl",
            "--exclude=outrigger",
            "PRIVATE KEY",
            &pod.directory.display().to_string(),
        ]);
        assert_eq!(String::from_utf8_lossy(&files.stdout), "", "a proxy's key never touches a disk");
    }
}

#[test]
fn an_ordinary_grpc_client_verifies_the_ca_by_the_name_that_it_dials() {
    let verdicts = |arguments: &[&str], names: &[(&str, bool)]| {
        let bed = Authority::new(arguments);
        let bundle = bed.web.write("roots.pem", bed.bundle()).display().to_string();
        for (name, verified) in names {
            let address = bed.ca.at(15012).to_string();
            let said = bed.web.run(&[&python(), &peer("ca_client.py"), &address, name, &bundle]);
            // Without a token nobody gets a certificate, but is told so by the CA.
            let expected = if *verified { "UNAUTHENTICATED" } else { "UNAVAILABLE" };
            assert!(said.contains(expected), "{arguments:?} {name}: {said}");
        }
    };
    let by_default = [
        ("localhost", true),
        ("outrigger-ca", true),
        ("outrigger-ca.outrigger.svc", true),
        ("outrigger-ca.outrigger.svc.cluster.local", true),
        ("ca.example", false),
    ];
    verdicts(&[], &by_default);
    let stated = ["--dns-name", "CA.example", "--dns-name", "outrigger-ca.outrigger.svc.example.org"];
    verdicts(
        &stated,
        &[("ca.example", true), ("outrigger-ca.outrigger.svc.example.org", true), ("localhost", false)],
    );
}

#[test]
fn a_wrong_token_gets_no_certificate_and_the_reason_is_shown() {
    let bed = Authority::new(&[]);
    bed.web.write("token", "token-of-nobody");
    let sidecar = bed.sidecar(&bed.web, 15012, None, &[]);
    bed.web.wait_for_metric("outrigger_certificate_failures_total", &[], 1.0);
    let answer = bed.web.ask_own(15021, "/readyz");
    assert_eq!(answer.status(), 503);
    assert!(answer.text().to_ascii_lowercase().contains("token"), "{}", answer.text());
    for text in [sidecar.output(), bed.process.output(), answer.text()] {
        assert!(!text.contains("token-of-nobody"), "a token was printed: {text}");
    }
}

#[test]
fn traffic_flows_on_while_the_ca_is_away_and_renewal_resumes_when_it_is_back() {
    let mut bed = Authority::new(&["--certificate-lifetime", "30s"]);
    let _running = serving(&bed, &["--bundle-poll", "1s"]);
    let before = bed.bundle();
    bed.process.signal(Signal::SIGKILL);
    bed.process.ended();
    wait::until("the loss is seen", || bed.web.metric("outrigger_ca_reachable", &[]) == 0.0);
    bed.web.wait_for_metric("outrigger_certificate_failures_total", &[], 1.0);
    let answer = bed.web.connect(bed.api.at(8080)).get(API, "/");
    assert_eq!(answer.status(), 200, "{answer:?} {}", answer.text());
    assert_eq!(bed.web.ask_own(15021, "/readyz").status(), 200, "its certificate still holds");
    assert!(!bed.web.admin("/certificates")["lastError"].is_null());
    let renewals = bed.web.metric("outrigger_certificate_renewals_total", &[]);
    bed.process = bed.start_again(15012);
    assert_eq!(bed.bundle(), before, "killed without warning, it has the same root again");
    wait::within(wait::PATIENCE * 2, "it renews again", || {
        (bed.web.metric("outrigger_certificate_renewals_total", &[]) > renewals).then_some(())
    });
    wait::until("the CA is seen again", || bed.web.metric("outrigger_ca_reachable", &[]) == 1.0);
    assert_eq!(bed.web.connect(bed.api.at(8080)).get(API, "/").status(), 200);
}

#[test]
fn a_sidecar_whose_certificate_has_ended_is_not_ready_and_says_why() {
    let mut bed = Authority::new(&["--certificate-lifetime", "10s", "--backdate", "1s"]);
    let _running = serving(&bed, &[]);
    bed.process.signal(Signal::SIGKILL);
    bed.process.ended();
    wait::until("readiness is off", || bed.web.ask_own(15021, "/readyz").status() == 503);
    let why = bed.web.ask_own(15021, "/readyz").text();
    assert!(why.contains("expired"), "{why}");
    let answer = bed.web.connect(bed.api.at(8080)).get(API, "/");
    assert!([502, 503].contains(&answer.status()), "{answer:?}");
}

#[test]
fn two_cas_that_share_a_directory_are_one_authority() {
    let bed = Authority::new(&[]);
    let _second = bed.start_again(15013);
    let mut api = bed.sidecar(&bed.api, 15012, None, &[]);
    let mut web = bed.sidecar(&bed.web, 15013, None, &[]);
    wait_until_ready(&bed.api, &mut api);
    wait_until_ready(&bed.web, &mut web);
    let _server = bed.api.serve_echo(8080);
    assert_eq!(bed.web.connect(bed.api.at(8080)).get(API, "/").status(), 200);
}

#[test]
fn a_workload_that_poses_as_the_ca_is_not_shown_a_token() {
    let bed = Authority::new(&[]);
    let impostor = bed.mesh.pod("impostor");
    let received = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = std::sync::Arc::clone(&received);
    // Its certificate is of the mesh, and that of a workload.
    let config = tls::server_config(&bed.mesh.pki.identity(&shop("mallory")), &["h2", "http/1.1"], false);
    let server = impostor.serve(15012, move |connection| {
        if let Ok((mut connection, _)) = tls::server(&config, connection) {
            let (bytes, _) = connection.take_all();
            seen.lock().expect("not poisoned").push(bytes);
        }
    });
    let token = bed.web.directory.join("token").display().to_string();
    let address = impostor.at(15012).to_string();
    let _sidecar = bed
        .mesh
        .sidecar(&bed.web)
        .without_certificate_files()
        .arguments(["--ca", &address, "--token-file", &token])
        .without_waiting()
        .start();
    bed.web.wait_for_metric("outrigger_certificate_failures_total", &[], 2.0);
    assert!(server.accepted() > 0);
    for bytes in received.lock().expect("not poisoned").iter() {
        assert!(!frame_types(bytes).contains(&1), "a request was sent to an impostor: {bytes:?}");
    }
    assert_eq!(bed.web.ask_own(15021, "/readyz").status(), 503);
}

/// The types of the HTTP/2 frames that a client sent; 1 is HEADERS, which carries a request.
fn frame_types(mut bytes: &[u8]) -> Vec<u8> {
    bytes = bytes.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap_or(b"");
    let mut types = Vec::new();
    while let [a, b, c, kind, ..] = bytes {
        types.push(*kind);
        let length = 9 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        bytes = bytes.get(length..).unwrap_or(b"");
    }
    types
}

#[test]
fn a_ca_killed_at_any_moment_of_its_first_start_comes_up_whole_and_stays_the_same() {
    let mesh = Mesh::new();
    let ca = mesh.pod("ca");
    let tokens = ca.write("tokens.yaml", "[]\n").display().to_string();
    for moment in 0..12 {
        let directory = ca.directory.join(format!("keys-{moment}"));
        let keys = directory.display().to_string();
        let line =
            [&ca.binary(), "ca", "--tokens", &tokens, "--directory", &keys, "--listen", "127.0.0.1:15012"];
        let killed = ca.start(&line);
        // A later moment each time: from before the first file to after the last.
        let files = |path: &PathBuf| std::fs::read_dir(path).map_or(0, Iterator::count);
        let start = std::time::Instant::now();
        while files(&directory) == 0 && start.elapsed() < wait::PATIENCE {
            std::hint::spin_loop();
        }
        let after = std::time::Instant::now();
        while after.elapsed() < std::time::Duration::from_micros(500) * moment {
            std::hint::spin_loop();
        }
        killed.signal(Signal::SIGKILL);
        drop(killed);
        let bundle = || {
            let mut process = ca.start(&line);
            wait::until("the CA listens", || {
                assert!(process.running(), "it does not come up again: {}", process.output());
                ca.try_connect(([127, 0, 0, 1], 15012)).is_ok()
            });
            let bundle = ca.run(&[&ca.binary(), "ca", "bundle", "--directory", &keys]);
            process.signal(Signal::SIGTERM);
            assert_eq!(process.ended().code(), Some(0));
            bundle
        };
        let first = bundle();
        assert_eq!(first.matches("BEGIN CERTIFICATE").count(), 1, "{first}");
        assert_eq!(bundle(), first);
    }
}
