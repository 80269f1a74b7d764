//! Names and addresses to endpoint sets, kept fresh in the background.
//!
//! Here live the hosts file, the client of the mesh's discovery (DNS over TLS), ordinary DNS, the other providers (files,
//! Consul, Eureka, Kubernetes), and the rules that say which of their answers are believed. What is done with the endpoints is decided further down, in `upstream`.

mod answer;
mod believe;
mod dns;
mod follow;
mod hosts;
mod lookup;
mod mesh;
mod outcome;
mod owners;
mod plain;
mod providers;
mod search;
mod settings;
mod state;
#[cfg(test)]
mod tests;

pub use answer::{
    Answer, LookupError, Owner, Owners, ResolvedEndpoint, ServiceInfo, Snapshot, Source, Target,
};
pub use follow::{Followed, Resolver};
pub use providers::ProviderSettings;
pub use settings::{MeshServer, ResolveError, ResolveSettings};
