//! What the admin ports show, and the gauges that are read off rather than counted.

mod connections;
mod failures;
mod readings;
mod upstreams;
mod why;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use outrigger_ca::workload::Status;
use outrigger_ca::{TrustBundle, unix_seconds};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::drain::Stop;
use super::in_force::ConfigInForce;
use crate::admin::{LogLevel, ReachedBy, Sources};
use crate::telemetry::{History, HistoryQuery, Metrics};
use crate::upstream::Upstream;
use crate::worker::Shared;
pub(super) use readings::readings;

/// How often gauges are read off.
const LOOK: Duration = Duration::from_secs(2);

/// Whether the proxy may be sent traffic.
#[derive(Clone)]
pub(super) struct Readiness {
    pub(super) shared: Arc<Shared>,
    pub(super) status: Option<watch::Receiver<Arc<Status>>>,
    pub(super) draining: Arc<AtomicBool>,
}

impl Readiness {
    /// Why not.
    fn check(&self) -> Result<(), String> {
        if self.draining.load(Relaxed) {
            return Err("draining".into());
        }
        let Some(status) = &self.status else { return Ok(()) };
        let status = status.borrow();
        match (&status.material, &status.last_error) {
            (Some(material), error) if material.certificate.not_after() <= SystemTime::now() => {
                let why = error.as_deref().unwrap_or("it was not renewed");
                Err(format!("the certificate has expired: {why}"))
            }
            (Some(_), _) if self.shared.tls.is_certified() => Ok(()),
            (_, Some(error)) => Err(format!("no certificate: {error}")),
            (_, None) => Err("waiting for a certificate".into()),
        }
    }
}

/// What does not change while the proxy runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) version: &'static str,
    pub(super) reached_by: ReachedBy,
    pub(super) started: SystemTime,
}

impl About {
    fn describe(&self) -> Value {
        json!({
            "version": self.version,
            "startedAt": unix_seconds(self.started),
            "runningForSeconds": self.started.elapsed().unwrap_or_default().as_secs(),
            "processId": std::process::id(),
            "build": if cfg!(debug_assertions) { "debug" } else { "release" },
            "target": format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
        })
    }
}

pub(super) fn sources(
    ready: &Readiness,
    config: &ConfigInForce,
    metrics: &Arc<Metrics>,
    history: &Arc<History>,
    stop: &mpsc::Sender<Stop>,
    about: About,
    log_level: LogLevel,
) -> Sources {
    let (shared, status) = (ready.shared.clone(), ready.status.clone());
    let [upstreams, connections, failures, routes, why] = std::array::from_fn(|_| shared.clone());
    let config = config.clone();
    let readiness = ready.clone();
    let stopper = |stop: mpsc::Sender<Stop>, how: Stop| -> Arc<dyn Fn() + Send + Sync> {
        // A full channel holds a stop already.
        Arc::new(move || _ = stop.try_send(how))
    };
    Sources {
        metrics: metrics.clone(),
        version: about.version,
        about: Arc::new(move || about.describe()),
        reached_by: about.reached_by,
        ready: Arc::new(move || readiness.check()),
        config: Arc::new(move || config.describe()),
        certificates: Arc::new(move || certificates(status.as_ref())),
        upstreams: Arc::new(move || upstreams::all(&upstreams)),
        connections: Arc::new(move || connections::all(&connections)),
        failures: Arc::new(move || failures::last(&failures.failures)),
        why: Arc::new(move |query| {
            let shared = why.clone();
            Box::pin(async move { why::answer(&shared, &query).await })
        }),
        tap: shared.tap.clone(),
        routes: Arc::new(move || json!(routes.effective.load().config.routes)),
        history: {
            let history = history.clone();
            Arc::new(move |query| Ok(history.describe(&HistoryQuery::parse(query)?)))
        },
        traffic: {
            let history = history.clone();
            Arc::new(move || history.traffic())
        },
        log_level,
        drain: Some(stopper(stop.clone(), Stop::Drain)),
        quit: Some(stopper(stop.clone(), Stop::Now)),
    }
}

/// The workload's ports; of one that was asked for at several addresses, that with the worst breaker comes last and is
/// the one that is shown.
fn workload_ports(shared: &Shared, now: Instant) -> Vec<Arc<Upstream>> {
    let mut ports = shared.effective.load().workload.upstreams();
    ports.sort_by_key(|upstream| upstream.breaker.state(now).as_metric());
    ports
}

fn certificates(status: Option<&watch::Receiver<Arc<Status>>>) -> Value {
    let Some(status) = status else { return json!({ "workload": null, "roots": [] }) };
    let status = status.borrow().clone();
    let material = status.material.as_ref();
    let workload = material.map(|material| {
        let certificate = &material.certificate;
        json!({
            "id": certificate.id().to_string(),
            "serial": certificate.serial(),
            "notBefore": unix_seconds(certificate.not_before()),
            "notAfter": unix_seconds(certificate.not_after()),
        })
    });
    let roots: Vec<Value> = material
        .map(|material| roots(&material.bundle))
        .into_iter()
        .flatten()
        .map(|(subject, not_after)| json!({ "subject": subject, "notAfter": not_after }))
        .collect();
    json!({
        "workload": workload,
        "roots": roots,
        "renewals": status.renewals,
        "failures": status.failures,
        "caReachable": status.ca_reachable,
        "nextRenewal": status.next_renewal.map(unix_seconds),
        "lastError": status.last_error,
    })
}

/// Subject and end (Unix time) of each root; the bundle was parsed before, so that none is left out.
fn roots(bundle: &TrustBundle) -> Vec<(String, i64)> {
    bundle
        .roots()
        .iter()
        .filter_map(|root| X509Certificate::from_der(root).ok())
        .map(|(_, root)| (root.subject().to_string(), root.validity().not_after.timestamp()))
        .collect()
}

/// Reads off the gauges of certificates, for as long as the proxy runs.
pub(super) async fn keep_gauges(shared: Arc<Shared>, status: Option<watch::Receiver<Arc<Status>>>) {
    let metrics = &shared.metrics;
    loop {
        if let Some(status) = &status {
            let status = status.borrow().clone();
            if let Some(material) = &status.material {
                metrics
                    .certificate_expiry_workload
                    .set(unix_seconds(material.certificate.not_after()) as i64);
                if let Some(first) = roots(&material.bundle).into_iter().map(|(_, end)| end).min() {
                    metrics.certificate_expiry_root.set(first);
                }
            }
            metrics.certificate_renewals.raise_to(status.renewals);
            metrics.certificate_failures.raise_to(status.failures);
            if let Some(reachable) = status.ca_reachable {
                metrics.ca_reachable.set(reachable.into());
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
