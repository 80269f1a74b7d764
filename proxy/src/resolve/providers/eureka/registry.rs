//! A copy of a whole Eureka registry, kept up to date by what changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use super::super::super::answer::ResolvedEndpoint;
use super::super::PATIENCE;
use super::super::http::{Client, HttpError};
use super::instance::{Action, Answer, Application, Instance, Status};

/// Changes older than this may be forgotten already: servers keep them for 3 minutes unless configured
/// (`retentionTimeInMSInDeltaQueue`).
const DELTAS_REACH: Duration = Duration::from_secs(120);

/// The copy, and whom to ask.
pub(super) struct Registry {
    clients: Vec<Client>,
    /// Which of them answered last.
    preferred: usize,
    /// By name in upper case, then by instance.
    applications: HashMap<Arc<str>, BTreeMap<Box<str>, Known>>,
    /// Of which applications more than the status is kept.
    followed: BTreeSet<Arc<str>>,
    fetched: Option<Instant>,
    failed: Option<(Instant, String)>,
}

struct Known {
    status: Status,
    /// What is to be dialled, or why it can't be; nothing of applications that nobody follows.
    endpoint: Option<Result<ResolvedEndpoint, String>>,
}

impl Registry {
    pub(super) fn new(clients: Vec<Client>) -> Self {
        Self {
            clients,
            preferred: 0,
            applications: HashMap::new(),
            followed: BTreeSet::new(),
            fetched: None,
            failed: None,
        }
    }

    /// Fetches unless somebody did while the caller waited for its turn, or has since what the caller saw last. Gives when
    /// it was fetched. `began`: when the caller began to wait.
    ///
    /// # Errors
    /// No server gave a usable answer; what was there before stays.
    pub(super) async fn newer_than(
        &mut self,
        seen: Option<Instant>,
        began: Instant,
        followed: impl FnOnce() -> BTreeSet<Arc<str>>,
    ) -> Result<Instant, String> {
        let followed = followed();
        let knows_all = followed.is_subset(&self.followed);
        if let Some(fetched) = self.fetched
            && knows_all
            && seen.is_none_or(|seen| fetched > seen)
        {
            return Ok(fetched);
        }
        if let Some((failed, error)) = &self.failed
            && *failed >= began
        {
            return Err(error.clone());
        }
        match self.fetch(followed, knows_all).await {
            Ok(()) => {
                let now = Instant::now();
                self.fetched = Some(now);
                self.failed = None;
                Ok(now)
            }
            Err(error) => {
                self.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The endpoints of an application's instances that are up, and why others can't be dialled; `None` if the registry has
    /// no such application.
    pub(super) fn application(&self, name: &str) -> Option<(Vec<ResolvedEndpoint>, Vec<String>)> {
        let (mut endpoints, mut passed_over) = (Vec::new(), Vec::new());
        let up = self.applications.get(name)?.values().filter(|known| known.status == Status::Up);
        for endpoint in up.filter_map(|known| known.endpoint.as_ref()) {
            match endpoint {
                Ok(endpoint) => endpoints.push(endpoint.clone()),
                Err(reason) => passed_over.push(reason.clone()),
            }
        }
        Some((endpoints, passed_over))
    }

    async fn fetch(&mut self, followed: BTreeSet<Arc<str>>, knows_all: bool) -> Result<(), String> {
        let mut errors = Vec::new();
        for offset in 0..self.clients.len() {
            let at = (self.preferred + offset) % self.clients.len();
            let client = self.clients[at].clone();
            // Each server counts its own copy, and equal counts prove nothing where changes were missed.
            let may_have_missed = !knows_all || self.failed.is_some() || at != self.preferred;
            match self.fetch_from(&client, &followed, may_have_missed).await {
                Ok(()) => {
                    self.preferred = at;
                    return Ok(());
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        Err(errors.join("; "))
    }

    /// What has changed, if that leads to as many instances of each status as the server counts, else everything.
    async fn fetch_from(
        &mut self,
        client: &Client,
        followed: &BTreeSet<Arc<str>>,
        may_have_missed: bool,
    ) -> Result<(), HttpError> {
        if !may_have_missed && self.fetched.is_some_and(|fetched| fetched.elapsed() < DELTAS_REACH) {
            match ask(client, "/apps/delta").await {
                Ok(delta) => {
                    let hashcode = delta.applications.hashcode.clone();
                    self.apply(delta);
                    if hashcode == Some(self.hashcode()) {
                        return Ok(());
                    }
                    tracing::debug!(?hashcode, "the changes do not lead to what Eureka counts");
                }
                // Switched off at the server, or an implementation without.
                Err(error)
                    if matches!(error.status(), Some(StatusCode::FORBIDDEN | StatusCode::NOT_FOUND)) => {}
                Err(error) => return Err(error),
            }
        }
        let whole = ask(client, "/apps").await?;
        self.applications.clear();
        self.followed.clone_from(followed);
        self.apply(whole);
        Ok(())
    }

    fn apply(&mut self, answer: Answer) {
        for Application { name, instance } in answer.applications.application {
            let name: Arc<str> = name.to_uppercase().into();
            let is_followed = self.followed.contains(&name);
            let instances = self.applications.entry(name.clone()).or_default();
            for instance in instance {
                let id = instance.id().into();
                match instance.action_type {
                    Action::Added | Action::Modified => {
                        _ = instances.insert(id, known(&instance, is_followed))
                    }
                    Action::Deleted => _ = instances.remove(&id),
                }
            }
            if instances.is_empty() {
                self.applications.remove(&name);
            }
        }
    }

    /// How many instances there are of each status, in the order of their names, as Eureka writes it: `DOWN_1_UP_3_`.
    fn hashcode(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for known in self.applications.values().flat_map(BTreeMap::values) {
            *counts.entry(known.status.as_str()).or_default() += 1;
        }
        counts.iter().map(|(status, count)| format!("{status}_{count}_")).collect()
    }
}

fn known(instance: &Instance, is_followed: bool) -> Known {
    Known { status: instance.status, endpoint: is_followed.then(|| instance.endpoint()) }
}

async fn ask(client: &Client, path: &str) -> Result<Answer, HttpError> {
    let (_, body) = client.get(path, &[], PATIENCE).await?;
    serde_json::from_slice(&body).map_err(|error| client.nonsense(&body, error))
}
