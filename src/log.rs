//! The process's own log, on standard error.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use outrigger_proxy::admin::LogLevel;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::Failure;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The flags about the process's own log, the same in each subcommand that keeps running.
#[derive(Debug, clap::Args)]
pub struct LogArgs {
    /// Level of the process's own log: off, error, warn, info, debug, trace; or one for single modules too, as in
    /// warn,outrigger_proxy=debug.
    #[arg(long, env = "OUTRIGGER_LOG", value_name = "LEVEL", default_value = "info", value_parser = checked)]
    log: String,
    /// How the process's own log looks.
    #[arg(long, env = "OUTRIGGER_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogArgs {
    /// Starts logging; what is returned shows and changes the level while the process runs.
    pub fn start(&self) -> Result<LogLevel, Failure> {
        let (filter, handle) = reload::Layer::new(EnvFilter::try_new(&self.log)?);
        let registry = tracing_subscriber::registry().with(filter);
        let terminal = std::io::stderr().is_terminal();
        match self.log_format {
            Format::Text => registry
                .with(fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(terminal))
                .try_init()?,
            Format::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?,
        }
        let in_force = Arc::new(Mutex::new(self.log.clone()));
        let shown = in_force.clone();
        Ok(LogLevel {
            show: Arc::new(move || shown.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            set: Arc::new(move |level| {
                let level = checked(level)?;
                let filter = EnvFilter::try_new(&level).map_err(|error| error.to_string())?;
                // Held while the filter changes, so that what is shown is what is in force.
                let mut in_force = in_force.lock().unwrap_or_else(PoisonError::into_inner);
                handle.reload(filter).map_err(|error| error.to_string())?;
                *in_force = level;
                Ok(())
            }),
        })
    }
}

/// A level, and levels of modules. `EnvFilter` itself takes any word for a module to be logged as a whole.
fn checked(text: &str) -> Result<String, String> {
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    let is_module = |word: &str| {
        !word.is_empty()
            && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':'))
    };
    let wrong = text.split(',').find(|part| match part.split_once('=') {
        Some((module, level)) => !is_module(module) || !is_level(level),
        None => !is_level(part),
    });
    match wrong {
        None => Ok(text.to_ascii_lowercase()),
        Some(part) => Err(format!(
            "`{part}` is no log level: write {}; or add levels of single modules, as in warn,outrigger_proxy=debug",
            LEVELS.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_levels_that_exist_are_taken() {
        let modules = "warn,outrigger_proxy=debug,outrigger_ca::workload=trace";
        for (text, level) in [("info", "info"), ("DEBUG", "debug"), ("off", "off"), (modules, modules)] {
            assert_eq!(checked(text).as_deref(), Ok(level));
        }
        for text in ["foo", "", "info,foo", "outrigger_proxy=loud", "=debug", "info,", "3", "info debug"] {
            let error = checked(text).unwrap_err();
            assert!(error.contains("off, error, warn, info, debug, trace"), "{text}: {error}");
        }
    }
}
