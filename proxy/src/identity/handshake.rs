//! TLS handshakes, and the check that the peer is who it should be: on every connection, resumed ones
//! too (a resumed session never reaches rustls' verifier).

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use outrigger_ca::tls_fault::{TlsFault, Worded, handshake};
use outrigger_ca::{ExpectedIdentity, SpiffeId, peer_identity};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use crate::net::MeshProtocol;

/// A verified peer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// When its certificate ends; the connection must have ended by then.
    pub expires: Instant,
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// TLS did not come about.
    #[error(transparent)]
    Tls(#[from] TlsFault),
    /// The certificate verifies and belongs to somebody else.
    #[error("the peer is {actual}, expected {expected}")]
    Identity {
        /// Whose certificate it is.
        actual: SpiffeId,
        /// Whose it should be.
        expected: ExpectedIdentity,
    },
    /// The peer does not speak the mesh's protocols.
    #[error("the peer has no sidecar: it does not speak {0}")]
    NotOfTheMesh(&'static str),
    /// It took too long.
    #[error("no TLS handshake within {0:?}")]
    Timeout(Duration),
    /// We have no certificate yet.
    #[error("this proxy has no certificate yet; its /readyz says why")]
    NotCertified,
}

impl HandshakeError {
    /// The value of the label `reason` in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Tls(TlsFault::Certificate { .. }) => "certificate",
            Self::Identity { .. } => "identity",
            Self::Tls(TlsFault::Alert(_)) => "alert",
            Self::NotOfTheMesh(_) | Self::Tls(TlsFault::NoProtocol) => "not_mesh",
            Self::Tls(TlsFault::Protocol(_)) => "protocol",
            Self::Tls(TlsFault::Lost(_)) => "lost",
            Self::Timeout(_) => "timeout",
            Self::NotCertified => "not_certified",
        }
    }
}

/// Connects to a peer of the mesh, which must be `expected` and speak `protocol`.
///
/// # Errors
/// Each way in which the peer can fail to be that.
pub async fn connect<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
    protocol: MeshProtocol,
    expected: &ExpectedIdentity,
    limit: Duration,
) -> Result<(client::TlsStream<S>, Peer), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = connect_server(config, name, stream, limit).await?;
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(protocol.alpn()) {
        return Err(HandshakeError::NotOfTheMesh(protocol_name(protocol)));
    }
    let peer = verified(session.peer_certificates(), expected)?;
    Ok((stream, peer))
}

/// Connects to a server outside the mesh; its certificate was verified by rustls.
///
/// # Errors
/// What kept the handshake from ending well.
pub async fn connect_server<S>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
    limit: Duration,
) -> Result<client::TlsStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shaking = handshake(TlsConnector::from(config).connect(name, stream));
    match tokio::time::timeout(limit, shaking).await {
        Ok(made) => Ok(made?),
        Err(_) => Err(HandshakeError::Timeout(limit)),
    }
}

/// Accepts a peer of the mesh, of any identity within the trust domain; rules come after.
///
/// # Errors
/// Each way in which the peer can fail to be that.
pub async fn accept<S>(
    config: Arc<ServerConfig>,
    stream: S,
    trust_domain: &Arc<str>,
    limit: Duration,
) -> Result<(Worded<server::TlsStream<S>>, MeshProtocol, Peer), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shaking = handshake(TlsAcceptor::from(config).accept(stream));
    let stream = match tokio::time::timeout(limit, shaking).await {
        Ok(made) => made?,
        Err(_) => return Err(HandshakeError::Timeout(limit)),
    };
    let (_, session) = stream.get_ref();
    let protocol = session
        .alpn_protocol()
        .and_then(MeshProtocol::from_alpn)
        .ok_or(HandshakeError::NotOfTheMesh("a mesh protocol"))?;
    let expected = ExpectedIdentity::TrustDomain(trust_domain.clone());
    let peer = verified(session.peer_certificates(), &expected)?;
    Ok((Worded(stream), protocol, peer))
}

fn verified(
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    expected: &ExpectedIdentity,
) -> Result<Peer, HandshakeError> {
    let refused = |id, reason: String| HandshakeError::Tls(TlsFault::Certificate { id, reason });
    let identity = peer_identity(certificates).map_err(|error| refused(None, error.to_string()))?;
    if !expected.accepts(&identity.id) {
        return Err(HandshakeError::Identity { actual: identity.id, expected: expected.clone() });
    }
    let left = identity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    if left.is_zero() {
        return Err(refused(Some(identity.id), "it has expired: renew it".into()));
    }
    Ok(Peer { id: identity.id, expires: Instant::now() + left })
}

fn protocol_name(protocol: MeshProtocol) -> &'static str {
    match protocol {
        MeshProtocol::H2 => "outrigger-h2",
        MeshProtocol::H1 => "outrigger-h1",
        MeshProtocol::Tcp => "outrigger-tcp",
    }
}
