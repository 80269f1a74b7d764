//! The services file changes while the server runs.

use std::fs;

use crate::support::{Running, SERVICES, Wishes};

/// Asks until the answer is the expected one; the test's own time limit ends it otherwise.
fn until(server: &Running, question: &str, expected: &[&str]) {
    while server.short(question) != expected {
        std::thread::yield_now();
    }
}

#[test]
fn a_change_is_visible_however_the_file_is_replaced() {
    let server = Running::start(Wishes::default());
    let question = "api.shop.svc.cluster.local A";
    assert_eq!(server.short(question), ["10.96.0.7"]);

    fs::write(&server.services, SERVICES.replace("10.96.0.7", "10.96.0.77")).unwrap();
    until(&server, question, &["10.96.0.77"]);
    assert!(server.short("-x 10.96.0.7 -t TXT").is_empty());

    let replacement = server.services.with_extension("new");
    fs::write(&replacement, SERVICES.replace("10.96.0.7,", "10.96.0.78,")).unwrap();
    fs::rename(&replacement, &server.services).unwrap();
    until(&server, question, &["10.96.0.78"]);

    fs::write(&server.services, "services: []").unwrap();
    until(&server, question, &[]);
}
