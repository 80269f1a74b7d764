//! The span of a hop that was recorded, by OpenTelemetry's semantic conventions: the stable ones of HTTP
//! (<https://opentelemetry.io/docs/specs/semconv/http/http-spans/>), and those of RPC for gRPC.
//!
//! Never a query, which may hold credentials, nor any header but `User-Agent`.

use std::net::SocketAddr;
use std::time::{Instant, SystemTime};

use http::uri::Authority;
use http::{Method, Version};

use super::context::SpanContext;
use super::hop::{Retried, SampledHop};
use super::span::{Span, SpanEvent, SpanKind, Value};
use crate::config::grpc_status_name;
use crate::telemetry::{Direction, RequestRecord};

/// Bytes of one text; a path may have 64 KiB, and the queue is bounded in spans.
const LONGEST_TEXT: usize = 1024;
/// A method that nobody registered: anybody could make up one a request.
const OTHER_METHOD: &str = "_OTHER";
/// Codes of gRPC by which the server is at fault: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
/// DATA_LOSS.
const SERVER_FAULTS: [u16; 6] = [2, 4, 12, 13, 14, 15];
/// The response had begun when it broke off: an error whatever its status says.
const INCOMPLETE: &str = "http_response_incomplete";

/// The span of a request that has ended just now.
pub(crate) fn span_of(record: &RequestRecord<'_>, context: &SpanContext, hop: &SampledHop) -> Span {
    let (ended, now) = (SystemTime::now(), Instant::now());
    let before = |moment: Instant| ended - now.saturating_duration_since(moment);
    let kind = match record.direction {
        Direction::Inbound => SpanKind::Server,
        Direction::Outbound => SpanKind::Client,
    };
    let procedure = record.is_grpc.then(|| procedure(record.path)).flatten();
    let error = error_of(record, kind);
    let method = known(record.method);
    let name = match procedure {
        Some((service, method)) => text(&format!("{service}/{method}")),
        None if method == OTHER_METHOD => "HTTP".into(),
        None => method.into(),
    };
    let mut attributes = Attributes(Vec::with_capacity(24));
    attributes.request(record, hop, kind, method);
    attributes.peers(record, kind);
    attributes.outcome(record);
    if let Some((service, method)) = procedure {
        attributes.text("rpc.system", "grpc");
        attributes.text("rpc.service", service);
        attributes.text("rpc.method", method);
    }
    if let Some(error) = &error {
        attributes.text("error.type", error);
    }
    attributes.ours(record);
    Span {
        trace_id: context.trace_id,
        span_id: context.span_id,
        parent: hop.parent,
        trace_state: hop.trace_state.clone(),
        link: hop.link,
        kind,
        name,
        started: ended - record.duration,
        ended,
        attributes: attributes.0,
        events: hop.retries.iter().map(|retried| event(retried, before(retried.at))).collect(),
        error: error.map(|_| record.proxy_status.map(text).unwrap_or_default()),
    }
}

fn event(retried: &Retried, at: SystemTime) -> SpanEvent {
    let mut attributes = Attributes(Vec::with_capacity(3));
    if let Some(endpoint) = retried.endpoint {
        attributes.text("outrigger.endpoint", &endpoint.to_string());
    }
    attributes.text("outrigger.reason", &retried.reason);
    if let Some(status) = retried.status {
        attributes.number("http.response.status_code", status);
    }
    SpanEvent { name: "retry", at, attributes: attributes.0 }
}

fn text(text: &str) -> String {
    text[..text.floor_char_boundary(LONGEST_TEXT)].into()
}

fn known(method: &Method) -> &str {
    let is_known = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
        Method::PATCH,
        Method::CONNECT,
        Method::TRACE,
    ]
    .contains(method);
    if is_known { method.as_str() } else { OTHER_METHOD }
}

