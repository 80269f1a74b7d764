//! DNS over TLS (RFC 7858), with mesh certificates on both sides.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_ca::tls_fault::{Worded, handshake, words};
use outrigger_ca::workload::{Material, Status};
use outrigger_ca::{
    DISCOVERY_ACCOUNT, ExpectedIdentity, VerifyError, client_verifier, peer_identity, provider,
};
use rustls::ServerConfig;
use rustls::sign::SingleCertAndKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::stream::{self, Pace};
use super::{Shared, accept, stop, stop_of};

/// The name of DNS over TLS in ALPN (RFC 7858, IANA's registry).
const ALPN: &[u8] = b"dot";
/// A client that connects and says nothing is gone after this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Until a client has proven who it is it shares this much room with everybody else who has not.
const MOST_HANDSHAKES: usize = 512;
/// Each sidecar keeps one connection. At some 40 KiB each this bounds memory to 320 MiB.
const MOST_CONNECTIONS: usize = 8192;
/// A sidecar asks again for what it uses at least once a minute.
const PACE: Pace = Pace { idle: Duration::from_secs(180) };

/// Why the material gives no TLS.
#[derive(Debug, thiserror::Error)]
enum TlsError {
    #[error(transparent)]
    Bundle(#[from] VerifyError),
    #[error("TLS can't be set up: {}", words(.0))]
    Tls(#[from] rustls::Error),
}

/// The server's side of TLS, with the newest certificate for each new connection.
pub(super) struct Secure {
    clients: ExpectedIdentity,
    certificate: watch::Receiver<Arc<Status>>,
    current: Option<(Arc<Material>, TlsAcceptor)>,
}

impl Secure {
    pub(super) fn new(trust_domain: &str, certificate: watch::Receiver<Arc<Status>>) -> Self {
        let clients = ExpectedIdentity::TrustDomain(trust_domain.into());
        Self { clients, certificate, current: None }
    }

    /// Serves until stopped.
    pub(super) async fn serve(
        mut self,
        listener: TcpListener,
        shared: Arc<Shared>,
        mut stopped: watch::Receiver<bool>,
    ) {
        let first = self.certificate.clone();
        tokio::select! {
            () = has_material(first) => {}
            () = stop(&mut stopped) => return,
        }
        let handshakes = Arc::new(Semaphore::new(MOST_HANDSHAKES));
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        let mut tasks = JoinSet::new();
        loop {
            let (stream, peer, handshake) = tokio::select! {
                accepted = accept(&listener, &handshakes) => accepted,
                // Finished ones are taken out as they come, so that the set does not grow.
                Some(_) = tasks.join_next() => continue,
                () = stop(&mut stopped) => break,
            };
            let Some(acceptor) = self.acceptor() else {
                continue;
            };
            let (clients, connections) = (self.clients.clone(), connections.clone());
            let (shared, stopped) = (shared.clone(), stopped.clone());
            tasks.spawn(async move {
                let Some((stream, left)) = shake_hands(stream, peer, &acceptor, &clients).await else {
                    return;
                };
                let Ok(_connection) = connections.try_acquire_owned() else {
                    return tracing::warn!(%peer, "there are {MOST_CONNECTIONS} connections already: closed");
                };
                drop(handshake);
                let end = async {
                    tokio::select! {
                        // A connection ends before the peer's certificate does.
                        () = sleep(left) => {}
                        () = stop_of(stopped) => {}
                    }
                };
                stream::serve(Worded(stream), peer, &shared, PACE, end).await;
            });
        }
        while tasks.join_next().await.is_some() {}
    }

    /// What to accept with; the last one that worked when the newest does not.
    fn acceptor(&mut self) -> Option<TlsAcceptor> {
        let status = self.certificate.borrow().clone();
        if let Some(material) = &status.material
            && !self.current.as_ref().is_some_and(|(current, _)| Arc::ptr_eq(current, material))
        {
            match server_config(material) {
                Ok(config) => {
                    warn_of_another_identity(material);
                    self.current = Some((material.clone(), TlsAcceptor::from(Arc::new(config))));
                }
                Err(error) => tracing::error!(%error, "the new certificate is not used"),
            }
        }
        self.current.as_ref().map(|(_, acceptor)| acceptor.clone())
    }
}

async fn has_material(mut certificate: watch::Receiver<Arc<Status>>) {
    if certificate.wait_for(|status| status.material.is_some()).await.is_err() {
        // Nobody will ever give one.
        std::future::pending::<()>().await;
    }
}

fn server_config(material: &Material) -> Result<ServerConfig, TlsError> {
    let key = SingleCertAndKey::from(material.certificate.certified_key());
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(client_verifier(&material.bundle)?)
        .with_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Sidecars keep their connection, so there is little to resume, and each connection meets the roots of its time.
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn warn_of_another_identity(material: &Material) {
    let id = material.certificate.id();
    let (namespace, account) = DISCOVERY_ACCOUNT;
    if (id.namespace(), id.service_account()) != (Some(namespace), Some(account)) {
        tracing::error!(%id, "sidecars will refuse this server: they expect ns/{namespace}/sa/{account}");
    }
}

/// The connection of a client of the mesh, and how long its certificate is still good.
async fn shake_hands(
    stream: TcpStream,
    peer: IpAddr,
    acceptor: &TlsAcceptor,
    clients: &ExpectedIdentity,
) -> Option<(TlsStream<TcpStream>, Duration)> {
    let stream = match timeout(HANDSHAKE_TIMEOUT, handshake(acceptor.accept(stream))).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "a TLS handshake failed");
            return None;
        }
        Err(_) => {
            tracing::debug!(%peer, "a TLS handshake took too long");
            return None;
        }
    };
    let identity = match peer_identity(stream.get_ref().1.peer_certificates()) {
        Ok(identity) => identity,
        Err(error) => {
            tracing::warn!(%peer, %error, "a client's certificate is refused");
            return None;
        }
    };
    if !clients.accepts(&identity.id) {
        tracing::warn!(%peer, id = %identity.id, "a client is refused: its trust domain is another one");
        return None;
    }
    let left = identity.not_after.duration_since(SystemTime::now()).ok()?;
    Some((stream, left))
}
