//! What an upstream's owner decided about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RetryPolicy;
use crate::config::{self, Balance, Outlier, Protocol};

/// What an upstream's owner decided about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Limit for TCP connect and TLS handshake, each.
    pub connect_timeout: Duration,
    /// Connections, all workers together.
    pub max_connections: usize,
    /// Requests that may wait for a connection.
    pub max_pending_requests: usize,
    /// Requests under way at once, all workers together.
    pub max_requests: usize,
    /// Requests after which a connection takes no more.
    pub max_requests_per_connection: u64,
    /// Age from which on a connection takes no more requests.
    pub max_connection_age: Option<Duration>,
    /// Time a connection may stay unused.
    pub idle_timeout: Duration,
    /// Time a body or an opaque connection may stand still.
    pub stream_idle_timeout: Option<Duration>,
    /// What is spoken with it.
    pub protocol: Protocol,
    /// From the end of the request to the response's headers, unless a route says otherwise.
    pub request_timeout: Option<Duration>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// The zone that is preferred, if any.
    pub zone: Option<Arc<str>>,
    /// Time over which the share of an endpoint grows that is new, or in again. Consistent hashing does not know it:
    /// it would move keys twice.
    pub slow_start: Option<Duration>,
    /// Ejection of failing endpoints, and panic mode.
    pub outlier: Outlier,
    /// There are active health checks: an endpoint is out until its first success.
    pub checks_health: bool,
    /// The circuit breaker.
    pub breaker: config::Breaker,
    /// Limit of the requests under way at once, beside [`Self::max_requests`].
    pub concurrency: Option<config::Concurrency>,
    /// When a request is tried again, unless a route says otherwise.
    pub retry: RetryPolicy,
    /// How many retries all requests together may make: `budgetPercent` and `minRetriesPerSecond` of it.
    pub retry_budget: config::Retry,
}

impl Policy {
    /// The policy of an upstream of the config; `zone` is the proxy's own.
    pub fn new(upstream: &config::Upstream, zone: Option<&str>) -> Self {
        let pool = &upstream.pool;
        Self {
            connect_timeout: upstream.connect_timeout(),
            max_connections: pool.max_connections(),
            max_pending_requests: pool.max_pending_requests(),
            max_requests: pool.max_requests(),
            max_requests_per_connection: pool.max_requests_per_connection(),
            max_connection_age: pool.max_connection_age(),
            idle_timeout: pool.idle_timeout(),
            stream_idle_timeout: upstream.stream_idle_timeout(),
            protocol: upstream.protocol,
            request_timeout: upstream.timeout(),
            balance: upstream.balance.clone(),
            zone: zone.filter(|_| upstream.prefer_zone).map(Into::into),
            slow_start: upstream.slow_start(),
            outlier: upstream.outlier.clone(),
            checks_health: upstream.health_check.is_some(),
            breaker: upstream.breaker.clone(),
            concurrency: upstream.concurrency.clone(),
            retry: RetryPolicy::new(&upstream.retry),
            retry_budget: upstream.retry.clone(),
        }
    }

    /// Whether a connection that was opened then and has carried that many requests takes one more.
    pub(super) fn keeps_connection(&self, opened: Instant, requests: u64, now: Instant) -> bool {
        requests < self.max_requests_per_connection
            && self.max_connection_age.is_none_or(|age| now.saturating_duration_since(opened) < age)
    }
}

impl Default for Policy {
    /// That of an upstream that nobody configured.
    fn default() -> Self {
        Self::new(&config::Upstream::default(), None)
    }
}
