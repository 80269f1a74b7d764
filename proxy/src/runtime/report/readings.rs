//! What the metrics say of upstreams at the moment when they are asked for.

use std::sync::Arc;
use std::time::Instant;

use crate::telemetry::{EndpointReading, UpstreamReading};
use crate::upstream::{Endpoint, Upstream};
use crate::worker::Shared;

/// Upstreams as they are now, for the metrics.
pub(in crate::runtime) fn readings(shared: &Shared) -> Vec<UpstreamReading> {
    let now = Instant::now();
    let named = shared.directory.upstreams();
    let named = named.iter().map(|(name, (upstream, snapshot))| {
        let states = upstream.states(now);
        UpstreamReading {
            name: name.clone(),
            discovery_age: snapshot.age(now),
            states: vec![
                ("healthy", states.healthy),
                ("ejected", states.ejected),
                ("unhealthy", states.unhealthy),
                ("draining", states.draining),
            ],
            ..reading(upstream, now)
        }
    });
    // The one endpoint of a port is never out, and nobody names it.
    let workload = shared.effective.load().workload.upstreams();
    named.chain(workload.iter().map(|upstream| reading(upstream, now))).collect()
}

fn reading(upstream: &Upstream, now: Instant) -> UpstreamReading {
    let endpoint = |endpoint: &Arc<Endpoint>| EndpointReading {
        address: endpoint.address,
        state: endpoint.standing.state(now).as_str(),
        in_flight: endpoint.in_flight(),
        latency: Some(endpoint.latency()).filter(|latency| !latency.is_zero()),
    };
    UpstreamReading {
        name: upstream.name.clone(),
        endpoints: upstream.set().endpoints().map(endpoint).collect(),
        connections: upstream.open_connections(),
        pending_requests: upstream.pending_requests(),
        opened: upstream.opened_connections(),
        closed: upstream.closed_connections().collect(),
        breaker_state: upstream.breaker.state(now).as_metric(),
        breaker_opened: upstream.breaker.transitions().opened,
        retries_left: upstream.retry_budget.left(now),
        ..UpstreamReading::default()
    }
}
