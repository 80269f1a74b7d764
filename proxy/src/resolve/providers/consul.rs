//! Consul's catalog, by blocking queries of its HTTP API.
//!
//! <https://developer.hashicorp.com/consul/api-docs/health> and
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>, whose rules about indexes are kept: one that went
//! backwards or is missing begins anew, one below 1 is 1, and the rate is bounded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use serde::Deserialize;

use super::super::answer::ResolvedEndpoint;
use super::super::outcome::Miss;
use super::http::{Client, HttpError, Network, escaped, token};
use super::{PATIENCE, Pace, PassedOver, Provider};
use crate::config::ConsulDiscovery;

const URL: &str = "http://127.0.0.1:8500";
/// How long a query may block; then the same is said again, which confirms it.
const WAIT: Duration = Duration::from_secs(55);
/// Consul adds up to a sixteenth, so that not all wake at once.
const WAIT_SPREAD: Duration = Duration::from_secs(4);

const TOKEN: HeaderName = HeaderName::from_static("x-consul-token");
const INDEX: HeaderName = HeaderName::from_static("x-consul-index");
const FILTERED: HeaderName = HeaderName::from_static("x-consul-results-filtered-by-acls");

/// A service of the catalog.
pub(super) struct Consul {
    client: Client,
    /// The question but for what makes it wait.
    path: String,
    token_file: Option<PathBuf>,
    /// What was heard last; 0 asks for what is now.
    index: u64,
    pace: Pace,
    passed_over: PassedOver,
}

impl Consul {
    pub(super) fn new(network: Network, settings: &ConsulDiscovery) -> Result<Self, HttpError> {
        let client = Client::new(network, settings.url.as_deref().unwrap_or(URL), settings.ca_file.clone())?;
        let mut path = format!("/v1/health/service/{}?passing=1", escaped(&settings.service));
        for (field, value) in [("dc", &settings.datacenter), ("tag", &settings.tag)] {
            if let Some(value) = value {
                path += &format!("&{field}={}", escaped(value));
            }
        }
        Ok(Self {
            client,
            path,
            token_file: settings.token_file.clone(),
            index: 0,
            pace: Pace::new(),
            passed_over: PassedOver::default(),
        })
    }

    /// Whether the agent that is asked is on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.client.is_loopback()
    }

    async fn ask(&mut self) -> Result<Vec<ResolvedEndpoint>, HttpError> {
        let (path, patience) = match self.index {
            0 => (self.path.clone(), PATIENCE),
            index => {
                let path = format!("{}&index={index}&wait={}s", self.path, WAIT.as_secs());
                (path, WAIT + WAIT_SPREAD + PATIENCE)
            }
        };
        let mut fields = Vec::new();
        if let Some(file) = &self.token_file {
            fields.push((TOKEN, token(file, "")?));
        }
        let (head, body) = self.client.get(&path, &fields, patience).await?;
        let entries: Vec<Entry> =
            serde_json::from_slice(&body).map_err(|error| self.client.nonsense(&body, error))?;
        let index = index(&head).ok_or_else(|| self.client.nonsense(&body, "it has no X-Consul-Index"))?;
        if entries.is_empty() && head.get(FILTERED).is_some_and(|filtered| filtered == "true") {
            return Err(self.client.nonsense(&body, "the token may not read the service or its nodes"));
        }
        self.index = if index < self.index { 0 } else { index };
        let mut passed_over = Vec::new();
        let endpoints = entries
            .iter()
            .filter_map(|entry| entry.endpoint().map_err(|reason| passed_over.push(reason)).ok())
            .collect();
        self.passed_over.tell("Consul", passed_over);
        Ok(endpoints)
    }
}

impl Provider for Consul {
    async fn next(&mut self) -> Result<Vec<ResolvedEndpoint>, Miss> {
        self.pace.turn().await;
        let said = self.ask().await;
        if said.is_err() {
            // By an index of before, a Consul that began anew would keep what is now to itself.
            self.index = 0;
        }
        Ok(said?)
    }
}

