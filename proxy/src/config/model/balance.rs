//! How an endpoint is chosen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::units::Duration;

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Balance {
    /// Power of two choices over a latency-weighted load.
    #[default]
    PeakEwma,
    /// Power of two choices over the requests in flight.
    LeastRequest,
    /// One after the other, each as often as its weight says.
    RoundRobin,
    /// By chance, weighted.
    Random,
    /// Consistent hashing on a ring (Ketama): the same key goes to the same endpoint.
    RingHash(HashPolicy),
    /// Consistent hashing by Maglev's table: evener than a ring, and quicker to look up.
    Maglev(HashPolicy),
}

/// What a request is hashed by. A request without any of the keys goes anywhere.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashPolicy {
    /// The key. Opaque bytes have none but the source address.
    pub key: HashKey,
}

/// What a request is hashed by: exactly one field is stated.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum HashKey {
    /// The value of this header.
    Header(String),
    /// The value of this cookie, which the proxy sets where a request has none.
    Cookie(Cookie),
    /// The caller's address, without its port.
    SourceAddress,
}

/// A cookie that keeps a client at one endpoint.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cookie {
    /// Its name.
    pub name: String,
    /// How long the client keeps it. Default: until it ends (a session cookie).
    pub ttl: Option<Duration>,
    /// The path it is sent for. Default: `/`.
    pub path: Option<String>,
}
