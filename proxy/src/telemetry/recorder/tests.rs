use super::*;

struct World {
    metrics: Arc<Metrics>,
    recorder: Recorder,
    route: Arc<str>,
    upstream: Arc<str>,
}

impl World {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new());
        let log = AccessLog::off(&metrics);
        let recorder = Recorder::new(Arc::clone(&metrics), log);
        Self { metrics, recorder, route: "main".into(), upstream: "api".into() }
    }

    fn record(&self) -> RequestRecord<'_> {
        RequestRecord {
            direction: Direction::Outbound,
            route: &self.route,
            upstream: &self.upstream,
            code: 200,
            is_grpc: false,
            grpc_status: None,
            tls: Tls::Mesh,
            peer: None,
            duration: Duration::from_millis(3),
            method: &Method::GET,
            path: "/",
            authority: "api",
            version: Version::HTTP_11,
            received_bytes: 0,
            sent_bytes: 0,
            endpoint: None,
            retries: 0,
            retry_refused: false,
            client: ([127, 0, 0, 1], 1).into(),
            proxy_status: None,
            trace: None,
        }
    }

    fn tcp(&self) -> TcpLabels<'_> {
        TcpLabels { direction: Direction::Inbound, upstream: &self.upstream, tls: Tls::Plain, peer: None }
    }

    fn samples(&self, name: &str) -> Vec<String> {
        let text = self.metrics.render();
        text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
    }

    fn cached(&self) -> usize {
        self.recorder.cache.borrow().len()
    }
}

