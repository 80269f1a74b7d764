//! Fixed responses.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use super::header_edits::editable;
use crate::config;
use crate::net::Body;

/// A fixed response of a route. The same to everybody: a gRPC caller makes its own of the status.
#[derive(Debug)]
pub(super) struct Respond {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Respond {
    /// Compiles a response. What a checked config does not hold is left out.
    pub(super) fn new(respond: &config::Respond) -> Self {
        let status = StatusCode::from_u16(respond.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // RFC 9110 6.4.1: these have no content.
        let is_bare = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
        let body = if is_bare { Bytes::new() } else { Bytes::from(respond.body.clone()) };
        let mut headers: HeaderMap = respond
            .headers
            .iter()
            .filter_map(|(name, value)| Some((editable(name)?, HeaderValue::from_str(value).ok()?)))
            .collect::<HeaderMap<HeaderValue>>();
        if !is_bare {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        if !body.is_empty() && !headers.contains_key(CONTENT_TYPE) {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        Self { status, headers, body }
    }

    /// The response. Of an answer to `HEAD` the server sends no content, and the length stays.
    pub(super) fn response(&self) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body.clone()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn respond(status: u16, body: &str, headers: &[(&str, &str)]) -> Response<Body> {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        Respond::new(&config::Respond { status, body: body.into(), headers }).response()
    }

    #[tokio::test]
    async fn status_headers_and_body_are_as_stated() {
        let response = respond(418, "short and stout\n", &[("X-Pot", "tea"), ("outrigger-client-id", "x")]);
        assert_eq!(response.status(), 418);
        assert_eq!(response.headers()[CONTENT_LENGTH], "16");
        assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(response.headers()["x-pot"], "tea");
        assert_eq!(response.headers().len(), 3);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "short and stout\n");
    }

    #[test]
    fn a_stated_type_stays_and_no_body_has_none() {
        let json = respond(200, "{}", &[("content-type", "application/json")]);
        assert_eq!(json.headers()[CONTENT_TYPE], "application/json");
        let empty = respond(404, "", &[]);
        assert_eq!(empty.headers()[CONTENT_LENGTH], "0");
        assert!(!empty.headers().contains_key(CONTENT_TYPE));
        assert!(empty.body().is_end());
    }

    #[test]
    fn a_status_without_content_has_none() {
        for status in [204, 304] {
            let response = respond(status, "dropped", &[]);
            assert!(response.headers().is_empty(), "{status}");
            assert!(response.body().is_end(), "{status}");
        }
    }
}
