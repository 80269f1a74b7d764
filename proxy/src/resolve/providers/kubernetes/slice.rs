//! EndpointSlices (`discovery.k8s.io/v1`) and what of them is to be dialled.
//!
//! <https://kubernetes.io/docs/reference/kubernetes-api/service-resources/endpoint-slice-v1/>

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Deserialize;

use super::super::super::answer::ResolvedEndpoint;
use crate::config::ServicePort;

/// A part of the endpoints of a service.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub metadata: Metadata,
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub name: String,
    pub resource_version: Option<String>,
}

/// Why a request failed, where an object was expected.
#[derive(Debug, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub code: u16,
    #[serde(default)]
    pub message: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Endpoint {
    /// Only the first has a meaning.
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    zone: Option<String>,
}

/// What is not stated is as it is of an endpoint that works.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
struct Port {
    name: Option<String>,
    /// None stands for every port.
    port: Option<u16>,
    protocol: Option<String>,
}

impl Conditions {
    fn is_ready(self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Ends soon and answers still.
    fn is_leaving(self) -> bool {
        self.terminating.unwrap_or(false) && self.serving.unwrap_or(false)
    }
}

/// The endpoints of a service out of all its slices: those that are ready; if none is, those that end and answer still,
/// as kube-proxy does it. Also gives why others can't be dialled.
///
/// # Errors
/// It is not clear which port is meant.
pub(super) fn endpoints<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: Option<&ServicePort>,
) -> Result<(Vec<ResolvedEndpoint>, Vec<String>), String> {
    let (mut ready, mut leaving, mut passed_over) = (Vec::new(), Vec::new(), Vec::new());
    for slice in slices {
        let name = &slice.metadata.name;
        if slice.address_type == "FQDN" {
            passed_over.push(format!("{name}: its addresses are names"));
            continue;
        }
        let all = slice.endpoints.as_deref().unwrap_or_default();
        if all.is_empty() {
            continue;
        }
        let Some(port) = slice.port(port)? else {
            passed_over.push(format!("{name}: it has no such port"));
            continue;
        };
        for Endpoint { addresses, conditions, zone } in all {
            let Some(Ok(ip)) = addresses.first().map(|address| address.parse::<IpAddr>()) else {
                passed_over.push(format!("{name}: {addresses:?} is no IP address"));
                continue;
            };
            let endpoint = || ResolvedEndpoint {
                zone: zone.as_deref().filter(|zone| !zone.is_empty()).map(Arc::from),
                ..ResolvedEndpoint::at(SocketAddr::new(ip, port))
            };
            if conditions.is_ready() {
                ready.push(endpoint());
            } else if conditions.is_leaving() {
                leaving.push(endpoint());
            }
        }
    }
    Ok((if ready.is_empty() { leaving } else { ready }, passed_over))
}

