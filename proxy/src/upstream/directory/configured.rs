//! What the config in force says about destinations, ready to be looked up.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use outrigger_ca::host::normal;

use crate::config::{self, Config, HostPatterns};
use crate::upstream::SecurityRules;

/// What the config in force says about destinations.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) config: Arc<Config>,
    pub(super) rules: Arc<SecurityRules>,
    /// Upstream by host name.
    pub(super) hosts: HashMap<String, Arc<str>>,
    /// The routes of host names, and of all names below a domain.
    routed: HostPatterns<Routed>,
    /// When its upstreams were made whose addresses don't depend on what is dialled.
    pub(super) made: OnceLock<Instant>,
}

/// The routes of one pattern of host names.
#[derive(Debug)]
struct Routed {
    /// The pattern is a name, and not all below one.
    is_name: bool,
    /// Where they lead.
    upstreams: Vec<Arc<str>>,
}

impl Configured {
    pub(super) fn new(config: Arc<Config>, rules: Arc<SecurityRules>) -> Self {
        let mut hosts = HashMap::new();
        for (name, upstream) in &config.upstreams {
            for host in &upstream.hosts {
                hosts.insert(normal(host), Arc::from(name.as_str()));
            }
        }
        let mut routed: HostPatterns<Routed> = HostPatterns::default();
        for route in &config.routes {
            for host in route.matches.iter().filter_map(|m| m.host.as_deref()) {
                let is_name = !host.starts_with("*.");
                let of_host = routed.entry(Some(host), || Routed { is_name, upstreams: Vec::new() });
                of_host.upstreams.extend(route.upstreams.iter().map(|to| Arc::from(to.name.as_str())));
            }
        }
        Self { config, rules, hosts, routed, made: OnceLock::new() }
    }

    pub(super) fn upstream(&self, name: &str) -> Option<&config::Upstream> {
        self.config.upstreams.get(name)
    }

    /// Whether a route names this host itself.
    pub(super) fn is_routed_by_name(&self, host: &str) -> bool {
        self.routed.find_map(host, |routed| routed.is_name.then_some(())).is_some()
    }

    /// Whether there is a route that this host may go by.
    pub(super) fn is_routed(&self, host: &str) -> bool {
        self.routed.find_map(host, |_| Some(())).is_some()
    }

    /// The upstreams of all routes that this host may go by.
    pub(super) fn routed_to(&self, host: &str) -> Vec<&Arc<str>> {
        let mut upstreams = Vec::new();
        self.routed.find_map(host, |routed| {
            upstreams.extend(&routed.upstreams);
            None::<()>
        });
        upstreams
    }

    /// Whether an upstream is made as by the config before.
    pub(super) fn has_same_upstream(&self, before: &Self, name: &str) -> bool {
        let upstream = self.upstream(name);
        upstream == before.upstream(name)
            && (self.config.zone == before.config.zone || upstream.is_none_or(|own| !own.prefer_zone))
    }
}
