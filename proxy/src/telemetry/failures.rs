//! The last exchanges that failed, for whoever asks what goes wrong.
//!
//! Nothing of it stands in the way of what succeeds. Failures are written down under a lock that nobody waits for: one
//! that finds another at it is left out, and counted.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::SystemTime;

use super::access_log::line;
use super::recorder::{RequestRecord, TcpRecord};

/// How many are kept. Of an outage all look alike; of something that fails now and then these are hours.
const KEPT: usize = 100;
/// Status codes of gRPC that tell of the server or the way to it: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and
/// DATA_LOSS. The others are about what was asked for.
const FAILED_CALLS: [u16; 5] = [2, 4, 13, 14, 15];

/// The last exchanges that failed. Make one, share it in an `Arc`.
#[derive(Debug, Default)]
pub struct Failures {
    last: Mutex<VecDeque<String>>,
    missed: AtomicU64,
}

/// Whether a request failed: its status says so, or the proxy answered in place of what should have.
pub(super) fn has_failed(record: &RequestRecord<'_>) -> bool {
    record.code >= 500
        || record.proxy_status.is_some()
        || record.grpc_status.is_some_and(|status| FAILED_CALLS.contains(&status))
}

/// Whether an opaque connection failed: it was not carried, or was cut by a certificate's end.
pub(super) fn tcp_has_failed(record: &TcpRecord<'_>) -> bool {
    record.proxy_status.is_some() || record.reason == "certificate_expired"
}

impl Failures {
    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        if has_failed(record) {
            self.note(|| line::request(SystemTime::now(), record));
        }
    }

    pub(super) fn tcp(&self, record: &TcpRecord<'_>) {
        if tcp_has_failed(record) {
            self.note(|| line::tcp(SystemTime::now(), record));
        }
    }

    #[cold]
    fn note(&self, write: impl FnOnce() -> String) {
        let mut last = match self.last.try_lock() {
            Ok(last) => last,
            Err(TryLockError::Poisoned(last)) => last.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.missed.fetch_add(1, Relaxed);
                return;
            }
        };
        if last.len() >= KEPT {
            last.pop_front();
        }
        last.push_back(write());
    }

    /// The last ones, the newest first, each as JSON in the words of the access log.
    pub fn last(&self) -> Vec<String> {
        self.lock().iter().rev().cloned().collect()
    }

    /// How many were left out because two failed at the same moment.
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        // Lines are whole or not there.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_hundred_are_kept_the_newest_first() {
        let failures = Failures::default();
        for number in 0..KEPT + 7 {
            failures.note(|| number.to_string());
        }
        let last = failures.last();
        assert_eq!((last.len(), &*last[0], &*last[KEPT - 1]), (KEPT, "106", "7"));
        assert_eq!(failures.missed(), 0);
    }

    #[test]
    fn a_failure_waits_for_nobody() {
        let failures = Failures::default();
        let held = failures.lock();
        failures.note(|| unreachable!("there is no place to write it to"));
        drop(held);
        assert_eq!((failures.last().len(), failures.missed()), (0, 1));
    }
}
