//! Pods joined by a bridge, with sidecars where a test wants them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use tempfile::TempDir;

use super::pki::{Identity, Pki, shop};
use super::pod::{Pod, hold_namespaces, inside};
use super::process::Process;
use super::wait;
use super::wire::{Connection, Message};

/// The name of the service whose one endpoint is the pod `api`.
pub const API: &str = "api.shop.svc.cluster.local";
/// The name of the service whose one endpoint is the pod `web`.
pub const WEB: &str = "web.shop.svc.cluster.local";

/// How the rules let a proxy's packets pass where its user cannot be matched.
pub const EXEMPT_BY_MARK: [&str; 2] = ["--exempt", "mark"];

/// Ports of `api` that `web` knows by configuration, for traffic that carries no name.
pub const NAMELESS_PORTS: [u16; 4] = [3306, 7000, 7001, 7443];

/// A network of pods, and a certificate authority.
pub struct Mesh {
    /// The CA whose certificates the mesh trusts.
    pub pki: Pki,
    /// A directory that everybody may read.
    pub directory: TempDir,
    hub: Child,
    pods: AtomicU8,
}

/// How a sidecar is started.
pub struct Setup<'mesh> {
    pod: &'mesh Pod,
    config: Option<String>,
    identity: Option<Identity>,
    arguments: Vec<String>,
    prefix: Vec<String>,
    trust_bundle: Option<PathBuf>,
    rules: bool,
    wait_until_ready: bool,
}

/// The binary under test: the one built with the tests, unless `OUTRIGGER_TEST_BINARY` names another.
pub fn binary() -> PathBuf {
    let named = std::env::var("OUTRIGGER_TEST_BINARY").ok();
    let built = option_env!("CARGO_BIN_EXE_outrigger").map(str::to_owned);
    named.or(built).expect("a binary to test").into()
}

/// Whether user 1337 can be taken on; in a user namespace that maps one user only, it cannot.
pub fn users_can_be_taken_on() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let tried =
            Command::new("setpriv").args(["--reuid=1337", "--regid=1337", "--clear-groups", "true"]).output();
        tried.is_ok_and(|output| output.status.success())
    })
}

impl Mesh {
    /// A network without pods.
    pub fn new() -> Self {
        let directory =
            tempfile::Builder::new().prefix("outrigger-test-").tempdir().expect("make a directory");
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).expect("open a directory");
        let hub = hold_namespaces();
        super::pod::must_succeed(
            "make a bridge",
            inside(hub.id(), None).args([
                "ip",
                "link",
                "add",
                "bridge",
                "up",
                "type",
                "bridge",
                "mcast_snooping",
                "0",
            ]),
        );
        let mesh = Self { pki: Pki::new(), directory, hub, pods: AtomicU8::new(1) };
        std::fs::write(mesh.bundle(), &mesh.pki.bundle).expect("write a trust bundle");
        mesh
    }

    /// The file with the mesh's roots.
    pub fn bundle(&self) -> PathBuf {
        self.directory.path().join("roots.pem")
    }

    /// A new pod; the first has the address 10.77.0.1, the second 10.77.0.2, and so on.
    pub fn pod(&self, name: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let directory = self.directory.path().join(name);
        Pod::new(name, number, self.hub.id(), directory, &binary())
    }

    /// A sidecar beside `pod`, not started yet: strict, with a certificate for the pod's name.
    pub fn sidecar<'mesh>(&'mesh self, pod: &'mesh Pod) -> Setup<'mesh> {
        Setup {
            pod,
            config: None,
            identity: Some(self.pki.identity(&shop(&pod.name))),
            arguments: Vec::new(),
            prefix: Vec::new(),
            trust_bundle: Some(self.bundle()),
            rules: true,
            wait_until_ready: true,
        }
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _ = self.hub.kill();
        let _ = self.hub.wait();
    }
}

