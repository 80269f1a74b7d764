//! Rules about upstreams.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use outrigger_ca::SpiffeId;
use rustls_pki_types::ServerName;

use super::inbound::of_the_mesh;
use super::{Report, upstreams};
use crate::config::model::{
    Breaker, Config, Discovery, DnsDiscovery, Fallback, HealthCheck, Outlier, StaticEndpoint, Upstream,
    UpstreamTls, UpstreamTlsMode,
};
use crate::config::problem::{Path, listed, nearest};
use crate::config::syntax::{DnsName, dns_name};
use outrigger_ca::host::normal;

/// A peer that takes longer to connect to is as good as away, and its callers pile up meanwhile.
const LONG_CONNECT: Duration = Duration::from_secs(10);

/// Fields that are read and checked, and do nothing yet.
const LATER: [&str; 8] =
    ["preferZone", "slowStart", "concurrency", "healthCheck", "outlier", "breaker", "retry", "fallback"];

pub(super) fn check(config: &Config, report: &mut Report) {
    hosts(config, report);
    let routed: HashSet<&str> =
        config.routes.iter().flat_map(|route| &route.upstreams).map(|upstream| &*upstream.name).collect();
    for (at, name, upstream) in upstreams(config) {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            report.error(&at, format!("{name:?} is not a name for an upstream"), "write one without blanks");
        }
        // Fixed endpoints are found by their addresses.
        let has_addresses = matches!(upstream.discovery, Some(Discovery::Static(_)));
        if upstream.hosts.is_empty() && !routed.contains(name) && !has_addresses {
            report.warn(&at, "nothing goes here", "state `hosts`, or name it in a route");
        }
        discovery(&at, upstream, report);
        security(config, &at, upstream, report);
        limits(&at, upstream, report);
        if let Some(check) = &upstream.health_check {
            health_check(&at.field("healthCheck"), check, report);
        }
        for name in LATER {
            if report.states(&at.field(name)) {
                report.later(&at.field(name));
            }
        }
        outlier(&at.field("outlier"), &upstream.outlier, report);
        breaker(&at.field("breaker"), &upstream.breaker, report);
        if let Some(answer) = &upstream.fallback {
            fallback(&at.field("fallback"), answer, report);
        }
    }
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

fn discovery(at: &Path, upstream: &Upstream, report: &mut Report) {
    let at_discovery = at.field("discovery");
    match &upstream.discovery {
        None if upstream.hosts.is_empty() => report.error(
            at,
            "nothing says where the endpoints are",
            "state `hosts`, or `discovery` with `dns` or `static`",
        ),
        None => {}
        Some(Discovery::Dns(dns)) => by_dns(&at_discovery.field("dns"), dns, report),
        Some(Discovery::File(_) | Discovery::Consul(_) | Discovery::Eureka(_) | Discovery::Kubernetes(_)) => {
            report.error(
                &at_discovery,
                "only `dns` and `static` are there yet; the others come with the next release",
                "use `dns`: it asks Consul and Kubernetes too, by their DNS",
            )
        }
        Some(Discovery::Static(addresses)) => fixed(&at_discovery.field("static"), addresses, report),
    }
}

fn by_dns(at: &Path, dns: &DnsDiscovery, report: &mut Report) {
    match dns_name(&dns.name) {
        Err((message, remedy)) => report.error(&at.field("name"), message, remedy),
        Ok(DnsName::Service) if dns.port.is_some() => report.error(
            &at.field("port"),
            "the SRV name states the port already",
            "remove it, or write a host name",
        ),
        Ok(_) => {}
    }
    if dns.port == Some(0) {
        report.error(&at.field("port"), "0 is not a port", "write 1 to 65535");
    }
}

