//! `web`: the shop's front. Each page calls `api` by HTTP or gRPC, or `store` by Redis' protocol, and shows what
//! came back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};

use super::api::{CLIENT_ID_HEADER, GRPC_METHOD, frame, unframe};
use super::plain_http::{Body, get, post_grpc, respond, respond_json, serve, trace_headers};
use super::{ServiceError, listen};

/// The page; `{name}` are filled in.
const PAGE: &str = include_str!("web.html");
/// How long the store may take.
const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between events of the stream.
const STREAM_PAUSE: Duration = Duration::from_secs(1);

/// Whom `web` calls.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Host and port of `api`.
    pub api: String,
    /// Host and port of `store`.
    pub store: String,
}

struct Web {
    settings: Settings,
    /// Kept between requests, as Redis clients do.
    store: Mutex<Option<BufReader<TcpStream>>>,
    /// Answers of `api` by endpoint and status.
    answers: std::sync::Mutex<BTreeMap<String, u64>>,
}

/// Serves until the process ends.
///
/// # Errors
/// The address can't be listened on.
pub async fn run(settings: Settings) -> Result<(), ServiceError> {
    let listener = listen(settings.listen).await?;
    let web = Web { settings, store: Mutex::default(), answers: std::sync::Mutex::default() };
    serve(listener, Arc::new(web), answer).await
}

async fn answer(web: Arc<Web>, request: Request<Incoming>) -> Response<Body> {
    if request.method() != Method::GET {
        return respond(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n");
    }
    let trace = trace_headers(request.headers());
    let caller = request.headers().get(CLIENT_ID_HEADER).and_then(|id| id.to_str().ok());
    match request.uri().path() {
        "/" => respond(StatusCode::OK, "text/html; charset=utf-8", web.page(caller, &trace).await),
        "/api" => result(web.call_api(&trace).await),
        "/grpc" => result(web.call_grpc(&trace).await),
        "/store" => result(web.count_visit().await),
        "/stream" => stream(web),
        "/healthz" => respond(StatusCode::OK, "text/plain", "ok\n"),
        _ => respond(StatusCode::NOT_FOUND, "text/plain", "try / /api /grpc /store /stream\n"),
    }
}

fn result((status, value): (StatusCode, Value)) -> Response<Body> {
    respond_json(status, &value)
}

impl Web {
    async fn page(&self, caller: Option<&str>, trace: &HeaderMap) -> String {
        let (_, api) = self.call_api(trace).await;
        let (_, store) = self.count_visit().await;
        let caller = match caller {
            Some(id) => format!("You came in as {id}: the entry's sidecar proved it to this one."),
            None => "You came in without an identity of the mesh.".into(),
        };
        PAGE.replace("{caller}", &escape(&caller))
            .replace("{api}", &escape(&api.to_string()))
            .replace("{store}", &escape(&store.to_string()))
    }

    /// What `api` said, with its status.
    async fn call_api(&self, trace: &HeaderMap) -> (StatusCode, Value) {
        let began = Instant::now();
        match get(&self.settings.api, "/", trace).await {
            Ok(answer) => {
                let value = serde_json::from_slice(&answer.body).unwrap_or_else(|_| {
                    json!({
                        "status": answer.status.as_u16(),
                        "proxy_status": answer.headers.get("proxy-status").and_then(|said| said.to_str().ok()),
                    })
                });
                self.remember(value["endpoint"].as_str().unwrap_or("(no endpoint)"), answer.status);
                (answer.status, with_time(value, began))
            }
            Err(error) => failure(&error),
        }
    }

    async fn call_grpc(&self, trace: &HeaderMap) -> (StatusCode, Value) {
        let began = Instant::now();
        match post_grpc(&self.settings.api, GRPC_METHOD, frame(""), trace).await {
            Ok(answer) => {
                // A response without message carries its status in the headers.
                let status = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
                let status = status.and_then(|status| status.to_str().ok()).unwrap_or("missing").to_owned();
                let http_status = if status == "0" { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
                (
                    http_status,
                    with_time(json!({"grpc_status": status, "endpoint": unframe(&answer.body)}), began),
                )
            }
            Err(error) => failure(&error),
        }
    }

    async fn count_visit(&self) -> (StatusCode, Value) {
        let began = Instant::now();
        match timeout(STORE_PATIENCE, self.increment("visits")).await {
            Ok(Ok(visits)) => (StatusCode::OK, with_time(json!({"visits": visits}), began)),
            Ok(Err(error)) => failure(&format!("store: {error}")),
            Err(_) => failure(&format!("store: no answer within {} s", STORE_PATIENCE.as_secs())),
        }
    }

    async fn increment(&self, key: &str) -> io::Result<i64> {
        let mut kept = self.store.lock().await;
        // Taken out, so that a connection with a question unanswered is not used again. One that broke since its last
        // use is replaced.
        if let Some(mut connection) = kept.take()
            && let Ok(value) = ask(&mut connection, key).await
        {
            *kept = Some(connection);
            return Ok(value);
        }
        let mut connection = BufReader::new(TcpStream::connect(&self.settings.store).await?);
        let value = ask(&mut connection, key).await?;
        *kept = Some(connection);
        Ok(value)
    }

    fn remember(&self, endpoint: &str, status: StatusCode) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry(format!("{endpoint} {}", status.as_u16())).or_default() += 1;
    }

    async fn event(&self) -> String {
        let none = HeaderMap::new();
        let (api, store) = tokio::join!(self.call_api(&none), self.count_visit());
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        format!("data: {}\n\n", json!({"api": api.1, "store": store.1, "answers": answers}))
    }
}

async fn ask(connection: &mut BufReader<TcpStream>, key: &str) -> io::Result<i64> {
    let command = format!("*2\r\n$4\r\nINCR\r\n${}\r\n{key}\r\n", key.len());
    connection.get_mut().write_all(command.as_bytes()).await?;
    let mut line = String::new();
    connection.read_line(&mut line).await?;
    let unexpected = || io::Error::other(format!("unexpected answer {line:?}"));
    line.strip_prefix(':').and_then(|number| number.trim_end().parse().ok()).ok_or_else(unexpected)
}

fn failure(error: &dyn std::fmt::Display) -> (StatusCode, Value) {
    (StatusCode::BAD_GATEWAY, json!({"error": error.to_string()}))
}

/// Adds how long the call took, as `web` saw it.
fn with_time(mut value: Value, began: Instant) -> Value {
    if let Some(object) = value.as_object_mut() {
        let micros = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
        object.insert("call_ms".into(), json!(f64::from(micros / 10) / 100.0));
    }
    value
}

/// Server-sent events without end: a call of each service a second.
fn stream(web: Arc<Web>) -> Response<Body> {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        // Ends with the listener.
        while sender.send_data(web.event().await.into()).await.is_ok() {
            sleep(STREAM_PAUSE).await;
        }
    });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_each_value() {
        for place in ["{caller}", "{api}", "{store}"] {
            assert_eq!(PAGE.matches(place).count(), 1, "{place}");
        }
    }

    #[test]
    fn values_can_not_become_markup() {
        assert_eq!(escape(r#"<b title="a&b">"#), "&lt;b title=&quot;a&amp;b&quot;&gt;");
    }
}
