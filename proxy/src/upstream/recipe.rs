//! How an upstream is made: its policy from the config or the defaults, its endpoints from the latest answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_ca::SpiffeId;
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::owned::{Callee, Owned, by_owners};
use super::security::{Claims, Pinned};
use super::{Endpoint, EndpointSet, Policy, Security, SecurityRules};
use crate::config::{self, Discovery, UpstreamTls, UpstreamTlsMode};
use crate::identity::{TlsError, server_tls};
use crate::resolve::{LookupError, ResolvedEndpoint, Snapshot, Target};

/// Why a configured upstream can't be made.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// Its TLS settings.
    #[error("upstream {0}: {1}")]
    Tls(String, TlsError),
    /// The name that the server's certificate must carry.
    #[error("upstream {0}: tls.serverName `{1}` is not a host name")]
    ServerName(String, String),
    /// The pinned identity.
    #[error("upstream {0}: identity `{1}` is not a SPIFFE ID: {2}")]
    Identity(String, String, String),
}

/// All that makes an upstream but the answers of discovery.
#[derive(Debug)]
pub(super) struct Recipe {
    pub(super) name: Arc<str>,
    pub(super) policy: Policy,
    pub(super) any_destination: bool,
    pub(super) source: Source,
    tls: Option<Security>,
    mesh: bool,
    pinned: Pinned,
}

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The config, where nobody is asked whose they are; the name they belong to if it states one, and the dialled port.
    Fixed(Vec<SocketAddr>, Option<Arc<str>>, u16),
    /// A list of addresses that knows nothing of the mesh; the name they belong to if the config states one, and the
    /// dialled port.
    Listed(Target, Option<Arc<str>>, u16),
    /// A name.
    Name(Target),
    /// The dialled address itself; discovery says whose it is.
    Dialled(SocketAddr),
}

impl Source {
    /// Where the endpoints of an upstream of the config come from. `port` is the one that was dialled; `knows_owners`:
    /// there is a discovery that says whose an address is.
    pub(super) fn configured(upstream: &config::Upstream, port: u16, knows_owners: bool) -> Self {
        let host = upstream.hosts.first().map(|host| Arc::from(host.to_ascii_lowercase()));
        match &upstream.discovery {
            Some(Discovery::Static(addresses)) if knows_owners && upstream.tls.is_none() => {
                Self::Listed(Target::Stated(addresses.as_slice().into()), host, port)
            }
            Some(Discovery::Static(addresses)) => Self::Fixed(addresses.clone(), host, port),
            Some(Discovery::Dns(dns)) if dns.name.starts_with('_') => {
                Self::Name(Target::Srv { name: dns.name.to_ascii_lowercase().into() })
            }
            Some(Discovery::Dns(dns)) => Self::Name(Target::Name {
                host: dns.name.to_ascii_lowercase().into(),
                port: dns.port.unwrap_or(port),
            }),
            None => match host {
                Some(host) => Self::Name(Target::Name { host, port }),
                None => Self::Fixed(Vec::new(), None, port),
            },
        }
    }

    /// The port that was dialled, or that the config states in its place for a host name. None where an answer says it.
    fn dialled_port(&self) -> Option<u16> {
        match self {
            Self::Name(Target::Name { port, .. }) => Some(*port),
            Self::Dialled(address) => Some(address.port()),
            Self::Fixed(_, _, port) | Self::Listed(_, _, port) => Some(*port),
            Self::Name(_) => None,
        }
    }

    /// What is to be followed, if anything.
    pub(super) fn target(&self) -> Option<Target> {
        match self {
            Self::Fixed(..) => None,
            Self::Listed(target, ..) | Self::Name(target) => Some(target.clone()),
            Self::Dialled(address) => Some(Target::Address(*address)),
        }
    }
}

