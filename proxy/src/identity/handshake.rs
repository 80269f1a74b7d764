//! TLS handshakes, and the check that the peer is who it should be: on every connection, resumed ones
//! too (a resumed session never reaches rustls' verifier).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

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
    /// The peer's certificate does not verify.
    #[error("the peer's certificate is refused: {0}")]
    Certificate(String),
    /// The certificate verifies and belongs to somebody else.
    #[error("the peer is {actual}, expected {expected}")]
    Identity {
        /// Whose certificate it is.
        actual: SpiffeId,
        /// Whose it should be.
        expected: ExpectedIdentity,
    },
    /// The peer refused us.
    #[error("the peer refused the handshake: {0}")]
    Alert(String),
    /// The peer does not speak the mesh's protocols.
    #[error("the peer has no sidecar: it does not speak {0}")]
    NotOfTheMesh(&'static str),
    /// What came is not TLS, or breaks it.
    #[error("TLS failed: {0}")]
    Protocol(String),
    /// The connection ended.
    #[error("the connection ended during the handshake: {0}")]
    Lost(io::ErrorKind),
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
            Self::Certificate(_) => "certificate",
            Self::Identity { .. } => "identity",
            Self::Alert(_) => "alert",
            Self::NotOfTheMesh(_) => "not_mesh",
            Self::Protocol(_) => "protocol",
            Self::Lost(_) => "lost",
            Self::Timeout(_) => "timeout",
            Self::NotCertified => "not_certified",
        }
    }

    /// Reads the reason out of an I/O error of a TLS stream.
    pub fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(reason)) => Self::Certificate(format!("{reason:?}")),
            Some(rustls::Error::NoCertificatesPresented) => Self::Certificate("none presented".into()),
            Some(rustls::Error::AlertReceived(alert)) => Self::Alert(format!("{alert:?}")),
            Some(rustls::Error::NoApplicationProtocol) => Self::NotOfTheMesh("a mesh protocol"),
            Some(error) => Self::Protocol(error.to_string()),
            None => Self::Lost(error.kind()),
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
    match tokio::time::timeout(limit, TlsConnector::from(config).connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(HandshakeError::of(&error)),
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
) -> Result<(server::TlsStream<S>, MeshProtocol, Peer), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let stream = match tokio::time::timeout(limit, TlsAcceptor::from(config).accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(HandshakeError::of(&error)),
        Err(_) => return Err(HandshakeError::Timeout(limit)),
    };
    let (_, session) = stream.get_ref();
    let protocol = session
        .alpn_protocol()
        .and_then(MeshProtocol::from_alpn)
        .ok_or(HandshakeError::NotOfTheMesh("a mesh protocol"))?;
    let expected = ExpectedIdentity::TrustDomain(trust_domain.clone());
    let peer = verified(session.peer_certificates(), &expected)?;
    Ok((stream, protocol, peer))
}

fn verified(
    certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    expected: &ExpectedIdentity,
) -> Result<Peer, HandshakeError> {
    let identity =
        peer_identity(certificates).map_err(|error| HandshakeError::Certificate(error.to_string()))?;
    if !expected.accepts(&identity.id) {
        return Err(HandshakeError::Identity { actual: identity.id, expected: expected.clone() });
    }
    let left = identity.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    if left.is_zero() {
        return Err(HandshakeError::Certificate("expired".into()));
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
