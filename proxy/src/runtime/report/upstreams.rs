//! `/upstreams`: which of its endpoints an upstream uses, and why not the others.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::workload_ports;
use crate::resolve::Snapshot;
use crate::upstream::{Described, Endpoint, EndpointState, Member, Security, Upstream};
use crate::worker::Shared;

/// All of them by name: those in use, and the workload's ports.
pub(super) fn all(shared: &Shared) -> Value {
    let now = Instant::now();
    let named = shared.directory.upstreams();
    let named = named
        .iter()
        .map(|(name, (upstream, snapshot))| (name.to_string(), one(upstream, Some(snapshot), now)));
    let workload = workload_ports(shared, now);
    let workload = workload.iter().map(|upstream| (upstream.name.to_string(), one(upstream, None, now)));
    named.chain(workload).collect::<serde_json::Map<_, _>>().into()
}

fn one(upstream: &Upstream, snapshot: Option<&Snapshot>, now: Instant) -> Value {
    let set = upstream.set();
    let shares = upstream.shares(None, now);
    let members = set.members.iter().map(|member| {
        let share = shares.get(&member.endpoint.id).copied().unwrap_or_default();
        let mut value = endpoint(&member.endpoint, now);
        let Explained { state, lasts, why } = explain(upstream, member, share, now);
        value["state"] = state.into();
        value["sinceSeconds"] = lasts.map(seconds).into();
        value["why"] = why.into();
        value["share"] = rounded(share).into();
        value["checkedSoForSeconds"] = member.endpoint.standing.health_for(now).map(seconds).into();
        value["weight"] = member.weight.into();
        value["priority"] = member.priority.into();
        value["zone"] = member.zone.as_deref().into();
        value["tags"] = json!(*member.tags);
        value
    });
    let leaving = upstream.leaving();
    let leaving = leaving.iter().map(|gone| {
        let mut value = endpoint(gone, now);
        value["state"] = "draining".into();
        value["sinceSeconds"] = gone.gone_for(now).map(seconds).into();
        value["why"] = "discovery names it no more: it finishes what it has, and gets nothing new".into();
        value["share"] = 0.0.into();
        value
    });
    let age = snapshot.and_then(|snapshot| snapshot.age(now)).map(seconds);
    let trouble = snapshot.and_then(Snapshot::trouble).map(ToString::to_string);
    let policy = &upstream.policy;
    json!({
        "endpoints": members.chain(leaving).collect::<Vec<_>>(),
        "vips": set.vips,
        "source": set.source,
        "ageSeconds": age,
        "lastError": trouble,
        "discovery": { "provider": set.source, "ageSeconds": age, "lastError": trouble },
        "breaker": upstream.breaker.describe(now),
        "retryBudget": upstream.retry_budget.describe(now),
        "concurrency": upstream.concurrency.as_ref().map(|limit| limit.describe()),
        "connections": upstream.open_connections(),
        "pendingRequests": upstream.pending_requests(),
        "pool": {
            "connections": upstream.open_connections(),
            "waiting": upstream.pending_requests(),
            "mostConnections": limit(policy.max_connections),
            "mostWaiting": limit(policy.max_pending_requests),
        },
    })
}

/// What holds of an endpoint whether it is of the set or leaves it.
fn endpoint(endpoint: &Endpoint, now: Instant) -> Value {
    json!({
        "address": endpoint.address,
        "standing": endpoint.standing.describe(now),
        "inFlight": endpoint.in_flight(),
        "latencyMs": rounded(endpoint.latency().as_secs_f64() * 1e3),
        "lastError": endpoint.last_error().map(|(what, when)| json!({
            "what": *what,
            "secondsAgo": seconds(now.saturating_duration_since(when)),
        })),
        "security": describe(&endpoint.security),
        "opaque": endpoint.opaque,
    })
}

/// Whether an endpoint gets requests, for how long it has been so, and why.
pub(super) struct Explained {
    pub(super) state: &'static str,
    pub(super) lasts: Option<Duration>,
    pub(super) why: String,
}

/// `share` is what it gets of the requests.
pub(super) fn explain(upstream: &Upstream, member: &Member, share: f64, now: Instant) -> Explained {
    let Described { state, lasts, why } = member.endpoint.standing.explain(now);
    let told = |state, why| Explained { state, lasts, why };
    match state {
        EndpointState::Ejected | EndpointState::Unhealthy if share > 0.0 => {
            let below = upstream.policy.outlier.panic_below_percent();
            told(
                "panic",
                format!("panic mode, less than {below} % are in: it gets requests all the same; {why}"),
            )
        }
        EndpointState::Ejected => told("ejected", why),
        EndpointState::Unhealthy => told("unhealthy", why),
        EndpointState::Healthy if member.weight == 0 => {
            told("healthy", format!("its weight is 0: it gets nothing; {why}"))
        }
        EndpointState::Healthy if share == 0.0 => {
            told("healthy", format!("it stands by: others can take all; {why}"))
        }
        EndpointState::Healthy => match upstream.slow_start_of(&member.endpoint, now) {
            Some(grown) => {
                told("slow start", format!("slow start, {:.0} % of its time are over; {why}", grown * 100.0))
            }
            None => told("healthy", why),
        },
    }
}

/// How connections to an endpoint are secured.
pub(super) fn describe(security: &Security) -> String {
    match security {
        Security::Plain => "plaintext".into(),
        Security::Mesh(expected) => format!("mesh TLS, expecting {expected}"),
        Security::Try(expected) => format!("mesh TLS if it has a sidecar, expecting {expected}"),
        Security::Server { .. } => "TLS to a server outside the mesh".into(),
        Security::Refused(reason) => format!("refused: {reason}"),
    }
}

/// To the millisecond.
pub(super) fn seconds(duration: Duration) -> f64 {
    duration.as_millis() as f64 / 1e3
}

/// To the thousandth.
pub(super) fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

/// `None` where there is none.
fn limit(limit: usize) -> Option<usize> {
    (limit != usize::MAX).then_some(limit)
}
