//! A check by opening a connection.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::probe::{ProbeError, Target};
use super::schedule::Outcome;
use crate::upstream::EndpointPool;

/// Time in which a peer's sidecar tells that the workload does not listen: it dials it over loopback, and its reset
/// takes a way through the network.
const REFUSED_WITHIN: Duration = Duration::from_millis(500);

/// Opens a connection.
#[derive(Debug)]
pub(super) struct Connect {
    /// Time that a connection of the mesh must stand.
    stands: Duration,
}

impl Connect {
    /// A check that takes no longer than `limit`.
    pub(super) fn within(limit: Duration) -> Self {
        Self { stands: REFUSED_WITHIN.min(limit / 2) }
    }

    pub(super) async fn ask(&self, pool: &Rc<EndpointPool>, target: &Target) -> Result<Outcome, ProbeError> {
        let (mut transport, peer, _place) = pool.opaque(&target.upstream).await?;
        if peer.is_some() {
            // It is the sidecar that accepted. What the workload says first, or its orderly end, shows that it listens,
            // and so does silence: a sidecar that can't reach it resets the connection.
            if let Ok(Err(error)) = timeout(self.stands, transport.read(&mut [0])).await {
                return Ok(Outcome::Failed(format!(
                    "the peer's sidecar ended the connection, as it does when its workload does not listen, or when \
                     the caller is not allowed in: {error}"
                )));
            }
        }
        // That it can't be ended in order says nothing about what is asked.
        let _ = transport.shutdown().await;
        Ok(Outcome::Passed("connected".into()))
    }
}
