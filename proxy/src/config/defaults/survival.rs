//! Defaults of health checks, ejection, breakers, retries, fallbacks and limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::config::model::{
    Backoff, Breaker, CacheFallback, FailureRate, HealthCheck, HttpCheck, Outlier, Retry, SuccessRate,
};
use crate::config::syntax::{RetryCondition, statuses};

/// Time between two checks of an endpoint: as Kubernetes' probes.
pub const HEALTH_INTERVAL: Duration = Duration::from_secs(10);
/// Share of [`HEALTH_INTERVAL`] by which checks are spread, in percent: enough that those of many proxies, started at
/// once, part within a few rounds.
pub const HEALTH_JITTER_PERCENT: u8 = 10;
/// Time a check may take: as Kubernetes' probes.
pub const HEALTH_TIMEOUT: Duration = Duration::from_secs(1);
/// Failed checks in a row that take an endpoint out: HAProxy's `fall`, and as Kubernetes' probes.
pub const UNHEALTHY_AFTER: u32 = 3;
/// Good checks in a row that bring it back: HAProxy's `rise`.
pub const HEALTHY_AFTER: u32 = 2;
/// Statuses that a check takes for healthy.
pub const HEALTHY_STATUSES: RangeInclusive<u16> = 200..=299;

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
/// Endpoints that must have had them: Envoy's `success_rate_minimum_hosts`. Of n rates none is further than √(n−1)
/// deviations from their mean, so that the default factor needs five.
pub const SUCCESS_RATE_MINIMUM_ENDPOINTS: u32 = 5;
/// Standard deviations below the mean, in tenths: Envoy's `success_rate_stdev_factor`.
pub const SUCCESS_RATE_DEVIATIONS_TENTHS: u32 = 19;

/// Failures in a row that open a breaker: the design's.
pub const BREAKER_FAILURES: u32 = 5;
/// Time within which they must happen: the design's.
pub const BREAKER_WINDOW: Duration = Duration::from_secs(30);
/// Time a breaker stays open the first time: the design's.
pub const BREAKER_OPEN_FOR: Duration = Duration::from_secs(10);
/// The longest time it stays open: the design's.
pub const BREAKER_MAX_OPEN_FOR: Duration = Duration::from_secs(60);
/// Requests that probe a half-open breaker at once: the design's.
pub const BREAKER_PROBES: u32 = 1;
/// Requests below which a failure rate says nothing: Hystrix' `requestVolumeThreshold`.
pub const FAILURE_RATE_MINIMUM_REQUESTS: u32 = 20;

/// Tries after the first: the design's.
pub const RETRY_ATTEMPTS: u32 = 2;
/// Retries that a config may ask for: more multiply an outage.
pub const MAX_RETRY_ATTEMPTS: u32 = 3;
/// What is tried again: the design's row "retried".
pub const RETRY_ON: [RetryCondition; 7] = [
    RetryCondition::ConnectFailure,
    RetryCondition::RefusedStream,
    RetryCondition::Reset,
    RetryCondition::Status(502),
    RetryCondition::Status(503),
    RetryCondition::Status(504),
    RetryCondition::Grpc(14),
];
/// The longest pause before the first retry: the design's, and Envoy's `base_interval`.
pub const BACKOFF_BASE: Duration = Duration::from_millis(25);
/// The longest pause before any retry: the design's, and ten times the base, as Envoy's `max_interval`.
pub const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Longest `Retry-After` that is waited for: the header's smallest unit.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Retries in percent of the recent requests: the design's, and linkerd's `retryRatio`.
pub const RETRY_BUDGET_PERCENT: u8 = 20;
/// Retries a second that the budget allows at least: the design's, and Envoy's `min_retry_concurrency`.
pub const MIN_RETRIES_PER_SECOND: u32 = 3;
/// The largest floor under a retry budget: what is more than a share of anything is no budget.
pub const MAX_MIN_RETRIES_PER_SECOND: u32 = 1000;

/// How old a response of the fallback cache may be.
pub const CACHE_MAX_AGE: Duration = Duration::from_secs(60);
/// Memory that the responses of an upstream may take.
pub const CACHE_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The least an adaptive concurrency limit goes down to: below it one slow request would turn others away.
pub const MIN_ADAPTIVE_CONCURRENCY: u32 = 10;

impl HealthCheck {
    /// Time between checks.
    pub fn interval(&self) -> Duration {
        self.interval.map_or(HEALTH_INTERVAL, Into::into)
    }

    /// Share of the interval by which checks are spread, in percent.
    pub fn jitter_percent(&self) -> u8 {
        self.jitter_percent.unwrap_or(HEALTH_JITTER_PERCENT)
    }

    /// Time a check may take.
    pub fn timeout(&self) -> Duration {
        self.timeout.map_or(HEALTH_TIMEOUT, Into::into)
    }

    /// Failures in a row after which an endpoint is out.
    pub fn unhealthy_after(&self) -> u32 {
        self.unhealthy_after.unwrap_or(UNHEALTHY_AFTER)
    }

    /// Successes in a row after which it is in again.
    pub fn healthy_after(&self) -> u32 {
        self.healthy_after.unwrap_or(HEALTHY_AFTER)
    }
}

