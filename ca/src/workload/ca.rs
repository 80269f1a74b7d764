//! Certificate and trust bundle from the CA.

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::{CaOptions, ForeignTrustDomain, Material, Publisher, check_trust_domain};
use crate::client::{self, ClientError};
use crate::{BundleError, CA_ACCOUNT, Certificate, CertificateError, SpiffeId, TrustBundle, file_watch};

const SHORTEST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// An interval of zero would keep the CA busy and nobody served.
const SHORTEST_POLL: Duration = Duration::from_millis(100);
/// Timers stand still while a machine sleeps; certificates age on. So due times are wall-clock times,
/// looked at this often.
const LONGEST_NAP: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
enum IssueError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the trust bundle `{path}` can't be read: {source}")]
    ReadBundle { path: PathBuf, source: std::io::Error },
    #[error("`{path}`: {source}")]
    BundleFile { path: PathBuf, source: BundleError },
    #[error("the CA's answer can't be used: {0}")]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    TrustDomain(#[from] ForeignTrustDomain),
}

impl IssueError {
    /// Whether the CA was there to answer.
    fn reached(&self) -> bool {
        match self {
            Self::Client(error) => error.reached(),
            Self::ReadBundle { .. } | Self::BundleFile { .. } => false,
            Self::Certificate(_) | Self::TrustDomain(_) => true,
        }
    }
}

struct Keeper {
    options: CaOptions,
    trust_domain: Arc<str>,
    ca: SpiffeId,
    /// The roots learned from `/bundle`; whoever answers next must chain to them.
    pinned: Option<TrustBundle>,
    publisher: Publisher,
    failures_in_a_row: u32,
}

pub(super) async fn run(options: CaOptions, trust_domain: Arc<str>, mut publisher: Publisher) {
    let ca = match SpiffeId::new(&trust_domain, CA_ACCOUNT.0, CA_ACCOUNT.1) {
        Ok(ca) => ca,
        Err(error) => return publisher.failed(error.to_string()),
    };
    let mut bundle_changes = match &options.trust_bundle {
        None => None,
        Some(path) => match file_watch::watch([path.clone()]) {
            Ok(changes) => Some(changes),
            Err(error) => return publisher.failed(error.to_string()),
        },
    };
    let mut keeper = Keeper { options, trust_domain, ca, pinned: None, publisher, failures_in_a_row: 0 };
    let mut due = keeper.renew().await;
    let mut polled = Instant::now();
    loop {
        tokio::select! {
            () = keeper.publisher.abandoned() => return,
            () = wait_until(due) => {
                due = keeper.renew().await;
                polled = Instant::now();
            }
            () = changed(&mut bundle_changes) => {
                if keeper.follow_bundle().await.is_err() {
                    due = keeper.renew().await;
                }
            }
            () = poll(&keeper, polled) => {
                if keeper.look_around().await.is_err() {
                    due = keeper.renew().await;
                }
                polled = Instant::now();
            }
        }
    }
}

async fn wait_until(due: SystemTime) {
    while let Ok(left) = due.duration_since(SystemTime::now()) {
        sleep(left.min(LONGEST_NAP)).await;
    }
}

async fn changed(changes: &mut Option<mpsc::Receiver<()>>) {
    let news = match changes {
        Some(changes) => changes.recv().await,
        None => None,
    };
    if news.is_none() {
        pending().await
    }
}

/// Waits for the next look at the CA. Without a certificate, `renew` goes there anyway.
async fn poll(keeper: &Keeper, polled: Instant) {
    if keeper.publisher.material().is_none() {
        pending().await
    }
    let interval = keeper.options.bundle_poll.max(SHORTEST_POLL);
    tokio::time::sleep_until(polled + interval).await;
}

/// The certificate in use does not chain to the new bundle, so a new one is needed first.
struct NeedsCertificate;

impl Keeper {
    /// Gets a certificate; returns when to do so again.
    async fn renew(&mut self) -> SystemTime {
        match self.issue().await {
            Ok(material) => {
                self.failures_in_a_row = 0;
                let now = SystemTime::now();
                let left = remaining(&material.certificate, now);
                let due = now + left.div_f64(2.0).mul_f64(rand::rng().random_range(0.9..1.1));
                self.publisher.set_reachable(true);
                self.publisher.publish(material, Some(due));
                due
            }
            Err(error) => {
                self.publisher.set_reachable(error.reached());
                self.publisher.failed(error.to_string());
                let now = SystemTime::now();
                let left = self.publisher.material().map(|material| remaining(&material.certificate, now));
                let delay = retry_delay(self.failures_in_a_row, left);
                self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
                now + delay.mul_f64(rand::rng().random_range(0.5..1.0))
            }
        }
    }

