//! Certificates for the tests of discovery.

use std::sync::Arc;

use outrigger_ca::{TrustBundle, client_verifier, server_verifier};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub struct Root {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Root {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(self.issuer.pem().as_bytes()).unwrap()
    }

    fn leaf(&self, id: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(id).unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    }

    /// A server's configuration under an identity; clients must have a certificate of this root.
    pub fn server(&self, id: &str) -> Arc<rustls::ServerConfig> {
        self.server_speaking(id, b"dot")
    }

    pub fn server_speaking(&self, id: &str, protocol: &[u8]) -> Arc<rustls::ServerConfig> {
        let (chain, key) = self.leaf(id);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_client_cert_verifier(client_verifier(&self.bundle()).unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        Arc::new(config)
    }

    /// A client's configuration that trusts this root, with a certificate of it.
    pub fn client(&self, id: &str) -> Arc<rustls::ClientConfig> {
        let (chain, key) = self.leaf(id);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(&self.bundle()))
            .with_client_auth_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}
