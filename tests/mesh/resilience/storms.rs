//! An upstream that fails as a whole gets hardly more than was offered, however many proxies stand before it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::load::{Load, Tally, total};
use super::{Bench, MESHED, endpoint};
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::{API, Mesh, wait};

/// Clients that send 200 requests a second together.
const CLIENTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a storm goes on.
const STORM: Duration = Duration::from_secs(6);

/// What the clients were told in a storm.
fn storm(web: &Pod, to: SocketAddr, host: &str) -> Tally {
    let load = Load::start(web, to, host, CLIENTS, PAUSE);
    std::thread::sleep(STORM);
    load.end()
}

/// Asserts that an upstream was asked little more often than was offered, and that there were retries at all.
fn assert_contained(offered: &Tally, asked: usize, most_percent: usize) {
    let count = total(offered);
    println!("{asked} of {count}: {offered:?}");
    assert!(count >= 600, "a storm: {offered:?}");
    assert!(offered.keys().all(|told| told.starts_with("503 ")), "{offered:?}");
    assert!(asked > count, "{asked} tries of {count} requests: some are tried again");
    assert!(asked * 100 <= count * most_percent, "{asked} tries of {count} requests");
}

#[test]
fn an_upstream_at_which_all_fails_gets_at_most_a_quarter_more_than_is_offered() {
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{{all}}]}}, breaker: {{enabled: false}}}}\n"
    ));
    bench.set_failing(100);
    let offered = storm(&bench.web, endpoint(0), API);
    assert_contained(&offered, bench.asked(), 125);
    assert!(bench.web.metric("outrigger_retries_refused_total", &[("upstream", "api")]) > 0.0);
}

/// `web` calls `first`, which asks `second`, which asks `last`, which always fails; all have sidecars.
struct Row {
    _sidecars: Vec<Process>,
    web: Pod,
    first: Pod,
    second: Pod,
    last: Pod,
    _mesh: Mesh,
}

const FIRST: &str = "first.shop.svc.cluster.local";
const SECOND: &str = "second.shop.svc.cluster.local";
const LAST: &str = "last.shop.svc.cluster.local";

impl Row {
    fn new() -> Self {
        let mesh = Mesh::new();
        let (web, first, second, last) =
            (mesh.pod("web"), mesh.pod("first"), mesh.pod("second"), mesh.pod("last"));
        let sidecar = |pod: &Pod, callee: Option<(&str, &Pod)>| {
            let mut config = MESHED.to_owned() + "  {}\n";
            if let Some((host, callee)) = callee {
                pod.add_hosts(&format!("{} {host}", callee.address));
                config = format!(
                    "{MESHED}  next: {{hosts: [{host}], discovery: {{static: [\"{}\"]}}, identity: any, breaker: {{enabled: false}}}}\n",
                    callee.at(8080)
                );
            }
            mesh.sidecar(pod).config(config).start()
        };
        let _sidecars = vec![
            sidecar(&last, None),
            sidecar(&second, Some((LAST, &last))),
            sidecar(&first, Some((SECOND, &second))),
            sidecar(&web, Some((FIRST, &first))),
        ];
        Self { _sidecars, web, first, second, last, _mesh: mesh }
    }

    /// A storm at the last one; gives what the clients were told and how often the last one was asked.
    fn storm(&self) -> (Tally, usize) {
        let asked = Arc::<AtomicUsize>::default();
        let counter = asked.clone();
        let _server = self.last.serve_http(8080, move |_| {
            counter.fetch_add(1, SeqCst);
            respond("503 Service Unavailable", "", "the last one is ill")
        });
        let offered = storm(&self.web, self.first.at(8080), FIRST);
        (offered, asked.load(SeqCst))
    }
}

/// A workload that passes requests on, and responses with all their fields.
fn pass_on(pod: &Pod, host: &str) -> Process {
    let config = format!(
        "daemon off; master_process off; pid {d}/nginx.pid; error_log stderr;\nuser root;\nevents {{}}\nhttp {{ access_log off;\n\
         client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;\n\
         upstream next {{ server {host}:8080 max_fails=0; keepalive 32; }}\n\
         server {{ listen 8080; location / {{ proxy_pass http://next; proxy_http_version 1.1;\n\
         proxy_set_header Host {host}; proxy_set_header Connection \"\"; }} }} }}",
        d = pod.directory.display()
    );
    let config = pod.write("nginx.conf", config).display().to_string();
    let nginx = pod.start(&["nginx", "-c", &config]);
    wait::until("nginx serves", || pod.try_connect(([127, 0, 0, 1], 8080)).is_ok());
    nginx
}

/// A workload that asks another one and has words of its own for what it can't do.
fn ask_on(pod: &Pod, callee: &Pod, host: &'static str) -> Server {
    let ways: Vec<_> = (0..4 * CLIENTS).map(|_| pod.connect(callee.at(8080))).collect();
    let ways = Mutex::new(ways);
    pod.serve(8080, move |mut connection| {
        let mut way = ways.lock().expect("not poisoned").pop().expect("a way left");
        while connection.request().is_some() {
            let answer = match way.get(host, "/").status() {
                200 => ok("well"),
                _ => respond("503 Service Unavailable", "", "sorry, in other words"),
            };
            if connection.try_send(answer).is_err() {
                break;
            }
        }
        ways.lock().expect("not poisoned").push(way);
    })
}

#[test]
fn three_proxies_in_a_row_whose_workloads_pass_responses_on_try_no_more_often_than_one() {
    let row = Row::new();
    let _workloads = [pass_on(&row.second, LAST), pass_on(&row.first, SECOND)];
    let (offered, asked) = row.storm();
    assert_contained(&offered, asked, 130);
}

#[test]
fn three_proxies_in_a_row_whose_workloads_answer_in_their_own_words_try_no_more_often_than_one() {
    let row = Row::new();
    let _workloads = [ask_on(&row.second, &row.last, LAST), ask_on(&row.first, &row.second, SECOND)];
    let (offered, asked) = row.storm();
    assert_contained(&offered, asked, 130);
}
