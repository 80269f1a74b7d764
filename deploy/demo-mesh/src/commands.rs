//! What each process of the mesh is run with: the commands that an operator would type.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::namespace::Exemption;
use crate::plan::{self, API, CONTROL, Pod, STORE, WEB, Workload};
use crate::private_files::Files;
use crate::tools;

pub const CA_PORT: u16 = 15012;
pub const DISCOVERY_PORT: u16 = 15053;
const DNS_PORT: u16 = 53;

/// The sidecars' user, fixed by the mesh.
const PROXY_USER: u32 = 1337;
/// The workloads' user: any but the sidecars'.
const NOBODY: u32 = 65534;

/// Names of the demo's files.
pub const TOKENS: &str = "tokens.yaml";
pub const SERVICES: &str = "services.yaml";
pub const TRUST_BUNDLE: &str = "bundle.pem";
const CA_DIRECTORY: &str = "ca";

/// The file of a pod's token.
pub fn token_file(name: &str) -> String {
    format!("{name}.token")
}

/// Makes the commands.
#[derive(Debug)]
pub struct Commands<'a> {
    pub files: &'a Files,
    pub exemption: Exemption,
    pub access_log: bool,
}

impl Commands<'_> {
    /// The mesh's CA.
    pub fn ca(&self) -> Command {
        let mut ca = self.outrigger(&["ca", "--trust-domain", plan::CLUSTER_DOMAIN]);
        ca.args(["--listen", &control_address(CA_PORT)]);
        ca.arg("--directory").arg(self.files.path(CA_DIRECTORY));
        ca.arg("--tokens").arg(self.files.path(TOKENS));
        ca
    }

    /// Prints the CA's trust bundle.
    pub fn show_trust_bundle(&self) -> Command {
        let mut show = self.outrigger(&["ca", "bundle", "--directory"]);
        show.arg(self.files.path(CA_DIRECTORY));
        show
    }

    /// The mesh's discovery, which is the pods' DNS server too.
    pub fn discovery(&self) -> Command {
        let mut discovery = self.outrigger(&["discovery", "--cluster-domain", plan::CLUSTER_DOMAIN]);
        discovery.args(["--listen", &control_address(DISCOVERY_PORT), "--plain", &control_address(DNS_PORT)]);
        discovery.arg("--file").arg(self.files.path(SERVICES));
        self.identity(&mut discovery, "discovery");
        discovery
    }

    /// Sets up a pod's redirect rules.
    pub fn rules(&self) -> Command {
        let mut rules = self.outrigger(&["iptables", "apply"]);
        if self.exemption == Exemption::Mark {
            rules.args(["--exempt", "mark"]);
        }
        rules
    }

    /// A pod's sidecar; its admin port is a socket of the host.
    pub fn sidecar(&self, pod: &Pod, admin: TcpListener) -> Command {
        let mut sidecar = self.outrigger(&["demo", "hand-over", "admin"]);
        sidecar.arg(self.files.binary()).arg("sidecar");
        self.identity(&mut sidecar, pod.name);
        sidecar.args(["--discovery", &control_address(DISCOVERY_PORT)]);
        sidecar.args([
            "--mesh-domain",
            &format!("svc.{}", plan::CLUSTER_DOMAIN),
            "--mesh-network",
            plan::NETWORK,
        ]);
        if self.access_log {
            sidecar.args(["--access-log", "stdout"]);
        }
        if self.exemption == Exemption::Mark {
            sidecar.arg("--mark");
        }
        sidecar.stdin(Stdio::from(OwnedFd::from(admin)));
        self.run_as(&mut sidecar, PROXY_USER);
        sidecar
    }

    /// What runs beside a pod's sidecar. `redis` is the path of the real one; `entry` is the host's socket for the
    /// relay, which takes it.
    pub fn workload(&self, pod: &Pod, redis: Option<&Path>, entry: &mut Option<TcpListener>) -> Command {
        let mut workload = match (pod.workload, redis) {
            (Workload::Entry, _) => {
                let mut relay = self.service(&["relay", "--target", &WEB.authority()]);
                if let Some(entry) = entry.take() {
                    relay.stdin(Stdio::from(OwnedFd::from(entry)));
                }
                relay
            }
            (Workload::Web, _) => {
                let (api, store) = (API.authority(), STORE.authority());
                self.service(&["web", "--listen", &any_address(WEB.port), "--api", &api, "--store", &store])
            }
            (Workload::Api { slow, fail }, _) => self.service(&[
                "api",
                "--listen",
                &any_address(API.port),
                "--name",
                pod.name,
                "--slow",
                slow,
                "--fail",
                fail,
            ]),
            (Workload::Store, Some(program)) => self.redis(program),
            (Workload::Store, None) => self.service(&["store", "--listen", &any_address(STORE.port)]),
        };
        self.run_as(&mut workload, NOBODY);
        workload
    }

    /// The demo's own traffic.
    pub fn load(&self, requests_per_second: u32) -> Command {
        let mut load =
            self.service(&["load", "--target", &WEB.authority(), "--rate", &requests_per_second.to_string()]);
        self.run_as(&mut load, NOBODY);
        load
    }

    /// Redis that keeps nothing.
    fn redis(&self, program: &Path) -> Command {
        let mut redis = self.command(program);
        redis.args(["--bind", "0.0.0.0", "--port", &STORE.port.to_string()]);
        // Only its sidecar reaches it, which lets in whom the mesh knows.
        redis.args(["--protected-mode", "no", "--save", "", "--appendonly", "no"]);
        redis
    }

    /// How a process proves to the CA who it is, and whom it believes.
    fn identity(&self, command: &mut Command, name: &str) {
        command.args(["--trust-domain", plan::CLUSTER_DOMAIN, "--ca", &control_address(CA_PORT)]);
        command.arg("--token-file").arg(self.files.path(&token_file(name)));
        command.arg("--trust-bundle").arg(self.files.path(TRUST_BUNDLE));
    }

    fn service(&self, words: &[&str]) -> Command {
        self.outrigger(&[&["demo", "service"], words].concat())
    }

    fn outrigger(&self, words: &[&str]) -> Command {
        let mut outrigger = self.command(&self.files.binary());
        outrigger.args(words);
        outrigger
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        // Nothing of the environment of whoever started the demo: settings for a sidecar may be in it.
        command
            .env_clear()
            .env("PATH", tools::search_path())
            .current_dir(self.files.path(""))
            .stdin(Stdio::null());
        command
    }

    /// Whom a sidecar's secrets belong to, where users are told apart.
    pub fn proxy_user(&self) -> Option<u32> {
        (self.exemption == Exemption::User).then_some(PROXY_USER)
    }

    fn run_as(&self, command: &mut Command, user: u32) {
        if self.exemption == Exemption::User {
            command.uid(user).gid(user);
        }
    }
}

fn control_address(port: u16) -> String {
    SocketAddr::from((CONTROL, port)).to_string()
}

fn any_address(port: u16) -> String {
    SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).to_string()
}
