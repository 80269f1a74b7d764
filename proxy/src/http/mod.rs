//! One hop of one HTTP request: serving it, header hygiene, sending it on, and the responses that the
//! proxy makes itself. Which upstream it goes to is decided further up.

mod affinity;
mod call;
mod deadline;
mod fallback;
mod forward;
mod head;
mod headers;
mod hop;
mod http1_io;
mod local_response;
mod marks;
mod record;
mod replay;
pub(crate) mod response_cache;
mod serve;
mod tunnel;
mod version;

pub use affinity::{Affinity, source_key};
pub use call::{Again, Call, Failed, Why, call};
pub use deadline::{Deadline, DeadlinePassed, Passed, TimeLimit};
pub use fallback::{Failure, Fallback, FixedResponse};
pub use forward::Wire;
pub use head::refuse;
pub use headers::{
    CLIENT_ID, ORIGINAL_VERSION, host_of, is_grpc, to_origin_form, version_from_mesh, version_to_mesh,
};
pub use hop::{HopError, PumpGuard, send_multiplexed};
pub use local_response::{LocalResponse, ProxyError};
pub use marks::{mark_exhausted, mark_retries_exhausted, mark_unprocessed};
pub use record::{Exchange, Recording, RequestProgress};
pub use replay::Replay;
pub use response_cache::ResponseCache;
#[cfg(test)]
pub(crate) use serve::serve_stream;
pub use serve::{Handler, Limits, Served, serve_http1, serve_http2};
pub use tunnel::{Interim, wants_own_connection};
pub use version::{fit_response, speak};
