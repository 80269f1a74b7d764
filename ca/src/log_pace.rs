//! How often a line is logged that would come with each of very many failures.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two lines.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets one line a second through, with the number of times that it stands for.
#[derive(Debug, Default)]
pub struct LogPace(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    times: u64,
    last: Option<Instant>,
}

impl LogPace {
    pub const fn new() -> Self {
        Self(Mutex::new(State { times: 0, last: None }))
    }

    /// Counts one time more. When a line is due: how many times there were since the last one.
    pub fn count(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.times += 1;
        if state.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.times))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_stands_for_all_times_since_the_one_before() {
        let (pace, start) = (LogPace::new(), Instant::now());
        let lines: Vec<_> =
            (0..50).filter_map(|tick| pace.count(start + Duration::from_millis(50 * tick))).collect();
        assert_eq!(lines, [1, 20, 20]);
        assert_eq!(pace.count(start + Duration::from_secs(60)), Some(10));
    }
}
