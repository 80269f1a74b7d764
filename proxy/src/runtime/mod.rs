//! Starts the proxy, keeps it up to date, and stops it.
//!
//! The control thread (whoever calls [`run`]) has the config, discovery, certificates, the admin ports
//! and the signals; workers carry traffic and are in `accept`.

mod accept;
mod drain;
mod give_back;
mod in_force;
mod report;

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use outrigger_ca::host::parse_dns_server;
use outrigger_ca::workload::{self, CaOptions, Source, Status};
use outrigger_ca::{DISCOVERY_ACCOUNT, ExpectedIdentity, SpiffeId};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::LocalSet;

use accept::{Listeners, Phase};
pub use drain::Ended;
use in_force::ConfigInForce;

use crate::admin;
use crate::config::{CLUSTER_DOMAIN, Config, ConfigError, Mtls};
use crate::identity::MeshTls;
use crate::net::{Dialler, HandedIn, ListenError, LocalAddresses, Role, bind_listeners, bind_listeners_at};
use crate::resolve::{MeshServer, ResolveError, ResolveSettings, Resolver};
use crate::telemetry::{AccessLog, AccessLogError, AccessLogOutput, History, Metrics, Recorder, Tap};
use crate::upstream::{Directory, HealthChecks, PoolsSettings, SecurityRules};
use crate::worker::{Effective, Moment, Shared};

/// ALPN of DNS over TLS (RFC 7858, registered as `dot`).
const ALPN_DNS: &[u8] = b"dot";

/// The ports the proxy listens on.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The workload's connections, redirected.
    pub outbound: u16,
    /// Peers' connections, redirected.
    pub inbound: u16,
    /// The admin port, on loopback.
    pub admin: u16,
    /// Prometheus metrics.
    pub metrics: u16,
    /// Readiness and liveness.
    pub health: u16,
}

impl Ports {
    fn of(&self, role: Role) -> u16 {
        match role {
            Role::Outbound => self.outbound,
            Role::Inbound => self.inbound,
            Role::Admin => self.admin,
            Role::Metrics => self.metrics,
            Role::Health => self.health,
        }
    }

    fn all(&self) -> Vec<u16> {
        vec![self.outbound, self.inbound, self.admin, self.metrics, self.health]
    }
}

/// Changes a config that was read: what the command line says wins over the file.
pub type Overlay = Box<dyn Fn(&mut Config) + Send + Sync>;

/// All that a sidecar is told at its start.
pub struct Settings {
    /// The config file; read again when it changes.
    pub config_file: Option<PathBuf>,
    /// What the command line adds.
    pub overlay: Overlay,
    /// Where it listens.
    pub ports: Ports,
    /// Addresses at which the admin port listens beside loopback; none: on loopback only.
    pub admin_addresses: Vec<IpAddr>,
    /// Sockets that a supervisor handed in.
    pub handed_in: HandedIn,
    /// Packet mark that exempts our sockets from the redirect.
    pub mark: Option<u32>,
    /// Time between looks at the CA's bundle.
    pub bundle_poll: std::time::Duration,
    /// A request for this path panics.
    pub panic_path: Option<String>,
    /// Shows and changes the level of the proxy's own log.
    pub log_level: admin::LogLevel,
    /// The binary's version.
    pub version: &'static str,
}

/// Why the proxy does not start.
#[derive(Debug, Error)]
pub enum RunError {
    /// The config.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its file can't be watched.
    #[error("changes of the config can't be watched: {0}")]
    Watch(#[from] outrigger_ca::file_watch::WatchError),
    /// Strict mode needs a certificate.
    #[error(
        "no source of certificates, and mtls is strict: give --ca HOST:PORT with --token-file FILE, or \
         --certificate FILE with --key FILE and --trust-bundle FILE (or identity.ca / identity.files in the \
         config), or set --mtls permissive"
    )]
    NoCertificateSource,
    /// A file source without roots.
    #[error(
        "a certificate from files needs --trust-bundle FILE (identity.trustBundle): the roots to verify peers by"
    )]
    NoTrustBundle,
    /// A port.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Name resolution.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A DNS server's address.
    #[error("dns.servers: `{0}` is not an address: write ip or ip:port")]
    DnsServer(String),
    /// The access log.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// The system.
    #[error("can't start: {0}")]
    System(#[from] std::io::Error),
    /// Discovery's identity can't be made of the trust domain.
    #[error("trust domain `{0}` is not one")]
    TrustDomain(String),
}

