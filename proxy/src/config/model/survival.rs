//! What keeps callers from being let down: health checks, ejection, breaker, retries, fallbacks, limits.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::units::{Duration, Size};

/// Active health checks of each endpoint: exactly one of `http`, `tcp` and `grpc` is stated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Check by an HTTP GET.
    pub http: Option<HttpCheck>,
    /// Check by opening a connection.
    pub tcp: Option<TcpCheck>,
    /// Check by gRPC's health protocol (`grpc.health.v1.Health/Check`).
    pub grpc: Option<GrpcCheck>,
    /// Port that is checked. Default: the endpoint's.
    pub port: Option<u16>,
    /// Time between checks. Default: 10s.
    pub interval: Option<Duration>,
    /// Share of `interval` by which checks are spread, in percent, 0 to 100. Default: 10.
    pub jitter_percent: Option<u8>,
    /// Time a check may take, at most `interval`. Default: 1s.
    pub timeout: Option<Duration>,
    /// Failures in a row after which an endpoint is out. Default: 3.
    pub unhealthy_after: Option<u32>,
    /// Successes in a row after which it is in again. Default: 2. A new endpoint is in from its first success on.
    pub healthy_after: Option<u32>,
}

/// A health check by an HTTP GET.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// The path that is asked, with its query if it needs one.
    pub path: String,
    /// The host that is asked for, `host` or `host:port`. Default: the first of the upstream's `hosts`, else the
    /// endpoint's address.
    pub host: Option<String>,
    /// Statuses that are healthy: `200`, `200-299`. Default: `200-299`.
    #[serde(default)]
    pub expected: Vec<String>,
}

/// A health check by opening a connection, TLS included.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TcpCheck {}

/// A health check by gRPC's health protocol.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct GrpcCheck {
    /// The service whose health is asked for. Default: the server as a whole.
    pub service: Option<String>,
}

/// Ejection of endpoints by what requests meet there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Outlier {
    /// Whether endpoints are ejected. Default: true.
    pub enabled: Option<bool>,
    /// Failures in a row that eject an endpoint. Default: 5.
    pub consecutive_failures: Option<u32>,
    /// Failed connects in a row that eject an endpoint. Default: 2.
    pub connect_failures: Option<u32>,
    /// Ejection by an endpoint's success rate beside those of the others. Default: off.
    pub success_rate: Option<SuccessRate>,
    /// Time out, multiplied by the number of ejections. Default: 30s.
    pub ejection: Option<Duration>,
    /// The longest time out. Default: 5m.
    pub max_ejection: Option<Duration>,
    /// Share of the endpoints that may be out at once, in percent; of several, one always may. Default: 50.
    pub max_ejected_percent: Option<u8>,
    /// Share of healthy endpoints, in percent, below which health is ignored and all are used (panic mode).
    /// Default: 50.
    pub panic_below_percent: Option<u8>,
}

/// Ejection by success rate: an endpoint goes whose rate lies far below the mean of all.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SuccessRate {
    /// Time over which rates are taken. Default: 10s.
    pub interval: Option<Duration>,
    /// Requests an endpoint must have had within `interval`. Default: 100.
    pub minimum_requests: Option<u32>,
    /// Endpoints that must have had them, 2 or more. Default: 5; with fewer, state smaller deviations too.
    pub minimum_endpoints: Option<u32>,
    /// Standard deviations below the mean, in tenths. Default: 19 (1.9).
    pub deviations_tenths: Option<u32>,
}

/// The circuit breaker of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Breaker {
    /// Whether there is one. Default: true.
    pub enabled: Option<bool>,
    /// Failures in a row that open it. Default: 5.
    pub consecutive_failures: Option<u32>,
    /// Time within which they must happen, and over which `failureRate` is taken. Default: 30s.
    pub window: Option<Duration>,
    /// A share of failures that opens it. Default: none.
    pub failure_rate: Option<FailureRate>,
    /// Time it stays open; doubles each time it opens again. Default: 10s.
    pub open_for: Option<Duration>,
    /// The longest time it stays open. Default: 60s.
    pub max_open_for: Option<Duration>,
    /// Requests that are let through at once to probe a half-open breaker. Default: 1.
    pub probes: Option<u32>,
}

/// A share of failed requests that opens a breaker. With it every 5xx counts as a failure.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailureRate {
    /// In percent, 1 to 100.
    pub percent: u8,
    /// Requests there must have been within the window. Default: 20.
    pub minimum_requests: Option<u32>,
}

/// What is done when the breaker is open, no endpoint is there, or all tries have failed: exactly one of `status`,
/// `upstream` and `cache` is stated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fallback {
    /// Answer with this HTTP status, 200 to 599.
    pub status: Option<u16>,
    /// Body that goes with `status`, plain text unless `headers` say otherwise. Default: empty.
    pub body: Option<String>,
    /// Header fields that go with `status`.
    pub headers: BTreeMap<String, String>,
    /// Send the request to this upstream instead. Its own fallback does not apply.
    pub upstream: Option<String>,
    /// Answer with the last good response to the same request.
    pub cache: Option<CacheFallback>,
}

/// The last good responses: only those that a shared cache may keep (RFC 9111).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CacheFallback {
    /// How old a response may be. Default: 60s.
    pub max_age: Option<Duration>,
    /// Memory that the responses of an upstream may take, all workers together. Default: 16MiB.
    pub max_bytes: Option<Size>,
}

/// Limit of the requests under way at once; one more is answered with 503 and Retry-After at once. One of `limit` and
/// `adaptive` is stated.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Concurrency {
    /// At most that many.
    pub limit: Option<u32>,
    /// As many as keep latency near the least measured (gradient), between 10 and this many (which is 10 or more).
    pub adaptive: Option<u32>,
}

/// When a request is tried again. What was provably not processed is tried again whatever `on` says.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Retry {
    /// Tries after the first, at most 3. Default: 2.
    pub attempts: Option<u32>,
    /// What is tried again: `connectFailure`, `refusedStream`, `reset` (before the response), `timeout` (of one try),
    /// an HTTP status (`429`, `500` to `599`) or a gRPC status by its name (`UNAVAILABLE`). All but the first two need
    /// an idempotent method, or `idempotent` on the route. Default: all of `connectFailure`, `refusedStream`, `reset`,
    /// `502`, `503`, `504`, `UNAVAILABLE`.
    pub on: Option<Vec<String>>,
    /// Time one try may take, from the end of the request, or the try's start if that is later, to the response's
    /// headers; at most the `timeout` of all of them. Default: none.
    pub per_try_timeout: Option<Duration>,
    /// Pause before a try.
    pub backoff: Backoff,
    /// Longest `Retry-After` that is waited for; a response that asks for more is passed on. Default: 1s.
    pub max_retry_after: Option<Duration>,
    /// Budget of an upstream, for all its routes: retries in percent of the recent requests, all workers together, 0 to
    /// 100. Default: 20.
    pub budget_percent: Option<u8>,
    /// Retries a second that the budget allows at least, 0 to 1000; an upstream's too. Default: 3.
    pub min_retries_per_second: Option<u32>,
}

/// Pause before a try: by chance between nothing and a limit that doubles (full jitter).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Backoff {
    /// The limit before the first retry. Default: 25ms.
    pub base: Option<Duration>,
    /// The largest limit. Default: 250ms.
    pub max: Option<Duration>,
}
