//! What another upstream is asked in place of one that fails: the request as it came, with all that it is owed.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use crate::support::outside::{Outside, SHOP, upstream};
use crate::support::serve::{Server, ok, respond};
use crate::support::wire::Ending;

const OFF: &str = "breaker: {enabled: false}, outlier: {enabled: false}";

/// `first` has this port, fails, and falls back to `spare` on port 8085.
fn falls_back(first: u16, routes: &str) -> Outside {
    let first =
        upstream("first", &[first], &format!("hosts: [{SHOP}], {OFF}, fallback: {{upstream: spare}}"));
    let spare = upstream("spare", &[8085], OFF);
    Outside::new(&format!("upstreams:\n{first}{spare}{routes}"))
}

/// Answers 503, and says no word about what the client expects.
fn serve_failing(bed: &Outside) -> (Server, Arc<AtomicUsize>) {
    let came = Arc::<AtomicUsize>::default();
    let counter = came.clone();
    let server = bed.far.serve(8081, move |mut connection| {
        if connection.try_head().is_ok() {
            counter.fetch_add(1, SeqCst);
            let _ = connection.try_send(respond("503 Service Unavailable", "Connection: close\r\n", "ill"));
        }
    });
    (server, came)
}

#[test]
fn an_upgrade_becomes_a_tunnel_to_the_upstream_that_stands_in() {
    // The first upstream fails, or does not even listen.
    for port in [8081, 9] {
        let bed = falls_back(port, "");
        let (_first, came) = serve_failing(&bed);
        let _spare = bed.far.serve(8085, |mut connection| {
            let request = connection.request().expect("a request");
            assert_eq!((request.start.as_str(), request.header("host")), ("GET /ws HTTP/1.1", Some(SHOP)));
            assert_eq!(request.header("upgrade"), Some("raven/1"));
            connection
                .send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n");
            let (rest, _) = connection.take_all();
            connection.send(rest);
        });
        let mut connection = bed.connect();
        connection.send(format!(
            "GET /ws HTTP/1.1\r\nHost: {SHOP}\r\nConnection: Upgrade\r\nUpgrade: raven/1\r\n\r\n"
        ));
        let answer = connection.head();
        assert_eq!((answer.status(), answer.header("upgrade")), (101, Some("raven/1")), "{answer:?}");
        connection.send("caw");
        connection.finish();
        assert_eq!(connection.take_all(), (b"caw".to_vec(), Ending::Closed));
        // An upgrade asks with GET: it may be tried again.
        assert_eq!(came.load(SeqCst), if port == 9 { 0 } else { 3 });
    }
}

#[test]
fn a_body_that_waits_for_an_interim_response_goes_to_the_upstream_that_stands_in() {
    for port in [8081, 9] {
        let bed = falls_back(port, "");
        let _first = serve_failing(&bed);
        let _spare = bed.far.serve(8085, |mut connection| {
            let head = connection.head();
            assert_eq!((head.start.as_str(), head.header("host")), ("PUT /a HTTP/1.1", Some(SHOP)));
            assert_eq!(head.header("expect"), Some("100-continue"));
            connection.send("HTTP/1.1 100 Continue\r\n\r\n");
            let body = connection.take(5);
            connection.send(ok(body));
        });
        let mut connection = bed.connect();
        connection.send(format!(
            "PUT /a HTTP/1.1\r\nHost: {SHOP}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        ));
        assert_eq!(connection.head().status(), 100);
        connection.send("hello");
        let answer = connection.response("PUT");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"));
    }
}
