//! A mesh on one machine, to look at and play with: `outrigger demo`.
//!
//! Five pods (`web`, three of `api`, `store`) and an entry, each a network namespace with real redirect rules and a
//! real sidecar, and one more for the control plane (CA and discovery). Nothing of it has a name on the host: the
//! namespaces live as long as the processes in them, so that even `kill -9` leaves nothing behind.
//!
//! [`start`] runs on the host and enters the namespaces, [`supervise`] runs inside and starts everything else, and
//! [`service`] holds the small programs that play the workloads. The mesh itself is the other crates' business: the
//! demo only runs the binary's subcommands, as an operator would.

mod commands;
mod error;
mod figures;
mod hand_over;
mod host;
mod mesh;
mod namespace;
mod network;
mod orders;
mod plan;
mod private_files;
mod process;
mod screen;
pub mod service;
mod supervisor;
mod tools;
mod welcome;

pub use error::DemoError;
pub use hand_over::hand_over;
pub use host::{Settings, start};
pub use supervisor::supervise;
