//! How hosts, paths, methods and the like are written.

mod fields;
mod registries;

use outrigger_ca::HostPort;
use outrigger_ca::host::{is_host_name, is_label, parse_port};

use super::units::Network;
pub use fields::{RetryCondition, grpc_status_name};
pub(super) use fields::{editable, field_name, field_value, is_of_the_mesh, statuses};
pub(super) use registries::{Scheme, kubernetes_name, registered_name, url};

/// What is wrong, and what is allowed.
pub(super) type Wrong = (String, String);

fn wrong(message: impl Into<String>, remedy: impl Into<String>) -> Wrong {
    (message.into(), remedy.into())
}

/// One entry of `outbound.unmeshed`.
#[derive(Debug, PartialEq)]
pub(super) enum Unmeshed<'a> {
    Network(Network),
    Host { host: &'a str, port: Option<u16> },
}

impl<'a> Unmeshed<'a> {
    /// Reads an entry; `None` if it is neither a network nor `host` nor `host:port`.
    pub(super) fn parse(entry: &'a str) -> Option<Self> {
        if let Ok(network) = entry.parse() {
            return Some(Self::Network(network));
        }
        let (host, port) = match entry.split_once(':') {
            Some((host, port)) => (host, Some(parse_port(port)?)),
            None => (entry, None),
        };
        is_host_name(host).then_some(Self::Host { host, port })
    }
}

/// A host name, as requests carry it.
pub(super) fn host(host: &str) -> Result<(), Wrong> {
    let example = "write a name such as api.shop.svc.cluster.local";
    if is_host_name(host) {
        return Ok(());
    }
    if host.parse::<Network>().is_ok() || host.trim_matches(['[', ']']).parse::<Network>().is_ok() {
        return Err(wrong(format!("`{host}` is an address, not a host name"), example));
    }
    if host.starts_with("*.") {
        return Err(wrong(
            format!("`{host}` holds a wildcard, which is not supported here"),
            "name each host",
        ));
    }
    match host.split_once(':') {
        Some((name, _)) if is_host_name(name) => {
            Err(wrong(format!("`{host}` is more than a host name"), format!("write {name}, without port")))
        }
        _ => Err(wrong(format!("`{host}` is not a host name"), example)),
    }
}

/// `host:port`, where the host may be an address.
pub(super) fn host_and_port(address: &str) -> Result<(), Wrong> {
    address.parse::<HostPort>().map(|_| ()).map_err(|_| {
        wrong(
            format!("`{address}` is not an address with a port"),
            "write host:port, for example ca.outrigger.svc:15012",
        )
    })
}

/// What discovery by DNS asks for: a host name, or an SRV name.
pub(super) enum DnsName {
    Host,
    Service,
}

pub(super) fn dns_name(name: &str) -> Result<DnsName, Wrong> {
    if !name.starts_with('_') {
        return host(name).map(|()| DnsName::Host);
    }
    let labels: Vec<&str> = name.splitn(3, '.').collect();
    match labels.as_slice() {
        [port, "_tcp", host] if is_label(port) && port.len() > 1 && is_host_name(host) => {
            Ok(DnsName::Service)
        }
        _ => Err(wrong(
            format!("`{name}` is not an SRV name"),
            "write _<port>._tcp.<host>, for example _8080._tcp.api.shop.svc.cluster.local",
        )),
    }
}

/// A host name, or `*.` and a host name for all below it.
pub(super) fn host_pattern(pattern: &str) -> Result<(), Wrong> {
    if pattern == "*" {
        return Err(wrong("`*` would take every request", "write a host name, or *.<domain>"));
    }
    let name = pattern.strip_prefix("*.").unwrap_or(pattern);
    if name.contains('*') {
        return Err(wrong(
            format!("`{pattern}` holds a wildcard elsewhere than as its first label"),
            "write *.<domain> for all names below it",
        ));
    }
    host(name)
}

/// A host name, with a port or without.
pub(super) fn host_maybe_port(text: &str) -> Result<(), Wrong> {
    if is_host_name(text) || text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(());
    }
    host_and_port(text)
        .map_err(|_| wrong(format!("`{text}` is not a host"), "write a host name, or host:port"))
}

/// A method, as requests carry it.
pub(super) fn method(method: &str) -> Result<(), Wrong> {
    if http::Method::from_bytes(method.as_bytes()).is_err() {
        return Err(wrong(format!("`{method}` is not an HTTP method"), "write one such as GET"));
    }
    let upper = method.to_ascii_uppercase();
    let standard = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
    if upper != method && standard.contains(&upper.as_str()) {
        return Err(wrong(
            format!("`{method}` matches no request, because the case of methods counts"),
            format!("write {upper}"),
        ));
    }
    Ok(())
}

/// A path with its query if it has one, to ask for.
pub(super) fn path_and_query(text: &str) -> Result<(), Wrong> {
    let (only_path, query) = text.split_once('?').unwrap_or((text, ""));
    path(only_path)?;
    if query.contains('#') || text.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(wrong(
            format!("`{text}` can't be asked for"),
            "write a path, and its query if it needs one",
        ));
    }
    Ok(())
}

/// A path to compare a request's with.
pub(super) fn path(path: &str) -> Result<(), Wrong> {
    if !path.starts_with('/') {
        return Err(wrong(format!("`{path}` is not a path"), "a path starts with `/`"));
    }
    if path.contains(['?', '#']) {
        return Err(wrong(
            format!("`{path}` is more than a path"),
            "leave out the query, which is not compared",
        ));
    }
    let unclear = path.contains("//") || path.split('/').any(|segment| segment == "." || segment == "..");
    if unclear || path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '\\') {
        return Err(wrong(
            format!("`{path}` holds what a path can't, or what servers read in different ways"),
            "write it plainly: no `//`, `.`, `..`, `\\` or blanks",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_neither_a_host_nor_a_network_is_no_unmeshed_entry() {
        for entry in ["", "a:b", "a:0", "a:+80", "a:70000", "a:80:80", "10.1.2", "10.1.2.3:80", "a b", "*.a"]
        {
            assert_eq!(Unmeshed::parse(entry), None, "{entry}");
        }
    }

    #[test]
    fn srv_names_start_with_port_and_protocol() {
        for name in ["_8080._tcp.api.shop", "_http._tcp.api.shop.svc.cluster.local"] {
            assert!(matches!(dns_name(name), Ok(DnsName::Service)), "{name}");
        }
        for name in
            ["_8080.api.shop", "_8080._udp.api", "_._tcp.api", "_8080._tcp", "_8080._tcp.", "10.0.0.1"]
        {
            assert!(dns_name(name).is_err(), "{name}");
        }
    }
}
