//! The rules in network namespaces of their own: real rules, real packets.
//!
//! Each test makes the namespaces it needs; they have no names and go with the process. An ordinary user's tests run
//! again inside a user namespace, where the proxy is exempted by packet mark only, since uids are not mapped there.

mod applying;
mod failures;
mod packets;
mod pod;
mod support;
mod verifying;
