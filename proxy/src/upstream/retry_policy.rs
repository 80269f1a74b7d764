//! When a request is tried again: decided anew after each try.
//!
//! What was provably not processed is tried again whatever it is. All else needs a request that may be processed
//! twice: an idempotent method, or a route that says so. How many retries all requests together may make is the
//! budget's to say, and whether the body can be sent again is its replay's.

use std::time::{Duration, SystemTime};

use http::header::{HeaderName, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use rand::{Rng, RngExt};
use serde_json::{Value, json};

use crate::config::{self, MAX_RETRY_ATTEMPTS, RetryCondition};

/// The outcome of a gRPC call.
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// A gRPC server's own say in when it is called again (gRFC A6): milliseconds, negative for never.
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// When requests are tried again, and when the next try starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    on_reset: bool,
    on_timeout: bool,
    on_statuses: Statuses,
    /// By the code's bit.
    on_grpc: u32,
    per_try_timeout: Option<Duration>,
    backoff_base: Duration,
    backoff_max: Duration,
    max_retry_after: Duration,
}

/// A set of statuses from 400 to 599.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Statuses([u128; 2]);

/// What became of a try.
#[derive(Clone, Copy, Debug)]
pub enum Tried<'a> {
    /// There is a response.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its fields; of gRPC's responses those that have no content say the outcome here.
        headers: &'a HeaderMap,
        /// What the peer's proxy says about it.
        mark: PeerMark,
    },
    /// The endpoint has certainly not looked at the request.
    Unprocessed,
    /// The connection or stream ended before the response.
    Lost,
    /// There was no response within [`RetryPolicy::per_try_timeout`].
    TimedOut,
    /// Limits of our own turned it away: more tries would make it worse.
    TurnedAway,
}

/// What a proxy of the mesh says about the response it sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PeerMark {
    /// Nothing.
    #[default]
    None,
    /// It has not passed the request on.
    Unprocessed,
    /// It has tried all it may.
    Exhausted,
}

/// What is done after a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterTry {
    /// What became of it is what the caller gets.
    Done,
    /// So it is, and it is marked by [`mark_exhausted`], so that no proxy further out tries again. The same holds
    /// where the verdict was [`Retry`](Self::Retry) and the budget allows none.
    Exhausted,
    /// It is tried again.
    Retry {
        /// The pause before.
        backoff: Duration,
    },
}

impl Tried<'_> {
    /// Whether no server has looked at the request.
    pub fn is_unprocessed(&self) -> bool {
        matches!(
            self,
            Self::Unprocessed | Self::TurnedAway | Self::Answered { mark: PeerMark::Unprocessed, .. }
        )
    }

    /// Whether the peer's sidecar answered in place of its workload.
    pub fn is_turned_away_by_peer(&self) -> bool {
        matches!(self, Self::Answered { mark: PeerMark::Unprocessed, .. })
    }
}

impl RetryPolicy {
    /// `retry` is the route's or else the upstream's.
    pub fn new(retry: &config::Retry) -> Self {
        let per_try_timeout = retry.per_try_timeout();
        let mut policy = Self {
            attempts: retry.attempts().min(MAX_RETRY_ATTEMPTS),
            on_reset: false,
            // A limit for one try is stated to try again after it, unless `on` is stated too.
            on_timeout: retry.on.is_none() && per_try_timeout.is_some(),
            on_statuses: Statuses::default(),
            on_grpc: 0,
            per_try_timeout,
            backoff_base: retry.backoff.base(),
            backoff_max: retry.backoff.max(),
            max_retry_after: retry.max_retry_after(),
        };
        for condition in retry.on() {
            match condition {
                // Provably not processed: always.
                RetryCondition::ConnectFailure | RetryCondition::RefusedStream => {}
                RetryCondition::Reset => policy.on_reset = true,
                RetryCondition::Timeout => policy.on_timeout = true,
                RetryCondition::Status(status) => policy.on_statuses.insert(status),
                RetryCondition::Grpc(code) => policy.on_grpc |= grpc_bit(code),
            }
        }
        policy
    }

    /// The same with another number of tries after the first.
    #[must_use]
    pub fn with_attempts(self, attempts: u32) -> Self {
        Self { attempts: attempts.min(MAX_RETRY_ATTEMPTS), ..self }
    }

