//! Traces: which one a request belongs to, who hears of it, and the span that a sampled hop leaves.
//!
//! What is sent where after that is the exporters' matter.

mod span;

pub use span::{Span, SpanEvent, SpanKind, Spans, Value};
