//! Bodies that are long, endless or slow.

use std::sync::mpsc;

use crate::support::wait::PATIENCE;
use crate::support::{API, Pair};

/// A body larger than any memory that the proxy may take.
const LARGE: u64 = 2 << 30;
/// What the proxy may take, in KiB.
const MOST_MEMORY_KIB: u64 = 64 << 10;

#[test]
fn each_chunk_of_an_event_stream_arrives_at_once() {
    let pair = Pair::new();
    let (permit, permitted) = mpsc::channel::<()>();
    let permitted = std::sync::Mutex::new(permitted);
    let _server = pair.api.serve(8080, move |mut connection| {
        connection.request();
        connection
            .send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        let permitted = permitted.lock().expect("one connection");
        for number in 0..10 {
            permitted.recv_timeout(PATIENCE).expect("the client has seen all before");
            let event = format!("data: {number}\n\n");
            connection.send(format!("{:x}\r\n{event}\r\n", event.len()));
        }
        connection.send("0\r\n\r\n");
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("GET /events HTTP/1.1\r\nHost: {API}\r\nAccept: text/event-stream\r\n\r\n"));
    assert_eq!(connection.head().status(), 200, "the head arrives before any event");
    for number in 0..10 {
        // The server sends the next event only after this one was seen here.
        permit.send(()).expect("the server waits");
        assert_eq!(connection.chunk(), format!("data: {number}\n\n").as_bytes());
    }
    assert_eq!(connection.chunk(), b"");
}

#[test]
fn an_upload_reaches_the_workload_while_it_is_still_being_sent() {
    let pair = Pair::new();
    let (sender, seen) = mpsc::channel();
    let _server = pair.api.serve(8080, move |mut connection| {
        connection.head();
        loop {
            let chunk = connection.chunk();
            let _ = sender.send(chunk.clone());
            if chunk.is_empty() {
                break;
            }
        }
        connection.take_until(b"\r\n");
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("POST / HTTP/1.1\r\nHost: {API}\r\nTransfer-Encoding: chunked\r\n\r\n"));
    for part in ["one", "two", "three"] {
        connection.send(format!("{:x}\r\n{part}\r\n", part.len()));
        assert_eq!(
            seen.recv_timeout(PATIENCE).expect("the part arrives before the next is sent"),
            part.as_bytes()
        );
    }
    connection.send("0\r\n\r\n");
    assert_eq!(connection.response("POST").status(), 200);
}

#[test]
fn two_gibibytes_up_and_down_leave_both_proxies_small() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        while let Ok(head) = connection.try_head() {
            match head.method() {
                "GET" => {
                    connection.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n"));
                    let block = vec![b'x'; 1 << 20];
                    for _ in 0..LARGE >> 20 {
                        connection.send(&block);
                    }
                }
                _ => {
                    for _ in 0..LARGE >> 20 {
                        connection.take(1 << 20);
                    }
                    connection.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhave");
                }
            }
        }
    });
    let mut connection = pair.connect(8080);
    connection.send(format!("POST /up HTTP/1.1\r\nHost: {API}\r\nContent-Length: {LARGE}\r\n\r\n"));
    let block = vec![b'x'; 1 << 20];
    for _ in 0..LARGE >> 20 {
        connection.send(&block);
    }
    assert_eq!(connection.response("POST").text(), "have");
    connection.send(format!("GET /down HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    let head = connection.head();
    assert_eq!(head.header("content-length"), Some(LARGE.to_string().as_str()));
    for _ in 0..LARGE >> 20 {
        connection.take(1 << 20);
    }
    for sidecar in [&pair.web_sidecar, &pair.api_sidecar] {
        let most = sidecar.memory_kib("VmHWM");
        assert!(most < MOST_MEMORY_KIB, "a sidecar took {most} KiB");
    }
}

#[test]
fn a_client_that_reads_nothing_holds_the_server_back_and_no_memory() {
    let pair = Pair::new();
    let _server = pair.api.serve(8080, |mut connection| {
        connection.request();
        connection.send("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        let block = vec![b'x'; 1 << 20];
        while connection.try_send(&block).is_ok() {}
    });
    let mut idle: Vec<_> = (0..8).map(|_| pair.connect(8080)).collect();
    for connection in &mut idle {
        connection.send(format!("GET /endless HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    }
    for connection in &mut idle {
        assert_eq!(connection.head().status(), 200);
    }
    // Others are not held up by those who do not read.
    let _other = pair.api.serve_echo(8081);
    assert_eq!(pair.get(8081, "/").status(), 200);
    for sidecar in [&pair.web_sidecar, &pair.api_sidecar] {
        let most = sidecar.memory_kib("VmHWM");
        assert!(most < MOST_MEMORY_KIB, "a sidecar took {most} KiB");
    }
}
