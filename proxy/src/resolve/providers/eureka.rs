//! An application of a Netflix Eureka registry.
//!
//! The deltas that Eureka gives are proven by a count over the whole registry, so the whole of it is followed, once for all
//! upstreams that ask the same servers.

mod instance;
mod registry;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use self::registry::Registry;
use super::super::answer::ResolvedEndpoint;
use super::super::outcome::Miss;
use super::http::{Client, HttpError, Network};
use super::{PassedOver, Provider, spread};
use crate::config::{self, EurekaDiscovery};

/// Time between two fetches, as that of Eureka's own clients.
const INTERVAL: Duration = Duration::from_secs(30);
/// A registry is no place to ask without a pause, whatever is configured.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);

/// What makes two registries the same one.
type Key = (Vec<String>, Option<PathBuf>, Duration);

/// The registries that are followed.
#[derive(Default)]
pub(super) struct Registries(Mutex<HashMap<Key, Weak<Shared>>>);

/// A registry, and the applications in it that somebody follows.
struct Shared {
    followed: Mutex<BTreeSet<Arc<str>>>,
    /// Whoever holds the lock asks for all who wait for it.
    registry: tokio::sync::Mutex<Registry>,
}

impl Registries {
    fn registry(&self, settings: &EurekaDiscovery, clients: Vec<Client>) -> Arc<Shared> {
        let key = (settings.urls.clone(), settings.ca_file.clone(), interval(settings));
        let mut known = lock(&self.0);
        known.retain(|_, registry| registry.strong_count() > 0);
        if let Some(registry) = known.get(&key).and_then(Weak::upgrade) {
            return registry;
        }
        let registry = tokio::sync::Mutex::new(Registry::new(clients));
        let registry = Arc::new(Shared { followed: Mutex::default(), registry });
        known.insert(key, Arc::downgrade(&registry));
        registry
    }
}

/// An application.
pub(super) struct Eureka {
    shared: Arc<Shared>,
    /// In upper case, as Eureka keeps it.
    application: Arc<str>,
    is_loopback: bool,
    interval: Duration,
    /// As of when the registry was last looked at.
    seen: Option<Instant>,
    passed_over: PassedOver,
}

impl Eureka {
    pub(super) fn new(
        network: Network,
        settings: &EurekaDiscovery,
        registries: &Registries,
    ) -> Result<Self, HttpError> {
        let client = |url: &String| Client::new(network.clone(), url, settings.ca_file.clone());
        let clients = settings.urls.iter().map(client).collect::<Result<Vec<_>, _>>()?;
        let is_loopback = clients.iter().all(Client::is_loopback);
        let application: Arc<str> = settings.application.to_uppercase().into();
        let shared = registries.registry(settings, clients);
        lock(&shared.followed).insert(application.clone());
        Ok(Self {
            shared,
            application,
            is_loopback,
            interval: interval(settings),
            seen: None,
            passed_over: PassedOver::default(),
        })
    }

    /// Whether the servers are on this machine.
    pub(super) fn is_loopback(&self) -> bool {
        self.is_loopback
    }
}

impl Provider for Eureka {
    async fn next(&mut self) -> Result<Vec<ResolvedEndpoint>, Miss> {
        if let Some(seen) = self.seen {
            sleep_until(seen + spread(self.interval)).await;
        }
        let began = Instant::now();
        let mut registry = self.shared.registry.lock().await;
        let followed = || lock(&self.shared.followed).clone();
        self.seen = Some(registry.newer_than(self.seen, began, followed).await.map_err(Miss::Failed)?);
        match registry.application(&self.application) {
            Some((endpoints, passed_over)) => {
                self.passed_over.tell("Eureka", passed_over);
                Ok(endpoints)
            }
            None => Err(Miss::absent(None)),
        }
    }
}

fn interval(settings: &EurekaDiscovery) -> Duration {
    settings.interval.map_or(INTERVAL, config::Duration::as_std).max(SHORTEST_INTERVAL)
}

/// Nothing panics while holding one; what is in a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
