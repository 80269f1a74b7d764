//! The configuration file as a user writes it: one Rust type an object, every field optional.
//!
//! Doc comments here are the product's reference: the JSON schema and the README's table are made
//! of them. Each gives meaning, unit and default. Rules that span several fields are in `rules.rs`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::units::{Duration, Network};

/// A sidecar's configuration.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// The trust domain of every identity in this mesh. Default: `cluster.local`.
    pub trust_domain: Option<String>,
    /// What the inbound side lets in, and how unknown peers are called. Default: `strict`.
    pub mtls: Mtls,
    /// Where this workload's certificate and the trust bundle come from.
    pub identity: Identity,
    /// How names are resolved.
    pub dns: Dns,
    /// Traffic from peers to the workload.
    pub inbound: Inbound,
    /// Traffic from the workload to peers.
    pub outbound: Outbound,
    /// Named services that requests are sent to, with their policy.
    pub upstreams: BTreeMap<String, Upstream>,
    /// Which requests go to which upstream; the first route in the file that matches wins.
    pub routes: Vec<Route>,
    /// Where spans are sent. Default: nowhere.
    pub tracing: Option<Tracing>,
    /// Where the access log is written. Default: nowhere.
    pub access_log: AccessLog,
    /// Threads that carry traffic. Default: 1.
    pub workers: Option<usize>,
    /// How long a stopping proxy lets requests in flight finish. Default: 25s.
    pub drain_timeout: Option<Duration>,
}

/// How strictly mutual TLS is demanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Mtls {
    /// Only mesh TLS is let in; a peer of the mesh is never called in plaintext.
    #[default]
    Strict,
    /// Plaintext is let in; a peer not known to be of the mesh is tried with mesh TLS first.
    Permissive,
    /// Like permissive, and counts and names whom strict would have refused.
    Audit,
}

/// Where this workload's certificate and the trust bundle come from: `ca` or `files`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Identity {
    /// A CA that issues the certificate and renews it.
    pub ca: Option<CaSource>,
    /// A certificate in files, read again when they change.
    pub files: Option<FileSource>,
    /// PEM file with the roots this proxy trusts; watched. Default: what the CA serves, which
    /// is then believed on first use.
    pub trust_bundle: Option<PathBuf>,
}

/// A CA that speaks Istio's certificate API.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaSource {
    /// `host:port` of the CA, for example `ca.outrigger.svc:15012`.
    pub address: String,
    /// File that holds the bearer token; read again for each request to the CA.
    pub token_file: PathBuf,
}

/// A certificate and its key in PEM files.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FileSource {
    /// PEM file: the workload's certificate first, then its issuers.
    pub certificate: PathBuf,
    /// PEM file: the private key.
    pub key: PathBuf,
}

/// How names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Dns {
    /// DNS servers, `ip` or `ip:port`. Default: those of `/etc/resolv.conf`.
    pub servers: Vec<String>,
    /// The hosts file, asked before DNS; watched. Default: `/etc/hosts`.
    pub hosts_file: Option<PathBuf>,
    /// `host:port` of the mesh's discovery, asked over DNS over TLS with mesh identities.
    /// Default: none.
    pub mesh_server: Option<String>,
    /// Search domains. Default: those of `/etc/resolv.conf`.
    pub search: Option<Vec<String>>,
    /// Names with fewer dots are tried with the search domains first. Default: that of
    /// `/etc/resolv.conf`, else 1.
    pub ndots: Option<usize>,
}

/// Traffic from peers to the workload.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Inbound {
    /// Ports on which nothing is parsed, added to 25, 587, 3306, 4222, 5672, 9300, 11211, 27017.
    /// `outrigger-client-id` proves nothing there.
    pub opaque_ports: Vec<u16>,
    /// What differs for single ports.
    pub ports: BTreeMap<u16, InboundPort>,
    /// Who may do what; a request must satisfy one rule. Default: whoever the port's mTLS mode lets in, of identities any of
    /// the trust domain.
    pub allow: Option<Vec<AllowRule>>,
}

