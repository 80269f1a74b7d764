//! The proxy's own HTTP ports: admin (15000, loopback), metrics (15020) and health (15021).
//!
//! They show what the floors below tell them through [`Sources`], and know nothing else of the proxy. No
//! key, token or header of a request is in any answer.

mod answer;
mod dashboard;
mod guard;
mod html;
mod index;
mod pages;
mod server;
mod tap;

use std::pin::Pin;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::telemetry::{Metrics, Tap};
use server::{LIMITS, Port};

/// Something to show as JSON, asked for anew each time. It must hold no secret.
pub type Json = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Answers the question in a URL's query; `Err` says what is wrong with it and how it is asked.
pub type Ask = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<serde_json::Value, String>> + Send>> + Send + Sync,
>;

/// Something to show as JSON, asked for by the query of a URL; `Err` says what is wrong with that.
pub type JsonByQuery = Arc<dyn Fn(&str) -> Result<serde_json::Value, String> + Send + Sync>;

/// Something to do. It must not wait: the answer is sent when it returns.
pub type Action = Arc<dyn Fn() + Send + Sync>;

/// Puts a log level in force, or says what is wrong with it and what is allowed.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The level of the process's own log.
#[derive(Clone)]
pub struct LogLevel {
    /// The level in force.
    pub show: Arc<dyn Fn() -> String + Send + Sync>,
    /// Changes it.
    pub set: SetLogLevel,
}

/// By which names and addresses the admin port is reached. A website can have a name of its own resolve to any address,
/// but can't have an address for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReachedBy {
    /// It listens on loopback: `localhost` and loopback addresses.
    Loopback,
    /// It was told to listen elsewhere too: by any address.
    AnyAddress,
}

/// What the ports show, and what they can change.
pub struct Sources {
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The proxy's version.
    pub version: &'static str,
    /// `/version`: the version, and since when it runs.
    pub about: Json,
    /// By which names and addresses the admin port is reached.
    pub reached_by: ReachedBy,
    /// Whether the proxy may be sent traffic; `Err` says why not.
    pub ready: Arc<dyn Fn() -> Result<(), String> + Send + Sync>,
    /// `/config`: the config in force.
    pub config: Json,
    /// `/certificates`: the workload's certificate and the roots, without keys.
    pub certificates: Json,
    /// `/upstreams`: upstreams with their endpoints.
    pub upstreams: Json,
    /// `/connections`: connections that are open.
    pub connections: Json,
    /// `/failures`: what failed last.
    pub failures: Json,
    /// `/why`: what becomes of a request, and why.
    pub why: Ask,
    /// `/tap`: live requests.
    pub tap: Tap,
    /// `/routes`: the route table.
    pub routes: Json,
    /// `/history`: the last ten minutes.
    pub history: JsonByQuery,
    /// `/traffic`: who calls whom.
    pub traffic: Json,
    /// `/log`: shows the log level; `POST` changes it.
    pub log_level: LogLevel,
    /// `POST /drain`: stops as SIGTERM does; `None` where it can't be asked for here.
    pub drain: Option<Action>,
    /// `POST /quit`: stops at once; `None` where it can't be asked for here.
    pub quit: Option<Action>,
}

/// Serves the admin pages, for ever. `listener` should be on loopback; whoever asks must name it by a
/// loopback name too.
pub async fn serve_admin(listener: TcpListener, sources: Arc<Sources>) {
    server::serve(listener, Port::Admin, sources, LIMITS).await;
}

/// Serves `/metrics`, for ever.
pub async fn serve_metrics(listener: TcpListener, sources: Arc<Sources>) {
    server::serve(listener, Port::Metrics, sources, LIMITS).await;
}

/// Serves `/readyz` (503 with the reason, if not ready) and `/livez`, for ever.
pub async fn serve_health(listener: TcpListener, sources: Arc<Sources>) {
    server::serve(listener, Port::Health, sources, LIMITS).await;
}

#[cfg(test)]
mod tests;
