//! Where discovery is, and a connection to it that has proven whom it leads to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_ca::host::normal;
use outrigger_ca::tls_fault::{Worded, handshake};
use outrigger_ca::{ExpectedIdentity, HostPort, peer_identity};
use rustls::ProtocolVersion;
use rustls::client::Resumption;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::outcome::Miss;
use super::super::plain::Plain;
use super::super::settings::{MeshServer, ResolveError};
use crate::net::Dialler;

/// The protocol name of DNS over TLS (RFC 7858, IANA).
const ALPN: &[u8] = b"dot";
/// TCP and TLS together, for one address (design, section 8).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Addresses of the server that are tried in a row.
const MOST_ADDRESSES: usize = 4;
/// No connection outlives this, so that a certificate or a root that was taken out of use is not relied on for long.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 60);

/// Why discovery could not be asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum MeshError {
    #[error("the mesh's discovery can't be asked yet: this proxy has no certificate")]
    NoCertificate,
    #[error("the mesh's discovery at {server} can't be found: {reason}")]
    Address { server: String, reason: String },
    #[error("the mesh's discovery at {address} can't be reached: {reason}")]
    Connect { address: SocketAddr, reason: String },
    #[error("what answers at {address} is not the mesh's discovery: {reason}")]
    Identity { address: SocketAddr, reason: String },
    #[error("the connection to the mesh's discovery ended: {0}")]
    Ended(String),
    #[error("the mesh's discovery did not answer within {0:?}")]
    Timeout(Duration),
    #[error("too many questions wait for the mesh's discovery")]
    Busy,
}

/// An authenticated connection.
pub(super) struct Connection {
    pub stream: Worded<TlsStream<TcpStream>>,
    pub address: SocketAddr,
    /// When it must not be used any longer: before the server's certificate ends.
    pub ends: Instant,
}

/// How discovery is reached.
pub(crate) struct Server {
    settings: MeshServer,
    host: String,
    port: u16,
    mark: Option<u32>,
    plain: Arc<Plain>,
}

impl Server {
    pub(crate) fn new(
        settings: MeshServer,
        mark: Option<u32>,
        plain: Arc<Plain>,
    ) -> Result<Self, ResolveError> {
        let address: HostPort =
            settings.address.parse().map_err(|_| ResolveError::MeshServer(settings.address.clone()))?;
        Ok(Self { settings, host: normal(address.host()), port: address.port(), mark, plain })
    }

    pub(super) fn expected(&self) -> &ExpectedIdentity {
        &self.settings.expected
    }

    /// Connects to the first of the server's addresses that works, with the certificate of this moment.
    pub(super) async fn connect(&self) -> Result<Connection, MeshError> {
        let config = (self.settings.tls)().ok_or(MeshError::NoCertificate)?;
        let mut config = rustls::ClientConfig::clone(&config);
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection proves the server anew.
        config.resumption = Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));

        let mut last = MeshError::Address {
            server: self.settings.address.clone(),
            reason: "its name has no address".to_owned(),
        };
        for ip in self.addresses().await? {
            let address = SocketAddr::new(ip, self.port);
            let failed = |reason: String| MeshError::Connect { address, reason };
            last = match timeout(CONNECT_TIMEOUT, self.open(&connector, address)).await {
                Ok(Ok(stream)) => match self.check(address, &stream) {
                    Ok(ends) => {
                        return Ok(Connection { stream: Worded(stream), address, ends });
                    }
                    Err(error) => error,
                },
                Ok(Err(reason)) => failed(reason),
                Err(_) => failed(format!("no connection within {CONNECT_TIMEOUT:?}")),
            };
        }
        Err(last)
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, MeshError> {
        if let Ok(ip) = self.host.parse() {
            return Ok(vec![ip]);
        }
        let failed = |reason: String| MeshError::Address { server: self.settings.address.clone(), reason };
        match self.plain.server_addresses(&self.host).await {
            Ok(mut addresses) => {
                addresses.truncate(MOST_ADDRESSES);
                Ok(addresses)
            }
            Err(Miss::Absent { .. }) => Err(failed(format!("{} does not exist", self.host))),
            Err(Miss::Failed(reason)) => Err(failed(reason)),
        }
    }

    async fn open(
        &self,
        connector: &TlsConnector,
        address: SocketAddr,
    ) -> Result<TlsStream<TcpStream>, String> {
        let name = match self.host.parse::<IpAddr>() {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?,
        };
        let dialler = Dialler::to_peers(self.mark);
        let stream = dialler.dial(address, CONNECT_TIMEOUT).await.map_err(|error| error.to_string())?;
        handshake(connector.connect(name, stream)).await.map_err(|fault| fault.to_string())
    }

    /// The chain was verified in the handshake; whose it is, is checked here.
    fn check(&self, address: SocketAddr, stream: &TlsStream<TcpStream>) -> Result<Instant, MeshError> {
        let refused = |reason: String| MeshError::Identity { address, reason };
        let (_, tls) = stream.get_ref();
        if tls.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Err(refused("it does not speak TLS 1.3".to_owned()));
        }
        if tls.alpn_protocol() != Some(ALPN) {
            return Err(refused("it does not speak DNS over TLS (ALPN dot)".to_owned()));
        }
        let peer = peer_identity(tls.peer_certificates())
            .map_err(|error| refused(format!("of its certificate, {error}")))?;
        if !self.settings.expected.accepts(&peer.id) {
            return Err(refused(format!(
                "its certificate names {}, expected is {}",
                peer.id, self.settings.expected
            )));
        }
        let left = peer
            .not_after
            .duration_since(SystemTime::now())
            .map_err(|_| refused("its certificate has expired".to_owned()))?;
        // A tenth of what is left is kept for questions under way.
        Ok(Instant::now() + (left - left / 10).min(LONGEST_LIFE))
    }
}