/// What differs for one inbound port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InboundPort {
    /// mTLS mode of this port. Default: the proxy's `mtls`.
    pub mtls: Option<Mtls>,
    /// What is spoken on this port; one of HTTP has it refuse opaque bytes. Default: `auto`, read off
    /// the first bytes.
    pub protocol: Protocol,
}

/// What is spoken on a port or by an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Protocol {
    /// Read off the first bytes.
    #[default]
    Auto,
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// gRPC: HTTP/2, with gRPC statuses in the responses that the proxy makes itself.
    Grpc,
    /// Opaque bytes.
    Tcp,
}

/// One inbound authorization rule: all fields that are stated must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AllowRule {
    /// SPIFFE IDs, exact, or ending in `/*` for all below. Default: any caller; on strict ports that is any identity of the
    /// trust domain, on permissive ones and those in audit mode also callers without an identity.
    pub identities: Vec<String>,
    /// Ports of the workload. Default: all.
    pub ports: Vec<u16>,
    /// HTTP methods. Default: all. A port with a rule on methods or paths refuses opaque bytes.
    pub methods: Vec<String>,
    /// Paths of the request, without the query. Default: all.
    pub paths: Vec<PathMatch>,
}

/// A match on a request's path; exactly one field is stated.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PathMatch {
    /// The path is exactly this.
    Exact(String),
    /// The path starts with these whole segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Prefix(String),
}

/// Traffic from the workload to peers.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outbound {
    /// Domains whose names are peers of the mesh.
    pub mesh_domains: Vec<String>,
    /// Networks whose addresses are peers of the mesh, for traffic that has no name.
    pub mesh_networks: Vec<Network>,
    /// Names (`host` or `host:port`) and networks that have no sidecar and are called in
    /// plaintext. `kubernetes.default.svc` is always on it. Whatever it says, who dials port 15020
    /// or 15021 gets plaintext, unless discovery or the upstream says otherwise of it.
    pub unmeshed: Vec<String>,
    /// Ports on which nothing is parsed, added to 25, 587, 3306, 4222, 5672, 9300, 11211, 27017.
    pub opaque_ports: Vec<u16>,
}

/// A named service that requests are sent to, with its policy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Upstream {
    /// Host names whose requests come here when no route says otherwise.
    pub hosts: Vec<String>,
    /// Where the endpoints come from. Default: DNS, by the first of `hosts`.
    pub discovery: Option<Discovery>,
    /// What is spoken with it. Default: `auto`.
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
    /// Limit for TCP connect and TLS handshake together. Default: 1s.
    pub connect_timeout: Option<Duration>,
    /// Limits of the connection pool.
    pub pool: Pool,
    /// Active health checks. Read and validated; takes effect with the next release.
    pub health_check: Option<HealthCheck>,
    /// Ejection of failing endpoints. Read and validated; takes effect with the next release.
    pub outlier: Option<Outlier>,
    /// The circuit breaker. Read and validated; takes effect with the next release.
    pub breaker: Option<Breaker>,
    /// The answer when nothing else works. Read and validated; takes effect with the next release.
    pub fallback: Option<Fallback>,
}

/// Where an upstream's endpoints come from: exactly one field is stated.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Discovery {
    /// By DNS: hosts file, then the mesh's discovery, then SRV, A and AAAA.
    Dns(DnsDiscovery),
    /// Fixed addresses, `ip:port`.
    Static(#[serde(deserialize_with = "addresses")] Vec<SocketAddr>),
}

/// Addresses with an error text of their own: the standard library's does not say what is allowed.
fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
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

    Ok(Vec::<Address>::deserialize(deserializer)?.into_iter().map(|address| address.0).collect())
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

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Balance {
    /// Power of two choices over a latency-weighted load.
    #[default]
    PeakEwma,
}

