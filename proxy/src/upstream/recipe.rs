//! How an upstream is made: its policy from the config or the defaults, its endpoints from the latest answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_ca::SpiffeId;
use rustls::pki_types::ServerName;
use thiserror::Error;

use super::security::{Claims, Pinned};
use super::{Endpoint, EndpointSet, Policy, Security, SecurityRules};
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
    tls: Option<Security>,
    mesh: bool,
    pinned: Pinned,
}

/// Where endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// A provider other than DNS, and the name they belong to if the config states one.
    Provided(ProviderSettings, Option<Arc<str>>),
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
        Self::Provided(settings, host)
    }

    /// Begins to follow where they are.
    pub(super) fn follow(&self, resolver: &Resolver) -> Followed {
        match self {
            Self::Provided(settings, _) => resolver.provide(settings),
            Self::Name(target) => resolver.follow(target.clone()),
            Self::Dialled(address) => resolver.follow(Target::Address(*address)),
        }
    }
}

impl Recipe {
    /// An upstream of the config. `port` is the one that was dialled.
    pub(super) fn configured(
        name: &str,
        upstream: &config::Upstream,
        port: u16,
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
                max_requests: upstream.pool.max_requests(),
                max_requests_per_connection: upstream.pool.max_requests_per_connection(),
                max_connection_age: upstream.pool.max_connection_age.map(Into::into),
                idle_timeout: upstream.pool.idle_timeout(),
                stream_idle_timeout: upstream.stream_idle_timeout.map(Into::into),
                protocol: upstream.protocol,
                request_timeout: upstream.timeout.map(Into::into),
            },
            any_destination: upstream.any_destination,
            mesh: matches!(upstream.tls, Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh))),
            source: Source::configured(upstream, port),
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
    pub(super) fn endpoint_set(&self, rules: &SecurityRules, snapshot: &Snapshot) -> EndpointSet {
        let answer = snapshot.answer.as_deref();
        let named = |name: &Arc<str>| Some(strip_service_labels(name).to_owned());
        let (resolved, name) = match &self.source {
            Source::Provided(_, host) => {
                let resolved = answer.map(|answer| answer.endpoints.clone()).unwrap_or_default();
                let service = answer.filter(|answer| answer.source.names_services());
                (resolved, service.map(|answer| &answer.name).or(host.as_ref()).and_then(named))
            }
            Source::Name(_) => match answer {
                Some(answer) => (answer.endpoints.clone(), named(&answer.name)),
                None => (Vec::new(), None),
            },
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
        let by_name = !matches!(self.source, Source::Provided(..));
        let failed = by_name && matches!(snapshot.error.as_deref(), Some(LookupError::Failed { .. }));
        let claims = Claims {
            undiscovered: failed && name.as_deref().is_some_and(|name| rules.is_discoverys(name)),
            tls: self.tls.as_ref(),
            // Its provider can't know what the mesh's discovery would: unknown means meshed.
            mesh: self.mesh
                || (!by_name
                    && answer.is_some_and(|answer| answer.source.names_services())
                    && name.as_deref().is_some_and(|name| rules.is_discoverys(name))),
            pinned: &self.pinned,
            name: name.as_deref(),
            namespace: service.map(|service| &*service.namespace),
        };
        let endpoints = resolved
            .iter()
            .map(|endpoint| {
                let address = endpoint.address;
                let server_name = name
                    .as_ref()
                    .and_then(|name| ServerName::try_from(name.clone()).ok())
                    .unwrap_or_else(|| ServerName::IpAddress(address.ip().into()));
                let security = rules.decide(&claims, endpoint);
                Endpoint::new(address, endpoint.weight, endpoint.opaque, security, server_name)
            })
            .collect();
        EndpointSet {
            name: answer.map(|answer| answer.name.clone()),
            endpoints,
            vips: answer.map(|answer| answer.vips.clone()).unwrap_or_default(),
            source: match &self.source {
                Source::Dialled(_) if answer.is_none() => "dialled",
                _ => answer.map_or("none", |answer| answer.source.as_str()),
            },
            refreshed: Some(snapshot.refreshed),
            error: snapshot.error.as_ref().map(|error| error.to_string().into()),
            request_timeout: service.and_then(|service| service.timeout),
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        let pool = config::Pool::default();
        Self {
            connect_timeout: config::Upstream::default().connect_timeout(),
            max_connections: pool.max_connections(),
            max_pending_requests: pool.max_pending_requests(),
            max_requests: pool.max_requests(),
            max_requests_per_connection: pool.max_requests_per_connection(),
            max_connection_age: None,
            idle_timeout: pool.idle_timeout(),
            stream_idle_timeout: None,
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
        let stated = |settings, host: &str| Source::Provided(settings, Some(host.into()));
        let file = config::FileDiscovery { path: "/api.yaml".into() };
        let cases = [
            (
                hosts(),
                Some(Discovery::Static(one.clone())),
                stated(ProviderSettings::Static(one), "api.shop"),
            ),
            (hosts(), Some(Discovery::File(file.clone())), stated(ProviderSettings::File(file), "api.shop")),
            (hosts(), None, name("api.shop", 8080)),
            (Vec::new(), None, Source::Provided(ProviderSettings::Static(Vec::new()), None)),
            (hosts(), dns("Db.shop", None), name("db.shop", 8080)),
            (hosts(), dns("db.shop", Some(5432)), name("db.shop", 5432)),
            (hosts(), dns("_pg._tcp.Db", None), Source::Name(Target::Srv { name: "_pg._tcp.db".into() })),
        ];
        for (hosts, discovery, source) in cases {
            let upstream = config::Upstream { hosts, discovery, ..Default::default() };
            assert_eq!(Source::configured(&upstream, 8080), source, "{upstream:?}");
        }
    }
}
