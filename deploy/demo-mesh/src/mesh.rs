//! Starts the mesh, in the order in which its parts need each other: network, CA, discovery, rules and sidecars,
//! workloads.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream as BlockingStream};
use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::commands::{CA_PORT, Commands, DISCOVERY_PORT, SERVICES, TOKENS, TRUST_BUNDLE, token_file};
use crate::error::{Context, DemoError};
use crate::namespace::PodNamespace;
use crate::network::{connect, make_bridge, succeeded};
use crate::orders::HostSocket;
use crate::plan::{self, CONTROL, PODS, Pod, WEB};
use crate::private_files::write_secret;
use crate::process::{Kind, Roster, tail};
use crate::service::plain_http;
use crate::tools;

/// Of every sidecar.
pub const METRICS_PORT: u16 = 15020;
const HEALTH_PORT: u16 = 15021;

/// How long each part may take to come up. Generous: the machine may be building something.
const START_PATIENCE: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(100);
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// The mesh's pods, running.
#[derive(Debug)]
pub struct Mesh {
    /// In the order of the plan.
    pub pods: Vec<PodNamespace>,
    /// Whether the store is Redis itself, not its stand-in.
    pub real_redis: bool,
}

/// The host's sockets, each for one process.
#[derive(Debug)]
pub struct Sockets {
    pub entry: TcpListener,
    /// In the order of the plan.
    pub admin: Vec<TcpListener>,
}

impl Sockets {
    /// Takes them over from the process on the host, before any child could inherit one that is not meant for it.
    ///
    /// # Errors
    /// A descriptor is not open.
    pub fn take(entry: HostSocket, admin: Vec<HostSocket>) -> Result<Self, DemoError> {
        let take = |socket: HostSocket| socket.take().context(|| "take over a socket of the host".into());
        Ok(Self { entry: take(entry)?, admin: admin.into_iter().map(take).collect::<Result<_, _>>()? })
    }
}

/// Starts everything and waits until requests cross the mesh.
///
/// # Errors
/// The first step that failed.
pub async fn start(
    commands: &Commands<'_>,
    roster: &mut Roster,
    sockets: Sockets,
    requests_per_second: u32,
) -> Result<Mesh, DemoError> {
    make_bridge()?;
    let control = connect("control", CONTROL)?;
    let pods = PODS.iter().map(|pod| connect(pod.name, pod.address)).collect::<Result<Vec<_>, _>>()?;

    write_tokens(commands)?;
    roster.launch("ca", Kind::Control, &control, commands.ca())?;
    until_it_listens(roster, "ca", CA_PORT).await?;
    keep_trust_bundle(commands)?;
    let services = commands.files.path(SERVICES);
    fs::write(&services, plan::discovery_file()).context(|| format!("write {}", services.display()))?;
    roster.launch("discovery", Kind::Control, &control, commands.discovery())?;
    until_it_listens(roster, "discovery", DISCOVERY_PORT).await?;

    for ((pod, namespace), admin) in PODS.iter().zip(&pods).zip(sockets.admin) {
        succeeded("outrigger iptables apply", pod.name, namespace.run(|| commands.rules().output()))?;
        roster.launch(&sidecar_name(pod), Kind::Sidecar, namespace, commands.sidecar(pod, admin))?;
    }
    for pod in PODS {
        until_its_sidecar_is_ready(roster, &pod).await?;
    }

    let redis = tools::find("redis-server");
    let mut entry = Some(sockets.entry);
    for (pod, namespace) in PODS.iter().zip(&pods) {
        let command = commands.workload(pod, redis.as_deref(), &mut entry);
        roster.launch(pod.name, Kind::Workload, namespace, command)?;
    }
    until_pages_come(roster, &pods[0]).await?;
    if requests_per_second > 0 {
        roster.launch("load", Kind::Workload, &pods[0], commands.load(requests_per_second))?;
    }
    Ok(Mesh { pods, real_redis: redis.is_some() })
}

/// The name of a pod's sidecar, also its log's.
pub fn sidecar_name(pod: &Pod) -> String {
    format!("{}-sidecar", pod.name)
}

