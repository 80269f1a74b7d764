//! `/connections`: who hangs on this proxy, and on whom it hangs.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::{Value, json};

use super::upstreams::{describe, seconds};
use super::workload_ports;
use crate::telemetry::{ConnectionSeen, Direction};
use crate::upstream::Upstream;
use crate::worker::Shared;

/// Connections that are listed one by one, and groups of them.
const MOST_LISTED: usize = 200;

pub(super) fn all(shared: &Shared) -> Value {
    let now = Instant::now();
    let open = |direction| shared.metrics.connections_open.of(direction).get();
    let mut connections = shared.connections.all();
    connections.sort_by_key(|connection| connection.opened);
    let mut groups: BTreeMap<_, usize> = BTreeMap::new();
    for connection in &connections {
        *groups.entry(Group::of(connection)).or_default() += 1;
    }
    let mut groups: Vec<(Group<'_>, usize)> = groups.into_iter().collect();
    groups.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let not_listed = connections.len().saturating_sub(MOST_LISTED);
    let groups_not_listed = groups.len().saturating_sub(MOST_LISTED);
    let groups = groups.iter().take(MOST_LISTED).map(|(group, count)| {
        json!({
            "direction": group.direction,
            "upstream": group.upstream,
            "tls": group.tls,
            "peer": group.peer,
            "connections": count,
        })
    });
    let listed = connections.iter().take(MOST_LISTED).map(|connection| {
        json!({
            "direction": connection.direction.as_str(),
            "client": connection.client,
            "destination": connection.destination,
            "upstream": connection.upstream.as_deref(),
            "speaks": connection.speaks,
            "tls": connection.tls.as_str(),
            "peer": connection.peer.as_ref().map(|peer| peer.as_str()),
            "openForSeconds": seconds(now.saturating_duration_since(connection.opened)),
        })
    });
    let named = shared.directory.upstreams();
    let named = named.values().map(|(upstream, _)| &**upstream).filter_map(to_upstream);
    let workload = workload_ports(shared, now);
    let workload = workload.iter().filter_map(|upstream| to_upstream(upstream));
    json!({
        "inbound": open(Direction::Inbound),
        "outbound": open(Direction::Outbound),
        "fromClients": groups.collect::<Vec<_>>(),
        "fromClientsNotListed": groups_not_listed,
        "toUpstreams": named.chain(workload).collect::<serde_json::Map<_, _>>(),
        "oldest": listed.collect::<Vec<_>>(),
        "notListed": not_listed,
    })
}

/// What connections of clients are told apart by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group<'a> {
    direction: &'static str,
    upstream: Option<&'a str>,
    tls: &'static str,
    peer: Option<&'a str>,
}

impl<'a> Group<'a> {
    fn of(connection: &'a ConnectionSeen) -> Self {
        Self {
            direction: connection.direction.as_str(),
            upstream: connection.upstream.as_deref(),
            tls: connection.tls.as_str(),
            peer: connection.peer.as_ref().map(|peer| peer.as_str()),
        }
    }
}

/// The connections of the pools, if there are any.
fn to_upstream(upstream: &Upstream) -> Option<(String, Value)> {
    let (connections, waiting) = (upstream.open_connections(), upstream.pending_requests());
    if connections + waiting == 0 {
        return None;
    }
    let mut secured: Vec<String> =
        upstream.set().endpoints().map(|endpoint| describe(&endpoint.security)).collect();
    secured.sort_unstable();
    secured.dedup();
    let value = json!({ "connections": connections, "waiting": waiting, "security": secured.join("; ") });
    Some((upstream.name.to_string(), value))
}
