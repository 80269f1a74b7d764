//! What a caller gets when an upstream has nothing better: its breaker is open, it has no endpoint, or all tries have
//! failed.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use super::headers::is_grpc;
use super::local_response::{GRPC_MESSAGE, GRPC_STATUS, LocalResponse, PROXY_STATUS, percent_encoded};
use super::response_cache::{Asked, ResponseCache};
use crate::config;
use crate::net::{Body, strip_hop_by_hop, strip_mesh_headers};

/// What is done instead.
#[derive(Debug)]
pub enum Fallback {
    /// Always the same response.
    Fixed(FixedResponse),
    /// Another upstream is asked, whose own fallback does not apply.
    Upstream(Arc<str>),
    /// The last good response.
    Cache(Arc<ResponseCache>),
}

/// A response that the config states.
#[derive(Debug)]
pub struct FixedResponse {
    status: StatusCode,
    headers: HeaderMap,
    content: Bytes,
}

/// Why something is done instead.
#[derive(Clone, Copy, Debug)]
pub enum Failure<'a> {
    /// There is no response but this one of the proxy's own.
    Local(&'a LocalResponse),
    /// The last try's response has this status.
    Received(StatusCode),
}

impl Fallback {
    /// `before` is what stood in its place before a change of the config: a cache with the same settings goes on. `None`
    /// when nothing is stated.
    pub fn new(fallback: &config::Fallback, before: Option<&Self>) -> Option<Self> {
        if let Some(settings) = &fallback.cache {
            return Some(Self::Cache(match before {
                Some(Self::Cache(cache)) if cache.is_of(settings) => cache.clone(),
                _ => Arc::new(ResponseCache::new(settings)),
            }));
        }
        if let Some(name) = &fallback.upstream {
            return Some(Self::Upstream(name.as_str().into()));
        }
        FixedResponse::new(fallback).map(Self::Fixed)
    }

    /// The cache, which is to be told of good responses.
    pub fn cache(&self) -> Option<&Arc<ResponseCache>> {
        match self {
            Self::Cache(cache) => Some(cache),
            Self::Fixed(_) | Self::Upstream(_) => None,
        }
    }

    /// The response to a request with these fields; `None` when there is none here: another upstream is to be asked,
    /// or nothing that fits is in the cache. `asked` is the request's as the cache sees it.
    pub fn answer(
        &self,
        request: &HeaderMap,
        asked: Option<&Asked>,
        failure: Failure<'_>,
        now: Instant,
    ) -> Option<Response<Body>> {
        let mut response = match self {
            Self::Fixed(fixed) => fixed.to_response(request),
            Self::Upstream(_) => return None,
            Self::Cache(cache) => cache.answer(asked?, &failure.token(), now)?,
        };
        if let Ok(value) = HeaderValue::from_str(&failure.proxy_status()) {
            response.headers_mut().append(PROXY_STATUS, value);
        }
        Some(response)
    }
}

impl Failure<'_> {
    /// The value of `Proxy-Status` (RFC 9209), also for the access log.
    pub fn proxy_status(&self) -> String {
        match self {
            Self::Local(response) => response.proxy_status(),
            Self::Received(status) => format!("outrigger; received-status={}", status.as_u16()),
        }
    }

    fn token(&self) -> Cow<'static, str> {
        match self {
            Self::Local(response) => response.error.kind.into(),
            Self::Received(status) => format!("status-{}", status.as_u16()).into(),
        }
    }
}

impl FixedResponse {
    fn new(fallback: &config::Fallback) -> Option<Self> {
        let status = StatusCode::from_u16(fallback.status?).ok()?;
        let mut headers: HeaderMap = fallback
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?)))
            .collect();
        strip_mesh_headers(&mut headers);
        strip_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        let mut content = Bytes::from(fallback.body.clone().unwrap_or_default());
        // RFC 9110 6.4.1 and 15.3.6.
        if matches!(status.as_u16(), 204 | 205 | 304) {
            content.clear();
        } else {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(content.len()));
        }
        if !content.is_empty() {
            headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        Some(Self { status, headers, content })
    }

    /// The server drops the content of an answer to `HEAD`.
    fn to_response(&self, request: &HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        if !is_grpc(request) || self.headers.contains_key(GRPC_STATUS) {
            *headers = self.headers.clone();
            *response.status_mut() = self.status;
            *response.body_mut() = Body::full(self.content.clone());
            return response;
        }
        *headers = self.headers.clone();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(self.status)));
        let message = percent_encoded(&String::from_utf8_lossy(&self.content));
        if !message.is_empty()
            && let Ok(message) = HeaderValue::from_str(&message)
        {
            headers.insert(GRPC_MESSAGE, message);
        }
        response
    }
}

/// What a gRPC client makes of a status that comes without `grpc-status` (gRPC's http-grpc-status-mapping). Of a good
/// one it would make `UNKNOWN`; ours stands for a service that is not there.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        200..=299 | 429 | 502..=504 => 14,
        _ => 2,
    }
}

#[cfg(test)]
mod tests;
