//! The certificate authority of Outrigger, its client, and the identities it vouches for.
//!
//! What every part of the mesh shares lives at the top: the SPIFFE ID, certificates, trust bundles,
//! and the checks of a peer's certificate; how TLS errors are told, how durations and addresses are written, and how
//! often the same line is logged.
//! [`workload`] keeps a certificate fresh for a proxy; [`server`] is `outrigger ca`, with [`authority`] as
//! what it signs with and [`tokens`] as whom it trusts.

pub mod authority;
mod bundle;
mod certificate;
mod client;
pub mod duration;
pub mod file_watch;
pub mod host;
mod log_pace;
mod protocol;
pub mod server;
mod spiffe;
pub mod tls_fault;
pub mod tokens;
mod unix_time;
mod verify;
pub mod workload;

pub use bundle::{BundleError, TrustBundle};
pub use certificate::{Certificate, CertificateError};
pub use host::{HostPort, HostPortError};
pub use log_pace::LogPace;
pub use spiffe::{ExpectedIdentity, SpiffeError, SpiffeId};
pub use unix_time::{since_1970, unix_seconds};
pub use verify::{PeerIdentity, VerifyError, client_verifier, peer_identity, provider, server_verifier};

/// The namespace and service account that the CA's own certificate carries.
pub const CA_ACCOUNT: (&str, &str) = ("outrigger", "outrigger-ca");
/// The namespace and service account of the mesh's discovery server.
pub const DISCOVERY_ACCOUNT: (&str, &str) = ("outrigger", "outrigger-discovery");
