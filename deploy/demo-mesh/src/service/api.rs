//! `api`: answers who it is and who called, as JSON by HTTP and as a message by gRPC; on request late or failing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::json;
use tokio::time::sleep;

use super::plain_http::{Body, respond, respond_json, serve};
use super::{ServiceError, listen};

/// The gRPC method that `api` serves. Request: empty. Response: field 1, a string, is the endpoint's name.
pub const GRPC_METHOD: &str = "/outrigger.demo.Api/Who";
/// Set by the mesh: the caller's verified identity.
pub const CLIENT_ID_HEADER: &str = "outrigger-client-id";
/// gRPC's status "unavailable".
const GRPC_UNAVAILABLE: HeaderValue = HeaderValue::from_static("14");
const GRPC_OK: HeaderValue = HeaderValue::from_static("0");

/// How an endpoint behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The endpoint's name, as its answers say it.
    pub name: String,
    /// Added to each answer's time.
    pub slow: Duration,
    /// Share of requests answered by 503, 0 to 100.
    pub fail_percent: u8,
}

/// Serves until the process ends.
///
/// # Errors
/// The address can't be listened on.
pub async fn run(settings: Settings) -> Result<(), ServiceError> {
    let listener = listen(settings.listen).await?;
    serve(listener, Arc::new(settings), answer).await
}

async fn answer(settings: Arc<Settings>, request: Request<Incoming>) -> Response<Body> {
    if request.uri().path() == "/healthz" {
        return respond(StatusCode::OK, "text/plain", "ok\n");
    }
    let began = Instant::now();
    sleep(settings.slow).await;
    let fails = rand::random_range(0..100) < settings.fail_percent;
    if request.method() == Method::POST && request.uri().path() == GRPC_METHOD {
        return answer_grpc(&settings.name, fails);
    }
    let caller = request.headers().get(CLIENT_ID_HEADER).and_then(|id| id.to_str().ok());
    let status = if fails { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let latency = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    respond_json(
        status,
        &json!({"endpoint": settings.name, "status": status.as_u16(), "latency_ms": latency, "caller": caller}),
    )
}

fn answer_grpc(name: &str, fails: bool) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", if fails { GRPC_UNAVAILABLE } else { GRPC_OK });
    let message = if fails { Bytes::new() } else { frame(name) };
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// A gRPC frame: not compressed, length, and a protobuf message whose field 1 is `text`, cut at the 127 bytes that
/// a length of one byte can say.
pub fn frame(text: &str) -> Bytes {
    let text = &text.as_bytes()[..text.len().min(127)];
    let length = u8::try_from(text.len()).unwrap_or(127);
    let mut frame = vec![0, 0, 0, 0, length + 2, 0x0a, length];
    frame.extend_from_slice(text);
    frame.into()
}

/// The text in a frame as [`frame`] makes it.
pub fn unframe(frame: &[u8]) -> Option<&str> {
    let message = frame.get(5..)?;
    match message {
        [0x0a, length, text @ ..] if usize::from(*length) == text.len() => std::str::from_utf8(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_message_is_read_as_it_was_written() {
        assert_eq!(frame("api-1").as_ref(), b"\x00\x00\x00\x00\x07\x0a\x05api-1");
        for name in ["", "api-1", &"x".repeat(127)] {
            assert_eq!(unframe(&frame(name)), Some(name));
        }
        assert_eq!(unframe(b"\x00\x00\x00\x00\x07\x0a\x06api-1"), None);
        assert_eq!(unframe(b""), None);
    }
}
