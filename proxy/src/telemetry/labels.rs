//! What requests and connections are told apart by.

use std::sync::Arc;

use outrigger_ca::SpiffeId;

/// Which pipeline: label `direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// From peers to the workload.
    Inbound,
    /// From the workload to peers.
    Outbound,
}

impl Direction {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What protects the connection to the peer (not the one to the workload beside): label `tls`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tls {
    /// Mutual TLS of the mesh: `mesh`.
    Mesh,
    /// Nothing of ours: `none`.
    Plain,
    /// Ordinary TLS to a server outside the mesh: `server`.
    Server,
}

impl Tls {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Plain => "none",
            Self::Server => "server",
        }
    }
}

/// The label values of one series of traffic. A family shows those that it has; the others are at rest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Labels {
    pub direction: Direction,
    pub tls: Tls,
    pub route: Arc<str>,
    pub upstream: Arc<str>,
    pub code: Option<u16>,
    pub grpc_status: Option<u16>,
    pub peer: Option<SpiffeId>,
}

impl Labels {
    /// The series that takes in what would be one series too many.
    pub fn other(&self) -> Self {
        Self {
            direction: self.direction,
            tls: self.tls,
            route: "other".into(),
            upstream: "other".into(),
            code: None,
            grpc_status: None,
            peer: None,
        }
    }

    /// The peer as a label's value: empty if it proved no identity.
    pub fn peer(&self) -> &str {
        self.peer.as_ref().map_or("", SpiffeId::as_str)
    }
}
