//! Rules about traffic from peers: ports and authorization.

use std::time::Duration;

use super::{Report, root, survival};
use crate::config::defaults::CONNECT_RETRY;
use crate::config::model::{AllowRule, Config, Inbound, Protocol};
use crate::config::problem::Path;
use outrigger_ca::SpiffeId;

/// A caller's own patience; most clients give up on a connection after it.
const LONG_CONNECT_RETRY: Duration = Duration::from_secs(10);

pub(super) fn check(config: &Config, report: &mut Report) {
    let at = root().field("inbound");
    let inbound = &config.inbound;
    report.ports(&at.field("opaquePorts"), &inbound.opaque_ports);
    for (port, settings) in &inbound.ports {
        let at = at.field("ports").field(&port.to_string());
        report.port(&at, Some(*port));
        let parsed = !matches!(settings.protocol, Protocol::Auto | Protocol::Tcp);
        if parsed && inbound.opaque_ports.contains(port) {
            report.error(
                &at.field("protocol"),
                format!("port {port} is to be parsed here and not to be parsed under `inbound.opaquePorts`"),
                "remove it from one of the two",
            );
        }
    }
    workload(&at, inbound, report);
    let at = at.field("allow");
    match &inbound.allow {
        // All rules commented out: whoever wrote it hardly meant to let everybody in.
        None if report.states(&at) => report.error(
            &at,
            "a list without rules is unclear",
            "write `allow: []` to let nobody in, or remove the field to let in the whole trust domain",
        ),
        None => {}
        Some(rules) => {
            for (index, rule) in rules.iter().enumerate() {
                allow(config, &at.item(index), rule, report);
            }
        }
    }
}

/// What keeps the workload from being overrun.
fn workload(at: &Path, inbound: &Inbound, report: &mut Report) {
    if inbound.connect_retry() > LONG_CONNECT_RETRY {
        report.warn(
            &at.field("connectRetry"),
            "callers wait this long for a workload that does not run",
            format!("write a few seconds, or nothing for {}s", CONNECT_RETRY.as_secs()),
        );
    }
    if let Some(concurrency) = &inbound.concurrency {
        survival::concurrency(&at.field("concurrency"), concurrency, report);
    }
    if let Some(breaker) = &inbound.breaker {
        survival::breaker(&at.field("breaker"), breaker, report);
    }
}

fn allow(config: &Config, at: &Path, rule: &AllowRule, report: &mut Report) {
    let conditions = [
        ("identities", rule.identities.is_empty()),
        ("ports", rule.ports.is_empty()),
        ("methods", rule.methods.is_empty()),
        ("paths", rule.paths.is_empty()),
    ];
    for (name, _) in conditions.iter().filter(|(_, is_empty)| *is_empty) {
        let at = at.field(name);
        if report.states(&at) {
            report.error(&at, "an empty list would let all in", "name what is let in, or remove the field");
        }
    }
    if conditions.iter().all(|(_, is_empty)| *is_empty) {
        report.warn(at, "this rule lets everybody do everything", "name identities, ports, methods or paths");
    }
    for (index, identity) in rule.identities.iter().enumerate() {
        pattern(config, &at.field("identities").item(index), identity, report);
    }
    report.ports(&at.field("ports"), &rule.ports);
    report.methods(&at.field("methods"), &rule.methods);
    for (index, path) in rule.paths.iter().enumerate() {
        report.path_match(&at.field("paths").item(index), path);
    }
    if !(rule.methods.is_empty() && rule.paths.is_empty()) {
        for (index, port) in
            rule.ports.iter().enumerate().filter(|(_, port)| config.inbound.is_opaque(**port))
        {
            report.error(
                &at.field("ports").item(index),
                format!("port {port} is opaque, so that methods and paths can't be checked and nothing would be let in"),
                format!("state `protocol: http1` (or http2, grpc) under `inbound.ports.{port}`, or remove methods and paths"),
            );
        }
    }
}

/// A SPIFFE ID, or one that ends in `/*`.
fn pattern(config: &Config, at: &Path, pattern: &str, report: &mut Report) {
    // Any segment in place of the star makes an ID of a good pattern.
    let example = match pattern.strip_suffix("/*") {
        Some(prefix) => format!("{prefix}/any"),
        None => pattern.to_owned(),
    };
    match example.parse::<SpiffeId>() {
        Ok(id) => of_the_mesh(config, at, &id, report),
        Err(_) => report.error(
            at,
            format!("`{pattern}` is not a SPIFFE ID"),
            "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or let it end in /* for all below",
        ),
    }
}

/// Warns of an identity that no peer can have. The trust domain may still be stated by a flag.
pub(super) fn of_the_mesh(config: &Config, at: &Path, id: &SpiffeId, report: &mut Report) {
    if id.trust_domain() != config.trust_domain() {
        report.warn(
            at,
            format!(
                "no peer will match: the identity is of the trust domain `{}`, and the mesh's is `{}`",
                id.trust_domain(),
                config.trust_domain()
            ),
            "write the mesh's trust domain",
        );
    }
}
