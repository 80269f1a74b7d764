//! Sending one request on one HTTP/2 stream, and pumping bodies into streams.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::{Request, Response};
use http_body::Body as _;
use outrigger_ca::tls_fault::TlsFault;
use thiserror::Error;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::local_response::{LocalResponse, ProxyError};
use super::tunnel::Interim;
use crate::net::Body;
use crate::upstream::{ConnectError, StreamLease};

/// How long a stream that breaks off waits for what came before to be written.
const BREATH: Duration = Duration::from_millis(5);

/// Why a hop has no response.
#[derive(Debug, Error)]
pub enum HopError {
    /// No connection.
    #[error("{0}")]
    Connect(#[from] ConnectError),
    /// The connection or stream ended before the response's headers.
    #[error("lost before the response: {0}")]
    Http2(#[from] h2::Error),
    /// The connection ended before the response's headers, or the response breaks HTTP.
    #[error("lost before the response: {0}")]
    Http1(#[from] hyper::Error),
    /// The response's content is coded in a way that would be lost on the way.
    #[error("the response has a transfer coding other than chunked")]
    UnknownCoding,
    /// The response's headers did not come in time.
    #[error("no response within {0:?}")]
    Timeout(Duration),
    /// Nothing has become of it yet.
    #[error("it was not sent")]
    NotTried,
    /// The caller's own deadline is over.
    #[error("the caller's deadline (grpc-timeout) has passed")]
    DeadlinePassed,
}

impl HopError {
    /// What the caller is told of a try at this endpoint; `None` when it went to none.
    pub fn to_local_response(&self, upstream: &str, endpoint: Option<std::net::SocketAddr>) -> LocalResponse {
        let about = |kind, error: &dyn std::fmt::Display| {
            let detail = match endpoint {
                Some(endpoint) => format!("upstream {upstream}, endpoint {endpoint}: {error}"),
                None => format!("upstream {upstream}: {error}"),
            };
            LocalResponse::new(kind, detail)
        };
        match self {
            Self::Connect(error) => LocalResponse::connect(upstream, error),
            Self::Timeout(_) | Self::DeadlinePassed => about(ProxyError::TIMEOUT, self),
            Self::Http2(error) => {
                let kind = match error.get_io() {
                    // In TLS 1.3 a refused client certificate shows after the handshake; of the error h2 keeps
                    // the text only.
                    Some(io) if io.to_string().contains(TlsFault::ALERT) => ProxyError::TLS_ALERT,
                    // We gave it up ourselves: the peer took nothing of its request for too long.
                    _ if error.is_reset() && !error.is_remote() && !error.is_library() => ProxyError::TIMEOUT,
                    _ if error.is_library() || error.reason() == Some(h2::Reason::PROTOCOL_ERROR) => {
                        ProxyError::BAD_RESPONSE
                    }
                    _ => ProxyError::TERMINATED,
                };
                about(kind, error)
            }
            Self::NotTried => about(ProxyError::INTERNAL, self),
            Self::UnknownCoding => about(ProxyError::BAD_RESPONSE, self),
            Self::Http1(error) => {
                let kind = if error.is_parse() { ProxyError::BAD_RESPONSE } else { ProxyError::TERMINATED };
                about(kind, error)
            }
        }
    }
}

/// Whether the peer said that it has not looked at the request, so that sending it again is safe
/// whatever it is (RFC 9113 6.8 and 8.7).
pub(super) fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && match error.reason() {
            Some(h2::Reason::NO_ERROR) => error.is_go_away(),
            Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
            _ => false,
        }
}

/// The task that pumps a request's body; ended when the exchange is over.
#[derive(Debug)]
pub struct PumpGuard(JoinHandle<()>);

impl Drop for PumpGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a request on `stream` and waits for the response's headers; the body goes on beside.
///
/// # Errors
/// The stream's or connection's.
pub async fn send_multiplexed(
    stream: &mut StreamLease,
    request: &mut Request<Body>,
) -> Result<(Response<RecvStream>, Option<PumpGuard>), h2::Error> {
    // Taken here: by value it would stay in the future of every request to its end.
    let (mut head, body) = std::mem::take(request).into_parts();
    let end_of_stream = body.is_end();
    let interim = head.extensions.remove::<Interim>();
    let (response, sender) = stream.send(Request::from_parts(head, ()), end_of_stream)?;
    let pump = if end_of_stream { None } else { start_pump(body, sender, stream.idle_limit()).await };
    let response = match interim {
        None => response.await?,
        Some(interim) => Box::pin(interim.pass_back(response)).await?,
    };
    Ok((response, pump))
}

/// Pumps what is there at once; the rest in a task of its own.
async fn start_pump(
    body: Body,
    sender: SendStream<Bytes>,
    idle_limit: Option<Duration>,
) -> Option<PumpGuard> {
    let mut pumping = Box::pin(pump(body, sender, idle_limit));
    let done = poll_fn(|cx| Poll::Ready(pumping.as_mut().poll(cx).is_ready())).await;
    (!done).then(|| PumpGuard(tokio::task::spawn_local(pumping)))
}

/// Moves a body into a stream as fast as the peer takes it. A body that breaks off resets the stream, once what came
/// of the message is on its way; and so does a peer that takes nothing for `idle_limit`.
pub(super) async fn pump(body: Body, mut sender: SendStream<Bytes>, idle_limit: Option<Duration>) {
    let mut body = pin!(body);
    loop {
        let frame = tokio::select! {
            biased;
            frame = poll_fn(|cx| body.as_mut().poll_frame(cx)) => frame,
            // The peer wants no more of it.
            _ = poll_fn(|cx| sender.poll_reset(cx)) => return,
        };
        let sent = match frame {
            None => sender.send_data(Bytes::new(), true).is_ok(),
            Some(Err(error)) => {
                on_its_way().await;
                sender.send_reset(error.reason());
                return;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let last = body.is_end_stream();
                    match send_data(&mut sender, data, last, idle_limit).await {
                        Ok(()) if last => return,
                        result => result.is_ok(),
                    }
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => {
                        // The stream ends with its trailers; an error means that it is gone already.
                        let _ = sender.send_trailers(trailers);
                        return;
                    }
                    Err(_) => true,
                },
            },
        };
        if !sent || body.is_end_stream() {
            return;
        }
    }
}

/// Waits until what was sent on the stream has most likely left h2's queue, which a reset empties: the head would be lost
/// too. h2 does not tell when it has; its connection writes when this task waits, as far as the socket takes it.
async fn on_its_way() {
    tokio::task::yield_now().await;
    tokio::time::sleep(BREATH).await;
}

/// Sends data within the peer's window, in as large pieces as it allows.
async fn send_data(
    sender: &mut SendStream<Bytes>,
    mut data: Bytes,
    last: bool,
    idle_limit: Option<Duration>,
) -> Result<(), h2::Error> {
    if data.is_empty() {
        return if last { sender.send_data(data, true) } else { Ok(()) };
    }
    while !data.is_empty() {
        sender.reserve_capacity(data.len());
        if sender.capacity() == 0 {
            let granted = match idle_limit {
                None => poll_fn(|cx| sender.poll_capacity(cx)).await,
                // Boxed: the future of every stream would be as large as this one.
                Some(limit) => Box::pin(granted_within(limit, sender)).await,
            };
            granted.unwrap_or(Err(h2::Reason::CANCEL.into()))?;
        }
        let n = sender.capacity().min(data.len());
        if n > 0 {
            let piece = data.split_to(n);
            sender.send_data(piece, last && data.is_empty())?;
        }
    }
    Ok(())
}

/// Room in the peer's window; none, and the stream is reset, where it gives none for so long.
async fn granted_within(limit: Duration, sender: &mut SendStream<Bytes>) -> Option<Result<usize, h2::Error>> {
    let granted = timeout(limit, poll_fn(|cx| sender.poll_capacity(cx))).await;
    granted.unwrap_or_else(|_| {
        sender.send_reset(h2::Reason::CANCEL);
        None
    })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use tokio::io::duplex;
    use tokio::task::{LocalSet, spawn_local};
    use tokio::time::Instant;

    use super::*;

    /// A peer whose window lets `window` bytes of a body through, and then nothing.
    #[tokio::test(start_paused = true)]
    async fn a_body_ends_when_its_receiver_takes_nothing_for_too_long() {
        const LIMIT: Duration = Duration::from_secs(3);
        let test = async {
            for (window, ends) in [(0, true), (5, true), (100, false)] {
                let (client, server) = duplex(1 << 16);
                spawn_local(async move {
                    let mut builder = h2::server::Builder::new();
                    let handshake = builder.initial_window_size(window).handshake::<_, Bytes>(server);
                    let mut connection = handshake.await.unwrap();
                    let accepted = connection.accept().await;
                    while let Some(Ok(_)) = connection.accept().await {}
                    drop(accepted);
                });
                let (mut sender, mut connection) = h2::client::handshake(client).await.unwrap();
                let mut ping_pong = connection.ping_pong().unwrap();
                spawn_local(connection);
                // Until the server's settings are there.
                ping_pong.ping(h2::Ping::opaque()).await.unwrap();
                let (response, stream) = sender.send_request(Request::new(()), false).unwrap();
                let body = Body::full(BytesMut::zeroed(50).freeze());
                let began = Instant::now();
                let pumped = tokio::time::timeout(LIMIT * 2, pump(body, stream, Some(LIMIT))).await;
                assert!(pumped.is_ok(), "{window}");
                assert_eq!(began.elapsed() == LIMIT, ends, "{window}: {:?}", began.elapsed());
                if ends {
                    let error = response.await.unwrap_err();
                    let told = HopError::from(error)
                        .to_local_response("api", Some(std::net::SocketAddr::from(([10, 0, 0, 1], 80))));
                    assert!(told.proxy_status().contains("http_response_timeout"), "{told:?}");
                }
            }
        };
        LocalSet::new().run_until(test).await;
    }
}
