//! Targets that are kept fresh in the background for as long as somebody looks at them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::answer::{Snapshot, Source, Target};
use super::dns::Dns;
use super::hosts::HostsFile;
use super::lookup::Lookup;
use super::mesh::{Directory, Server};
use super::owners::{FollowedOwners, MOST_IN_ALL};
use super::plain::Plain;
use super::providers::{Network, OwnersAsked, ProviderSettings, Providers};
use super::search::{self, ResolvConf, Search};
use super::settings::{ResolveError, ResolveSettings};
use super::state::State;
use crate::net::Dialler;
use crate::telemetry::Metrics;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The server that the C library asks where `resolv.conf` names none.
const DEFAULT_SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 53);
/// Lookups under way at once; the others wait their turn.
const MOST_LOOKUPS: usize = 64;
/// What has never been answered is looked up again when somebody wants it, but not sooner than this after the last time.
const AGAIN_WHEN_WANTED: Duration = Duration::from_secs(1);
/// Half of what metrics are commonly scraped at.
const AGE_REPORTED: Duration = Duration::from_secs(5);

/// Finds endpoints and keeps them fresh. Clones share everything.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    lookup: Lookup,
    providers: Providers,
    followed: Mutex<HashMap<Target, Kept>>,
    turns: Semaphore,
    owners: Arc<Semaphore>,
    metrics: Option<Arc<Metrics>>,
    runtime: Handle,
}

/// What those who follow a target share with the task that looks it up.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) sender: watch::Sender<Arc<Snapshot>>,
    /// Somebody wants what could not be found out.
    pub(super) wanted: Arc<Notify>,
}

impl Kept {
    fn new(known: Snapshot) -> Self {
        Self { sender: watch::Sender::new(Arc::new(known)), wanted: Arc::default() }
    }

    fn follow(&self) -> Followed {
        Followed { snapshot: self.sender.subscribe(), wanted: self.wanted.clone() }
    }
}

impl Resolver {
    /// Must be called on the control thread's runtime, where all lookups then run, whichever thread asks for them.
    ///
    /// # Errors
    /// [`ResolveError`] when the settings or `resolv.conf` can't be used, or the hosts file can't be watched.
    pub fn new(settings: ResolveSettings, metrics: Option<Arc<Metrics>>) -> Result<Self, ResolveError> {
        let runtime = Handle::try_current().map_err(|_| ResolveError::NoRuntime)?;
        let system = read_resolv_conf(&settings)?;
        let servers = if settings.servers.is_empty() { system.servers } else { settings.servers };
        let cluster_domain = search::name(&settings.cluster_domain)
            .ok_or_else(|| ResolveError::Domain(settings.cluster_domain.clone()))?;
        let plain = Arc::new(Plain {
            hosts: HostsFile::follow(settings.hosts_file)?,
            search: Search::new(
                &settings.search.unwrap_or(system.search),
                settings.ndots.unwrap_or(system.ndots),
                &cluster_domain,
            )?,
            dns: Dns::new(&servers, settings.mark)?,
        });
        let directory = settings
            .mesh
            .map(|mesh| {
                let server = Server::new(mesh, settings.mark, plain.clone())?;
                Ok::<_, ResolveError>(Directory::new(server, cluster_domain.clone()))
            })
            .transpose()?;
        let network = Network::Sockets { names: plain.clone(), dialler: Dialler::to_peers(settings.mark) };
        let own_addresses = settings.own_addresses;
        let providers = Providers::new(network, own_addresses.clone(), cluster_domain.clone());
        let lookup = Lookup { plain, directory, own_addresses, cluster_domain };
        let shared = Arc::new(Shared {
            lookup,
            providers,
            followed: Mutex::new(HashMap::new()),
            turns: Semaphore::new(MOST_LOOKUPS),
            owners: Arc::new(Semaphore::new(MOST_IN_ALL)),
            metrics: metrics.clone(),
            runtime,
        });
        if let Some(metrics) = metrics {
            tokio::spawn(report_age(Arc::downgrade(&shared), metrics));
        }
        Ok(Self { shared })
    }

