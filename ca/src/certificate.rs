//! A workload's certificate with its key, ready for TLS.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::tls_fault::words;
use crate::unix_time::system_time;
use crate::verify::{VerifyError, provider, spiffe_id};
use crate::{SpiffeId, TrustBundle};

/// A certificate chain, leaf first, and the key that belongs to it. The key can't be read back, and
/// no output shows it. Cloning is cheap.
#[derive(Clone)]
pub struct Certificate {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: Arc<str>,
    key: Arc<CertifiedKey>,
}

/// Why a chain and a key make no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate could not be read as PEM: {0}")]
    CertificatePem(rustls_pki_types::pem::Error),
    #[error(
        "the key could not be read as PEM: {0}; PKCS#8, SEC1 and PKCS#1 keys without a password are accepted"
    )]
    KeyPem(rustls_pki_types::pem::Error),
    #[error("no certificate found: give PEM with at least one BEGIN CERTIFICATE, the leaf first")]
    Empty,
    #[error("the certificate can't be read: {0}")]
    Unreadable(String),
    #[error("the certificate can't be used: {0}")]
    Identity(#[from] VerifyError),
    #[error("the key can't be used: {}", words(.0))]
    Key(rustls::Error),
    #[error("the key does not belong to the certificate of {0}: give the pair that was made together")]
    KeyMismatch(SpiffeId),
    #[error("peers would refuse the certificate of {id}: {}", words(reason))]
    Untrusted { id: SpiffeId, reason: rustls::Error },
}

impl Certificate {
    /// Reads a chain (leaf first, then intermediates; self-signed roots after the leaf are dropped,
    /// since peers have them) and its key, and checks that they belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(CertificateError::CertificatePem)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(CertificateError::KeyPem)?;
        Self::new(chain, key)
    }

    pub(crate) fn new(
        mut chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Empty)?.clone();
        let (_, parsed) = x509_parser::parse_x509_certificate(&leaf)
            .map_err(|error| CertificateError::Unreadable(error.to_string()))?;
        let id = spiffe_id(&parsed)?;
        let mut position = 0;
        chain.retain(|certificate| {
            position += 1;
            position == 1 || !self_issued(certificate)
        });
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => CertificateError::KeyMismatch(id.clone()),
            other => CertificateError::Key(other),
        })?;
        Ok(Self {
            not_before: system_time(parsed.validity().not_before.timestamp()),
            not_after: system_time(parsed.validity().not_after.timestamp()),
            serial: hexadecimal(parsed.raw_serial()).into(),
            key: Arc::new(key),
            id,
        })
    }

    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The serial number, lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The leaf, then the intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// The chain and key as rustls resolvers want them.
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        self.key.clone()
    }

    /// Checks that peers with this bundle take the certificate at `now`, as a client's and a server's.
    pub fn verify(&self, bundle: &TrustBundle, now: SystemTime) -> Result<(), CertificateError> {
        crate::verify::verify_chain(self.chain(), bundle, now)
            .map_err(|reason| CertificateError::Untrusted { id: self.id.clone(), reason })
    }
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

fn self_issued(certificate: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, parsed)| parsed.subject() == parsed.issuer())
}

pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::testing;

    #[test]
    fn certificate_and_key_must_belong_together() {
        let (leaf, key) = testing::leaf_of_nobody();
        let (_, other_key) = testing::leaf_of_nobody();
        assert!(Certificate::from_pem(leaf.as_bytes(), key.as_bytes()).is_ok());
        let error = Certificate::from_pem(leaf.as_bytes(), other_key.as_bytes()).unwrap_err();
        assert!(matches!(error, CertificateError::KeyMismatch(_)), "{error}");
    }

    #[test]
    fn roots_after_the_leaf_are_not_presented() {
        let (leaf, key) = testing::leaf_of_nobody();
        let pem = leaf + &testing::root("root");
        let certificate = Certificate::from_pem(pem.as_bytes(), key.as_bytes()).unwrap();
        assert_eq!(certificate.chain().len(), 1);
    }

    #[test]
    fn no_output_shows_the_key() {
        let (leaf, key) = testing::leaf_of_nobody();
        let certificate = Certificate::from_pem(leaf.as_bytes(), key.as_bytes()).unwrap();
        let shown = format!("{certificate:?}");
        assert!(shown.contains(certificate.serial()), "{shown}");
        assert!(!shown.contains("PrivateKey") && !shown.contains("CertifiedKey"), "{shown}");
    }

    #[test]
    fn what_is_no_pem_says_so() {
        let (leaf, key) = testing::leaf_of_nobody();
        for (certificate, key, text) in [
            ("", key.as_str(), "no certificate found"),
            (leaf.as_str(), "", "key could not be read"),
            (leaf.as_str(), leaf.as_str(), "key could not be read"),
        ] {
            let error = Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
