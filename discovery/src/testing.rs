//! Services for tests of this crate.

use crate::services::{Endpoint, Port, Service};

/// A service of the namespace `shop` with port 8080 and no endpoints.
pub(crate) fn service(name: &str, vip: &str) -> Service {
    Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        vips: vec![vip.parse().unwrap()],
        ports: vec![Port { port: 8080, target_port: 8080, opaque: false }],
        endpoints: Vec::new(),
        timeout: None,
        retries: None,
    }
}

/// A meshed endpoint of the account `api`.
pub(crate) fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        service_account: Some("api".to_owned()),
        mesh: true,
        unmeshed_ports: Vec::new(),
        zone: None,
        weight: 1,
    }
}