    /// Begins to follow a target, or joins those who follow it already. It is refreshed while any clone of what is
    /// returned lives; how many are followed at once is the caller's to bound. May be called on any thread.
    pub fn follow(&self, target: Target) -> Followed {
        let target = lower_case(target);
        let mut followed = self.shared.followed();
        match followed.entry(target) {
            Entry::Occupied(known) => known.get().follow(),
            Entry::Vacant(new) => {
                let target = new.key().clone();
                let kept = Kept::new(Snapshot::unknown(Instant::now().into_std()));
                let followed = kept.follow();
                new.insert(kept.clone());
                let shared = self.shared.clone();
                self.shared.runtime.spawn(keep_fresh(shared, target, kept));
                followed
            }
        }
    }

    /// Begins to follow what a provider other than DNS says, and whose the addresses are if `asks_owners` and there is a
    /// discovery that knows. It is followed while any clone of what is returned lives. May be called on any thread.
    pub fn provide(&self, settings: &ProviderSettings, asks_owners: bool) -> Followed {
        let shared = &self.shared;
        let _runtime = shared.runtime.enter();
        let owners = (asks_owners && shared.lookup.directory.is_some()).then(|| {
            let resolver = self.clone();
            OwnersAsked {
                owners: FollowedOwners::new(shared.owners.clone()),
                follow: Box::new(move |target| resolver.follow(target)),
            }
        });
        shared.providers.follow(settings, owners)
    }

    /// The full names that a host may stand for by search domains and ndots, in the order in which they are asked for:
    /// lower case, no trailing dot. None for an address or what is no host name.
    pub fn qualify(&self, host: &str) -> Vec<String> {
        self.shared.lookup.plain.search.candidates(host)
    }

    #[cfg(test)]
    pub(super) fn followed_targets(&self) -> usize {
        self.shared.followed().len()
    }
}

/// A target that is kept fresh while any clone of this lives.
#[derive(Clone)]
pub struct Followed {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    wanted: Arc<Notify>,
}

impl Followed {
    /// What `start` begins to refresh.
    pub(super) fn kept(known: Snapshot, start: impl FnOnce(Kept)) -> Self {
        let kept = Kept::new(known);
        let followed = kept.follow();
        start(kept);
        followed
    }

    /// What stays as it is.
    pub(super) fn fixed(known: Snapshot) -> Self {
        Self::kept(known, drop)
    }

    /// Whether nothing more will come.
    pub fn is_fixed(&self) -> bool {
        self.snapshot.has_changed().is_err()
    }

