use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::io::AsyncReadExt;

use super::*;
use crate::config;
use crate::http::{LocalResponse, ProxyError};
use crate::net::DialError;
use crate::upstream::{AfterTry, RetryPolicy};

/// What `on` states, which statuses are tried again, and which are not.
type Retried<'a> = (Option<&'a [&'a str]>, &'a [u16], &'a [u16]);

const NO_FIELDS: &[(&str, &str)] = &[];

fn fields(list: &[(&str, &str)]) -> HeaderMap {
    list.iter()
        .map(|(name, value)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        })
        .collect()
}

/// A policy, and whether the route says `idempotent: true`.
struct Policy(RetryPolicy, bool);

impl Policy {
    fn new(retry: &config::Retry, idempotent: bool) -> Self {
        Self(RetryPolicy::new(retry), idempotent)
    }

    fn verdict(
        &self,
        method: &Method,
        tried: Tried<'_>,
        retries: u32,
        now: SystemTime,
        rng: &mut SmallRng,
    ) -> AfterTry {
        self.0.verdict(self.1 || method.is_idempotent(), tried, retries, now, rng)
    }
}

fn policy(on: Option<&[&str]>, idempotent: bool) -> Policy {
    let on = on.map(|on| on.iter().map(|text| (*text).to_owned()).collect());
    Policy::new(&config::Retry { on, ..config::Retry::default() }, idempotent)
}

fn answered(status: u16, headers: &HeaderMap) -> Tried<'_> {
    Tried::Answered {
        status: StatusCode::from_u16(status).unwrap(),
        headers,
        mark: PeerMark::of(headers, true),
    }
}

