//! An issuing certificate that the user gives, for a mesh below an existing authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::Snapshot;
use super::signer::{SignError, Signer};
use super::state::fingerprint;
use super::storage::{Version, version_of};
use crate::verify::system_time;
use crate::{BundleError, CertificateError, TrustBundle};

/// The files, all PEM; read again when they change.
#[derive(Clone, Debug)]
pub struct MountedIssuer {
    /// The issuing certificate, then the intermediates between it and the root.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The root, or several.
    pub root: PathBuf,
}

/// Why the given issuer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MountedError {
    #[error("`{path}` can't be read: {source}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the root in `{path}` can't be used: {source}")]
    Root { path: PathBuf, source: BundleError },
    #[error("the issuing certificate in `{path}` can't be used: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("the issuing key in `{path}` can't be used: {source}")]
    Key { path: PathBuf, source: rcgen::Error },
    #[error("nothing can be signed with the issuer in `{path}`: {source}")]
    Sign { path: PathBuf, source: SignError },
    #[error(
        "what the issuer in `{path}` signs is not valid under the given root: certificate, key and root must belong together ({source})"
    )]
    Chain {
        path: PathBuf,
        source: CertificateError,
    },
}

pub(super) type MountedVersion = [Version; 3];

impl MountedIssuer {
    pub(super) fn version(&self) -> Option<MountedVersion> {
        Some([
            version_of(&self.certificate)?,
            version_of(&self.key)?,
            version_of(&self.root)?,
        ])
    }

    pub(super) fn load(
        &self,
        trust_domain: &str,
        backdate: Duration,
        now: SystemTime,
    ) -> Result<Snapshot, MountedError> {
        let bundle =
            TrustBundle::from_pem(&read(&self.root)?).map_err(|source| MountedError::Root {
                path: self.root.clone(),
                source,
            })?;
        let unusable = |reason: String| MountedError::Certificate {
            path: self.certificate.clone(),
            reason,
        };
        let mut intermediates = CertificateDer::pem_slice_iter(&read(&self.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        intermediates.retain(|certificate| !bundle.roots().contains(certificate));
        let bad_key = |source| MountedError::Key {
            path: self.key.clone(),
            source,
        };
        let key = String::from_utf8_lossy(&read(&self.key)?).into_owned();
        let key = KeyPair::from_pem(&key).map_err(bad_key)?;
        // With no intermediate left the root itself was given as the issuer.
        let issuing = match intermediates.first() {
            Some(first) => first.clone(),
            None => bundle.roots()[0].clone(),
        };
        let issuer = Issuer::from_ca_cert_der(&issuing, key).map_err(bad_key)?;
        let root = self.root_of(&intermediates, &bundle);
        let mut not_after = expiry(&root).map_err(unusable)?;
        for certificate in &intermediates {
            not_after = not_after.min(expiry(certificate).map_err(unusable)?);
        }
        let signer = Signer {
            issuer,
            own_intermediates: intermediates.clone(),
            intermediates,
            root,
            not_after,
            backdate,
            trust_domain: trust_domain.into(),
        };
        // A trial signature shows whether certificate, key and root belong together.
        signer
            .own_certificate(Duration::from_secs(60), now)
            .map_err(|source| MountedError::Sign {
                path: self.certificate.clone(),
                source,
            })?
            .verify(&bundle, now)
            .map_err(|source| MountedError::Chain {
                path: self.certificate.clone(),
                source,
            })?;
        let roots = bundle
            .roots()
            .iter()
            .map(|root| Ok((fingerprint(root), expiry(root).map_err(unusable)?)))
            .collect::<Result<_, MountedError>>()?;
        Ok(Snapshot {
            signer: Arc::new(signer),
            bundle,
            roots,
            next_change: None,
        })
    }

    /// The root that the last intermediate names as its issuer, or the first one.
    fn root_of(
        &self,
        intermediates: &[CertificateDer<'static>],
        bundle: &TrustBundle,
    ) -> CertificateDer<'static> {
        let wanted = intermediates
            .last()
            .and_then(|last| x509_parser::parse_x509_certificate(last).ok())
            .map(|(_, parsed)| parsed.issuer().as_raw().to_vec());
        let named = bundle.roots().iter().find(|root| {
            x509_parser::parse_x509_certificate(root)
                .is_ok_and(|(_, parsed)| Some(parsed.subject().as_raw()) == wanted.as_deref())
        });
        named.unwrap_or(&bundle.roots()[0]).clone()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, MountedError> {
    std::fs::read(path).map_err(|source| MountedError::Read {
        path: path.into(),
        source,
    })
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(system_time(parsed.validity().not_after.timestamp()))
}
