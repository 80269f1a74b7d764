//! How an answer is made.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use serde_json::{Value, json};

use super::dashboard::Part;
use super::tap::TapBody;

pub(super) type Answer = Response<AnswerBody>;

/// What an answer says.
pub(super) enum AnswerBody {
    Whole(Full<Bytes>),
    /// It goes on until its reader leaves.
    Tap(Box<TapBody>),
}

impl AnswerBody {
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Tap(_))
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Tap(body) => body.poll_next(cx).map(|next| next.map(|data| Ok(Frame::data(data)))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Tap(_) => SizeHint::default(),
        }
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// An answer of any media type. It is true now only, and a browser must take it for nothing else.
pub(super) fn content(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    of(status, media_type, AnswerBody::Whole(Full::new(body.into())))
}

/// An answer that goes on.
pub(super) fn stream(media_type: &'static str, body: TapBody) -> Answer {
    of(StatusCode::OK, media_type, AnswerBody::Tap(Box::new(body)))
}

fn of(status: StatusCode, media_type: &'static str, body: AnswerBody) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

pub(super) fn plain(status: StatusCode, text: impl Into<String>) -> Answer {
    let mut text = text.into();
    text.push('\n');
    content(status, PLAIN, text)
}

pub(super) fn json(status: StatusCode, value: &Value) -> Answer {
    // A person reads it as often as a program.
    content(status, JSON, format!("{value:#}\n"))
}

/// A page that shows data and has no script.
pub(super) fn html(page: String) -> Answer {
    let mut answer = content(StatusCode::OK, HTML, page);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    answer
}

/// For what is asked for every two seconds and is long: without line breaks.
pub(super) fn compact(value: &Value) -> Answer {
    content(StatusCode::OK, JSON, format!("{value}\n"))
}

/// The dashboard's page. It loads its parts and asks for data from this port and from nowhere else, and nothing in it
/// may become markup or a script: text of the network is shown in it.
pub(super) fn dashboard(page: &'static str) -> Answer {
    let mut answer = content(StatusCode::OK, HTML, page);
    let policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                  require-trusted-types-for 'script'; trusted-types 'none'";
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    answer
}

/// A part of the dashboard.
pub(super) fn part(part: &Part) -> Answer {
    content(StatusCode::OK, part.media_type, part.text)
}

pub(super) fn error(status: StatusCode, what: &str) -> Answer {
    json(status, &json!({ "error": what }))
}

/// Refuses every method but `allowed`, GET or POST or both.
pub(super) fn method_not_allowed(allowed: &[&Method]) -> Answer {
    let allow = match (allowed.contains(&&Method::GET), allowed.contains(&&Method::POST)) {
        (true, true) => "GET, HEAD, POST",
        (true, false) => "GET, HEAD",
        (false, _) => "POST",
    };
    let mut answer = error(StatusCode::METHOD_NOT_ALLOWED, &format!("allowed here: {allow}"));
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    answer
}

/// Sends a browser on to the page `path`, after it posted a form.
pub(super) fn see(path: &'static str) -> Answer {
    let mut answer = content(StatusCode::SEE_OTHER, PLAIN, "");
    answer.headers_mut().insert(LOCATION, HeaderValue::from_static(path));
    answer
}

/// Whether a client says that it wants this media type, and no less than JSON: who takes everything gets JSON.
pub(super) fn wants(headers: &HeaderMap, media_type: &str) -> bool {
    let quality = |media_type: &str| {
        let accepted = headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
        let of_type = accepted.flat_map(|accept| accept.split(',')).find_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_it = parts.next()?.eq_ignore_ascii_case(media_type);
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
            is_it.then_some(quality)
        });
        of_type.unwrap_or(0.0_f32)
    };
    quality(media_type) > 0.0 && quality(media_type) >= quality(JSON)
}
