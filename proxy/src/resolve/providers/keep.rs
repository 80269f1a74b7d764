//! Follows a provider: the last good set stays while it misses.

use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::answer::{Answer, LookupError, ResolvedEndpoint, Snapshot, Source, Target};
use super::super::believe::{Belief, in_order};
use super::super::follow::{Followed, Kept, publish};
use super::super::outcome::{Miss, Outcome, longest};
use super::super::owners::FollowedOwners;
use super::super::state::State;
use super::Provider;

/// Whoever waits for the first set is told that there is none yet after this time; the provider may take longer.
const FIRST: Duration = Duration::from_secs(5);

/// What is known of a provider beside what it says.
pub(super) struct About {
    /// What is followed, for errors and the log: `the service api in Consul`.
    pub what: Arc<str>,
    /// The name of its answers.
    pub name: Arc<str>,
    pub source: Source,
    pub trust: Trust,
    pub own_addresses: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
}

/// Which addresses are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// All: who wrote them may also write the config.
    Operator,
    /// All but those of only local meaning: whoever may register a service could otherwise have this machine's loopback or
    /// its cloud's metadata service called. Loopback ones are taken from a registry that is itself asked on loopback:
    /// everything is on one machine then. This machine's own addresses may well be another service's.
    Catalog { loopback: bool },
    /// As of authenticated discovery: this pod's own addresses only when there is no other.
    Cluster,
}

/// Whose a set's addresses are.
pub(in crate::resolve) struct OwnersAsked {
    pub owners: FollowedOwners,
    /// Asks about one address.
    pub follow: Box<dyn Fn(Target) -> Followed + Send + Sync>,
}

/// Publishes what `provider` says for as long as anybody looks.
pub(super) async fn keep<P: Provider>(
    mut provider: P,
    about: About,
    mut asked: Option<OwnersAsked>,
    kept: Kept,
) {
    let Kept { sender, wanted } = kept;
    let mut state = State::default();
    let mut has_said = false;
    let mut pause = None;
    loop {
        let said = {
            let mut next = pin!(async {
                if let Some(pause) = pause {
                    provider.pause(pause).await;
                }
                provider.next().await
            });
            loop {
                tokio::select! {
                    said = &mut next => break said,
                    () = owners_changed(&mut asked) => {
                        let snapshot = Snapshot::clone(&sender.borrow());
                        publish(&sender, with_owners(snapshot, &mut asked));
                    }
                    () = wanted.notified() => {
                        if let Some(OwnersAsked { owners, .. }) = &asked {
                            owners.want_unknown();
                        }
                    }
                    () = sender.closed() => return,
                    () = sleep(FIRST), if !has_said => {
                        has_said = true;
                        let error = about.failed(format!("nothing was heard within {FIRST:?}"));
                        let now = Instant::now().into_std();
                        let snapshot = Snapshot { error: Some(Arc::new(error)), ..Snapshot::unknown(now) };
                        publish(&sender, snapshot);
                    }
                }
            }
        };
        has_said = true;
        let outcome = match said {
            Ok(endpoints) => Outcome::Found(about.answer(endpoints)),
            Err(Miss::Absent { valid_for }) => {
                Outcome::Absent { error: LookupError::NotFound(about.what.clone()), valid_for }
            }
            Err(Miss::Failed(reason)) => Outcome::Failed(about.failed(reason)),
        };
        let missed = !matches!(outcome, Outcome::Found(_));
        let step = state.absorb(outcome, Instant::now().into_std());
        pause = missed.then_some(step.again_in);
        if let Some(OwnersAsked { owners, follow }) = &mut asked {
            tokio::select! {
                () = owners.turn_to(step.snapshot.answer.as_deref(), &*follow) => {}
                () = sender.closed() => return,
            }
        }
        about.log(&sender.borrow(), &step.snapshot);
        publish(&sender, with_owners(step.snapshot, &mut asked));
    }
}

fn with_owners(mut snapshot: Snapshot, asked: &mut Option<OwnersAsked>) -> Snapshot {
    let asked = asked.as_mut().filter(|_| snapshot.answer.is_some());
    snapshot.owners = asked.map(|asked| asked.owners.known());
    snapshot
}

async fn owners_changed(asked: &mut Option<OwnersAsked>) {
    match asked {
        Some(asked) => asked.owners.changed().await,
        None => pending().await,
    }
}

/// What is known where the provider has nothing more to say.
pub(super) fn good(about: &About, endpoints: Vec<ResolvedEndpoint>) -> Snapshot {
    let refreshed = Instant::now().into_std();
    Snapshot { answer: Some(Arc::new(about.answer(endpoints))), error: None, refreshed, owners: None }
}

impl About {
    pub(super) fn failed(&self, reason: String) -> LookupError {
        LookupError::Failed { target: self.what.clone(), reason, undenied: Vec::new() }
    }

    fn answer(&self, endpoints: Vec<ResolvedEndpoint>) -> Answer {
        let (endpoints, dropped) = self.believed(endpoints);
        Answer {
            name: self.name.clone(),
            endpoints,
            vips: Vec::new(),
            dropped,
            source: self.source,
            service: None,
            valid_for: longest(),
        }
    }

    fn believed(&self, mut endpoints: Vec<ResolvedEndpoint>) -> (Vec<ResolvedEndpoint>, Vec<IpAddr>) {
        let belief = || Belief::new((self.own_addresses)());
        match self.trust {
            Trust::Operator => {
                for endpoint in &mut endpoints {
                    endpoint.address.set_ip(endpoint.address.ip().to_canonical());
                }
                in_order(&mut endpoints);
                (endpoints, Vec::new())
            }
            Trust::Catalog { loopback: false } => belief().with_own().sift(endpoints),
            Trust::Catalog { loopback: true } => belief().with_own().with_loopback().sift(endpoints),
            Trust::Cluster => {
                let others = belief().sift(endpoints.clone());
                if others.0.is_empty() { belief().with_own().sift(endpoints) } else { others }
            }
        }
    }

    /// Each change for the worse or the better, once.
    fn log(&self, before: &Snapshot, now: &Snapshot) {
        match (&before.error, &now.error) {
            (None, Some(error)) if now.answer.is_some() => {
                tracing::warn!("the last good endpoints stay in use: {error}");
            }
            (None, Some(error)) => tracing::warn!("{error}"),
            (Some(_), None) => tracing::info!("{} is heard of again", self.what),
            _ => {}
        }
        let count = |snapshot: &Snapshot| snapshot.answer.as_ref().map_or(0, |answer| answer.endpoints.len());
        if count(before) > 0 && count(now) == 0 {
            tracing::warn!("{} has no endpoint left", self.what);
        }
        let dropped = |snapshot: &Snapshot| {
            snapshot.answer.as_ref().map(|answer| answer.dropped.clone()).unwrap_or_default()
        };
        let dropped_now = dropped(now);
        if !dropped_now.is_empty() && dropped_now != dropped(before) {
            tracing::warn!("{}: {dropped_now:?} are not believed", self.what);
        }
    }
}
