//! Rules about the proxy itself: its identity, name resolution, logs and limits.

use super::{Report, root};
use crate::config::defaults::MAX_DRAIN_TIMEOUT;
use crate::config::log_format::{JSON, LogField, LogFormat, field_names};
use crate::config::model::{AccessLog, Config, Dns, Identity, Propagation, Tracing};
use crate::config::syntax::{self, Unmeshed, host_and_port};
use outrigger_ca::SpiffeId;
use outrigger_ca::host::parse_dns_server;

/// No machine has more cores to give, and each worker keeps its own connections.
const MAX_WORKERS: usize = 256;
/// glibc's limit.
const MAX_NDOTS: usize = 15;

pub(super) fn check(config: &Config, report: &mut Report) {
    if SpiffeId::new(config.trust_domain(), "namespace", "account").is_err() {
        report.error(
            &root().field("trustDomain"),
            format!("`{}` is not a trust domain", config.trust_domain()),
            "write a name of a-z, 0-9, `.`, `-` and `_`, for example cluster.local",
        );
    }
    if config.zone.as_deref() == Some("") {
        report.error(&root().field("zone"), "a zone has a name", "write it, or leave the field out");
    }
    identity(&config.identity, report);
    dns(&config.dns, report);
    outbound(config, report);
    if let Some(tracing) = &config.tracing {
        spans(tracing, report);
    }
    access_log(&config.access_log, report);
    if let Some(workers) = config.workers
        && !(1..=MAX_WORKERS).contains(&workers)
    {
        report.error(
            &root().field("workers"),
            format!("{workers} workers are not possible"),
            format!("write 1 to {MAX_WORKERS}"),
        );
    }
    if config.drain_timeout() > MAX_DRAIN_TIMEOUT {
        report.error(
            &root().field("drainTimeout"),
            "a drain of more than an hour would outlive whoever waits for it",
            "write at most 1h",
        );
    }
}

fn identity(identity: &Identity, report: &mut Report) {
    let at = root().field("identity");
    if let Some(ca) = &identity.ca {
        if identity.files.is_some() {
            report.error(&at, "both `ca` and `files` are stated", "keep exactly one of them");
        }
        if let Err((message, remedy)) = host_and_port(&ca.address) {
            report.error(&at.field("ca").field("address"), message, remedy);
        }
        if identity.trust_bundle.is_none() {
            report.warn(
                &at,
                "without `trustBundle` the CA's roots are believed on first use",
                "mount the roots and name their file, unless a flag does",
            );
        }
    }
}

fn dns(dns: &Dns, report: &mut Report) {
    let at = root().field("dns");
    for (index, server) in dns.servers.iter().enumerate() {
        if parse_dns_server(server).is_none() {
            report.error(
                &at.field("servers").item(index),
                format!("`{server}` is not the address of a DNS server"),
                "write ip or ip:port, for example 10.96.0.10 or [fd00::a]:53",
            );
        }
    }
    if let Some(Err((message, remedy))) = dns.mesh_server.as_deref().map(host_and_port) {
        report.error(&at.field("meshServer"), message, remedy);
    }
    for (index, domain) in dns.search.iter().flatten().enumerate() {
        report.host(&at.field("search").item(index), domain);
    }
    if dns.ndots.is_some_and(|ndots| ndots > MAX_NDOTS) {
        report.error(&at.field("ndots"), "no name has that many dots", format!("write 0 to {MAX_NDOTS}"));
    }
}

fn outbound(config: &Config, report: &mut Report) {
    let at = root().field("outbound");
    for (index, domain) in config.outbound.mesh_domains.iter().enumerate() {
        let at = at.field("meshDomains").item(index);
        let bare = domain.trim_start_matches("*.").trim_start_matches('.');
        if bare != domain && syntax::host(bare).is_ok() {
            let message =
                format!("`{domain}` has a wildcard or dot too many, since a domain stands for all below it");
            report.error(&at, message, format!("write {bare}"));
        } else {
            report.host(&at, domain);
        }
    }
    for (index, entry) in config.outbound.unmeshed.iter().enumerate() {
        if Unmeshed::parse(entry).is_none() {
            report.error(
                &at.field("unmeshed").item(index),
                format!("`{entry}` is neither a name nor a network"),
                "write host, host:port, an address, or a CIDR such as 10.1.0.0/16",
            );
        }
    }
    report.ports(&at.field("opaquePorts"), &config.outbound.opaque_ports);
}

fn access_log(log: &AccessLog, report: &mut Report) {
    let at = root().field("accessLog");
    if let Some(output) = log.output.as_deref()
        && !matches!(output, "none" | "stdout")
        && !output.starts_with('/')
    {
        report.error(
            &at.field("output"),
            format!("`{output}` is not an output"),
            "write none, stdout, or a file's path that starts with `/`",
        );
    }
    let text = log.format.as_deref().filter(|format| *format != JSON);
    if let Some(Err(error)) = text.map(LogFormat::text) {
        let remedy = format!("write json, or text with fields as %{{path}}; there are {}", field_names());
        report.error(&at.field("format"), error.to_string(), remedy);
    }
    if text.is_some() && !log.fields.is_empty() {
        report.error(
            &at.field("fields"),
            "the fields of a line of text are those in `format`",
            "keep one of the two",
        );
    }
    for (index, name) in log.fields.iter().enumerate() {
        let at = at.field("fields").item(index);
        if LogField::named(name).is_none() {
            report.error(&at, format!("there is no field `{name}`"), format!("there are {}", field_names()));
        } else if log.fields[..index].contains(name) {
            report.error(&at, format!("`{name}` stands here already"), "name each field once");
        }
    }
    if log.sample.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
        report.error(&at.field("sample"), "a share lies between 0 and 1", "write 0.01 for one in a hundred");
    }
}

fn spans(tracing: &Tracing, report: &mut Report) {
    let at = root().field("tracing");
    if let Some(otlp) = &tracing.otlp {
        let at = at.field("otlp").field("endpoint");
        report.checked(&at, syntax::url(&otlp.endpoint, "http://collector:4317"));
    }
    report.sampling(&at, tracing.sampling, tracing.sample_ratio, None);
    let Propagation { read, write } = &tracing.propagation;
    for (name, headers) in [("read", read), ("write", write)] {
        let at = at.field("propagation").field(name);
        if headers.as_ref().is_some_and(Vec::is_empty) {
            report.error(
                &at,
                "without headers every trace would end here",
                "name some of w3c, b3, b3multi, or leave the field out",
            );
        }
        for (index, one) in headers.iter().flatten().enumerate() {
            if headers.iter().flatten().take(index).any(|other| other == one) {
                report.error(&at.item(index), "this stands here already", "name each once");
            }
        }
    }
}
