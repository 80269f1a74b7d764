//! The real server on loopback, asked with `dig` and `kdig`.

mod answers;
mod forwarding;
mod hostile;
mod secure;
mod support;
mod watching;
