//! Defaults of upstreams, their pools and where their endpoints come from.

use std::time::Duration;

use crate::config::model::{ConsulDiscovery, Cookie, EurekaDiscovery, Pool, Upstream};

/// Limit for TCP connect and TLS handshake together: the design's.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a pooled connection may stay unused: less than the 60 s after which common servers close.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(55);
/// Connections to an upstream: the design's.
pub const MAX_CONNECTIONS: usize = 1024;
/// Requests that wait for a connection to an upstream: the design's.
pub const MAX_PENDING_REQUESTS: usize = 1024;
/// URL of Consul: an agent stands on every machine, at the port of its documentation.
pub const CONSUL_URL: &str = "http://127.0.0.1:8500";
/// Time between two fetches from Eureka: its own client's `registryFetchIntervalSeconds`.
pub const EUREKA_INTERVAL: Duration = Duration::from_secs(30);
/// The path that a cookie is sent for: the whole site.
pub const COOKIE_PATH: &str = "/";

impl Upstream {
    /// Limit for TCP connect and TLS handshake together.
    pub fn connect_timeout(&self) -> Duration {
        self.connect_timeout.map_or(CONNECT_TIMEOUT, Into::into)
    }

    /// From the end of the request to the response's headers, all tries together; `None` for ever.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.map(Into::into)
    }

    /// How long a body or an opaque connection may stand still; `None` for ever.
    pub fn stream_idle_timeout(&self) -> Option<Duration> {
        self.stream_idle_timeout.map(Into::into)
    }

    /// Time over which the share of a new endpoint grows to its whole; `None` has it at once.
    pub fn slow_start(&self) -> Option<Duration> {
        self.slow_start.map(Into::into)
    }
}

impl Pool {
    /// Connections, all workers together.
    pub fn max_connections(&self) -> usize {
        self.max_connections.unwrap_or(MAX_CONNECTIONS)
    }

    /// Requests that wait for a connection.
    pub fn max_pending_requests(&self) -> usize {
        self.max_pending_requests.unwrap_or(MAX_PENDING_REQUESTS)
    }

    /// Requests under way at once, all workers together.
    pub fn max_requests(&self) -> usize {
        self.max_requests.unwrap_or(usize::MAX)
    }

    /// Requests after which a connection is replaced.
    pub fn max_requests_per_connection(&self) -> u64 {
        self.max_requests_per_connection.unwrap_or(u64::MAX)
    }

    /// Age at which a connection is replaced; `None` leaves it to the peer's certificate.
    pub fn max_connection_age(&self) -> Option<Duration> {
        self.max_connection_age.map(Into::into)
    }

    /// How long a connection may stay unused.
    pub fn idle_timeout(&self) -> Duration {
        self.idle_timeout.map_or(IDLE_TIMEOUT, Into::into)
    }
}

impl ConsulDiscovery {
    /// URL of an agent or server.
    pub fn url(&self) -> &str {
        self.url.as_deref().unwrap_or(CONSUL_URL)
    }
}

impl EurekaDiscovery {
    /// Time between two fetches of what has changed.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(EUREKA_INTERVAL, Into::into)
    }
}

impl Cookie {
    /// How long the client keeps it; `None` until it ends.
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl.map(Into::into)
    }

    /// The path it is sent for.
    pub fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(COOKIE_PATH)
    }
}
