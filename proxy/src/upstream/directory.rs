//! Which upstream a connection or request is for (the design's "Where a request goes").
//!
//! Runs on the control thread; workers ask through a channel and keep the answers they got for as long
//! as [`Directory::generation`] stays the same.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::recipe::{Recipe, RecipeError, Source};
use super::{SecurityRules, Upstream};
use crate::config::Config;
use crate::resolve::{Followed, LookupError, Resolver, Snapshot, Target};

/// Upstreams made on demand that are kept; one that nobody uses goes first.
const MAX_ON_DEMAND: usize = 1024;
/// Questions that may wait for the control thread.
const QUESTIONS: usize = 4096;

/// Where a connection or request goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The upstream it goes to when no route says otherwise.
    pub upstream: Arc<Upstream>,
    /// The host whose routes apply: the caller's name for the destination, believed.
    pub routed_host: Option<Arc<str>>,
}

/// Why nobody knows where it goes.
#[derive(Clone, Debug, Error)]
pub enum DestinationError {
    /// Discovery could not say whose the address is; plaintext on a guess would be a downgrade.
    #[error("{0}")]
    Lookup(Arc<LookupError>),
    /// The config names it and it can't be made.
    #[error("{0}")]
    Config(Arc<str>),
    /// The control thread takes no more questions.
    #[error("too many names are being looked up")]
    Overload,
    /// The proxy is stopping.
    #[error("the proxy is stopping")]
    Stopping,
}

/// An upstream in use, and what discovery last said of it.
pub type InUse = (Arc<Upstream>, Option<Arc<Snapshot>>);

/// Asks the directory; one for all workers.
#[derive(Clone, Debug)]
pub struct Directory {
    questions: mpsc::Sender<Question>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Question {
    about: About,
    reply: oneshot::Sender<Result<Destination, DestinationError>>,
}

#[derive(Clone, Debug)]
enum About {
    Request { host: Option<Arc<str>>, dialled: SocketAddr },
    Configured { name: Arc<str>, port: u16 },
}

struct Shared {
    resolver: Resolver,
    configured: ArcSwap<Configured>,
    made: Mutex<HashMap<Key, Made>>,
    generation: AtomicU64,
}

/// What the config in force says about destinations.
#[derive(Debug)]
struct Configured {
    config: Arc<Config>,
    rules: Arc<SecurityRules>,
    /// Upstream by host name.
    hosts: HashMap<String, Arc<str>>,
    /// Upstreams of the routes of a host name.
    routes: HashMap<String, Vec<Arc<str>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Configured(Arc<str>, u16),
    Name(Arc<str>, u16),
    Dialled(SocketAddr),
}

/// An upstream, and the task that keeps its endpoints fresh.
struct Made {
    upstream: Arc<Upstream>,
    recipe: Arc<Recipe>,
    followed: Option<Followed>,
    refresh: Option<JoinHandle<()>>,
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(refresh) = &self.refresh {
            refresh.abort();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("configured", &self.configured).finish_non_exhaustive()
    }
}

impl Directory {
    /// Starts answering, on the current runtime.
    pub fn start(resolver: Resolver, config: Arc<Config>, rules: Arc<SecurityRules>) -> Self {
        let (questions, mut asked) = mpsc::channel::<Question>(QUESTIONS);
        let shared = Arc::new(Shared {
            resolver,
            configured: ArcSwap::from_pointee(Configured::new(config, rules)),
            made: Mutex::default(),
            generation: AtomicU64::new(0),
        });
        let answering = shared.clone();
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                let shared = answering.clone();
                tokio::spawn(async move {
                    let answer = shared.answer(question.about).await;
                    // A caller that left has no use for it.
                    let _ = question.reply.send(answer);
                });
            }
        });
        Self { questions, shared }
    }

    /// Puts a new config in force. Upstreams are made anew when they are asked for.
    pub fn reconfigure(&self, config: Arc<Config>, rules: Arc<SecurityRules>) {
        self.shared.configured.store(Arc::new(Configured::new(config, rules)));
        self.shared.made().clear();
        self.shared.generation.fetch_add(1, Relaxed);
    }

    /// Changes when earlier answers no longer hold.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Relaxed)
    }

    /// Where a request for `host` goes that was dialled at `dialled`; opaque bytes have no host.
    ///
    /// # Errors
    /// Nobody can say; the caller is told and nothing is sent.
    pub async fn locate(
        &self,
        host: Option<Arc<str>>,
        dialled: SocketAddr,
    ) -> Result<Destination, DestinationError> {
        self.ask(About::Request { host, dialled }).await
    }

    /// The configured upstream `name`, as for a request dialled at `port`.
    ///
    /// # Errors
    /// The config in force has none, or it can't be made.
    pub async fn configured(&self, name: Arc<str>, port: u16) -> Result<Arc<Upstream>, DestinationError> {
        self.ask(About::Configured { name, port }).await.map(|destination| destination.upstream)
    }

    async fn ask(&self, about: About) -> Result<Destination, DestinationError> {
        let (reply, answer) = oneshot::channel();
        self.questions.try_send(Question { about, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => DestinationError::Overload,
            mpsc::error::TrySendError::Closed(_) => DestinationError::Stopping,
        })?;
        answer.await.unwrap_or(Err(DestinationError::Stopping))
    }

    /// Every upstream in use, by name, and what discovery last said of it, for the admin port and the metrics.
    pub fn upstreams(&self) -> BTreeMap<Arc<str>, InUse> {
        let snapshot = |made: &Made| made.followed.as_ref().map(Followed::current);
        self.shared
            .made()
            .values()
            .map(|made| (made.upstream.name.clone(), (made.upstream.clone(), snapshot(made))))
            .collect()
    }
}