impl Setup<'_> {
    /// The configuration file's text.
    pub fn config(mut self, text: impl Into<String>) -> Self {
        self.config = Some(text.into());
        self
    }

    /// Further arguments.
    pub fn arguments<S: Into<String>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// A program that starts the sidecar in its place, for example one that sets a limit.
    pub fn through(mut self, program: &[&str]) -> Self {
        self.prefix = program.iter().map(|part| (*part).to_owned()).collect();
        self
    }

    /// Another certificate than that of the pod's name.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Another trust bundle, or none where the CA's is believed on first use.
    pub fn trust_bundle(mut self, file: Option<PathBuf>) -> Self {
        self.trust_bundle = file;
        self
    }

    /// No certificate files: the arguments name another source.
    pub fn without_certificate_files(mut self) -> Self {
        self.identity = None;
        self
    }

    /// The pod's rules stand already.
    pub fn rules_stand(mut self) -> Self {
        self.rules = false;
        self
    }

    /// Do not wait until it is ready.
    pub fn without_waiting(mut self) -> Self {
        self.wait_until_ready = false;
        self
    }

    /// Applies the rules, starts the sidecar and waits until it is ready.
    pub fn start(self) -> Process {
        let pod = self.pod;
        let by_user = users_can_be_taken_on();
        if self.rules {
            let binary = pod.binary();
            let mut apply = vec![binary.as_str(), "iptables", "apply"];
            if !by_user {
                apply.extend(EXEMPT_BY_MARK);
            }
            pod.run(&apply);
        }
        let mut line = self.prefix;
        line.push(pod.binary());
        let mut command = if by_user { pod.proxy_command(&line[0]) } else { pod.command(&line[0]) };
        command.args(&line[1..]);
        command.arg("sidecar").args(["--hosts-file", &pod.hosts_file().display().to_string()]);
        if let Some(bundle) = &self.trust_bundle {
            command.args(["--trust-bundle", &bundle.display().to_string()]);
        }
        if !by_user {
            command.arg("--mark");
        }
        if let Some(identity) = &self.identity {
            identity.write(&pod.directory);
            let file = |name: &str| pod.directory.join(name).display().to_string();
            command.args(["--certificate", &file("tls.crt"), "--key", &file("tls.key")]);
        }
        if let Some(config) = &self.config {
            command.args(["--config", &pod.write("sidecar.yaml", config).display().to_string()]);
        }
        command.args(&self.arguments);
        let mut process = pod.keep("outrigger-sidecar", command);
        if self.wait_until_ready {
            wait_until_ready(pod, &mut process);
        }
        process
    }
}

/// Waits until the sidecar of `pod` says that it is ready.
pub fn wait_until_ready(pod: &Pod, process: &mut Process) {
    wait::until(&format!("the sidecar of {} is ready", pod.name), || {
        assert!(process.running(), "the sidecar of {} ended:\n{}", pod.name, process.output());
        pod.try_connect(SocketAddr::from(([127, 0, 0, 1], 15021)))
            .is_ok_and(|socket| Connection::new(socket).get("localhost", "/readyz").status() == 200)
    });
}

impl Pod {
    /// Asks a port of this pod's own loopback for `path`.
    pub fn ask_own(&self, port: u16, path: &str) -> Message {
        self.connect(SocketAddr::from(([127, 0, 0, 1], port)))
            .ask(format!("GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n\r\n"))
    }

    /// What the sidecar's admin port says at `path`.
    pub fn admin(&self, path: &str) -> serde_json::Value {
        let answer = self.ask_own(15000, path);
        assert_eq!(answer.status(), 200, "{path}: {}", answer.text());
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{path} is JSON: {error}\n{}", answer.text()))
    }

    /// The sum of a metric's series that carry all these labels; zero when there is none.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let answer = self.ask_own(15020, "/metrics");
        assert_eq!(answer.status(), 200);
        sum(&answer.text(), name, labels)
    }

    /// Waits until the sum of a metric's series is at least `least`.
    pub fn wait_for_metric(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        wait::until(&format!("{name} {labels:?} of {} reaches {least}", self.name), || {
            // The sidecar may be starting still.
            self.try_connect(([127, 0, 0, 1], 15020)).is_ok() && self.metric(name, labels) >= least
        });
    }
}

fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let series = text.lines().filter(|line| {
        let matches = line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        matches && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
    });
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    series.filter_map(value).fold(0.0, |sum, value| sum + value)
}

/// Two pods with a sidecar each: `web`, the client, and `api`, the server.
pub struct Pair {
    /// The sidecar of `web`.
    pub web_sidecar: Process,
    /// The sidecar of `api`.
    pub api_sidecar: Process,
    /// The client's pod, 10.77.0.1.
    pub web: Pod,
    /// The server's pod, 10.77.0.2.
    pub api: Pod,
    /// The network of the two.
    pub mesh: Mesh,
}

/// What `web` is configured with: the mesh's names and addresses, and who answers on the ports
/// that are called without a name.
pub fn web_config() -> String {
    let mut text = String::from(
        "outbound: {meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}\nupstreams:\n",
    );
    for port in NAMELESS_PORTS {
        text += &format!(
            "  api-{port}: {{discovery: {{static: [\"10.77.0.2:{port}\"]}}, identity: \"{}\"}}\n",
            shop("api")
        );
    }
    text
}

impl Pair {
    /// Both sidecars strict and with the usual configuration.
    pub fn new() -> Self {
        Self::with(&web_config(), "")
    }

    /// Both sidecars strict and configured as said.
    pub fn with(web_config: &str, api_config: &str) -> Self {
        let mesh = Mesh::new();
        let (web, api) = (mesh.pod("web"), mesh.pod("api"));
        web.add_hosts(&format!("{} {API}", api.address));
        api.add_hosts(&format!("{} {WEB}", web.address));
        let api_sidecar = mesh.sidecar(&api).config(api_config).start();
        let web_sidecar = mesh.sidecar(&web).config(web_config).start();
        Self { web_sidecar, api_sidecar, web, api, mesh }
    }

    /// Connects from `web` to a port of `api`.
    pub fn connect(&self, port: u16) -> Connection {
        self.web.connect(self.api.at(port))
    }

    /// Connects from `web` to a port of `api`, asks for `path` and reads the answer.
    pub fn get(&self, port: u16, path: &str) -> Message {
        self.connect(port).get(API, path)
    }
}