/// At least 1: 0 would not block.
fn index(head: &HeaderMap) -> Option<u64> {
    let index: u64 = head.get(INDEX)?.to_str().ok()?.parse().ok()?;
    Some(index.max(1))
}

/// One instance of a service. Lists and maps may be null.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    node: Node,
    service: Service,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(default)]
    address: String,
    /// Whoever registers may state any number.
    port: i64,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
}

impl Entry {
    /// What is to be dialled; a service without an address of its own is at its node's.
    fn endpoint(&self) -> Result<ResolvedEndpoint, String> {
        let Service { id, address, port, tags, meta, weights } = &self.service;
        let address = if address.is_empty() { &self.node.address } else { address };
        let ip: IpAddr =
            address.parse().map_err(|_| format!("{id}: its address `{address}` is no IP address"))?;
        let port = u16::try_from(*port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| format!("{id}: it has no port that can be dialled"))?;
        let mut all: BTreeMap<String, String> =
            tags.iter().flatten().map(|tag| (tag.clone(), String::new())).collect();
        all.extend(meta.iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        Ok(ResolvedEndpoint {
            weight: weights.as_ref().map_or(1, |weights| weights.passing),
            zone: all.get("zone").filter(|zone| !zone.is_empty()).map(|zone| Arc::from(zone.as_str())),
            tags: Arc::new(all),
            ..ResolvedEndpoint::at(SocketAddr::new(ip, port))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(entry: serde_json::Value) -> Result<ResolvedEndpoint, String> {
        serde_json::from_value::<Entry>(entry).unwrap().endpoint()
    }

    #[test]
    fn an_instance_is_at_its_own_address_or_at_its_nodes() {
        let at = |service: &str, node: &str| {
            let entry = serde_json::json!({
                "Node": {"Node": "n1", "Address": node},
                "Service": {"ID": "api-1", "Address": service, "Port": 8080},
            });
            endpoint(entry).map(|endpoint| endpoint.address.to_string())
        };
        assert_eq!(at("10.0.0.1", "10.0.0.9").unwrap(), "10.0.0.1:8080");
        assert_eq!(at("", "10.0.0.9").unwrap(), "10.0.0.9:8080");
        assert_eq!(at("fd00::1", "10.0.0.9").unwrap(), "[fd00::1]:8080");
        assert!(at("api.example", "10.0.0.9").unwrap_err().contains("api-1"));
    }

    #[test]
    fn a_port_that_can_not_be_dialled_is_this_instances_trouble_only() {
        for port in [0, -1, 65_536] {
            let entry = serde_json::json!({
                "Node": {"Address": "10.0.0.9"}, "Service": {"ID": "api-1", "Address": "", "Port": port},
            });
            assert!(endpoint(entry).unwrap_err().contains("no port"), "{port}");
        }
    }

    #[test]
    fn tags_meta_weight_and_zone_are_read_and_may_be_null() {
        let full = endpoint(serde_json::json!({
            "Node": {"Address": "10.0.0.9"},
            "Service": {
                "ID": "api-1", "Address": "", "Port": 80, "Tags": ["primary", "zone"],
                "Meta": {"version": "2", "zone": "a"}, "Weights": {"Passing": 10, "Warning": 1},
            },
        }))
        .unwrap();
        assert_eq!((full.weight, full.zone.as_deref()), (10, Some("a")));
        let tags: Vec<_> = full.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(tags, ["primary=", "version=2", "zone=a"]);
        let bare = endpoint(serde_json::json!({
            "Node": {"Address": "10.0.0.9"},
            "Service": {"ID": "x", "Address": "", "Port": 80, "Tags": null, "Meta": null, "Weights": null},
        }))
        .unwrap();
        assert_eq!((bare.weight, bare.zone, bare.tags.len()), (1, None, 0));
    }

    #[test]
    fn an_index_is_at_least_one_and_must_be_there() {
        for (text, expected) in [("7", Some(7)), ("0", Some(1)), ("-1", None), ("x", None)] {
            let head = HeaderMap::from_iter([(INDEX, text.parse().unwrap())]);
            assert_eq!(index(&head), expected, "{text}");
        }
        assert_eq!(index(&HeaderMap::new()), None);
    }
}
