//! How many retries an upstream may get: a share of its recent requests, so that retries help where little fails
//! and never multiply an outage.
//!
//! As Finagle's and linkerd's retry budgets, over the same ten seconds: a limit for the window and not for each
//! moment, so that the requests that one dead endpoint had under way can all be tried again at once.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::recent::Recent;
use crate::config;

/// Time over which requests and retries are counted; Finagle's `ttl`.
const WINDOW: Duration = Duration::from_secs(10);

/// The retry budget of an upstream; all workers share it, without a lock.
#[derive(Debug)]
pub struct RetryBudget {
    percent: u64,
    /// Retries that a window allows whatever the requests.
    least: u64,
    requests: Recent,
    retries: Recent,
}

impl RetryBudget {
    /// A budget of which nothing is spent.
    pub fn new(config: &config::Retry) -> Self {
        Self {
            percent: config.budget_percent().into(),
            least: u64::from(config.min_retries_per_second()) * WINDOW.as_secs(),
            requests: Recent::new(WINDOW),
            retries: Recent::new(WINDOW),
        }
    }

    /// A request came; its retries are none.
    pub fn note_request(&self, now: Instant) {
        self.requests.add(now);
    }

    /// Takes one retry out of the budget, if there is one left. Workers that ask at the same moment may get one
    /// more than there is, each.
    pub fn try_retry(&self, now: Instant) -> bool {
        let allowed = self.retries.count(now) < self.limit(now);
        if allowed {
            self.retries.add(now);
        }
        allowed
    }

    /// Retries that the window may hold.
    fn limit(&self, now: Instant) -> u64 {
        (self.requests.count(now) * self.percent / 100).max(self.least)
    }

    /// Retries that are left of it now.
    pub fn left(&self, now: Instant) -> u64 {
        self.limit(now).saturating_sub(self.retries.count(now))
    }

