//! Waiting for a condition instead of for a time.

use std::time::{Duration, Instant};

/// How long a condition may take to come true. Generous, because the machine that runs the tests
/// may have two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` gives a value; panics with `what` after [`PATIENCE`].
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// Polls until `condition` gives a value; panics with `what` after `limit`.
pub fn within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Polls until `condition` holds; panics with `what` after [`PATIENCE`].
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}
