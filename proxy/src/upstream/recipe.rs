//! How an upstream is made: its policy from the config or the defaults, its endpoints from the latest answer.

use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_ca::SpiffeId;
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::health::Plan;
use super::owned::{Callee, Owned, by_owners};
use super::security::{Claims, Pinned};
use super::{Endpoint, EndpointSet, Member, Policy, RetryPolicy, Security, SecurityRules};
use crate::config::{self, Discovery, UpstreamTls, UpstreamTlsMode};
use crate::identity::{TlsError, server_tls};
use crate::resolve::{Followed, LookupError, ProviderSettings, ResolvedEndpoint, Resolver, Snapshot, Target};

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
    pub(super) health: Option<Arc<Plan>>,
    tls: Option<Security>,
    mesh: bool,
    pinned: Pinned,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// A provider other than DNS, and the name its endpoints belong to if the config states one.
    Provided {
        settings: ProviderSettings,
        host: Option<Arc<str>>,
        /// The one that was dialled.
        port: u16,
        /// Not where the config says how they are called.
        asks_owners: bool,
    },
    /// A name.
    Name(Target),
    /// The dialled address itself; discovery says whose it is.
    Dialled(SocketAddr),
}

impl Source {
    /// Where the endpoints of an upstream of the config come from. `port` is the one that was dialled.
    pub(super) fn configured(upstream: &config::Upstream, port: u16) -> Self {
        let host = upstream.hosts.first().map(|host| Arc::from(host.to_ascii_lowercase()));
        let settings = match &upstream.discovery {
            Some(Discovery::Static(fixed)) => ProviderSettings::Static(fixed.clone()),
            Some(Discovery::File(file)) => ProviderSettings::File(file.clone()),
            Some(Discovery::Consul(consul)) => ProviderSettings::Consul(consul.clone()),
            Some(Discovery::Eureka(eureka)) => ProviderSettings::Eureka(eureka.clone()),
            Some(Discovery::Kubernetes(kubernetes)) => ProviderSettings::Kubernetes(kubernetes.clone()),
            Some(Discovery::Dns(dns)) if dns.name.starts_with('_') => {
                return Self::Name(Target::Srv { name: dns.name.to_ascii_lowercase().into() });
            }
            Some(Discovery::Dns(dns)) => {
                let (host, port) = (dns.name.to_ascii_lowercase().into(), dns.port.unwrap_or(port));
                return Self::Name(Target::Name { host, port });
            }
            None => match host {
                Some(host) => return Self::Name(Target::Name { host, port }),
                None => ProviderSettings::Static(Vec::new()),
            },
        };
        Self::Provided { settings, host, port, asks_owners: upstream.tls.is_none() }
    }

    /// The port that was dialled, or that the config states in its place for a host name. None where an answer says it.
    fn dialled_port(&self) -> Option<u16> {
        match self {
            Self::Name(Target::Name { port, .. }) => Some(*port),
            Self::Dialled(address) => Some(address.port()),
            // What others than the config list may lead anywhere.
            Self::Provided { settings: ProviderSettings::Static(_), port, .. } => Some(*port),
            Self::Provided { .. } | Self::Name(_) => None,
        }
    }

    /// Begins to follow where they are.
    pub(super) fn follow(&self, resolver: &Resolver) -> Followed {
        match self {
            Self::Provided { settings, asks_owners, .. } => resolver.provide(settings, *asks_owners),
            Self::Name(target) => resolver.follow(target.clone()),
            Self::Dialled(address) => resolver.follow(Target::Address(*address)),
        }
    }
}