/// Limits of an upstream's connection pool.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pool {
    /// Connections to the upstream, all workers together. Default: 1024.
    pub max_connections: Option<usize>,
    /// Requests that wait for a connection; one more gets 503 at once. Default: 1024.
    pub max_pending_requests: Option<usize>,
    /// How long a connection may stay unused. Default: 55s.
    pub idle_timeout: Option<Duration>,
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// Check by an HTTP GET.
    pub http: HttpCheck,
    /// Time between checks. Default: 10s.
    pub interval: Option<Duration>,
    /// Time a check may take. Default: 1s.
    pub timeout: Option<Duration>,
    /// Failures in a row after which an endpoint is out. Default: 3.
    pub unhealthy_after: Option<u32>,
    /// Successes in a row after which it is in again. Default: 2.
    pub healthy_after: Option<u32>,
}

/// A health check by an HTTP GET.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The path that is asked.
    pub path: String,
}

/// Ejection of failing endpoints.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outlier {
    /// Failures in a row that eject an endpoint. Default: 5.
    pub consecutive_failures: Option<u32>,
    /// Time out, multiplied by the number of ejections. Default: 30s.
    pub ejection: Option<Duration>,
    /// Share of the endpoints that may be out at once, in percent. Default: 50.
    pub max_ejected_percent: Option<u8>,
}

/// The circuit breaker of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Breaker {
    /// Failures in a row that open it. Default: 5.
    pub consecutive_failures: Option<u32>,
    /// Time within which they must happen. Default: 30s.
    pub window: Option<Duration>,
    /// Time it stays open. Default: 10s.
    pub open_for: Option<Duration>,
}

/// A fixed answer when nothing else works.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fallback {
    /// HTTP status.
    pub status: u16,
    /// Body, plain text. Default: empty.
    #[serde(default)]
    pub body: String,
}

/// Which requests go to which upstreams.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Name of the route in metrics and logs.
    pub name: String,
    /// Alternatives: one of them must match.
    #[serde(rename = "match", default)]
    pub matches: Vec<RouteMatch>,
    /// Where the requests go, by weight.
    pub upstreams: Vec<WeightedUpstream>,
    /// Time from the end of the request to the response's headers. Default: none.
    pub timeout: Option<Duration>,
    /// Retry policy. Read and validated; takes effect with the next release.
    pub retry: Option<Retry>,
}

/// One alternative of a route's match: all fields that are stated must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteMatch {
    /// Host name, without port.
    pub host: Option<String>,
    /// Path, without the query.
    pub path: Option<PathMatch>,
    /// HTTP methods. Default: all.
    pub methods: Vec<String>,
}

/// An upstream of a route, with its share.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedUpstream {
    /// Name of an upstream of this file.
    pub name: String,
    /// Share of the requests, relative to the other weights. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
}

fn one() -> u32 {
    1
}

/// Retry policy of a route.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Tries after the first, at most 3. Default: 2.
    pub attempts: Option<u32>,
    /// What is tried again: `connectFailure`, `refusedStream`, `reset`, or an HTTP status.
    pub on: Vec<String>,
    /// Time one try may take.
    pub per_try_timeout: Option<Duration>,
}

/// Where spans are sent. Read and validated; takes effect with a later release.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tracing {
    /// An OpenTelemetry collector.
    pub otlp: Option<Otlp>,
    /// Share of the traces started here that are recorded, 0 to 1. Default: 0.
    pub sample_ratio: Option<f64>,
}

/// An OpenTelemetry collector.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Otlp {
    /// URL of the collector.
    pub endpoint: String,
    /// `grpc` or `http`. Default: `grpc`.
    #[serde(default)]
    pub protocol: OtlpProtocol,
}

/// How spans travel to the collector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OtlpProtocol {
    /// OTLP over gRPC.
    #[default]
    Grpc,
    /// OTLP over HTTP.
    Http,
}

/// The access log: one JSON line a request or connection; metadata only, never a body.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLog {
    /// `none`, `stdout`, or a file's path. Default: `none`.
    pub output: Option<String>,
}
