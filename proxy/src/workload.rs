//! The workload's own ports as upstreams of one endpoint each, for the inbound side of all workers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::ServerName;

use crate::config::{self, Inbound};
use crate::upstream::{ConcurrencyLimit, Endpoint, EndpointSet, Member, Policy, Security, Upstream};

/// Ports that are kept; a full map is emptied.
const MAX_PORTS: usize = 4096;
/// Limit for connecting to the workload. Only a full accept queue keeps it silent, and the kernel knocks again
/// after 1 s and 3 s: a burst then waits as it would without a sidecar.
const CONNECT: Duration = Duration::from_secs(5);

/// A port of the workload: an upstream with one endpoint.
pub type WorkloadPort = (Arc<Upstream>, Arc<Endpoint>);

/// The ports of the workload, with the policy that the config has for them.
#[derive(Debug)]
pub struct Workload {
    policy: Policy,
    connect_retry: Duration,
    /// One for all ports.
    concurrency: Option<Arc<ConcurrencyLimit>>,
    ports: Mutex<HashMap<SocketAddr, WorkloadPort>>,
}

impl Workload {
    /// No port yet.
    pub fn new(inbound: &Inbound) -> Self {
        // It had no limits and nobody was ejected without a sidecar.
        let policy = Policy {
            connect_timeout: CONNECT,
            max_connections: usize::MAX,
            max_pending_requests: usize::MAX,
            outlier: config::Outlier { enabled: Some(false), ..Default::default() },
            breaker: inbound
                .breaker
                .clone()
                .unwrap_or(config::Breaker { enabled: Some(false), ..Default::default() }),
            concurrency: inbound.concurrency.clone(),
            ..Policy::default()
        };
        Self {
            concurrency: policy.concurrency.as_ref().map(ConcurrencyLimit::new),
            connect_retry: inbound.connect_retry(),
            policy,
            ports: Mutex::default(),
        }
    }

    /// Whether a change of the config leaves it as it is.
    pub fn is_of(&self, inbound: &Inbound) -> bool {
        let other = Self::new(inbound);
        self.policy == other.policy && self.connect_retry == other.connect_retry
    }

    /// How long a connection that it refuses is tried again.
    pub fn connect_retry(&self) -> Duration {
        self.connect_retry
    }

    /// The port at `address`.
    pub fn port(&self, address: SocketAddr) -> WorkloadPort {
        // Nothing panics while holding it; a poisoned map is still a whole one.
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if ports.len() >= MAX_PORTS {
            ports.clear();
        }
        ports.entry(address).or_insert_with(|| self.make(address)).clone()
    }

    /// The ports that were asked for, for the admin port and gauges.
    pub fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.values().map(|(upstream, _)| upstream.clone()).collect()
    }

    fn make(&self, address: SocketAddr) -> WorkloadPort {
        let mut upstream = Upstream::new(format!("workload:{}", address.port()), self.policy.clone(), false);
        upstream.concurrency.clone_from(&self.concurrency);
        let endpoint =
            Endpoint::new(address, false, Security::Plain, ServerName::IpAddress(address.ip().into()));
        upstream.update(EndpointSet {
            members: vec![Member::new(endpoint.clone())],
            source: "workload",
            ..EndpointSet::default()
        });
        (Arc::new(upstream), endpoint)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn all_ports_share_one_limit_and_a_change_of_other_fields_leaves_them_alone() {
        let concurrency = Some(config::Concurrency { limit: Some(1), adaptive: None });
        let inbound = Inbound { concurrency, ..Inbound::default() };
        let workload = Workload::new(&inbound);
        let [(one, _), (other, _)] = [80, 81].map(|port| workload.port(([10, 0, 0, 1], port).into()));
        let place = one.admit(Instant::now()).unwrap();
        assert!(other.admit(Instant::now()).is_err());
        drop(place);
        assert!(other.admit(Instant::now()).is_ok());
        assert!(workload.is_of(&Inbound { opaque_ports: vec![9], ..inbound.clone() }));
        assert!(!workload.is_of(&Inbound { concurrency: None, ..inbound }));
    }
}
