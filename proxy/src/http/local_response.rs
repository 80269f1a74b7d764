//! Responses that the proxy makes itself: what a caller is told (the design's section 9).

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use outrigger_ca::tls_fault::TlsFault;

use crate::identity::HandshakeError;
use crate::net::{Body, DialError};
use crate::upstream::{ConnectError, DestinationError, Open, TurnedAway, Upstream};

/// RFC 9209's field.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
/// The outcome of a gRPC call.
pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// A longer detail is cut: it names things, it does not tell stories.
const MAX_DETAIL: usize = 240;

/// What went wrong, by RFC 9209's registry of error types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyError {
    /// HTTP status.
    pub status: StatusCode,
    /// Error type of RFC 9209 section 2.3.
    pub kind: &'static str,
    /// What a gRPC caller gets.
    pub grpc_status: u16,
}

const UNAVAILABLE: u16 = 14;
const DEADLINE_EXCEEDED: u16 = 4;
const PERMISSION_DENIED: u16 = 7;
const RESOURCE_EXHAUSTED: u16 = 8;
const INTERNAL: u16 = 13;
const UNIMPLEMENTED: u16 = 12;
const UNKNOWN: u16 = 2;
const UNAUTHENTICATED: u16 = 16;

impl ProxyError {
    const fn new(status: StatusCode, kind: &'static str, grpc_status: u16) -> Self {
        Self { status, kind, grpc_status }
    }

    /// An error made on purpose: nothing was asked, and nothing is wrong.
    pub fn injected(status: StatusCode) -> Self {
        // What a gRPC client makes of a status without grpc-status (gRPC's http-grpc-status-mapping).
        let grpc_status = match status.as_u16() {
            400 => INTERNAL,
            401 => UNAUTHENTICATED,
            403 => PERMISSION_DENIED,
            404 => UNIMPLEMENTED,
            429 | 502 | 503 | 504 => UNAVAILABLE,
            _ => UNKNOWN,
        };
        Self::new(status, "proxy_internal_response", grpc_status)
    }

    /// The peer refused TCP.
    pub const REFUSED: Self = Self::new(StatusCode::BAD_GATEWAY, "connection_refused", UNAVAILABLE);
    /// The peer did not answer TCP or TLS in time.
    pub const CONNECT_TIMEOUT: Self = Self::new(StatusCode::BAD_GATEWAY, "connection_timeout", UNAVAILABLE);
    /// No way to the peer.
    pub const UNROUTABLE: Self = Self::new(StatusCode::BAD_GATEWAY, "destination_ip_unroutable", UNAVAILABLE);
    /// Not called on principle.
    pub const PROHIBITED: Self = Self::new(StatusCode::BAD_GATEWAY, "destination_ip_prohibited", UNAVAILABLE);
    /// The peer's certificate was refused.
    pub const CERTIFICATE: Self = Self::new(StatusCode::BAD_GATEWAY, "tls_certificate_error", UNAVAILABLE);
    /// TLS broke.
    pub const TLS: Self = Self::new(StatusCode::BAD_GATEWAY, "tls_protocol_error", UNAVAILABLE);
    /// The peer refused TLS.
    pub const TLS_ALERT: Self = Self::new(StatusCode::BAD_GATEWAY, "tls_alert_received", UNAVAILABLE);
    /// The connection was lost before the response.
    pub const TERMINATED: Self = Self::new(StatusCode::BAD_GATEWAY, "connection_terminated", UNAVAILABLE);
    /// The response breaks HTTP.
    pub const BAD_RESPONSE: Self = Self::new(StatusCode::BAD_GATEWAY, "http_protocol_error", UNAVAILABLE);
    /// The upstream has no endpoint.
    pub const NO_ENDPOINT: Self =
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "destination_unavailable", UNAVAILABLE);
    /// This proxy has no certificate to show. 503 and not the registry's 500: it may get one any moment.
    pub const NOT_CERTIFIED: Self =
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "proxy_configuration_error", UNAVAILABLE);
    /// A limit is reached.
    pub const OVERLOAD: Self =
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "connection_limit_reached", UNAVAILABLE);
    /// The name could not be looked up.
    pub const DNS: Self = Self::new(StatusCode::SERVICE_UNAVAILABLE, "dns_error", UNAVAILABLE);
    /// The response's headers did not come in time.
    pub const TIMEOUT: Self =
        Self::new(StatusCode::GATEWAY_TIMEOUT, "http_response_timeout", DEADLINE_EXCEEDED);
    /// The caller may not do this.
    pub const DENIED: Self = Self::new(StatusCode::FORBIDDEN, "http_request_denied", PERMISSION_DENIED);
    /// The request breaks HTTP.
    pub const BAD_REQUEST: Self = Self::new(StatusCode::BAD_REQUEST, "http_request_error", INTERNAL);
    /// The request's header section is too large.
    pub const TOO_LARGE: Self =
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "http_request_error", RESOURCE_EXHAUSTED);
    /// The request's transfer coding is unknown.
    pub const UNKNOWN_CODING: Self =
        Self::new(StatusCode::NOT_IMPLEMENTED, "http_request_error", UNIMPLEMENTED);
    /// Our own fault.
    pub const INTERNAL: Self = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "proxy_internal_error", INTERNAL);
}

