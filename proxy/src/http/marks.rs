//! What proxies of the mesh tell each other about tries, on the responses that they pass on.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use super::hop::{HopError, is_unprocessed};
use super::local_response::PROXY_STATUS;
use crate::upstream::{ConnectError, PeerMark, Tried};

/// On a response within the mesh: what it failed for has been tried as often as may be. Tried again by each proxy on the
/// way, a request that fails would reach its server as often as the product of all their tries.
const RETRIES: HeaderName = HeaderName::from_static("outrigger-retries");
/// On a response within the mesh: the proxy that sends it has not passed the request on to its workload.
const UNPROCESSED: HeaderName = HeaderName::from_static("outrigger-unprocessed");

const EXHAUSTED: HeaderValue = HeaderValue::from_static("exhausted");
/// What [`RETRIES`] says, on responses to a workload: it may pass them on to proxies further out.
const EXHAUSTED_PARAMETER: &str = "; outrigger-retries=exhausted";

impl Tried<'_> {
    /// Without a response.
    pub fn failed(error: &HopError) -> Self {
        match error {
            HopError::Connect(ConnectError::Full { .. }) => Self::TurnedAway,
            HopError::Connect(_) | HopError::NotTried => Self::Unprocessed,
            HopError::Timeout(_) | HopError::DeadlinePassed => Self::TimedOut,
            HopError::Http2(error) if is_unprocessed(error) => Self::Unprocessed,
            // hyper's word for a request that it still had when the connection ended.
            HopError::Http1(error) if error.is_canceled() => Self::Unprocessed,
            HopError::Http2(_) | HopError::Http1(_) | HopError::UnknownCoding => Self::Lost,
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

/// Marks a response to a workload after [`AfterTry::Exhausted`](crate::upstream::AfterTry::Exhausted); `received` is the status of one that came from upstream, `None` for
/// one that the proxy made itself.
pub fn mark_exhausted(headers: &mut HeaderMap, received: Option<StatusCode>) {
    if headers.get_all(PROXY_STATUS).iter().any(says_exhausted) {
        return;
    }
    // One field: who asks for its value by name gets all of it. The party next to the origin comes first (RFC 9209 2).
    let before: Vec<_> =
        headers.get_all(PROXY_STATUS).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut text = before.join(", ");
    if let Some(status) = received {
        let own = format!("outrigger; received-status={}", status.as_u16());
        text = if text.is_empty() { own } else { format!("{text}, {own}") };
    }
    text.push_str(EXHAUSTED_PARAMETER);
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(PROXY_STATUS, value);
    }
}

/// Marks a response of the inbound side's that failed for what was tried often enough further in.
pub fn mark_retries_exhausted(headers: &mut HeaderMap) {
    headers.insert(RETRIES, EXHAUSTED);
}

/// Marks a response of the inbound side's that stands for a request its workload has not seen.
pub fn mark_unprocessed(headers: &mut HeaderMap) {
    headers.insert(UNPROCESSED, HeaderValue::from_static("1"));
}

#[cfg(test)]
mod tests;
