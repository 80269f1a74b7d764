//! Rules about upstreams.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use http::HeaderName;
use outrigger_ca::SpiffeId;
use outrigger_ca::host::normal;
use rustls_pki_types::ServerName;

use super::inbound::of_the_mesh;
use super::report::Report;
use super::{discovery, survival, upstreams};
use crate::config::model::{
    Balance, Config, Discovery, HashKey, HashPolicy, Protocol, Upstream, UpstreamTls, UpstreamTlsMode,
};
use crate::config::problem::{Path, listed, nearest};
use crate::config::syntax::field_name;

/// A peer that takes longer to connect to is as good as away, and its callers pile up meanwhile.
const LONG_CONNECT: Duration = Duration::from_secs(10);

pub(super) fn check(config: &Config, report: &mut Report) {
    hosts(config, report);
    let named = named(config);
    for (at, name, upstream) in upstreams(config) {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            report.error(&at, format!("{name:?} is not a name for an upstream"), "write one without blanks");
        }
        // Fixed endpoints are found by their addresses.
        let has_addresses = matches!(upstream.discovery, Some(Discovery::Static(_)));
        if upstream.hosts.is_empty() && !named.contains(name) && !has_addresses {
            report.warn(&at, "nothing goes here", "state `hosts`, or name it in a route");
        }
        discovery::check(&at, upstream, report);
        security(config, &at, upstream, report);
        balance(&at.field("balance"), upstream, report);
        if upstream.prefer_zone && config.zone.is_none() {
            report.warn(
                &at.field("preferZone"),
                "this proxy does not know its own zone, so that none is preferred",
                "state `zone` at the top of the file",
            );
        }
        limits(&at, upstream, report);
        policies(config, &at, name, upstream, report);
    }
}

/// Upstreams that something else of the file sends requests to.
fn named(config: &Config) -> HashSet<&str> {
    let routes = config.routes.iter();
    let by_weight = routes.clone().flat_map(|route| &route.upstreams).map(|upstream| upstream.name.as_str());
    let mirrors = routes.clone().filter_map(|route| Some(route.mirror.as_ref()?.upstream.as_str()));
    let fallbacks = routes
        .map(|route| &route.fallback)
        .chain(config.upstreams.values().map(|upstream| &upstream.fallback))
        .filter_map(|fallback| fallback.as_ref()?.upstream.as_deref());
    by_weight.chain(mirrors).chain(fallbacks).collect()
}

/// Each host belongs to one upstream.
fn hosts(config: &Config, report: &mut Report) {
    let mut owners: HashMap<String, &str> = HashMap::new();
    for (at, name, upstream) in upstreams(config) {
        for (index, host) in upstream.hosts.iter().enumerate() {
            let at = at.field("hosts").item(index);
            report.host(&at, host);
            if let Some(owner) = owners.insert(normal(host), name) {
                let message = if owner == name {
                    format!("`{host}` is stated twice")
                } else {
                    format!("`{host}` belongs to the upstream `{owner}` already")
                };
                report.error(&at, message, "name each host once");
            }
        }
    }
}

fn security(config: &Config, at: &Path, upstream: &Upstream, report: &mut Report) {
    let at_identity = at.field("identity");
    match upstream.identity.as_deref() {
        None | Some("any") => {}
        Some(text) => match text.parse::<SpiffeId>() {
            Ok(id) => of_the_mesh(config, &at_identity, &id, report),
            Err(_) => report.error(
                &at_identity,
                format!("`{text}` is not a SPIFFE ID"),
                "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or any",
            ),
        },
    }
    let at_tls = at.field("tls");
    match &upstream.tls {
        Some(UpstreamTls::Mode(UpstreamTlsMode::None) | UpstreamTls::Server(_))
            if upstream.identity.is_some() =>
        {
            report.error(
                &at_identity,
                "only mesh TLS proves an identity, and `tls` states something else",
                "remove `identity`, or write `tls: mesh`",
            );
        }
        Some(UpstreamTls::Mode(UpstreamTlsMode::None)) => {
            for host in upstream.hosts.iter().filter(|host| config.outbound.is_mesh_name(host)) {
                report.warn(
                    &at_tls,
                    format!("requests to {host}, which is under `outbound.meshDomains`, go out in plaintext"),
                    "write `tls: mesh` if the peer has a sidecar",
                );
            }
        }
        Some(UpstreamTls::Server(server)) if ServerName::try_from(server.server_name.as_str()).is_err() => {
            report.error(
                &at_tls.field("serverName"),
                format!("`{}` is not a name that a certificate can carry", server.server_name),
                "write a host name",
            );
        }
        Some(UpstreamTls::Mode(UpstreamTlsMode::Mesh))
            if upstream.hosts.is_empty() && upstream.identity.is_none() && has_no_service_name(upstream) =>
        {
            report.error(
                &at_tls,
                "nothing says which identity these peers of the mesh have, so that none would be spoken to",
                "state `identity`: a SPIFFE ID, or any",
            );
        }
        _ => {}
    }
}