/// Service and method of a gRPC call's path.
fn procedure(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

/// What went wrong, by the conventions' rules of what is an error of which side: the word of `Proxy-Status`, else
/// gRPC's, else the status.
fn error_of(record: &RequestRecord<'_>, kind: SpanKind) -> Option<String> {
    let ours = record.proxy_status.and_then(proxy_error);
    let grpc = record.grpc_status.filter(|status| match kind {
        SpanKind::Client => *status != 0,
        SpanKind::Server => SERVER_FAULTS.contains(status),
    });
    let is_error = match kind {
        // Also if a fallback stood in: the upstream has failed.
        SpanKind::Client => record.code >= 400 || ours.is_some(),
        SpanKind::Server => record.code >= 500 || ours == Some(INCOMPLETE),
    };
    match (ours, grpc) {
        (Some(ours), _) if is_error || grpc.is_some() => Some(ours.into()),
        (_, Some(status)) => Some(grpc_status_name(status).map_or_else(|| status.to_string(), Into::into)),
        (_, None) => is_error.then(|| record.code.to_string()),
    }
}

/// The error type in a value of `Proxy-Status`.
fn proxy_error(status: &str) -> Option<&str> {
    let (_, rest) = status.split_once("error=")?;
    rest.split([';', ',', ' ']).next()
}

struct Attributes(Vec<(&'static str, Value)>);

impl Attributes {
    fn text(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.0.push((name, Value::Text(text(value))));
        }
    }

    fn number(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    fn request(&mut self, record: &RequestRecord<'_>, hop: &SampledHop, kind: SpanKind, method: &str) {
        self.text("http.request.method", method);
        if method == OTHER_METHOD {
            self.text("http.request.method_original", record.method.as_str());
        }
        let (scheme, usual_port) = if hop.is_https { ("https", 443) } else { ("http", 80) };
        self.text("url.scheme", scheme);
        let path = record.path.split(['?', '#']).next().unwrap_or_default();
        self.text("url.path", path);
        // Not as it came: it could hold a password.
        if let Ok(authority) = record.authority.parse::<Authority>() {
            let (host, port) = (authority.host(), authority.port_u16());
            if kind == SpanKind::Client {
                let port = port.map(|port| format!(":{port}")).unwrap_or_default();
                self.text("url.full", &format!("{scheme}://{host}{port}{path}"));
            }
            self.text("server.address", host.trim_matches(['[', ']']));
            self.number("server.port", port.unwrap_or(usual_port));
        }
        self.text("network.protocol.name", "http");
        self.text("network.protocol.version", version(record.version));
        if let Some(agent) = hop.user_agent.as_ref().and_then(|agent| agent.to_str().ok()) {
            self.text("user_agent.original", agent);
        }
    }

    fn peers(&mut self, record: &RequestRecord<'_>, kind: SpanKind) {
        let peer: Option<SocketAddr> = match kind {
            SpanKind::Client => record.endpoint,
            SpanKind::Server => Some(record.client),
        };
        if kind == SpanKind::Server {
            self.text("client.address", &record.client.ip().to_string());
        }
        if let Some(peer) = peer {
            self.text("network.peer.address", &peer.ip().to_string());
            self.number("network.peer.port", peer.port());
        }
    }

    fn outcome(&mut self, record: &RequestRecord<'_>) {
        self.number("http.response.status_code", record.code);
        if let Some(status) = record.grpc_status {
            self.number("rpc.grpc.status_code", status);
        }
        if record.retries > 0 {
            self.number("http.request.resend_count", record.retries);
        }
    }

    fn ours(&mut self, record: &RequestRecord<'_>) {
        self.text("outrigger.route", record.route);
        self.text("outrigger.upstream", record.upstream);
        if let Some(peer) = record.peer {
            self.text("outrigger.peer.identity", peer.as_str());
        }
        if let Some(status) = record.proxy_status {
            self.text("outrigger.proxy_status", status);
        }
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => "3",
    }
}

#[cfg(test)]
mod tests;
