//! Which upstream a connection or request is for (the design's "Where a request goes").
//!
//! Runs on the control thread; workers ask through a channel and keep the answers they got for as long
//! as [`Directory::generation`] stays the same.

mod configured;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use outrigger_ca::host::normal;
use thiserror::Error;
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{timeout, timeout_at};

use configured::Configured;

use super::recipe::{Recipe, RecipeError, Source, strip_service_labels};
use super::{Endpoint, HealthChecks, SecurityRules, Upstream};
use crate::config::{self, Config, Discovery, is_not_redirected};
use crate::resolve::{self, Followed, LookupError, Owner, Resolver, Snapshot, Target};

/// Upstreams made on demand that are kept.
const MAX_ON_DEMAND: usize = 1024;
/// How many go when there are too many, those first that were used longest ago. Many at once: each time the
/// workers ask anew about all they know.
const MADE_ROOM: usize = MAX_ON_DEMAND / 8;
/// How long the first traffic without a name waits, after a new config, for the first addresses of the upstreams in it.
const FIRST_ADDRESSES: Duration = Duration::from_secs(1);
/// Questions that are being answered or wait for that.
const QUESTIONS: usize = 4096;
/// Upstreams made on demand that wait for their first answer. Many new names at once, as of a workload that calls
/// names which nobody answers for, must not push out those in use.
const NEW_AT_ONCE: usize = 256;
/// How long a new one waits for a place among them: behind lookups that nobody answers (3.5 s each), trying again later
/// serves its caller better.
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// A whole question, however many lookups it comes to. With what the outbound side waits before it (1 s) that is 5 s, for
/// which the C library waits.
const LONGEST_QUESTION: Duration = Duration::from_secs(4);
/// The part of it in which the name may be found; the rest is for whose the dialled address is.
const LONGEST_BY_NAME: Duration = Duration::from_millis(3750);

/// Where a connection or request goes.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The upstream it goes to when no route says otherwise.
    pub upstream: Arc<Upstream>,
    /// The one endpoint of it that was dialled by its own address: it is no other's to answer.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The host whose routes apply: the caller's name for the destination, believed.
    pub routed_host: Option<Arc<str>>,
}

impl Destination {
    /// The whole of an upstream, of which nothing is routed elsewhere.
    fn whole(upstream: Arc<Upstream>) -> Self {
        Self { upstream, endpoint: None, routed_host: None }
    }
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
    /// Too many questions at once, or too many about what was never asked for before.
    #[error("too many names are being looked up")]
    Overload,
    /// The proxy is stopping.
    #[error("the proxy is stopping")]
    Stopping,
}

/// An upstream in use, and what discovery last said of it.
pub type InUse = (Arc<Upstream>, Arc<Snapshot>);

/// Asks the directory; one for all workers.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Bounded by the places of [`Shared::questions`].
    questions: mpsc::UnboundedSender<Question>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Question {
    about: About,
    reply: oneshot::Sender<Result<Destination, DestinationError>>,
    _place: OwnedSemaphorePermit,
}

#[derive(Clone, Debug)]
enum About {
    Request { host: Option<Arc<str>>, dialled: SocketAddr },
    Configured { name: Arc<str>, port: u16 },
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request { host: Some(host), dialled } => write!(f, "{host}, dialled at {dialled},"),
            Self::Request { host: None, dialled } => dialled.fmt(f),
            Self::Configured { name, .. } => write!(f, "upstream {name}"),
        }
    }
}

struct Shared {
    resolver: Resolver,
    health_checks: HealthChecks,
    configured: ArcSwap<Configured>,
    made: Mutex<HashMap<Key, Made>>,
    /// Places for questions.
    questions: Arc<Semaphore>,
    /// Places for what waits for its first answer.
    new: Semaphore,
    /// Moves when what was answered may be answered otherwise now.
    generation: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An upstream of the config, and the dialled port where it depends on that which endpoints there are, or how they
    /// are called.
    Configured(Arc<str>, Option<u16>),
    Name(Arc<str>, u16),
    Dialled(SocketAddr),
}

