//! A client with a sidecar, and a pod outside the mesh: each of its ports is an endpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::mesh::Mesh;
use super::pod::Pod;
use super::process::Process;
use super::serve::{Server, ok};
use super::wire::{Connection, Message};

/// The host that upstreams of [`upstream`] are called by where nothing else is said.
pub const SHOP: &str = "shop.example";

/// The two pods.
pub struct Outside {
    /// The sidecar of `web`.
    pub sidecar: Process,
    /// The client's pod, 10.77.0.1.
    pub web: Pod,
    /// The pod of the endpoints, 10.77.0.2, without a sidecar.
    pub far: Pod,
    /// The network of the two.
    pub mesh: Mesh,
}

/// An endpoint that says its number; dropped, it listens no more, and ends its connections with their next request.
pub struct Numbered {
    server: Option<Server>,
    stopped: Arc<AtomicBool>,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        drop(self.server.take());
    }
}

/// A line under `upstreams`: the upstream `name`, whose endpoints are `ports` of the pod outside, with `more` fields.
pub fn upstream(name: &str, ports: &[u16], more: &str) -> String {
    let endpoints = ports.iter().map(|port| format!("\"10.77.0.2:{port}\"")).collect::<Vec<_>>().join(", ");
    let comma = if more.is_empty() { "" } else { ", " };
    format!(
        "  {name}: {{anyDestination: true, tls: none, discovery: {{static: [{endpoints}]}}{comma}{more}}}\n"
    )
}

impl Outside {
    /// The client's sidecar has this config.
    pub fn new(config: &str) -> Self {
        let mesh = Mesh::new();
        let (web, far) = (mesh.pod("web"), mesh.pod("far"));
        let sidecar = mesh.sidecar(&web).config(config).start();
        Self { sidecar, web, far, mesh }
    }

    /// A connection of the client, for requests that name a host which goes anywhere.
    pub fn connect(&self) -> Connection {
        self.web.connect(self.far.at(80))
    }

    /// Asks for `path` of [`SHOP`] on a connection of its own, with further `fields`, each of which ends in CR LF.
    pub fn ask(&self, method: &str, path: &str, fields: &str) -> Message {
        self.connect().ask(format!("{method} {path} HTTP/1.1\r\nHost: {SHOP}\r\n{fields}\r\n"))
    }

    /// The port of the pod outside answers every request with its number.
    pub fn serve_number(&self, port: u16) -> Numbered {
        let stopped = Arc::new(AtomicBool::new(false));
        let is_stopped = stopped.clone();
        let server = self.far.serve(port, move |mut connection| {
            while connection.request().is_some() && !is_stopped.load(Ordering::SeqCst) {
                if connection.try_send(ok(port.to_string())).is_err() {
                    return;
                }
            }
        });
        Numbered { server: Some(server), stopped }
    }

    /// As [`Self::serve_number`], and counts the requests.
    pub fn serve_counted(&self, port: u16) -> (Server, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let server = self.far.serve_http(port, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            ok(port.to_string())
        });
        (server, count)
    }

    /// Replaces the config at once.
    pub fn reconfigure(&self, config: &str) {
        let fresh = self.web.write("sidecar.yaml.new", config);
        std::fs::rename(fresh, self.web.directory.join("sidecar.yaml")).expect("replace a configuration");
    }
}
