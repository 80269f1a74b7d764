//! `outrigger demo` as a person starts it: pages through the mesh, mutual TLS on every hop, names by SRV and TXT, and
//! nothing left behind. As root and as an ordinary user.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const BINARY: &str = env!("CARGO_BIN_EXE_outrigger");
/// Any user that is not root.
const ORDINARY_USER: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
/// A debug build beside other tests on a small machine is slow to start.
const START_PATIENCE: Duration = Duration::from_secs(120);
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_demo_serves_pages_over_mutual_tls_and_ends_cleanly_on_ctrl_c() {
    let mut demo = Demo::start(&[], free_port());
    demo.check_pages();
    demo.check_mutual_tls();
    demo.check_names();
    demo.check_figures();
    demo.end_by(Signal::SIGINT);
}

#[test]
fn an_ordinary_users_demo_leaves_nothing_behind_when_killed_and_starts_again() {
    let user: &[&str] = if geteuid().is_root() { &ORDINARY_USER } else { &[] };
    let allowed = prefixed(user, "unshare").args(["--user", "--map-root-user", "--net", "true"]).status();
    if !allowed.expect("unshare(1) is installed").success() {
        eprintln!(
            "SKIPPED: this kernel forbids an ordinary user's namespaces, so the demo as one is NOT tested"
        );
        return;
    }
    let port = free_port();
    let mut demo = Demo::start(user, port);
    demo.check_pages();
    demo.check_mutual_tls();
    demo.check_names();
    demo.end_by(Signal::SIGKILL);

    let mut again = Demo::start(user, port);
    again.check_pages();
    again.end_by(Signal::SIGTERM);
}

#[test]
fn a_supervisor_that_is_killed_takes_all_along_and_the_demo_says_so() {
    let port = free_port();
    let mut demo = Demo::start(&[], port);
    let namespaces = demo.namespaces();
    let children = format!("/proc/{0}/task/{0}/children", demo.process.id());
    let children = fs::read_to_string(children).expect("the demo runs");
    let supervisor = children.trim().parse().expect("its one child is the supervisor");
    kill(Pid::from_raw(supervisor), Signal::SIGKILL).expect("the supervisor runs");
    demo.wait_for_line(PATIENCE, |line| line.contains("was killed (signal: 9"));
    assert_eq!(demo.wait().code(), Some(1));
    until("no process is left in the demo's namespaces", || used_namespaces().is_disjoint(&namespaces));

    let mut again = Demo::start(&[], port);
    again.check_pages();
    again.end_by(Signal::SIGTERM);
}

#[test]
fn a_port_that_is_taken_is_named_with_the_flag_that_chooses_another() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let port = taken.local_addr().expect("it is bound").port();
    let output = Command::new(BINARY).args(["demo", "--port", &port.to_string()]).output().expect("it runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("can't listen on 127.0.0.1:{port}")) && text.contains("--port"), "{text}");
}