/// Whether what says where the endpoints are does not say whose they are: no name in which a namespace could stand.
fn has_no_service_name(upstream: &Upstream) -> bool {
    matches!(
        upstream.discovery,
        Some(Discovery::Static(_) | Discovery::File(_) | Discovery::Consul(_) | Discovery::Eureka(_))
    )
}

fn balance(at: &Path, upstream: &Upstream, report: &mut Report) {
    let (at, HashPolicy { key }) = match &upstream.balance {
        Balance::RingHash(policy) => (at.field("ringHash").field("key"), policy),
        Balance::Maglev(policy) => (at.field("maglev").field("key"), policy),
        Balance::PeakEwma | Balance::LeastRequest | Balance::RoundRobin | Balance::Random => return,
    };
    if upstream.protocol == Protocol::Tcp && *key != HashKey::SourceAddress {
        report.error(
            &at,
            "opaque bytes have neither header fields nor cookies",
            "write `key: sourceAddress`, or change `protocol`",
        );
    }
    match key {
        HashKey::Header(name) => report.checked(&at.field("header"), field_name(name)),
        HashKey::Cookie(cookie) => {
            let at = at.field("cookie");
            // A cookie's name is a token (RFC 6265 4.1.1), as a field's is.
            if HeaderName::from_bytes(cookie.name.as_bytes()).is_err() {
                report.error(
                    &at.field("name"),
                    format!("{:?} is not a cookie's name", cookie.name),
                    "write letters, digits, `-` and `_`",
                );
            }
            report.not_zero(&at.field("ttl"), cookie.ttl);
            let is_path = |path: &str| {
                path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';')
            };
            if !is_path(cookie.path()) {
                report.error(
                    &at.field("path"),
                    format!("{:?} can't be a cookie's path", cookie.path()),
                    "a path starts with `/` and has no `;`",
                );
            }
        }
        HashKey::SourceAddress => {}
    }
}

fn limits(at: &Path, upstream: &Upstream, report: &mut Report) {
    report.not_zero(&at.field("slowStart"), upstream.slow_start);
    report.above_zero(&at.field("connectTimeout"), upstream.connect_timeout);
    if upstream.connect_timeout() > LONG_CONNECT {
        report.warn(
            &at.field("connectTimeout"),
            "callers wait this long for a peer that is away",
            "a few seconds are enough on any network",
        );
    }
    report.above_zero(&at.field("timeout"), upstream.timeout);
    report.above_zero(&at.field("streamIdleTimeout"), upstream.stream_idle_timeout);
    let (at, pool) = (at.field("pool"), &upstream.pool);
    report.above_zero(&at.field("idleTimeout"), pool.idle_timeout);
    report.above_zero(&at.field("maxConnectionAge"), pool.max_connection_age);
    report.at_least_one(&at.field("maxRequests"), pool.max_requests);
    report.at_least_one(&at.field("maxRequestsPerConnection"), pool.max_requests_per_connection);
    if pool.max_connections == Some(0) {
        report.error(
            &at.field("maxConnections"),
            "without connections nothing can be sent",
            "write 1 or more",
        );
    }
    if pool.max_pending_requests == Some(0) {
        report.error(
            &at.field("maxPendingRequests"),
            "the request that opens a connection waits for it too, and would be refused",
            "write 1 or more",
        );
    }
}

fn policies(config: &Config, at: &Path, name: &str, upstream: &Upstream, report: &mut Report) {
    if let Some(concurrency) = &upstream.concurrency {
        survival::concurrency(&at.field("concurrency"), concurrency, report);
    }
    if let Some(check) = &upstream.health_check {
        survival::health_check(&at.field("healthCheck"), check, report);
    }
    survival::outlier(&at.field("outlier"), &upstream.outlier, report);
    survival::breaker(&at.field("breaker"), &upstream.breaker, report);
    let all_tries = upstream.timeout().map(|timeout| (timeout, "upstream"));
    survival::retry(&at.field("retry"), &upstream.retry, all_tries, report);
    if let Some(fallback) = &upstream.fallback {
        let at = at.field("fallback");
        survival::fallback(config, &at, fallback, &[name], report);
        if upstream.protocol == Protocol::Tcp {
            report.error(&at, "a fallback answers requests, and opaque bytes are none", "remove it");
        }
    }
}

/// What refers to an upstream names one of the file, that can take requests.
pub(super) fn refer_for_requests(config: &Config, at: &Path, name: &str, report: &mut Report) {
    refer(config, at, name, report);
    if config.upstreams.get(name).is_some_and(|upstream| upstream.protocol == Protocol::Tcp) {
        report.error(
            at,
            format!("`{name}` speaks opaque bytes (`protocol: tcp`), and this is about requests"),
            "name another one, or change its `protocol`",
        );
    }
}

/// What refers to an upstream names one of the file.
fn refer(config: &Config, at: &Path, name: &str, report: &mut Report) {
    if config.upstreams.contains_key(name) {
        return;
    }
    let names = || config.upstreams.keys().map(String::as_str);
    let remedy = match nearest(name, names()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if config.upstreams.is_empty() => "add it under `upstreams`".into(),
        None => format!("add it under `upstreams`, or name one of {}", listed(names())),
    };
    report.error(at, format!("there is no upstream `{name}`"), remedy);
}
