//! What can be asked, and what comes back.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_ca::SpiffeId;

/// What is followed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Target {
    /// A host as a client writes it, short or full, and the port that is dialled.
    Name { host: Arc<str>, port: u16 },
    /// A full SRV name, such as `_8080._tcp.api.shop.svc.cluster.local`.
    Srv { name: Arc<str> },
    /// Whose address is it? Only the mesh's discovery is asked (TXT at the reverse name); without one the answer is
    /// [`LookupError::NotFound`].
    Address(SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Srv { name } => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What is known about a target at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last good answer; it stays while lookups fail, and for 30 s after the first definite "no such name".
    pub answer: Option<Arc<Answer>>,
    /// Why the last lookup was not a full success; `None` after a good one. It may stand beside a fresh `answer` that
    /// ordinary DNS gave while the mesh's discovery failed.
    pub error: Option<Arc<LookupError>>,
    /// When `answer` was last confirmed; without an answer, when the last lookup ended.
    pub refreshed: Instant,
    /// Whose the answer's addresses are; `None` where that was not asked: the answer is discovery's own, or there is no
    /// discovery.
    pub owners: Option<Arc<Owners>>,
}

impl Snapshot {
    /// Before anybody was asked.
    pub(super) fn unknown(now: Instant) -> Self {
        Self { answer: None, error: None, refreshed: now, owners: None }
    }

    /// How long ago the answer was last confirmed; `None` without one, and for what the config itself states, which
    /// doesn't age.
    pub fn age(&self, now: Instant) -> Option<Duration> {
        let answer = self.answer.as_ref()?;
        (answer.source != Source::Static).then(|| now.saturating_duration_since(self.refreshed))
    }

    /// Whether nobody has ever said what was asked for, and somebody might now.
    pub(super) fn is_unanswered(&self) -> bool {
        self.answer.is_none() && matches!(self.error.as_deref(), Some(LookupError::Failed { .. }))
    }

    /// Whether nobody could say whose some of its addresses are.
    pub(super) fn has_unknown_owner(&self) -> bool {
        let mut owners = self.owners.iter().flat_map(|owners| owners.values());
        owners.any(|owner| matches!(owner, Owner::Unknown(_)))
    }

    /// Why something is missing: the last lookup's error, else that of an address whose owner nobody could say.
    pub fn trouble(&self) -> Option<&LookupError> {
        let of_owners = || {
            self.owners.iter().flat_map(|owners| owners.values()).find_map(|owner| match owner {
                Owner::Unknown(error) => Some(&**error),
                Owner::Nobody | Owner::Known(_) => None,
            })
        };
        self.error.as_deref().or_else(of_owners)
    }
}

/// Whose address it is, as authenticated discovery says.
#[derive(Clone, PartialEq, Debug)]
pub enum Owner {
    /// Nobody's of the mesh.
    Nobody,
    /// What [`Target::Address`] answers.
    Known(Arc<Answer>),
    /// Discovery could not say, and had not said before.
    Unknown(Arc<LookupError>),
}

/// The owners of an answer's endpoints, and of its VIPs at port 0. An address that is not in it was not asked for: a name
/// with very many is known in part only.
pub type Owners = BTreeMap<SocketAddr, Owner>;

/// A good answer. Endpoints are sorted by address, each address once.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The full name that answered, lower case, without a trailing dot. For [`Target::Address`]: the service's name when
    /// the address is its VIP, else the address itself. Of a provider that knows no such names: what it was asked for,
    /// as [`Source::names_services`] tells.
    pub name: Arc<str>,
    /// May be empty: the name exists and has nothing behind it that may be dialled.
    pub endpoints: Vec<ResolvedEndpoint>,
    /// The addresses under which the name itself is dialled, where they are not its endpoints.
    pub vips: Vec<IpAddr>,
    /// Addresses that were in the answer and are not believed: loopback, link-local, multicast, unspecified, this
    /// machine's own. (Its own is an endpoint where authenticated discovery names no other.)
    pub dropped: Vec<IpAddr>,
    /// Who said so.
    pub source: Source,
    /// What the service's owner declared; only from authenticated discovery.
    pub service: Option<ServiceInfo>,
    /// How long it holds (TTL, clamped to 1-60 s).
    pub valid_for: Duration,
}

/// One endpoint of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedEndpoint {
    pub address: SocketAddr,
    /// Relative share; 0 for none.
    pub weight: u32,
    /// Lower ones are used first: an SRV record's, or what an operator wrote.
    pub priority: u32,
    /// Availability zone.
    pub zone: Option<Arc<str>>,
    /// By which a route's subset chooses.
    pub tags: Arc<BTreeMap<String, String>>,
    /// Whether there is a sidecar on this port. `Some` only from authenticated discovery.
    pub mesh: Option<bool>,
    /// Its pod has a sidecar on other ports, by authenticated discovery, which says nothing of this port.
    pub beside_sidecar: bool,
    /// The account behind it, named by authenticated discovery.
    pub identity: Option<SpiffeId>,
    /// Declared as opaque bytes by authenticated discovery.
    pub opaque: bool,
}

impl ResolvedEndpoint {
    /// An endpoint of which only the address is known.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            address,
            weight: 1,
            priority: 0,
            zone: None,
            tags: Arc::default(),
            mesh: None,
            beside_sidecar: false,
            identity: None,
            opaque: false,
        }
    }
}

/// What a service's owner declared for all callers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceInfo {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// Request timeout; `None`: not stated.
    pub timeout: Option<Duration>,
    /// Number of retries; `None`: not stated.
    pub retries: Option<u32>,
}

/// Where an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    Hosts,
    Mesh,
    Dns,
    Static,
    File,
    Consul,
    Eureka,
    Kubernetes,
}

impl Source {
    /// A word for metrics and the admin port.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Mesh => "mesh",
            Self::Dns => "dns",
            Self::Static => "static",
            Self::File => "file",
            Self::Consul => "consul",
            Self::Eureka => "eureka",
            Self::Kubernetes => "kubernetes",
        }
    }

    /// Whether the name of its answers is one that a client may use and a peer's certificate is judged by.
    pub fn names_services(self) -> bool {
        match self {
            Self::Hosts | Self::Mesh | Self::Dns | Self::Kubernetes => true,
            Self::Static | Self::File | Self::Consul | Self::Eureka => false,
        }
    }
}

/// Why there is no (new) answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LookupError {
    /// Whoever was asked said that it does not exist. A failure never turns into this.
    #[error("{0} does not exist")]
    NotFound(Arc<str>),
    /// Nobody could say.
    #[error("looking up {target} failed: {reason}")]
    Failed {
        target: Arc<str>,
        reason: String,
        /// Of the full names that a short one may stand for, those that nobody has denied: not the mesh's discovery those
        /// that it would know, nor ordinary DNS any of them.
        undenied: Vec<String>,
    },
}

impl LookupError {
    /// The full names that the host may stand for all the same.
    pub fn undenied(&self) -> &[String] {
        match self {
            Self::NotFound(_) => &[],
            Self::Failed { undenied, .. } => undenied,
        }
    }
}
