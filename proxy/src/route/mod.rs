//! The route table: which upstreams the requests of a host go to.

mod table;

pub use table::{CompiledRoute, RouteTable};