    /// Tries after the first, at most.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// When it tries again, for people.
    pub fn describe(&self) -> Value {
        let mut after = vec!["what was not processed"];
        after.extend(self.on_reset.then_some("reset"));
        after.extend(self.on_timeout.then_some("timeout of a try"));
        let statuses: Vec<u16> = (400..600).filter(|status| self.on_statuses.holds(*status)).collect();
        let calls: Vec<u32> = (0..u32::BITS).filter(|code| self.on_grpc & (1 << code) != 0).collect();
        json!({
            "retries": self.attempts,
            "after": after,
            "afterStatuses": statuses,
            "afterGrpcStatuses": calls,
            "perTryTimeoutSeconds": self.per_try_timeout.map(|limit| limit.as_secs_f64()),
            "backoffSeconds": [self.backoff_base.as_secs_f64(), self.backoff_max.as_secs_f64()],
        })
    }

    /// Time one try may take, to the response's headers.
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.per_try_timeout
    }

    /// Decides after a try, which `retries` came before of: 0 after the first. `repeatable`: processing the request twice
    /// does no harm, by its method or by what its route says.
    pub fn verdict(
        &self,
        repeatable: bool,
        tried: Tried<'_>,
        retries: u32,
        now: SystemTime,
        rng: &mut impl Rng,
    ) -> AfterTry {
        if let Tried::Answered { mark: PeerMark::Exhausted, .. } = tried {
            return AfterTry::Exhausted;
        }
        if self.attempts == 0 || !self.is_worth_a_retry(repeatable, tried) {
            return AfterTry::Done;
        }
        if retries >= self.attempts {
            return AfterTry::Exhausted;
        }
        let wait = match tried {
            Tried::Answered { headers, .. } => asked_wait(headers, now),
            _ => Some(Duration::ZERO),
        };
        match wait {
            // Jitter upon it too: all who were told the same second would come back at once.
            Some(wait) if wait <= self.max_retry_after => {
                AfterTry::Retry { backoff: wait + self.backoff(retries, rng) }
            }
            _ => AfterTry::Done,
        }
    }

    fn is_worth_a_retry(&self, repeatable: bool, tried: Tried<'_>) -> bool {
        match tried {
            Tried::Unprocessed | Tried::Answered { mark: PeerMark::Unprocessed, .. } => true,
            Tried::TurnedAway => false,
            _ if !repeatable => false,
            Tried::Lost => self.on_reset,
            Tried::TimedOut => self.on_timeout,
            Tried::Answered { status, headers, .. } => {
                self.on_statuses.contains(status)
                    || grpc_status(headers).is_some_and(|code| self.on_grpc & grpc_bit(code) != 0)
            }
        }
    }

    /// Full jitter (Brooker, "Exponential Backoff And Jitter"): anything up to a limit that doubles, so that
    /// callers that failed together don't come back together.
    fn backoff(&self, retries: u32, rng: &mut impl Rng) -> Duration {
        let limit = self.backoff_base.saturating_mul(1 << retries.min(16)).min(self.backoff_max);
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(rng.random_range(0..=limit))
    }
}

impl Default for RetryPolicy {
    /// That of an upstream that nobody configured.
    fn default() -> Self {
        Self::new(&config::Retry::default())
    }
}

impl Statuses {
    fn place(status: u16) -> Option<(usize, u128)> {
        let at = status.checked_sub(400)?;
        let word = usize::from(at / 100);
        (word < 2).then(|| (word, 1 << (at % 100)))
    }

    fn insert(&mut self, status: u16) {
        if let Some((word, bit)) = Self::place(status) {
            self.0[word] |= bit;
        }
    }

    fn contains(&self, status: StatusCode) -> bool {
        self.holds(status.as_u16())
    }

    fn holds(&self, status: u16) -> bool {
        Self::place(status).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }
}

/// What a trailers-only response of gRPC says. One with content has its status behind it, when it has been passed
/// on already.
fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// Codes beyond the known ones share no bit with them.
fn grpc_bit(code: u16) -> u32 {
    1_u32.checked_shl(u32::from(code)).unwrap_or(0)
}

/// How long the server wants to be left alone; `None` for ever. What can't be read asks for nothing, but gRPC's
/// pushback asks for ever then (gRFC A6).
fn asked_wait(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(pushback) = headers.get(GRPC_PUSHBACK) {
        let milliseconds: u32 = pushback.to_str().ok()?.parse().ok()?;
        return Some(Duration::from_millis(milliseconds.into()));
    }
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    Some(asked.and_then(|text| retry_after(text.trim(), now)).unwrap_or_default())
}

/// `Retry-After`: seconds, or a date (RFC 9110 10.2.3).
fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More than fits asks for ages.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}
