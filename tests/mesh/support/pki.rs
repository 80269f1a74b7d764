//! A certificate authority of the test's own, able to make every wrong certificate there is.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// A root with its key.
pub struct Pki {
    /// The trust bundle with this one root, in PEM.
    pub bundle: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

/// What a certificate says; the default of [`Leaf::of`] is a right one.
pub struct Leaf {
    /// The URI names.
    pub uris: Vec<String>,
    /// From when it holds.
    pub not_before: SystemTime,
    /// Until when it holds.
    pub not_after: SystemTime,
}

impl Leaf {
    /// A certificate of one day for this SPIFFE ID.
    pub fn of(id: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![id.to_owned()],
            not_before: now - Duration::from_secs(120),
            not_after: now + Duration::from_secs(24 * 3600),
        }
    }
}

/// The SPIFFE ID of a service account in the test's usual namespace.
pub fn shop(account: &str) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{account}")
}

impl Pki {
    /// A fresh root.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("make a key");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "test root");
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = parameters.self_signed(&key).expect("sign a root");
        Self { bundle: root.pem(), issuer: Issuer::new(parameters, key) }
    }

    /// A right certificate for this SPIFFE ID.
    pub fn identity(&self, id: &str) -> Identity {
        self.issue(&Leaf::of(id))
    }

    /// A certificate that says what `leaf` says.
    pub fn issue(&self, leaf: &Leaf) -> Identity {
        let key = KeyPair::generate().expect("make a key");
        let mut parameters = CertificateParams::default();
        let names =
            leaf.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().expect("a URI is ASCII")));
        parameters.subject_alt_names = names.collect();
        if leaf.uris.is_empty() {
            parameters.subject_alt_names = vec![SanType::DnsName("plain.example".try_into().expect("ASCII"))];
        }
        parameters.is_ca = IsCa::ExplicitNoCa;
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        parameters.use_authority_key_identifier_extension = true;
        parameters.not_before = leaf.not_before.into();
        parameters.not_after = leaf.not_after.into();
        let certificate: Certificate = parameters.signed_by(&key, &self.issuer).expect("sign a certificate");
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl Identity {
    /// Writes `tls.crt` and `tls.key` into a directory, each replaced at once.
    pub fn write(&self, directory: &Path) {
        for (name, text) in [("tls.key", &self.key), ("tls.crt", &self.certificate)] {
            let fresh = directory.join(format!("{name}.new"));
            std::fs::write(&fresh, text).expect("write a certificate");
            std::fs::rename(&fresh, directory.join(name)).expect("replace a certificate");
        }
    }

    /// The certificate as rustls takes it.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes()).map(|der| der.expect("PEM")).collect()
    }

    /// The key as rustls takes it.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("a key in PEM")
    }
}
