//! What the proxy tells about itself: metrics (registry and text format) and the access log.
//!
//! Metrics are the crate `prometheus`'s: its counters and gauges, its registry, its text format. The series of
//! requests and TCP connections alone are atomics of our own that a collector shows to the registry, because
//! its vectors can neither drop a series that is idle without losing what is counted just then, nor bound
//! how many sets of label values there are.
//!
//! What is counted where is decided by the floors above. Span export will live here too. No server: the admin floor
//! serves what is rendered here.

mod access_log;
mod collector;
mod connections;
mod failures;
mod family;
mod gathered;
mod history;
mod labels;
mod metric;
mod metrics;
mod process;
mod readings;
mod recorder;
mod reference;
mod single;
mod tap;
pub mod trace;
mod traffic;

pub use access_log::{AccessLog, AccessLogError, AccessLogOutput, AccessLogSettings};
pub use connections::{ConnectionSeen, OpenConnection, OpenConnections};
pub use failures::Failures;
pub use family::{CounterFamily, NamedCounters};
pub use history::{History, HistoryQuery};
pub use labels::{Direction, Tls};
pub use metrics::{CONTENT_TYPE as METRICS_CONTENT_TYPE, Metrics, PerDirection};
pub use readings::{EndpointReading, UpstreamReading};
pub use recorder::{OpenTcp, Recorder, RequestRecord, TcpLabels, TcpRecord};
pub use reference::{MetricReference, metrics_table};
pub use single::{Held, LateGauge, OpenGauge, TotalCounter};
pub use tap::{FilterError, LookingOn, MOST_LOOKING_ON, Tap, TapFilter, Tapped, TooMany};
