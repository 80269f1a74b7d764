//! A TCP server in a pod: one thread a connection, the test's own function on each.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::socket::{Shutdown, shutdown};

use super::pod::Pod;
use super::wire::{Connection, Message};

/// A running server; it stops accepting when this is dropped.
pub struct Server {
    listener: TcpListener,
    accepted: Arc<AtomicUsize>,
}

impl Server {
    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the accepting thread, which then lets go of the port.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl Pod {
    /// Serves connections to `port` on all addresses of the pod.
    pub fn serve(&self, port: u16, handler: impl Fn(Connection) + Send + Sync + 'static) -> Server {
        self.serve_at(SocketAddr::from(([0, 0, 0, 0], port)), handler)
    }

    /// Serves connections to `address`.
    pub fn serve_at(
        &self,
        address: SocketAddr,
        handler: impl Fn(Connection) + Send + Sync + 'static,
    ) -> Server {
        let listener = self.listen(address);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (accepting, counter) = (listener.try_clone().expect("share a listener"), Arc::clone(&accepted));
        let handler = Arc::new(handler);
        std::thread::spawn(move || {
            while let Ok((socket, _)) = accepting.accept() {
                counter.fetch_add(1, Ordering::SeqCst);
                let handler = Arc::clone(&handler);
                std::thread::spawn(move || handler(Connection::new(socket)));
            }
        });
        Server { listener, accepted }
    }

    /// Serves HTTP/1.1 with keep-alive: `answer` gives the bytes of each response.
    pub fn serve_http<B: AsRef<[u8]>>(
        &self,
        port: u16,
        answer: impl Fn(&Message) -> B + Send + Sync + 'static,
    ) -> Server {
        self.serve(port, move |mut connection| {
            while let Some(request) = connection.request() {
                if connection.try_send(answer(&request)).is_err() {
                    return;
                }
            }
        })
    }

    /// Serves HTTP/1.1 that answers each request with what it received: the head as the body's
    /// first part, then the body.
    pub fn serve_echo(&self, port: u16) -> Server {
        self.serve_http(port, |request| {
            let mut body = format!("{}\n", request.start);
            for (name, value) in &request.headers {
                body += &format!("{}: {value}\n", name.to_ascii_lowercase());
            }
            body.push('\n');
            let mut body = body.into_bytes();
            body.extend(&request.body);
            let mut response = ok(&body);
            if request.method() == "HEAD" {
                response.truncate(response.len() - body.len());
            }
            response
        })
    }
}

/// A `200 OK` with this body.
pub fn ok(body: impl AsRef<[u8]>) -> Vec<u8> {
    respond("200 OK", "", body)
}

/// A response with this status, these further fields (each ending in CR LF) and this body.
pub fn respond(status: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut response =
        format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    response.extend(body);
    response
}
