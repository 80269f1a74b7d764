//! `/tap`: live requests, a JSON object a line, or Server-Sent Events for who asks for those.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Method, Request, StatusCode};

use super::Sources;
use super::answer::{self, Answer};
use crate::telemetry::{LookingOn, TapFilter, Tapped};

const EVENTS: &str = "text/event-stream";
const LINES: &str = "application/x-ndjson";

pub(super) fn answer<B>(request: &Request<B>, sources: &Sources) -> Answer {
    let filter = match TapFilter::parse(request.uri().query().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(wrong) => return answer::error(StatusCode::BAD_REQUEST, &wrong.to_string()),
    };
    let as_events = answer::wants(request.headers(), EVENTS);
    let media_type = if as_events { EVENTS } else { LINES };
    if request.method() == Method::HEAD {
        return answer::content(StatusCode::OK, media_type, "");
    }
    let left = filter.limit;
    match sources.tap.look_on(filter) {
        Ok(looking_on) => answer::stream(media_type, TapBody { looking_on, as_events, left }),
        Err(too_many) => answer::error(StatusCode::SERVICE_UNAVAILABLE, &too_many.to_string()),
    }
}

/// What a reader of the tap gets, until it leaves or has what it asked for.
pub(super) struct TapBody {
    looking_on: LookingOn,
    as_events: bool,
    /// Exchanges that are still to be shown; `None`: all.
    left: Option<u64>,
}

impl TapBody {
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.left == Some(0) {
            return Poll::Ready(None);
        }
        let line = match ready!(self.looking_on.poll_next(cx)) {
            Tapped::Exchange(line) => {
                self.left = self.left.map(|left| left - 1);
                line
            }
            Tapped::Dropped(count) => format!("{{\"dropped\":{count}}}\n").into(),
        };
        Poll::Ready(Some(if self.as_events { event(&line) } else { line }))
    }
}

/// A line as an event: it ends with an empty line.
fn event(line: &[u8]) -> Bytes {
    [b"data: ", line, b"\n"].concat().into()
}
