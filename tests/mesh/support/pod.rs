//! A pod: a network namespace with one interface, its own hosts file and its own resolver.
//!
//! The namespace has no name. It lives as long as a process of it, and the process that holds it
//! ends when its standard input does, so that a killed test run leaves nothing behind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sched::{CloneFlags, setns};

use super::process::Process;
use super::wait::{self, PATIENCE};
use super::wire::Connection;

/// The user and group that a sidecar runs as; its traffic is exempt from the redirect.
pub const PROXY_USER: u32 = 1337;

/// A network namespace that stands for a pod.
pub struct Pod {
    /// Its name, which is also its service account.
    pub name: String,
    /// Its address on the bridge.
    pub address: Ipv4Addr,
    /// Its IPv6 address on the bridge.
    pub address6: Ipv6Addr,
    /// Its directory: hosts file, configuration, logs.
    pub directory: PathBuf,
    holder: Child,
    logs: AtomicUsize,
}

/// Starts a process that holds a fresh network and mount namespace, and waits until it is inside.
pub fn hold_namespaces() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start unshare (util-linux)");
    let echo = holder
        .stdin
        .as_mut()
        .expect("piped")
        .write_all(b"x")
        .and_then(|()| holder.stdout.as_mut().expect("piped").read_exact(&mut [0]));
    echo.expect("make a network namespace: this needs root, or `tests/run`, which makes a user namespace");
    holder
}

/// A command that runs inside the namespaces of the process `holder`, and dies with this thread.
pub fn inside(holder: u32, user: Option<u32>) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["--target", &holder.to_string(), "--net", "--mount", "--"]);
    command.args(["setpriv", "--pdeathsig", "KILL"]);
    if let Some(user) = user {
        command.args([format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]);
    }
    command.arg("--");
    command
}