#[test]
fn requests_are_counted_by_all_labels_and_timed_by_all_but_the_code() {
    let world = World::new();
    let peer = SpiffeId::new("cluster.local", "shop", "web").unwrap();
    world.recorder.request(&world.record());
    world.recorder.request(&world.record());
    world.recorder.request(&RequestRecord { code: 503, ..world.record() });
    world.recorder.request(&RequestRecord {
        direction: Direction::Inbound,
        grpc_status: Some(4),
        tls: Tls::Server,
        peer: Some(&peer),
        ..world.record()
    });
    let inbound = r#"direction="inbound",route="main",upstream="api","#;
    let outbound = r#"direction="outbound",route="main",upstream="api","#;
    let web = r#"tls="server",peer="spiffe://cluster.local/ns/shop/sa/web""#;
    assert_eq!(
        world.samples("outrigger_requests_total"),
        [
            format!(r#"{{{inbound}code="200",grpc_status="4",{web}}} 1"#),
            format!(r#"{{{outbound}code="200",grpc_status="",tls="mesh",peer=""}} 2"#),
            format!(r#"{{{outbound}code="503",grpc_status="",tls="mesh",peer=""}} 1"#),
        ]
    );
    assert_eq!(
        world.samples("outrigger_request_duration_seconds_count"),
        [
            format!(r#"{{{inbound}grpc_status="4",{web}}} 1"#),
            format!(r#"{{{outbound}grpc_status="",tls="mesh",peer=""}} 3"#),
        ]
    );
    assert_eq!(
        world.samples("outrigger_request_duration_seconds_bucket").len(),
        2 * (crate::telemetry::metric::BUCKETS.len() + 1)
    );
}

#[test]
fn the_cache_has_an_entry_a_set_of_label_values_and_hits_are_counted_exactly() {
    let world = World::new();
    let peers = ["web", "cart"].map(|account| SpiffeId::new("cluster.local", "shop", account).unwrap());
    for _ in 0..100 {
        for peer in &peers {
            // Each connection reads its peer's identity anew: equal ones must find the same entry.
            let peer: SpiffeId = peer.as_str().parse().unwrap();
            world.recorder.request(&RequestRecord { peer: Some(&peer), ..world.record() });
        }
    }
    assert_eq!(world.cached(), 2);
    let counts: Vec<_> =
        world.samples("outrigger_requests_total").iter().map(|line| line.ends_with("} 100")).collect();
    assert_eq!(counts, [true, true]);
}

#[test]
fn a_route_of_the_same_name_after_a_reload_goes_on_with_its_series() {
    let world = World::new();
    let reloaded: Arc<str> = "main".into();
    world.recorder.request(&world.record());
    world.recorder.request(&RequestRecord { route: &reloaded, ..world.record() });
    assert!(world.samples("outrigger_requests_total")[0].ends_with("} 2"));
}

#[test]
fn a_full_cache_starts_again_and_loses_no_count() {
    let world = World::new();
    let routes: Vec<Arc<str>> = (0..=CACHE_BOUND).map(|_| Arc::from("main")).collect();
    for route in routes.iter().chain(&routes) {
        world.recorder.request(&RequestRecord { route, ..world.record() });
        assert!(world.cached() <= CACHE_BOUND);
    }
    let all = format!("}} {}", 2 * routes.len());
    assert!(world.samples("outrigger_requests_total")[0].ends_with(&all));
}

#[test]
fn a_series_that_was_swept_comes_back_with_its_next_request() {
    let world = World::new();
    world.recorder.request(&world.record());
    for _ in 0..30 {
        world.metrics.sweep();
    }
    assert!(world.samples("outrigger_requests_total{").is_empty());
    assert!(world.samples("outrigger_request_duration_seconds_count").is_empty());
    world.recorder.request(&world.record());
    assert_eq!(world.cached(), 1);
    assert!(world.samples("outrigger_requests_total")[0].ends_with("} 1"));
    assert!(world.samples("outrigger_request_duration_seconds_count")[0].ends_with("} 1"));
}

#[test]
fn the_cache_lets_go_of_what_is_not_used() {
    let world = World::new();
    let other: Arc<str> = "other".into();
    world.recorder.request(&RequestRecord { route: &other, ..world.record() });
    for _ in 0..=UNUSED_SWEEPS + 1 {
        world.recorder.request(&world.record());
        world.metrics.sweep();
    }
    world.recorder.request(&world.record());
    assert_eq!(world.cached(), 1);
    // The counter's and the histogram's label sets hold it, and this function.
    assert_eq!(Arc::strong_count(&other), 3);
}

#[test]
fn a_connection_is_open_until_it_is_closed_and_its_bytes_count_once() {
    let world = World::new();
    let labels = r#"{direction="inbound",upstream="api",tls="none",peer=""}"#;
    let mut open = world.recorder.tcp_opened(&world.tcp());
    open.carried(10, 20);
    assert_eq!(world.samples("outrigger_tcp_open_connections"), [format!("{labels} 1")]);
    assert_eq!(world.samples("outrigger_tcp_received_bytes_total"), [format!("{labels} 10")]);
    let record = TcpRecord {
        labels: world.tcp(),
        reason: "end",
        duration: Duration::ZERO,
        received_bytes: 11,
        sent_bytes: 22,
        endpoint: None,
        client: ([127, 0, 0, 1], 1).into(),
        proxy_status: None,
    };
    world.recorder.tcp_closed(open, &record);
    drop(world.recorder.tcp_opened(&world.tcp()));
    let closed = r#"{direction="inbound",upstream="api",tls="none",peer="","#;
    assert_eq!(
        world.samples("outrigger_tcp_connections_closed_total"),
        [format!(r#"{closed}reason="aborted"}} 1"#), format!(r#"{closed}reason="end"}} 1"#)]
    );
    assert_eq!(world.samples("outrigger_tcp_connections_opened_total"), [format!("{labels} 2")]);
    assert_eq!(world.samples("outrigger_tcp_open_connections"), [format!("{labels} 0")]);
    assert_eq!(world.samples("outrigger_tcp_received_bytes_total"), [format!("{labels} 11")]);
    assert_eq!(world.samples("outrigger_tcp_sent_bytes_total"), [format!("{labels} 22")]);
}

#[test]
fn handshakes_are_counted_by_result_and_reason() {
    let world = World::new();
    world.recorder.tls_handshake(Direction::Inbound, Ok(()));
    world.recorder.tls_handshake(Direction::Outbound, Err("identity"));
    assert_eq!(
        world.samples("outrigger_tls_handshakes_total"),
        [
            r#"{direction="inbound",reason="",result="success"} 1"#,
            r#"{direction="outbound",reason="identity",result="failure"} 1"#,
        ]
    );
}

/// Ten thousand series of requests and two thousand histograms, as the bounds allow.
#[test]
fn requests_with_new_series_go_on_while_all_series_are_rendered() {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

    let world = World::new();
    let routes: Vec<Arc<str>> = (0..2_000).map(|route| format!("route-{route}").into()).collect();
    for code in 200..205 {
        for route in &routes {
            world.recorder.request(&RequestRecord { route, code, ..world.record() });
        }
    }
    assert_eq!(world.samples("outrigger_requests_total{").len(), 10_000);
    // Odd while it renders.
    let (phase, rendered) = (AtomicU64::new(0), AtomicUsize::new(0));
    let metrics = Arc::clone(&world.metrics);
    let mut recorded = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..5 {
                phase.fetch_add(1, SeqCst);
                rendered.fetch_max(metrics.render().len(), SeqCst);
                phase.fetch_add(1, SeqCst);
            }
        });
        while phase.load(SeqCst) < 10 {
            let before = phase.load(SeqCst);
            // Each looks its series up under the lock: the route is another one each time.
            let route = "late".into();
            world.recorder.request(&RequestRecord { route: &route, ..world.record() });
            if before % 2 == 1 && phase.load(SeqCst) == before {
                recorded += 1;
            }
        }
    });
    assert!(rendered.load(SeqCst) > 2_000_000, "it is large: {rendered:?} bytes");
    // With the lock held all the time it would be none at all.
    assert!(recorded > 100, "{recorded} requests while it rendered");
}
