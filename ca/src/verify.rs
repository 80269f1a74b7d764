//! The checks of a peer's certificate, for both ends of a mesh connection.
//!
//! A peer must chain to the trust bundle for its role (client or server) and carry exactly one URI
//! name, a SPIFFE ID. Whether that ID is the expected or an allowed one is not decided here: a resumed
//! TLS session skips verifiers, so callers check [`peer_identity`] on every connection.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::tls_fault::note_refused;
use crate::unix_time::{since_1970, system_time};
use crate::{SpiffeError, SpiffeId, TrustBundle};

/// Who a peer proved to be, and until when the proof holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    pub id: SpiffeId,
    pub not_after: SystemTime,
}

/// Why a certificate gives no identity; the texts speak of it as "it".
#[derive(Debug, Clone, thiserror::Error)]
pub enum VerifyError {
    #[error("it sent none")]
    NoCertificate,
    #[error("it can't be read: {0}")]
    Unreadable(String),
    #[error("it names no SPIFFE ID; a mesh certificate names exactly one")]
    NoName,
    #[error("it names {0} URIs; a mesh certificate names exactly one, its SPIFFE ID")]
    ManyNames(usize),
    #[error(transparent)]
    NotSpiffe(#[from] SpiffeError),
    #[error("certificates of clients can't be verified with this trust bundle: {0}")]
    Verifier(String),
}

/// Reads who the peer is out of the certificates it presented, leaf first.
///
/// The chain itself must have been verified in the handshake: this reads, and trusts, its leaf. Call
/// it on every connection, resumed ones too.
pub fn peer_identity(certificates: Option<&[CertificateDer<'_>]>) -> Result<PeerIdentity, VerifyError> {
    let leaf = certificates.and_then(|chain| chain.first()).ok_or(VerifyError::NoCertificate)?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| VerifyError::Unreadable(error.to_string()))?;
    Ok(PeerIdentity {
        id: spiffe_id(&parsed)?,
        not_after: system_time(parsed.validity().not_after.timestamp()),
    })
}

pub(crate) fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| VerifyError::Unreadable(error.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.count()) {
        (Some(uri), 0) => Ok(uri.parse()?),
        (None, _) => Err(VerifyError::NoName),
        (Some(_), others) => Err(VerifyError::ManyNames(1 + others)),
    }
}

/// The cryptography behind every TLS connection.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A verifier for what servers present: the chain ends at a root of the bundle, the certificate is
/// good for servers, and it carries exactly one SPIFFE ID. The name that was dialed plays no part.
pub fn server_verifier(bundle: &TrustBundle) -> Arc<dyn ServerCertVerifier> {
    Arc::new(MeshServerVerifier {
        roots: bundle.root_store(),
        algorithms: provider().signature_verification_algorithms,
    })
}

/// A verifier for what clients present, mandatory: the chain ends at a root of the bundle, the
/// certificate is good for clients, and it carries exactly one SPIFFE ID.
pub fn client_verifier(bundle: &TrustBundle) -> Result<Arc<dyn ClientCertVerifier>, VerifyError> {
    let chain = WebPkiClientVerifier::builder_with_provider(bundle.root_store(), provider())
        // The hints cost bytes in each handshake, and a mesh client has one certificate to offer anyway.
        .clear_root_hint_subjects()
        .build()
        .map_err(|error| VerifyError::Verifier(error.to_string()))?;
    Ok(Arc::new(MeshClientVerifier { chain }))
}

/// Says whether a chain would be taken by peers with this bundle, in both roles, at `now`.
pub(crate) fn verify_chain(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    now: SystemTime,
) -> Result<(), Error> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(Error::NoCertificatesPresented);
    };
    let now = UnixTime::since_unix_epoch(since_1970(now));
    let any_name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
    server_verifier(bundle).verify_server_cert(leaf, intermediates, &any_name, &[], now)?;
    client_verifier(bundle).map_err(|error| Error::General(error.to_string()))?.verify_client_cert(
        leaf,
        intermediates,
        now,
    )?;
    Ok(())
}

fn require_spiffe_id(leaf: &CertificateDer<'_>) -> Result<(), Error> {
    match peer_identity(Some(std::slice::from_ref(leaf))) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(error)))))
        }
    }
}

