//! An issuing key with what belongs around it: it signs workloads' certificates and the CA's own.

use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::issue::{whole_seconds, workload_params};
use crate::{BundleError, CA_ACCOUNT, Certificate, CertificateError, SpiffeError, SpiffeId, TrustBundle};

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the CA's own certificate could not be made: {0}")]
    Own(#[from] CertificateError),
    #[error("the root can't be used: {0}")]
    Root(#[from] BundleError),
    #[error("the trust domain can't be used: {0}")]
    TrustDomain(#[from] SpiffeError),
    #[error(
        "the issuing certificate has ended, or ends within seconds: rotate the root, or give a new issuer"
    )]
    Ended,
}

pub(crate) struct Signer {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// What a workload presents after its leaf.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    /// What the CA itself presents after its leaf: also the way to roots that have left the bundle, so that
    /// a client that slept through a rotation still recognizes the CA.
    pub(super) own_intermediates: Vec<CertificateDer<'static>>,
    pub(super) root: CertificateDer<'static>,
    /// Nothing issued may live longer: the end of issuer and root, and the day the root leaves the bundle.
    pub(super) not_after: SystemTime,
    pub(super) backdate: Duration,
    pub(super) trust_domain: String,
}

impl Signer {
    /// Signs a certificate for a public key; gives the chain: leaf, intermediates, the root last.
    pub fn sign(
        &self,
        id: &SpiffeId,
        key: &SubjectPublicKeyInfo,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Vec<CertificateDer<'static>>, SignError> {
        let mut chain = vec![self.leaf(id, &[], key, lifetime, now)?];
        chain.extend_from_slice(&self.intermediates);
        chain.push(self.root.clone());
        Ok(chain)
    }

    /// The certificate that the CA presents to its clients, with a fresh key. `dns_names` are for clients that verify the
    /// name that they dial; the mesh's own look at the SPIFFE ID.
    pub fn own_certificate(
        &self,
        dns_names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Certificate, SignError> {
        let id = SpiffeId::new(&self.trust_domain, CA_ACCOUNT.0, CA_ACCOUNT.1)?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut chain = vec![self.leaf(&id, dns_names, &key, lifetime, now)?];
        chain.extend_from_slice(&self.own_intermediates);
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Certificate::new(chain, key)?)
    }

    fn leaf(
        &self,
        id: &SpiffeId,
        dns_names: &[String],
        key: &impl PublicKeyData,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, SignError> {
        let not_after = whole_seconds((now + lifetime).min(self.not_after));
        if not_after <= now {
            return Err(SignError::Ended);
        }
        let params = workload_params(id, dns_names, whole_seconds(now - self.backdate), not_after)?;
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// Whether clients that trust this signer's root take a certificate of its.
    pub fn verify(&self, certificate: &Certificate, now: SystemTime) -> Result<(), SignError> {
        let bundle = TrustBundle::from_roots(vec![self.root.clone()])?;
        Ok(certificate.verify(&bundle, now)?)
    }

    pub fn same_key(&self, other: &Self) -> bool {
        self.issuer.key().public_key_raw() == other.issuer.key().public_key_raw()
    }
}
