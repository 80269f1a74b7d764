//! Where an upstream's endpoints come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::units::Duration;

/// Where an upstream's endpoints come from: exactly one field is stated. A provider that is away or answers nonsense
/// changes nothing: the last good set stays in use.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Discovery {
    /// By DNS: hosts file, then the mesh's discovery, then SRV, A and AAAA.
    Dns(DnsDiscovery),
    /// Fixed addresses: `ip:port`, or fields.
    Static(Vec<StaticEndpoint>),
    /// A YAML or JSON file with a list of endpoints as under `static`; watched.
    File(FileDiscovery),
    /// The catalog of Consul, by its HTTP API: only instances whose checks pass.
    Consul(ConsulDiscovery),
    /// The registry of Netflix Eureka: only instances with status UP.
    Eureka(EurekaDiscovery),
    /// EndpointSlices of a Kubernetes service, watched.
    Kubernetes(KubernetesDiscovery),
}

/// One endpoint: `ip:port`, or fields.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StaticEndpoint {
    /// `ip:port`.
    pub address: SocketAddr,
    /// Share of the requests, relative to the other endpoints.
    pub weight: u32,
    /// Level; 0 is used first.
    pub priority: u32,
    /// Availability zone.
    pub zone: Option<String>,
    /// Tags by which a route's `subset` chooses.
    pub tags: BTreeMap<String, String>,
}

/// [`StaticEndpoint`] as it is written with fields.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EndpointFields {
    /// `ip:port`.
    #[schemars(with = "String")]
    address: Address,
    /// Share of the requests, relative to the other endpoints, 0 for none, at most 1000000. Default: 1.
    #[serde(default = "one")]
    weight: u32,
    /// 0 is used first; a level with a larger number only as far as those before it have too few healthy endpoints.
    /// Default: 0.
    #[serde(default)]
    priority: u32,
    /// Availability zone. Default: none.
    zone: Option<String>,
    /// Tags by which a route's `subset` chooses. Default: none.
    #[serde(default)]
    tags: BTreeMap<String, String>,
}

/// Endpoints from a file.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileDiscovery {
    /// The file: `[{address: "10.0.0.7:80", weight: 1, zone: a, tags: {version: v2}}]`.
    pub path: PathBuf,
}

/// Endpoints by DNS.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DnsDiscovery {
    /// An SRV name (`_8080._tcp.api.shop.svc.cluster.local`) or a host name.
    pub name: String,
    /// Port of the endpoints when `name` is a host name. Default: the port that was dialled.
    pub port: Option<u16>,
}

/// Endpoints from Consul. The service's `Meta` become tags, each of its `Tags` a tag with an empty value; a meta entry
/// `zone` names the zone. Loopback addresses are believed only if `url` is on loopback itself, other local ones never.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsulDiscovery {
    /// URL of an agent or server, `http` or `https`. Default: `http://127.0.0.1:8500`.
    pub url: Option<String>,
    /// The service's name.
    pub service: String,
    /// Only instances with this tag. Default: all.
    pub tag: Option<String>,
    /// The datacenter. Default: the agent's.
    pub datacenter: Option<String>,
    /// File with the ACL token, read again for each request. Default: none.
    pub token_file: Option<PathBuf>,
    /// PEM file with the roots to verify an `https` URL by. Required with one.
    pub ca_file: Option<PathBuf>,
}

/// Endpoints from Eureka. An instance's metadata become its tags; `zone` among them names the zone. Loopback addresses
/// are believed only if all `urls` are on loopback themselves, other local ones never.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EurekaDiscovery {
    /// URLs of servers, for example `http://eureka:8761/eureka`; the next one is asked when one is away.
    pub urls: Vec<String>,
    /// The application's name.
    pub application: String,
    /// Time between two fetches of what has changed, at least 1s. Default: 30s.
    pub interval: Option<Duration>,
    /// PEM file with the roots to verify `https` URLs by. Required with one.
    pub ca_file: Option<PathBuf>,
}

/// Endpoints of a Kubernetes service.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesDiscovery {
    /// The service's name.
    pub service: String,
    /// Its namespace.
    pub namespace: String,
    /// Name or number of the port of the endpoints. Default: the only one.
    pub port: Option<ServicePort>,
    /// URL of the API server. Default: that of the cluster this proxy runs in.
    pub url: Option<String>,
    /// File with the bearer token, read again for each request. Default: the service account's.
    pub token_file: Option<PathBuf>,
    /// PEM file with the roots to verify the API server by. Default: the service account's.
    pub ca_file: Option<PathBuf>,
}

/// A port by name or number.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum ServicePort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl<'de> Deserialize<'de> for ServicePort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberOrName;

        impl Visitor<'_> for NumberOrName {
            type Value = ServicePort;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port's number or name")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<ServicePort, E> {
                u16::try_from(number)
                    .map(ServicePort::Number)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<ServicePort, E> {
                Ok(ServicePort::Name(name.into()))
            }
        }

        deserializer.deserialize_any(NumberOrName)
    }
}

impl StaticEndpoint {
    /// An endpoint of which only the address is stated.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0, zone: None, tags: BTreeMap::new() }
    }
}

// Derived, an untagged enum tells neither where nor why a value does not fit.
impl<'de> Deserialize<'de> for StaticEndpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AddressOrFields;

        impl<'de> Visitor<'de> for AddressOrFields {
            type Value = StaticEndpoint;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "an address, ip:port, or the fields `address`, `weight`, `priority`, `zone`, `tags`",
                )
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StaticEndpoint, E> {
                Address::try_from(text.to_owned())
                    .map(|Address(address)| StaticEndpoint::at(address))
                    .map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<StaticEndpoint, A::Error> {
                let EndpointFields { address: Address(address), weight, priority, zone, tags } =
                    EndpointFields::deserialize(MapAccessDeserializer::new(fields))?;
                Ok(StaticEndpoint { address, weight, priority, zone, tags })
            }
        }

        deserializer.deserialize_any(AddressOrFields)
    }
}

impl JsonSchema for StaticEndpoint {
    fn schema_name() -> Cow<'static, str> {
        "StaticEndpoint".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let fields = generator.subschema_for::<EndpointFields>();
        json_schema!({"anyOf": [{"type": "string", "description": "`ip:port`."}, fields]})
    }
}

/// An address with an error text of its own: the standard library's does not say what is allowed.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Address(SocketAddr);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| {
            format!(
                "`{text}` is not an address with a port: write ip:port, for example 10.0.0.7:6379 or \
                 [fd00::7]:6379 (a name goes under `dns`)"
            )
        })
    }
}

fn one() -> u32 {
    1
}
