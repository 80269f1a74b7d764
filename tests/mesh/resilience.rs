//! Callers are not let down: endpoints that die, hang, slow down or fail, workloads that start late, and upstreams that
//! fail as a whole.

mod arrivals;
mod breakers;
mod connections;
mod endpoints;
mod fallbacks;
mod load;
mod multiplexed;
mod retries;
mod storms;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::{API, Mesh, Message};

const MESHED: &str =
    "outbound: {meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}\nupstreams:\n";

/// Addresses of the endpoints of a [`Bench`].
const ENDPOINTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 77, 0, 101), Ipv4Addr::new(10, 77, 0, 102), Ipv4Addr::new(10, 77, 0, 103)];

/// A client with a sidecar, and a pod without one whose three addresses are endpoints with a behaviour each.
struct Bench {
    _sidecar: Process,
    web: Pod,
    api: Pod,
    endpoints: [Arc<Behaviour>; 3],
    _server: Server,
    _mesh: Mesh,
}

/// What an endpoint does with requests.
#[derive(Default)]
struct Behaviour {
    /// Milliseconds before it answers.
    delay: AtomicUsize,
    /// Percent of the requests that it answers with 503.
    failing: AtomicUsize,
    /// Requests that came.
    asked: AtomicUsize,
}

impl Behaviour {
    fn answer(&self, name: &str) -> Vec<u8> {
        let number = self.asked.fetch_add(1, SeqCst);
        std::thread::sleep(Duration::from_millis(self.delay.load(SeqCst) as u64));
        // Spread evenly and never the same few in a row.
        if number * 37 % 100 < self.failing.load(SeqCst) {
            return respond("503 Service Unavailable", "", "failing");
        }
        ok(name)
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn set_failing(&self, percent: usize) {
        self.failing.store(percent, SeqCst);
    }
}

impl Bench {
    /// The sidecar of `web` has these upstreams (and further sections); `{all}` in them stands for the three endpoints.
    fn new(upstreams: &str) -> Self {
        let bench = Self::in_mesh(Mesh::new(), upstreams, &[]);
        // Names that nobody knows are looked up for seconds.
        let names = upstreams.split("hosts: [").skip(1).filter_map(|rest| rest.split(']').next());
        bench.web.add_hosts(&format!("{} {}", ENDPOINTS[0], names.collect::<Vec<_>>().join(" ")));
        bench
    }

    fn in_mesh(mesh: Mesh, upstreams: &str, arguments: &[&str]) -> Self {
        let (web, api) = (mesh.pod("web"), mesh.pod("api"));
        let endpoints = ENDPOINTS.map(|address| {
            api.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
            Arc::<Behaviour>::default()
        });
        let behaviours = endpoints.clone();
        let server = api.serve(8080, move |mut connection| {
            let at = connection.socket.local_addr().expect("an address").ip();
            let Some(index) = ENDPOINTS.iter().position(|endpoint| *endpoint == at) else { return };
            while connection.request().is_some() {
                if connection.try_send(behaviours[index].answer(&at.to_string())).is_err() {
                    return;
                }
            }
        });
        let all = ENDPOINTS.map(|address| format!("\"{address}:8080\"")).join(", ");
        let config = format!("upstreams:\n{}", upstreams.replace("{all}", &all));
        let sidecar = mesh.sidecar(&web).config(config).arguments(arguments.iter().copied()).start();
        Self { _sidecar: sidecar, web, api, endpoints, _server: server, _mesh: mesh }
    }

    fn set_failing(&self, percent: usize) {
        self.endpoints.iter().for_each(|endpoint| endpoint.set_failing(percent));
    }

    /// Requests that came to all endpoints.
    fn asked(&self) -> usize {
        self.endpoints.iter().map(|endpoint| endpoint.asked()).sum()
    }

    fn get(&self, host: &str) -> Message {
        self.web.connect(endpoint(0)).get(host, "/")
    }

    fn upstream(&self, name: &str) -> serde_json::Value {
        self.web.admin("/upstreams")[name].clone()
    }
}

fn endpoint(index: usize) -> SocketAddr {
    (ENDPOINTS[index], 8080).into()
}

/// A `POST` or the like with this body.
fn with_body(method: &str, host: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Another name for the endpoints of a [`Trio`].
const SURE: &str = "sure.shop.svc.cluster.local";

/// A client and three pods, all with sidecars; the client knows the hosts [`API`] and [`SURE`].
struct Trio {
    _sidecar: Process,
    sidecars: [Process; 3],
    web: Pod,
    pods: [Pod; 3],
    mesh: Mesh,
}

impl Trio {
    /// `upstreams` as in [`Bench::new`].
    fn new(upstreams: &str) -> Self {
        let mesh = Mesh::new();
        let web = mesh.pod("web");
        let pods = ["one", "two", "three"].map(|name| mesh.pod(name));
        let sidecars = pods.each_ref().map(|pod| mesh.sidecar(pod).start());
        let all = pods.each_ref().map(|pod| format!("\"{}\"", pod.at(8080))).join(", ");
        web.add_hosts(&format!("{} {API} {SURE}", pods[0].address));
        let config = format!("{MESHED}{}", upstreams.replace("{all}", &all));
        let sidecar = mesh.sidecar(&web).config(config).start();
        Self { _sidecar: sidecar, sidecars, web, pods, mesh }
    }
}