/// A response that the proxy makes itself.
#[derive(Clone, Debug)]
pub struct LocalResponse {
    /// What went wrong.
    pub error: ProxyError,
    /// Which upstream, which endpoint, what.
    pub detail: Cow<'static, str>,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
}

impl LocalResponse {
    /// A response for `error`.
    pub fn new(error: ProxyError, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { error, detail: detail.into(), retry_after: None }
    }

    /// The circuit breaker lets no request pass.
    pub fn breaker_open(upstream: &str, open: Open) -> Self {
        let why = format!("upstream {upstream}: {open}");
        Self { retry_after: Some(open.retry_after), ..Self::new(ProxyError::NO_ENDPOINT, why) }
    }

    /// As many requests are under way as may be.
    pub fn full(upstream: &str, full: TurnedAway) -> Self {
        let why = format!("upstream {upstream}: {full}");
        Self { retry_after: Some(full.retry_after), ..Self::new(ProxyError::OVERLOAD, why) }
    }

    /// The upstream has no endpoint, or none with the tags that the route asks for.
    pub fn no_endpoint(upstream: &Upstream) -> Self {
        let set = upstream.set();
        let why = match &set.error {
            Some(error) => format!("upstream {} has no endpoint: {error}", upstream.name),
            None if set.members.is_empty() => format!("upstream {} has no endpoint", upstream.name),
            None => format!(
                "upstream {}: none of its {} endpoints may be chosen; /upstreams on the admin port says why",
                upstream.name,
                set.members.len()
            ),
        };
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(ProxyError::NO_ENDPOINT, why) }
    }

    /// No connection to an endpoint of `upstream`.
    pub fn connect(upstream: &str, error: &ConnectError) -> Self {
        let kind = match error {
            ConnectError::Dial(dial) => match dial {
                DialError::Refused(_) => ProxyError::REFUSED,
                DialError::Timeout(..) => ProxyError::CONNECT_TIMEOUT,
                DialError::Unreachable(..) => ProxyError::UNROUTABLE,
                DialError::Exhausted(..) => ProxyError::OVERLOAD,
            },
            ConnectError::Handshake { error, .. } => Self::handshake_kind(error),
            ConnectError::Refused(..) => ProxyError::PROHIBITED,
            ConnectError::Full { .. } => ProxyError::OVERLOAD,
            ConnectError::Protocol(..) => ProxyError::TERMINATED,
            ConnectError::NotMeshed(_) => ProxyError::TLS,
        };
        let response = Self::new(kind, format!("upstream {upstream}: {error}"));
        if kind.status == StatusCode::SERVICE_UNAVAILABLE {
            Self { retry_after: Some(Duration::from_secs(1)), ..response }
        } else {
            response
        }
    }

    /// The error type of a failed handshake.
    pub fn handshake_kind(error: &HandshakeError) -> ProxyError {
        match error {
            HandshakeError::Identity { .. } => ProxyError::CERTIFICATE,
            HandshakeError::Timeout(_) => ProxyError::CONNECT_TIMEOUT,
            HandshakeError::NotOfTheMesh(_) => ProxyError::TLS,
            HandshakeError::Tls(fault) => match fault {
                TlsFault::Certificate { .. } => ProxyError::CERTIFICATE,
                TlsFault::Alert(_) => ProxyError::TLS_ALERT,
                TlsFault::NoProtocol | TlsFault::Protocol(_) => ProxyError::TLS,
                TlsFault::Lost(_) => ProxyError::TERMINATED,
            },
            HandshakeError::NotCertified => ProxyError::NOT_CERTIFIED,
        }
    }

    /// Nobody knows where the request goes.
    pub fn destination(error: &DestinationError) -> Self {
        let kind = match error {
            DestinationError::Lookup(_) => ProxyError::DNS,
            DestinationError::Config(_) => ProxyError::NO_ENDPOINT,
            DestinationError::Overload | DestinationError::Stopping => ProxyError::OVERLOAD,
        };
        Self { retry_after: Some(Duration::from_secs(1)), ..Self::new(kind, error.to_string()) }
    }

    /// The value of `Proxy-Status`, also for the access log.
    pub fn proxy_status(&self) -> String {
        let mut value = format!("outrigger; error={}; details=\"", self.error.kind);
        // A structured-field string is printable ASCII with quote and backslash escaped (RFC 9651 3.3.3).
        for c in self.detail.chars().take(MAX_DETAIL) {
            match c {
                '"' | '\\' => {
                    value.push('\\');
                    value.push(c);
                }
                ' '..='~' => value.push(c),
                _ => value.push('?'),
            }
        }
        value.push('"');
        value
    }

    /// The response, in the form that the caller understands; `grpc`: it made a gRPC call.
    pub fn to_response(&self, grpc: bool) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        if grpc {
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            response.headers_mut().insert(GRPC_STATUS, HeaderValue::from(self.error.grpc_status));
            if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.detail)) {
                response.headers_mut().insert(GRPC_MESSAGE, message);
            }
        } else {
            *response.status_mut() = self.error.status;
            let text = format!("{}: {}\n", self.error.kind, self.detail);
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
            *response.body_mut() = Body::full(text);
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        if let Ok(value) = HeaderValue::from_str(&self.proxy_status()) {
            response.headers_mut().insert(PROXY_STATUS, value);
        }
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
        }
        response
    }
}

