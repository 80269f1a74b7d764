//! `outrigger sidecar`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

use outrigger_ca::HostPort;
use outrigger_proxy::config::{CaSource, Config, FileSource, HEALTH_PORT, METRICS_PORT, Mtls, Network};
use outrigger_proxy::net::handed_in_sockets;
use outrigger_proxy::runtime::{self, Ended, Ports, Settings};

use crate::flags::{self, IdentityArgs, Port};
use crate::log::LogArgs;
use crate::{Failure, version};

const EXAMPLES: &str = "\
Examples:
  With certificates in files, and peers of the mesh under svc.cluster.local:
    outrigger sidecar --certificate tls.crt --key tls.key --trust-bundle ca.pem --mesh-domain svc.cluster.local

  With the mesh's CA and discovery:
    outrigger sidecar --ca ca.outrigger.svc:15012 --token-file token --trust-bundle ca.pem \\
      --discovery discovery.outrigger.svc:15053 --mesh-domain svc.cluster.local

  The rules that send a pod's traffic here are set by `outrigger iptables apply`.

Exit codes: 0 drained, 1 could not start, 2 wrong usage, 3 connections were cut when the drain's time was over,
130 stopped at once.";

/// Run the proxy beside a workload.
///
/// Takes the workload's connections over (port 15001), carries them to the peers' sidecars by mutual TLS, and lets in
/// what they send (port 15006). SIGTERM drains, SIGINT stops at once, SIGHUP opens the access log anew.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Config file (YAML); watched. Flags win over it.
    #[arg(long, env = "OUTRIGGER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// How strictly mutual TLS is demanded [default: strict]
    #[arg(long, env = "OUTRIGGER_MTLS", value_name = "MODE", value_parser = flags::mtls())]
    mtls: Option<Mtls>,
    /// Domain whose names are peers of the mesh; repeatable.
    #[arg(long, env = "OUTRIGGER_MESH_DOMAIN", value_name = "DOMAIN", value_delimiter = ',')]
    mesh_domain: Vec<String>,
    /// Network whose addresses are peers of the mesh; repeatable.
    #[arg(long, env = "OUTRIGGER_MESH_NETWORK", value_name = "CIDR", value_delimiter = ',')]
    mesh_network: Vec<Network>,
    /// The mesh's discovery, asked over DNS over TLS.
    #[arg(long, env = "OUTRIGGER_DISCOVERY", value_name = "HOST:PORT")]
    discovery: Option<HostPort>,
    /// DNS server, instead of those of /etc/resolv.conf; repeatable.
    #[arg(long, env = "OUTRIGGER_DNS_SERVER", value_name = "IP[:PORT]", value_delimiter = ',', value_parser = flags::dns_server)]
    dns_server: Vec<SocketAddr>,
    /// Hosts file [default: /etc/hosts]
    #[arg(long, env = "OUTRIGGER_HOSTS_FILE", value_name = "FILE")]
    hosts_file: Option<PathBuf>,
    /// Threads that carry traffic [default: 1]
    #[arg(long, env = "OUTRIGGER_WORKERS", value_name = "N")]
    workers: Option<usize>,
    /// Access log: none, stdout, or a file's path [default: none]
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG", value_name = "OUTPUT")]
    access_log: Option<String>,
    /// Time that requests in flight have to finish when stopping [default: 25s]
    #[arg(long, env = "OUTRIGGER_DRAIN_TIMEOUT", value_name = "DURATION")]
    drain_timeout: Option<outrigger_proxy::config::Duration>,
    /// Port of the workload's redirected connections, on loopback.
    #[arg(long, env = "OUTRIGGER_OUTBOUND_PORT", value_name = "PORT", default_value_t = 15001, value_parser = Port)]
    outbound_port: u16,
    /// Port of peers' redirected connections.
    #[arg(long, env = "OUTRIGGER_INBOUND_PORT", value_name = "PORT", default_value_t = 15006, value_parser = Port)]
    inbound_port: u16,
    /// Admin port.
    #[arg(long, env = "OUTRIGGER_ADMIN_PORT", value_name = "PORT", default_value_t = 15000, value_parser = Port)]
    admin_port: u16,
    /// Address at which the admin port listens beside loopback; repeatable. Whoever reaches it sees all requests and can
    /// stop the proxy [default: loopback only]
    #[arg(long, env = "OUTRIGGER_ADMIN_ADDRESS", value_name = "IP", value_delimiter = ',')]
    admin_address: Vec<IpAddr>,
    /// Port of /metrics.
    #[arg(long, env = "OUTRIGGER_METRICS_PORT", value_name = "PORT", default_value_t = METRICS_PORT, value_parser = Port)]
    metrics_port: u16,
    /// Port of /readyz and /livez.
    #[arg(long, env = "OUTRIGGER_HEALTH_PORT", value_name = "PORT", default_value_t = HEALTH_PORT, value_parser = Port)]
    health_port: u16,
    /// Exempt the proxy's own connections from the redirect by packet marks, this one and the next, instead of by uid;
    /// needs CAP_NET_ADMIN. For places without uids to spare. Without a value: 1337.
    #[arg(long, env = "OUTRIGGER_MARK", value_name = "MARK", num_args = 0..=1, default_missing_value = "1337")]
    mark: Option<u32>,
    #[command(flatten)]
    log: LogArgs,
    /// Panic on requests for this path: for tests of what a panic ends.
    #[arg(long, env = "OUTRIGGER_PANIC_PATH", value_name = "PATH", hide = true)]
    panic_path: Option<String>,
}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        // Before anything opens a file: the handed-in ones are known by their numbers.
        let handed_in = handed_in_sockets()?;
        let log_level = self.log.start()?;
        let settings = Settings {
            config_file: self.config.clone(),
            ports: Ports {
                outbound: self.outbound_port,
                inbound: self.inbound_port,
                admin: self.admin_port,
                metrics: self.metrics_port,
                health: self.health_port,
            },
            admin_addresses: self.admin_address.clone(),
            handed_in,
            mark: self.mark,
            bundle_poll: self.identity.bundle_poll.as_std(),
            panic_path: self.panic_path.clone(),
            log_level,
            version: version::VERSION,
            overlay: Box::new(move |config| self.overlay(config)),
        };
        Ok(match runtime::run(settings)? {
            Ended::Drained => ExitCode::SUCCESS,
            Ended::CutOff { inbound, outbound } => {
                tracing::warn!(
                    "the drain's time was over: cut {inbound} connections of peers, {outbound} of the workload"
                );
                ExitCode::from(3)
            }
            Ended::Interrupted => ExitCode::from(130),
        })
    }

    /// Puts the flags on top of a config.
    fn overlay(&self, config: &mut Config) {
        let flags = &self.identity;
        let identity = &mut config.identity;
        if let (Some(address), Some(token_file)) = (&flags.ca, &flags.token_file) {
            identity.ca = Some(CaSource { address: address.to_string(), token_file: token_file.clone() });
            identity.files = None;
        }
        if let (Some(certificate), Some(key)) = (&flags.certificate, &flags.key) {
            identity.files = Some(FileSource { certificate: certificate.clone(), key: key.clone() });
            identity.ca = None;
        }
        identity.trust_bundle = flags.trust_bundle.clone().or(identity.trust_bundle.take());
        config.trust_domain = flags.trust_domain.clone().or(config.trust_domain.take());
        config.mtls = self.mtls.unwrap_or(config.mtls);
        config.outbound.mesh_domains.extend_from_slice(&self.mesh_domain);
        config.outbound.mesh_networks.extend_from_slice(&self.mesh_network);
        let dns = &mut config.dns;
        dns.mesh_server = self.discovery.as_ref().map(HostPort::to_string).or(dns.mesh_server.take());
        dns.hosts_file = self.hosts_file.clone().or(dns.hosts_file.take());
        if !self.dns_server.is_empty() {
            dns.servers = self.dns_server.iter().map(SocketAddr::to_string).collect();
        }
        config.workers = self.workers.or(config.workers);
        config.access_log.output = self.access_log.clone().or(config.access_log.output.take());
        config.drain_timeout = self.drain_timeout.or(config.drain_timeout);
    }
}