impl Key {
    fn configured(name: &str, upstream: &config::Upstream, dialled_port: u16) -> Self {
        let depends_on_port = match &upstream.discovery {
            Some(Discovery::Static(fixed)) => fixed.iter().any(|at| is_not_redirected(at.address.port())),
            Some(
                Discovery::File(_) | Discovery::Consul(_) | Discovery::Eureka(_) | Discovery::Kubernetes(_),
            ) => false,
            Some(Discovery::Dns(dns)) => dns.port.is_none() && !dns.name.starts_with('_'),
            None => !upstream.hosts.is_empty(),
        };
        Self::Configured(name.into(), depends_on_port.then_some(dialled_port))
    }

    /// Whether the config alone bounds how many there are of its kind.
    fn is_bounded(&self) -> bool {
        matches!(self, Self::Configured(_, None))
    }
}

/// An upstream, and the task that keeps its endpoints fresh.
struct Made {
    upstream: Arc<Upstream>,
    recipe: Arc<Recipe>,
    followed: Followed,
    refresh: Option<JoinHandle<()>>,
}

/// What is needed of a [`Made`] without holding it.
type Parts = (Arc<Upstream>, Arc<Recipe>, Followed);

impl Made {
    fn parts(&self) -> Parts {
        (self.upstream.clone(), self.recipe.clone(), self.followed.clone())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(refresh) = &self.refresh {
            refresh.abort();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("configured", &self.configured).finish_non_exhaustive()
    }
}

impl Directory {
    /// Starts answering, on the current runtime.
    pub fn start(
        resolver: Resolver,
        health_checks: HealthChecks,
        config: Arc<Config>,
        rules: Arc<SecurityRules>,
    ) -> Self {
        let (questions, mut asked) = mpsc::unbounded_channel::<Question>();
        let shared = Arc::new(Shared {
            resolver,
            health_checks,
            configured: ArcSwap::from_pointee(Configured::new(config, rules)),
            made: Mutex::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            new: Semaphore::new(NEW_AT_ONCE),
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

    /// Puts a new config in force, of which `publish` has the workers see what is not the directory's. Upstreams it does
    /// not change stay, with their connections and averages.
    ///
    /// The generation moves before and after: who sees it stand still while asking has asked by one config.
    pub fn reconfigure(&self, config: Arc<Config>, rules: Arc<SecurityRules>, publish: impl FnOnce()) {
        let shared = &self.shared;
        shared.generation.fetch_add(1, AcqRel);
        publish();
        let before = shared.configured.swap(Arc::new(Configured::new(config, rules)));
        let now = shared.configured.load_full();
        shared.made().retain(|key, made| match key {
            Key::Configured(name, _) if !now.has_same_upstream(&before, name) => {
                made.upstream.leave();
                false
            }
            _ => {
                made.upstream.update(made.recipe.endpoint_set(&now.rules, &made.followed.current()));
                true
            }
        });
        shared.generation.fetch_add(1, AcqRel);
    }

    /// Changes when earlier answers no longer hold.
    pub fn generation(&self) -> u64 {
        self.shared.generation.load(Acquire)
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
        let place =
            self.shared.questions.clone().try_acquire_owned().map_err(|_| DestinationError::Overload)?;
        let (reply, answer) = oneshot::channel();
        let question = Question { about, reply, _place: place };
        self.questions.send(question).map_err(|_| DestinationError::Stopping)?;
        answer.await.unwrap_or(Err(DestinationError::Stopping))
    }

    /// Every upstream in use, by name, and what discovery last said of it, for the admin port and the metrics.
    pub fn upstreams(&self) -> BTreeMap<Arc<str>, InUse> {
        self.shared
            .made()
            .values()
            .map(|made| (made.upstream.name.clone(), (made.upstream.clone(), made.followed.current())))
            .collect()
    }
}

impl Shared {
    fn made(&self) -> MutexGuard<'_, HashMap<Key, Made>> {
        // Nothing panics while holding it; a poisoned map is still a whole one.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self: &Arc<Self>, about: About) -> Result<Destination, DestinationError> {
        let asked = about.to_string();
        let answer = timeout(LONGEST_QUESTION, self.find(about)).await;
        answer.unwrap_or_else(|_| Err(late(asked, LONGEST_QUESTION, Vec::new())))
    }

    async fn find(self: &Arc<Self>, about: About) -> Result<Destination, DestinationError> {
        loop {
            let asked_by = self.configured.load_full();
            let answer = self.find_once(&about).await;
            // An upstream may have gone while others were looked up.
            let may_be_stale = matches!(answer, Err(DestinationError::Config(_)));
            if !may_be_stale || Arc::ptr_eq(&asked_by, &self.configured.load()) {
                return answer;
            }
        }
    }

    async fn find_once(self: &Arc<Self>, about: &About) -> Result<Destination, DestinationError> {
        match about {
            About::Configured { name, port } => self.configured(name, *port).await.map(Destination::whole),
            About::Request { host: Some(host), dialled } if host.parse::<IpAddr>().is_err() => {
                match self.by_name(&normal(host), *dialled).await? {
                    Some(destination) => Ok(destination),
                    None => self.by_address(*dialled).await,
                }
            }
            About::Request { dialled, .. } => self.by_address(*dialled).await,
        }
    }

    /// The destination by its name, if the name may be believed: forging a Host must not lead into
    /// another service's policy.
    async fn by_name(
        self: &Arc<Self>,
        host: &str,
        dialled: SocketAddr,
    ) -> Result<Option<Destination>, DestinationError> {
        let configured = self.configured.load_full();
        let candidates = self.resolver.qualify(host);
        let candidates = || std::iter::once(host).chain(candidates.iter().map(String::as_str));
        let named = candidates().find_map(|name| configured.hosts.get_key_value(name));
        let is_owns = |own: &Option<Arc<Upstream>>| {
            own.as_ref().is_some_and(|upstream| upstream.any_destination || upstream.is_at(dialled))
        };
        let own = async {
            match named {
                Some((_, name)) => self.configured(name, dialled.port()).await.map(Some),
                None => Ok(None),
            }
        };
        let mut own = pin!(own);
        let mut by_dns = pin!(timeout(LONGEST_BY_NAME, self.named(host.into(), dialled.port())));
        let (own, by_dns) = select! {
            biased;
            own = &mut own => match own? {
                // Where the config decides it, nobody waits for DNS.
                own if is_owns(&own) => (own, Ok(Ok(None))),
                own => (own, by_dns.await),
            },
            by_dns = &mut by_dns => (own.await?, by_dns),
        };
        let by_dns = by_dns.unwrap_or_else(|_| {
            // Nobody has denied any of them.
            let undenied = candidates().map(str::to_owned).collect();
            Err(late(format!("{host}:{}", dialled.port()), LONGEST_BY_NAME, undenied))
        });
        let by_dns = match by_dns {
            Ok(upstream) => upstream,
            // Without an answer a name of the mesh can't be told from a forged one, and its address from
            // one outside the mesh.
            Err(error) => {
                let of_the_mesh = |name: &str| configured.rules.is_of_the_mesh_by_name(name);
                let may_be_of_the_mesh = match &error {
                    // In a pod the search domains make a name of the mesh of any host; most of those are denied.
                    DestinationError::Lookup(error) => {
                        of_the_mesh(host) || error.undenied().iter().any(|name| of_the_mesh(name))
                    }
                    _ => candidates().any(of_the_mesh),
                };
                if may_be_of_the_mesh {
                    return Err(error);
                }
                None
            }
        };
        let is_its_address = by_dns.as_ref().is_some_and(|upstream| upstream.holds(dialled));
        // Of the names that the search domains make of any host, one is below a domain only if it is the host's.
        let its_name = by_dns.as_ref().and_then(|upstream| upstream.set().name.clone());
        let its_name = its_name.as_deref().map(strip_service_labels).or(named.map(|(name, _)| name.as_str()));
        let routed = candidates()
            .find(|name| configured.is_routed_by_name(name))
            .or_else(|| std::iter::once(host).chain(its_name).find(|name| configured.is_routed(name)));
        if named.is_some() || routed.is_some() {
            let mut believed = is_its_address || is_owns(&own);
            let mut broken = None;
            for name in routed.map(|host| configured.routed_to(host)).unwrap_or_default() {
                if believed {
                    break;
                }
                match self.configured(name, dialled.port()).await {
                    Ok(upstream) => believed = upstream.any_destination || upstream.is_at(dialled),
                    Err(error) => broken = Some(error),
                }
            }
            if let Some(error) = broken.filter(|_| !believed) {
                // The address may be this one's: as dialled, it would go past its TLS and identity.
                return Err(error);
            }
            if !believed {
                return Ok(None);
            }
            // A name that only routes know, and one of them leads to where it was dialled: what no route matches goes there.
            let unrouted = match own.or(by_dns) {
                Some(upstream) => Destination::whole(upstream),
                None => self.by_address(dialled).await?,
            };
            return Ok(Some(Destination { routed_host: routed.map(Arc::from), ..unrouted }));
        }
        Ok(by_dns.filter(|_| is_its_address).map(Destination::whole))
    }

    /// The destination by the address alone.
    async fn by_address(self: &Arc<Self>, dialled: SocketAddr) -> Result<Destination, DestinationError> {
        if let Some(upstream) = self.configured_for(dialled).await? {
            let endpoint = upstream.endpoint_at(dialled);
            return Ok(Destination { endpoint, ..Destination::whole(upstream) });
        }
        let key = Key::Dialled(dialled);
        let recipe = || Ok(Recipe::on_demand(dialled.to_string(), Source::Dialled(dialled)));
        let (upstream, snapshot) = self.make(key, recipe).await?;
        match (&snapshot.answer, &snapshot.error) {
            (Some(answer), _) if answer.vips.contains(&dialled.ip()) => {
                let named = self.named(answer.name.clone(), dialled.port()).await?;
                let upstream = named.unwrap_or(upstream);
                Ok(Destination::whole(upstream))
            }
            (None, Some(error)) if !matches!(**error, LookupError::NotFound(_)) => {
                Err(DestinationError::Lookup(error.clone()))
            }
            _ => Ok(Destination::whole(upstream)),
        }
    }

    /// The configured upstream that has this endpoint or VIP, of those whose addresses are known: one that
    /// can't be made or looked up is no trouble of the others.
    async fn configured_for(
        self: &Arc<Self>,
        dialled: SocketAddr,
    ) -> Result<Option<Arc<Upstream>>, DestinationError> {
        let configured = self.configured.load_full();
        // Not at the start: without a certificate discovery can't be asked, and each failure puts the next try off.
        let made = *configured.made.get_or_init(|| {
            self.make_configured(&configured);
            Instant::now()
        });
        // Sent before the first addresses are there, it would go past the upstream's TLS and identity.
        let _ = timeout_at(
            (made + FIRST_ADDRESSES).into(),
            join_all(self.followed().iter().map(Followed::first)),
        )
        .await;
        for (name, upstream) in &configured.config.upstreams {
            if let Some(Discovery::Static(addresses)) = &upstream.discovery {
                if addresses.iter().any(|fixed| fixed.address == dialled) {
                    return self.stated(&name.as_str().into(), dialled).await.map(Some);
                }
                continue;
            }
            if let Some(known) = self.known(&Key::configured(name, upstream, dialled.port()))
                && known.is_at(dialled)
            {
                return Ok(Some(known));
            }
        }
        Ok(None)
    }

    /// The upstream of which the config states this address.
    async fn stated(
        self: &Arc<Self>,
        name: &Arc<str>,
        dialled: SocketAddr,
    ) -> Result<Arc<Upstream>, DestinationError> {
        let (upstream, snapshot) = self.configured_as_known(name, dialled.port()).await?;
        let owner = snapshot.owners.as_ref().and_then(|owners| owners.get(&dialled));
        match owner {
            // Not as dialled either: that would go past the upstream's identity as soon as discovery answers.
            Some(Owner::Unknown(error)) if !upstream.is_at(dialled) => {
                Err(DestinationError::Lookup(error.clone()))
            }
            _ => Ok(upstream),
        }
    }

    /// What is followed for upstreams of the config, whichever port is dialled.
    fn followed(&self) -> Vec<Followed> {
        let made = self.made();
        made.iter().filter(|(key, _)| key.is_bounded()).map(|(_, made)| made.followed.clone()).collect()
    }

    /// The upstream of `key` if it is made, with what is known now.
    fn known(&self, key: &Key) -> Option<Arc<Upstream>> {
        let (upstream, recipe, followed) = self.made().get(key).map(Made::parts)?;
        self.take_in(key, &upstream, &recipe, &followed.current());
        Some(upstream)
    }

    /// The on-demand upstream of a name; `None` when there is no such name.
    async fn named(
        self: &Arc<Self>,
        host: Arc<str>,
        port: u16,
    ) -> Result<Option<Arc<Upstream>>, DestinationError> {
        let target = Target::Name { host: host.clone(), port };
        let key = Key::Name(host.clone(), port);
        let recipe = || Ok(Recipe::on_demand(format!("{host}:{port}"), Source::Name(target)));
        let (upstream, snapshot) = self.make(key, recipe).await?;
        let rules = self.configured.load().rules.clone();
        match (&snapshot.answer, &snapshot.error) {
            // Ordinary DNS answered what only discovery can: who the peers must be.
            (Some(answer), Some(error))
                if answer.source == resolve::Source::Dns
                    && matches!(**error, LookupError::Failed { .. })
                    && rules.is_discoverys(&answer.name) =>
            {
                Err(DestinationError::Lookup(error.clone()))
            }
            (Some(_), _) => Ok(Some(upstream)),
            (None, Some(error)) if matches!(**error, LookupError::Failed { .. }) => {
                Err(DestinationError::Lookup(error.clone()))
            }
            (None, _) => Ok(None),
        }
    }

    async fn configured(
        self: &Arc<Self>,
        name: &Arc<str>,
        port: u16,
    ) -> Result<Arc<Upstream>, DestinationError> {
        self.configured_as_known(name, port).await.map(|(upstream, _)| upstream)
    }

    async fn configured_as_known(
        self: &Arc<Self>,
        name: &Arc<str>,
        port: u16,
    ) -> Result<(Arc<Upstream>, Arc<Snapshot>), DestinationError> {
        let configured = self.configured.load_full();
        let Some(upstream) = configured.upstream(name) else {
            return Err(DestinationError::Config(format!("the config has no upstream {name}").into()));
        };
        let key = Key::configured(name, upstream, port);
        let zone = configured.config.zone.as_deref();
        self.make(key, || Recipe::configured(name, upstream, port, zone)).await
    }

    /// Begins to follow the configured upstreams whose addresses can be known before anybody dials them, so
    /// that traffic without a name finds them.
    fn make_configured(self: &Arc<Self>, configured: &Configured) {
        for (name, upstream) in &configured.config.upstreams {
            // Of no use for a key that is bounded.
            let port = 0;
            let key = Key::configured(name, upstream, port);
            if !key.is_bounded() || self.made().contains_key(&key) {
                continue;
            }
            match Recipe::configured(name, upstream, port, configured.config.zone.as_deref()) {
                Ok(recipe) => _ = self.add(key, Arc::new(recipe)),
                Err(error) => tracing::warn!("it can't be called until this is mended: {error}"),
            }
        }
    }

    /// The upstream of `key`, made and its first answer awaited if it is new.
    async fn make(
        self: &Arc<Self>,
        key: Key,
        recipe: impl FnOnce() -> Result<Recipe, RecipeError>,
    ) -> Result<(Arc<Upstream>, Arc<Snapshot>), DestinationError> {
        let is_new = !key.is_bounded() && !self.made().contains_key(&key);
        let _place = if is_new { Some(self.place_for_new().await?) } else { None };
        // Looked for again: somebody may have made it in the meantime.
        let known = self.made().get(&key).map(Made::parts);
        let (upstream, recipe, followed) = match known {
            Some(known) => known,
            None => self.add(key.clone(), Arc::new(recipe().map_err(config_error)?)),
        };
        upstream.note_use(Instant::now());
        let snapshot = followed.first().await;
        self.take_in(&key, &upstream, &recipe, &snapshot);
        Ok((upstream, snapshot))
    }

    async fn place_for_new(&self) -> Result<SemaphorePermit<'_>, DestinationError> {
        match timeout(LONGEST_WAIT, self.new.acquire()).await {
            Ok(place) => place.map_err(|_| DestinationError::Stopping),
            Err(_) => Err(DestinationError::Overload),
        }
    }

    fn add(self: &Arc<Self>, key: Key, recipe: Arc<Recipe>) -> Parts {
        let followed = recipe.source.follow(&self.resolver);
        let name = recipe.name.clone();
        let upstream = Arc::new(Upstream::new(name, recipe.policy.clone(), recipe.any_destination));
        if let Some(plan) = &recipe.health {
            self.health_checks.begin(&upstream, plan);
        }
        let refresh = if followed.is_fixed() {
            // Nobody decided otherwise before: the config said so already.
            upstream.update(recipe.endpoint_set(&self.configured.load().rules, &followed.current()));
            None
        } else {
            self.take_in(&key, &upstream, &recipe, &followed.current());
            let mut followed = followed.clone();
            let (shared, key) = (Arc::downgrade(self), key.clone());
            let (upstream, recipe) = (upstream.clone(), recipe.clone());
            Some(tokio::spawn(async move {
                loop {
                    followed.changed().await;
                    let Some(shared) = shared.upgrade() else { return };
                    // Also where `take_in` sees nothing newer: the error alone may have changed.
                    shared.replace(&key, &upstream, &recipe, &followed.current());
                }
            }))
        };
        let made = Made { upstream, recipe, followed, refresh };
        let parts = made.parts();
        let mut all = self.made();
        if !key.is_bounded() && all.len() >= MAX_ON_DEMAND {
            self.make_room(&mut all);
        }
        all.insert(key, made);
        parts
    }

    /// Takes an answer in, unless it is the one that is in already.
    fn take_in(&self, key: &Key, upstream: &Upstream, recipe: &Recipe, snapshot: &Snapshot) {
        if upstream.set().refreshed != Some(snapshot.refreshed) {
            self.replace(key, upstream, recipe, snapshot);
        }
    }

    /// Takes an answer in. One that changes what was decided by an earlier one ends those decisions.
    fn replace(&self, key: &Key, upstream: &Upstream, recipe: &Recipe, snapshot: &Snapshot) {
        // Before its first answer nobody decided by it, but an address may have been found to be nobody's that is
        // this configured upstream's.
        let is_decided_by = matches!(key, Key::Configured(..)) || {
            let set = upstream.set();
            set.name.is_some() || set.error.is_some()
        };
        let rules = self.configured.load().rules.clone();
        let changed = upstream.update(recipe.endpoint_set(&rules, snapshot));
        if changed && is_decided_by {
            self.generation.fetch_add(1, AcqRel);
        }
    }

    /// Lets go of what was used longest ago, if there is too much of what the config does not bound.
    fn make_room(&self, made: &mut HashMap<Key, Made>) {
        let mut unbounded: Vec<(u64, Key)> = made
            .iter()
            .filter(|(key, _)| !key.is_bounded())
            .map(|(key, made)| (made.upstream.last_used(), key.clone()))
            .collect();
        if unbounded.len() < MAX_ON_DEMAND {
            return;
        }
        unbounded.sort_unstable_by_key(|(last_used, _)| *last_used);
        for (_, key) in &unbounded[..MADE_ROOM] {
            if let Some(made) = made.remove(key) {
                made.upstream.leave();
            }
        }
        self.generation.fetch_add(1, AcqRel);
    }
}

fn late(target: String, limit: Duration, undenied: Vec<String>) -> DestinationError {
    let reason = format!("no answer within {limit:?}");
    DestinationError::Lookup(Arc::new(LookupError::Failed { target: target.into(), reason, undenied }))
}

fn config_error(error: RecipeError) -> DestinationError {
    DestinationError::Config(error.to_string().into())
}

#[cfg(test)]
mod tests;
