//! The redirect rules that bring a pod's TCP traffic to the proxy and let the proxy's own traffic pass.
//!
//! [`render`] says which rules a [`Settings`] means, and is pure. [`apply`] makes the pod's nat table say
//! the same in one transaction per address family, [`clean`] takes everything away again, and [`verify`]
//! sends real connections and looks where they arrive. UDP, and with it QUIC, is not intercepted.
//!
//! All of it acts on the network namespace of the calling thread.

mod apply;
mod cidr;
mod error;
mod installed;
mod loopback;
mod render;
mod settings;
mod tools;
pub mod verify;

pub use apply::{Applied, Change, Cleaned, Ipv6, apply, clean};
pub use cidr::{Cidr, CidrError};
pub use error::{Attempt, Cause, Error};
pub use loopback::LoopbackError;
pub use render::{INBOUND_CHAIN, OUTBOUND_CHAIN, render};
pub use settings::{Family, Owner, Settings, SettingsError};
pub use tools::Tools;
