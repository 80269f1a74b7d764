//! When a request is tried again: decided anew after each try.
//!
//! What was provably not processed is tried again whatever it is. All else needs a request that may be processed
//! twice: an idempotent method, or a route that says so. How many retries all requests together may make is the
//! budget's to say, and whether the body can be sent again [`Replay`](super::Replay)'s.

use std::time::{Duration, SystemTime};

use http::header::{HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use rand::{Rng, RngExt};

use super::hop::{HopError, is_unprocessed};
use super::local_response::{GRPC_STATUS, PROXY_STATUS};
use crate::config::{self, MAX_RETRY_ATTEMPTS, RetryCondition};
use crate::upstream::ConnectError;

/// On a response within the mesh: the proxy that sends it has tried all it may. Tried again by each proxy on the
/// way, a request that fails would reach its server as often as the product of all their tries.
pub const RETRIES: HeaderName = HeaderName::from_static("outrigger-retries");
/// On a response within the mesh: the proxy that sends it has not passed the request on to its workload.
pub const UNPROCESSED: HeaderName = HeaderName::from_static("outrigger-unprocessed");

const EXHAUSTED: HeaderValue = HeaderValue::from_static("exhausted");
/// What [`RETRIES`] says to proxies beyond a workload that passes responses on: [`RETRIES`] ends before a workload,
/// `Proxy-Status` does not.
const EXHAUSTED_PARAMETER: &str = "; outrigger-retries=exhausted";
/// A gRPC server's own say in when it is called again (gRFC A6): milliseconds, negative for never.
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// When requests are tried again, and when the next try starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    attempts: u32,
    idempotent: bool,
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
pub enum Verdict {
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

impl RetryPolicy {
    /// `retry` is the route's or else the upstream's; `idempotent` is the route's.
    pub fn new(retry: &config::Retry, idempotent: bool) -> Self {
        let per_try_timeout = retry.per_try_timeout();
        let mut policy = Self {
            attempts: retry.attempts().min(MAX_RETRY_ATTEMPTS),
            idempotent,
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

    /// Tries after the first, at most.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Time one try may take, to the response's headers.
    pub fn per_try_timeout(&self) -> Option<Duration> {
        self.per_try_timeout
    }

    /// Decides after a try, which `retries` came before of: 0 after the first.
    pub fn verdict(
        &self,
        method: &Method,
        tried: Tried<'_>,
        retries: u32,
        now: SystemTime,
        rng: &mut impl Rng,
    ) -> Verdict {
        if let Tried::Answered { mark: PeerMark::Exhausted, .. } = tried {
            return Verdict::Exhausted;
        }
        if self.attempts == 0 || !self.is_worth_a_retry(method, tried) {
            return Verdict::Done;
        }
        if retries >= self.attempts {
            return Verdict::Exhausted;
        }
        let wait = match tried {
            Tried::Answered { headers, .. } => asked_wait(headers, now),
            _ => Some(Duration::ZERO),
        };
        match wait {
            // Jitter upon it too: all who were told the same second would come back at once.
            Some(wait) if wait <= self.max_retry_after => {
                Verdict::Retry { backoff: wait + self.backoff(retries, rng) }
            }
            _ => Verdict::Done,
        }
    }

    /// Whether the request may be sent once more after this, to the upstream of a fallback for example: no server has
    /// looked at it, or processing it twice does no harm.
    pub fn may_be_repeated(&self, method: &Method, tried: Tried<'_>) -> bool {
        let unprocessed = matches!(
            tried,
            Tried::Unprocessed | Tried::TurnedAway | Tried::Answered { mark: PeerMark::Unprocessed, .. }
        );
        unprocessed || self.idempotent || method.is_idempotent()
    }

    fn is_worth_a_retry(&self, method: &Method, tried: Tried<'_>) -> bool {
        match tried {
            Tried::Unprocessed | Tried::Answered { mark: PeerMark::Unprocessed, .. } => true,
            Tried::TurnedAway => false,
            _ if !self.may_be_repeated(method, tried) => false,
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
        Self::new(&config::Retry::default(), false)
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
        Self::place(status.as_u16()).is_some_and(|(word, bit)| self.0[word] & bit != 0)
    }
}

impl Tried<'_> {
    /// Without a response. `unsent`: nothing of the request was written, as hyper tells by giving it back and h2 by
    /// refusing its head.
    pub fn failed(error: &HopError, unsent: bool) -> Self {
        match error {
            HopError::Connect(ConnectError::Full { .. }) => Self::TurnedAway,
            HopError::Connect(_) => Self::Unprocessed,
            HopError::Timeout(_) => Self::TimedOut,
            _ if unsent => Self::Unprocessed,
            HopError::Http2(error) if is_unprocessed(error) => Self::Unprocessed,
            // hyper's word for a request that it still had when the connection ended.
            HopError::Http1(error) if error.is_canceled() => Self::Unprocessed,
            HopError::Http2(_) | HopError::Http1(_) => Self::Lost,
        }
    }
}

impl PeerMark {
    /// Read before the mesh's fields are taken off. `meshed`: the response comes from a verified peer. Anybody may
    /// say that tries are exhausted, which spares others work; that a request was not processed only our own proxies,
    /// or a server could have a payment sent twice.
    pub fn of(headers: &HeaderMap, meshed: bool) -> Self {
        let says_exhausted = headers.get(RETRIES).is_some_and(|value| value == EXHAUSTED)
            // A caller's own words can't come to stand there, and if they did, a retry would be all it costs.
            || headers.get_all(PROXY_STATUS).iter().any(says_exhausted);
        if says_exhausted {
            Self::Exhausted
        } else if meshed && headers.get(UNPROCESSED).is_some_and(|value| value == "1") {
            Self::Unprocessed
        } else {
            Self::None
        }
    }
}

fn says_exhausted(proxy_status: &HeaderValue) -> bool {
    proxy_status.to_str().is_ok_and(|value| value.contains(EXHAUSTED_PARAMETER))
}

/// Marks a response after [`Verdict::Exhausted`]; `received` is the status of one that came from upstream, `None` for
/// one that the proxy made itself.
pub fn mark_exhausted(headers: &mut HeaderMap, received: Option<StatusCode>) {
    headers.insert(RETRIES, EXHAUSTED);
    if headers.get_all(PROXY_STATUS).iter().any(says_exhausted) {
        return;
    }
    let own = match received {
        None => headers.remove(PROXY_STATUS).and_then(|value| value.to_str().map(str::to_owned).ok()),
        Some(status) => Some(format!("outrigger; received-status={}", status.as_u16())),
    };
    let text = own.unwrap_or_else(|| "outrigger".into()) + EXHAUSTED_PARAMETER;
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.append(PROXY_STATUS, value);
    }
}

/// Marks a response of the inbound side's that stands for a request its workload has not seen.
pub fn mark_unprocessed(headers: &mut HeaderMap) {
    headers.insert(UNPROCESSED, HeaderValue::from_static("1"));
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

#[cfg(test)]
mod tests;
