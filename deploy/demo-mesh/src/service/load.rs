//! A gentle load, so that there is something to see before anybody opens the page.

use std::num::NonZeroU32;
use std::time::Duration;

use http::HeaderMap;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::{ServiceError, plain_http};

/// What is asked for, in turn.
const PATHS: [&str; 4] = ["/api", "/store", "/grpc", "/api"];
/// When that many responses are due, no more requests are made: the load stays gentle while something is stuck.
const MOST_AT_ONCE: usize = 64;

/// Requests pages of `authority` (a host and port) until the process ends, `rate` a second.
///
/// # Errors
/// None; the type is what a service's main returns.
pub async fn run(authority: String, rate: NonZeroU32) -> Result<(), ServiceError> {
    let mut beat = interval(Duration::from_secs_f64(1.0 / f64::from(rate.get())));
    beat.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut due = JoinSet::new();
    for path in PATHS.into_iter().cycle() {
        beat.tick().await;
        while due.try_join_next().is_some() {}
        if due.len() < MOST_AT_ONCE {
            let authority = authority.clone();
            due.spawn(async move {
                if let Err(error) = plain_http::get(&authority, path, &HeaderMap::new()).await {
                    eprintln!("{path}: {error}");
                }
            });
        }
    }
    Ok(())
}
