//! Keeps a workload's certificate and trust bundle fresh, from files or from the CA.
//!
//! What is published always fits together: the key belongs to the certificate, and the certificate
//! chains to the bundle beside it. While nothing better is to be had, the last good material stays.

mod ca;
mod files;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::{Certificate, TrustBundle};

/// Failures to get a first certificate that may be a matter of what starts when; the last of them is an error.
const STARTING: u64 = 3;

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Three PEM files, loaded again when they change.
    Files {
        certificate: PathBuf,
        key: PathBuf,
        trust_bundle: PathBuf,
    },
    Ca(CaOptions),
}

/// How to reach the CA and prove who we are.
#[derive(Clone, Debug)]
pub struct CaOptions {
    /// `host:port`, resolved by ordinary DNS; the host may be an IP address (IPv6 in brackets).
    pub address: String,
    /// Holds the bearer token; read anew for each request, since Kubernetes replaces it.
    pub token_file: PathBuf,
    /// The roots that the CA's own certificate must chain to. Without it the CA's `/bundle` is trusted on
    /// first contact, with a warning, and pinned in memory from then on.
    pub trust_bundle: Option<PathBuf>,
    /// How often `/bundle` is asked for new roots; where `trust_bundle` is a file, how often the CA is connected to, to
    /// know that it is there.
    pub bundle_poll: Duration,
    /// A packet mark (SO_MARK) for the connections, so that redirect rules let them pass. Needs
    /// CAP_NET_ADMIN in the network namespace.
    pub mark: Option<u32>,
}

impl CaOptions {
    /// Options with the defaults: no mounted bundle, a look at the CA every 5 minutes, no mark.
    pub fn new(address: impl Into<String>, token_file: impl Into<PathBuf>) -> Self {
        Self {
            address: address.into(),
            token_file: token_file.into(),
            trust_bundle: None,
            bundle_poll: Duration::from_secs(300),
            mark: None,
        }
    }
}

/// A certificate and the roots to verify peers against, which belong together.
#[derive(Clone, Debug)]
pub struct Material {
    pub certificate: Certificate,
    pub bundle: TrustBundle,
}

/// What there is, and how it goes.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The last good material; may have expired when the CA was away for too long.
    pub material: Option<Arc<Material>>,
    /// Why the last attempt failed; `None` once one succeeded.
    pub last_error: Option<String>,
    /// Failed attempts since the start.
    pub failures: u64,
    /// Certificates taken into use after the first.
    pub renewals: u64,
    /// Whether the CA answered the last time; `None` with files, and before the first attempt.
    pub ca_reachable: Option<bool>,
    /// When the next renewal is due; `None` with files, and before the first certificate.
    pub next_renewal: Option<SystemTime>,
}

/// Keeps certificate and bundle fresh until every receiver is gone.
///
/// Spawns on the current tokio runtime (panics outside of one). From the CA: renewed at half of the
/// remaining life, jittered by 10 %, and after a failure again in 1 s, doubling up to 60 s, sooner when
/// the certificate is short-lived. A first certificate is tried for without end.
pub fn keep(source: Source, trust_domain: &str) -> watch::Receiver<Arc<Status>> {
    let (sender, receiver) = watch::channel(Arc::new(Status::default()));
    let publisher = Publisher { sender, status: Status::default(), meaning: None };
    let trust_domain: Arc<str> = trust_domain.into();
    match source {
        Source::Files { certificate, key, trust_bundle } => {
            let files = files::Files { certificate, key, trust_bundle, trust_domain };
            tokio::spawn(files::run(files, publisher));
        }
        Source::Ca(options) => {
            tokio::spawn(ca::run(options, trust_domain, publisher));
        }
    }
    receiver
}

/// A certificate of a trust domain that the configuration does not name.
#[derive(Debug, thiserror::Error)]
#[error(
    "the certificate is for {found}, but the trust domain is configured as `{expected}`: one of them must change"
)]
struct ForeignTrustDomain {
    found: crate::SpiffeId,
    expected: Arc<str>,
}

