//! The config in force: the file, what the command line adds, and changes while running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use serde_json::{Value, json};

use super::{Overlay, RunError, rules};
use crate::config::{self, Config};
use crate::telemetry::Metrics;
use crate::worker::{Effective, Shared};

/// Told when the file changed; `None` without a file.
pub(super) type Changes = Option<tokio::sync::mpsc::Receiver<()>>;

/// The config in force. Cheap to clone.
#[derive(Clone)]
pub(super) struct ConfigInForce {
    file: Option<PathBuf>,
    overlay: Arc<Overlay>,
    current: Arc<ArcSwap<Config>>,
    rejected: Arc<ArcSwapOption<String>>,
}

impl ConfigInForce {
    /// Reads the file, if there is one, and puts the command line on top.
    pub(super) fn load(file: Option<PathBuf>, overlay: Overlay) -> Result<(Self, Changes), RunError> {
        // Watched before it is read: a change in between is then read again.
        let changes =
            file.as_ref().map(|file| outrigger_ca::file_watch::watch([file.clone()])).transpose()?;
        let config = read(file.as_deref(), &overlay)?;
        let in_force = Self {
            file,
            overlay: Arc::new(overlay),
            current: Arc::new(ArcSwap::from_pointee(config)),
            rejected: Arc::default(),
        };
        Ok((in_force, changes))
    }

    pub(super) fn current(&self) -> Arc<Config> {
        self.current.load_full()
    }

    /// For the admin port: the config, and why a newer file is not in force.
    pub(super) fn describe(&self) -> Value {
        json!({
            "config": *self.current(),
            "file": self.file,
            "rejected": self.rejected.load_full().as_deref(),
        })
    }

    /// Puts changes of the file in force while the proxy runs. A wrong file changes nothing.
    pub(super) async fn keep_reloaded(self, changes: Changes, shared: Arc<Shared>, metrics: Arc<Metrics>) {
        let (Some(file), Some(mut changes)) = (&self.file, changes) else { return };
        metrics.config_last_reload_success.set(now());
        while changes.recv().await.is_some() {
            match read(Some(file), &self.overlay) {
                Ok(config) => {
                    if *self.current.load_full() != config {
                        self.put_in_force(config, &shared);
                    }
                    self.rejected.store(None);
                    metrics.config_reloads.inc(["success"]);
                    metrics.config_last_reload_success.set(now());
                    tracing::info!("config {} is in force", file.display());
                }
                Err(error) => {
                    tracing::error!("the running config stays: {error}");
                    self.rejected.store(Some(Arc::new(error.to_string())));
                    metrics.config_reloads.inc(["failure"]);
                }
            }
        }
    }

    fn put_in_force(&self, config: Config, shared: &Shared) {
        let before = self.current();
        let fixed = |config: &Config| {
            (
                config.trust_domain.clone(),
                config.identity.clone(),
                config.dns.clone(),
                config.workers,
                config.access_log.clone(),
            )
        };
        if fixed(&before) != fixed(&config) {
            tracing::warn!("trustDomain, identity, dns, workers and accessLog change with a restart only");
        }
        let config = Arc::new(config);
        self.current.store(config.clone());
        shared.directory.reconfigure(config.clone(), rules(&config));
        shared.effective.store(Arc::new(Effective::new(config)));
    }
}

fn read(file: Option<&Path>, overlay: &Overlay) -> Result<Config, RunError> {
    let mut config = match file {
        Some(file) => {
            let loaded = config::load(file)?;
            for warning in &loaded.warnings {
                let config::Position { line, column } = warning.position;
                tracing::warn!("{}:{line}:{column}: {warning}", file.display());
            }
            loaded.config
        }
        None => Config::default(),
    };
    overlay(&mut config);
    Ok(config)
}

fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
