//! Stand-ins for registries, written from their documented APIs.
//!
//! Each refuses what the real one refuses and what a client has no reason to send, and can be told to fail, stall and
//! lie. They know nothing of sockets, so that the proxy's own unit tests use them too, under a paused clock; `pod` serves
//! them to real sidecars.

pub mod consul;
pub mod eureka;
pub mod http;
pub mod kubernetes;
pub mod pod;
