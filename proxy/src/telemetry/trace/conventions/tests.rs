use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::header::HeaderValue;
use outrigger_ca::SpiffeId;

use super::*;
use crate::telemetry::Tls;

const CONTEXT: SpanContext =
    SpanContext { trace_id: 1, span_id: 2, is_sampled: true, is_random: true, is_debug: false };

fn hop() -> SampledHop {
    SampledHop {
        parent: Some(3),
        link: Some((4, 5)),
        trace_state: Some("foo=1".into()),
        is_https: false,
        user_agent: Some(HeaderValue::from_static("curl/8")),
        retries: Vec::new(),
    }
}

struct Names {
    route: Arc<str>,
    upstream: Arc<str>,
}

impl Names {
    fn new() -> Self {
        Self { route: "orders".into(), upstream: "api".into() }
    }

    fn record(&self, direction: Direction) -> RequestRecord<'_> {
        RequestRecord {
            direction,
            route: &self.route,
            upstream: &self.upstream,
            code: 200,
            is_grpc: false,
            grpc_status: None,
            tls: Tls::Mesh,
            peer: None,
            duration: Duration::from_millis(12),
            method: &Method::GET,
            path: "/orders",
            authority: "api.shop:8080",
            version: Version::HTTP_11,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: Some(([10, 0, 0, 7], 8080).into()),
            retries: 0,
            retry_refused: false,
            client: ([10, 0, 0, 5], 40_000).into(),
            proxy_status: None,
            trace: None,
        }
    }
}

fn shown(span: &Span) -> Vec<String> {
    let value = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(boolean) => boolean.to_string(),
    };
    span.attributes.iter().map(|(name, of)| format!("{name}={}", value(of))).collect()
}

