//! How an answer is made.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::dashboard::Part;

pub(super) type Answer = Response<Full<Bytes>>;

const PLAIN: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// An answer of any media type. It is true now only, and a browser must take it for nothing else.
pub(super) fn content(status: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
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

/// For what is asked for every two seconds and is long: without line breaks.
pub(super) fn compact(value: &Value) -> Answer {
    content(StatusCode::OK, JSON, format!("{value}\n"))
}

/// The dashboard's page. It loads its parts and asks for data from this port and from nowhere else, and nothing in it
/// may become markup or a script: text of the network is shown in it.
pub(super) fn dashboard(page: &'static str) -> Answer {
    let mut answer = content(StatusCode::OK, HTML, page);
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         require-trusted-types-for 'script'; trusted-types 'none'",
    );
    answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
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
