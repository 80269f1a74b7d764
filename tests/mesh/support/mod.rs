//! The test bed: pods as network namespaces, a test PKI, sidecars beside the pods, and peers whose
//! every byte a test can choose. Nothing here knows what a test wants to prove.

pub mod dns;
pub mod mesh;
pub mod outside;
pub mod pki;
pub mod pod;
pub mod process;
pub mod serve;
pub mod tls;
pub mod wait;
pub mod wire;

pub use mesh::{API, Mesh, Pair, web_config};
pub use wire::{Connection, Message, bytes};