    /// What is known now; neither an answer nor an error before the first lookup has ended.
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.borrow().clone()
    }

    /// What is known now, of which [`Self::changed`] then tells no more.
    pub(super) fn take_in(&mut self) -> Arc<Snapshot> {
        self.snapshot.borrow_and_update().clone()
    }

    /// Waits until the first lookup has ended or a provider was silent for long, and then that of the addresses' owners: at
    /// most about 5 s each. What could not be found out then is looked up again soon, for it is wanted.
    pub async fn first(&self) -> Arc<Snapshot> {
        let mut snapshot = self.snapshot.clone();
        let known = snapshot
            .wait_for(|known| known.answer.is_some() || known.error.is_some())
            .await
            .map(|known| known.clone());
        let known = known.unwrap_or_else(|_| self.current());
        if known.is_unanswered() || known.has_unknown_owner() {
            self.want();
        }
        known
    }

    /// Has it looked up soon if it has never been answered.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Waits until the answer or the error is another one than when this was last called; a refresh that confirms them
    /// is no change. Never returns once the control thread has ended.
    pub async fn changed(&mut self) {
        if self.snapshot.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Shared {
    fn followed(&self) -> std::sync::MutexGuard<'_, HashMap<Target, Kept>> {
        self.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a target that nobody follows any longer.
    fn forget(&self, target: &Target, sender: &watch::Sender<Arc<Snapshot>>) -> bool {
        let mut followed = self.followed();
        // Under the lock nobody can begin to follow it.
        let unwatched = sender.is_closed();
        if unwatched {
            followed.remove(target);
        }
        unwatched
    }
}

/// Looks a target up again and again until nobody follows it.
async fn keep_fresh(shared: Arc<Shared>, target: Target, kept: Kept) {
    let Kept { sender, wanted } = kept;
    let resolver = Resolver { shared: shared.clone() };
    let mut state = State::default();
    let mut owners = FollowedOwners::new(shared.owners.clone());
    let mut hosts_changed = shared.lookup.plain.hosts.changes();
    loop {
        let outcome = tokio::select! {
            outcome = look_up(&shared, &target) => outcome,
            () = sender.closed() => if shared.forget(&target, &sender) { return } else { continue },
        };
        hosts_changed.mark_unchanged();
        let step = state.absorb(outcome, Instant::now().into_std());
        if let Some(metrics) = &shared.metrics {
            metrics.dns_lookups.inc([step.result]);
        }
        tracing::debug!(%target, result = step.result, error = ?step.snapshot.error, "looked up");
        let mut snapshot = step.snapshot;
        let mut due = Instant::now() + step.again_in;
        let soonest = Instant::now() + AGAIN_WHEN_WANTED;
        let is_owners_to_say = shared.lookup.directory.is_some()
            && snapshot.answer.as_ref().is_some_and(|answer| answer.source != Source::Mesh);
        if shared.lookup.directory.is_some() {
            tokio::select! {
                () = owners.turn_to(snapshot.answer.as_deref(), |target| resolver.follow(target)) => {}
                () = sender.closed() => if shared.forget(&target, &sender) { return } else { continue },
            }
        }
        loop {
            snapshot.owners = is_owners_to_say.then(|| owners.known());
            publish(&sender, snapshot.clone());
            tokio::select! {
                () = sleep_until(due) => break,
                Ok(()) = hosts_changed.changed() => break,
                () = owners.changed() => {}
                () = wanted.notified() => {
                    owners.want_unknown();
                    if snapshot.is_unanswered() {
                        due = due.min(soonest);
                    }
                }
                () = sender.closed() => if shared.forget(&target, &sender) { return } else { break },
            }
        }
    }
}

/// Shows the age of the oldest answer in use.
async fn report_age(shared: Weak<Shared>, metrics: Arc<Metrics>) {
    while let Some(shared) = shared.upgrade() {
        let oldest = shared
            .followed()
            .values()
            .filter_map(|kept| {
                let snapshot = kept.sender.borrow();
                snapshot.answer.as_ref().map(|_| snapshot.refreshed)
            })
            .min();
        drop(shared);
        let age = oldest.map_or(0, |oldest| oldest.elapsed().as_secs());
        metrics.dns_age.set(age.try_into().unwrap_or(i64::MAX));
        sleep(AGE_REPORTED).await;
    }
}

async fn look_up(shared: &Shared, target: &Target) -> super::outcome::Outcome {
    // The semaphore is never closed; without a permit the lookup is only less polite.
    let _turn = shared.turns.acquire().await;
    shared.lookup.run(target).await
}

/// Puts in place what is known now; whoever waits is woken only by another answer or error.
pub(super) fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: Snapshot) {
    sender.send_if_modified(|known| {
        let changed = differs(known, &snapshot);
        *known = Arc::new(snapshot);
        changed
    });
}

fn differs(known: &Snapshot, new: &Snapshot) -> bool {
    let same_answer = match (&known.answer, &new.answer) {
        (Some(known), Some(new)) => Arc::ptr_eq(known, new),
        (None, None) => true,
        _ => false,
    };
    !same_answer || known.error != new.error || known.owners != new.owners
}

/// The file is read only where the settings leave something to it.
fn read_resolv_conf(settings: &ResolveSettings) -> Result<ResolvConf, ResolveError> {
    let complete = !settings.servers.is_empty() && settings.search.is_some() && settings.ndots.is_some();
    let text = match std::fs::read_to_string(RESOLV_CONF) {
        _ if complete => String::new(),
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(ResolveError::ResolvConf(error.to_string())),
    };
    let mut conf = ResolvConf::parse(&text);
    if conf.servers.is_empty() && settings.servers.is_empty() {
        tracing::info!("{RESOLV_CONF} names no server: {DEFAULT_SERVER} is asked");
        conf.servers.push(DEFAULT_SERVER);
    }
    Ok(conf)
}

fn lower_case(target: Target) -> Target {
    let lower = |name: Arc<str>| {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            name
        }
    };
    match target {
        Target::Name { host, port } => Target::Name { host: lower(host), port },
        Target::Srv { name } => Target::Srv { name: lower(name) },
        address @ Target::Address(_) => address,
    }
}