#[derive(Debug)]
struct MeshServerVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for MeshServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verify = || {
            let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
            require_spiffe_id(end_entity)
        };
        verify().inspect_err(|_| note_refused(end_entity))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[derive(Debug)]
struct MeshClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
}

impl ClientCertVerifier for MeshClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)
            .inspect_err(|_| note_refused(end_entity))?;
        require_spiffe_id(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose as Usage, SanType};

    use super::*;
    use crate::Certificate;
    use crate::authority::testing;

    const HOUR: Duration = Duration::from_secs(3600);

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    type Change = fn(&mut CertificateParams);

    #[test]
    fn only_a_good_certificate_with_one_spiffe_id_passes() {
        let (root, root_key, root_pem) = testing::root_with_key("root");
        let bundle = TrustBundle::from_pem(root_pem.as_bytes()).unwrap();
        let table: [(&str, Change, bool, bool); 9] = [
            ("as issued", |_| {}, true, true),
            (
                "a DNS name beside the ID",
                |p| p.subject_alt_names.push(SanType::DnsName("web".try_into().unwrap())),
                true,
                true,
            ),
            ("no name", |p| p.subject_alt_names.clear(), false, false),
            (
                "two URI names",
                |p| p.subject_alt_names.push(uri("spiffe://cluster.local/ns/a/sa/b")),
                false,
                false,
            ),
            ("another URI", |p| p.subject_alt_names = vec![uri("https://cluster.local/web")], false, false),
            ("for servers only", |p| p.extended_key_usages = vec![Usage::ServerAuth], true, false),
            ("for clients only", |p| p.extended_key_usages = vec![Usage::ClientAuth], false, true),
            ("expired", |p| p.not_after = (SystemTime::now() - HOUR / 2).into(), false, false),
            ("not yet valid", |p| p.not_before = (SystemTime::now() + HOUR / 2).into(), false, false),
        ];
        for (name, change, as_server, as_client) in table {
            let (leaf, _) = testing::leaf(&root, &root_key, change);
            let chain = pem_chain(&leaf);
            assert_eq!(server_accepts(&bundle, &chain), as_server, "{name}, server");
            assert_eq!(client_accepts(&bundle, &chain), as_client, "{name}, client");
        }
    }

    #[test]
    fn a_chain_to_another_root_is_refused() {
        let bundle = TrustBundle::from_pem(testing::root("mine").as_bytes()).unwrap();
        let chain = pem_chain(&testing::leaf_of_nobody().0);
        assert!(!server_accepts(&bundle, &chain));
        assert!(!client_accepts(&bundle, &chain));
    }

    #[test]
    fn the_identity_is_read_from_the_leaf() {
        let (leaf, key) = testing::leaf_of_nobody();
        let certificate = Certificate::from_pem(leaf.as_bytes(), key.as_bytes()).unwrap();
        let peer = peer_identity(Some(certificate.chain())).unwrap();
        assert_eq!(peer.id.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(peer.not_after, certificate.not_after());
        assert!(matches!(peer_identity(None), Err(VerifyError::NoCertificate)));
        assert!(matches!(peer_identity(Some(&[])), Err(VerifyError::NoCertificate)));
    }

    #[test]
    fn the_error_says_how_many_names_there_are() {
        let (root, key, _) = testing::root_with_key("root");
        for (count, text) in [(0, "names no SPIFFE ID"), (2, "names 2 URIs")] {
            let (leaf, _) = testing::leaf(&root, &key, |params| {
                params.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/web"); count];
            });
            let error = peer_identity(Some(&pem_chain(&leaf))).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    fn pem_chain(pem: &str) -> Vec<CertificateDer<'static>> {
        use rustls_pki_types::pem::PemObject as _;
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    fn server_accepts(bundle: &TrustBundle, chain: &[CertificateDer<'static>]) -> bool {
        let name = ServerName::try_from("whatever").unwrap();
        server_verifier(bundle)
            .verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now())
            .is_ok()
    }

    fn client_accepts(bundle: &TrustBundle, chain: &[CertificateDer<'static>]) -> bool {
        client_verifier(bundle).unwrap().verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
    }
}
