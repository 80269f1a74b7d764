//! The messages of Istio's certificate API, `istio.v1.auth.IstioCertificateService`.
//!
//! Field 4 of the request (`metadata`) has no bearing here; the decoder passes unknown fields over.

pub(crate) const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// The path that serves the trust bundle as PEM.
pub(crate) const BUNDLE: &str = "/bundle";

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CertificateRequest {
    /// The certificate signing request, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// The lifetime asked for, in seconds; 0 leaves it to the CA.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CertificateResponse {
    /// PEM, one certificate a string: the leaf, intermediates, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