impl Recipe {
    /// An upstream of the config, its source as [`Source::configured`] says.
    pub(super) fn configured(
        name: &str,
        upstream: &config::Upstream,
        port: u16,
        knows_owners: bool,
    ) -> Result<Self, RecipeError> {
        let tls = match &upstream.tls {
            None | Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh)) => None,
            Some(UpstreamTls::Mode(UpstreamTlsMode::None)) => Some(Security::Plain),
            Some(UpstreamTls::Server(server)) => Some(Security::Server {
                config: server_tls(&server.ca_file).map_err(|error| RecipeError::Tls(name.into(), error))?,
                name: ServerName::try_from(server.server_name.clone())
                    .map_err(|_| RecipeError::ServerName(name.into(), server.server_name.clone()))?,
            }),
        };
        let pinned = match upstream.identity.as_deref() {
            None => Pinned::No,
            Some("any") => Pinned::Any,
            Some(id) => Pinned::Exactly(
                id.parse::<SpiffeId>()
                    .map_err(|error| RecipeError::Identity(name.into(), id.into(), error.to_string()))?,
            ),
        };
        Ok(Self {
            name: name.into(),
            policy: Policy {
                connect_timeout: upstream.connect_timeout(),
                max_connections: upstream.pool.max_connections(),
                max_pending_requests: upstream.pool.max_pending_requests(),
                idle_timeout: upstream.pool.idle_timeout(),
                protocol: upstream.protocol,
                request_timeout: None,
            },
            any_destination: upstream.any_destination,
            mesh: matches!(upstream.tls, Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh))),
            source: Source::configured(upstream, port, knows_owners),
            tls,
            pinned,
        })
    }

    /// An upstream that nobody configured, with the defaults.
    pub(super) fn on_demand(name: impl Into<Arc<str>>, source: Source) -> Self {
        Self {
            name: name.into(),
            policy: Policy::default(),
            any_destination: false,
            source,
            tls: None,
            mesh: false,
            pinned: Pinned::No,
        }
    }

    /// The endpoints as the latest answer gives them.
    pub(super) fn endpoint_set(&self, rules: &SecurityRules, snapshot: Option<&Snapshot>) -> EndpointSet {
        let answer = snapshot.and_then(|snapshot| snapshot.answer.as_deref());
        let failed = snapshot
            .and_then(|snapshot| snapshot.error.as_deref())
            .is_some_and(|error| matches!(error, LookupError::Failed { .. }));
        let Owned { callees, vips, service } = self.callees(rules, snapshot, failed);
        let endpoints = callees
            .iter()
            .map(|Callee { endpoint, name, namespace }| {
                let claims = Claims {
                    undiscovered: failed && name.is_some_and(|name| rules.is_discoverys(name)),
                    tls: self.tls.as_ref(),
                    mesh: self.mesh,
                    pinned: &self.pinned,
                    name: *name,
                    namespace: *namespace,
                };
                let address = endpoint.address;
                let server_name = name
                    .and_then(|name| ServerName::try_from(name.to_owned()).ok())
                    .unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
                let security = rules.decide(&claims, endpoint, self.source.dialled_port());
                Endpoint::new(address, endpoint.weight, endpoint.opaque, security, server_name)
            })
            .collect();
        EndpointSet {
            name: answer.map(|answer| answer.name.clone()),
            endpoints,
            vips,
            source: match &self.source {
                Source::Fixed(..) => "static",
                Source::Dialled(_) if answer.is_none() => "dialled",
                _ => answer.map_or("none", |answer| answer.source.as_str()),
            },
            refreshed: snapshot.map(|snapshot| snapshot.refreshed),
            error: snapshot.and_then(Snapshot::trouble).map(|error| error.to_string().into()),
            request_timeout: service.and_then(|service| service.timeout),
        }
    }

    /// Who may be called, before it is decided how.
    fn callees<'a>(
        &'a self,
        rules: &SecurityRules,
        snapshot: Option<&'a Snapshot>,
        failed: bool,
    ) -> Owned<'a> {
        let answer = snapshot.and_then(|snapshot| snapshot.answer.as_deref());
        let (resolved, name) = match &self.source {
            Source::Fixed(addresses, host, _) => {
                let resolved = addresses.iter().map(|address| unknown(*address)).collect();
                (resolved, host.as_deref().map(strip_service_labels))
            }
            Source::Listed(..) | Source::Name(_) => {
                let Some(answer) = answer else { return Owned::default() };
                let name = match &self.source {
                    Source::Listed(_, host, _) => host.as_deref(),
                    _ => Some(&*answer.name),
                };
                let name = name.map(strip_service_labels);
                if let Some(owners) = snapshot.and_then(|snapshot| snapshot.owners.as_deref())
                    && self.is_owners_to_say(rules, name, failed)
                {
                    return by_owners(answer, owners, name, self.pinned != Pinned::No, rules);
                }
                (answer.endpoints.clone(), name)
            }
            // A VIP has no listener: its service's own upstream is used.
            Source::Dialled(address) if answer.is_some_and(|a| a.vips.contains(&address.ip())) => {
                (Vec::new(), None)
            }
            Source::Dialled(address) => {
                let known = answer.and_then(|answer| answer.endpoints.iter().find(|e| e.address == *address));
                (vec![known.cloned().unwrap_or_else(|| unknown(*address))], None)
            }
        };
        let service = answer.and_then(|answer| answer.service.as_ref());
        let namespace = service.map(|service| &*service.namespace);
        Owned {
            callees: resolved.into_iter().map(|endpoint| Callee { endpoint, name, namespace }).collect(),
            vips: answer.map(|answer| answer.vips.clone()).unwrap_or_default(),
            service,
        }
    }

    /// Whether it depends on the addresses' owners how they are called: not where the config says it, nor where the name is
    /// of the mesh and so says whom to expect, discovery being away or not.
    fn is_owners_to_say(&self, rules: &SecurityRules, name: Option<&str>, failed: bool) -> bool {
        let says_itself = |name| failed && rules.is_discoverys(name) || rules.outbound.is_mesh_name(name);
        self.tls.is_none() && !self.mesh && !name.is_some_and(says_itself)
    }
}

