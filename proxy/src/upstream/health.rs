//! Active health checks: each endpoint of an upstream that states `healthCheck` is asked whether it is well, whether
//! requests come or not.
//!
//! Who is asked stands here, when and what follows from the answers in [`schedule`], what is asked in [`probe`] and
//! the files beside it.

mod grpc;
mod http;
mod probe;
mod schedule;
mod tcp;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_local};

use probe::{Prober, Question, Target};
use schedule::{Schedule, keep_checked};

use super::{Endpoint, EndpointId, Policy, PoolsSettings, SWEEP, Upstream};
use crate::config;

/// Endpoints of an upstream whose first checks all start at once; those of more are spread.
const AT_ONCE: usize = 8;

/// How the endpoints of an upstream are checked.
#[derive(Debug)]
pub(super) struct Plan {
    schedule: Schedule,
    question: Question,
    /// Where it is not the endpoint's.
    port: Option<u16>,
}

impl Plan {
    /// Of an upstream of the config; `None` if it has no checks.
    pub(super) fn of(upstream: &config::Upstream) -> Option<Self> {
        let check = upstream.health_check.as_ref()?;
        Some(Self {
            schedule: Schedule::of(check),
            question: Question::of(check, upstream)?,
            port: check.port,
        })
    }
}

/// Hands upstreams over to the [`Checker`].
#[derive(Clone, Debug)]
pub struct HealthChecks(mpsc::UnboundedSender<Checked>);

/// Checks what is handed over by [`HealthChecks`].
#[derive(Debug)]
pub struct Checker(mpsc::UnboundedReceiver<Checked>);

/// An upstream whose endpoints are checked for as long as it is there.
#[derive(Debug)]
struct Checked {
    upstream: Weak<Upstream>,
    changes: watch::Receiver<()>,
    plan: Arc<Plan>,
}

impl HealthChecks {
    /// Both ends.
    pub fn channel() -> (Self, Checker) {
        // Unbounded: upstreams are, by the config and by the directory.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Checker(receiver))
    }

    /// Has the endpoints of `upstream` checked, those that come later too, until they leave.
    pub(super) fn begin(&self, upstream: &Arc<Upstream>, plan: &Arc<Plan>) {
        let changes = upstream.changes.subscribe();
        // Fails when the proxy stops.
        let _ = self.0.send(Checked { upstream: Arc::downgrade(upstream), changes, plan: plan.clone() });
    }
}

impl Checker {
    /// Checks, until nobody can hand anything over. Its connections are its own, and opened as those of requests; run it
    /// within a [`LocalSet`](tokio::task::LocalSet).
    pub async fn run(mut self, settings: PoolsSettings) {
        let prober = Rc::new(Prober::new(settings));
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                checked = self.0.recv() => match checked {
                    Some(checked) => begin(checked, &prober),
                    None => return,
                },
                _ = sweep.tick() => prober.pools.sweep(Instant::now()),
            }
        }
    }
}

fn begin(checked: Checked, prober: &Rc<Prober>) {
    let Checked { upstream, changes, plan } = checked;
    let Some(name) = upstream.upgrade().map(|upstream| upstream.name.clone()) else { return };
    // Checks take no connection from requests, and are not refused for want of one.
    let policy = Policy {
        connect_timeout: plan.schedule.timeout,
        max_connections: usize::MAX,
        max_pending_requests: usize::MAX,
        ..Policy::default()
    };
    let apart = Arc::new(Upstream::new(name, policy, false));
    let prober = prober.clone();
    spawn_local(follow(upstream, changes, move |endpoint, is_one_of_many| {
        let (prober, plan) = (prober.clone(), plan.clone());
        let target = Target::new(&apart, &endpoint, plan.port);
        async move {
            let latest = if is_one_of_many { plan.schedule.spread() } else { Duration::ZERO };
            tokio::time::sleep(latest.mul_f64(rand::rng().random())).await;
            let ask = async || prober.ask(&target, &plan.question).await;
            let checked = schedule::Checked {
                upstream: &target.upstream.name,
                endpoint: &endpoint,
                what: plan.question.name(),
                metrics: prober.metrics(),
            };
            keep_checked(&checked, &plan.schedule, ask).await;
        }
    }));
}

/// Has one task for each endpoint that the upstream has, until it is gone. `check` makes it, and is told whether the
/// endpoint comes with many others.
async fn follow<F: Future<Output = ()> + 'static>(
    upstream: Weak<Upstream>,
    mut changes: watch::Receiver<()>,
    mut check: impl FnMut(Arc<Endpoint>, bool) -> F,
) {
    let mut tasks: HashMap<EndpointId, Task> = HashMap::new();
    loop {
        changes.mark_unchanged();
        let Some(set) = upstream.upgrade().map(|upstream| upstream.set().clone()) else { return };
        let present: HashMap<EndpointId, &Arc<Endpoint>> = set
            .endpoints()
            .filter(|endpoint| !endpoint.is_gone())
            .map(|endpoint| (endpoint.id, endpoint))
            .collect();
        tasks.retain(|id, _| present.contains_key(id));
        let is_many = present.len() - tasks.len() > AT_ONCE;
        for (id, endpoint) in present {
            tasks.entry(id).or_insert_with(|| Task(spawn_local(check(endpoint.clone(), is_many))));
        }
        drop(set);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// A task that ends when this is dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests;
