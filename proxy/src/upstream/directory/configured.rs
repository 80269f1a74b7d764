//! What the config in force says about destinations, ready to be looked up.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use outrigger_ca::host::normal;

use crate::config::{self, Config};
use crate::upstream::SecurityRules;

/// What the config in force says about destinations.
#[derive(Debug)]
pub(super) struct Configured {
    pub(super) config: Arc<Config>,
    pub(super) rules: Arc<SecurityRules>,
    /// Upstream by host name.
    pub(super) hosts: HashMap<String, Arc<str>>,
    /// Upstreams of the routes of a host name.
    pub(super) routes: HashMap<String, Vec<Arc<str>>>,
    /// When its upstreams were made whose addresses don't depend on what is dialled.
    pub(super) made: OnceLock<Instant>,
}

impl Configured {
    pub(super) fn new(config: Arc<Config>, rules: Arc<SecurityRules>) -> Self {
        let mut hosts = HashMap::new();
        for (name, upstream) in &config.upstreams {
            for host in &upstream.hosts {
                hosts.insert(normal(host), Arc::from(name.as_str()));
            }
        }
        let mut routes: HashMap<String, Vec<Arc<str>>> = HashMap::new();
        for route in &config.routes {
            for host in route.matches.iter().filter_map(|m| m.host.as_deref()) {
                let upstreams = routes.entry(normal(host)).or_default();
                upstreams.extend(route.upstreams.iter().map(|upstream| Arc::from(upstream.name.as_str())));
            }
        }
        Self { config, rules, hosts, routes, made: OnceLock::new() }
    }

    pub(super) fn upstream(&self, name: &str) -> Option<&config::Upstream> {
        self.config.upstreams.get(name)
    }

    /// Whether an upstream is made as by the config before.
    pub(super) fn has_same_upstream(&self, before: &Self, name: &str) -> bool {
        let upstream = self.upstream(name);
        upstream == before.upstream(name)
            && (self.config.zone == before.config.zone || upstream.is_none_or(|own| !own.prefer_zone))
    }
}
