//! What the CA signs with, and the roots that it hands out.
//!
//! `state` is the schedule of generations (root and issuer) as recorded; `storage` keeps it in a directory
//! that several CAs may share; `mounted` takes an issuer that the user gives; `issue` makes certificates.
//! Nothing here talks to the network.

mod issue;
mod mounted;
mod signer;
mod state;
mod storage;
#[cfg(test)]
pub(crate) mod testing;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

pub(crate) use issue::public_key_of;
pub use mounted::MountedError;
pub use mounted::MountedIssuer;
pub(crate) use signer::Signer;
pub use state::{Phase, RotateError, StateError};
pub use storage::StorageError;

use crate::TrustBundle;
use mounted::MountedVersion;
use storage::{Directory, Version};

/// Where the CA's keys are.
#[derive(Clone, Debug)]
pub enum Storage {
    /// A directory of the CA's own, 0700; root and issuing key are made on first start.
    Directory(PathBuf),
    /// An issuing certificate and key that the user gives; rotated by replacing the files.
    Mounted(MountedIssuer),
}

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// Of workload certificates at most; default 24 h.
    pub certificate: Duration,
    /// Of root and issuing certificates that are made; default 10 years.
    pub root: Duration,
    /// How far notBefore lies in the past, for peers whose clock is behind; default 2 min.
    pub backdate: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            certificate: Duration::from_secs(24 * 3600),
            root: Duration::from_secs(10 * 365 * 24 * 3600),
            backdate: Duration::from_secs(120),
        }
    }
}

/// Why there is nothing to sign with.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Mounted(#[from] MountedError),
}

/// A root in the bundle, as `outrigger ca show` tells of it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RootReport {
    /// SHA-256 of the certificate, lower-case hexadecimal.
    pub fingerprint: String,
    pub phase: Phase,
    /// When signing with it starts or started. RFC 3339, as all times here.
    pub signs_from: String,
    /// When it leaves the bundle; absent while no younger root is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted_until: Option<String>,
    pub not_after: String,
}

/// What holds at one moment: who signs, and which roots are handed out.
pub(crate) struct Snapshot {
    pub signer: Arc<Signer>,
    pub bundle: TrustBundle,
    /// Fingerprint and end of each root, for metrics.
    pub roots: Vec<(String, SystemTime)>,
    /// When the schedule changes something next, without anybody writing.
    next_change: Option<SystemTime>,
}

/// The keys, looked at anew whenever they may have changed.
pub(crate) struct Authority {
    keys: Keys,
    trust_domain: String,
    backdate: Duration,
    current: Mutex<Current>,
}

enum Keys {
    Directory(Directory),
    Mounted(MountedIssuer),
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    Directory(Version),
    Mounted(MountedVersion),
}

struct Current {
    seen: Option<Seen>,
    snapshot: Arc<Snapshot>,
}

impl Authority {
    /// Opens the keys, making them where there are none yet.
    pub fn open(
        storage: &Storage,
        trust_domain: &str,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let keys = match storage {
            Storage::Directory(path) => {
                let directory = Directory::prepare(path)?;
                directory.initialize(trust_domain, lifetimes, now)?;
                Keys::Directory(directory)
            }
            Storage::Mounted(files) => Keys::Mounted(files.clone()),
        };
        let seen = keys.version();
        let snapshot = keys.load(trust_domain, lifetimes.backdate, now)?;
        Ok(Self {
            keys,
            trust_domain: trust_domain.into(),
            backdate: lifetimes.backdate,
            current: Mutex::new(Current { seen, snapshot: Arc::new(snapshot) }),
        })
    }

    /// What holds now. Costs a look at the files' metadata; they are read when that has changed, so that
    /// another CA's rotation is never missed by one that signs. What can't be read is logged, and what held
    /// before still holds.
    pub fn snapshot(&self, now: SystemTime) -> Arc<Snapshot> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = self.keys.version();
        let due = current.snapshot.next_change.is_some_and(|due| due <= now);
        if seen == current.seen && !due {
            return current.snapshot.clone();
        }
        match self.keys.load(&self.trust_domain, self.backdate, now) {
            Ok(snapshot) => {
                if snapshot.bundle != current.snapshot.bundle {
                    tracing::info!(roots = snapshot.bundle.roots().len(), "the trust bundle has changed");
                }
                if !snapshot.signer.same_key(&current.snapshot.signer) {
                    tracing::info!("signing with another issuing key from now on");
                }
                current.snapshot = Arc::new(snapshot);
            }
            Err(error) => {
                tracing::error!(%error, "the CA's keys changed and can't be used; going on with those from before");
            }
        }
        current.seen = seen;
        current.snapshot.clone()
    }

    /// Removes what the schedule has dropped, keys included. Several CAs may do so; one finds work.
    pub fn prune(&self, now: SystemTime) -> Result<(), AuthorityError> {
        match &self.keys {
            Keys::Directory(directory) => Ok(directory.prune(now)?),
            Keys::Mounted(_) => Ok(()),
        }
    }
}

impl Keys {
    fn version(&self) -> Option<Seen> {
        match self {
            Self::Directory(directory) => directory.version().map(Seen::Directory),
            Self::Mounted(files) => files.version().map(Seen::Mounted),
        }
    }

    fn load(
        &self,
        trust_domain: &str,
        backdate: Duration,
        now: SystemTime,
    ) -> Result<Snapshot, AuthorityError> {
        match self {
            Self::Directory(directory) => Ok(directory.read()?.snapshot(backdate, now)?),
            Self::Mounted(files) => Ok(files.load(trust_domain, backdate, now)?),
        }
    }
}

/// Starts a rotation of the root in a directory: the new one is handed out at once, signs after `spread`,
/// and the old one is dropped when the last certificate that it vouches for has ended. Running CAs follow
/// by themselves. Returns the roots as they are planned now.
pub fn rotate(
    directory: &std::path::Path,
    spread: Duration,
    root_lifetime: Duration,
    now: SystemTime,
) -> Result<Vec<RootReport>, AuthorityError> {
    let directory = Directory::existing(directory)?;
    Ok(directory.rotate(spread, root_lifetime, now)?.report(now)?)
}

/// The roots in a directory, oldest first.
pub fn show(directory: &std::path::Path, now: SystemTime) -> Result<Vec<RootReport>, AuthorityError> {
    Ok(Directory::existing(directory)?.read()?.report(now)?)
}

/// The roots in a directory as PEM, for mounting as a trust bundle.
pub fn bundle(directory: &std::path::Path, now: SystemTime) -> Result<TrustBundle, AuthorityError> {
    Ok(Directory::existing(directory)?.read()?.bundle(now)?)
}
