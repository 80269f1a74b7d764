//! Serving a connection of a client: HTTP/1.1 by hyper, HTTP/2 by h2.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::header::CONTENT_LENGTH;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::hop::pump;
use super::http1_io::{FlushedFirst, Http1Io};
use super::tunnel::{Interim, expects_continue, is_tunnel};
use crate::net::Body;
use crate::upstream::{CONNECTION_WINDOW, FRAME_SIZE, HeaderLimits, SEND_BUFFER, STREAM_WINDOW};

/// Time from a request's first byte to the end of its head; a client that takes longer holds a
/// connection for nothing (slow loris).
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for HTTP/2's preface and settings.
const HTTP2_START: Duration = Duration::from_secs(10);
const MAX_STREAMS: u32 = 200;
/// Streams reset by a client before we looked at them (rapid reset, CVE-2023-44487): h2 ends the connection.
const MAX_RESET_STREAMS: usize = 100;
/// PING every second tick, its answer within one.
const TICK: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\
proxy-status: outrigger; error=http_request_error; details=\"request head not complete within 30 s\"\r\n\r\n";

/// Answers requests.
pub trait Handler: 'static {
    /// Answers one; never fails, since a failure is an answer too.
    fn handle(self: Rc<Self>, request: Request<Body>) -> impl Future<Output = Response<Body>>;
}

/// What a client may send, and what ends its connection besides itself.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How large its header sections may be.
    pub headers: HeaderLimits,
    /// Turns true when the proxy drains: no new requests, those in flight finish.
    pub draining: watch::Receiver<bool>,
    /// When the peer's certificate ends.
    pub expires: Option<Instant>,
}

/// How serving a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// As it should.
    Ended,
    /// The client broke HTTP, for this reason (a metrics label).
    Refused(&'static str),
}

/// Serves HTTP/1.0 and 1.1 until either side ends the connection.
pub async fn serve_http1<S, H>(stream: S, handler: Rc<H>, limits: Limits) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Handler,
{
    let (io, control) = Http1Io::new(stream);
    let of_requests = control.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (handler, control) = (handler.clone(), of_requests.clone());
        async move {
            let mut request = request.map(Body::from);
            let expects = expects_continue(request.headers());
            let in_service = control.request_began(expects);
            if expects {
                request.extensions_mut().insert(Interim(control.clone()));
            }
            let connect = request.method() == Method::CONNECT;
            let request = request.map(|body| body.holding(in_service.clone()));
            let mut response = handler.handle(request).await.map(|body| body.holding(in_service));
            *response.version_mut() = Version::HTTP_11;
            if let Some(length) = length_left_away(&response) {
                response = response.map(|body| body.left_away(length));
            }
            control.answered(is_tunnel(connect, response.status()));
            Ok::<_, std::convert::Infallible>(response.map(|body| FlushedFirst::new(body, control)))
        }
    });
    let mut connection = http1::Builder::new()
        .max_headers(limits.headers.fields)
        .max_header_size(limits.headers.bytes)
        .auto_date_header(false)
        // A client may end its side after its request and wait for the answer (`nc -N`, HTTP/1.0 clients).
        .half_close(true)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let ended = {
        let mut draining = limits.draining.clone();
        let mut drained = pin!(async move { drain_begins(&mut draining).await });
        let mut is_draining = false;
        let mut expired = pin!(at(limits.expires));
        let mut head_timer = pin!(None::<tokio::time::Sleep>);
        poll_fn(|cx| {
            use std::task::Poll;
            loop {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(Some(result));
                }
                if is_draining || drained.as_mut().poll(cx).is_pending() {
                    break;
                }
                is_draining = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            // A head that came whole was taken by the service already: the usual request sets no timer.
            match control.head_began() {
                None if head_timer.is_some() => head_timer.set(None),
                None => {}
                Some(began) => {
                    if head_timer.is_none() {
                        head_timer.set(Some(sleep_until((began + HEAD_TIMEOUT).into())));
                    }
                    if head_timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready()) {
                        return Poll::Ready(None);
                    }
                }
            }
            expired.as_mut().poll(cx).map(|()| Some(Ok(())))
        })
        .await
    };
    match ended {
        None => {
            if let Some(parts) = connection.into_parts() {
                say_too_slow(parts.io.into_inner().into_inner()).await;
            }
            Served::Refused("slow_headers")
        }
        Some(result) => {
            if let Err(error) = result {
                tracing::debug!("connection ended: {error}");
            }
            if control.refused_a_request() { Served::Refused("bad_request") } else { Served::Ended }
        }
    }
}

