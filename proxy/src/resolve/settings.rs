//! What a resolver is told at its start, and why it may refuse to start.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use outrigger_ca::ExpectedIdentity;

/// What a [`Resolver`](super::Resolver) needs to know.
#[derive(Clone)]
pub struct ResolveSettings {
    /// Ordinary DNS servers; empty: those of `/etc/resolv.conf`, read once at the start.
    pub servers: Vec<SocketAddr>,
    /// The hosts file; watched, and absent means empty.
    pub hosts_file: PathBuf,
    /// Search domains; `None`: those of `/etc/resolv.conf`.
    pub search: Option<Vec<String>>,
    /// Dots from which on a name is tried as it is before the search domains; `None`: as `/etc/resolv.conf` says, else 1.
    pub ndots: Option<usize>,
    /// The domain under which `svc` holds the services that the mesh's discovery knows, as a rule `cluster.local`.
    pub cluster_domain: String,
    /// The addresses of this machine or pod, asked for anew at each lookup.
    pub own_addresses: Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>,
    /// The mesh's discovery; `None`: ordinary DNS only, and nothing is known about meshing.
    pub mesh: Option<MeshServer>,
    /// Packet mark (`SO_MARK`) of every socket that is opened here, where the redirect rules exempt by mark.
    pub mark: Option<u32>,
}

/// The mesh's discovery server, which is asked over DNS over TLS and never otherwise.
#[derive(Clone)]
pub struct MeshServer {
    /// `host:port`; the host is found by the hosts file and ordinary DNS, or is an address.
    pub address: String,
    /// The TLS configuration of the moment, asked for at each connection; `None`: there is no certificate yet.
    /// The protocol name (`dot`) is set on a copy.
    pub tls: Arc<dyn Fn() -> Option<Arc<rustls::ClientConfig>> + Send + Sync>,
    /// Whom the server's certificate must name. Its trust domain is that of the identities it tells about.
    pub expected: ExpectedIdentity,
}

/// Why a resolver could not start.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// There is neither a usable resolv.conf nor a configured server.
    #[error(
        "/etc/resolv.conf can't be used ({0}): correct it, or name DNS servers in the config (`dns.servers`)"
    )]
    ResolvConf(String),
    /// A search domain or the cluster domain is not a DNS name.
    #[error("the domain '{0}' is not a DNS name: correct it in the config or in /etc/resolv.conf")]
    Domain(String),
    /// The address of the mesh's discovery has no port or no host.
    #[error(
        "the address '{0}' of the mesh's discovery is not host:port: correct `dns.meshServer` in the config"
    )]
    MeshServer(String),
    /// The ordinary DNS client refused its settings.
    #[error("the DNS client could not start: {0}")]
    Client(String),
    /// The hosts file's directory can't be watched.
    #[error("changes of the hosts file can't be watched: {0}")]
    HostsFile(#[from] outrigger_ca::file_watch::WatchError),
    /// Called outside of a runtime, so that nothing could be refreshed in the background.
    #[error("a resolver must be made on the control thread's runtime")]
    NoRuntime,
}
