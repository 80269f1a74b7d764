//! A small HTTP/1 server: one request a connection, everything bounded.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::{Sources, pages};

/// Connections at once on one listener. These ports serve a scraper, a prober and a person.
const MOST_CONNECTIONS: usize = 64;
/// Times that a scraper in trouble keeps, and a slow loris does not.
pub(super) const LIMITS: Limits =
    Limits { head: Duration::from_secs(5), connection: Duration::from_secs(30) };
/// A request's head fits; hyper allows no less than 8 KiB.
const HEAD_BYTES: usize = 16 << 10;
/// After a failed accept, as without a free file descriptor: the next would fail as well.
const PAUSE: Duration = Duration::from_millis(100);

/// What a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Admin,
    Metrics,
    Health,
}

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// To send its request's head.
    pub head: Duration,
    /// For everything, reading the answer included.
    pub connection: Duration,
}

pub(super) async fn serve(listener: TcpListener, port: Port, sources: Arc<Sources>, limits: Limits) {
    let mut connections = VecDeque::with_capacity(MOST_CONNECTIONS);
    let mut failing = false;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client left before it was served.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => {
                // Once an outage, not ten times a second.
                if !failing {
                    tracing::warn!("the {port:?} port accepts no connection: {error}; it goes on trying");
                }
                failing = true;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        failing = false;
        make_room(&mut connections);
        let is_stream = Arc::new(AtomicBool::new(false));
        let serving = serve_connection(stream, port, Arc::clone(&sources), limits, is_stream.clone());
        connections.push_back(Connection { task: tokio::spawn(serving).abort_handle(), is_stream });
    }
}

struct Connection {
    task: AbortHandle,
    /// Its answer goes on until its reader leaves. There are few: who gives them sees to that.
    is_stream: Arc<AtomicBool>,
}

/// When all places are taken the oldest connection goes: idle connections can't lock a prober out, whose
/// request takes a millisecond.
fn make_room(connections: &mut VecDeque<Connection>) {
    if connections.len() < MOST_CONNECTIONS {
        return;
    }
    connections.retain(|connection| !connection.task.is_finished());
    if connections.len() >= MOST_CONNECTIONS
        && let Some(at) = connections.iter().position(|connection| !connection.is_stream.load(Relaxed))
        && let Some(oldest) = connections.remove(at)
    {
        oldest.task.abort();
    }
}

async fn serve_connection(
    stream: TcpStream,
    port: Port,
    sources: Arc<Sources>,
    limits: Limits,
    is_stream: Arc<AtomicBool>,
) {
    let answers = is_stream.clone();
    let service = service_fn(move |request| {
        let (sources, is_stream) = (Arc::clone(&sources), answers.clone());
        async move {
            let answer = match port {
                Port::Admin => pages::admin(request, &sources).await,
                Port::Metrics => pages::metrics(&request, &sources),
                Port::Health => pages::health(&request, &sources),
            };
            is_stream.store(answer.body().is_stream(), Relaxed);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = match tokio::time::timeout(limits.connection, connection.as_mut()).await {
        Err(_) if is_stream.load(Relaxed) => Ok(connection.await),
        ended => ended,
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("a client of the {port:?} port broke off: {error}"),
        Err(_) => tracing::debug!("a client of the {port:?} port took over {:?}", limits.connection),
    }
}
