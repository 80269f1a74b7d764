use std::net::SocketAddr;

use http::{Method, Version};

use super::*;
use crate::telemetry::{AccessLog, AccessLogSettings, Recorder, RequestRecord, TcpLabels};

/// A history, and what fills it.
struct World {
    history: History,
    recorder: Recorder,
    looks: u64,
    names: HashMap<String, Arc<str>>,
}

impl World {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new());
        let log = AccessLog::new(AccessLogSettings::default(), &metrics).unwrap();
        Self {
            history: History::new(metrics.clone()),
            recorder: Recorder::new(metrics, log),
            looks: 0,
            names: HashMap::new(),
        }
    }

    fn request(&mut self, direction: Direction, upstream: &str, peer: Option<&str>, code: u16) {
        let upstream = self.names.entry(upstream.into()).or_insert_with(|| upstream.into()).clone();
        let peer = peer.map(|account| SpiffeId::new("cluster.local", "shop", account).unwrap());
        let client: SocketAddr = ([10, 0, 0, 1], 1).into();
        self.recorder.request(&RequestRecord {
            direction,
            route: &Arc::default(),
            upstream: &upstream,
            code,
            is_grpc: false,
            trace: None,
            grpc_status: None,
            tls: Tls::Mesh,
            peer: peer.as_ref(),
            duration: Duration::from_millis(3),
            method: &Method::GET,
            path: "/",
            authority: "api",
            version: Version::HTTP_11,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: None,
            retries: 1,
            retry_refused: false,
            client,
            proxy_status: None,
        });
    }

    fn outbound(&mut self, upstream: &str, code: u16) {
        self.request(Direction::Outbound, upstream, None, code);
    }

    fn look(&mut self) {
        self.looks += 1;
        self.history.look(self.looks);
    }

    fn shown(&self, query: &str) -> Value {
        self.history.describe(&HistoryQuery::parse(query).unwrap())
    }
}

#[test]
fn each_request_is_in_one_look_with_its_errors_retries_and_latency() {
    let mut world = World::new();
    world.outbound("api", 200);
    world.outbound("api", 503);
    world.look();
    world.look();
    world.outbound("api", 404);
    world.look();
    let shown = world.shown("");
    assert_eq!(shown["outbound"]["requests"], json!([2, 0, 1]));
    assert_eq!(shown["outbound"]["errors"], json!([1, 0, 0]));
    assert_eq!(shown["outbound"]["retries"], json!([2, 0, 1]));
    assert_eq!(shown["outbound"]["p50Ms"], json!([3.75, null, 3.75]));
    assert_eq!(shown["inbound"]["requests"], json!([0, 0, 0]));
    assert_eq!(shown["outbound"]["lastMinute"]["requestsPerSecond"], 0.5);
    assert_eq!(shown["outbound"]["lastMinute"]["successShare"], json!(1.0 - 1.0 / 3.0));
    assert_eq!(shown["upstreams"][0]["name"], "api");
    assert_eq!(world.shown("since=2")["outbound"]["requests"], json!([1]));
}

#[test]
fn one_upstream_is_shown_alone_in_detail_and_an_unknown_one_as_nothing() {
    let mut world = World::new();
    world.outbound("api", 200);
    world.outbound("b & c", 200);
    world.look();
    assert_eq!(world.shown("upstream=b+%26+c")["outbound"]["requests"], json!([1]));
    assert_eq!(world.shown("upstream=b+%26+c")["inbound"], Value::Null);
    assert_eq!(world.shown("upstream=nobody")["outbound"], Value::Null);
}

#[test]
fn a_query_that_is_not_understood_is_refused_with_what_would_be() {
    for query in ["since=yesterday", "until=3", "since=-1"] {
        let error = HistoryQuery::parse(query).unwrap_err();
        assert!(error.contains("since"), "{query}: {error}");
    }
}

#[test]
fn callers_are_told_apart_by_identity_and_stay_for_ten_minutes() {
    let mut world = World::new();
    world.request(Direction::Inbound, "workload:80", Some("web"), 200);
    world.request(Direction::Inbound, "workload:81", Some("web"), 500);
    world.request(Direction::Inbound, "workload:80", None, 200);
    world.outbound("api", 200);
    world.look();
    let traffic = world.history.traffic();
    let callers = traffic["callers"].as_array().unwrap();
    assert_eq!(callers.len(), 2);
    assert_eq!(callers[0]["peer"], Value::Null);
    assert_eq!(callers[1]["peer"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((&callers[1]["successShare"], &callers[1]["requestsPerSecond"]), (&json!(0.5), &json!(1.0)));
    assert_eq!(traffic["upstreams"][0]["upstream"], "api");
    for _ in 0..SAMPLES - 1 {
        world.look();
    }
    assert_eq!(world.history.traffic()["callers"][0]["requestsPerSecond"], 0.0);
    world.look();
    assert_eq!(world.history.traffic()["callers"], json!([]));
}

#[test]
fn opaque_connections_are_shown_while_they_are_open() {
    let world = World::new();
    let store = Arc::from("store");
    let labels = TcpLabels { direction: Direction::Outbound, upstream: &store, tls: Tls::Mesh, peer: None };
    let open = world.recorder.tcp_opened(&labels);
    assert_eq!(world.history.traffic()["upstreams"][0]["openTcpConnections"], 1);
    drop(open);
    assert_eq!(world.history.traffic()["upstreams"][0]["openTcpConnections"], 0);
}

#[test]
fn of_too_many_upstreams_the_busiest_are_kept() {
    let mut world = World::new();
    for number in 0..MOST_UPSTREAMS {
        for _ in 0..2 {
            world.outbound(&format!("u{number}"), 200);
        }
    }
    world.look();
    world.outbound("quiet", 200);
    for _ in 0..3 {
        world.outbound("busy", 200);
    }
    world.look();
    let shown = world.shown("");
    let upstreams = shown["upstreams"].as_array().unwrap();
    assert_eq!(upstreams.len(), MOST_UPSTREAMS);
    assert_eq!(upstreams[0]["name"], "busy");
    assert!(upstreams.iter().all(|upstream| upstream["name"] != "quiet"));
    assert_eq!(shown["upstreamsLeftOut"], 1);
    // The whole has every one.
    assert_eq!(shown["outbound"]["requests"], json!([2 * MOST_UPSTREAMS, 4]));
}

#[test]
fn a_series_that_was_swept_away_and_comes_back_is_counted_from_where_it_was() {
    let mut world = World::new();
    world.outbound("api", 200);
    world.look();
    for _ in 0..20 {
        world.history.metrics.sweep();
    }
    world.outbound("api", 200);
    world.look();
    assert_eq!(world.shown("")["outbound"]["requests"], json!([1, 1]));
}

#[test]
fn what_counts_as_an_error_is_the_servers_and_not_the_clients() {
    let cases = [
        (200, None, false),
        (404, None, false),
        (499, None, false),
        (500, None, true),
        (504, None, true),
        (200, Some(0), false),
        (200, Some(5), false),
        (200, Some(8), false),
        (200, Some(12), false),
        (200, Some(2), true),
        (200, Some(14), true),
    ];
    for (code, grpc_status, error) in cases {
        assert_eq!(is_error(Some(code), grpc_status), error, "{code} {grpc_status:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_looks_every_two_seconds() {
    let mut world = World::new();
    world.outbound("api", 200);
    _ = tokio::time::timeout(Duration::from_secs(7), world.history.keep()).await;
    let shown = world.shown("");
    assert_eq!((&shown["now"], &shown["outbound"]["requests"]), (&json!(3), &json!([1, 0, 0])));
}
