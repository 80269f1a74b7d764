//! What holds where the config says nothing (the design's "Defaults"), and the questions that the
//! pipelines ask of a config.

mod route;
mod survival;
mod upstream;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use outrigger_ca::host::without_root;

use super::log_format::{JSON, LogField, LogFormat};
use super::model::{AccessLog, Config, Dns, Inbound, Mtls, Outbound, Protocol, TraceHeaders};
use super::syntax::Unmeshed;
pub use route::*;
pub use survival::*;
pub use upstream::*;

/// The trust domain of a mesh that names none.
pub const TRUST_DOMAIN: &str = "cluster.local";
/// The domain of the services' names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// How long a stopping proxy lets requests in flight finish: inside the 30 s that Kubernetes gives.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(25);
/// The longest drain that a config may ask for.
pub const MAX_DRAIN_TIMEOUT: Duration = Duration::from_secs(3600);
/// Threads that carry traffic.
pub const WORKERS: usize = 1;
/// The hosts file.
pub const HOSTS_FILE: &str = "/etc/hosts";
/// How long a connection to a workload that refuses it is tried again: longer than most take from their start to
/// listening, and shorter than callers wait for a connection.
pub const CONNECT_RETRY: Duration = Duration::from_secs(1);
/// Where the access log is written: nowhere.
pub const ACCESS_LOG_OUTPUT: &str = "none";
/// Share of the requests that are logged.
pub const ACCESS_LOG_SAMPLE: f64 = 1.0;
/// Share of the traces started here that are recorded.
pub const SAMPLE_RATIO: f64 = 0.0;
/// The headers of traces that are read.
pub const READ_TRACE_HEADERS: [TraceHeaders; 3] =
    [TraceHeaders::W3c, TraceHeaders::B3, TraceHeaders::B3multi];
/// The headers of traces that are written.
pub const WRITTEN_TRACE_HEADERS: [TraceHeaders; 1] = [TraceHeaders::W3c];
/// A sidecar's port of metrics.
pub const METRICS_PORT: u16 = 15020;
/// A sidecar's port of readiness and liveness.
pub const HEALTH_PORT: u16 = 15021;
/// Ports on which the server speaks first or another protocol than HTTP is certain: SMTP, mail
/// submission, MySQL, NATS, AMQP, Elasticsearch transport, memcached, MongoDB.
pub const OPAQUE_PORTS: [u16; 8] = [25, 587, 3306, 4222, 5672, 9300, 11211, 27017];

/// Whether the redirect of every sidecar leaves this port alone, so that it is plaintext.
pub fn is_not_redirected(port: u16) -> bool {
    [METRICS_PORT, HEALTH_PORT].contains(&port)
}

/// Has no sidecar in any cluster, and everybody asks it.
const KUBERNETES_API: &str = "kubernetes.default.svc";

impl Config {
    /// The trust domain of every identity.
    pub fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or(TRUST_DOMAIN)
    }

    /// How long requests in flight may take to finish at the end.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout.map_or(DRAIN_TIMEOUT, Into::into)
    }

    /// Threads that carry traffic, at least 1.
    pub fn workers(&self) -> usize {
        self.workers.unwrap_or(WORKERS).max(1)
    }

    /// The mTLS mode of an inbound port.
    pub fn inbound_mtls(&self, port: u16) -> Mtls {
        self.inbound.ports.get(&port).and_then(|port| port.mtls).unwrap_or(self.mtls)
    }
}

impl Dns {
    /// The hosts file.
    pub fn hosts_file(&self) -> &Path {
        self.hosts_file.as_deref().unwrap_or(Path::new(HOSTS_FILE))
    }
}

impl Inbound {
    /// How long a connection to a workload that refuses it is tried again; 0 for not at all.
    pub fn connect_retry(&self) -> Duration {
        self.connect_retry.map_or(CONNECT_RETRY, Into::into)
    }

    /// What is spoken on a port.
    pub fn protocol(&self, port: u16) -> Protocol {
        self.ports.get(&port).map_or(Protocol::Auto, |port| port.protocol)
    }

    /// Whether nothing is parsed on a port. A protocol stated for the port wins over the default list.
    pub fn is_opaque(&self, port: u16) -> bool {
        match self.protocol(port) {
            Protocol::Tcp => true,
            Protocol::Auto => is_opaque(&self.opaque_ports, port),
            Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => false,
        }
    }
}

impl Outbound {
    /// Whether nothing is parsed on connections to a port.
    pub fn is_opaque(&self, port: u16) -> bool {
        is_opaque(&self.opaque_ports, port)
    }

    /// Whether a name lies under one of `meshDomains`.
    pub fn is_mesh_name(&self, name: &str) -> bool {
        let name = without_root(name);
        self.mesh_domains.iter().any(|domain| is_under(name, without_root(domain)))
    }

    /// Whether an address lies in one of `meshNetworks`.
    pub fn is_mesh_address(&self, address: IpAddr) -> bool {
        self.mesh_networks.iter().any(|network| network.contains(address))
    }

