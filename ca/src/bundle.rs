//! The trust bundle: the roots that a chain may end at.

use std::sync::Arc;

use base64::Engine as _;
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// One or several root certificates. Several while roots rotate. Cloning costs two reference counts.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    store: Arc<RootCertStore>,
}

/// Why a text is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("a trust bundle could not be read as PEM: {0}")]
    Pem(rustls_pki_types::pem::Error),
    #[error("a trust bundle holds no certificate: it must be PEM with at least one BEGIN CERTIFICATE")]
    Empty,
    #[error("certificate {number} of a trust bundle can't be a root: {reason}")]
    Root { number: usize, reason: String },
}

impl TrustBundle {
    /// Reads one or several certificates in PEM; what is not a certificate is passed over. All or
    /// nothing: one certificate that can't be a root refuses the whole bundle.
    pub fn from_pem(pem: &[u8]) -> Result<Self, BundleError> {
        let roots =
            CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>().map_err(BundleError::Pem)?;
        Self::from_roots(roots)
    }

    /// Makes a bundle of certificates in DER; duplicates are dropped.
    pub fn from_roots(certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut roots: Vec<CertificateDer<'static>> = Vec::with_capacity(certificates.len());
        let mut store = RootCertStore::empty();
        for (index, root) in certificates.into_iter().enumerate() {
            if roots.contains(&root) {
                continue;
            }
            let refused = |reason: String| BundleError::Root { number: index + 1, reason };
            require_authority(&root).map_err(refused)?;
            store.add(root.clone()).map_err(|error| refused(error.to_string()))?;
            roots.push(root);
        }
        if roots.is_empty() {
            return Err(BundleError::Empty);
        }
        Ok(Self { roots: roots.into(), store: Arc::new(store) })
    }

    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| to_pem(root)).collect()
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub fn root_store(&self) -> Arc<RootCertStore> {
        self.store.clone()
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots
    }
}

impl Eq for TrustBundle {}

impl std::fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

/// A workload's certificate mounted as the bundle by mistake would otherwise become an anchor: the
/// verifier doesn't look at the CA flag of an anchor.
fn require_authority(root: &CertificateDer<'_>) -> Result<(), String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(root).map_err(|error| error.to_string())?;
    if parsed.is_ca() {
        Ok(())
    } else {
        Err(format!(
            "`{}` is not a certificate authority (CA:TRUE is missing); give the root, not a workload's certificate",
            parsed.subject()
        ))
    }
}

/// One certificate as PEM, 64 characters a line (RFC 7468), with a newline at the end.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 60);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = tail;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::testing;

    #[test]
    fn a_bundle_survives_a_round_trip_and_drops_duplicates() {
        let first = testing::root("first");
        let second = testing::root("second");
        let pem = format!("# comment\n{first}{second}{first}");
        let bundle = TrustBundle::from_pem(pem.as_bytes()).unwrap();
        assert_eq!(bundle.roots().len(), 2);
        assert_eq!(bundle.root_store().len(), 2);
        assert_eq!(TrustBundle::from_pem(bundle.to_pem().as_bytes()).unwrap(), bundle);
    }

    #[test]
    fn what_is_no_root_is_refused() {
        for pem in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(TrustBundle::from_pem(pem.as_bytes()).is_err(), "{pem}");
        }
        let (leaf, _) = testing::leaf_of_nobody();
        let error = TrustBundle::from_pem(leaf.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("CA:TRUE is missing"), "{error}");
    }
}
