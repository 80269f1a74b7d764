//! Who is in the demo: pods, addresses, service accounts and services. Everything else follows from this table.

use std::fmt::Write;
use std::net::Ipv4Addr;

/// The pods' network. It exists inside the demo's namespaces only, so it can't clash with one of the host's.
pub const NETWORK: &str = "10.77.0.0/24";
pub const PREFIX_LENGTH: u8 = 24;
/// The bridge all pods hang on, in the supervisor's namespace.
pub const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The pod of the CA and the discovery server.
pub const CONTROL: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// Kubernetes namespace of the demo's services.
pub const NAMESPACE: &str = "shop";
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// What runs beside a sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Carries the host's connections to `web`, and makes a little traffic of its own.
    Entry,
    /// The shop's front: calls `api` and `store`.
    Web,
    /// Answers `web`: late by `slow`, and with 503 for the share `fail` of the requests.
    Api { slow: &'static str, fail: &'static str },
    /// Redis.
    Store,
}

/// A workload with its sidecar, in a network namespace of its own.
#[derive(Clone, Copy, Debug)]
pub struct Pod {
    pub name: &'static str,
    pub service_account: &'static str,
    pub address: Ipv4Addr,
    pub workload: Workload,
}

pub const PODS: [Pod; 6] = [
    pod("entry", "entry", 10, Workload::Entry),
    pod("web", "web", 20, Workload::Web),
    pod("api-1", "api", 31, Workload::Api { slow: "0ms", fail: "0%" }),
    pod("api-2", "api", 32, Workload::Api { slow: "200ms", fail: "0%" }),
    pod("api-3", "api", 33, Workload::Api { slow: "0ms", fail: "20%" }),
    pod("store", "store", 40, Workload::Store),
];

const fn pod(name: &'static str, service_account: &'static str, host: u8, workload: Workload) -> Pod {
    Pod { name, service_account, address: Ipv4Addr::new(10, 77, 0, host), workload }
}

/// A name that pods are reached by. Nothing answers at its virtual address: the callers' sidecars take
/// connections to it over.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub name: &'static str,
    pub virtual_address: Ipv4Addr,
    pub port: u16,
}

pub const WEB: Service = service("web", 20, 8080);
pub const API: Service = service("api", 30, 8080);
pub const STORE: Service = service("store", 40, 6379);
pub const SERVICES: [Service; 3] = [WEB, API, STORE];

const fn service(name: &'static str, host: u8, port: u16) -> Service {
    Service { name, virtual_address: Ipv4Addr::new(10, 96, 0, host), port }
}

impl Service {
    /// The service's full name with its port, as a workload dials it.
    pub fn authority(&self) -> String {
        format!("{}.{NAMESPACE}.svc.{CLUSTER_DOMAIN}:{}", self.name, self.port)
    }
}

/// The SPIFFE ID of a service account.
pub fn spiffe_id(namespace: &str, service_account: &str) -> String {
    format!("spiffe://{CLUSTER_DOMAIN}/ns/{namespace}/sa/{service_account}")
}

/// The file that the discovery server answers from.
pub fn discovery_file() -> String {
    let mut file = String::from("services:\n");
    for service in SERVICES {
        let Service { name, virtual_address, port } = service;
        write!(
            file,
            "  - name: {name}\n    namespace: {NAMESPACE}\n    vips: [{virtual_address}]\n    ports: [{{port: {port}}}]\n    \
             endpoints:\n"
        )
        .expect("a String takes everything");
        for pod in PODS.iter().filter(|pod| pod.service_account == name) {
            writeln!(file, "      - {{address: {}, serviceAccount: {name}, mesh: true}}", pod.address)
                .expect("a String takes everything");
        }
    }
    file
}

/// The pods' resolv.conf: the shape that Kubernetes gives, so that short names work as they do there.
pub fn resolv_conf() -> String {
    format!(
        "nameserver {CONTROL}\nsearch {NAMESPACE}.svc.{CLUSTER_DOMAIN} svc.{CLUSTER_DOMAIN} {CLUSTER_DOMAIN}\n\
         options ndots:5 timeout:2\n"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_pods_and_every_address_is_used_once() {
        for service in SERVICES {
            assert!(PODS.iter().any(|pod| pod.service_account == service.name), "{service:?}");
        }
        let addresses: BTreeSet<_> = PODS
            .iter()
            .map(|pod| pod.address)
            .chain(SERVICES.iter().map(|service| service.virtual_address))
            .chain([BRIDGE, CONTROL])
            .collect();
        assert_eq!(addresses.len(), PODS.len() + SERVICES.len() + 2);
    }

    #[test]
    fn the_discovery_file_lists_the_three_endpoints_of_api() {
        let file = discovery_file();
        let api = file.split("  - name: ").find(|part| part.starts_with("api\n")).expect("api is a service");
        assert_eq!(
            api,
            "api\n    namespace: shop\n    vips: [10.96.0.30]\n    ports: [{port: 8080}]\n    endpoints:\n      - \
             {address: 10.77.0.31, serviceAccount: api, mesh: true}\n      - {address: 10.77.0.32, serviceAccount: \
             api, mesh: true}\n      - {address: 10.77.0.33, serviceAccount: api, mesh: true}\n"
        );
    }
}
