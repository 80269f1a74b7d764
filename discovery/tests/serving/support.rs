//! A running server, and the tools to ask it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use outrigger_ca::workload::Status;
use outrigger_discovery::file::ServicesFile;
use outrigger_discovery::server::{Options, SecureOptions, Server};
use outrigger_discovery::{ClusterDomain, Directory};
use tempfile::TempDir;
use tokio::sync::{oneshot, watch};

pub const SERVICES: &str = "\
services:
  - name: api
    namespace: shop
    vips: [10.96.0.7, fd00:96::7]
    ports: [{port: 8080, targetPort: 80}, {port: 6000, opaque: true}]
    endpoints:
      - {address: 10.77.0.3, serviceAccount: api, zone: a, weight: 3, unmeshedPorts: [9090]}
      - {address: 10.77.0.4, serviceAccount: old, mesh: false}
      - {address: fd00:77::5, serviceAccount: api}
    timeout: 3s
    retries: 1
  - name: store
    namespace: shop
    ports: [{port: 6379}]
    endpoints:
      - {address: 10.77.0.9, serviceAccount: store}
      - {address: 10.77.0.10, serviceAccount: store}
  - name: bare
    namespace: shop
    vips: [10.96.0.9]
    endpoints: [{address: 10.77.0.20, serviceAccount: bare}]
";

/// A server in a thread of its own, so that tests can wait for programs.
pub struct Running {
    pub plain: SocketAddr,
    pub secure: Option<SocketAddr>,
    pub services: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
    _directory: TempDir,
}

/// What a test wants other than the default.
#[derive(Default)]
pub struct Wishes {
    pub services: Option<String>,
    pub forward: Vec<SocketAddr>,
    pub certificate: Option<watch::Receiver<Arc<Status>>>,
}

impl Running {
    pub fn start(wishes: Wishes) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let services = directory.path().join("services.yaml");
        std::fs::write(&services, wishes.services.as_deref().unwrap_or(SERVICES)).unwrap();
        let (started, addresses) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let path = services.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let known = Directory::new(ClusterDomain::new("cluster.local").unwrap());
                let file = ServicesFile::open(path, known.clone()).unwrap();
                tokio::spawn(file.follow());
                let secure = wishes.certificate.map(|certificate| SecureOptions {
                    listen: "127.0.0.1:0".parse().unwrap(),
                    trust_domain: "cluster.local".into(),
                    certificate,
                });
                let plain = Some("127.0.0.1:0".parse().unwrap());
                let options = Options { secure, plain, forward: wishes.forward, mark: None };
                let server = Server::bind(options, known).unwrap();
                started.send((server.plain_address().unwrap(), server.secure_address())).unwrap();
                server.serve(async { drop(stopped.await) }).await;
            });
        });
        let (plain, secure) = addresses.recv().unwrap();
        Self { plain, secure, services, stop: Some(stop), thread: Some(thread), _directory: directory }
    }

    /// Runs dig; the arguments are split at spaces.
    pub fn dig(&self, arguments: &str) -> String {
        dig(self.plain, arguments)
    }

    /// The answers alone, sorted.
    pub fn short(&self, arguments: &str) -> Vec<String> {
        let mut lines: Vec<String> =
            self.dig(&format!("+short {arguments}")).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Asks over UDP with raw bytes.
    pub fn ask_raw(&self, question: &[u8]) -> Option<Vec<u8>> {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.send_to(question, self.plain).unwrap();
        let mut answer = vec![0; 65536];
        let length = socket.recv(&mut answer).ok()?;
        answer.truncate(length);
        Some(answer)
    }

    /// Stops the server, and says whether it came to its end.
    pub fn stop(mut self) -> bool {
        self.stop.take();
        self.thread.take().unwrap().join().is_ok()
    }
}

pub fn dig(server: SocketAddr, arguments: &str) -> String {
    let mut command = Command::new("dig");
    command.arg("-p").arg(server.port().to_string()).arg(format!("@{}", server.ip()));
    command.args(["+tries=1", "+timeout=5"]).args(arguments.split(' '));
    text(command.output().expect("dig is installed (Debian package bind9-dnsutils)"))
}

pub fn text(output: Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A question as bytes.
pub fn question(id: u16, name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    framed
}

/// Reads one message that has its length before it.
pub fn read_framed(stream: &mut impl Read) -> Message {
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).unwrap();
    Message::from_vec(&bytes).unwrap()
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Asks over a stream and returns the answer.
pub fn ask_over(stream: &mut (impl Read + Write), name: &str, kind: RecordType) -> Message {
    stream.write_all(&framed(&question(7, name, kind))).unwrap();
    read_framed(stream)
}
