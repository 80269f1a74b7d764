//! Passive ejection: an endpoint that fails what is sent to it gets nothing for a while.
//!
//! As Envoy's outlier detection, but decided when a request ends, without a timer.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::load::since_epoch;
use super::{Endpoint, EndpointState, Upstream};
use crate::config::SuccessRate;

/// How one try of a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// With a response that is no failure.
    Answered,
    /// Reset, lost, too late, or with 502, 503 or 504.
    Failed,
    /// Without a connection.
    ConnectFailed,
    /// The caller left, its own deadline passed, or the peer said that it did not process it: counts as nothing.
    Abandoned,
}

/// What requests met at one endpoint.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// In a row.
    failures: AtomicU32,
    /// In a row.
    connect_failures: AtomicU32,
    /// Within the interval of the success rate.
    requests: AtomicU32,
    /// Of those.
    successes: AtomicU32,
    /// Ejections that are not forgotten yet.
    ejections: AtomicU32,
}

/// What the endpoints of an upstream have in common.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    /// So that two workers don't eject one endpoint too many.
    deciding: Mutex<()>,
    /// Nanoseconds after the epoch at which success rates are taken next.
    rates_due: AtomicU64,
}

impl Record {
    fn answered(&self) {
        // Written only where it changes: the cache line belongs to all workers.
        for failures in [&self.failures, &self.connect_failures] {
            if failures.load(Relaxed) != 0 {
                failures.store(0, Relaxed);
            }
        }
    }

    /// Requests and successes since the last time.
    fn take(&self) -> (u32, u32) {
        let requests = self.requests.swap(0, Relaxed);
        (requests, self.successes.swap(0, Relaxed).min(requests))
    }
}

impl Upstream {
    /// Takes in how a try ended. The latency is no matter of this: [`InFlight`](super::InFlight) sees to it.
    pub fn attempt_ended(&self, endpoint: &Arc<Endpoint>, attempt: Attempt, now: Instant) {
        let policy = &self.policy.outlier;
        if attempt == Attempt::Abandoned || !policy.enabled() {
            return;
        }
        let record = &endpoint.standing.record;
        if let Some(rate) = &policy.success_rate {
            record.requests.fetch_add(1, Relaxed);
            if attempt == Attempt::Answered {
                record.successes.fetch_add(1, Relaxed);
            }
            self.compare_success_rates(rate, now);
        }
        // What ends while it is out was mostly sent before, and proves nothing.
        if endpoint.standing.is_ejected(since_epoch(now)) {
            return;
        }
        match attempt {
            Attempt::Answered | Attempt::Abandoned => {
                record.answered();
                endpoint.standing.recovered();
            }
            Attempt::Failed | Attempt::ConnectFailed => {
                let failures = record.failures.fetch_add(1, Relaxed) + 1;
                let connect_failures = match attempt {
                    Attempt::ConnectFailed => record.connect_failures.fetch_add(1, Relaxed) + 1,
                    _ => {
                        record.connect_failures.store(0, Relaxed);
                        0
                    }
                };
                // Of more failures only each so-manieth asks again: it may be that no more may be ejected.
                if reaches(connect_failures, policy.connect_failures()) {
                    self.eject(endpoint, &format!("{connect_failures} failed connects in a row"), now);
                } else if reaches(failures, policy.consecutive_failures()) {
                    self.eject(endpoint, &format!("{failures} failures in a row"), now);
                }
            }
        }
    }

    /// Puts `endpoint` out, if one more may be.
    fn eject(&self, endpoint: &Endpoint, why: &str, now: Instant) {
        let policy = &self.policy.outlier;
        let at = since_epoch(now);
        let standing = &endpoint.standing;
        let _deciding = self.ejections.deciding.lock().unwrap_or_else(PoisonError::into_inner);
        let set = self.set();
        let out = set.members.iter().filter(|member| member.endpoint.standing.is_ejected(at)).count();
        if standing.is_ejected(at) {
            return;
        }
        let base = policy.ejection();
        if out >= most_ejected(set.members.len(), policy.max_ejected_percent()) {
            return standing.spare(since_epoch(now + base), why.into(), now);
        }
        let record = &standing.record;
        // One is forgotten for each such time that it was in.
        let was_in = Duration::from_nanos(at.saturating_sub(standing.ejected_until()));
        let forgotten = was_in.as_nanos().checked_div(base.as_nanos()).unwrap_or(u128::MAX);
        let known = record.ejections.load(Relaxed);
        let times = known.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX)) + 1;
        record.ejections.store(times, Relaxed);
        let time = base.saturating_mul(times).min(policy.max_ejection().max(base));
        // It comes back on probation: its next failure puts it out again, a success clears it.
        record.failures.store(policy.consecutive_failures().saturating_sub(1), Relaxed);
        record.connect_failures.store(policy.connect_failures().saturating_sub(1), Relaxed);
        record.take();
        tracing::info!("{} of upstream {} is out for {time:?}: {why}", endpoint.address, self.name);
        standing.eject(since_epoch(now + time), format!("{why} (ejection {times})").into(), now);
    }

    /// Once an interval: ejects the endpoints whose success rate lies far below the mean of all.
    fn compare_success_rates(&self, rate: &SuccessRate, now: Instant) {
        let due = self.ejections.rates_due.load(Relaxed);
        if since_epoch(now) < due {
            return;
        }
        let next = since_epoch(now + rate.interval());
        if self.ejections.rates_due.compare_exchange(due, next, Relaxed, Relaxed).is_err() || due == 0 {
            return;
        }
        let set = self.set();
        let mut rates: Vec<(f64, &Endpoint)> = Vec::new();
        for member in &set.members {
            let (requests, successes) = member.endpoint.standing.record.take();
            if requests >= rate.minimum_requests().max(1)
                && member.endpoint.standing.state(now) != EndpointState::Ejected
            {
                rates.push((f64::from(successes) / f64::from(requests), &member.endpoint));
            }
        }
        if rates.len() < rate.minimum_endpoints() as usize {
            return;
        }
        let Some(threshold) = ejection_threshold(&rates, f64::from(rate.deviations_tenths()) / 10.0) else {
            return;
        };
        rates.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        for (its, endpoint) in rates.into_iter().take_while(|(its, _)| *its < threshold) {
            let why =
                format!("success rate {:.1} %, below {:.1} % by the others'", its * 100.0, threshold * 100.0);
            self.eject(endpoint, &why, now);
        }
    }
}

/// Whether `count` is a multiple of `limit`.
fn reaches(count: u32, limit: u32) -> bool {
    count > 0 && count.is_multiple_of(limit.max(1))
}

/// How many of `members` may be out at once; of several one always may.
fn most_ejected(members: usize, percent: u8) -> usize {
    let share = members * usize::from(percent) / 100;
    if members > 1 { share.max(1) } else { share }
}

/// The mean less so many standard deviations, as Envoy's success rate detection has it.
fn ejection_threshold(rates: &[(f64, &Endpoint)], deviations: f64) -> Option<f64> {
    if rates.is_empty() {
        return None;
    }
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(rate, _)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(rate, _)| (rate - mean).powi(2)).sum::<f64>() / count;
    Some(mean - deviations * variance.sqrt())
}

#[cfg(test)]
mod tests;