impl Default for Policy {
    fn default() -> Self {
        let pool = config::Pool::default();
        Self {
            connect_timeout: config::Upstream::default().connect_timeout(),
            max_connections: pool.max_connections(),
            max_pending_requests: pool.max_pending_requests(),
            idle_timeout: pool.idle_timeout(),
            protocol: config::Protocol::Auto,
            request_timeout: None::<Duration>,
        }
    }
}

/// `_8080._tcp.api.shop…` is the service `api.shop…`.
fn strip_service_labels(name: &str) -> &str {
    let mut rest = name;
    while let Some(("", _)) = rest.split_once('_') {
        match rest.split_once('.') {
            Some((_, tail)) => rest = tail,
            None => break,
        }
    }
    rest
}

/// An endpoint of which only the address is known.
fn unknown(address: SocketAddr) -> ResolvedEndpoint {
    ResolvedEndpoint {
        address,
        weight: 1,
        zone: None,
        mesh: None,
        beside_sidecar: false,
        identity: None,
        opaque: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_read_out_of_an_srv_name() {
        assert_eq!(
            strip_service_labels("_8080._tcp.api.shop.svc.cluster.local"),
            "api.shop.svc.cluster.local"
        );
        assert_eq!(strip_service_labels("api.shop"), "api.shop");
        assert_eq!(strip_service_labels("_x"), "_x");
    }

    #[test]
    fn endpoints_come_from_addresses_from_dns_or_from_the_first_host() {
        let dns = |name: &str, port| Some(Discovery::Dns(config::DnsDiscovery { name: name.into(), port }));
        let hosts = || vec!["API.shop".to_owned(), "other".into()];
        let name = |host: &str, port| Some(Target::Name { host: host.into(), port });
        let fixed = Some(Discovery::Static(vec!["10.0.0.1:80".parse().unwrap()]));
        let cases = [
            (hosts(), fixed, None),
            (hosts(), None, name("api.shop", 8080)),
            (Vec::new(), None, None),
            (hosts(), dns("Db.shop", None), name("db.shop", 8080)),
            (hosts(), dns("db.shop", Some(5432)), name("db.shop", 5432)),
            (hosts(), dns("_pg._tcp.Db", None), Some(Target::Srv { name: "_pg._tcp.db".into() })),
        ];
        for (hosts, discovery, target) in cases {
            let upstream = config::Upstream { hosts, discovery, ..Default::default() };
            assert_eq!(Source::configured(&upstream, 8080, false).target(), target, "{upstream:?}");
        }
    }

    #[test]
    fn the_owners_of_stated_addresses_are_asked_for_unless_the_config_says_how_they_are_called() {
        let addresses = ["10.0.0.1:80".parse().unwrap()];
        let server = config::ServerTls { server_name: "a.example".into(), ca_file: "ca.pem".into() };
        let cases = [
            (None, true),
            (Some(UpstreamTls::Mode(UpstreamTlsMode::None)), false),
            (Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh)), false),
            (Some(UpstreamTls::Server(server)), false),
        ];
        for (tls, asked) in cases {
            for identity in [None, Some("any".to_owned())] {
                let discovery = Some(Discovery::Static(addresses.to_vec()));
                let upstream =
                    config::Upstream { tls: tls.clone(), discovery, identity, ..Default::default() };
                let target = Source::configured(&upstream, 80, true).target();
                let expected = asked.then(|| Target::Stated(addresses.as_slice().into()));
                assert_eq!(target, expected, "{upstream:?}");
            }
        }
    }
}