impl HttpCheck {
    /// Statuses that are healthy.
    pub fn expected(&self) -> Vec<RangeInclusive<u16>> {
        match self.expected.as_slice() {
            [] => vec![HEALTHY_STATUSES],
            stated => stated.iter().filter_map(|text| statuses(text)).collect(),
        }
    }
}

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

impl Breaker {
    /// Whether there is one.
    pub fn enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }

    /// Failures in a row that open it.
    pub fn consecutive_failures(&self) -> u32 {
        self.consecutive_failures.unwrap_or(BREAKER_FAILURES)
    }

    /// Time within which they must happen, and over which the failure rate is taken.
    pub fn window(&self) -> Duration {
        self.window.map_or(BREAKER_WINDOW, Into::into)
    }

    /// Time it stays open the first time.
    pub fn open_for(&self) -> Duration {
        self.open_for.map_or(BREAKER_OPEN_FOR, Into::into)
    }

    /// The longest time it stays open.
    pub fn max_open_for(&self) -> Duration {
        self.max_open_for.map_or(BREAKER_MAX_OPEN_FOR, Into::into)
    }

    /// Requests that are let through at once to probe it half-open.
    pub fn probes(&self) -> u32 {
        self.probes.unwrap_or(BREAKER_PROBES)
    }
}

impl FailureRate {
    /// Requests there must have been within the window.
    pub fn minimum_requests(&self) -> u32 {
        self.minimum_requests.unwrap_or(FAILURE_RATE_MINIMUM_REQUESTS)
    }
}

impl CacheFallback {
    /// How old a response may be.
    pub fn max_age(&self) -> Duration {
        self.max_age.map_or(CACHE_MAX_AGE, Into::into)
    }

    /// Memory that the responses of an upstream may take, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes.map_or(CACHE_MAX_BYTES, |size| size.bytes())
    }
}

impl Retry {
    /// Tries after the first.
    pub fn attempts(&self) -> u32 {
        self.attempts.unwrap_or(RETRY_ATTEMPTS)
    }

    /// What is tried again.
    pub fn on(&self) -> Vec<RetryCondition> {
        match &self.on {
            None => RETRY_ON.into(),
            Some(stated) => stated.iter().filter_map(|text| RetryCondition::parse(text)).collect(),
        }
    }

    /// Time one try may take.
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.per_try_timeout.map(Into::into)
    }

    /// Longest `Retry-After` that is waited for.
    pub fn max_retry_after(&self) -> Duration {
        self.max_retry_after.map_or(MAX_RETRY_AFTER, Into::into)
    }

    /// Retries in percent of the recent requests.
    pub fn budget_percent(&self) -> u8 {
        self.budget_percent.unwrap_or(RETRY_BUDGET_PERCENT)
    }

    /// Retries a second that the budget allows at least.
    pub fn min_retries_per_second(&self) -> u32 {
        self.min_retries_per_second.unwrap_or(MIN_RETRIES_PER_SECOND)
    }
}

impl Backoff {
    /// The limit of the pause before the first retry.
    pub fn base(&self) -> Duration {
        self.base.map_or(BACKOFF_BASE, Into::into)
    }

    /// The largest limit.
    pub fn max(&self) -> Duration {
        self.max.map_or(BACKOFF_MAX, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stated_wins_over_the_defaults() {
        let retry = Retry::default();
        assert_eq!((retry.attempts(), retry.on()), (2, RETRY_ON.to_vec()));
        let on = Some(vec!["timeout".into(), "ABORTED".into()]);
        let retry = Retry { attempts: Some(0), on, ..Retry::default() };
        assert_eq!(
            (retry.attempts(), retry.on()),
            (0, vec![RetryCondition::Timeout, RetryCondition::Grpc(10)])
        );
        assert_eq!(Retry { on: Some(Vec::new()), ..Retry::default() }.on(), []);
        let check = |expected: &[&str]| {
            HttpCheck {
                path: "/".into(),
                host: None,
                expected: expected.iter().map(|e| (*e).into()).collect(),
            }
            .expected()
        };
        assert_eq!(check(&[]), [200..=299]);
        assert_eq!(check(&["204", "300-399"]), [204..=204, 300..=399]);
    }

    #[test]
    fn the_defaults_are_those_of_the_design() {
        let breaker = Breaker::default();
        assert!(breaker.enabled() && Outlier::default().enabled());
        assert_eq!((breaker.consecutive_failures(), breaker.window().as_secs()), (5, 30));
        assert_eq!((breaker.open_for().as_secs(), breaker.max_open_for().as_secs()), (10, 60));
        let retry = Retry::default();
        assert_eq!((retry.budget_percent(), retry.min_retries_per_second()), (20, 3));
        assert_eq!((retry.backoff.base().as_millis(), retry.backoff.max().as_millis()), (25, 250));
        let outlier = Outlier::default();
        assert_eq!((outlier.consecutive_failures(), outlier.ejection().as_secs()), (5, 30));
        assert_eq!((outlier.max_ejected_percent(), outlier.panic_below_percent()), (50, 50));
    }
}
