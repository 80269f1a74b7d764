//! The discovery server of Outrigger: answers DNS queries for the mesh's services.
//!
//! [`records`] is what it tells, and its readers' half too. [`services`] is what it knows, [`file`] where that comes
//! from, and [`Directory`] holds what is in force. `index`, `select` and `answer` make answers out of it, [`server`] carries
//! them over UDP, TCP and TLS, and `forward` passes on what others know.

mod answer;
mod directory;
pub mod file;
mod forward;
mod index;
mod local;
pub mod records;
mod select;
pub mod server;
pub mod services;
#[cfg(test)]
mod testing;

pub use directory::Directory;
pub use index::{ClusterDomain, ClusterDomainError, TTL};
pub use local::is_local;
pub use select::MOST_ENDPOINTS;