/// Runs a command to its end and panics with its output when it fails.
pub fn must_succeed(what: &str, command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("start a command");
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Pod {
    /// Makes the pod number `number` and plugs it into the bridge of the process `hub`.
    pub fn new(name: &str, number: u8, hub: u32, directory: PathBuf, binary: &Path) -> Self {
        std::fs::create_dir(&directory).expect("make a pod's directory");
        let holder = hold_namespaces();
        let pod = Self {
            name: name.to_owned(),
            address: Ipv4Addr::new(10, 77, 0, number),
            address6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()),
            directory,
            holder,
            logs: AtomicUsize::new(0),
        };
        let id = pod.holder.id();
        must_succeed(
            "join a pod to the bridge",
            Command::new("ip").args([
                "link",
                "add",
                "eth0",
                "netns",
                &id.to_string(),
                "type",
                "veth",
                "peer",
                "name",
                &format!("pod{number}"),
                "netns",
                &hub.to_string(),
            ]),
        );
        must_succeed(
            "plug the pod in",
            inside(hub, None).args(["ip", "link", "set", &format!("pod{number}"), "master", "bridge", "up"]),
        );
        let hosts = pod.hosts_file();
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n{} {name}\n", pod.address))
            .expect("write a hosts file");
        let resolver = pod.directory.join("resolv.conf");
        std::fs::write(&resolver, "nameserver 127.0.0.1\n").expect("write a resolv.conf");
        // The binary is mounted where the proxy's user can reach it: a clone may lie in a home
        // that is closed to others.
        let mounted = pod.directory.join("outrigger");
        File::create(&mounted).expect("make a mount point");
        let script = format!(
            "set -e
            ip link set lo up
            ip addr add {v4}/24 dev eth0
            ip -6 addr add {v6}/64 dev eth0 nodad
            ip link set eth0 up
            ip route add default dev eth0
            ip -6 route add default dev eth0
            mount --bind {hosts} /etc/hosts
            mount --bind {resolver} /etc/resolv.conf
            mount --bind {binary} {mounted}",
            v4 = pod.address,
            v6 = pod.address6,
            hosts = hosts.display(),
            resolver = resolver.display(),
            binary = binary.display(),
            mounted = mounted.display(),
        );
        pod.run(&["sh", "-c", &script]);
        // The kernel tells a bridge of a new link with a delay of up to a second; until then packets are lost.
        wait::until("the bridge forwards to the new pod", || {
            let mut show = inside(hub, None);
            show.args(["ip", "-details", "link", "show", &format!("pod{number}")]);
            must_succeed("look at a bridge's port", &mut show).contains("state forwarding")
        });
        pod
    }

    /// The pod's hosts file, which is also its `/etc/hosts`.
    pub fn hosts_file(&self) -> PathBuf {
        self.directory.join("hosts")
    }

    /// Adds lines to the pod's hosts file.
    pub fn add_hosts(&self, lines: &str) {
        let path = self.hosts_file();
        let text = std::fs::read_to_string(&path).expect("read a hosts file");
        std::fs::write(&path, format!("{text}{lines}\n")).expect("write a hosts file");
    }

    /// Writes a file into the pod's directory, readable by everyone.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.join(name);
        std::fs::write(&path, text).expect("write a file of a pod");
        path
    }

    /// Where the binary under test is inside the pod.
    pub fn binary(&self) -> String {
        self.directory.join("outrigger").display().to_string()
    }

    /// A socket address of this pod.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.address), port)
    }

    /// A command that runs in this pod as the workload.
    pub fn command(&self, program: &str) -> Command {
        let mut command = inside(self.holder.id(), None);
        command.arg(program);
        command
    }

    /// A command that runs in this pod as the proxy's user.
    pub fn proxy_command(&self, program: &str) -> Command {
        let mut command = inside(self.holder.id(), Some(PROXY_USER));
        command.arg(program);
        command
    }

    /// Runs a command to its end; panics when it fails; gives its standard output.
    pub fn run(&self, command: &[&str]) -> String {
        must_succeed(
            &format!("{command:?} in pod {}", self.name),
            self.command(command[0]).args(&command[1..]),
        )
    }

    /// Runs a command to its end, however it ends.
    pub fn try_run(&self, command: &[&str]) -> Output {
        self.command(command[0])
            .args(&command[1..])
            .stdin(Stdio::null())
            .output()
            .expect("start a command in a pod")
    }

    /// Starts a program in the pod, as the workload.
    pub fn start(&self, command: &[&str]) -> Process {
        let mut started = self.command(command[0]);
        started.args(&command[1..]);
        self.keep(command[0], started)
    }

    /// Starts a prepared command, its output going to the pod's directory.
    pub fn keep(&self, name: &str, command: Command) -> Process {
        let name = name.rsplit('/').next().unwrap_or(name);
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        let log = self.directory.join(format!("{name}.{number}.log"));
        Process::start(&format!("{name} of pod {}", self.name), command, log)
    }

    /// Runs `work` on a thread that is inside the pod's network. Sockets made there stay in the
    /// pod wherever they are used later.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.holder.id())).expect("open a namespace");
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
                    work()
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Listens inside the pod.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> TcpListener {
        let address = address.into();
        self.enter(|| TcpListener::bind(address))
            .unwrap_or_else(|error| panic!("listen on {address}: {error}"))
    }

    /// Binds a UDP socket inside the pod.
    pub fn bind_udp(&self, address: SocketAddr) -> UdpSocket {
        self.enter(|| UdpSocket::bind(address)).unwrap_or_else(|error| panic!("bind {address}: {error}"))
    }

    /// Connects from inside the pod.
    pub fn try_connect(&self, address: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
        let address = address.into();
        self.enter(|| TcpStream::connect_timeout(&address, PATIENCE))
    }

    /// Connects from inside the pod; panics when that fails.
    pub fn connect(&self, address: impl Into<SocketAddr>) -> Connection {
        let address = address.into();
        let stream = self.try_connect(address);
        Connection::new(
            stream.unwrap_or_else(|error| panic!("connect to {address} from {}: {error}", self.name)),
        )
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
