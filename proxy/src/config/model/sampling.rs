//! Which traces are recorded, and which headers carry them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How it is decided whether a hop is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Sampling {
    /// As the caller says; `sampleRatio` of the traces that are started here.
    #[default]
    ParentBased,
    /// `sampleRatio` of all traces, whatever the caller says. It is decided by the trace's id, so that all hops with
    /// one ratio decide the same.
    Ratio,
    /// Every hop.
    Always,
    /// None.
    Never,
}

/// What differs in how a route's requests are traced. It takes effect where traces are recorded at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RouteTracing {
    /// `parentBased`, `ratio`, `always` or `never`. Default: as `tracing` says.
    pub sampling: Option<Sampling>,
    /// Share of the traces that are recorded, 0 to 1. Default: as `tracing` says.
    pub sample_ratio: Option<f64>,
}

/// The headers that carry a trace from hop to hop: `w3c` (`traceparent` and `tracestate`), `b3` (one field), `b3multi`
/// (`X-B3-*`). `baggage` passes untouched.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Propagation {
    /// Those that are read; the first that is valid counts. Default: `[w3c, b3, b3multi]`.
    pub read: Option<Vec<TraceHeaders>>,
    /// Those that are written; others stay as they came. Default: `[w3c]`.
    pub write: Option<Vec<TraceHeaders>>,
}

/// Headers that carry a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum TraceHeaders {
    /// `traceparent` and `tracestate`, of the W3C.
    W3c,
    /// `b3`.
    B3,
    /// `X-B3-TraceId`, `X-B3-SpanId`, `X-B3-Sampled` and others.
    B3multi,
}