/// The length that a 304 tells of what it leaves away (RFC 9110 8.6).
fn length_left_away(response: &Response<Body>) -> Option<u64> {
    if response.status() != StatusCode::NOT_MODIFIED {
        return None;
    }
    let mut lengths = response.headers().get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (Some(length), None) => length.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

/// The last word to a client that did not get its request's head sent in time; it may be gone.
async fn say_too_slow<S: AsyncWrite + Unpin>(mut stream: S) {
    let last_word = async {
        stream.write_all(REQUEST_TIMEOUT).await?;
        stream.shutdown().await
    };
    if let Ok(Err(error)) = tokio::time::timeout(TICK, last_word).await {
        tracing::debug!("connection ended: {error}");
    }
}

async fn drain_begins(draining: &mut watch::Receiver<bool>) {
    if draining.wait_for(|draining| *draining).await.is_err() {
        // The proxy is ending without a drain.
        std::future::pending().await
    }
}

pub(super) async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Serves HTTP/2 until either side ends the connection.
pub async fn serve_http2<S, H>(stream: S, handler: Rc<H>, limits: Limits) -> Served
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_SIZE)
        .max_header_list_size(limits.headers.list_bytes)
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_RESET_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .handshake::<_, Bytes>(stream);
    let mut connection = match tokio::time::timeout(HTTP2_START, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!("HTTP/2 did not begin: {error}");
            return Served::Refused("bad_request");
        }
        Err(_) => return Served::Refused("slow_headers"),
    };
    let mut keep_alive = KeepAlive::new(&mut connection);
    let mut draining = limits.draining.clone();
    let mut drained = pin!(async move { drain_begins(&mut draining).await });
    let mut is_draining = false;
    let mut expired = pin!(at(limits.expires));
    let retire_at = limits.expires.map(|expires| expires - margin(expires));
    loop {
        tokio::select! {
            biased;
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    tokio::task::spawn_local(serve_stream(handler.clone(), request, respond));
                }
                Some(Err(error)) => {
                    tracing::debug!("connection ended: {error}");
                    return if error.is_library() { Served::Refused("bad_request") } else { Served::Ended };
                }
                None => return Served::Ended,
            },
            () = &mut drained, if !is_draining => {
                is_draining = true;
                connection.graceful_shutdown();
            }
            // Not a moment earlier: there may be no newer certificate.
            () = &mut expired => return Served::Ended,
            alive = keep_alive.next() => {
                let now = Instant::now();
                if !alive {
                    return Served::Ended;
                }
                if !is_draining && retire_at.is_some_and(|at| at <= now) {
                    // The peer opens a new connection with its new certificate.
                    is_draining = true;
                    connection.graceful_shutdown();
                }
            }
        }
    }
}

/// Time before the certificate's end in which the connection takes no new request.
fn margin(expires: Instant) -> Duration {
    let left = expires.saturating_duration_since(Instant::now());
    (left / 5).clamp(2 * TICK, Duration::from_secs(60)).min(left / 3)
}

/// Finds clients that are gone without saying so.
struct KeepAlive {
    ping_pong: Option<PingPong>,
    tick: tokio::time::Interval,
    awaiting: bool,
    due: bool,
}

impl KeepAlive {
    fn new<S>(connection: &mut Connection<S, Bytes>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ping_pong: connection.ping_pong(), tick, awaiting: false, due: false }
    }

    /// Returns at each tick whether the client is still there.
    async fn next(&mut self) -> bool {
        loop {
            tokio::select! {
                biased;
                alive = pong(&mut self.ping_pong), if self.awaiting => {
                    if !alive {
                        return false;
                    }
                    self.awaiting = false;
                }
                _ = self.tick.tick() => {
                    if self.awaiting {
                        return false;
                    }
                    self.due = !self.due;
                    if self.due && let Some(ping_pong) = &mut self.ping_pong {
                        self.awaiting = ping_pong.send_ping(Ping::opaque()).is_ok();
                    }
                    return true;
                }
            }
        }
    }
}

async fn pong(ping_pong: &mut Option<PingPong>) -> bool {
    match ping_pong {
        Some(ping_pong) => poll_fn(|cx| ping_pong.poll_pong(cx)).await.is_ok(),
        None => std::future::pending().await,
    }
}

