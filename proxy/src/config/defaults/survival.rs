//! What keeps callers from being let down, where the config says nothing.

use std::time::Duration;

use crate::config::model::{Outlier, SuccessRate};

/// Failures in a row that eject an endpoint: the design's, and Envoy's `consecutive_5xx`.
pub const EJECTED_AFTER: u32 = 5;
/// Failed connects in a row that do. One may be a full accept queue; two are not chance.
pub const EJECTED_AFTER_CONNECT_FAILURES: u32 = 2;
/// Time out, multiplied by the number of ejections: the design's, and Envoy's `base_ejection_time`.
pub const EJECTION: Duration = Duration::from_secs(30);
/// The longest time out: Envoy's `max_ejection_time`.
pub const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Share of the endpoints that may be out at once: the design's.
pub const MAX_EJECTED_PERCENT: u8 = 50;
/// Share of healthy endpoints below which health is ignored: the design's, and Envoy's `healthy_panic_threshold`.
pub const PANIC_BELOW_PERCENT: u8 = 50;
/// Time over which success rates are taken: Envoy's `interval`.
pub const SUCCESS_RATE_INTERVAL: Duration = Duration::from_secs(10);
/// Requests an endpoint must have had within it: Envoy's `success_rate_request_volume`.
pub const SUCCESS_RATE_MINIMUM_REQUESTS: u32 = 100;
/// Endpoints that must have had them: with two, each is as far from the mean as the other. Envoy asks for 5, which few
/// services have.
pub const SUCCESS_RATE_MINIMUM_ENDPOINTS: u32 = 3;
/// Standard deviations below the mean, in tenths: Envoy's `success_rate_stdev_factor`.
pub const SUCCESS_RATE_DEVIATIONS_TENTHS: u32 = 19;

impl Outlier {
    /// Whether endpoints are ejected.
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    /// Failures in a row that eject an endpoint.
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures.unwrap_or(EJECTED_AFTER)
    }

    /// Failed connects in a row that eject an endpoint.
    pub fn connect_failures(&self) -> u32 {
        self.connect_failures.unwrap_or(EJECTED_AFTER_CONNECT_FAILURES)
    }

    /// Time out, multiplied by the number of ejections.
    pub fn ejection(&self) -> Duration {
        self.ejection.map_or(EJECTION, Into::into)
    }

    /// The longest time out.
    pub fn max_ejection(&self) -> Duration {
        self.max_ejection.map_or(MAX_EJECTION, Into::into)
    }

    /// Share of the endpoints that may be out at once, in percent.
    pub fn max_ejected_percent(&self) -> u8 {
        self.max_ejected_percent.unwrap_or(MAX_EJECTED_PERCENT)
    }

    /// Share of healthy endpoints, in percent, below which health is ignored.
    pub fn panic_below_percent(&self) -> u8 {
        self.panic_below_percent.unwrap_or(PANIC_BELOW_PERCENT)
    }
}

impl SuccessRate {
    /// Time over which rates are taken.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(SUCCESS_RATE_INTERVAL, Into::into)
    }

    /// Requests an endpoint must have had within it.
    pub fn minimum_requests(&self) -> u32 {
        self.minimum_requests.unwrap_or(SUCCESS_RATE_MINIMUM_REQUESTS)
    }

    /// Endpoints that must have had them.
    pub fn minimum_endpoints(&self) -> u32 {
        self.minimum_endpoints.unwrap_or(SUCCESS_RATE_MINIMUM_ENDPOINTS)
    }

    /// Standard deviations below the mean, in tenths.
    pub fn deviations_tenths(&self) -> u32 {
        self.deviations_tenths.unwrap_or(SUCCESS_RATE_DEVIATIONS_TENTHS)
    }
}
