use super::*;
use crate::telemetry::Metrics;

fn endpoint(number: u32, state: &'static str) -> EndpointReading {
    let address = SocketAddr::from((number.to_be_bytes(), 80));
    EndpointReading { address, state, in_flight: 1, latency: Some(Duration::from_millis(number.into())) }
}

fn samples(readings: Vec<UpstreamReading>, name: &str) -> Vec<String> {
    let metrics = Metrics::new();
    metrics.read_upstreams_by(move || readings.clone());
    // What overflows in one exposition is counted in the next.
    metrics.render();
    let text = metrics.render();
    text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

fn upstream(name: &str) -> UpstreamReading {
    UpstreamReading { name: name.into(), ..UpstreamReading::default() }
}

#[test]
fn two_of_one_name_are_one_series_with_their_sum_or_the_worse() {
    let one = UpstreamReading {
        states: vec![("healthy", 1), ("ejected", 0)],
        connections: 2,
        opened: 5,
        closed: vec![("idle", 3)],
        breaker_state: 2,
        endpoints: vec![endpoint(1, "healthy")],
        ..upstream("workload:80")
    };
    let other = UpstreamReading {
        states: vec![("ejected", 1)],
        connections: 1,
        opened: 2,
        closed: vec![("idle", 1), ("ended", 1)],
        breaker_state: 0,
        endpoints: vec![endpoint(1, "healthy"), endpoint(2, "ejected")],
        ..upstream("workload:80")
    };
    let readings = vec![one, other];
    let of = |name: &str| samples(readings.clone(), name);
    assert_eq!(of("outrigger_pool_connections{"), [r#"upstream="workload:80"} 3"#]);
    assert_eq!(of("outrigger_pool_connections_opened_total{"), [r#"upstream="workload:80"} 7"#]);
    assert_eq!(of("outrigger_breaker_state{"), [r#"upstream="workload:80"} 2"#]);
    assert_eq!(
        of("outrigger_pool_connections_closed_total{"),
        [r#"upstream="workload:80",reason="ended"} 1"#, r#"upstream="workload:80",reason="idle"} 4"#]
    );
    assert_eq!(
        of("outrigger_endpoints{"),
        [r#"upstream="workload:80",state="ejected"} 1"#, r#"upstream="workload:80",state="healthy"} 1"#]
    );
    assert_eq!(
        of("outrigger_endpoint_requests_in_flight{"),
        [
            r#"upstream="workload:80",endpoint="0.0.0.1:80"} 2"#,
            r#"upstream="workload:80",endpoint="0.0.0.2:80"} 1"#
        ]
    );
}

#[test]
fn an_endpoint_that_has_not_answered_has_no_latency_and_an_upstream_that_nobody_names_no_age() {
    let silent = EndpointReading { latency: None, ..endpoint(1, "healthy") };
    let readings = vec![UpstreamReading { endpoints: vec![silent], ..upstream("api") }];
    assert!(samples(readings.clone(), "outrigger_endpoint_latency_seconds").is_empty());
    assert!(samples(readings, "outrigger_discovery_age_seconds").is_empty());
}

#[test]
fn upstreams_and_endpoints_beyond_the_bounds_are_added_up_as_other_and_counted() {
    const MORE: usize = 7;
    let many = (0..UPSTREAMS_BOUND + MORE)
        .map(|number| UpstreamReading { connections: 1, ..upstream(&format!("u{number:05}")) });
    let shown = samples(many.collect(), "outrigger_pool_connections{");
    assert_eq!(shown.len(), UPSTREAMS_BOUND + 1);
    assert!(shown.contains(&format!("upstream=\"other\"}} {MORE}")), "{shown:?}");

    let endpoints = (0..ENDPOINTS_BOUND + MORE).map(|number| endpoint(number as u32, "healthy"));
    let readings = vec![UpstreamReading { endpoints: endpoints.collect(), ..upstream("api") }];
    let shown = samples(readings.clone(), "outrigger_endpoint_state{");
    assert_eq!(shown.len(), ENDPOINTS_BOUND + 1);
    let other = format!(r#"upstream="other",endpoint="other",state="healthy"}} {MORE}"#);
    assert!(shown.contains(&other));
    let counted = samples(readings, "outrigger_metric_series_overflowed_total{family=\"endpoint\"}");
    assert_eq!(counted.len(), 1);
    assert_ne!(counted, [" 0"]);
}
