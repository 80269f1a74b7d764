//! Defaults of retries and fallbacks.

use std::time::Duration;

use crate::config::model::{Backoff, CacheFallback, Retry};
use crate::config::syntax::RetryCondition;

/// Tries after the first: the design's.
pub const RETRY_ATTEMPTS: u32 = 2;
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

/// How old a response of the fallback cache may be.
pub const CACHE_MAX_AGE: Duration = Duration::from_secs(60);
/// Memory that the responses of an upstream may take.
pub const CACHE_MAX_BYTES: u64 = 16 * 1024 * 1024;

impl CacheFallback {
    /// How old a response may be.
    pub fn max_age(&self) -> Duration {
        self.max_age.map_or(CACHE_MAX_AGE, Into::into)
    }

    /// Memory that the responses of an upstream may take, in bytes.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes.map_or(CACHE_MAX_BYTES, crate::config::Size::bytes)
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
    }
}
