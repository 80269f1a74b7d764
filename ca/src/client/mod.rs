//! One conversation with the CA: connect, check that it is the CA, ask.
//!
//! Each request has its own connection: they are hours apart.

mod connect;
mod error;
mod first_contact;

use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::time::timeout;
use tonic::body::Body;

use crate::protocol::{BUNDLE, CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::verify::verify_chain;
use crate::workload::CaOptions;
use crate::{SpiffeId, TrustBundle, peer_identity};
use connect::{Connection, connect};
pub(crate) use error::ClientError;
use error::http_error;

/// A whole conversation, name resolution included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// A bundle of a hundred roots fits many times over.
const LARGEST_BUNDLE_BYTES: usize = 1 << 20;

/// Asks for the roots. Without a bundle to verify the CA against, whoever answers is believed, provided
/// that its own certificate is the CA's under the roots that it serves; no token goes over that connection.
pub(crate) async fn fetch_bundle(
    options: &CaOptions,
    trusted: Option<&TrustBundle>,
    ca: &SpiffeId,
) -> Result<TrustBundle, ClientError> {
    within(options, async {
        let connection = connect(options, trusted).await?;
        if trusted.is_some() {
            connection.require_identity(ca)?;
        }
        let presented = connection.presented.clone();
        let bundle = connection.get_bundle().await?;
        if trusted.is_none() {
            verify_chain(&presented, &bundle, std::time::SystemTime::now())
                .map_err(|source| ClientError::Inconsistent { address: options.address.clone(), source })?;
            require_identity(&options.address, &presented, ca)?;
            tracing::warn!(
                address = options.address,
                "trusting the CA on first contact, since no trust bundle is mounted; it is pinned from now on"
            );
        }
        Ok(bundle)
    })
    .await
}

/// Sees whether the CA is there. Asks it for nothing: a CA need not serve its bundle where that is a file.
pub(crate) async fn look_for(
    options: &CaOptions,
    bundle: &TrustBundle,
    ca: &SpiffeId,
) -> Result<(), ClientError> {
    within(options, async { connect(options, Some(bundle)).await?.require_identity(ca) }).await
}

/// Makes a key and has the CA certify it for whomever the token names. The key lives in memory only.
pub(crate) async fn issue(
    options: &CaOptions,
    bundle: &TrustBundle,
    ca: &SpiffeId,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), ClientError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    let chain = certify(options, bundle, ca, csr).await?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((chain, key))
}

/// Has the CA certify the key of a signing request; gives the chain as sent: leaf first, root last.
pub(crate) async fn certify(
    options: &CaOptions,
    bundle: &TrustBundle,
    ca: &SpiffeId,
    csr: String,
) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let authorization = authorization(options)?;
    within(options, async {
        let connection = connect(options, Some(bundle)).await?;
        connection.require_identity(ca)?;
        connection.create_certificate(csr, authorization).await
    })
    .await
}

async fn within<T>(
    options: &CaOptions,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    timeout(ATTEMPT_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(ClientError::Timeout { address: options.address.clone() }))
}

fn authorization(
    options: &CaOptions,
) -> Result<tonic::metadata::MetadataValue<tonic::metadata::Ascii>, ClientError> {
    let refused = |reason: String| ClientError::Token { path: options.token_file.clone(), reason };
    let token = std::fs::read_to_string(&options.token_file).map_err(|error| refused(error.to_string()))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(refused("it is empty".into()));
    }
    let mut value: tonic::metadata::MetadataValue<_> = format!("Bearer {token}")
        .parse()
        .map_err(|_| refused("it holds characters that no token has".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn require_identity(
    address: &str,
    presented: &[CertificateDer<'static>],
    ca: &SpiffeId,
) -> Result<(), ClientError> {
    let peer = peer_identity(Some(presented))
        .map_err(|source| ClientError::NoIdentity { address: address.into(), source })?;
    if peer.id == *ca {
        return Ok(());
    }
    Err(ClientError::WrongIdentity { address: address.into(), found: peer.id, expected: ca.clone() })
}

impl Connection {
    fn require_identity(&self, ca: &SpiffeId) -> Result<(), ClientError> {
        require_identity(&self.address, &self.presented, ca)
    }

    async fn get_bundle(mut self) -> Result<TrustBundle, ClientError> {
        let address = self.address;
        let mut uri = self.origin.into_parts();
        uri.path_and_query = Some(http::uri::PathAndQuery::from_static(BUNDLE));
        let uri = Uri::from_parts(uri).map_err(|error| http_error(&address, &error))?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        let response =
            self.sender.send_request(request).await.map_err(|error| http_error(&address, &error))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ClientError::BundleStatus { address, status });
        }
        let pem = Limited::new(response.into_body(), LARGEST_BUNDLE_BYTES)
            .collect()
            .await
            .map_err(|error| http_error(&address, &*error))?
            .to_bytes();
        TrustBundle::from_pem(&pem).map_err(|source| ClientError::Bundle { address, source })
    }

    async fn create_certificate(
        self,
        csr: String,
        authorization: tonic::metadata::MetadataValue<tonic::metadata::Ascii>,
    ) -> Result<Vec<CertificateDer<'static>>, ClientError> {
        let address = self.address;
        let refused = |status: tonic::Status| ClientError::Refused {
            address: address.clone(),
            code: status.code(),
            message: status.message().into(),
        };
        let mut grpc = tonic::client::Grpc::with_origin(Http2Service(self.sender), self.origin);
        grpc.ready().await.map_err(|error| http_error(&address, &error))?;
        let mut request = tonic::Request::new(CertificateRequest { csr, validity_duration: 0 });
        request.metadata_mut().insert("authorization", authorization);
        let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
        let response = grpc.unary(request, path, codec).await.map_err(refused)?;
        let pem = response.into_inner().cert_chain.concat();
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| ClientError::Answer { address: address.clone(), reason: error.to_string() })
    }
}

/// An HTTP/2 connection in the shape that tonic asks for.
struct Http2Service(SendRequest<Body>);

impl tonic::codegen::Service<Request<Body>> for Http2Service {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = tonic::codegen::BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