/// gRPC's encoding of `grpc-message`: printable ASCII but `%`.
pub(super) fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => {
                // Writing to a string can't fail.
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_detail_is_a_structured_field_string_whatever_it_holds() {
        let response = LocalResponse::new(ProxyError::REFUSED, "upstream \"a\\b\": ünknown\r\nX: y");
        assert_eq!(
            response.proxy_status(),
            "outrigger; error=connection_refused; details=\"upstream \\\"a\\\\b\\\": ?nknown??X: y\""
        );
        assert!(HeaderValue::from_str(&response.proxy_status()).is_ok());
    }

    #[test]
    fn a_grpc_caller_gets_a_trailers_only_response() {
        let response = LocalResponse::new(ProxyError::TIMEOUT, "50 % ü").to_response(true);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "4");
        assert_eq!(response.headers()["grpc-message"], "50 %25 %C3%BC");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert!(response.body().is_end());
    }

    #[test]
    fn others_get_the_status() {
        let mut response = LocalResponse::new(ProxyError::OVERLOAD, "full");
        response.retry_after = Some(Duration::from_millis(200));
        let response = response.to_response(false);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()["retry-after"], "1");
        assert_eq!(
            response.headers()["proxy-status"],
            "outrigger; error=connection_limit_reached; details=\"full\""
        );
    }
}
