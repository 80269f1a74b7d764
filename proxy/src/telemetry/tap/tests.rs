use std::sync::Arc;
use std::time::Duration;

use http::{Method, Version};
use serde_json::Value;

use super::*;
use crate::telemetry::labels::{Direction, Tls};
use crate::telemetry::recorder::TcpLabels;

/// A request that can be told from others, and all that it refers to.
struct Made {
    direction: Direction,
    route: Arc<str>,
    upstream: Arc<str>,
    code: u16,
    grpc_status: Option<u16>,
    method: Method,
    path: &'static str,
    authority: &'static str,
    duration: Duration,
    proxy_status: Option<&'static str>,
}

impl Made {
    fn usual() -> Self {
        Self {
            direction: Direction::Outbound,
            route: "orders".into(),
            upstream: "api".into(),
            code: 200,
            grpc_status: None,
            method: Method::GET,
            path: "/orders/7",
            authority: "api.shop:8080",
            duration: Duration::from_millis(20),
            proxy_status: None,
        }
    }

    fn record(&self) -> RequestRecord<'_> {
        RequestRecord {
            direction: self.direction,
            route: &self.route,
            upstream: &self.upstream,
            code: self.code,
            grpc_status: self.grpc_status,
            tls: Tls::Mesh,
            peer: None,
            duration: self.duration,
            method: &self.method,
            path: self.path,
            authority: self.authority,
            version: Version::HTTP_11,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: None,
            retries: 0,
            retry_refused: false,
            client: ([10, 0, 0, 5], 40_000).into(),
            proxy_status: self.proxy_status,
        }
    }
}

fn tap() -> (Tap, IntCounter) {
    let dropped = IntCounter::new("dropped_total", "Dropped.").unwrap();
    (Tap::new(dropped.clone()), dropped)
}

fn parsed(query: &str) -> TapFilter {
    TapFilter::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"))
}

#[test]
fn everything_that_a_filter_states_must_hold() {
    let usual = Made::usual();
    for (query, is_taken) in [
        ("", true),
        ("direction=outbound", true),
        ("direction=inbound", false),
        ("route=orders", true),
        ("route=order", false),
        ("upstream=api", true),
        ("upstream=web", false),
        ("status=200", true),
        ("status=2xx", true),
        ("status=2XX", true),
        ("status=199-201", true),
        ("status=404,200", true),
        ("status=5xx", false),
        ("status=201-299", false),
        ("path=/orders", true),
        ("path=/orders/7", true),
        ("path=/orders/77", false),
        ("method=GET", true),
        ("method=get", true),
        ("method=POST", false),
        ("host=api.shop", true),
        ("host=API.shop:8080", true),
        ("host=api.shop:80", false),
        ("host=api", false),
        ("slowerThan=19ms", true),
        ("slowerThan=20ms", false),
        ("failed=true", false),
        ("failed=false", true),
        ("limit=1", true),
        ("direction=outbound&status=2xx&path=%2Forders&slowerThan=1ms", true),
        ("direction=outbound&status=5xx", false),
        ("direction=&route=&upstream=&status=&path=&method=&host=&slowerThan=&limit=&failed=", true),
    ] {
        assert_eq!(parsed(query).takes_request(&usual.record()), is_taken, "{query}");
    }
}

#[test]
fn a_failure_is_what_the_status_the_call_or_the_proxy_says() {
    let failed = |change: fn(&mut Made)| {
        let mut made = Made::usual();
        change(&mut made);
        parsed("failed=true").takes_request(&made.record())
    };
    assert!(failed(|made| made.code = 500));
    assert!(failed(|made| made.grpc_status = Some(14)));
    assert!(failed(|made| made.proxy_status = Some("outrigger; error=http_request_denied")));
    assert!(!failed(|made| made.code = 404));
    assert!(!failed(|made| made.grpc_status = Some(5)), "NOT_FOUND is an answer");
}