/// `done`, `exhausted` or `retry`.
fn word(policy: &Policy, method: &Method, tried: Tried<'_>, retries: u32) -> &'static str {
    match policy.verdict(method, tried, retries, SystemTime::now(), &mut SmallRng::seed_from_u64(7)) {
        AfterTry::Done => "done",
        AfterTry::Exhausted => "exhausted",
        AfterTry::Retry { .. } => "retry",
    }
}

#[test]
fn what_was_not_processed_is_tried_again_whatever_it_is() {
    let unprocessed = fields(&[("outrigger-unprocessed", "1")]);
    for on in [None, Some([].as_slice()), Some(["503"].as_slice())] {
        let policy = policy(on, false);
        for method in [Method::GET, Method::POST, Method::PATCH, Method::from_bytes(b"PAY").unwrap()] {
            assert_eq!(word(&policy, &method, Tried::Unprocessed, 0), "retry", "{on:?} {method}");
            assert_eq!(word(&policy, &method, answered(503, &unprocessed), 0), "retry", "{on:?} {method}");
            assert_eq!(word(&policy, &method, Tried::TurnedAway, 0), "done", "{on:?} {method}");
        }
    }
}

#[test]
fn all_else_needs_a_request_that_may_be_processed_twice() {
    let none = HeaderMap::new();
    let unavailable = fields(&[("content-type", "application/grpc"), ("grpc-status", "14")]);
    let failures: [(&str, Tried<'_>); 5] = [
        ("lost", Tried::Lost),
        ("502", answered(502, &none)),
        ("503", answered(503, &none)),
        ("504", answered(504, &none)),
        ("UNAVAILABLE", answered(200, &unavailable)),
    ];
    for (name, idempotent) in [
        ("GET", true),
        ("HEAD", true),
        ("OPTIONS", true),
        ("TRACE", true),
        ("PUT", true),
        ("DELETE", true),
        ("POST", false),
        ("PATCH", false),
        ("CONNECT", false),
        ("PAY", false),
        ("get", false),
    ] {
        let method = Method::from_bytes(name.as_bytes()).unwrap();
        for (what, tried) in failures {
            let want = if idempotent { "retry" } else { "done" };
            assert_eq!(word(&policy(None, false), &method, tried, 0), want, "{name} {what}");
            assert_eq!(word(&policy(None, true), &method, tried, 0), "retry", "{name} {what}, by the route");
        }
    }
}

#[test]
fn what_no_server_has_looked_at_was_not_processed() {
    let unprocessed = fields(&[("outrigger-unprocessed", "1")]);
    let none = HeaderMap::new();
    for (tried, post) in [
        (Tried::Unprocessed, true),
        (Tried::TurnedAway, true),
        (answered(503, &unprocessed), true),
        (answered(503, &none), false),
        (Tried::Lost, false),
        (Tried::TimedOut, false),
    ] {
        assert_eq!(tried.is_unprocessed(), post, "{tried:?}");
    }
}

#[test]
fn only_what_is_configured_is_tried_again() {
    let cases: &[Retried] = &[
        (None, &[502, 503, 504], &[200, 301, 400, 404, 408, 429, 500, 501, 505, 599]),
        (Some(&["500", "429", "599"]), &[500, 429, 599], &[502, 503, 504, 428, 598]),
        (Some(&["connectFailure", "refusedStream"]), &[], &[502, 503, 504]),
        (Some(&[]), &[], &[502, 503, 504]),
    ];
    for (on, retried, passed_on) in cases {
        let policy = policy(*on, false);
        let none = HeaderMap::new();
        for status in *retried {
            assert_eq!(word(&policy, &Method::GET, answered(*status, &none), 0), "retry", "{on:?} {status}");
        }
        for status in *passed_on {
            assert_eq!(word(&policy, &Method::GET, answered(*status, &none), 0), "done", "{on:?} {status}");
        }
    }
    for (on, code, want) in [
        (None, "14", "retry"),
        (None, "0", "done"),
        (None, "10", "done"),
        (None, "46", "done"),
        (None, "x", "done"),
        (None, "", "done"),
        (Some(["ABORTED"].as_slice()), "10", "retry"),
        (Some(["ABORTED"].as_slice()), "14", "done"),
    ] {
        let headers = fields(&[("grpc-status", code)]);
        let got = word(&policy(on, true), &Method::POST, answered(200, &headers), 0);
        assert_eq!(got, want, "{on:?} grpc-status {code}");
    }
    assert_eq!(word(&policy(Some(&["503"]), false), &Method::GET, Tried::Lost, 0), "done");
}

#[test]
fn a_limit_for_one_try_is_there_to_try_again_unless_the_config_lists_what_is() {
    let limit: config::Duration = "2s".parse().unwrap();
    for (on, stated, want) in [
        (None, true, "retry"),
        (None, false, "done"),
        (Some("503"), true, "done"),
        (Some("timeout"), true, "retry"),
    ] {
        let retry = config::Retry {
            on: on.map(|text: &str| vec![text.to_owned()]),
            per_try_timeout: stated.then_some(limit),
            ..config::Retry::default()
        };
        let policy = Policy::new(&retry, false);
        assert_eq!(policy.0.per_try_timeout(), stated.then(|| limit.as_std()));
        assert_eq!(word(&policy, &Method::GET, Tried::TimedOut, 0), want, "{on:?}");
        assert_eq!(word(&policy, &Method::POST, Tried::TimedOut, 0), "done", "{on:?}");
    }
}

#[test]
fn the_number_of_tries_is_limited_and_their_end_is_told() {
    let none = HeaderMap::new();
    for (stated, want) in [
        (None, ["retry", "retry", "exhausted", "exhausted", "exhausted"]),
        (Some(0), ["done", "done", "done", "done", "done"]),
        (Some(1), ["retry", "exhausted", "exhausted", "exhausted", "exhausted"]),
        (Some(3), ["retry", "retry", "retry", "exhausted", "exhausted"]),
        (Some(1000), ["retry", "retry", "retry", "exhausted", "exhausted"]),
    ] {
        let retry = config::Retry { attempts: stated, ..config::Retry::default() };
        let policy = Policy::new(&retry, false);
        for (retries, want) in (0..).zip(want) {
            let got = [Tried::Unprocessed, Tried::Lost, answered(503, &none)]
                .map(|tried| word(&policy, &Method::GET, tried, retries));
            assert_eq!(got, [want; 3], "{stated:?} attempts, after {retries} retries");
            assert_eq!(word(&policy, &Method::GET, answered(200, &none), retries), "done");
        }
    }
}

#[test]
fn what_a_proxy_further_in_gave_up_is_not_tried_again() {
    let both = [("outrigger-retries", "exhausted"), ("outrigger-unprocessed", "1")];
    for (list, meshed, want) in [
        (NO_FIELDS, true, PeerMark::None),
        (&both[..1], true, PeerMark::Exhausted),
        (&both[..1], false, PeerMark::Exhausted),
        (&both, true, PeerMark::Exhausted),
        (&both[1..], true, PeerMark::Unprocessed),
        (&both[1..], false, PeerMark::None),
        (&[("outrigger-unprocessed", "0")], true, PeerMark::None),
        (&[("outrigger-retries", "2")], true, PeerMark::None),
        (
            &[("proxy-status", "outrigger; received-status=503; outrigger-retries=exhausted")],
            false,
            PeerMark::Exhausted,
        ),
        (
            &[("proxy-status", "a"), ("proxy-status", "b, outrigger; outrigger-retries=exhausted")],
            false,
            PeerMark::Exhausted,
        ),
        (&[("proxy-status", "outrigger; error=connection_refused")], true, PeerMark::None),
    ] {
        let headers = fields(list);
        assert_eq!(PeerMark::of(&headers, meshed), want, "{list:?} meshed {meshed}");
    }
    let exhausted = fields(&both);
    for attempts in [0, 2] {
        let retry = config::Retry { attempts: Some(attempts), ..config::Retry::default() };
        let policy = Policy::new(&retry, true);
        // Said again to whoever is further out.
        assert_eq!(word(&policy, &Method::GET, answered(503, &exhausted), 0), "exhausted");
    }
}

#[test]
fn a_mark_is_read_as_it_was_written() {
    let mut passed_on = fields(&[("proxy-status", "cdn; error=dns_error")]);
    mark_exhausted(&mut passed_on, Some(StatusCode::SERVICE_UNAVAILABLE));
    let all: Vec<_> = passed_on.get_all("proxy-status").iter().collect();
    assert_eq!(all, ["cdn; error=dns_error, outrigger; received-status=503; outrigger-retries=exhausted"]);
    assert_eq!(PeerMark::of(&passed_on, true), PeerMark::Exhausted);

    let local = LocalResponse::new(ProxyError::REFUSED, "upstream api: refused");
    let mut own = local.to_response(false).into_parts().0.headers;
    mark_exhausted(&mut own, None);
    let all: Vec<_> = own.get_all("proxy-status").iter().collect();
    let want =
        "outrigger; error=connection_refused; details=\"upstream api: refused\"; outrigger-retries=exhausted";
    assert_eq!(all, [want]);

    assert_eq!(PeerMark::of(&passed_on, false), PeerMark::Exhausted);
    // Marked once, however many proxies there are.
    mark_exhausted(&mut passed_on, Some(StatusCode::SERVICE_UNAVAILABLE));
    let all = passed_on["proxy-status"].to_str().unwrap();
    assert_eq!(all.matches("outrigger-retries").count(), 1, "{all}");

    let mut failed = HeaderMap::new();
    mark_retries_exhausted(&mut failed);
    assert_eq!(PeerMark::of(&failed, true), PeerMark::Exhausted);

    let mut unprocessed = HeaderMap::new();
    mark_unprocessed(&mut unprocessed);
    assert_eq!(PeerMark::of(&unprocessed, true), PeerMark::Unprocessed);
}

#[test]
fn a_server_that_wants_to_be_left_alone_is_within_limits() {
    // 1994-11-06 08:49:37 GMT, less half a minute.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 30);
    let longest = Duration::from_secs(30);
    for (list, want) in [
        (NO_FIELDS, Some(0)),
        (&[("retry-after", "0")], Some(0)),
        (&[("retry-after", "1")], Some(1000)),
        (&[("retry-after", " 30 ")], Some(30_000)),
        (&[("retry-after", "31")], None),
        (&[("retry-after", "99999999999999999999999999")], None),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT")], Some(30_000)),
        (&[("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT")], Some(30_000)),
        (&[("retry-after", "Sun Nov  6 08:49:37 1994")], Some(30_000)),
        (&[("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT")], None),
        (&[("retry-after", "Sun, 06 Nov 1994 08:00:00 GMT")], Some(0)),
        (&[("retry-after", "soon")], Some(0)),
        (&[("retry-after", "-5")], Some(0)),
        (&[("retry-after", "")], Some(0)),
        (&[("grpc-retry-pushback-ms", "1500")], Some(1500)),
        (&[("grpc-retry-pushback-ms", "0"), ("retry-after", "60")], Some(0)),
        (&[("grpc-retry-pushback-ms", "-1")], None),
        (&[("grpc-retry-pushback-ms", "x")], None),
        (&[("grpc-retry-pushback-ms", "60000")], None),
    ] {
        let retry = config::Retry { max_retry_after: Some(longest.into()), ..config::Retry::default() };
        let policy = Policy::new(&retry, false);
        let headers = fields(list);
        let verdict =
            policy.verdict(&Method::GET, answered(503, &headers), 0, now, &mut SmallRng::seed_from_u64(7));
        match want.map(Duration::from_millis) {
            None => assert_eq!(verdict, AfterTry::Done, "{list:?}"),
            Some(want) => {
                let AfterTry::Retry { backoff } = verdict else { panic!("{list:?}: {verdict:?}") };
                assert!(
                    backoff >= want && backoff <= want + Duration::from_millis(25),
                    "{list:?}: {backoff:?}"
                );
            }
        }
    }
}

#[test]
fn by_default_a_second_is_waited_for_and_no_more() {
    for (seconds, want) in [("1", "retry"), ("2", "done")] {
        let headers = fields(&[("retry-after", seconds)]);
        assert_eq!(
            word(&Policy(RetryPolicy::default(), false), &Method::GET, answered(503, &headers), 0),
            want
        );
    }
}

#[test]
fn the_pause_is_anything_up_to_a_limit_that_doubles() {
    let retry = |attempts, base: &str, max: &str| config::Retry {
        attempts,
        backoff: config::Backoff { base: Some(base.parse().unwrap()), max: Some(max.parse().unwrap()) },
        ..config::Retry::default()
    };
    for (retry, limits) in [
        (config::Retry { attempts: Some(3), ..config::Retry::default() }, [25, 50, 100]),
        (retry(Some(3), "100ms", "250ms"), [100, 200, 250]),
        (retry(Some(3), "0ms", "250ms"), [0, 0, 0]),
        (retry(Some(3), "1h", "50ms"), [50, 50, 50]),
    ] {
        let policy = Policy::new(&retry, false);
        let mut rng = SmallRng::seed_from_u64(7);
        for (retries, limit) in (0..).zip(limits.map(Duration::from_millis)) {
            let mut total = Duration::ZERO;
            let mut largest = Duration::ZERO;
            for _ in 0..1000 {
                let verdict =
                    policy.verdict(&Method::GET, Tried::Lost, retries, SystemTime::UNIX_EPOCH, &mut rng);
                let AfterTry::Retry { backoff } = verdict else { panic!("{verdict:?}") };
                total += backoff;
                largest = largest.max(backoff);
            }
            assert!(
                largest <= limit && largest >= limit.mul_f64(0.98),
                "{retries}: {largest:?} of {limit:?}"
            );
            let mean = total / 1000;
            assert!(
                mean >= limit.mul_f64(0.45) && mean <= limit.mul_f64(0.55),
                "{retries}: {mean:?} of {limit:?}"
            );
        }
    }
}

#[test]
fn a_failure_says_whether_the_request_may_have_been_processed() {
    let address = "10.0.0.1:80".parse().unwrap();
    let connect = |error| Tried::failed(&HopError::Connect(error));
    assert!(matches!(connect(ConnectError::Dial(DialError::Refused(address))), Tried::Unprocessed));
    assert!(matches!(connect(ConnectError::Protocol(address, "eof".into())), Tried::Unprocessed));
    assert!(matches!(connect(ConnectError::Refused(address, "loopback")), Tried::Unprocessed));
    let full = ConnectError::Full { upstream: Arc::from("api"), limit: 1, what: "connections" };
    assert!(matches!(connect(full), Tried::TurnedAway));
    let timeout = HopError::Timeout(Duration::from_secs(1));
    assert!(matches!(Tried::failed(&timeout), Tried::TimedOut));
    let reset = HopError::Http2(h2::Reason::INTERNAL_ERROR.into());
    assert!(matches!(Tried::failed(&reset), Tried::Lost));
}

#[tokio::test]
async fn a_request_that_hyper_had_not_begun_to_write_was_not_processed() {
    let request = || Request::new(Empty::<Bytes>::new());

    let (client, _server) = tokio::io::duplex(1024);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    let response = sender.send_request(request());
    drop(connection);
    let error = HopError::Http1(response.await.unwrap_err());
    assert!(matches!(Tried::failed(&error), Tried::Unprocessed), "{error}");

    let (client, mut server) = tokio::io::duplex(1024);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
    let (response, _, ()) = tokio::join!(sender.send_request(request()), connection, async move {
        server.read_u8().await.unwrap();
    });
    let error = HopError::Http1(response.unwrap_err());
    assert!(matches!(Tried::failed(&error), Tried::Lost), "{error}");
}