fn get(span: &Span, name: &str) -> Option<String> {
    shown(span).iter().find_map(|one| one.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
}

#[test]
fn a_request_out_is_a_client_span_with_every_attribute_and_without_its_query() {
    let names = Names::new();
    let peer = SpiffeId::new("cluster.local", "shop", "api").unwrap();
    let record = RequestRecord {
        peer: Some(&peer),
        path: "/orders?token=secret",
        authority: "user:password@api.shop:8080",
        retries: 2,
        ..names.record(Direction::Outbound)
    };
    let span = span_of(&record, &CONTEXT, &hop());
    assert_eq!((span.trace_id, span.span_id, span.parent, span.link), (1, 2, Some(3), Some((4, 5))));
    assert_eq!((span.kind, span.name.as_str(), &span.error), (SpanKind::Client, "GET", &None));
    assert_eq!(span.trace_state.as_deref(), Some("foo=1"));
    assert_eq!(span.ended.duration_since(span.started).unwrap(), Duration::from_millis(12));
    assert!(span.started > UNIX_EPOCH);
    assert_eq!(
        shown(&span),
        [
            "http.request.method=GET",
            "url.scheme=http",
            "url.path=/orders",
            "url.full=http://api.shop:8080/orders",
            "server.address=api.shop",
            "server.port=8080",
            "network.protocol.name=http",
            "network.protocol.version=1.1",
            "user_agent.original=curl/8",
            "network.peer.address=10.0.0.7",
            "network.peer.port=8080",
            "http.response.status_code=200",
            "http.request.resend_count=2",
            "outrigger.route=orders",
            "outrigger.upstream=api",
            "outrigger.peer.identity=spiffe://cluster.local/ns/shop/sa/api",
        ]
    );
}

#[test]
fn a_request_in_is_a_server_span_whose_peer_is_the_client() {
    let names = Names::new();
    let record = RequestRecord {
        authority: "[fd00::1]",
        version: Version::HTTP_2,
        ..names.record(Direction::Inbound)
    };
    let span = span_of(&record, &CONTEXT, &SampledHop { is_https: true, ..hop() });
    assert_eq!(span.kind, SpanKind::Server);
    for (name, value) in [
        ("url.scheme", Some("https")),
        ("url.full", None),
        ("server.address", Some("fd00::1")),
        ("server.port", Some("443")),
        ("client.address", Some("10.0.0.5")),
        ("network.peer.address", Some("10.0.0.5")),
        ("network.peer.port", Some("40000")),
        ("network.protocol.version", Some("2")),
    ] {
        assert_eq!(get(&span, name).as_deref(), value, "{name}");
    }
}

#[test]
fn an_error_is_what_the_conventions_call_one_on_each_side() {
    use Direction::{Inbound, Outbound};
    let refused = "outrigger; error=connection_refused; details=\"upstream api\"";
    let denied = "outrigger; error=http_request_denied; details=\"port 80\"";
    let incomplete = "outrigger; error=http_response_incomplete";
    let instead = "outrigger; received-status=503";
    let names = Names::new();
    for (direction, code, grpc_status, proxy_status, error_type) in [
        (Outbound, 200, None, None, None),
        (Outbound, 302, None, None, None),
        (Outbound, 404, None, None, Some("404")),
        (Outbound, 503, None, None, Some("503")),
        (Outbound, 502, None, Some(refused), Some("connection_refused")),
        (Outbound, 200, None, Some(refused), Some("connection_refused")),
        (Outbound, 200, None, Some(instead), None),
        (Outbound, 200, None, Some(incomplete), Some("http_response_incomplete")),
        (Outbound, 200, Some(0), None, None),
        (Outbound, 200, Some(5), None, Some("NOT_FOUND")),
        (Outbound, 200, Some(99), None, Some("99")),
        (Outbound, 200, Some(14), Some(refused), Some("connection_refused")),
        (Inbound, 200, None, None, None),
        (Inbound, 404, None, None, None),
        (Inbound, 403, None, Some(denied), None),
        (Inbound, 500, None, None, Some("500")),
        (Inbound, 502, None, Some(refused), Some("connection_refused")),
        (Inbound, 200, None, Some(incomplete), Some("http_response_incomplete")),
        (Inbound, 200, Some(0), None, None),
        (Inbound, 200, Some(2), None, Some("UNKNOWN")),
        (Inbound, 200, Some(3), None, None),
        (Inbound, 200, Some(4), None, Some("DEADLINE_EXCEEDED")),
        (Inbound, 200, Some(5), None, None),
        (Inbound, 200, Some(8), None, None),
        (Inbound, 200, Some(12), None, Some("UNIMPLEMENTED")),
        (Inbound, 200, Some(13), None, Some("INTERNAL")),
        (Inbound, 200, Some(14), None, Some("UNAVAILABLE")),
        (Inbound, 200, Some(15), None, Some("DATA_LOSS")),
        (Inbound, 200, Some(16), None, None),
    ] {
        let record = RequestRecord {
            code,
            is_grpc: grpc_status.is_some(),
            grpc_status,
            proxy_status,
            ..names.record(direction)
        };
        let span = span_of(&record, &CONTEXT, &hop());
        let what = format!("{direction:?} {code} {grpc_status:?} {proxy_status:?}");
        assert_eq!(get(&span, "error.type").as_deref(), error_type, "{what}");
        let description = error_type.map(|_| proxy_status.unwrap_or_default().to_owned());
        assert_eq!(span.error, description, "{what}");
        assert_eq!(get(&span, "outrigger.proxy_status").as_deref(), proxy_status, "{what}");
        assert_eq!(get(&span, "rpc.grpc.status_code"), grpc_status.map(|status| status.to_string()));
    }
}

#[test]
fn the_name_is_the_method_or_the_procedure_and_nothing_anybody_makes_up() {
    let names = Names::new();
    let brew = Method::from_bytes(b"BREW").unwrap();
    for (method, is_grpc, path, name) in [
        (&Method::GET, false, "/users/123", "GET"),
        (&Method::PATCH, false, "/", "PATCH"),
        (&brew, false, "/pot", "HTTP"),
        (&Method::POST, true, "/shop.Orders/Get", "shop.Orders/Get"),
        (&Method::POST, true, "/shop.Orders", "POST"),
        (&Method::POST, true, "/a/b/c", "POST"),
        (&Method::POST, false, "/shop.Orders/Get", "POST"),
    ] {
        let record = RequestRecord { method, is_grpc, path, ..names.record(Direction::Outbound) };
        let span = span_of(&record, &CONTEXT, &hop());
        assert_eq!(span.name, name, "{method} {path}");
        let (service, procedure) = name.split_once('/').unzip();
        assert_eq!(get(&span, "rpc.system").as_deref(), service.map(|_| "grpc"));
        assert_eq!(get(&span, "rpc.service").as_deref(), service);
        assert_eq!(get(&span, "rpc.method").as_deref(), procedure);
    }
    let record = RequestRecord { method: &brew, ..names.record(Direction::Outbound) };
    let span = span_of(&record, &CONTEXT, &hop());
    assert_eq!(get(&span, "http.request.method").as_deref(), Some("_OTHER"));
    assert_eq!(get(&span, "http.request.method_original").as_deref(), Some("BREW"));
}

#[test]
fn each_try_that_was_followed_by_another_is_an_event_with_where_and_why() {
    let names = Names::new();
    let now = Instant::now();
    let retried =
        |endpoint, reason: &str, status| Retried { at: now, endpoint, reason: reason.into(), status };
    let hop = SampledHop {
        retries: vec![
            retried(Some(([10, 0, 0, 8], 80).into()), "status 503", Some(503)),
            retried(None, "connection refused", None),
        ],
        ..hop()
    };
    let span = span_of(&names.record(Direction::Outbound), &CONTEXT, &hop);
    let [first, second] = span.events.as_slice() else { panic!("{:?}", span.events) };
    assert_eq!((first.name, second.name), ("retry", "retry"));
    assert!(first.at <= span.ended);
    assert_eq!(
        first.attributes,
        [
            ("outrigger.endpoint", "10.0.0.8:80".into()),
            ("outrigger.reason", "status 503".into()),
            ("http.response.status_code", 503_u16.into())
        ]
    );
    assert_eq!(second.attributes, [("outrigger.reason", "connection refused".into())]);
}

#[test]
fn long_text_is_cut_between_characters() {
    let names = Names::new();
    let path = format!("/{}", "é".repeat(LONGEST_TEXT));
    let span = span_of(&RequestRecord { path: &path, ..names.record(Direction::Inbound) }, &CONTEXT, &hop());
    assert_eq!(get(&span, "url.path").unwrap(), path[..LONGEST_TEXT - 1]);
}