#[test]
fn opaque_connections_are_shown_unless_something_is_stated_that_only_requests_have() {
    let upstream = Arc::from("store");
    let labels =
        TcpLabels { direction: Direction::Outbound, upstream: &upstream, tls: Tls::Mesh, peer: None };
    let record = TcpRecord {
        labels,
        reason: "end",
        duration: Duration::from_secs(1),
        received_bytes: 1,
        sent_bytes: 2,
        endpoint: None,
        client: ([10, 0, 0, 5], 40_000).into(),
        proxy_status: None,
    };
    for (query, is_taken) in [
        ("", true),
        ("direction=outbound&upstream=store&slowerThan=500ms", true),
        ("upstream=api", false),
        ("slowerThan=2s", false),
        ("status=5xx", false),
        ("path=/", false),
        ("method=GET", false),
        ("host=store", false),
        ("route=orders", false),
        ("failed=true", false),
    ] {
        assert_eq!(parsed(query).takes_tcp(&record), is_taken, "{query}");
    }
}

#[test]
fn a_wrong_filter_says_what_is_allowed() {
    for (query, said) in [
        ("statuz=500", "status=5xx|404|500-503"),
        ("statuz=", "status=5xx|404|500-503"),
        ("status=600-500", "5xx"),
        ("status=fine", "5xx"),
        ("status=5", "5xx"),
        ("status=+50", "5xx"),
        ("status=200,", "5xx"),
        ("direction=sideways", "inbound or outbound"),
        ("path=orders", "/orders"),
        ("method=G E T", "GET"),
        ("slowerThan=fast", "100ms"),
        ("slowerThan=100", "100ms"),
        ("limit=0", "from 1 on"),
        ("limit=-1", "from 1 on"),
        ("failed=yes", "true or false"),
        ("status=500&status=404", "status=404,5xx"),
    ] {
        let error = TapFilter::parse(query).unwrap_err().to_string();
        assert!(error.contains(said), "{query}: {error}");
    }
}

#[tokio::test]
async fn who_looks_on_gets_what_the_filter_takes_in_the_words_of_the_access_log() {
    let (tap, dropped) = tap();
    let mut looking_on = tap.look_on(parsed("status=5xx")).unwrap();
    for code in [200, 503] {
        tap.request(&Made { code, ..Made::usual() }.record());
    }
    let Tapped::Exchange(line) = looking_on.next().await else { panic!("nothing was dropped") };
    let seen: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(
        (&seen["code"], &seen["path"], &seen["upstream"]),
        (&503.into(), &"/orders/7".into(), &"api".into())
    );
    assert!(line.ends_with(b"}\n"));
    assert_eq!(dropped.get(), 0);
}

#[tokio::test]
async fn a_reader_that_reads_nothing_is_told_later_what_it_has_missed() {
    const MISSED: u64 = 1000;
    let (tap, dropped) = tap();
    let mut stalled = tap.look_on(TapFilter::default()).unwrap();
    let made = Made::usual();
    for _ in 0..QUEUE as u64 + MISSED {
        tap.request(&made.record());
    }
    assert_eq!(dropped.get(), MISSED);
    for _ in 0..QUEUE {
        assert!(matches!(stalled.next().await, Tapped::Exchange(_)));
    }
    assert_eq!(stalled.next().await, Tapped::Dropped(MISSED), "nothing came after it, and it is told");
    for _ in 0..QUEUE + 1 {
        tap.request(&made.record());
    }
    assert!(matches!(stalled.next().await, Tapped::Exchange(_)));
    tap.request(&made.record());
    for _ in 1..QUEUE {
        assert!(matches!(stalled.next().await, Tapped::Exchange(_)));
    }
    assert_eq!(stalled.next().await, Tapped::Dropped(1), "before what came after it");
    assert!(matches!(stalled.next().await, Tapped::Exchange(_)));
}

#[test]
fn no_more_may_look_on_than_eight_and_each_gives_its_place_back() {
    let (tap, _) = tap();
    let mut looking_on: Vec<_> =
        (0..MOST_LOOKING_ON).map(|_| tap.look_on(TapFilter::default()).unwrap()).collect();
    let refused = tap.look_on(TapFilter::default()).unwrap_err().to_string();
    assert!(refused.starts_with("8 look on already"), "{refused}");
    looking_on.pop();
    looking_on.push(tap.look_on(TapFilter::default()).unwrap());
    drop(looking_on);
    assert_eq!(tap.0.count.load(Relaxed), 0);
    assert!(tap.0.subscribers.load().is_empty());
}

#[test]
fn while_nobody_looks_on_nothing_is_written_down() {
    let (tap, dropped) = tap();
    tap.request(&Made::usual().record());
    tap.show(|_| unreachable!(), || unreachable!());
    assert_eq!(dropped.get(), 0);
}
