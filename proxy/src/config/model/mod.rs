//! The configuration file as a user writes it: one Rust type an object, every field optional.
//!
//! Doc comments here are the product's reference: the JSON schema and the README's table are made
//! of them. Each gives meaning, unit and default. Rules that span several fields are in `rules`, what holds
//! where nothing is stated in `defaults`.

mod balance;
mod discovery;
mod route;
mod sampling;
mod survival;
mod upstream;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{Duration, Network};
pub use balance::{Balance, Cookie, HashKey, HashPolicy};
pub use discovery::{
    ConsulDiscovery, Discovery, DnsDiscovery, EurekaDiscovery, FileDiscovery, KubernetesDiscovery,
    ServicePort, StaticEndpoint,
};
pub use route::{
    Abort, Delay, Fault, HeaderEdits, HeaderMatch, HeaderValueOf, Mirror, PathRewrite, QueryMatch, Redirect,
    Respond, Rewrite, Route, RouteAuth, RouteMatch, ValueMatch, WeightedUpstream,
};
pub use sampling::{Propagation, RouteTracing, Sampling, TraceHeaders};
pub use survival::{
    Backoff, Breaker, CacheFallback, Concurrency, FailureRate, Fallback, GrpcCheck, HealthCheck, HttpCheck,
    Outlier, Retry, SuccessRate, TcpCheck,
};
pub use upstream::{Pool, ServerTls, Upstream, UpstreamTls, UpstreamTlsMode};

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
    /// Which requests go to which upstream. Of several routes that match the most specific wins, as the Gateway API
    /// says: by host, then path (exact, regular expression, longest prefix), method, number of header fields, number of
    /// query parameters; of equal ones the first in the file.
    pub routes: Vec<Route>,
    /// Which traces are recorded, and where their spans are sent. Default: as the OTEL_ variables say where they name an
    /// exporter, else none: a trace's headers then pass untouched.
    pub tracing: Option<Tracing>,
    /// Where the access log is written. Default: nowhere.
    pub access_log: AccessLog,
    /// Availability zone that this proxy runs in: endpoints of the same zone are preferred where an upstream says
    /// `preferZone`. Default: none.
    pub zone: Option<String>,
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
    /// How long a connection to a workload that refuses it is tried again, so that a workload that is still starting
    /// costs nobody a request; 0s: it is not. Default: 1s.
    pub connect_retry: Option<Duration>,
    /// Requests that the workload may be busy with at once; one more is answered with 503 and Retry-After. Default:
    /// unlimited.
    pub concurrency: Option<Concurrency>,
    /// The breaker of the workload's ports: counts failed connections only, never what the workload answers.
    /// Default: none.
    pub breaker: Option<Breaker>,
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
    /// The whole path matches this regular expression: the syntax of the crate `regex`, in which `\w`, `\d`, `\b` and
    /// case are those of ASCII, as a path is. It may take 64 KiB compiled.
    Regex(String),
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

/// Which traces are recorded, and where their spans are sent. With it every request carries a trace's headers on.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tracing {
    /// An OpenTelemetry collector.
    pub otlp: Option<Otlp>,
    /// `parentBased`, `ratio`, `always` or `never`. Default: as OTEL_TRACES_SAMPLER says, else `parentBased`.
    pub sampling: Option<Sampling>,
    /// Share of the traces started here that are recorded, 0 to 1; with `ratio`, of all. Default: as
    /// OTEL_TRACES_SAMPLER_ARG says, else 0.
    pub sample_ratio: Option<f64>,
    /// The headers that carry a trace. Default: as OTEL_PROPAGATORS says, else W3C's are written, and B3's read too.
    pub propagation: Propagation,
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

/// The access log: a line a request or opaque connection, metadata only; never a body, a query or a header field.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AccessLog {
    /// `none`, `stdout`, or a file's path; the file is opened anew on SIGHUP. Default: `none`.
    pub output: Option<String>,
    /// `json` for an object a line, or text in which `%{name}` stands for a field (`-` if there is none) and `%%` for a
    /// percent sign: `%{client} %{method} "%{path}" %{code}`. Default: `json`.
    pub format: Option<String>,
    /// Names of the fields that a line of JSON has, in this order. Default: all.
    pub fields: Vec<String>,
    /// Share of the requests and connections that are logged, 0 to 1. Failures are always logged: status 5xx, gRPC's
    /// UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS, and whatever the proxy answered itself. Default: 1.
    pub sample: Option<f64>,
}
