//! The configuration file: its types, units, defaults and rules, its schema and reference. What a config
//! means for traffic is decided by the modules above; changes while running are taken over by `runtime`.

mod defaults;
mod host_patterns;
mod load;
mod log_format;
mod measured;
mod model;
mod pattern;
mod problem;
mod read;
mod reference;
mod rules;
mod schema;
mod syntax;
#[cfg(test)]
mod tests;
mod tree;
mod units;

pub use defaults::*;
pub use host_patterns::HostPatterns;
pub use load::{ConfigError, Loaded, load, parse, parse_beside, read_text};
pub use log_format::{LogField, LogFormat, LogFormatError, LogPiece};
pub use measured::{Measured, MeasuredError};
pub use model::*;
pub use pattern::{MAX_COMPILED_BYTES, PatternError, whole_match};
pub use problem::{Position, Problem};
pub use reference::reference;
pub use schema::schema;
pub use syntax::{RetryCondition, grpc_status_name};
pub use units::{Duration, Network, Size, UnitError};