/// A token each for whoever needs a certificate, and the CA's list of their hashes.
fn write_tokens(commands: &Commands<'_>) -> Result<(), DemoError> {
    let pods = PODS.iter().map(|pod| (pod.name, plan::spiffe_id(plan::NAMESPACE, pod.service_account), true));
    let discovery = ("discovery", plan::spiffe_id("outrigger", "outrigger-discovery"), false);
    let mut list = String::new();
    for (name, id, sidecar) in pods.chain([discovery]) {
        let token: String = rand::random::<[u8; 32]>().iter().map(|byte| format!("{byte:02x}")).collect();
        list.push_str(&token_entry(&token, &id));
        let path = commands.files.path(&token_file(name));
        write_secret(&path, &token, commands.proxy_user().filter(|_| sidecar))
            .context(|| format!("write {}", path.display()))?;
    }
    let path = commands.files.path(TOKENS);
    write_secret(&path, &list, None).context(|| format!("write {}", path.display()))
}

/// An entry of the list that `outrigger ca --tokens` reads.
fn token_entry(token: &str, id: &str) -> String {
    let hash: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("- {{sha256: {hash}, identity: \"{id}\"}}\n")
}

/// The trust bundle as every pod has it mounted.
fn keep_trust_bundle(commands: &Commands<'_>) -> Result<(), DemoError> {
    let output = commands.show_trust_bundle().output().context(|| "run `outrigger ca bundle`".into())?;
    let bundle = output.stdout.clone();
    succeeded("outrigger ca bundle", "the demo's namespace", Ok(output))?;
    let path = commands.files.path(TRUST_BUNDLE);
    fs::write(&path, bundle).context(|| format!("write {}", path.display()))
}

async fn until_it_listens(roster: &Roster, name: &str, port: u16) -> Result<(), DemoError> {
    until(&format!("{name} does not listen"), roster.log(name), async || {
        TcpStream::connect((CONTROL, port)).await.map(drop).map_err(|error| error.to_string())
    })
    .await
}

async fn until_its_sidecar_is_ready(roster: &Roster, pod: &Pod) -> Result<(), DemoError> {
    let name = sidecar_name(pod);
    let health = SocketAddr::from((pod.address, HEALTH_PORT)).to_string();
    until(&format!("{name} is not ready"), roster.log(&name), async || {
        let answer = plain_http::get(&health, "/readyz", &HeaderMap::new())
            .await
            .map_err(|error| error.to_string())?;
        success(answer)
    })
    .await
}

/// Asks `web` from inside the entry, where the sidecar takes the connection over.
async fn until_pages_come(roster: &Roster, entry: &PodNamespace) -> Result<(), DemoError> {
    for path in ["/healthz", "/store", "/grpc"] {
        until(&format!("{path} does not come through the mesh"), roster.log("entry-sidecar"), async || {
            let stream =
                entry.run(|| dial(WEB.virtual_address, WEB.port)).map_err(|error| error.to_string())?;
            let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
            let answer = plain_http::get_on(stream, &WEB.authority(), path, &HeaderMap::new()).await;
            success(answer.map_err(|error| error.to_string())?)
        })
        .await?;
    }
    Ok(())
}

fn dial(address: Ipv4Addr, port: u16) -> std::io::Result<BlockingStream> {
    let stream = BlockingStream::connect_timeout(&(address, port).into(), CONNECT_PATIENCE)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn success(answer: plain_http::Answer) -> Result<(), String> {
    if answer.status == StatusCode::OK {
        return Ok(());
    }
    let proxy_status = answer.headers.get("proxy-status").and_then(|status| status.to_str().ok());
    let text = String::from_utf8_lossy(&answer.body);
    Err([&answer.status.to_string(), proxy_status.unwrap_or_default(), text.trim()].join(" ").trim().into())
}

/// Asks until the answer is good.
async fn until(
    complaint: &str,
    log: PathBuf,
    ask: impl AsyncFn() -> Result<(), String>,
) -> Result<(), DemoError> {
    let deadline = Instant::now() + START_PATIENCE;
    loop {
        match ask().await {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() > deadline => {
                return Err(DemoError::NotReady {
                    what: complaint.into(),
                    seconds: START_PATIENCE.as_secs(),
                    reason,
                    tail: tail(&log),
                    log,
                });
            }
            Err(_) => sleep(ASK_AGAIN).await,
        }
    }
}
