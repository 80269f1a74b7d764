//! Sockets: listening, original destinations, dialling, reading first bytes, copying bytes, and the
//! body that streams through. What is spoken over them is decided further up.

mod address;
mod body;
mod client_hello;
mod copy;
mod detect;
mod dial;
mod fields;
mod forgery;
mod listen;
mod local;
mod prefixed;
mod read_rest;
mod standstill;
mod write_through;

pub use address::{ClientAddress, OriginalDestination};
pub use body::{Body, BodyEnd, BodyError, BodySource, BodyWatch};
pub use client_hello::{ALPN_H1, ALPN_H2, ALPN_TCP, MeshProtocol};
pub use copy::{Copied, copy_both_ways};
pub use detect::{Detected, detect, readable, resume_detection, would_be_http};
pub use dial::{DialError, Dialler};
pub use fields::{
    ORIGINAL_VERSION, has_unknown_coding, strip_hop_by_hop, strip_mesh_headers, version_to_mesh,
};
pub use forgery::{Forgery, Guarded};
pub use listen::{HandedIn, ListenError, Role, bind_listeners, bind_listeners_at, handed_in_sockets};
pub use local::LocalAddresses;
pub use prefixed::Prefixed;
pub use read_rest::read_rest;