impl Configured {
    fn new(config: Arc<Config>, rules: Arc<SecurityRules>) -> Self {
        let mut hosts = HashMap::new();
        for (name, upstream) in &config.upstreams {
            for host in &upstream.hosts {
                hosts.insert(normal(host), Arc::from(name.as_str()));
            }
        }
        let mut routes: HashMap<String, Vec<Arc<str>>> = HashMap::new();
        for route in &config.routes {
            for host in route.matches.iter().filter_map(|m| m.host.as_deref()) {
                let upstreams = routes.entry(normal(host)).or_default();
                upstreams.extend(route.upstreams.iter().map(|upstream| Arc::from(upstream.name.as_str())));
            }
        }
        Self { config, rules, hosts, routes }
    }
}

fn normal(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

impl Shared {
    fn made(&self) -> MutexGuard<'_, HashMap<Key, Made>> {
        // Nothing panics while holding it; a poisoned map is still a whole one.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, about: About) -> Result<Destination, DestinationError> {
        match about {
            About::Configured { name, port } => {
                let upstream = self.configured(&name, port).await?;
                Ok(Destination { upstream, routed_host: None })
            }
            About::Request { host: Some(host), dialled } if host.parse::<IpAddr>().is_err() => {
                match self.by_name(&normal(&host), dialled).await? {
                    Some(destination) => Ok(destination),
                    None => self.by_address(dialled).await,
                }
            }
            About::Request { dialled, .. } => self.by_address(dialled).await,
        }
    }

    /// The destination by its name, if the name may be believed: forging a Host must not lead into
    /// another service's policy.
    async fn by_name(
        &self,
        host: &str,
        dialled: SocketAddr,
    ) -> Result<Option<Destination>, DestinationError> {
        let configured = self.configured.load_full();
        let candidates = self.resolver.qualify(host);
        let candidates = || std::iter::once(host).chain(candidates.iter().map(String::as_str));
        let routes = candidates().find_map(|name| configured.routes.get_key_value(name));
        let named = candidates().find_map(|name| configured.hosts.get(name));
        let by_dns = match self.named(host.into(), dialled.port()).await {
            Ok(upstream) => upstream,
            // Without an answer a name of the mesh can't be told from a forged one, and its address from
            // one outside the mesh.
            Err(error) if candidates().any(|name| configured.rules.is_of_the_mesh_by_name(name)) => {
                return Err(DestinationError::Lookup(error));
            }
            Err(_) => None,
        };
        let is_its_address = by_dns.as_ref().is_some_and(|upstream| upstream.holds(dialled));
        if named.is_some() || routes.is_some() {
            let mut believed = is_its_address;
            let mut own = None;
            if let Some(name) = named {
                let upstream = self.configured(name, dialled.port()).await?;
                believed |= upstream.any_destination || upstream.holds(dialled);
                own = Some(upstream);
            }
            for name in routes.iter().flat_map(|(_, upstreams)| *upstreams) {
                if believed {
                    break;
                }
                let upstream = self.configured(name, dialled.port()).await?;
                believed = upstream.any_destination || upstream.holds(dialled);
            }
            if believed && let Some(upstream) = own.or(by_dns) {
                let routed_host = routes.map(|(host, _)| Arc::from(host.as_str()));
                return Ok(Some(Destination { upstream, routed_host }));
            }
            return Ok(None);
        }
        Ok(by_dns.filter(|_| is_its_address).map(|upstream| Destination { upstream, routed_host: None }))
    }

    /// The destination by the address alone.
    async fn by_address(&self, dialled: SocketAddr) -> Result<Destination, DestinationError> {
        if let Some(upstream) = self.configured_for(dialled).await? {
            return Ok(Destination { upstream, routed_host: None });
        }
        let key = Key::Dialled(dialled);
        let recipe = || Ok(Recipe::on_demand(dialled.to_string(), Source::Dialled(dialled)));
        let (upstream, snapshot) = self.make(key, Some(Target::Address(dialled)), recipe).await?;
        let Some(snapshot) = snapshot else { return Ok(Destination { upstream, routed_host: None }) };
        match (&snapshot.answer, &snapshot.error) {
            (Some(answer), _) if answer.vips.contains(&dialled.ip()) => {
                let named = self.named(answer.name.clone(), dialled.port()).await;
                let upstream = named.map_err(DestinationError::Lookup)?.unwrap_or(upstream);
                Ok(Destination { upstream, routed_host: None })
            }
            (None, Some(error)) if !matches!(**error, LookupError::NotFound(_)) => {
                Err(DestinationError::Lookup(error.clone()))
            }
            _ => Ok(Destination { upstream, routed_host: None }),
        }
    }

    /// The configured upstream that has this endpoint or VIP.
    async fn configured_for(&self, dialled: SocketAddr) -> Result<Option<Arc<Upstream>>, DestinationError> {
        let config = self.configured.load().config.clone();
        for name in config.upstreams.keys() {
            let upstream = self.configured(&name.as_str().into(), dialled.port()).await?;
            if upstream.is_at(dialled) {
                return Ok(Some(upstream));
            }
        }
        Ok(None)
    }

    /// The on-demand upstream of a name; `None` when there is no such name.
    async fn named(&self, host: Arc<str>, port: u16) -> Result<Option<Arc<Upstream>>, Arc<LookupError>> {
        let target = Target::Name { host: host.clone(), port };
        let key = Key::Name(host.clone(), port);
        let recipe = || Ok(Recipe::on_demand(format!("{host}:{port}"), Source::Name(target.clone())));
        let made = self.make(key, Some(target.clone()), recipe).await;
        // An on-demand upstream has no config that could be wrong.
        let Ok((upstream, Some(snapshot))) = made else { return Ok(None) };
        match (&snapshot.answer, &snapshot.error) {
            (Some(_), _) => Ok(Some(upstream)),
            (None, Some(error)) if matches!(**error, LookupError::Failed { .. }) => Err(error.clone()),
            (None, _) => Ok(None),
        }
    }

    async fn configured(&self, name: &Arc<str>, port: u16) -> Result<Arc<Upstream>, DestinationError> {
        let configured = self.configured.load_full();
        let Some(upstream) = configured.config.upstreams.get(&**name) else {
            return Err(DestinationError::Config(format!("the config has no upstream {name}").into()));
        };
        let recipe = Recipe::configured(name, upstream, port).map_err(config_error)?;
        let target = match &recipe.source {
            Source::Name(target) => Some(target.clone()),
            _ => None,
        };
        // Ports make a difference only where the dialled one is that of the endpoints.
        let port = match &target {
            Some(Target::Name { .. }) => port,
            _ => 0,
        };
        self.make(Key::Configured(name.clone(), port), target, || Ok(recipe)).await.map(|(made, _)| made)
    }

    /// The upstream of `key`, made and its first answer awaited if it is new.
    async fn make(
        &self,
        key: Key,
        target: Option<Target>,
        recipe: impl FnOnce() -> Result<Recipe, RecipeError>,
    ) -> Result<(Arc<Upstream>, Option<Arc<Snapshot>>), DestinationError> {
        let of = |made: &Made| (made.upstream.clone(), made.recipe.clone(), made.followed.clone());
        let known = self.made().get(&key).map(of);
        let (upstream, recipe, followed) = match known {
            Some(known) => known,
            None => self.add(key, target, Arc::new(recipe().map_err(config_error)?)),
        };
        let Some(followed) = followed else { return Ok((upstream, None)) };
        let snapshot = followed.first().await;
        if upstream.set().refreshed != Some(snapshot.refreshed) {
            // The refreshing task has not come to it yet.
            let rules = self.configured.load().rules.clone();
            upstream.update(recipe.endpoint_set(&rules, Some(&snapshot)));
        }
        Ok((upstream, Some(snapshot)))
    }

    fn add(
        &self,
        key: Key,
        target: Option<Target>,
        recipe: Arc<Recipe>,
    ) -> (Arc<Upstream>, Arc<Recipe>, Option<Followed>) {
        let rules = self.configured.load().rules.clone();
        let followed = target.map(|target| self.resolver.follow(target));
        let name = recipe.name.clone();
        let upstream = Arc::new(Upstream::new(name, recipe.policy.clone(), recipe.any_destination));
        let refresh = match followed.clone() {
            None => {
                upstream.update(recipe.endpoint_set(&rules, None));
                None
            }
            Some(mut followed) => {
                let (upstream, recipe) = (upstream.clone(), recipe.clone());
                upstream.update(recipe.endpoint_set(&rules, Some(&followed.current())));
                Some(tokio::spawn(async move {
                    loop {
                        followed.changed().await;
                        upstream.update(recipe.endpoint_set(&rules, Some(&followed.current())));
                    }
                }))
            }
        };
        let mut made = self.made();
        if made.len() >= MAX_ON_DEMAND {
            self.evict(&mut made);
        }
        let kept =
            Made { upstream: upstream.clone(), recipe: recipe.clone(), followed: followed.clone(), refresh };
        made.insert(key, kept);
        (upstream, recipe, followed)
    }

    /// Makes room: an upstream that only this directory holds goes, else any that nobody configured.
    fn evict(&self, made: &mut HashMap<Key, Made>) {
        let on_demand = || made.iter().filter(|(key, _)| !matches!(key, Key::Configured(..)));
        // This directory and the refreshing task hold one reference each.
        let unused = on_demand().find(|(_, made)| Arc::strong_count(&made.upstream) <= 2);
        if let Some(key) = unused.or_else(|| on_demand().next()).map(|(key, _)| key.clone()) {
            made.remove(&key);
            self.generation.fetch_add(1, Relaxed);
        }
    }
}

fn config_error(error: RecipeError) -> DestinationError {
    DestinationError::Config(error.to_string().into())
}
