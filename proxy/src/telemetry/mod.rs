//! What the proxy tells about itself: metrics (registry and text format) and the access log.
//!
//! What is counted where is decided by the floors above. Trace context, span export and the tap will
//! live here too. No server: the admin floor serves what is rendered here.

mod access_log;
mod exposition;
mod family;
mod labels;
mod metric;
mod metrics;
mod process;
mod recorder;
mod render;
mod traffic;

pub use access_log::{AccessLog, AccessLogError, AccessLogOutput};
pub use exposition::CONTENT_TYPE as METRICS_CONTENT_TYPE;
pub use family::{CounterFamily, GaugeFamily};
pub use labels::{Direction, Tls};
pub use metric::{Counter, Gauge, Held};
pub use metrics::{Metrics, PerDirection};
pub use recorder::{OpenTcp, Recorder, RequestRecord, TcpLabels, TcpRecord};
