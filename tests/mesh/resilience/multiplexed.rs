//! Upstreams that speak HTTP/2 and fail: by frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::{Bench, ENDPOINTS};
use crate::grpc::{peer, python};
use crate::support::API;
use crate::support::pod::Pod;
use crate::support::serve::Server;
use crate::support::wire::Connection;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM_AND_HEADERS: u8 = 5;
const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

/// What is said to each request: type, flags and payload of a frame.
type Said = (u8, u8, &'static [u8]);

/// `:status: 503`, not indexed: the name of entry 8 of RFC 7541's table, and three digits.
const UNAVAILABLE: Said = (HEADERS, END_STREAM_AND_HEADERS, &[0x08, 3, b'5', b'0', b'3']);

fn frame(kind: u8, flags: u8, stream: &[u8], payload: &[u8]) -> Vec<u8> {
    [&[0, 0, payload.len() as u8, kind, flags], stream, payload].concat()
}

fn answer(connection: &mut Connection, said: Said, asked: &AtomicUsize) -> std::io::Result<()> {
    connection.take(PREFACE.len());
    connection.try_send(frame(SETTINGS, 0, &[0; 4], &[]))?;
    loop {
        // It ends with its connection.
        let Ok(head) = connection.try_take(9) else { return Ok(()) };
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let payload = connection.take(length);
        match (head[3], head[4] & ACK) {
            (SETTINGS | PING, 0) => connection.try_send(frame(
                head[3],
                ACK,
                &head[5..],
                match head[3] {
                    PING => &payload,
                    _ => &[],
                },
            ))?,
            (HEADERS, _) => {
                asked.fetch_add(1, SeqCst);
                connection.try_send(frame(said.0, said.1, &head[5..], said.2))?;
            }
            _ => {}
        }
    }
}

/// Serves HTTP/2 on a port of `pod`, and says the same to all requests; counts them.
fn serve(pod: &Pod, port: u16, said: Said) -> (Server, Arc<AtomicUsize>) {
    let asked = Arc::<AtomicUsize>::default();
    let counter = asked.clone();
    let server = pod.serve(port, move |mut connection| _ = answer(&mut connection, said, &counter));
    (server, asked)
}

#[test]
fn a_call_whose_stream_is_refused_is_tried_elsewhere_whatever_it_does() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  calls: {{hosts: [calls.example], tls: none, balance: roundRobin, discovery: {{static: [\"{at}:8085\", \"{at}:50051\"]}}}}\n"
    ));
    let (_refusing, refused) = serve(&bench.api, 8085, (RST_STREAM, 0, &REFUSED_STREAM));
    let mut server = bench.api.start(&[&python(), &peer("grpc_server.py"), "0.0.0.0:50051"]);
    server.wait_for_output("serving");
    for _ in 0..4 {
        let said = bench.web.run(&[&python(), &peer("grpc_client.py"), "calls.example:50051", "unary"]);
        let said: serde_json::Value =
            serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert_eq!(said["answer"], "echo hello", "{said}");
    }
    assert!(refused.load(SeqCst) >= 2, "{refused:?}");
    assert_eq!(bench.upstream("calls")["breaker"]["state"], "closed");
}

#[test]
fn an_upstream_of_http2_at_which_all_fails_gets_at_most_a_quarter_more_than_is_offered() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, breaker: {{enabled: false}}, discovery: {{static: [\"{at}:8085\", \"{at}:8086\"]}}}}\n"
    ));
    let servers = [8085, 8086].map(|port| serve(&bench.api, port, UNAVAILABLE));
    let target = format!("http://{API}:8085/");
    let said = bench.web.run(&["h2load", "-D", "6", "-c", "4", "-m", "10", "--rps", "50", &target]);
    let codes = said.lines().find(|line| line.starts_with("status codes:")).expect("a line of codes");
    let failed = codes.split(", ").last().and_then(|word| word.split(' ').next()?.parse().ok());
    let offered: usize = failed.unwrap_or_else(|| panic!("a number: {codes}"));
    let asked: usize = servers.iter().map(|(_, asked)| asked.load(SeqCst)).sum();
    println!("{asked} of {offered}\n{said}");
    assert!(offered >= 600, "a storm: {said}");
    assert!(asked > offered, "{asked} tries of {offered} requests: some are tried again");
    // What h2load has not waited for was sent, too.
    assert!(asked * 100 <= (offered + 40) * 125, "{asked} tries of {offered} requests");
}
