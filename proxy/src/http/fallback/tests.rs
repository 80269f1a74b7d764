use http::{Method, Request};
use http_body_util::BodyExt;

use super::*;
use crate::http::ProxyError;
use crate::http::response_cache::Answerer;

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    list.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn fixed(status: u16, body: Option<&str>, list: &[(&str, &str)]) -> Fallback {
    let stated = config::Fallback {
        status: Some(status),
        body: body.map(Into::into),
        headers: list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..config::Fallback::default()
    };
    Fallback::new(&stated, None).unwrap()
}

fn cached(max_age: &str) -> config::Fallback {
    let cache = config::CacheFallback { max_age: Some(max_age.parse().unwrap()), max_bytes: None };
    config::Fallback { cache: Some(cache), ..config::Fallback::default() }
}

fn answer(fallback: &Fallback, request: &[(&str, &str)]) -> Response<Body> {
    let failure = Failure::Received(StatusCode::SERVICE_UNAVAILABLE);
    fallback.answer(&fields(request), None, failure, Instant::now()).unwrap()
}

#[tokio::test]
async fn a_fixed_response_is_as_stated_and_says_what_went_wrong() {
    let fallback = fixed(
        200,
        Some("[]"),
        &[("Content-Type", "application/json"), ("X-Stale", "1"), ("outrigger-client-id", "x")],
    );
    let local = LocalResponse::new(ProxyError::REFUSED, "upstream api: refused");
    let response = fallback.answer(&HeaderMap::new(), None, Failure::Local(&local), Instant::now()).unwrap();
    assert_eq!(response.status(), 200);
    let want = fields(&[
        ("content-type", "application/json"),
        ("x-stale", "1"),
        ("content-length", "2"),
        ("proxy-status", "outrigger; error=connection_refused; details=\"upstream api: refused\""),
    ]);
    assert_eq!(response.headers(), &want);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "[]");
}

#[test]
fn a_body_is_plain_text_unless_the_config_says_otherwise() {
    for (status, body, content_type, length) in [
        (503, Some("later"), Some("text/plain; charset=utf-8"), Some("5")),
        (503, None, None, Some("0")),
        (204, Some("dropped"), None, None),
        (205, None, None, None),
        (304, Some("dropped"), None, None),
    ] {
        let response = answer(&fixed(status, body, &[]), &[]);
        let field = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!((field("content-type"), field("content-length")), (content_type, length), "{status}");
        assert_eq!(response.body().is_end(), length.is_none_or(|length| length == "0"), "{status}");
        assert_eq!(field("proxy-status"), Some("outrigger; received-status=503"));
    }
}

#[test]
fn a_grpc_caller_gets_an_outcome_that_it_understands() {
    let grpc = [("content-type", "application/grpc")];
    for (status, want) in
        [(200, "14"), (400, "13"), (401, "16"), (403, "7"), (404, "12"), (429, "14"), (503, "14"), (500, "2")]
    {
        let response = answer(&fixed(status, Some("50 % off"), &[("x-a", "1")]), &grpc);
        assert_eq!(response.status(), 200, "{status}");
        let want = fields(&[
            ("x-a", "1"),
            ("content-type", "application/grpc"),
            ("grpc-status", want),
            ("grpc-message", "50 %25 off"),
            ("proxy-status", "outrigger; received-status=503"),
        ]);
        assert_eq!(response.headers(), &want, "{status}");
        assert!(response.body().is_end(), "{status}");
    }
    let stated = [("content-type", "application/grpc"), ("grpc-status", "0")];
    let response = answer(&fixed(200, None, &stated), &grpc);
    assert_eq!(response.headers()["grpc-status"], "0", "what the config says of gRPC itself holds");
}

#[test]
fn another_upstream_is_named_and_answers_for_itself() {
    let stated = config::Fallback { upstream: Some("spare".into()), ..config::Fallback::default() };
    let fallback = Fallback::new(&stated, None).unwrap();
    assert!(matches!(&fallback, Fallback::Upstream(name) if **name == *"spare"));
    let failure = Failure::Received(StatusCode::BAD_GATEWAY);
    assert!(fallback.answer(&HeaderMap::new(), None, failure, Instant::now()).is_none());
    assert!(Fallback::new(&config::Fallback::default(), None).is_none());
}

#[tokio::test]
async fn the_last_good_response_is_served_and_says_why() {
    let fallback = Fallback::new(&cached("60s"), None).unwrap();
    let now = Instant::now();
    let asked = || {
        let request = Request::builder().method(Method::GET).uri("http://api/").body(Body::empty()).unwrap();
        let answerer = Answerer { route: "".into(), upstream: "api".into(), subset: None, dialled: None };
        Asked::of(&request, answerer, now)
    };
    let answer = |failure: Failure<'_>| fallback.answer(&HeaderMap::new(), asked().as_ref(), failure, now);
    let timeout = LocalResponse::new(ProxyError::TIMEOUT, "upstream api: slow");
    assert!(answer(Failure::Local(&timeout)).is_none(), "nothing is there yet");
    assert!(fallback.answer(&HeaderMap::new(), None, Failure::Local(&timeout), now).is_none());

    let good = Response::new(Body::full("good"));
    let passed = fallback.cache().unwrap().pass(asked().unwrap(), good, now, std::time::SystemTime::now());
    passed.into_body().collect().await.unwrap();

    let response = answer(Failure::Local(&timeout)).unwrap();
    assert_eq!(response.headers()["cache-status"], "outrigger; hit; ttl=0; detail=http_response_timeout");
    assert_eq!(
        response.headers()["proxy-status"],
        "outrigger; error=http_response_timeout; details=\"upstream api: slow\""
    );
    let response = answer(Failure::Received(StatusCode::BAD_GATEWAY)).unwrap();
    assert_eq!(response.headers()["cache-status"], "outrigger; hit; ttl=0; detail=status-502");
    assert_eq!(response.headers()["proxy-status"], "outrigger; received-status=502");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "good");
}

#[test]
fn a_cache_outlives_a_change_of_the_config_that_is_not_about_it() {
    let before = Fallback::new(&cached("60s"), None).unwrap();
    let same = Fallback::new(&cached("1m"), Some(&before)).unwrap();
    assert!(Arc::ptr_eq(before.cache().unwrap(), same.cache().unwrap()));
    let other = Fallback::new(&cached("61s"), Some(&before)).unwrap();
    assert!(!Arc::ptr_eq(before.cache().unwrap(), other.cache().unwrap()));
    let was_fixed = Fallback::new(&cached("60s"), Some(&fixed(503, None, &[]))).unwrap();
    assert!(was_fixed.cache().is_some());
}
