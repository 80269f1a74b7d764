//! The real binary in network namespaces, between unmodified programs and hostile ones.
//!
//! Run by `tests/run`, which installs what is needed. Each test makes its own pods, so that tests
//! run side by side and a failed one leaves nothing behind.

#[allow(dead_code, reason = "the proxy's unit tests use more of it")]
mod stand_ins;
mod support;

mod admin;
mod authority;
mod authorization;
mod command_line;
mod configuration;
mod dashboard;
mod destination;
mod faults;
mod forgery;
mod grpc;
mod headers;
mod health;
mod http1;
mod http2;
mod lifecycle;
mod limits;
mod modes;
mod observation;
mod opaque;
mod pods;
mod protocols;
mod providers;
mod resilience;
mod rotation;
mod routes;
mod streams;
mod tracing;
mod verification;
