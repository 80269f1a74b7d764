//! HTTP as plainly as a program can speak it: a server for HTTP/1 and HTTP/2, and calls on a connection each.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{ServiceError, accept};

/// A response's body, streamed or at hand.
pub type Body = BoxBody<Bytes, Infallible>;

/// How long a caller waits for a whole response.
const CALL_PATIENCE: Duration = Duration::from_secs(10);

/// Trace context that a well-behaved workload passes on to those it calls.
const TRACE_HEADERS: [&str; 8] = [
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-request-id",
];

/// Why a call brought no response.
#[derive(Debug, Error)]
pub enum CallError {
    /// No connection.
    #[error("can't connect to {authority}: {source}")]
    Connect {
        /// Whom.
        authority: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The connection broke, or what came was not HTTP.
    #[error("no response from {authority}: {source}")]
    Exchange {
        /// Whom.
        authority: String,
        /// hyper's reason.
        source: hyper::Error,
    },
    /// Nothing came in time.
    #[error("no response from {authority} within {} s", CALL_PATIENCE.as_secs())]
    TooLate {
        /// Whom.
        authority: String,
    },
    /// The request is no valid one.
    #[error("not a valid request: {0}")]
    Request(#[from] http::Error),
}

/// A whole response.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// What came after the body.
    pub trailers: HeaderMap,
}

/// Serves `answer` until the process ends.
///
/// # Errors
/// None after listening; the type is what a service's main returns.
pub async fn serve<S, F>(
    listener: TcpListener,
    state: Arc<S>,
    answer: fn(Arc<S>, Request<Incoming>) -> F,
) -> Result<(), ServiceError>
where
    S: Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    loop {
        let stream = accept(&listener).await;
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answered = answer(Arc::clone(&state), request);
                async move { Ok::<_, Infallible>(answered.await) }
            });
            let server = auto::Builder::new(TokioExecutor::new());
            // A connection's end, however it comes, is the client's business.
            server.serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}

/// A GET request on a connection of its own, with `headers`.
///
/// # Errors
/// Why no response came.
pub async fn get(authority: &str, path: &str, headers: &HeaderMap) -> Result<Answer, CallError> {
    in_time(authority, async { get_on(connect(authority).await?, authority, path, headers).await }).await
}

/// As [`get`], on a connection made already.
///
/// # Errors
/// Why no response came.
pub async fn get_on(
    stream: TcpStream,
    authority: &str,
    path: &str,
    headers: &HeaderMap,
) -> Result<Answer, CallError> {
    let mut request = Request::get(path).header(HOST, authority).body(Empty::<Bytes>::new())?;
    request.headers_mut().extend(headers.clone());
    in_time(authority, async {
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(exchange(authority))?;
        tokio::spawn(connection);
        whole(sender.send_request(request).await.map_err(exchange(authority))?, authority).await
    })
    .await
}

/// A POST request by HTTP/2 with prior knowledge, as gRPC clients make it.
///
/// # Errors
/// Why no response came.
pub async fn post_grpc(
    authority: &str,
    path: &str,
    message: Bytes,
    headers: &HeaderMap,
) -> Result<Answer, CallError> {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}{path}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(Full::new(message))?;
    request.headers_mut().extend(headers.clone());
    in_time(authority, async {
        let stream = TokioIo::new(connect(authority).await?);
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), stream).await.map_err(exchange(authority))?;
        tokio::spawn(connection);
        whole(sender.send_request(request).await.map_err(exchange(authority))?, authority).await
    })
    .await
}

async fn in_time(
    authority: &str,
    call: impl Future<Output = Result<Answer, CallError>>,
) -> Result<Answer, CallError> {
    timeout(CALL_PATIENCE, call)
        .await
        .unwrap_or_else(|_| Err(CallError::TooLate { authority: authority.into() }))
}

async fn connect(authority: &str) -> Result<TcpStream, CallError> {
    TcpStream::connect(authority)
        .await
        .map_err(|source| CallError::Connect { authority: authority.into(), source })
}

fn exchange(authority: &str) -> impl Fn(hyper::Error) -> CallError {
    move |source| CallError::Exchange { authority: authority.into(), source }
}

async fn whole(response: Response<Incoming>, authority: &str) -> Result<Answer, CallError> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(exchange(authority))?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes(), trailers })
}

/// The headers of `request` that belong to its trace.
pub fn trace_headers(request: &HeaderMap) -> HeaderMap {
    TRACE_HEADERS
        .into_iter()
        .filter_map(|name| Some((HeaderName::from_static(name), request.get(name)?.clone())))
        .collect()
}

/// A response with a body at hand.
pub fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A response of JSON.
pub fn respond_json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    respond(status, "application/json", format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trace_is_passed_on_and_nothing_else() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("traceparent", "00-1-2-01"), ("b3", "1-2-1"), ("cookie", "secret"), ("host", "web")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut names: Vec<_> = trace_headers(&headers).keys().map(ToString::to_string).collect();
        names.sort();
        assert_eq!(names, ["b3", "traceparent"]);
    }
}
