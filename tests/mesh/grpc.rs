//! gRPC of every kind, with Google's own implementation at both ends.

use serde_json::{Value, json};

use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::{API, Pair};

/// The Python that `tests/run` furnishes with grpcio and websockets.
pub fn python() -> String {
    std::env::var("OUTRIGGER_TEST_PYTHON")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-venv/bin/python").to_owned())
}

/// A script among the test's peers.
pub fn peer(script: &str) -> String {
    format!("{}/tests/mesh/peers/{script}", env!("CARGO_MANIFEST_DIR"))
}

/// Serves every kind of call on port 50051.
pub fn serve(pod: &Pod) -> Process {
    let mut server = pod.start(&[&python(), &peer("grpc_server.py"), "0.0.0.0:50051"]);
    server.wait_for_output("serving");
    server
}

/// What comes of a call of `web`.
pub fn call(pair: &Pair, kind: &str) -> Value {
    let said = pair.web.run(&[&python(), &peer("grpc_client.py"), &format!("{API}:50051"), kind]);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
fn every_kind_of_grpc_call_works_through_the_mesh() {
    let pair = Pair::new();
    let _server = serve(&pair.api);
    assert_eq!(call(&pair, "unary"), json!({"answer": "echo hello", "initial": "first", "trailing": "last"}));
    assert_eq!(call(&pair, "large"), json!({"same": true}));
    assert_eq!(call(&pair, "client_stream"), json!({"answer": "a+b+c"}));
    assert_eq!(call(&pair, "server_stream"), json!({"answers": (0..100).collect::<Vec<_>>()}));
    let echoes: Vec<_> = (0..20).map(|number| format!("echo {number}")).collect();
    assert_eq!(call(&pair, "both"), json!({"answers": echoes, "ended": true}));
    pair.api.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "inbound"), ("grpc_status", "0")],
        5.0,
    );
}

#[test]
fn trailers_only_responses_arrive_with_their_status_and_text() {
    let pair = Pair::new();
    let _server = serve(&pair.api);
    assert_eq!(call(&pair, "fail"), json!({"code": "FAILED_PRECONDITION", "details": "not now: 100 % sure"}));
    assert_eq!(call(&pair, "unimplemented")["code"], "UNIMPLEMENTED");
    pair.web.wait_for_metric(
        "outrigger_requests_total",
        &[("direction", "outbound"), ("grpc_status", "9")],
        1.0,
    );
}

#[test]
fn a_deadline_passes_through_and_ends_the_call_on_both_sides() {
    let pair = Pair::new();
    let _server = serve(&pair.api);
    let remaining = call(&pair, "deadline")["remaining"].as_f64().expect("a number");
    assert!((3.0..=7.0).contains(&remaining), "{remaining} s of 7 s reached the server");
    assert_eq!(call(&pair, "exceeded")["code"], "DEADLINE_EXCEEDED");
}

#[test]
fn a_cancelled_call_is_cancelled_at_the_server() {
    let pair = Pair::new();
    let _server = serve(&pair.api);
    assert_eq!(call(&pair, "cancel"), json!({"started": "started", "known": "yes"}));
}

#[test]
fn a_grpc_caller_is_told_a_failure_in_grpc_s_own_words() {
    let pair = Pair::new();
    // Nobody listens: the sidecar of `api` cannot reach its workload.
    assert_eq!(call(&pair, "unary")["code"], "UNAVAILABLE");
    // A caller without a sidecar is refused by the strict port, in words that grpcio understands.
    let outside = pair.mesh.pod("outside");
    let _server = serve(&pair.api);
    let said =
        outside.run(&[&python(), &peer("grpc_client.py"), &format!("{}:50051", pair.api.address), "unary"]);
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said["code"], "PERMISSION_DENIED", "{said}");
}
