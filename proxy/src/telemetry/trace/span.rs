//! A finished span, and the queue by which it leaves a worker.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::telemetry::Metrics;

/// Spans that wait for the control thread; what is more is dropped and counted. OpenTelemetry's default
/// (`OTEL_BSP_MAX_QUEUE_SIZE`).
const QUEUE: usize = 2048;

/// One hop of one request, ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace it belongs to; never 0.
    pub trace_id: u128,
    /// Its own name within the trace; never 0.
    pub span_id: u64,
    /// The span that caused it; `None` for the first of a trace.
    pub parent: Option<u64>,
    /// What other tracing systems sent along: the value of `tracestate`.
    pub trace_state: Option<String>,
    /// Trace and span of an untrusted caller, which this trace was started in place of.
    pub link: Option<(u128, u64)>,
    /// Which side of a hop it is.
    pub kind: SpanKind,
    /// A name that many requests share, as `GET`.
    pub name: String,
    /// When the request's head had come.
    pub started: SystemTime,
    /// When the response had ended.
    pub ended: SystemTime,
    /// What is known of it, by the names of OpenTelemetry's conventions and of our own.
    pub attributes: Vec<(&'static str, Value)>,
    /// What happened in between.
    pub events: Vec<SpanEvent>,
    /// The status `Error` with this description, which may be empty; `None` leaves the status unset.
    pub error: Option<String>,
}

/// Which side of a hop a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A request that came in.
    Server,
    /// A request that was sent out.
    Client,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Integer(i64),
    /// Yes or no.
    Boolean(bool),
}

/// Something that happened while a span was open.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanEvent {
    /// What.
    pub name: &'static str,
    /// When.
    pub at: SystemTime,
    /// More of it.
    pub attributes: Vec<(&'static str, Value)>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Integer(number.into())
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

/// Where finished spans go: a bounded queue to the control thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spans {
    queue: Sender<Box<Span>>,
    metrics: Arc<Metrics>,
}

impl Spans {
    /// A queue, and its other end, which the control thread takes spans out of.
    pub fn queue(metrics: Arc<Metrics>) -> (Self, Receiver<Box<Span>>) {
        let (queue, spans) = channel(QUEUE);
        (Self { queue, metrics }, spans)
    }

    /// Hands a span over, and never waits: one that finds no place is dropped and counted.
    pub fn offer(&self, span: Box<Span>) {
        match self.queue.try_send(span) {
            // Closed: the proxy is ending, and nobody counts any more.
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(_)) => self.metrics.trace_spans_dropped.inc(["queue_full"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let metrics = Arc::new(Metrics::new());
        let (spans, mut queue) = Spans::queue(metrics.clone());
        let span = Span {
            trace_id: 1,
            span_id: 2,
            parent: None,
            trace_state: None,
            link: None,
            kind: SpanKind::Client,
            name: "GET".into(),
            started: UNIX_EPOCH,
            ended: UNIX_EPOCH,
            attributes: Vec::new(),
            events: Vec::new(),
            error: None,
        };
        for _ in 0..QUEUE + 3 {
            spans.offer(Box::new(span.clone()));
        }
        let dropped = "outrigger_trace_spans_dropped_total{reason=\"queue_full\"} 3\n";
        assert!(metrics.render().contains(dropped), "{}", metrics.render());
        assert_eq!(queue.try_recv(), Ok(Box::new(span)));
        assert_eq!(queue.len(), QUEUE - 1);
    }
}