/// Not an `async fn`: that would hold its arguments twice, and this future is copied once a request.
pub(crate) fn serve_stream<H: Handler>(
    handler: Rc<H>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> impl Future<Output = ()> {
    let request = request.map(Body::from);
    async move {
        // hyper drops the content of an answer to HEAD by itself; h2 would send it.
        let head_only = request.method() == Method::HEAD;
        let response = tokio::select! {
            biased;
            response = handler.handle(request) => response,
            // The client gave up: dropping the handler ends what goes on for it.
            _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
        };
        let (head, body) = response.into_parts();
        let mut head = Response::from_parts(head, ());
        *head.version_mut() = Version::HTTP_2;
        let end_of_stream = head_only || body.is_end();
        match respond.send_response(head, end_of_stream) {
            Ok(_) if end_of_stream => {}
            Ok(sender) => {
                let idle_limit = body.idle_limit();
                pump(body, sender, idle_limit).await;
            }
            Err(error) => {
                tracing::debug!("response not sent: {error}");
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};
    use tokio::task::{LocalSet, spawn_local};

    use super::*;
    use crate::net::strip_hop_by_hop;

    /// Answers with what its workload sent before it broke off.
    struct BreaksOff {
        sent: &'static str,
        content: usize,
    }

    impl Handler for BreaksOff {
        async fn handle(self: Rc<Self>, _: Request<Body>) -> Response<Body> {
            let (mut workload, stream) = duplex(1 << 20);
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await.unwrap();
            spawn_local(connection);
            let response = sender.send_request(Request::new(Body::empty()));
            let answering = async {
                // The request's head.
                assert!(workload.read(&mut [0; 1024]).await.unwrap() > 0);
                workload.write_all(self.sent.as_bytes()).await.unwrap();
                workload.write_all(&vec![b'x'; self.content]).await.unwrap();
                drop(workload);
            };
            let (response, ()) = tokio::join!(response, answering);
            let mut response = response.unwrap().map(Body::from);
            strip_hop_by_hop(response.headers_mut());
            response
        }
    }

    const SIZED: &str = "HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    const NO_CHUNK: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nno size\r\n";

    /// A proxy in front of [`BreaksOff`], and the bytes that may be on their way between it and its client.
    fn responses_that_break_off() -> impl Iterator<Item = (BreaksOff, usize)> {
        let sent = [(SIZED, 0), (SIZED, 5), (SIZED, 50_000), (CHUNKED, 0), (NO_CHUNK, 0)];
        let responses = sent.into_iter().flat_map(|response| [(response, 128), (response, 1 << 20)]);
        responses.map(|((sent, content), on_the_way)| (BreaksOff { sent, content }, on_the_way))
    }

    fn limits() -> (watch::Sender<bool>, Limits) {
        let (sender, draining) = watch::channel(false);
        (sender, Limits { headers: HeaderLimits::WORKLOAD, draining, expires: None })
    }

    fn start(handler: BreaksOff, on_the_way: usize) -> (DuplexStream, DuplexStream, Rc<BreaksOff>) {
        let (client, server) = duplex(on_the_way);
        (client, server, Rc::new(handler))
    }

    #[tokio::test]
    async fn over_http_1_all_that_came_of_a_response_goes_on_before_it_breaks_off() {
        let local = LocalSet::new();
        local
            .run_until(async {
                for (handler, on_the_way) in responses_that_break_off() {
                    let what = format!("{:?} {} by {on_the_way}", handler.sent, handler.content);
                    let (mut client, server, handler) = start(handler, on_the_way);
                    let (_draining, limits) = limits();
                    let content = handler.content;
                    let serving = spawn_local(serve_http1(server, handler, limits));
                    client.write_all(b"GET / HTTP/1.1\r\nhost: api\r\n\r\n").await.unwrap();
                    let mut got = String::new();
                    client.read_to_string(&mut got).await.unwrap();
                    let (head, body) =
                        got.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{what}: {got:?}"));
                    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {head}");
                    assert_eq!(body, "x".repeat(content), "{what}");
                    serving.await.unwrap();
                }
            })
            .await;
    }

    #[tokio::test]
    async fn over_http_2_all_that_came_of_a_response_goes_on_before_it_breaks_off() {
        let local = LocalSet::new();
        local
            .run_until(async {
                for (handler, on_the_way) in responses_that_break_off() {
                    let what = format!("{:?} {} by {on_the_way}", handler.sent, handler.content);
                    let (client, server, handler) = start(handler, on_the_way);
                    let (_draining, limits) = limits();
                    let content = handler.content;
                    let serving = spawn_local(serve_http2(server, handler, limits));
                    let (mut sender, connection) = h2::client::handshake(client).await.unwrap();
                    let connection = spawn_local(connection);
                    let (response, _) = sender.send_request(Request::new(()), true).unwrap();
                    let response = response.await.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(response.status(), 200, "{what}");
                    let mut body = response.into_body();
                    let mut got = 0;
                    let error = loop {
                        match body.data().await.unwrap_or_else(|| panic!("{what}: made whole")) {
                            Ok(data) => got += data.len(),
                            Err(error) => break error,
                        }
                    };
                    assert!(error.is_reset(), "{what}: {error}");
                    assert_eq!(got, content, "{what}");
                    drop((sender, body));
                    connection.await.unwrap().unwrap();
                    assert_eq!(serving.await.unwrap(), Served::Ended);
                }
            })
            .await;
    }
}
