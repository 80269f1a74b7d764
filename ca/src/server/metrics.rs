//! What the CA counts, and the plain-text listener that shows it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder as _, GaugeVec, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Shared;
use super::service::plain;
use crate::since_1970;

pub(super) struct Metrics {
    registry: Registry,
    issued: IntCounter,
    refused: IntCounterVec,
    bundles: IntCounter,
    root_expiry: GaugeVec,
}

impl Metrics {
    pub fn new() -> Result<Self, prometheus::Error> {
        let metrics = Self {
            registry: Registry::new(),
            issued: IntCounter::new(
                "outrigger_ca_certificates_issued_total",
                "Certificates given to workloads.",
            )?,
            refused: IntCounterVec::new(
                Opts::new(
                    "outrigger_ca_requests_refused_total",
                    "Requests and handshakes that got no certificate, by reason.",
                ),
                &["reason"],
            )?,
            bundles: IntCounter::new("outrigger_ca_bundles_served_total", "Answers to GET /bundle.")?,
            root_expiry: GaugeVec::new(
                Opts::new(
                    "outrigger_ca_root_expiry_timestamp_seconds",
                    "When each root in the bundle ends, in seconds since 1970.",
                ),
                &["fingerprint"],
            )?,
        };
        let registry = &metrics.registry;
        registry.register(Box::new(metrics.issued.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.bundles.clone()))?;
        registry.register(Box::new(metrics.root_expiry.clone()))?;
        Ok(metrics)
    }

    pub fn issued(&self) {
        self.issued.inc();
    }

    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    pub fn bundle_served(&self) {
        self.bundles.inc();
    }

    pub fn roots(&self, roots: &[(String, SystemTime)]) {
        self.root_expiry.reset();
        for (fingerprint, end) in roots {
            self.root_expiry.with_label_values(&[&fingerprint[..16]]).set(since_1970(*end).as_secs_f64());
        }
    }

    fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// Serves `/metrics` until stopped.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                if let Some(times) = super::REFUSALS.count(std::time::Instant::now()) {
                    tracing::warn!(times, %error, "a connection for metrics could not be accepted");
                }
                tokio::time::sleep(super::ACCEPT_PAUSE).await;
                continue;
            }
        };
        let shared = shared.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let response = match (request.uri().path(), shared.metrics.render()) {
                ("/metrics", Ok(text)) => plain(StatusCode::OK, "text/plain; version=0.0.4", text),
                ("/metrics", Err(error)) => {
                    plain(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", error.to_string())
                }
                _ => plain(StatusCode::NOT_FOUND, "text/plain", "GET /metrics\n".into()),
            };
            std::future::ready(Ok::<_, Infallible>(response))
        });
        tokio::spawn(async move {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection for metrics ended badly");
            }
        });
    }
}
