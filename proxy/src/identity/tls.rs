//! The rustls configs made of the certificate in use; a new certificate means new configs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use outrigger_ca::tls_fault::words;
use outrigger_ca::workload::{Material, Status};
use outrigger_ca::{TrustBundle, client_verifier, provider, server_verifier};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::sync::watch;

use crate::net::{ALPN_H1, ALPN_H2, ALPN_TCP};

/// Tickets kept for one peer: a worker opens several connections to it at once, and each ticket is
/// used once.
const TICKETS: usize = 8;

/// Why no TLS config could be made.
#[derive(Debug, Error)]
pub enum TlsError {
    /// The certificate, key or bundle can't be used.
    #[error("can't use the certificate: {}", words(.0))]
    Certificate(#[from] rustls::Error),
    /// The trust bundle can't be used.
    #[error("can't use the trust bundle: {0}")]
    Bundle(#[from] outrigger_ca::VerifyError),
    /// A file can't be read.
    #[error("can't read {0}: {1}")]
    File(PathBuf, std::io::Error),
    /// A file is not what it should be.
    #[error("{0} holds no usable roots: {1}")]
    Roots(PathBuf, String),
}

/// The TLS configs of the certificate in use, shared by all workers.
#[derive(Debug, Default)]
pub struct MeshTls {
    current: ArcSwapOption<Generation>,
}

/// The configs made of one certificate and one trust bundle.
#[derive(Debug)]
struct Generation {
    material: Arc<Material>,
    server: Arc<ServerConfig>,
    client: ClientConfig,
}

/// The TLS sessions with one endpoint: its own ticket store, so that a ticket is never offered to a
/// peer of whom another identity is expected.
#[derive(Debug, Default)]
pub struct Sessions {
    made_of: Option<Arc<Generation>>,
    configs: Vec<(&'static [u8], Arc<ClientConfig>)>,
}

impl MeshTls {
    /// Configs follow `status` for as long as the task runs that this makes.
    pub async fn follow(&self, mut status: watch::Receiver<Arc<Status>>) {
        loop {
            let material = status.borrow_and_update().material.clone();
            if let Some(material) = material
                && self.current.load().as_ref().is_none_or(|now| !Arc::ptr_eq(&now.material, &material))
            {
                match Generation::new(material) {
                    Ok(generation) => self.current.store(Some(Arc::new(generation))),
                    Err(error) if self.is_certified() => {
                        tracing::error!("the certificate in use stays: {error}");
                    }
                    Err(error) => tracing::error!("there is no certificate to use: {error}"),
                }
            }
            if status.changed().await.is_err() {
                return;
            }
        }
    }

    /// When the certificate in use ends.
    pub fn expires(&self) -> Option<Instant> {
        let not_after = self.material()?.certificate.not_after();
        let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
        Some(Instant::now() + left)
    }

    /// Whether there is a certificate.
    pub fn is_certified(&self) -> bool {
        self.current.load().is_some()
    }

    /// What the inbound side presents and demands; `None` before there is a certificate.
    pub fn server(&self) -> Option<Arc<ServerConfig>> {
        self.current.load().as_ref().map(|generation| generation.server.clone())
    }

    /// The certificate in use.
    pub fn material(&self) -> Option<Arc<Material>> {
        self.current.load().as_ref().map(|generation| generation.material.clone())
    }

    /// A client config for connections that offer `alpn`, with a ticket store of its own each time.
    pub fn client(&self, alpn: &[u8]) -> Option<Arc<ClientConfig>> {
        self.current.load().as_ref().map(|generation| generation.client_config(alpn))
    }
}

impl Sessions {
    /// The config to connect with, or `None` before there is a certificate. A new certificate starts
    /// with a fresh ticket store: a resumed session would go on with the old one.
    pub fn config(&mut self, tls: &MeshTls, alpn: &'static [u8]) -> Option<Arc<ClientConfig>> {
        let current = tls.current.load();
        let generation = current.as_ref()?;
        if self.made_of.as_ref().is_none_or(|made_of| !Arc::ptr_eq(made_of, generation)) {
            self.made_of = Some(generation.clone());
            self.configs.clear();
        }
        if let Some((_, config)) = self.configs.iter().find(|(known, _)| *known == alpn) {
            return Some(config.clone());
        }
        let config = generation.client_config(alpn);
        self.configs.push((alpn, config.clone()));
        Some(config)
    }
}

impl Generation {
    fn new(material: Arc<Material>) -> Result<Self, TlsError> {
        let key = material.certificate.certified_key();
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(client_verifier(&material.bundle)?)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        server.alpn_protocols = vec![ALPN_H2.into(), ALPN_TCP.into(), ALPN_H1.into()];
        server.ticketer = aws_lc_rs::Ticketer::new()?;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(&material.bundle))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        Ok(Self { material, server: Arc::new(server), client })
    }

    fn client_config(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.alpn_protocols = vec![alpn.into()];
        config.resumption = Resumption::in_memory_sessions(TICKETS);
        Arc::new(config)
    }
}

/// The config to call a server outside the mesh, verified by the roots in `roots`.
///
/// # Errors
/// The file can't be read or holds no roots.
pub fn server_tls(roots: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let pem = std::fs::read(roots).map_err(|error| TlsError::File(roots.into(), error))?;
    let bundle =
        TrustBundle::from_pem(&pem).map_err(|error| TlsError::Roots(roots.into(), error.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(bundle.root_store())
        .with_no_client_auth();
    Ok(Arc::new(config))
}
