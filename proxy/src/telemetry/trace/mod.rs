//! Traces: which one a request belongs to, who hears of it, and the span that a sampled hop leaves.
//!
//! In order: `propagation` reads the headers (`context` and `trace_state` W3C's, `b3` Zipkin's), `sampling` decides,
//! `hop` puts the two together and writes the headers, `conventions` makes a [`Span`] of what was recorded, and the
//! queue in `span` takes it away. What is sent where after that is the exporters' matter.

mod b3;
mod context;
mod conventions;
mod environment;
mod hex;
mod hop;
mod propagation;
mod sampling;
mod span;
mod trace_state;

pub use context::SpanContext;
pub(crate) use conventions::span_of;
pub use environment::Environment;
pub use hop::{Hop, Retried, SampledHop, Tracing, Trust};
pub use span::{Span, SpanEvent, SpanKind, Spans, Value};