fn fixed(at: &Path, addresses: &[StaticEndpoint], report: &mut Report) {
    if addresses.is_empty() {
        report.error(at, "the list of endpoints is empty", "write at least one ip:port");
    }
    for (index, StaticEndpoint { address, .. }) in addresses.iter().enumerate() {
        let at = at.item(index);
        let ip = address.ip();
        if address.port() == 0 {
            report.error(&at, "0 is not a port", "write 1 to 65535");
        } else if ip.is_unspecified() || ip.is_multicast() {
            report.error(
                &at,
                format!("nothing can be connected to at {ip}"),
                "write an endpoint's own address",
            );
        } else if addresses[..index].iter().any(|other| other.address == *address) {
            report.error(&at, format!("{address} is stated twice"), "name each endpoint once");
        } else {
            report.warn(
                &at,
                "an endpoint given by its address stays in use when the service has moved",
                "use `discovery: {dns: …}` where there is a name",
            );
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
            if upstream.hosts.is_empty()
                && upstream.identity.is_none()
                && matches!(upstream.discovery, Some(Discovery::Static(_))) =>
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

fn limits(at: &Path, upstream: &Upstream, report: &mut Report) {
    report.above_zero(&at.field("connectTimeout"), upstream.connect_timeout);
    if upstream.connect_timeout() > LONG_CONNECT {
        report.warn(
            &at.field("connectTimeout"),
            "callers wait this long for a peer that is away",
            "a few seconds are enough on any network",
        );
    }
    let pool = at.field("pool");
    report.above_zero(&at.field("timeout"), upstream.timeout);
    report.above_zero(&at.field("streamIdleTimeout"), upstream.stream_idle_timeout);
    report.above_zero(&pool.field("maxConnectionAge"), upstream.pool.max_connection_age);
    if upstream.pool.max_requests_per_connection == Some(0) {
        report.error(
            &pool.field("maxRequestsPerConnection"),
            "a connection that carries no request is of no use",
            "write 1 or more",
        );
    }
    report.above_zero(&pool.field("idleTimeout"), upstream.pool.idle_timeout);
    if upstream.pool.max_connections == Some(0) {
        report.error(
            &pool.field("maxConnections"),
            "without connections nothing can be sent",
            "write 1 or more",
        );
    }
}

fn health_check(at: &Path, check: &HealthCheck, report: &mut Report) {
    if let Some(http) = &check.http {
        report.path(&at.field("http").field("path"), &http.path);
    }
    report.above_zero(&at.field("interval"), check.interval);
    report.above_zero(&at.field("timeout"), check.timeout);
    report.at_least_one(&at.field("unhealthyAfter"), check.unhealthy_after);
    report.at_least_one(&at.field("healthyAfter"), check.healthy_after);
    if let (Some(timeout), Some(interval)) = (check.timeout, check.interval)
        && timeout > interval
    {
        report.error(
            &at.field("timeout"),
            format!("a check may take {timeout}, and the next one starts after {interval}"),
            "write a timeout of at most `interval`",
        );
    }
}

fn outlier(at: &Path, outlier: &Outlier, report: &mut Report) {
    report.at_least_one(&at.field("consecutiveFailures"), outlier.consecutive_failures);
    report.above_zero(&at.field("ejection"), outlier.ejection);
    if outlier.max_ejected_percent.is_some_and(|percent| percent > 100) {
        report.error(&at.field("maxEjectedPercent"), "there are no more than 100 percent", "write 0 to 100");
    }
}

fn breaker(at: &Path, breaker: &Breaker, report: &mut Report) {
    report.at_least_one(&at.field("consecutiveFailures"), breaker.consecutive_failures);
    if breaker.consecutive_failures == Some(1) {
        report.warn(
            &at.field("consecutiveFailures"),
            "a single failure cuts off the whole upstream",
            "write 5, unless each request is precious",
        );
    }
    report.above_zero(&at.field("window"), breaker.window);
    report.above_zero(&at.field("openFor"), breaker.open_for);
}

fn fallback(at: &Path, fallback: &Fallback, report: &mut Report) {
    if let Some(status) = fallback.status
        && !(200..=599).contains(&status)
    {
        report.error(
            &at.field("status"),
            format!("{status} is not the status of a final response"),
            "write 200 to 599",
        );
    }
}

/// What refers to an upstream names one of the file.
pub(super) fn refer(config: &Config, at: &Path, name: &str, report: &mut Report) {
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
