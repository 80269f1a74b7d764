//! HTTP/2 by prior knowledge.

use crate::support::wait;
use crate::support::{API, Pair, bytes};

fn nghttpd(pair: &Pair, arguments: &[&str]) -> crate::support::process::Process {
    let root = pair.api.directory.join("www");
    std::fs::create_dir_all(&root).expect("make a directory");
    std::fs::write(root.join("file"), bytes(200_000)).expect("write a file");
    let root = root.display().to_string();
    let mut command = vec!["nghttpd", "--no-tls", "--htdocs", &root];
    command.extend(arguments);
    command.push("9000");
    let server = pair.api.start(&command);
    wait::until("nghttpd listens", || pair.api.try_connect(([127, 0, 0, 1], 9000)).is_ok());
    server
}

#[test]
fn http_2_by_prior_knowledge_arrives_as_http_2() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let target = pair.web.directory.join("got").display().to_string();
    let version = pair.web.run(&[
        "curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", "--write-out", "%{http_version}",
        "--output", &target, &format!("http://{API}:9000/file"),
    ]);
    assert_eq!(version, "2");
    assert!(std::fs::read(&target).expect("curl wrote a file") == bytes(200_000));
    pair.api.wait_for_metric("outrigger_requests_total", &[("direction", "inbound"), ("tls", "mesh"), ("code", "200")], 1.0);
}

#[test]
fn many_streams_of_few_connections_all_get_their_answers() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &[]);
    let said = pair.web.run(&[
        "h2load", "--requests=2000", "--clients=4", "--max-concurrent-streams=50", &format!("http://{API}:9000/file"),
    ]);
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert!(said.contains("status codes: 2000 2xx"), "{said}");
}

#[test]
fn trailers_of_an_http_2_response_arrive() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &["--trailer", "x-checksum: abc"]);
    let said = pair.web.run(&["nghttp", "--verbose", "--null-out", &format!("http://{API}:9000/file")]);
    assert!(said.contains("x-checksum: abc"), "{said}");
}

#[test]
fn an_upload_over_http_2_arrives_whole() {
    let pair = Pair::new();
    let _server = nghttpd(&pair, &["--echo-upload"]);
    let upload = pair.web.write("upload", bytes(1 << 20)).display().to_string();
    let target = pair.web.directory.join("got").display().to_string();
    pair.web.run(&[
        "curl", "--silent", "--show-error", "--fail", "--http2-prior-knowledge", "--data-binary",
        &format!("@{upload}"), "--output", &target, &format!("http://{API}:9000/echo"),
    ]);
    assert!(std::fs::read(&target).expect("curl wrote a file") == bytes(1 << 20));
}
