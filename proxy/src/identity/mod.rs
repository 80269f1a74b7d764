//! Who we are and whom we talk to: rustls configs of the certificate in use, handshakes that check the
//! peer's SPIFFE ID, and the inbound authorization rules. Issuing and renewing are in the crate `ca`.

mod authorization;
mod handshake;
mod tls;

pub use authorization::{Authorization, Decision, Request};
pub use handshake::{HandshakeError, Peer, accept, connect, connect_server};
pub use tls::{MeshTls, Sessions, TlsError, server_tls};
