//! The answers: a certificate for a token and a signing request, and the trust bundle for anybody.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::BoxFuture;

use super::Shared;
use crate::SpiffeId;
use crate::authority::public_key_of;
use crate::bundle::to_pem;
use crate::protocol::{BUNDLE, CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::tokens::TokenError;

/// A signing request with an RSA key of 8192 bits has under 4 KiB.
const LARGEST_SIGNING_REQUEST_BYTES: usize = 16 << 10;
/// The whole message: other meshes' agents add metadata, which is passed over.
const LARGEST_MESSAGE_BYTES: usize = 128 << 10;
/// A Kubernetes token has about 1 KiB; each is hashed, or its signature computed.
const LARGEST_TOKEN_BYTES: usize = 16 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests whose bodies are read at once, over all connections.
const MOST_REQUESTS: usize = 256;

static REQUESTS: Semaphore = Semaphore::const_new(MOST_REQUESTS);

/// Answers the requests of one connection.
pub(super) struct Service {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
}

impl Service {
    pub fn new(shared: Arc<Shared>, peer: Option<SocketAddr>) -> Self {
        Self { shared, peer }
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (shared, peer) = (self.shared.clone(), self.peer);
        Box::pin(async move { Ok(respond(shared, peer, request).await) })
    }
}

async fn respond(
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    match (request.uri().path(), request.method()) {
        (CREATE_CERTIFICATE, &Method::POST) => create_certificate(shared, peer, request).await,
        (BUNDLE, &Method::GET) => {
            shared.metrics.bundle_served();
            let bundle = shared.authority.snapshot(SystemTime::now()).bundle.to_pem();
            plain(StatusCode::OK, "application/x-pem-file", bundle)
        }
        (CREATE_CERTIFICATE | BUNDLE, _) => plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "wrong method: GET /bundle, and gRPC for certificates\n".into(),
        ),
        (path, _) if is_grpc(&request) => {
            let status = tonic::Status::unimplemented(format!(
                "this CA does not know `{path}`, only {CREATE_CERTIFICATE}"
            ));
            status.into_http()
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "text/plain",
            format!("not here: GET {BUNDLE}, and gRPC at {CREATE_CERTIFICATE}\n"),
        ),
    }
}

fn is_grpc(request: &Request<Incoming>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

pub(super) fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn create_certificate(
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
    request: Request<Incoming>,
) -> Response<Body> {
    let Ok(_permit) = REQUESTS.try_acquire() else {
        shared.metrics.refused("overload");
        return tonic::Status::resource_exhausted("too many requests at once: try again soon").into_http();
    };
    let codec = tonic_prost::ProstCodec::<CertificateResponse, CertificateRequest>::default();
    let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(LARGEST_MESSAGE_BYTES);
    let issue = Issue { shared: shared.clone(), peer };
    match timeout(REQUEST_TIMEOUT, grpc.unary(issue, request)).await {
        Ok(response) => response,
        Err(_) => {
            shared.metrics.refused("timeout");
            tonic::Status::deadline_exceeded("the request did not arrive within 10 s").into_http()
        }
    }
}

struct Issue {
    shared: Arc<Shared>,
    peer: Option<SocketAddr>,
}

impl tonic::codegen::Service<tonic::Request<CertificateRequest>> for Issue {
    type Response = tonic::Response<CertificateResponse>;
    type Error = tonic::Status;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<CertificateRequest>) -> Self::Future {
        let result = issue(&self.shared, &request).map_err(|refusal| {
            let (reason, status) = refusal;
            self.shared.metrics.refused(reason);
            tracing::info!(peer = ?self.peer, reason, message = status.message(), "a certificate was refused");
            status
        });
        std::future::ready(result)
    }
}

/// A word for metrics, and what the caller is told.
type Refusal = (&'static str, tonic::Status);

fn issue(
    shared: &Shared,
    request: &tonic::Request<CertificateRequest>,
) -> Result<tonic::Response<CertificateResponse>, Refusal> {
    let id = identify(shared, request)?;
    let message = request.get_ref();
    if message.csr.len() > LARGEST_SIGNING_REQUEST_BYTES {
        let text = "the signing request is longer than 16 KiB";
        return Err(("size", tonic::Status::resource_exhausted(text)));
    }
    let key = public_key_of(&message.csr)
        .map_err(|error| ("signing_request", tonic::Status::invalid_argument(error.to_string())))?;
    let longest = shared.lifetimes.certificate;
    let lifetime = match u64::try_from(message.validity_duration) {
        Ok(0) => longest,
        Ok(seconds) => longest.min(Duration::from_secs(seconds)),
        Err(_) => {
            let text = "validity_duration must not be negative; 0 leaves it to the CA";
            return Err(("lifetime", tonic::Status::invalid_argument(text)));
        }
    };
    let now = SystemTime::now();
    let signer = shared.authority.snapshot(now).signer.clone();
    let chain = signer.sign(&id, &key, lifetime, now).map_err(|error| {
        tracing::error!(%error, "a certificate could not be signed");
        ("signing", tonic::Status::internal(error.to_string()))
    })?;
    shared.metrics.issued();
    tracing::info!(%id, "a certificate was issued");
    Ok(tonic::Response::new(CertificateResponse {
        cert_chain: chain.iter().map(|certificate| to_pem(certificate)).collect(),
    }))
}

fn identify(shared: &Shared, request: &tonic::Request<CertificateRequest>) -> Result<SpiffeId, Refusal> {
    let mut values = request.metadata().get_all("authorization").iter();
    let header = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().unwrap_or_default(),
        _ => {
            let text = "exactly one header `authorization: Bearer <token>` is needed";
            return Err(("token_missing", tonic::Status::unauthenticated(text)));
        }
    };
    // RFC 9110, 11.1: the scheme's case does not matter.
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => {
            let text = "the header `authorization` must be `Bearer <token>`";
            return Err(("token_missing", tonic::Status::unauthenticated(text)));
        }
    };
    if token.len() > LARGEST_TOKEN_BYTES {
        let text = "the token is longer than 16 KiB";
        return Err(("token_size", tonic::Status::unauthenticated(text)));
    }
    shared
        .tokens
        .identify(token)
        .map_err(|error: TokenError| (error.reason(), tonic::Status::unauthenticated(error.to_string())))
}
