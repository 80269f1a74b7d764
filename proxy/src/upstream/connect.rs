//! Opening one connection to an endpoint, secured as the endpoint demands.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use outrigger_ca::tls_fault::Worded;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::endpoint::Verdict;
use super::pool::EndpointPool;
use super::{Security, Upstream};
use crate::identity::{self, HandshakeError, Peer};
use crate::net::{DialError, MeshProtocol};
use crate::telemetry::Direction;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// TCP did not connect.
    #[error("{0}")]
    Dial(#[from] DialError),
    /// TLS did not come about, or with somebody else.
    #[error("{address}: {error}")]
    Handshake {
        /// The endpoint.
        address: SocketAddr,
        /// What went wrong.
        error: HandshakeError,
    },
    /// The endpoint may not be called.
    #[error("{0} is not called: {1}")]
    Refused(SocketAddr, &'static str),
    /// A limit of the upstream's pool is reached.
    #[error("upstream {upstream} has its limit of {limit} {what}")]
    Full {
        /// The upstream.
        upstream: Arc<str>,
        /// Its limit.
        limit: usize,
        /// What of.
        what: &'static str,
    },
    /// The connection stood, and its protocol did not begin.
    #[error("{0}: {1}")]
    Protocol(SocketAddr, Arc<str>),
    /// In permissive mode: the peer turned out to have no sidecar, so plaintext is next.
    #[error("{0} has no sidecar")]
    NotMeshed(SocketAddr),
}

impl ConnectError {
    /// Whether it is ours to mend, and says nothing about the endpoint.
    pub fn is_ours(&self) -> bool {
        matches!(
            self,
            Self::Full { .. }
                | Self::Dial(DialError::Exhausted(..))
                | Self::Handshake { error: HandshakeError::NotCertified, .. }
        )
    }
}

/// A connection to an endpoint.
#[derive(Debug)]
pub enum Transport {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<Worded<TlsStream<TcpStream>>>),
}

/// A connection, who is at its other end, and its place in the upstream's count.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) transport: Transport,
    pub(super) peer: Option<Peer>,
    pub(super) counted: Counted,
}

/// One open connection in its upstream's count.
#[derive(Debug)]
pub(super) struct Counted(Arc<Upstream>);

impl Counted {
    /// Takes a place, if the limit leaves one.
    pub(super) fn take(upstream: &Arc<Upstream>) -> Option<Self> {
        use std::sync::atomic::Ordering::Relaxed;
        let limit = upstream.policy.max_connections;
        upstream
            .connections
            .fetch_update(Relaxed, Relaxed, |open| (open < limit).then_some(open + 1))
            .ok()
            .map(|_| Self(upstream.clone()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        self.0.queue.connection_closed();
    }
}

impl EndpointPool {
    /// Opens a connection in `counted`'s place. `protocol` is what a mesh connection shall carry.
    pub(super) async fn connect(
        &self,
        upstream: &Upstream,
        counted: Counted,
        protocol: MeshProtocol,
    ) -> Result<Connected, ConnectError> {
        let endpoint = &self.endpoint;
        let address = endpoint.address;
        let limit = upstream.policy.connect_timeout;
        let dial = self.settings.dialler.dial(address, limit);
        match &endpoint.security {
            Security::Refused(reason) => Err(ConnectError::Refused(address, reason)),
            Security::Plain => {
                Ok(Connected { transport: Transport::Plain(dial.await?), peer: None, counted })
            }
            Security::Try(_) if endpoint.verdict(Instant::now()) == Verdict::Plain => {
                Ok(Connected { transport: Transport::Plain(dial.await?), peer: None, counted })
            }
            Security::Server { config, name } => {
                let stream = dial.await?;
                let stream = identity::connect_server(config.clone(), name.clone(), stream, limit).await;
                let stream = self.counted_handshake(stream)?;
                Ok(Connected { transport: Transport::Tls(Box::new(Worded(stream))), peer: None, counted })
            }
            Security::Mesh(expected) | Security::Try(expected) => {
                let config = self.sessions.borrow_mut().config(&self.settings.tls, protocol.alpn());
                let Some(config) = config else {
                    return self.counted_handshake(Err(HandshakeError::NotCertified));
                };
                let stream = dial.await?;
                let name = endpoint.server_name.clone();
                let made = identity::connect(config, name, stream, protocol, expected, limit).await;
                let trying = matches!(endpoint.security, Security::Try(_));
                if trying {
                    endpoint.learn(&made);
                    if endpoint.verdict(Instant::now()) == Verdict::Plain {
                        return Err(ConnectError::NotMeshed(address));
                    }
                }
                let (stream, mut peer) = self.counted_handshake(made)?;
                // The peer ends the connection with our certificate: we stop using it before that.
                if let Some(own) = self.settings.tls.expires() {
                    peer.expires = peer.expires.min(own);
                }
                Ok(Connected {
                    transport: Transport::Tls(Box::new(Worded(stream))),
                    peer: Some(peer),
                    counted,
                })
            }
        }
    }

    fn counted_handshake<T>(&self, made: Result<T, HandshakeError>) -> Result<T, ConnectError> {
        let result = made.as_ref().map(|_| ()).map_err(HandshakeError::reason);
        self.settings.recorder.tls_handshake(Direction::Outbound, result);
        made.map_err(|error| ConnectError::Handshake { address: self.endpoint.address, error })
    }
}

impl Transport {
    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.0.get_ref().0,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