    /// What was spent of it in the last ten seconds, for people.
    pub fn describe(&self, now: Instant) -> Value {
        json!({
            "recentRequests": self.requests.count(now),
            "recentRetries": self.retries.count(now),
            "allowedRetries": self.limit(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::load::since_epoch;
    use super::*;

    /// A moment at which a second begins as the window counts them, with a past.
    fn start() -> Instant {
        let now = Instant::now() + Duration::from_secs(1000);
        now - Duration::from_nanos(since_epoch(now) % 1_000_000_000)
    }

    fn config(percent: u8, per_second: u32) -> config::Retry {
        config::Retry {
            budget_percent: Some(percent),
            min_retries_per_second: Some(per_second),
            ..config::Retry::default()
        }
    }

    /// Offers `rate` requests a second to an upstream at which all fails, each tried again as often as `attempts` and
    /// the budgets of the proxies in a row allow, for so long. Gives requests offered and tries that reach it.
    fn storm(budgets: &[RetryBudget], attempts: u32, rate: u64, seconds: u64) -> (u64, u64) {
        let start = start();
        let mut tries = 0;
        for i in 0..rate * seconds {
            let now = start + Duration::from_nanos(1_000_000_000 / rate * i);
            for budget in budgets {
                budget.note_request(now);
            }
            tries += 1;
            // The innermost marks what it gives back, and nobody further out tries again.
            let innermost = budgets.last().unwrap();
            tries += (0..attempts).take_while(|_| innermost.try_retry(now)).count() as u64;
        }
        (rate * seconds, tries)
    }

    #[test]
    fn an_upstream_at_which_all_fails_gets_a_fifth_more_than_is_offered() {
        for (rate, seconds) in [(200, 10), (200, 60), (1000, 30), (20, 60)] {
            for attempts in 1..=3 {
                let budget = RetryBudget::new(&config::Retry::default());
                let (offered, tries) = storm(&[budget], attempts, rate, seconds);
                assert!(tries * 100 >= offered * 119, "{tries} of {offered}: the budget is used");
                assert!(tries * 100 <= offered * 120, "{tries} of {offered} at {rate}/s");
            }
        }
    }

    #[test]
    fn three_proxies_in_a_row_add_no_more_than_one_where_what_is_exhausted_is_marked() {
        let budgets = [(); 3].map(|()| RetryBudget::new(&config::Retry::default()));
        let (offered, tries) = storm(&budgets, 2, 200, 60);
        assert!(tries * 100 <= offered * 120, "{tries} of {offered}");
    }

    #[test]
    fn three_retries_a_second_are_allowed_where_hardly_anything_is_asked() {
        let budget = RetryBudget::new(&config::Retry::default());
        let mut now = start();
        let mut retries = 0;
        for _ in 0..60 {
            budget.note_request(now);
            retries += (0..10).filter(|_| budget.try_retry(now)).count();
            now += Duration::from_secs(1);
        }
        assert_eq!(retries, 180);
    }

    #[test]
    fn the_requests_under_way_to_one_of_three_endpoints_can_all_be_tried_again_at_once() {
        let budget = RetryBudget::new(&config::Retry::default());
        let start = start();
        for i in 0..10_000 {
            budget.note_request(start + Duration::from_millis(i));
        }
        let now = start + Duration::from_millis(9_999);
        assert_eq!(budget.left(now), 2_000);
        assert!((0..500).all(|_| budget.try_retry(now)));
        assert_eq!(budget.left(now), 1_500);
        assert_eq!((0..5_000).filter(|_| budget.try_retry(now)).count(), 1_500);
        assert_eq!(budget.left(now), 0);
        let told = json!({ "recentRequests": 10_000, "recentRetries": 2_000, "allowedRetries": 2_000 });
        assert_eq!(budget.describe(now), told);
    }

    #[test]
    fn a_budget_of_nothing_allows_nothing() {
        let budget = RetryBudget::new(&config(0, 0));
        let now = start();
        budget.note_request(now);
        assert!(!budget.try_retry(now));
    }

    #[test]
    fn workers_that_ask_at_once_exceed_it_by_one_each_at_most() {
        const WORKERS: usize = 4;
        for _ in 0..50 {
            let budget = RetryBudget::new(&config::Retry::default());
            let now = start();
            let granted: usize = std::thread::scope(|scope| {
                let worker = || (0..100).filter(|_| budget.try_retry(now)).count();
                let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).sum()
            });
            assert!((30..30 + WORKERS).contains(&granted), "{granted}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Each item: milliseconds since the one before, requests, and retries that are asked for.
        #[test]
        fn over_any_window_and_in_all_retries_stay_within_the_share_or_the_least(
            percent in 0..=100_u8,
            per_second in 0..6_u32,
            load in proptest::collection::vec((0..4_000_u64, 0..200_u64, 0..200_u64), 1..60),
        ) {
            let budget = RetryBudget::new(&config(percent, per_second));
            let start = start();
            let mut now = start;
            // By second: requests and retries.
            let mut seconds: Vec<(u64, u64)> = Vec::new();
            for (after, requests, asked) in load {
                now += Duration::from_millis(after);
                let second = (now - start).as_secs() as usize;
                seconds.resize(seconds.len().max(second + 1), (0, 0));
                for _ in 0..requests {
                    budget.note_request(now);
                }
                seconds[second].0 += requests;
                let before = seconds[second].1;
                seconds[second].1 += (0..asked).filter(|_| budget.try_retry(now)).count() as u64;
                let sum = |seconds: &[(u64, u64)]| {
                    seconds.iter().fold((0, 0), |sum, second| (sum.0 + second.0, sum.1 + second.1))
                };
                let (requests, retries) = sum(&seconds[(second + 1).saturating_sub(10)..]);
                let limit = (requests * u64::from(percent) / 100).max(u64::from(per_second) * 10);
                let granted = seconds[second].1 - before;
                prop_assert!(retries <= limit || granted == 0, "{retries} of {limit} within ten seconds");
                prop_assert!(granted == asked || retries >= limit, "{granted} of {asked} though there were more");
                let (requests, retries) = sum(&seconds);
                let span = seconds.len() as u64;
                let most = requests * u64::from(percent) / 100 + u64::from(per_second) * (span + 10);
                prop_assert!(retries <= most, "{retries} of {most} within {span} s");
            }
        }
    }
}
