//! One conversation with the CA: connect, check that it is the CA, ask.
//!
//! Each request has its own connection: they are hours apart.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;

use crate::protocol::{BUNDLE, CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use crate::verify::{provider, verify_chain};
use crate::workload::CaOptions;
use crate::{BundleError, SpiffeId, TrustBundle, VerifyError, peer_identity, server_verifier};

/// One address of several must not use up the whole attempt.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A whole conversation, name resolution included.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// A bundle of a hundred roots fits many times over.
const LARGEST_BUNDLE_BYTES: usize = 1 << 20;

/// Why the CA gave nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("the CA's address `{address}` can't be used: {reason}")]
    Address { address: String, reason: String },
    #[error("no connection to the CA at {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("the CA at {address} did not answer within {ATTEMPT_TIMEOUT:?}")]
    Timeout { address: String },
    #[error(
        "whoever answers at {address} can't be verified as the CA: {source}; check the trust bundle and the address"
    )]
    Tls { address: String, source: io::Error },
    #[error("{address} presents {found}, but the CA must be {expected}; check the address")]
    WrongIdentity {
        address: String,
        found: SpiffeId,
        expected: SpiffeId,
    },
    #[error("the certificate of the CA at {address} names no identity: {source}")]
    NoIdentity {
        address: String,
        source: VerifyError,
    },
    #[error("the CA at {address} does not chain to the bundle that it serves: {source}")]
    Inconsistent {
        address: String,
        source: rustls::Error,
    },
    #[error("the token file `{path}` can't be used: {reason}")]
    Token { path: PathBuf, reason: String },
    #[error("the connection to the CA at {address} failed: {reason}")]
    Http { address: String, reason: String },
    #[error("the CA at {address} answered {status} to {BUNDLE}; mount a trust bundle instead")]
    BundleStatus { address: String, status: StatusCode },
    #[error("the trust bundle of the CA at {address} can't be used: {source}")]
    Bundle {
        address: String,
        source: BundleError,
    },
    #[error("the CA at {address} refused the request: {code:?}: {message}")]
    Refused {
        address: String,
        code: tonic::Code,
        message: String,
    },
    #[error("the CA at {address} sent a certificate that can't be read: {reason}")]
    Answer { address: String, reason: String },
    #[error("no key or signing request could be made: {0}")]
    Request(#[from] rcgen::Error),
}

impl ClientError {
    /// Whether the CA was there to answer, so that waiting alone won't help.
    pub(crate) fn reached(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Tls { .. }
            | Self::WrongIdentity { .. }
            | Self::NoIdentity { .. }
            | Self::Inconsistent { .. }
            | Self::Token { .. }
            | Self::Http { .. }
            | Self::Request(_) => false,
            Self::Refused { code, .. } => *code != tonic::Code::Unavailable,
            Self::BundleStatus { .. } | Self::Bundle { .. } | Self::Answer { .. } => true,
        }
    }
}

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
            verify_chain(&presented, &bundle, std::time::SystemTime::now()).map_err(|source| {
                ClientError::Inconsistent {
                    address: options.address.clone(),
                    source,
                }
            })?;
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
    timeout(ATTEMPT_TIMEOUT, work).await.unwrap_or_else(|_| {
        Err(ClientError::Timeout {
            address: options.address.clone(),
        })
    })
}

fn authorization(
    options: &CaOptions,
) -> Result<tonic::metadata::MetadataValue<tonic::metadata::Ascii>, ClientError> {
    let refused = |reason: String| ClientError::Token {
        path: options.token_file.clone(),
        reason,
    };
    let token =
        std::fs::read_to_string(&options.token_file).map_err(|error| refused(error.to_string()))?;
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
    let peer = peer_identity(Some(presented)).map_err(|source| ClientError::NoIdentity {
        address: address.into(),
        source,
    })?;
    if peer.id == *ca {
        return Ok(());
    }
    Err(ClientError::WrongIdentity {
        address: address.into(),
        found: peer.id,
        expected: ca.clone(),
    })
}

struct Connection {
    address: String,
    origin: Uri,
    presented: Vec<CertificateDer<'static>>,
    sender: SendRequest<Body>,
}

async fn connect(
    options: &CaOptions,
    trusted: Option<&TrustBundle>,
) -> Result<Connection, ClientError> {
    let address = &options.address;
    let unusable = |reason: String| ClientError::Address {
        address: address.clone(),
        reason,
    };
    let (host, _) = address
        .rsplit_once(':')
        .ok_or_else(|| unusable("it must be host:port".into()))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let server_name =
        ServerName::try_from(host.to_owned()).map_err(|error| unusable(error.to_string()))?;
    let origin: Uri = format!("https://{address}")
        .parse()
        .map_err(|error: http::uri::InvalidUri| unusable(error.to_string()))?;
    let verifier = match trusted {
        Some(bundle) => server_verifier(bundle),
        None => Arc::new(first_contact::Unverified::new()),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| unusable(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();

    let tcp = dial(options).await?;
    let tls = TlsConnector::from(Arc::new(config))
        .connect(server_name, tcp)
        .await
        .map_err(|source| ClientError::Tls {
            address: address.clone(),
            source,
        })?;
    let presented = tls
        .get_ref()
        .1
        .peer_certificates()
        .unwrap_or_default()
        .to_vec();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls))
            .await
            .map_err(|error| http_error(address, &error))?;
    tokio::spawn(async move {
        // The request on this connection reports the failure.
        let _ = connection.await;
    });
    Ok(Connection {
        address: address.clone(),
        origin,
        presented,
        sender,
    })
}

async fn dial(options: &CaOptions) -> Result<TcpStream, ClientError> {
    let failed = |source| ClientError::Connect {
        address: options.address.clone(),
        source,
    };
    let addresses = lookup_host(&options.address).await.map_err(failed)?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, dial_one(address, options.mark)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed(last))
}

async fn dial_one(address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(mark) = mark {
        socket2::SockRef::from(&socket)
            .set_mark(mark)
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!(
                        "the packet mark {mark} can't be set ({error}); it needs CAP_NET_ADMIN"
                    ),
                )
            })?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn http_error(address: &str, error: &dyn std::error::Error) -> ClientError {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    ClientError::Http {
        address: address.into(),
        reason,
    }
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
        let response = self
            .sender
            .send_request(request)
            .await
            .map_err(|error| http_error(&address, &error))?;
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
        grpc.ready()
            .await
            .map_err(|error| http_error(&address, &error))?;
        let mut request = tonic::Request::new(CertificateRequest {
            csr,
            validity_duration: 0,
        });
        request
            .metadata_mut()
            .insert("authorization", authorization);
        let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
        let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
        let response = grpc.unary(request, path, codec).await.map_err(refused)?;
        let pem = response.into_inner().cert_chain.concat();
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| ClientError::Answer {
                address: address.clone(),
                reason: error.to_string(),
            })
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

mod first_contact {
    //! The one connection that is not verified: the first one, where no bundle is mounted. It carries no
    //! secret, and what comes over it is checked against itself before it is believed.

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{
        WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    };
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    pub(super) struct Unverified(WebPkiSupportedAlgorithms);

    impl Unverified {
        pub(super) fn new() -> Self {
            Self(crate::verify::provider().signature_verification_algorithms)
        }
    }

    impl ServerCertVerifier for Unverified {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signature, &self.0)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.0)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.supported_schemes()
        }
    }
}