impl Recipe {
    /// An upstream of the config, its source as [`Source::configured`] says; `zone` is the proxy's own.
    pub(super) fn configured(
        name: &str,
        upstream: &config::Upstream,
        port: u16,
        zone: Option<&str>,
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
            policy: Policy::new(upstream, zone),
            any_destination: upstream.any_destination,
            mesh: matches!(upstream.tls, Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh))),
            source: Source::configured(upstream, port),
            health: Plan::of(upstream).map(Arc::new),
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
            health: None,
            tls: None,
            mesh: false,
            pinned: Pinned::No,
        }
    }

    /// The endpoints as the latest answer gives them.
    pub(super) fn endpoint_set(&self, rules: &SecurityRules, snapshot: &Snapshot) -> EndpointSet {
        let answer = snapshot.answer.as_deref();
        let is_provided = matches!(self.source, Source::Provided { .. });
        let failed = !is_provided && matches!(snapshot.error.as_deref(), Some(LookupError::Failed { .. }));
        // What a cluster calls a service, the mesh's discovery would know better, and is not asked: unknown means meshed.
        let names_services = is_provided && answer.is_some_and(|answer| answer.source.names_services());
        let Owned { callees, vips, service } = self.callees(rules, snapshot, failed);
        let members = callees
            .iter()
            .map(|Callee { endpoint, name, namespace }| {
                let claims = Claims {
                    undiscovered: failed && name.is_some_and(|name| rules.is_discoverys(name)),
                    tls: self.tls.as_ref(),
                    mesh: self.mesh || (names_services && name.is_some_and(|name| rules.is_discoverys(name))),
                    pinned: &self.pinned,
                    name: *name,
                    namespace: *namespace,
                };
                let address = endpoint.address;
                let server_name = name
                    .and_then(|name| ServerName::try_from(name.to_owned()).ok())
                    .unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
                let security = rules.decide(&claims, endpoint, self.source.dialled_port());
                let known = Endpoint::new(address, endpoint.opaque, security, server_name);
                Member {
                    endpoint: known,
                    weight: endpoint.weight,
                    priority: endpoint.priority,
                    zone: endpoint.zone.clone(),
                    tags: endpoint.tags.clone(),
                }
            })
            .collect();
        EndpointSet {
            name: answer.map(|answer| answer.name.clone()),
            members,
            vips,
            source: match &self.source {
                Source::Dialled(_) if answer.is_none() => "dialled",
                _ => answer.map_or("none", |answer| answer.source.as_str()),
            },
            refreshed: Some(snapshot.refreshed),
            error: snapshot.trouble().map(|error| error.to_string().into()),
            request_timeout: service.and_then(|service| service.timeout),
            retry: service.and_then(|service| self.declared_retry(service.retries?)),
        }
    }

    fn declared_retry(&self, retries: u32) -> Option<Arc<RetryPolicy>> {
        let is_configured = self.policy.retry_budget.attempts.is_some();
        (!is_configured).then(|| Arc::new(self.policy.retry.with_attempts(retries)))
    }

    /// Who may be called, before it is decided how.
    fn callees<'a>(&'a self, rules: &SecurityRules, snapshot: &'a Snapshot, failed: bool) -> Owned<'a> {
        let answer = snapshot.answer.as_deref();
        let (resolved, name) = match &self.source {
            Source::Provided { .. } | Source::Name(_) => {
                let Some(answer) = answer else { return Owned::default() };
                let name = match &self.source {
                    Source::Provided { host, .. } if !answer.source.names_services() => host.as_deref(),
                    _ => Some(&*answer.name),
                };
                let name = name.map(strip_service_labels);
                if let Some(owners) = snapshot.owners.as_deref()
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
                (vec![known.cloned().unwrap_or_else(|| ResolvedEndpoint::at(*address))], None)
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

/// `_8080._tcp.api.shop…` is the service `api.shop…`.
pub(super) fn strip_service_labels(name: &str) -> &str {
    let mut rest = name;
    while let Some(("", _)) = rest.split_once('_') {
        match rest.split_once('.') {
            Some((_, tail)) => rest = tail,
            None => break,
        }
    }
    rest
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
        let name = |host: &str, port| Source::Name(Target::Name { host: host.into(), port });
        let one = vec![config::StaticEndpoint::at("10.0.0.1:80".parse().unwrap())];
        let stated = |settings, host: &str| Source::Provided {
            settings,
            host: Some(host.into()),
            port: 8080,
            asks_owners: true,
        };
        let nothing = ProviderSettings::Static(Vec::new());
        let file = config::FileDiscovery { path: "/api.yaml".into() };
        let cases = [
            (
                hosts(),
                Some(Discovery::Static(one.clone())),
                stated(ProviderSettings::Static(one), "api.shop"),
            ),
            (hosts(), Some(Discovery::File(file.clone())), stated(ProviderSettings::File(file), "api.shop")),
            (hosts(), None, name("api.shop", 8080)),
            (
                Vec::new(),
                None,
                Source::Provided { settings: nothing, host: None, port: 8080, asks_owners: true },
            ),
            (hosts(), dns("Db.shop", None), name("db.shop", 8080)),
            (hosts(), dns("db.shop", Some(5432)), name("db.shop", 5432)),
            (hosts(), dns("_pg._tcp.Db", None), Source::Name(Target::Srv { name: "_pg._tcp.db".into() })),
        ];
        for (hosts, discovery, source) in cases {
            let upstream = config::Upstream { hosts, discovery, ..Default::default() };
            assert_eq!(Source::configured(&upstream, 8080), source, "{upstream:?}");
        }
    }

    #[test]
    fn the_owners_of_provided_addresses_are_asked_for_unless_the_config_says_how_they_are_called() {
        let server = config::ServerTls { server_name: "a.example".into(), ca_file: "ca.pem".into() };
        let cases = [
            (None, true),
            (Some(UpstreamTls::Mode(UpstreamTlsMode::None)), false),
            (Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh)), false),
            (Some(UpstreamTls::Server(server)), false),
        ];
        for (tls, asked) in cases {
            for identity in [None, Some("any".to_owned())] {
                let one = config::StaticEndpoint::at("10.0.0.1:80".parse().unwrap());
                let discovery = Some(Discovery::Static(vec![one]));
                let upstream =
                    config::Upstream { tls: tls.clone(), discovery, identity, ..Default::default() };
                let source = Source::configured(&upstream, 80);
                let Source::Provided { asks_owners, .. } = source else { panic!("{source:?}") };
                assert_eq!(asks_owners, asked, "{upstream:?}");
            }
        }
    }
}