fn check_trust_domain(certificate: &Certificate, expected: &Arc<str>) -> Result<(), ForeignTrustDomain> {
    if certificate.id().trust_domain() == &**expected {
        return Ok(());
    }
    Err(ForeignTrustDomain { found: certificate.id().clone(), expected: expected.clone() })
}

/// The one place that changes the status, so that watchers see each event whole.
struct Publisher {
    sender: watch::Sender<Arc<Status>>,
    status: Status,
    /// What the last failure meant.
    meaning: Option<Meaning>,
}

/// What it means that there is nothing fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// There was no certificate yet, and it may still be on its way.
    Starting,
    /// There was none yet, and it is no matter of what starts when.
    Missing,
    /// What there is goes on.
    Kept,
    /// What there is, is of no use any more.
    Expired,
}

impl Meaning {
    fn of(certificate_ends: Option<SystemTime>, now: SystemTime, failures: u64) -> Self {
        match certificate_ends {
            None if failures < STARTING => Self::Starting,
            None => Self::Missing,
            Some(ends) if ends <= now => Self::Expired,
            Some(_) => Self::Kept,
        }
    }
}

impl Publisher {
    fn material(&self) -> Option<&Arc<Material>> {
        self.status.material.as_ref()
    }

    fn publish(&mut self, material: Material, next_renewal: Option<SystemTime>) {
        let renewed = match self.material() {
            Some(old) => old.certificate.serial() != material.certificate.serial(),
            None => false,
        };
        if renewed {
            self.status.renewals += 1;
        }
        tracing::info!(
            id = %material.certificate.id(),
            serial = material.certificate.serial(),
            roots = material.bundle.roots().len(),
            "certificate and trust bundle taken into use"
        );
        self.status.material = Some(Arc::new(material));
        self.status.next_renewal = next_renewal;
        self.status.last_error = None;
        self.send();
    }

    fn succeeded(&mut self) {
        if self.status.last_error.take().is_some() {
            self.send();
        }
    }

    fn failed(&mut self, error: String) {
        self.status.failures += 1;
        let ends = self.material().map(|material| material.certificate.not_after());
        let meaning = Meaning::of(ends, SystemTime::now(), self.status.failures);
        // Each failure counts, but the same text over and over would drown the log.
        let is_new = self.status.last_error.as_deref() != Some(&error) || self.meaning != Some(meaning);
        match meaning {
            _ if !is_new => {}
            Meaning::Starting => tracing::warn!(error, "no certificate yet; trying again"),
            Meaning::Missing => tracing::error!(
                error,
                "there is no certificate, and without one no peer can be called or let in; trying on"
            ),
            Meaning::Kept => {
                tracing::warn!(error, "no fresh certificate or roots; the last good ones stay in use");
            }
            Meaning::Expired => {
                tracing::error!(error, "the certificate has expired and there is no fresh one; trying on");
            }
        }
        self.meaning = Some(meaning);
        self.status.last_error = Some(error);
        self.send();
    }

    /// Whether a first certificate may still be on its way.
    fn may_be_starting(&self) -> bool {
        self.material().is_none() && self.status.failures < STARTING
    }

    fn set_reachable(&mut self, reachable: bool) {
        if self.status.ca_reachable != Some(reachable) {
            self.status.ca_reachable = Some(reachable);
            self.send();
        }
    }

    fn send(&self) {
        self.sender.send_replace(Arc::new(self.status.clone()));
    }

    async fn abandoned(&self) {
        self.sender.closed().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_that_there_is_and_that_holds_is_said_to_stay_in_use() {
        let now = SystemTime::now();
        let (before, after) = (now - Duration::from_secs(1), now + Duration::from_secs(1));
        for (ends, failures, meaning) in [
            (None, 1, Meaning::Starting),
            (None, STARTING, Meaning::Missing),
            (None, STARTING + 1, Meaning::Missing),
            (Some(after), 1, Meaning::Kept),
            (Some(after), STARTING, Meaning::Kept),
            (Some(now), 1, Meaning::Expired),
            (Some(before), STARTING, Meaning::Expired),
        ] {
            assert_eq!(Meaning::of(ends, now, failures), meaning, "{failures} failures, ends {ends:?}");
        }
    }
}
