//! A named service that requests are sent to, and how it is spoken to.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Balance, Breaker, Concurrency, Discovery, Fallback, HealthCheck, Outlier, Protocol, Retry};
use crate::config::units::Duration;

/// A named service that requests are sent to, with its policy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upstream {
    /// Host names whose requests come here when no route says otherwise.
    pub hosts: Vec<String>,
    /// Where the endpoints come from. Default: DNS, by the first of `hosts`.
    pub discovery: Option<Discovery>,
    /// What is spoken with it. A request that came in another version of HTTP is put into this one, but for `CONNECT`;
    /// HTTP/2 knows no upgrades, so they are not asked for. `tcp`: connections to its endpoints are not read. Default:
    /// `auto`, as the caller speaks.
    pub protocol: Protocol,
    /// How the connection is secured: `mesh` (mutual TLS between sidecars), `none` (plaintext), or TLS to a
    /// server outside the mesh by the fields below. Default: mesh TLS for peers of the mesh (`outbound` and
    /// discovery say which those are), plaintext for others.
    pub tls: Option<UpstreamTls>,
    /// The SPIFFE ID the peer must have, or `any` for every identity of the trust domain.
    pub identity: Option<String>,
    /// Let requests that name this upstream go to its endpoints whatever address was dialled.
    /// Default: false.
    pub any_destination: bool,
    /// How an endpoint is chosen. Default: `peakEwma`.
    pub balance: Balance,
    /// Prefer endpoints of this proxy's `zone`, spilling over as far as they have less than their share of healthy
    /// endpoints. Default: false.
    pub prefer_zone: bool,
    /// Time over which the share of a new endpoint grows to its whole. Default: none.
    pub slow_start: Option<Duration>,
    /// Limit for TCP connect and TLS handshake, each. Default: 1s.
    pub connect_timeout: Option<Duration>,
    /// From the end of the request to the response's headers, all tries together, where no route says otherwise.
    /// Default: none.
    pub timeout: Option<Duration>,
    /// How long a request or response body, or an opaque connection, may stand still, for want of bytes or, on HTTP/2,
    /// of a receiver that takes them. Default: for ever.
    pub stream_idle_timeout: Option<Duration>,
    /// Limits of the connection pool.
    pub pool: Pool,
    /// Limit of the requests under way at once. Default: none but `pool`.
    pub concurrency: Option<Concurrency>,
    /// Active health checks. Default: none.
    pub health_check: Option<HealthCheck>,
    /// Ejection of failing endpoints.
    pub outlier: Outlier,
    /// The circuit breaker.
    pub breaker: Breaker,
    /// When a request is tried again, where no route says otherwise.
    pub retry: Retry,
    /// What is done when nothing else works. Default: nothing.
    pub fallback: Option<Fallback>,
}

/// How the connection to an upstream is secured: `mesh`, `none`, or TLS to a server outside the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum UpstreamTls {
    /// `mesh` or `none`.
    Mode(UpstreamTlsMode),
    /// TLS to a server outside the mesh.
    Server(ServerTls),
}

// Derived, an untagged enum tells neither where nor why a value does not fit.
impl<'de> Deserialize<'de> for UpstreamTls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ModeOrServer;

        impl<'de> Visitor<'de> for ModeOrServer {
            type Value = UpstreamTls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`mesh`, `none`, or the fields `serverName` and `caFile`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<UpstreamTls, E> {
                match text {
                    "mesh" => Ok(UpstreamTls::Mode(UpstreamTlsMode::Mesh)),
                    "none" => Ok(UpstreamTls::Mode(UpstreamTlsMode::None)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<UpstreamTls, A::Error> {
                ServerTls::deserialize(MapAccessDeserializer::new(fields)).map(UpstreamTls::Server)
            }
        }

        deserializer.deserialize_any(ModeOrServer)
    }
}

/// `mesh`: mutual TLS between sidecars. `none`: plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum UpstreamTlsMode {
    /// Mutual TLS between sidecars.
    Mesh,
    /// Plaintext.
    None,
}

/// TLS to a server outside the mesh.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServerTls {
    /// The name the server's certificate must carry, sent as SNI.
    pub server_name: String,
    /// PEM file with the roots to verify it by.
    pub ca_file: PathBuf,
}

/// Limits of an upstream's connection pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pool {
    /// Connections to the upstream, all workers together. Default: 1024.
    pub max_connections: Option<usize>,
    /// Requests that wait for a connection; one more gets 503 at once. Default: 1024.
    pub max_pending_requests: Option<usize>,
    /// Requests under way at once, all workers together; one more gets 503 at once. Default: unlimited.
    pub max_requests: Option<usize>,
    /// Requests after which a connection is replaced. Default: unlimited.
    pub max_requests_per_connection: Option<u64>,
    /// Age at which a connection is replaced. Default: that of the peer's certificate.
    pub max_connection_age: Option<Duration>,
    /// How long a connection may stay unused. Default: 55s.
    pub idle_timeout: Option<Duration>,
}
