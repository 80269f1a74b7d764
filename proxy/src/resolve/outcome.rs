//! What one lookup came to, between those who ask and those who follow.

use std::time::Duration;

use super::answer::{Answer, LookupError};

/// Bounds of a positive answer's life (design, section 6).
const POSITIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Bounds of a negative answer's life: a service that has just been made is found soon.
const NEGATIVE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The life of a negative answer that states none (no SOA).
pub(super) const NEGATIVE_UNSTATED: Duration = Duration::from_secs(5);
/// The life of an answer that ordinary DNS gave while the mesh's discovery failed: discovery is asked again soon.
pub(super) const DEGRADED: Duration = Duration::from_secs(2);

/// One source's "no".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Miss {
    /// It does not exist, said by whoever must know.
    Absent { valid_for: Duration },
    /// The source could not say.
    Failed(String),
}

impl Miss {
    /// A definite "no" with the TTL of its SOA, if it had one.
    pub(super) fn absent(soa_ttl: Option<u32>) -> Self {
        let valid_for = soa_ttl.map_or(NEGATIVE_UNSTATED, |seconds| {
            Duration::from_secs(seconds.into()).clamp(NEGATIVE.0, NEGATIVE.1)
        });
        Self::Absent { valid_for }
    }
}

/// The life of a positive answer whose records have this TTL.
pub(super) fn positive_ttl(seconds: u32) -> Duration {
    Duration::from_secs(seconds.into()).clamp(POSITIVE.0, POSITIVE.1)
}

/// How long an answer holds that does not come from DNS: until it is told otherwise.
pub(super) fn longest() -> Duration {
    POSITIVE.1
}

/// What a whole lookup came to.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Outcome {
    Found(Answer),
    /// Ordinary DNS answered a name that the mesh's discovery should have answered and could not.
    Degraded(Answer, LookupError),
    Absent {
        error: LookupError,
        valid_for: Duration,
    },
    Failed(LookupError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_kept_within_its_bounds() {
        for (ttl, expected) in [(0, 1), (1, 1), (5, 5), (60, 60), (86_400, 60)] {
            assert_eq!(positive_ttl(ttl), Duration::from_secs(expected), "{ttl}");
        }
        for (ttl, expected) in [(None, 5), (Some(0), 1), (Some(10), 10), (Some(3600), 30)] {
            let valid_for = Duration::from_secs(expected);
            assert_eq!(Miss::absent(ttl), Miss::Absent { valid_for }, "{ttl:?}");
        }
    }
}