#[test]
fn an_ordinary_user_without_iptables_is_told_the_one_command_that_installs_it() {
    if !geteuid().is_root() {
        eprintln!(
            "SKIPPED: only root can hide iptables from a program; what is said without it is NOT tested"
        );
        return;
    }
    let (_directory, binary) = reachable_binary();
    let hide = format!(
        "mount --bind /dev/null \"$(readlink -f \"$(command -v iptables)\")\" && exec {} {} demo --port {}",
        ORDINARY_USER.join(" "),
        binary.display(),
        free_port()
    );
    let output =
        prefixed(&["unshare", "--mount", "sh", "-c"], &hide).output().expect("unshare(1) is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("not installed: iptables; install with: sudo "), "{text}");
}

/// A demo that runs. Its output is shown when a test fails.
struct Demo {
    process: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    port: u16,
    user: Vec<String>,
    /// The binary, where an ordinary user gets at it.
    _binary: tempfile::TempDir,
}

impl Demo {
    /// Starts a demo, behind the command `user`, and waits until it says what to open.
    fn start(user: &[&str], port: u16) -> Self {
        let (directory, binary) = reachable_binary();
        let mut process = prefixed(user, binary.to_str().expect("the path is text"))
            .args(["demo", "--port", &port.to_string(), "--admin-ports", "0", "--load", "20"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the demo can be run");
        let (sender, lines) = channel();
        let outputs: [Box<dyn Read + Send>; 2] = [
            Box::new(process.stdout.take().expect("it is piped")),
            Box::new(process.stderr.take().expect("it is piped")),
        ];
        for output in outputs {
            let sender = sender.clone();
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    // The test may be over.
                    let _ = sender.send(line);
                }
            });
        }
        let user = user.iter().map(ToString::to_string).collect();
        let mut demo = Self { process, lines, seen: Vec::new(), port, user, _binary: directory };
        demo.wait_for_line(START_PATIENCE, |line| line.starts_with("Ctrl-C ends it all"));
        demo
    }

    fn wait_for_line(&mut self, patience: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + patience;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the line did not come within {patience:?}")
                }
                Err(RecvTimeoutError::Disconnected) => panic!("the demo ended"),
            }
        }
    }

    /// Pages work by HTTP, gRPC and Redis' protocol, callers are known, and api's endpoints answer; the slow one is asked
    /// too rarely to wait for it here, `check_mutual_tls` sees that it was.
    fn check_pages(&mut self) {
        let page = self.get("/");
        assert!(page.contains("spiffe://cluster.local/ns/shop/sa/entry"), "web was called by entry: {page}");

        let deadline = Instant::now() + PATIENCE;
        let mut waited_for = BTreeSet::from(["api-1", "api-3"]);
        while !waited_for.is_empty() {
            assert!(Instant::now() < deadline, "endpoints of api that did not answer: {waited_for:?}");
            let answer = self.get_json("/api");
            assert_eq!(answer["caller"], "spiffe://cluster.local/ns/shop/sa/web", "{answer}");
            waited_for.remove(answer["endpoint"].as_str().expect("an endpoint answered"));
        }

        until("gRPC succeeds", || self.get_json("/grpc")["grpc_status"] == "0");
        let visits = |answer: serde_json::Value| answer["visits"].as_i64().expect("store counts");
        let first = visits(self.get_json("/store"));
        assert!(visits(self.get_json("/store")) > first);

        let mut stream = self.request("/stream");
        let mut events = String::new();
        while events.matches("data: ").count() < 2 {
            let mut part = [0; 4096];
            let length = stream.read(&mut part).expect("the stream goes on");
            assert!(length > 0, "the stream ended: {events}");
            events.push_str(&String::from_utf8_lossy(&part[..length]));
        }
    }

    /// Every hop that a sidecar counted went over mutual TLS, on both sides.
    fn check_mutual_tls(&self) {
        for (name, admin) in self.admin_ports() {
            let metrics = body(&exchange(admin, "/metrics"));
            let counts = |family: &str, direction: &str, tls: &str| -> f64 {
                let labels = [format!("direction=\"{direction}\""), format!("tls=\"{tls}\"")];
                metrics
                    .lines()
                    .filter(|line| {
                        line.starts_with(family) && labels.iter().all(|label| line.contains(label))
                    })
                    .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                    .sum()
            };
            let (requests, connections) =
                ("outrigger_requests_total{", "outrigger_tcp_connections_opened_total{");
            for direction in ["outbound", "inbound"] {
                let plain = counts(requests, direction, "none") + counts(connections, direction, "none");
                assert_eq!(plain, 0.0, "{name} {direction}, in plaintext:\n{metrics}");
            }
            let secured: &[(&str, &str)] = match name.as_str() {
                "entry" => &[(requests, "outbound")],
                "web" => &[(requests, "inbound"), (requests, "outbound"), (connections, "outbound")],
                "store" => &[(connections, "inbound")],
                _ => &[(requests, "inbound")],
            };
            for (family, direction) in secured {
                assert!(
                    counts(family, direction, "mesh") > 0.0,
                    "{name}: no {family} {direction}:\n{metrics}"
                );
            }
            let refused = exchange_with_host(admin, "/config", "attacker.example");
            assert!(
                !refused.starts_with("HTTP/1.1 200"),
                "{name}'s admin port takes a foreign Host: {refused}"
            );
        }
    }

    /// Names come from the DNS server that the pods' resolv.conf names.
    fn check_names(&self) {
        let name = "_8080._tcp.api.shop.svc.cluster.local";
        let hosts = self.inside(&["dig", "+short", "+search", "web.shop", "A"]);
        assert_eq!(hosts.trim(), "10.96.0.20");
        let targets = self.inside(&["dig", "+short", name, "SRV"]);
        assert_eq!(targets.lines().filter(|line| line.contains(" 8080 ")).count(), 3, "{targets}");
        let texts = self.inside(&["dig", "+short", name, "TXT"]);
        for address in ["10.77.0.31", "10.77.0.32", "10.77.0.33"] {
            let record = format!("addr={address}:8080");
            let text = texts.lines().find(|line| line.contains(&record));
            assert!(text.is_some_and(|text| text.contains("mesh=1") && text.contains("sa=api")), "{texts}");
        }
    }

    /// The line a second counts requests, and says that all of them were secured.
    fn check_figures(&mut self) {
        self.wait_for_line(PATIENCE, |line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            line.contains("100 %") && columns.get(1).and_then(|rate| rate.parse::<f64>().ok()) > Some(0.0)
        });
    }

    /// Sends the signal, and sees that the process ends and takes everything along.
    fn end_by(mut self, signal: Signal) {
        let namespaces = self.namespaces();
        assert_eq!(namespaces.len(), 6, "one namespace a pod: {namespaces:?}");
        kill(Pid::from_raw(self.process.id().cast_signed()), signal).expect("the demo runs");
        let status = self.wait();
        if signal == Signal::SIGKILL {
            assert!(!status.success());
        } else {
            assert_eq!(status.code(), Some(0), "{signal}");
        }
        until("no process is left in the demo's namespaces", || used_namespaces().is_disjoint(&namespaces));
        until("the port is free", || TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).is_ok());
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the demo does not end");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Network namespaces of the pods, as the kernel names them.
    fn namespaces(&self) -> BTreeSet<PathBuf> {
        let shown =
            self.seen.iter().filter(|line| line.contains("http://127.0.0.1:") && line.contains("/fd/"));
        shown.filter_map(|line| fs::read_link(line.split_whitespace().last()?).ok()).collect()
    }

    fn admin_ports(&self) -> Vec<(String, u16)> {
        let shown = self.seen.iter().filter(|line| line.contains("/fd/"));
        let ports: Vec<_> = shown
            .filter_map(|line| {
                let (before, after) = line.split_once("http://127.0.0.1:")?;
                Some((before.split_whitespace().next()?.to_owned(), after.split('/').next()?.parse().ok()?))
            })
            .collect();
        assert_eq!(ports.len(), 6);
        ports
    }

    /// Runs a command inside web's pod, as the demo says it is done.
    fn inside(&self, command: &[&str]) -> String {
        let shown =
            self.seen.iter().find(|line| line.trim_start().starts_with("nsenter ")).expect("it was said");
        let enter: Vec<&str> = shown.split_whitespace().take_while(|word| *word != "curl").collect();
        let user: Vec<&str> = self.user.iter().map(String::as_str).collect();
        let words = [&user[..], &enter, command].concat();
        let output = Command::new(words[0]).args(&words[1..]).output().expect("nsenter(1) is installed");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn get(&self, path: &str) -> String {
        body(&exchange(self.port, path))
    }

    fn get_json(&self, path: &str) -> serde_json::Value {
        let text = self.get(path);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    fn request(&self, path: &str) -> TcpStream {
        send(self.port, path, "127.0.0.1")
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if thread::panicking() {
            self.seen.extend(self.lines.try_iter());
            eprintln!("--- the demo's output:\n{}", self.seen.join("\n"));
        }
        // It has ended where the test came to its end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A copy of the binary that every user gets at, and the directory that goes with its value.
fn reachable_binary() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a scratch directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let binary = directory.path().join("outrigger");
    fs::copy(BINARY, &binary).expect("the binary can be copied");
    (directory, binary)
}

fn prefixed(user: &[&str], program: &str) -> Command {
    let mut command = Command::new(user.first().unwrap_or(&program));
    if !user.is_empty() {
        command.args(&user[1..]).arg(program);
    }
    // Whoever runs the tests may have variables of Outrigger set; and ip(8) may be out of an ordinary user's way.
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The network namespaces that processes are in.
fn used_namespaces() -> BTreeSet<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc is mounted");
    processes.filter_map(|entry| fs::read_link(entry.ok()?.path().join(Path::new("ns/net"))).ok()).collect()
}

fn send(port: u16, path: &str, host: &str) -> TcpStream {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n")
        .expect("it is open");
    stream
}

fn exchange(port: u16, path: &str) -> String {
    exchange_with_host(port, path, "127.0.0.1")
}

fn exchange_with_host(port: u16, path: &str, host: &str) -> String {
    let mut response = Vec::new();
    send(port, path, host).read_to_end(&mut response).expect("a response comes, and then the end");
    String::from_utf8_lossy(&response).into_owned()
}

/// The body of a response; of chunks, if it came in some.
fn body(response: &str) -> String {
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {response}"));
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return body.to_owned();
    }
    let (mut rest, mut joined) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk's size");
        joined.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    joined
}
