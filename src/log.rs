//! The process's own log, on standard error.

use std::io::IsTerminal;
use std::sync::Arc;

use clap::ValueEnum;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::Failure;

/// Changes the log's level while the process runs.
pub type SetLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging at `level`, for example `info` or `warn,outrigger_proxy=debug`.
pub fn start(level: &str, format: Format) -> Result<SetLevel, Failure> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    let terminal = std::io::stderr().is_terminal();
    match format {
        Format::Text => registry
            .with(fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(terminal))
            .try_init()?,
        Format::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?,
    }
    Ok(Arc::new(move |level| {
        let filter = parse(level).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

fn parse(level: &str) -> Result<EnvFilter, Failure> {
    EnvFilter::try_new(level).map_err(|error| {
        format!("log level `{level}`: {error}; write error, warn, info, debug or trace").into()
    })
}
