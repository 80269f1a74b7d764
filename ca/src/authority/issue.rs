//! Certificate signing requests in, public keys out; and the certificates made for those.

use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use crate::{SpiffeId, unix_seconds};

/// Why a signing request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CsrError {
    #[error("the signing request is not PEM with BEGIN CERTIFICATE REQUEST: {0}")]
    Pem(rustls_pki_types::pem::Error),
    #[error("the signing request can't be read: {0}")]
    Unreadable(String),
    #[error(
        "the signature of the signing request does not verify: it must be made with the key that it asks a certificate for"
    )]
    Signature,
    #[error(
        "the signing request has a key of another kind than ECDSA P-256, ECDSA P-384, Ed25519 or RSA with 2048 to 8192 bits"
    )]
    Key,
}

/// The public key of a signing request, after checking that its sender holds the private one. Whatever
/// else the request says (names, usages, CA:TRUE) is passed over: none of it is the requester's to say.
pub(crate) fn public_key_of(csr: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).map_err(CsrError::Pem)?;
    let (rest, request) =
        X509CertificationRequest::from_der(&der).map_err(|error| CsrError::Unreadable(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Unreadable("bytes follow the request".into()));
    }
    let info = &request.certification_request_info.subject_pki;
    let key = SubjectPublicKeyInfo::from_der(info.raw).map_err(|_| CsrError::Key)?;
    // The kind comes before the signature, so that nobody makes the CA compute with a huge key.
    let accepted = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    let bits = info.parsed().map(|key| key.key_size()).unwrap_or(0);
    let rsa = *key.algorithm() == rcgen::PKCS_RSA_SHA256 && (2048..=8192).contains(&bits);
    if !rsa && !accepted.contains(&key.algorithm()) {
        return Err(CsrError::Key);
    }
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    Ok(key)
}

/// The shape of a workload's certificate: one critical URI name and nothing that could be more. Only the CA's own has
/// DNS names beside it.
pub(super) fn workload_params(
    id: &SpiffeId,
    dns_names: &[String],
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    // RFC 5280, 4.1.2.6: with an empty subject the name extension is critical, which SPIFFE asks for.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    for name in dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    Ok(params)
}

/// The shape of a root (no limit on what hangs below it) or of an issuer (workloads only).
pub(super) fn authority_params(
    name: &str,
    trust_domain: &str,
    is_root: bool,
    not_before: SystemTime,
    not_after: SystemTime,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca =
        IsCa::Ca(if is_root { BasicConstraints::Unconstrained } else { BasicConstraints::Constrained(0) });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial());
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params
}

/// 127 random bits, positive and never zero, as RFC 5280 4.1.2.2 asks.
fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Certificates count in whole seconds; rounding up would outlive what must bound them.
pub(super) fn whole_seconds(time: SystemTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(unix_seconds(time))
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, RsaKeySize};

    use super::*;

    fn csr(key: &KeyPair) -> String {
        let request = CertificateParams::default().serialize_request(key).unwrap();
        request.pem().unwrap()
    }

    #[test]
    fn keys_of_the_accepted_kinds_are_taken() {
        let accepted = [
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyPair::generate_for(&rcgen::PKCS_ED25519),
            KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048),
        ];
        for key in accepted {
            let key = key.unwrap();
            let found = public_key_of(&csr(&key)).unwrap();
            assert_eq!(found.der_bytes(), key.public_key_raw());
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(matches!(public_key_of(&csr(&other)), Err(CsrError::Key)));
    }

    #[test]
    fn a_request_signed_with_another_key_is_refused() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key).unwrap();
        let mut der = request.der().to_vec();
        // The last byte belongs to the signature.
        *der.last_mut().unwrap() ^= 1;
        let text = csr(&key);
        assert!(public_key_of(&text).is_ok());
        let forged = pem_of(&der);
        let refused = public_key_of(&forged);
        assert!(matches!(refused, Err(CsrError::Signature | CsrError::Unreadable(_))), "{refused:?}");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for text in ["", "hello", &pem_of(b"hello"), &pem_of(b"")] {
            assert!(public_key_of(text).is_err(), "{text}");
        }
    }

    fn pem_of(der: &[u8]) -> String {
        crate::bundle::to_pem(&der.to_vec().into()).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    }
}
