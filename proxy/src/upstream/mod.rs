//! Upstreams: their endpoints, how one is chosen, and the connections to it.
//!
//! What all workers must agree on lives in atomics on [`Upstream`] and [`Endpoint`]; connections
//! belong to one worker and live in its [`Pools`]. The tries of a request stand in `http`.

mod admission;
mod balance;
mod breaker;
mod concurrency;
mod connect;
mod counted;
mod directory;
mod endpoint;
mod health;
mod http1;
mod load;
mod multiplexed;
mod outlier;
mod owned;
mod policy;
mod pool;
mod queue;
mod recent;
mod recipe;
mod retry_budget;
mod retry_policy;
mod security;
mod set;
mod standing;

pub use admission::{Admission, TurnedAway};
pub use balance::{Choice, Subset, hash_key};
pub use breaker::{Breaker, BreakerState, Change, Open, Outcome, Pass, Transitions, Why, log_change};
pub use concurrency::{ConcurrencyLimit, Full, Permit};
pub use connect::{ConnectError, Transport};
pub use counted::CloseReason;
pub use directory::{Destination, DestinationError, Directory};
pub use endpoint::{Endpoint, EndpointId, Verdict};
pub use health::{Checker, HealthChecks};
pub use http1::{HeaderLimits, Http1Lease};
pub use load::InFlight;
pub use multiplexed::StreamLease;
pub(crate) use multiplexed::{CONNECTION_WINDOW, FRAME_SIZE, SEND_BUFFER, STREAM_WINDOW};
pub use outlier::Attempt;
pub use policy::Policy;
pub(crate) use pool::SWEEP;
pub use pool::{ConnectionPlace, EndpointPool, Pools, PoolsSettings};
pub use retry_budget::RetryBudget;
pub use retry_policy::{AfterTry, PeerMark, RetryPolicy, Tried};
pub use security::{Security, SecurityRules};
pub use set::{EndpointSet, Member, Upstream};
pub use standing::{Described, EndpointState, Health, Standing, States};
