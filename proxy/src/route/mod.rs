//! The route table: what is done with which requests.
//!
//! Of several routes that match a request the most specific wins, as the Kubernetes Gateway API says of its
//! HTTPRoutes, in this order:
//!
//! 1. by host: the name itself, then `*.` and the longest domain, then no host;
//! 2. by path: exact, then regular expressions (all alike, whatever their length), then the longest prefix. The Gateway
//!    API leaves the place of regular expressions open; Envoy Gateway puts them there;
//! 3. one that names methods;
//! 4. by the number of header fields, the most first;
//! 5. by the number of query parameters, the most first;
//! 6. the first in the file.
//!
//! It is one order over all alternatives: where the most specific host's routes don't match a request, those of a
//! less specific one may.

#[cfg(test)]
mod bench;
mod compiled;
mod conditions;
mod explain;
mod paths;
mod regexes;
mod table;

pub use compiled::{CompiledRoute, Target};
pub use explain::{Explained, PassedOver, explain};
pub use table::{Asked, Matched, RouteTable};
