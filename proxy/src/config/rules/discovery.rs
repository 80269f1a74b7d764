//! Rules about where an upstream's endpoints come from.

use std::collections::HashSet;
use std::path::Path as FilePath;

use super::report::Report;
use crate::config::defaults::CONSUL_URL;
use crate::config::model::{
    ConsulDiscovery, Discovery, DnsDiscovery, EurekaDiscovery, KubernetesDiscovery, ServicePort,
    StaticEndpoint, Upstream,
};
use crate::config::problem::Path;
use crate::config::syntax::{DnsName, Scheme, dns_name, kubernetes_name, registered_name, url};

/// What Kubernetes allows for the name of a port (RFC 6335).
const MAX_PORT_NAME: usize = 15;

pub(super) fn check(at: &Path, upstream: &Upstream, report: &mut Report) {
    let at_discovery = at.field("discovery");
    match &upstream.discovery {
        None if upstream.hosts.is_empty() => {
            report.error(at, "nothing says where the endpoints are", "state `hosts`, or `discovery`")
        }
        None => {}
        Some(Discovery::Dns(dns)) => by_dns(&at_discovery.field("dns"), dns, report),
        Some(Discovery::Static(endpoints)) => fixed(&at_discovery.field("static"), endpoints, report),
        Some(Discovery::File(file)) => {
            file_is_named(&at_discovery.field("file").field("path"), Some(&file.path), report);
        }
        Some(Discovery::Consul(settings)) => consul(&at_discovery.field("consul"), settings, report),
        Some(Discovery::Eureka(settings)) => eureka(&at_discovery.field("eureka"), settings, report),
        Some(Discovery::Kubernetes(settings)) => {
            kubernetes(&at_discovery.field("kubernetes"), settings, report);
        }
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
    report.port(&at.field("port"), dns.port);
}

fn fixed(at: &Path, endpoints: &[StaticEndpoint], report: &mut Report) {
    if endpoints.is_empty() {
        report.error(at, "the list of endpoints is empty", "write at least one ip:port");
    } else if endpoints.iter().all(|endpoint| endpoint.weight == 0) {
        report.error(
            at,
            "all weights are 0, so that no request could go anywhere",
            "give one of them a weight of 1 or more",
        );
    }
    let mut stated = HashSet::new();
    for (index, endpoint) in endpoints.iter().enumerate() {
        let StaticEndpoint { address, .. } = endpoint;
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
        } else if !stated.insert(address) {
            report.error(&at, format!("{address} is stated twice"), "name each endpoint once");
        } else if !ip.is_loopback() {
            report.warn(
                &at,
                "an endpoint given by its address stays in use when the service has moved",
                "use `discovery: {dns: …}` where there is a name",
            );
        }
        report.weight(&at.field("weight"), endpoint.weight);
        if endpoint.zone.as_deref() == Some("") {
            report.error(&at.field("zone"), "a zone has a name", "write it, or leave the field out");
        }
    }
}

fn consul(at: &Path, consul: &ConsulDiscovery, report: &mut Report) {
    let scheme = url(consul.url(), CONSUL_URL);
    let is_https = scheme == Ok(Scheme::Https);
    report.checked(&at.field("url"), scheme);
    report.checked(&at.field("service"), registered_name(&consul.service));
    for (name, value) in [("tag", &consul.tag), ("datacenter", &consul.datacenter)] {
        if let Some(value) = value {
            report.checked(&at.field(name), registered_name(value));
        }
    }
    file_is_named(&at.field("tokenFile"), consul.token_file.as_deref(), report);
    roots(at, is_https, consul.ca_file.as_deref(), report);
    if !is_https {
        token_in_the_open(at, consul.url(), consul.token_file.as_deref(), report);
    }
}

fn eureka(at: &Path, eureka: &EurekaDiscovery, report: &mut Report) {
    let at_urls = at.field("urls");
    if eureka.urls.is_empty() {
        report.error(&at_urls, "no server is named", "write [http://eureka:8761/eureka]");
    }
    let mut is_https = false;
    for (index, text) in eureka.urls.iter().enumerate() {
        let scheme = url(text, "http://eureka:8761/eureka");
        is_https |= scheme == Ok(Scheme::Https);
        report.checked(&at_urls.item(index), scheme);
    }
    report.checked(&at.field("application"), registered_name(&eureka.application));
    report.above_zero(&at.field("interval"), eureka.interval);
    roots(at, is_https, eureka.ca_file.as_deref(), report);
}

fn kubernetes(at: &Path, kubernetes: &KubernetesDiscovery, report: &mut Report) {
    report.checked(&at.field("service"), kubernetes_name(&kubernetes.service));
    report.checked(&at.field("namespace"), kubernetes_name(&kubernetes.namespace));
    let at_port = at.field("port");
    match &kubernetes.port {
        None => {}
        Some(ServicePort::Number(number)) => report.port(&at_port, Some(*number)),
        Some(ServicePort::Name(name)) => {
            let has_letter = name.bytes().any(|byte| byte.is_ascii_lowercase());
            if kubernetes_name(name).is_err() || name.len() > MAX_PORT_NAME || !has_letter {
                report.error(
                    &at_port,
                    format!("`{name}` is not the name of a port"),
                    format!("write its number, or up to {MAX_PORT_NAME} of a-z, 0-9 and `-`"),
                );
            }
        }
    }
    file_is_named(&at.field("tokenFile"), kubernetes.token_file.as_deref(), report);
    if let Some(text) = &kubernetes.url {
        let scheme = url(text, "https://kubernetes.default.svc");
        let is_http = scheme == Ok(Scheme::Http);
        report.checked(&at.field("url"), scheme);
        if is_http {
            token_in_the_open(at, text, kubernetes.token_file.as_deref(), report);
        }
    }
    file_is_named(&at.field("caFile"), kubernetes.ca_file.as_deref(), report);
}

/// Roots go with `https`: without them a server can't be verified, and without `https` they verify nobody.
fn roots(at: &Path, is_https: bool, ca_file: Option<&FilePath>, report: &mut Report) {
    let at_file = at.field("caFile");
    match (is_https, ca_file) {
        (true, None) => report.error(
            &at_file,
            "an https server can't be verified without roots",
            "name the PEM file that holds them",
        ),
        (false, Some(_)) => {
            report.warn(&at_file, "nothing is verified over plain http", "write https in the URL");
        }
        _ => {}
    }
    file_is_named(&at_file, ca_file, report);
}

/// Whoever can read the network could read the token. On the machine itself nobody else can.
fn token_in_the_open(at: &Path, url: &str, token_file: Option<&FilePath>, report: &mut Report) {
    let uri: Option<http::Uri> = url.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let is_local = host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if token_file.is_some() && !is_local {
        report.warn(&at.field("tokenFile"), "the token crosses the network in plaintext", "use https");
    }
}

fn file_is_named(at: &Path, file: Option<&FilePath>, report: &mut Report) {
    if file.is_some_and(|file| file.as_os_str().is_empty()) {
        report.error(at, "the name of a file is empty", "write its path");
    }
}