/// Runs a sidecar until it is told to stop.
///
/// # Errors
/// What keeps it from starting; once it runs, it runs.
pub fn run(settings: Settings) -> Result<Ended, RunError> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Health checks use connections that don't leave their thread.
    LocalSet::new().block_on(&runtime, control(settings))
}

async fn control(mut settings: Settings) -> Result<Ended, RunError> {
    let (config, config_changes) = ConfigInForce::load(settings.config_file.clone(), settings.overlay)?;
    let first = config.current();
    let metrics = Arc::new(Metrics::new());
    count_panics(&metrics);
    let access_log = AccessLog::new(access_log_output(&first), &metrics)?;
    let tls = Arc::new(MeshTls::default());
    let status = certificates(&first, &settings.mark, settings.bundle_poll)?;
    let local = LocalAddresses::read();
    let resolver = resolver(&first, &tls, &local, settings.mark, &metrics)?;
    let (health_checks, checker) = HealthChecks::channel();
    tokio::task::spawn_local(checker.run(PoolsSettings {
        dialler: Dialler::to_peers(settings.mark),
        tls: tls.clone(),
        recorder: Rc::new(Recorder::new(metrics.clone(), access_log.clone())),
    }));
    let directory = Directory::start(resolver, health_checks, first.clone(), rules(&first));
    let draining = Arc::new(AtomicBool::new(false));
    let (drain_inbound, inbound_draining) = watch::channel(false);
    let (drain_outbound, outbound_draining) = watch::channel(false);
    let shared = Arc::new(Shared {
        effective: arc_swap::ArcSwap::from_pointee(Effective::new(first.clone())),
        tls: tls.clone(),
        exhausted: Moment::new(),
        directory: directory.clone(),
        metrics: metrics.clone(),
        tap: Tap::new(metrics.tap_dropped.clone()),
        failures: Arc::default(),
        connections: Default::default(),
        local,
        own_ports: own_ports(&settings.ports, &settings.handed_in),
        stopping: draining.clone(),
        inbound_draining,
        outbound_draining,
        mark: settings.mark,
        panic_path: settings.panic_path.take(),
    });
    if let Some(status) = status.clone() {
        let tls = tls.clone();
        tokio::spawn(async move { tls.follow(status).await });
    }
    let ports = &settings.ports;
    let handed_in = &mut settings.handed_in;
    let listeners = listeners(first.workers(), ports, handed_in)?;
    let ready =
        report::Readiness { shared: shared.clone(), status: status.clone(), draining: draining.clone() };
    let (stop, stopping) = drain::requests();
    let history = Arc::new(History::new(metrics.clone()));
    let admin = admin_sockets(&settings.admin_addresses, ports, handed_in)?;
    let about = report::About {
        version: settings.version,
        reached_by: reached_by(&admin),
        started: std::time::SystemTime::now(),
    };
    let sources =
        Arc::new(report::sources(&ready, &config, &metrics, &history, &stop, about, settings.log_level));
    let mut admin = Some(admin);
    for role in [Role::Admin, Role::Metrics, Role::Health] {
        let listeners = match role {
            Role::Admin => admin.take().unwrap_or_default(),
            _ => sockets(role, ports, handed_in)?,
        };
        for listener in listeners {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let sources = sources.clone();
            match role {
                Role::Admin => tokio::spawn(admin::serve_admin(listener, sources)),
                Role::Metrics => tokio::spawn(admin::serve_metrics(listener, sources)),
                _ => tokio::spawn(admin::serve_health(listener, sources)),
            };
        }
    }
    let (phase, in_phase) = watch::channel(Phase::Running);
    let (workers, accepting) = accept::start(&shared, &access_log, listeners, &in_phase)?;
    tokio::spawn(report::keep_gauges(shared.clone(), status.clone()));
    tokio::spawn(when_certified(status, give_back::code_of_starting));
    {
        let metrics = metrics.clone();
        tokio::spawn(async move { metrics.keep_swept().await });
    }
    tokio::spawn(async move { history.keep().await });
    tokio::spawn(config.keep_reloaded(config_changes, shared.clone(), metrics.clone()));
    tracing::info!("outrigger {} is listening", settings.version);
    let drain =
        drain::Drain { shared: &shared, drain_inbound, drain_outbound, phase, draining, stopping, accepting };
    let ended = drain.until_ended(first.drain_timeout(), &access_log).await?;
    for worker in workers {
        if worker.join().is_err() {
            tracing::error!("a worker had panicked");
        }
    }
    access_log.flush(std::time::Duration::from_secs(1));
    Ok(ended)
}

