//! Defaults of routes.

use std::time::Duration;

use crate::config::model::{Abort, Delay, Mirror, Redirect, Route};

/// Status of a redirect: the Gateway API's.
pub const REDIRECT_STATUS: u16 = 302;
/// Share of the requests that are copied, delayed or aborted.
pub const ALL_PERCENT: f64 = 100.0;

impl Route {
    /// Time from the end of the request to the response's headers; `None` leaves it to the upstream.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout.map(Into::into)
    }
}

impl Redirect {
    /// The response's status.
    pub fn status(&self) -> u16 {
        self.status.unwrap_or(REDIRECT_STATUS)
    }
}

impl Mirror {
    /// Share of the requests, in percent.
    pub fn percent(&self) -> f64 {
        self.percent.unwrap_or(ALL_PERCENT)
    }
}

impl Delay {
    /// Share of the requests, in percent.
    pub fn percent(&self) -> f64 {
        self.percent.unwrap_or(ALL_PERCENT)
    }
}

impl Abort {
    /// Share of the requests, in percent.
    pub fn percent(&self) -> f64 {
        self.percent.unwrap_or(ALL_PERCENT)
    }
}
