//! How many requests an upstream may have under way at once. One more is turned away at once: a queue would only make
//! all of them late.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::{Full, Permit, Upstream};

/// What a caller is told to wait: the least that `Retry-After` can say. A place is free sooner, but not for all who were
/// turned away.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The place of one request among those under way, given back when dropped.
#[derive(Debug, Default)]
pub struct Admission {
    permit: Option<Permit>,
    _place: Option<Place>,
}

/// A place in the count of `pool.maxRequests`.
#[derive(Debug)]
struct Place(Arc<Upstream>);

/// All places are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{limit} requests are under way, which is its limit")]
pub struct TurnedAway {
    /// The limit now.
    pub limit: usize,
    /// After this time it may be worth to ask again.
    pub retry_after: Duration,
}

impl From<Full> for TurnedAway {
    fn from(full: Full) -> Self {
        Self { limit: full.limit as usize, retry_after: full.retry_after }
    }
}

impl Upstream {
    /// Takes a place for one request; without limits it costs nothing.
    ///
    /// # Errors
    ///
    /// All places are taken.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Admission, TurnedAway> {
        let permit = self.concurrency.as_ref().map(|limit| limit.try_enter(now)).transpose()?;
        let limit = self.policy.max_requests;
        if limit == usize::MAX {
            return Ok(Admission { permit, _place: None });
        }
        let enter = |under_way: usize| (under_way < limit).then_some(under_way + 1);
        match self.requests.fetch_update(Relaxed, Relaxed, enter) {
            Ok(_) => Ok(Admission { permit, _place: Some(Place(self.clone())) }),
            Err(_) => Err(TurnedAway { limit, retry_after: RETRY_AFTER }),
        }
    }
}

impl Admission {
    /// The response's headers are there, or the time for them is over: an adaptive limit learns from how long it took
    /// since the last of the request came, at `asked`.
    pub fn answered(&self, asked: Option<Instant>, now: Instant) {
        if let Some(permit) = &self.permit {
            permit.answered(asked, now);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Policy;
    use super::*;
    use crate::config;

    #[test]
    fn as_many_requests_are_under_way_as_both_limits_allow() {
        let now = Instant::now();
        let concurrency = |limit| Some(config::Concurrency { limit: Some(limit), adaptive: None });
        for (max_requests, concurrency, want) in
            [(2, None, 2), (usize::MAX, concurrency(3), 3), (2, concurrency(3), 2), (4, concurrency(3), 3)]
        {
            let policy = Policy { max_requests, concurrency, ..Policy::default() };
            let upstream = Arc::new(Upstream::new("api", policy, false));
            let places: Vec<_> = (0..want).map(|_| upstream.admit(now).unwrap()).collect();
            let refused = upstream.admit(now).unwrap_err();
            assert_eq!((refused.limit, refused.retry_after), (want, RETRY_AFTER));
            drop(places);
            assert!((0..want).all(|_| upstream.admit(now).is_ok()));
        }
    }
}
