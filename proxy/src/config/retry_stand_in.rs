//! Stands in for what the config's own rules bring under the same names (`RetryCondition`, the accessors
//! of `Retry`, `Backoff` and `CacheFallback`): to be deleted where both meet.

use std::time::Duration;

use super::model::{Backoff, CacheFallback, Retry};

/// One of the conditions on which a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryCondition {
    /// No connection came about.
    ConnectFailure,
    /// The peer said that it has not looked at the request.
    RefusedStream,
    /// The connection or stream ended before the response.
    Reset,
    /// One try took longer than `perTryTimeout`.
    Timeout,
    /// A response with this HTTP status.
    Status(u16),
    /// A response with this gRPC status.
    Grpc(u16),
}

impl RetryCondition {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "connectFailure" => Some(Self::ConnectFailure),
            "refusedStream" => Some(Self::RefusedStream),
            "reset" => Some(Self::Reset),
            "timeout" => Some(Self::Timeout),
            "UNAVAILABLE" => Some(Self::Grpc(14)),
            "ABORTED" => Some(Self::Grpc(10)),
            _ => text.parse().ok().map(Self::Status),
        }
    }
}

impl Retry {
    /// Tries after the first.
    pub fn attempts(&self) -> u32 {
        self.attempts.unwrap_or(2)
    }

    /// What is tried again.
    pub fn on(&self) -> Vec<RetryCondition> {
        match &self.on {
            None => ["connectFailure", "refusedStream", "reset", "502", "503", "504", "UNAVAILABLE"]
                .into_iter()
                .filter_map(RetryCondition::parse)
                .collect(),
            Some(stated) => stated.iter().filter_map(|text| RetryCondition::parse(text)).collect(),
        }
    }

    /// Time one try may take.
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.per_try_timeout.map(Into::into)
    }

    /// Longest `Retry-After` that is waited for.
    pub fn max_retry_after(&self) -> Duration {
        self.max_retry_after.map_or(Duration::from_secs(1), Into::into)
    }
}

impl Backoff {
    /// The limit of the pause before the first retry.
    pub fn base(&self) -> Duration {
        self.base.map_or(Duration::from_millis(25), Into::into)
    }

    /// The largest limit.
    pub fn max(&self) -> Duration {
        self.max.map_or(Duration::from_millis(250), Into::into)
    }
}

impl CacheFallback {
    /// How old a response may be.
    pub fn max_age(&self) -> Duration {
        self.max_age.map_or(Duration::from_secs(60), Into::into)
    }

    /// Memory that the responses of an upstream may take.
    pub fn max_bytes(&self) -> u64 {
        self.max_bytes.map_or(16 << 20, super::units::Size::bytes)
    }
}