/// Calls once there is a certificate, or none is needed.
async fn when_certified(status: Option<watch::Receiver<Arc<Status>>>, then: fn()) {
    if let Some(mut status) = status {
        // An error means that the proxy stops before.
        _ = status.wait_for(|status| status.material.is_some()).await;
    }
    then();
}

fn access_log_output(config: &Config) -> AccessLogOutput {
    match config.access_log.output.as_deref() {
        None | Some("none") => AccessLogOutput::None,
        Some("stdout") => AccessLogOutput::Stdout,
        Some(path) => AccessLogOutput::File(path.into()),
    }
}

/// Starts keeping a certificate; none in permissive mode without a source.
fn certificates(
    config: &Config,
    mark: &Option<u32>,
    bundle_poll: std::time::Duration,
) -> Result<Option<watch::Receiver<Arc<Status>>>, RunError> {
    let identity = &config.identity;
    let source = match (&identity.ca, &identity.files) {
        (Some(ca), _) => {
            let mut options = CaOptions::new(ca.address.clone(), ca.token_file.clone());
            options.trust_bundle = identity.trust_bundle.clone();
            options.mark = *mark;
            options.bundle_poll = bundle_poll;
            Source::Ca(options)
        }
        (None, Some(files)) => Source::Files {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            trust_bundle: identity.trust_bundle.clone().ok_or(RunError::NoTrustBundle)?,
        },
        (None, None) if config.mtls == Mtls::Strict => return Err(RunError::NoCertificateSource),
        (None, None) => {
            tracing::warn!(
                "no source of certificates: everybody is called in plaintext but peers of the mesh, who can't be"
            );
            return Ok(None);
        }
    };
    Ok(Some(workload::keep(source, config.trust_domain())))
}

fn resolver(
    config: &Config,
    tls: &Arc<MeshTls>,
    local: &LocalAddresses,
    mark: Option<u32>,
    metrics: &Arc<Metrics>,
) -> Result<Resolver, RunError> {
    let server = |text: &String| parse_dns_server(text).ok_or_else(|| RunError::DnsServer(text.clone()));
    let mesh = match &config.dns.mesh_server {
        None => None,
        Some(address) => {
            let expected = SpiffeId::new(config.trust_domain(), DISCOVERY_ACCOUNT.0, DISCOVERY_ACCOUNT.1)
                .map_err(|_| RunError::TrustDomain(config.trust_domain().into()))?;
            let tls = tls.clone();
            Some(MeshServer {
                address: address.clone(),
                tls: Arc::new(move || tls.client(ALPN_DNS)),
                expected: ExpectedIdentity::Exact(expected),
            })
        }
    };
    let own = local.clone();
    let settings = ResolveSettings {
        servers: config.dns.servers.iter().map(server).collect::<Result<_, _>>()?,
        hosts_file: config.dns.hosts_file().into(),
        search: config.dns.search.clone(),
        ndots: config.dns.ndots,
        cluster_domain: CLUSTER_DOMAIN.into(),
        own_addresses: Arc::new(move || own.all()),
        mesh,
        mark,
    };
    Ok(Resolver::new(settings, Some(metrics.clone()))?)
}

