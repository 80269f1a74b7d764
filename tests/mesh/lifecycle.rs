//! Start and stop.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, mpsc};

use nix::sys::signal::Signal;

use crate::support::mesh::EXEMPT_BY_MARK;
use crate::support::serve::ok;
use crate::support::wait::{self, PATIENCE};
use crate::support::wire::Ending;
use crate::support::{API, Mesh, Pair};

/// A workload that answers a request only when it is told to.
struct Held {
    _server: crate::support::serve::Server,
    arrived: mpsc::Receiver<()>,
    release: mpsc::Sender<()>,
}

fn hold(pair: &Pair, port: u16) -> Held {
    let (arrival, arrived) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let released = Arc::new(Mutex::new(released));
    let _server = pair.api.serve_http(port, move |request| {
        if request.target() == "/held" {
            arrival.send(()).expect("the test waits");
            released.lock().expect("one at a time").recv_timeout(PATIENCE).expect("the test lets go");
        }
        ok("done")
    });
    Held { _server, arrived, release }
}

#[test]
fn sigterm_lets_a_request_in_flight_finish_and_the_process_ends_with_zero() {
    let mut pair = Pair::new();
    let held = hold(&pair, 8080);
    let mut connection = pair.connect(8080);
    connection.send(format!("GET /held HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    held.arrived.recv_timeout(PATIENCE).expect("the request arrives");
    pair.api_sidecar.signal(Signal::SIGTERM);
    wait::until("readiness is off", || pair.api.ask_own(15021, "/readyz").status() == 503);
    // Peers that have not heard of it yet are still served.
    assert_eq!(pair.get(8080, "/").status(), 200);
    assert!(pair.api_sidecar.running());
    held.release.send(()).expect("the workload waits");
    assert_eq!(connection.response("GET").text(), "done");
    drop(connection);
    assert_eq!(pair.api_sidecar.ended().code(), Some(0), "{}", pair.api_sidecar.output());
}

#[test]
fn a_draining_client_side_tells_its_workload_to_close_and_loses_no_request() {
    let mut pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let mut connection = pair.connect(8080);
    assert_eq!(connection.get(API, "/").status(), 200);
    pair.web_sidecar.signal(Signal::SIGTERM);
    // The workload goes on until its sidecar says that the connection ends.
    let said_so = wait::eventually("the connection is closed in order", || {
        if connection.try_send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n")).is_err() {
            return Some(false);
        }
        match connection.try_head() {
            Ok(head) => {
                let length: usize =
                    head.header("content-length").and_then(|value| value.parse().ok()).expect("a length");
                connection.take(length);
                head.header("connection")
                    .is_some_and(|value| value.eq_ignore_ascii_case("close"))
                    .then_some(true)
            }
            // Between two requests the connection may be closed: nothing was lost then.
            Err(end) => Some(end == Ending::Closed),
        }
    });
    assert!(said_so, "the connection was not closed in order");
    assert_eq!(pair.web_sidecar.ended().code(), Some(0), "{}", pair.web_sidecar.output());
}

#[test]
fn what_outlives_the_drain_is_cut_and_the_exit_code_says_so() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let mut api_sidecar = mesh.sidecar(&api).arguments(["--drain-timeout", "1s"]).start();
    let _web_sidecar = mesh.sidecar(&web).config(crate::support::mesh::web_config()).start();
    let (sender, arrived) = mpsc::channel();
    let _server = api.serve(8080, move |mut connection| {
        connection.request();
        sender.send(()).expect("the test waits");
        let _ = connection.take_all();
    });
    let mut connection = web.connect(api.at(8080));
    connection.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    arrived.recv_timeout(PATIENCE).expect("the request arrives");
    api_sidecar.signal(Signal::SIGTERM);
    assert_eq!(api_sidecar.ended().code(), Some(3), "{}", api_sidecar.output());
    assert_eq!(connection.response("GET").status(), 502, "the caller is told");
}