    async fn issue(&mut self) -> Result<Material, IssueError> {
        // The bundle first: what is issued must chain to roots that peers are given beside it.
        let bundle = self.bundle().await?;
        let (chain, key) = client::issue(&self.options, &bundle, &self.ca).await?;
        let certificate = Certificate::new(chain, key)?;
        check_trust_domain(&certificate, &self.trust_domain)?;
        certificate.verify(&bundle, SystemTime::now())?;
        Ok(Material { certificate, bundle })
    }

    async fn bundle(&mut self) -> Result<TrustBundle, IssueError> {
        match &self.options.trust_bundle {
            Some(path) => read_bundle(path),
            None => {
                let bundle = client::fetch_bundle(&self.options, self.pinned.as_ref(), &self.ca).await?;
                self.pinned = Some(bundle.clone());
                Ok(bundle)
            }
        }
    }

    /// Sees whether the CA is there, long before the certificate is due, and follows the bundle.
    async fn look_around(&mut self) -> Result<(), NeedsCertificate> {
        if self.options.trust_bundle.is_some() {
            if let Err(error) = self.look_for_ca().await {
                self.publisher.set_reachable(error.reached());
                self.publisher.failed(error.to_string());
                return Ok(());
            }
            self.publisher.set_reachable(true);
        }
        self.follow_bundle().await
    }

    async fn look_for_ca(&mut self) -> Result<(), IssueError> {
        let bundle = self.bundle().await?;
        Ok(client::look_for(&self.options, &bundle, &self.ca).await?)
    }

    /// Takes changed roots into use beside the certificate, if it chains to them.
    async fn follow_bundle(&mut self) -> Result<(), NeedsCertificate> {
        let bundle = match self.bundle().await {
            Ok(bundle) => bundle,
            Err(error) => {
                self.publisher.set_reachable(error.reached());
                self.publisher.failed(error.to_string());
                return Ok(());
            }
        };
        if self.options.trust_bundle.is_none() {
            self.publisher.set_reachable(true);
        }
        let Some(material) = self.publisher.material() else {
            return Err(NeedsCertificate);
        };
        if material.bundle == bundle {
            // Only a failed renewal keeps its error until a renewal succeeds.
            if self.failures_in_a_row == 0 {
                self.publisher.succeeded();
            }
            return Ok(());
        }
        let certificate = material.certificate.clone();
        let now = SystemTime::now();
        // An expired certificate is no reason to hold the roots back.
        if now < certificate.not_after() && certificate.verify(&bundle, now).is_err() {
            return Err(NeedsCertificate);
        }
        let due = self.publisher.status.next_renewal;
        self.publisher.publish(Material { certificate, bundle }, due);
        Ok(())
    }
}

fn read_bundle(path: &Path) -> Result<TrustBundle, IssueError> {
    let pem = std::fs::read(path).map_err(|source| IssueError::ReadBundle { path: path.into(), source })?;
    TrustBundle::from_pem(&pem).map_err(|source| IssueError::BundleFile { path: path.into(), source })
}

fn remaining(certificate: &Certificate, now: SystemTime) -> Duration {
    certificate.not_after().duration_since(now).unwrap_or_default()
}

/// 1 s, doubling up to 60 s, but with several attempts left before a short-lived certificate ends.
fn retry_delay(failures_in_a_row: u32, left: Option<Duration>) -> Duration {
    let doubled = SHORTEST_RETRY.saturating_mul(1 << failures_in_a_row.min(6));
    let patience = match left {
        Some(left) if !left.is_zero() => left / 8,
        _ => LONGEST_RETRY,
    };
    doubled.min(LONGEST_RETRY).min(patience).max(SHORTEST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_double_up_to_a_minute_and_hurry_before_expiry() {
        let seconds = Duration::from_secs;
        let table = [
            (0, None, 1),
            (1, None, 2),
            (5, None, 32),
            (6, None, 60),
            (40, None, 60),
            (6, Some(seconds(12 * 3600)), 60),
            (6, Some(seconds(30)), 3),
            (6, Some(seconds(2)), 1),
            (6, Some(seconds(0)), 60),
        ];
        for (failures, left, expected) in table {
            let delay = retry_delay(failures, left).as_secs();
            assert_eq!(delay, expected, "{failures} failures, {left:?} left");
        }
    }
}
