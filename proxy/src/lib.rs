//! The data plane of Outrigger: a proxy beside every workload.
//!
//! Modules stand on floors; each imports only from the floors above its own in this list.

pub mod config;
pub mod telemetry;

pub mod identity;
pub mod net;

pub mod resolve;

pub mod upstream;

pub mod http;

pub mod filters;
pub mod route;

pub mod inbound;
pub mod opaque;
pub mod outbound;
pub mod worker;
pub mod workload;

pub mod admin;
pub mod runtime;