/// The rules of a config about who is of the mesh.
fn rules(config: &Config) -> Arc<SecurityRules> {
    Arc::new(SecurityRules {
        trust_domain: config.trust_domain().into(),
        cluster_domain: CLUSTER_DOMAIN.into(),
        outbound: Arc::new(config.outbound.clone()),
        // Without a source of certificates there is nothing to try mesh TLS with.
        tries_tls: config.mtls != Mtls::Strict
            && (config.identity.ca.is_some() || config.identity.files.is_some()),
        discovery: config.dns.mesh_server.is_some(),
    })
}

/// Listeners for each worker: handed-in ones are shared by all, ours are one a worker.
fn listeners(workers: usize, ports: &Ports, handed_in: &mut HandedIn) -> Result<Vec<Listeners>, RunError> {
    let mut all = Vec::new();
    let outbound = handed_in.remove(&Role::Outbound);
    let inbound = handed_in.remove(&Role::Inbound);
    let of_one = |role: Role, handed_in: &Option<Vec<TcpListener>>| match handed_in {
        Some(sockets) => sockets.iter().map(|s| s.try_clone().map_err(RunError::System)).collect(),
        None => Ok(bind_listeners(role, ports.of(role))?),
    };
    for _ in 0..workers.max(1) {
        all.push(Listeners {
            outbound: of_one(Role::Outbound, &outbound)?,
            inbound: of_one(Role::Inbound, &inbound)?,
        });
    }
    Ok(all)
}

fn sockets(role: Role, ports: &Ports, handed_in: &mut HandedIn) -> Result<Vec<TcpListener>, RunError> {
    match handed_in.remove(&role) {
        Some(sockets) => Ok(sockets),
        None => Ok(bind_listeners(role, ports.of(role))?),
    }
}

fn admin_sockets(
    addresses: &[IpAddr],
    ports: &Ports,
    handed_in: &mut HandedIn,
) -> Result<Vec<TcpListener>, RunError> {
    if addresses.is_empty() || handed_in.contains_key(&Role::Admin) {
        return sockets(Role::Admin, ports, handed_in);
    }
    Ok(bind_listeners_at(Role::Admin, addresses, ports.admin)?)
}

/// Says so where others than this machine can reach the admin port: who reaches it can read and stop the proxy.
fn reached_by(admin: &[TcpListener]) -> admin::ReachedBy {
    let addresses = admin.iter().filter_map(|listener| listener.local_addr().ok());
    let mut beyond = addresses.filter(|address| !address.ip().to_canonical().is_loopback());
    match beyond.next() {
        None => admin::ReachedBy::Loopback,
        Some(address) => {
            tracing::warn!(
                "the admin port listens on {address}: whoever reaches it sees all requests and can stop the proxy; let a \
                 firewall or a network policy say who does"
            );
            admin::ReachedBy::AnyAddress
        }
    }
}

/// Ports that lead back here, whoever made their sockets.
fn own_ports(ports: &Ports, handed_in: &HandedIn) -> Vec<u16> {
    let handed_in = handed_in.values().flatten().filter_map(|listener| listener.local_addr().ok());
    ports.all().into_iter().chain(handed_in.map(|address| address.port())).collect()
}

/// Each connection needs two file descriptors; the usual soft limit of 1024 is no limit of ours.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("the limit on open files stays as it is: {error}");
    }
}

/// A panic ends one connection or request; it is counted, and logged with where it happened.
fn count_panics(metrics: &Arc<Metrics>) {
    let metrics = metrics.clone();
    std::panic::set_hook(Box::new(move |panic| {
        metrics.panics.inc();
        tracing::error!("{panic}; this is a bug: what was being carried ends, everything else goes on");
    }));
}