#[test]
fn sigint_stops_at_once() {
    let mut pair = Pair::new();
    let held = hold(&pair, 8080);
    let mut connection = pair.connect(8080);
    connection.send(format!("GET /held HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    held.arrived.recv_timeout(PATIENCE).expect("the request arrives");
    pair.api_sidecar.signal(Signal::SIGINT);
    assert_eq!(pair.api_sidecar.ended().code(), Some(130));
    assert_eq!(connection.response("GET").status(), 502, "the caller is told, and does not wait for ever");
    let _ = held.release.send(());
}

#[test]
fn a_strict_sidecar_without_a_certificate_source_names_the_flags_that_give_one() {
    let mesh = Mesh::new();
    let pod = mesh.pod("api");
    let mut sidecar = mesh.sidecar(&pod).without_certificate_files().without_waiting().start();
    assert_eq!(sidecar.ended().code(), Some(1));
    let said = sidecar.output();
    assert!(said.contains("--ca") && said.contains("--certificate"), "{said}");
}

#[test]
fn a_taken_port_is_named_in_the_error() {
    let mesh = Mesh::new();
    let pod = mesh.pod("api");
    let _taken = pod.listen(([0, 0, 0, 0], 15006));
    let mut sidecar = mesh.sidecar(&pod).without_waiting().start();
    assert_eq!(sidecar.ended().code(), Some(1));
    assert!(sidecar.output().contains("15006"), "{}", sidecar.output());
}

#[test]
fn a_sidecar_without_a_config_file_works_with_a_certificate_given_by_flags() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _api_sidecar = mesh.sidecar(&api).start();
    let _web_sidecar = mesh.sidecar(&web).arguments(["--mesh-domain", "svc.cluster.local"]).start();
    let _server = api.serve_echo(8080);
    let answer = web.connect(api.at(8080)).get(API, "/");
    assert!(answer.text().contains("outrigger-client-id: "), "{}", answer.text());
}

#[test]
fn listening_sockets_can_be_handed_in_and_serve_what_waited_in_them() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address));
    let _server = api.serve_echo(8080);
    let _web_sidecar = mesh.sidecar(&web).config(crate::support::mesh::web_config()).start();
    // The rules stand and the socket listens before the sidecar runs: a connection waits in its queue.
    let mut setup = vec![api.binary(), "iptables".into(), "apply".into()];
    if !crate::support::mesh::users_can_be_taken_on() {
        setup.extend(EXEMPT_BY_MARK.map(str::to_owned));
    }
    api.run(&setup.iter().map(String::as_str).collect::<Vec<_>>());
    let listener = api.listen(([0, 0, 0, 0], 15006));
    let outside = mesh.pod("outside");
    let waiting = outside.connect(api.at(8080));
    // systemd's protocol: the descriptors from 3 on, their number in LISTEN_FDS, for LISTEN_PID.
    let copy = nix::unistd::dup(listener.as_fd()).expect("copy a descriptor");
    let config = api.write("handed.yaml", "").display().to_string();
    mesh.pki.identity(&crate::support::pki::shop("api")).write(&api.directory);
    let mark = if crate::support::mesh::users_can_be_taken_on() { "" } else { "--mark" };
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=inbound; exec {binary} sidecar --config {config} --hosts-file {hosts} {mark} \
         --certificate {d}/tls.crt --key {d}/tls.key --trust-bundle {bundle} 3<&{fd}",
        binary = api.binary(),
        hosts = api.hosts_file().display(),
        d = api.directory.display(),
        bundle = mesh.bundle().display(),
        fd = copy.as_raw_fd(),
    );
    let mut command = if mark.is_empty() { api.proxy_command("bash") } else { api.command("bash") };
    command.args(["-c", &script]);
    // `dup` gives a descriptor that stays open in the child.
    let mut sidecar = api.keep("outrigger-sidecar", command);
    crate::support::mesh::wait_until_ready(&api, &mut sidecar);
    drop(listener);
    assert_eq!(web.connect(api.at(8080)).get(API, "/").status(), 200);
    let mut waiting = waiting;
    assert_eq!(
        waiting.get(API, "/").status(),
        403,
        "who waited is answered, here by the refusal of plaintext"
    );
}