impl EndpointSlice {
    /// The port of its endpoints; `None` if it has not the one that is wanted.
    fn port(&self, wanted: Option<&ServicePort>) -> Result<Option<u16>, String> {
        let all = self.ports.as_deref().unwrap_or_default();
        let tcp: Vec<&Port> = all
            .iter()
            .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
            .collect();
        match (wanted, &tcp[..]) {
            (Some(ServicePort::Name(name)), tcp) => {
                let named = tcp.iter().find(|port| port.name.as_deref().unwrap_or_default() == name);
                Ok(named.and_then(|port| port.port))
            }
            (Some(ServicePort::Number(number)), tcp) => {
                let has_it = tcp.iter().any(|port| port.port.is_none_or(|port| port == *number));
                Ok(has_it.then_some(*number))
            }
            (None, []) => Ok(None),
            (None, [only]) => Ok(only.port),
            (None, several) => {
                let one = |port: &&Port| {
                    let number = port.port.map_or("any".into(), |port| port.to_string());
                    format!("{} ({number})", port.name.as_deref().unwrap_or_default())
                };
                let all = several.iter().map(one).collect::<Vec<_>>().join(", ");
                Err(format!("it has several ports, {all}: state which (discovery.kubernetes.port)"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, kind: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "resourceVersion": "1"},
            "addressType": kind, "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn addresses(slices: &[EndpointSlice], port: Option<ServicePort>) -> Result<Vec<String>, String> {
        let (endpoints, _) = endpoints(slices.iter(), port.as_ref())?;
        Ok(endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect())
    }

    fn http() -> Value {
        json!([{"name": "http", "port": 8080, "protocol": "TCP"}])
    }

    #[test]
    fn those_that_are_ready_are_used_and_those_that_leave_only_if_nobody_is_ready() {
        let endpoint = |address: &str, ready: Value, serving: Value, terminating: Value| json!({"addresses": [address], "conditions": {"ready": ready, "serving": serving, "terminating": terminating}});
        let (yes, no, unsaid) = (json!(true), json!(false), Value::Null);
        let leaving = endpoint("10.0.0.3", no.clone(), yes.clone(), yes.clone());
        let broken = endpoint("10.0.0.4", no.clone(), no.clone(), no.clone());
        let gone = endpoint("10.0.0.5", no.clone(), no, yes.clone());
        let unready = endpoint("10.0.0.6", json!(false), yes.clone(), unsaid.clone());
        let others = [leaving, broken, gone, unready];
        let ready = [
            endpoint("10.0.0.1", yes.clone(), yes, unsaid.clone()),
            endpoint("10.0.0.2", unsaid.clone(), unsaid.clone(), unsaid),
            json!({"addresses": ["10.0.0.7"]}),
        ];
        let all: Vec<_> = ready.iter().chain(&others).cloned().collect();
        let of = |endpoints: Value| addresses(&[slice("a", "IPv4", http(), endpoints)], None).unwrap();
        assert_eq!(of(json!(all)), ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.7:8080"]);
        assert_eq!(of(json!(others)), ["10.0.0.3:8080"]);
        assert!(of(Value::Null).is_empty());
    }

    #[test]
    fn the_port_is_found_by_name_by_number_or_by_being_the_only_one() {
        let one = json!([{"addresses": ["10.0.0.1"]}]);
        let two = json!([
            {"name": "http", "port": 8080}, {"name": "grpc", "port": 9090, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ]);
        let of = |ports: &Value, port: Option<ServicePort>| {
            addresses(&[slice("a", "IPv4", ports.clone(), one.clone())], port)
        };
        let named = |name: &str| Some(ServicePort::Name(name.into()));
        assert_eq!(of(&two, named("grpc")), Ok(vec!["10.0.0.1:9090".into()]));
        assert_eq!(of(&two, Some(ServicePort::Number(8080))), Ok(vec!["10.0.0.1:8080".into()]));
        assert_eq!(of(&two, Some(ServicePort::Number(53))), Ok(vec![]), "not by UDP");
        assert_eq!(of(&two, named("web")), Ok(vec![]));
        assert!(of(&two, None).unwrap_err().contains("http (8080), grpc (9090)"));
        assert_eq!(of(&http(), None), Ok(vec!["10.0.0.1:8080".into()]));
        let unnamed = json!([{"name": "", "port": 80}]);
        assert_eq!(of(&unnamed, None), Ok(vec!["10.0.0.1:80".into()]));
        let every = json!([{"name": "", "port": null}]);
        assert_eq!(of(&every, Some(ServicePort::Number(7))), Ok(vec!["10.0.0.1:7".into()]));
        assert_eq!(of(&every, None), Ok(vec![]));
    }

    #[test]
    fn slices_of_both_families_are_joined_and_names_are_passed_over() {
        let slices = [
            slice("v4", "IPv4", http(), json!([{"addresses": ["10.0.0.1", "10.9.9.9"], "zone": "a"}])),
            slice("v6", "IPv6", http(), json!([{"addresses": ["fd00::1"], "zone": ""}])),
            slice("fqdn", "FQDN", http(), json!([{"addresses": ["api.example"]}])),
            slice("odd", "IPv4", http(), json!([{"addresses": []}])),
        ];
        let (endpoints, passed_over) = endpoints(slices.iter(), None).unwrap();
        let found: Vec<_> =
            endpoints.iter().map(|one| (one.address.to_string(), one.zone.as_deref())).collect();
        assert_eq!(found, [("10.0.0.1:8080".into(), Some("a")), ("[fd00::1]:8080".into(), None)]);
        assert_eq!(passed_over.len(), 2);
    }
}