    /// Whether an endpoint is listed as having no sidecar, by its qualified name or its address.
    pub fn is_unmeshed(&self, name: Option<&str>, port: u16, address: IpAddr) -> bool {
        let name = name.map(without_root);
        let listed = || self.unmeshed.iter().filter_map(|entry| Unmeshed::parse(entry));
        name.is_some_and(is_kubernetes_api)
            || listed().any(|entry| match entry {
                Unmeshed::Network(network) => network.contains(address),
                Unmeshed::Host { host, port: listed } => {
                    listed.is_none_or(|listed| listed == port)
                        && name.is_some_and(|name| name.eq_ignore_ascii_case(without_root(host)))
                }
            })
    }
}

impl AccessLog {
    /// `none`, `stdout`, or a file's path.
    pub fn output(&self) -> &str {
        self.output.as_deref().unwrap_or(ACCESS_LOG_OUTPUT)
    }

    /// How a line is written.
    pub fn line_format(&self) -> LogFormat {
        match self.format.as_deref() {
            // What is no format was refused by the rules.
            Some(text) if text != JSON => LogFormat::text(text).unwrap_or_default(),
            _ if self.fields.is_empty() => LogFormat::default(),
            _ => LogFormat::Json(self.fields.iter().filter_map(|name| LogField::named(name)).collect()),
        }
    }

    /// Share of the requests and connections that are logged, 0 to 1.
    pub fn sample(&self) -> f64 {
        self.sample.unwrap_or(ACCESS_LOG_SAMPLE)
    }
}

fn is_opaque(added: &[u16], port: u16) -> bool {
    OPAQUE_PORTS.contains(&port) || added.contains(&port)
}

/// Whether `name` is `domain` or ends in `.domain`.
fn is_under(name: &str, domain: &str) -> bool {
    let Some(start) = name.len().checked_sub(domain.len()) else {
        return false;
    };
    name.is_char_boundary(start)
        && name[start..].eq_ignore_ascii_case(domain)
        && (start == 0 || name[..start].ends_with('.'))
}

/// `kubernetes.default.svc` with any cluster domain.
fn is_kubernetes_api(name: &str) -> bool {
    name.get(..KUBERNETES_API.len()).is_some_and(|start| start.eq_ignore_ascii_case(KUBERNETES_API))
        && matches!(name.as_bytes().get(KUBERNETES_API.len()), None | Some(b'.'))
}

#[cfg(test)]
mod tests {
    use super::super::model::InboundPort;
    use super::*;

    #[test]
    fn a_name_is_of_the_mesh_when_it_lies_under_a_mesh_domain() {
        let outbound = Outbound { mesh_domains: vec!["svc.cluster.local".into()], ..Outbound::default() };
        for (name, want) in [
            ("api.shop.svc.cluster.local", true),
            ("API.shop.SVC.cluster.local.", true),
            ("svc.cluster.local", true),
            ("evilsvc.cluster.local", false),
            ("cluster.local", false),
            ("api.shop.svc.cluster.local.evil.com", false),
            ("äsvc.cluster.local", false),
            ("", false),
        ] {
            assert_eq!(outbound.is_mesh_name(name), want, "{name}");
        }
    }

    #[test]
    fn unmeshed_entries_are_hosts_ports_of_hosts_and_networks() {
        let outbound = Outbound {
            unmeshed: ["legacy.shop.svc.cluster.local:80", "old.example", "10.1.0.0/16", "fd00::1"]
                .map(String::from)
                .into(),
            ..Outbound::default()
        };
        for (name, port, address, want) in [
            (Some("legacy.shop.svc.cluster.local"), 80, "192.0.2.1", true),
            (Some("legacy.shop.svc.cluster.local"), 81, "192.0.2.1", false),
            (Some("Old.Example."), 9, "192.0.2.1", true),
            (Some("very.old.example"), 9, "192.0.2.1", false),
            (None, 9, "192.0.2.1", false),
            (None, 9, "10.1.2.3", true),
            (None, 9, "fd00::1", true),
            (Some("kubernetes.default.svc"), 443, "192.0.2.1", true),
            (Some("Kubernetes.default.svc.example.internal"), 443, "192.0.2.1", true),
            (Some("kubernetes.default.svcx"), 443, "192.0.2.1", false),
            (Some("kubernetes.shop.svc.cluster.local"), 443, "192.0.2.1", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(outbound.is_unmeshed(name, port, address), want, "{name:?} {port} {address}");
        }
    }

    #[test]
    fn a_protocol_stated_for_a_port_wins_over_the_default_opaque_ports() {
        let port = |protocol| InboundPort { protocol, ..InboundPort::default() };
        let inbound = Inbound {
            opaque_ports: vec![6000],
            ports: [(3306, port(Protocol::Http1)), (7000, port(Protocol::Tcp))].into(),
            ..Inbound::default()
        };
        for (port, want) in [(6000, true), (25, true), (3306, false), (7000, true), (80, false)] {
            assert_eq!(inbound.is_opaque(port), want, "{port}");
        }
    }

    #[test]
    fn the_mode_of_a_port_is_its_own_or_that_of_the_proxy() {
        let own = InboundPort { mtls: Some(Mtls::Permissive), ..InboundPort::default() };
        let config = Config {
            mtls: Mtls::Audit,
            inbound: Inbound { ports: [(9090, own)].into(), ..Inbound::default() },
            ..Config::default()
        };
        assert_eq!(config.inbound_mtls(9090), Mtls::Permissive);
        assert_eq!(config.inbound_mtls(80), Mtls::Audit);
    }
}
