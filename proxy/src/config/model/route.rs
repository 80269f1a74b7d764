//! Which requests go where, and what is done to them on the way.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Fallback, PathMatch, Retry, RouteTracing};
use crate::config::units::Duration;

/// What is done with some requests. It names exactly one of `upstreams`, `redirect` and `respond`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Route {
    /// Name of the route in metrics and logs.
    pub name: String,
    /// Alternatives: one of them must match.
    #[serde(rename = "match", default)]
    pub matches: Vec<RouteMatch>,
    /// Where the requests go, by weight.
    #[serde(default)]
    pub upstreams: Vec<WeightedUpstream>,
    /// Answer with a redirect instead.
    pub redirect: Option<Redirect>,
    /// Answer with a fixed response instead.
    pub respond: Option<Respond>,
    /// Changes of the request's target before it is sent.
    pub rewrite: Option<Rewrite>,
    /// Changes of the request's header fields before it is sent.
    #[serde(default)]
    pub request_headers: HeaderEdits,
    /// Changes of the response's header fields.
    #[serde(default)]
    pub response_headers: HeaderEdits,
    /// Send a copy of each request to another upstream too, whose responses are dropped. Not copied are bodies of over
    /// 64 KiB, upgrades, requests with `Expect`, and what comes while 100 copies of a worker are under way; the metric
    /// `outrigger_mirrored_requests_total` counts them by why. Default: none.
    pub mirror: Option<Mirror>,
    /// Failures made on purpose, to try what callers do. Default: none.
    pub fault: Option<Fault>,
    /// Time from the end of the request to the response's headers, all tries together. Default: the upstream's.
    pub timeout: Option<Duration>,
    /// When a request is tried again. Default: as the upstream says.
    pub retry: Option<Retry>,
    /// Repeating a request of this route does no harm, whatever its method. Default: false; GET, HEAD, OPTIONS, TRACE,
    /// PUT and DELETE are idempotent by themselves.
    #[serde(default)]
    pub idempotent: bool,
    /// What is done when nothing else works. Default: as the upstream says.
    pub fallback: Option<Fallback>,
    /// Which of its requests are recorded as traces. Default: as `tracing` says.
    pub tracing: Option<RouteTracing>,
    /// An edge's listeners whose requests it is for, by name. A sidecar has none.
    #[serde(default)]
    pub listeners: Vec<String>,
    /// An edge's filters that requests pass, by name. A sidecar has none.
    #[serde(default)]
    pub filters: Vec<String>,
    /// Whether a route of an edge is for everybody. A sidecar asks nobody to log in.
    pub auth: Option<RouteAuth>,
}

/// Whether a route of an edge is for everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RouteAuth {
    /// Nobody is asked to log in.
    None,
}

/// One alternative of a route's match: all fields that are stated must hold.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteMatch {
    /// Host name, without port; `*.example.com` for all names below. Required in a sidecar.
    pub host: Option<String>,
    /// Path, without the query. Default: all.
    pub path: Option<PathMatch>,
    /// HTTP methods. Default: all.
    pub methods: Vec<String>,
    /// Header fields.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query; of one that comes twice the first counts.
    pub query: Vec<QueryMatch>,
}

/// A match on a header field.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// Its name.
    pub name: String,
    /// Its value. Several fields of one name are taken together, joined by commas.
    pub value: ValueMatch,
}

/// A match on a parameter of the query.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QueryMatch {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: ValueMatch,
}

/// A match on a value; exactly one field is stated.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ValueMatch {
    /// The value is exactly this.
    Exact(String),
    /// The whole value matches this regular expression, written as for a path.
    Regex(String),
    /// `true`: there is one, whatever it is. `false`: there is none.
    Present(bool),
}

/// An upstream of a route, with its share.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WeightedUpstream {
    /// Name of an upstream of this file.
    pub name: String,
    /// Share of the requests, relative to the other weights, 0 to 1000000. Default: 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Only endpoints that have all these tags, for example `{version: canary}`. Default: all endpoints.
    #[serde(default)]
    pub subset: BTreeMap<String, String>,
}

fn one() -> u32 {
    1
}

/// A redirect: what is not stated stays as it was asked for. Something is stated but `status`, or it would lead back.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// Host name.
    pub host: Option<String>,
    /// Port. Default: that of the scheme where `scheme` is stated, else the one asked for.
    pub port: Option<u16>,
    /// Path.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308. Default: 302.
    pub status: Option<u16>,
}

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Respond {
    /// HTTP status, 200 to 599.
    pub status: u16,
    /// Body, plain text unless `headers` say otherwise. Default: empty.
    #[serde(default)]
    pub body: String,
    /// Header fields.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Changes of a request's target.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Rewrite {
    /// The host that the upstream is asked for.
    pub host: Option<String>,
    /// The path.
    pub path: Option<PathRewrite>,
}

/// A change of a path; exactly one field is stated. The query stays.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum PathRewrite {
    /// The whole path becomes this.
    Full(String),
    /// The prefix that the route matched becomes this, or is taken away if this is empty; needs a match on
    /// `path: {prefix: …}`.
    Prefix(String),
}

/// Changes of header fields, in the order: remove, set, add. The mesh's own fields, `Host` and those of the connection
/// can't be named.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HeaderEdits {
    /// Names of the fields that go.
    pub remove: Vec<String>,
    /// Fields that replace what was there.
    pub set: Vec<HeaderValueOf>,
    /// Fields that are added to what was there.
    pub add: Vec<HeaderValueOf>,
}

/// A header field.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderValueOf {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A copy of each request to another upstream: sent and forgotten; at most 100 of a worker are under way at once, and
/// bodies of over 64 KiB, upgrades and requests with `Expect` are not copied.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mirror {
    /// Name of an upstream of this file.
    pub upstream: String,
    /// Share of the requests, in percent, 0 to 100; fractions count. Default: 100.
    pub percent: Option<f64>,
}

/// Failures made on purpose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// Requests that wait.
    pub delay: Option<Delay>,
    /// Requests that are answered with an error instead of being sent.
    pub abort: Option<Abort>,
}

/// Requests that wait before they are sent.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Delay {
    /// For how long.
    pub duration: Duration,
    /// Share of the requests, in percent, 0 to 100; fractions count. Default: 100.
    pub percent: Option<f64>,
}

/// Requests that are answered with an error.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Abort {
    /// HTTP status, 400 to 599; a gRPC caller gets the status that stands for it.
    pub status: u16,
    /// Share of the requests, in percent, 0 to 100; fractions count. Default: 100.
    pub percent: Option<f64>,
}
