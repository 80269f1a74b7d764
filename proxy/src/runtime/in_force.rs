//! The config in force: the file, what the command line adds, and changes while running.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::{ArcSwap, ArcSwapOption};
use outrigger_ca::unix_seconds;
use serde_json::{Value, json};

use super::{Overlay, RunError, access_log_settings, rules};
use crate::config::{self, Config};
use crate::telemetry::AccessLog;
use crate::worker::Shared;

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
    pub(super) async fn keep_reloaded(self, changes: Changes, shared: Arc<Shared>, access_log: AccessLog) {
        let (Some(file), Some(mut changes)) = (&self.file, changes) else { return };
        let metrics = &shared.metrics;
        metrics.config_last_reload_success.set(now());
        while changes.recv().await.is_some() {
            let read = read(Some(file), &self.overlay).and_then(|config| {
                // The one part that the system can refuse; so it comes before all others.
                access_log.reconfigure(access_log_settings(&config))?;
                Ok(config)
            });
            match read {
                Ok(mut config) => {
                    let running = self.current();
                    let kept = keep_what_needs_a_restart(&running, &mut config);
                    if !kept.is_empty() {
                        tracing::warn!("changes of {} take effect with a restart only", kept.join(", "));
                    }
                    if *running != config {
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
        let config = Arc::new(config);
        let rules = rules(&config);
        let effective = Arc::new(shared.effective.load().followed_by(config.clone()));
        self.current.store(config.clone());
        // Routes first: the directory answers on this thread, and so whoever asks by a new route asks the new one.
        shared.directory.reconfigure(config, rules, || shared.effective.store(effective));
    }
}

/// Puts into `config` what is running of the fields that need a restart; half of a new trust domain or
/// without the discovery that answers, the proxy would refuse its peers or call them in plaintext.
/// Returns the names of those that `config` has otherwise.
fn keep_what_needs_a_restart(running: &Config, config: &mut Config) -> Vec<&'static str> {
    fn keep<T: Clone + PartialEq>(running: &T, new: &mut T) -> bool {
        let differs = running != new;
        new.clone_from(running);
        differs
    }
    [
        ("trustDomain", keep(&running.trust_domain, &mut config.trust_domain)),
        ("identity", keep(&running.identity, &mut config.identity)),
        ("dns", keep(&running.dns, &mut config.dns)),
        ("workers", keep(&running.workers, &mut config.workers)),
        ("drainTimeout", keep(&running.drain_timeout, &mut config.drain_timeout)),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
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
    unix_seconds(SystemTime::now()) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_keeps_running_as_it_is_and_the_rest_changes() {
        let running = Config {
            trust_domain: Some("one.example".into()),
            dns: config::Dns { mesh_server: Some("discovery:853".into()), ..Default::default() },
            workers: Some(2),
            ..Config::default()
        };
        let mut config = Config {
            trust_domain: Some("two.example".into()),
            workers: Some(2),
            mtls: config::Mtls::Permissive,
            ..Config::default()
        };
        assert_eq!(keep_what_needs_a_restart(&running, &mut config), ["trustDomain", "dns"]);
        assert_eq!(config, Config { mtls: config::Mtls::Permissive, ..running.clone() });
        assert!(keep_what_needs_a_restart(&running, &mut config).is_empty());
    }
}
