//! A worker's connections: one pool an endpoint, found by the endpoint's id.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::connect::{ConnectError, Connected, Transport};
use super::counted::{CloseReason, Counted};
use super::http1::Http1Idle;
use super::multiplexed::Multiplexed;
use super::queue::{GivingWay, OwnQueue};
use super::{Endpoint, EndpointId, Security, Upstream, Verdict};
use crate::identity::{MeshTls, Peer, Sessions};
use crate::net::{Dialler, MeshProtocol};
use crate::telemetry::Recorder;

/// How often unused connections are looked for.
pub(crate) const SWEEP: Duration = Duration::from_secs(5);
/// A pool without connections is forgotten after this, with its TLS tickets.
const FORGET: Duration = Duration::from_secs(300);

/// How long an unused connection takes to close, and a worker that is busy to come to it. Those in use may be so for
/// ever: who needs one to itself is told at once.
const GIVEN_WAY_WITHIN: Duration = Duration::from_millis(100);

/// What all pools of one side of a worker share.
pub struct PoolsSettings {
    /// Opens connections.
    pub dialler: Dialler,
    /// The certificate in use.
    pub tls: Arc<MeshTls>,
    /// Counts handshakes.
    pub recorder: Rc<Recorder>,
}

/// The connections of one side of a worker.
pub struct Pools {
    settings: Rc<PoolsSettings>,
    pools: Rc<ByEndpoint>,
}

type ByEndpoint = RefCell<HashMap<(EndpointId, bool), Rc<EndpointPool>>>;

/// The connections of a worker to one endpoint.
pub struct EndpointPool {
    pub(super) settings: Rc<PoolsSettings>,
    pub(super) endpoint: Arc<Endpoint>,
    upstream: std::sync::Weak<Upstream>,
    /// Those of all endpoints.
    all: Weak<ByEndpoint>,
    meshed: bool,
    pub(super) sessions: RefCell<Sessions>,
    pub(super) multiplexed: Multiplexed,
    pub(super) http1: Http1Idle,
    pub(super) queue: OwnQueue,
    _giving_way: GivingWay,
    idle_timeout: Duration,
    last_used: std::cell::Cell<Instant>,
}

impl Pools {
    /// No connections yet.
    pub fn new(settings: PoolsSettings) -> Self {
        Self { settings: Rc::new(settings), pools: Rc::default() }
    }

    /// The pool of `endpoint`.
    pub fn of(&self, upstream: &Arc<Upstream>, endpoint: &Arc<Endpoint>) -> Rc<EndpointPool> {
        // What permissive mode found out changes what is spoken: such connections are never mixed.
        let meshed = match endpoint.security {
            Security::Mesh(_) | Security::Refused(_) => true,
            Security::Plain | Security::Server { .. } => false,
            Security::Try(_) => endpoint.verdict(Instant::now()) != Verdict::Plain,
        };
        self.pools
            .borrow_mut()
            .entry((endpoint.id, meshed))
            .or_insert_with(|| {
                Rc::new_cyclic(|pool| EndpointPool {
                    settings: self.settings.clone(),
                    endpoint: endpoint.clone(),
                    upstream: Arc::downgrade(upstream),
                    all: Rc::downgrade(&self.pools),
                    meshed,
                    sessions: RefCell::default(),
                    multiplexed: Multiplexed::default(),
                    http1: Http1Idle::default(),
                    queue: OwnQueue::default(),
                    _giving_way: GivingWay::start(pool.clone(), upstream),
                    idle_timeout: upstream.policy.idle_timeout,
                    last_used: std::cell::Cell::new(Instant::now()),
                })
            })
            .clone()
    }

    /// Closes what was unused for too long, and what is unused now and leads to an endpoint that is gone. Call it
    /// every [`SWEEP`].
    pub fn sweep(&self, now: Instant) {
        self.pools.borrow_mut().retain(|_, pool| {
            if pool.endpoint.is_gone() {
                pool.http1.close();
                pool.multiplexed.retire();
                return Rc::strong_count(pool) > 1;
            }
            if let Some(before) = now.checked_sub(pool.idle_timeout) {
                pool.http1.sweep(before);
            }
            let in_use = pool.http1.len() + pool.multiplexed.len() > 0 || Rc::strong_count(pool) > 1;
            if in_use {
                pool.last_used.set(now);
            }
            in_use || now.saturating_duration_since(pool.last_used.get()) < FORGET
        });
    }
}

impl EndpointPool {
    /// Whether its connections are mesh TLS, as far as is known.
    pub fn is_meshed(&self) -> bool {
        self.meshed
    }

    /// Whether its connections are TLS to a server outside the mesh.
    pub fn is_server_tls(&self) -> bool {
        matches!(self.endpoint.security, Security::Server { .. })
    }

    /// Opens a connection for opaque bytes.
    ///
    /// # Errors
    /// What kept it from opening.
    pub async fn opaque(
        &self,
        upstream: &Arc<Upstream>,
    ) -> Result<(Transport, Option<Peer>, ConnectionPlace), ConnectError> {
        let counted = self.counted(upstream).await?;
        let Connected { transport, peer, counted } =
            self.connect(upstream, counted, MeshProtocol::Tcp).await?;
        counted.ending().is(CloseReason::Done);
        Ok((transport, peer, ConnectionPlace(counted)))
    }

    /// A place for one connection; it waits for no more than that an unused one closes.
    pub(super) async fn counted(&self, upstream: &Arc<Upstream>) -> Result<Counted, ConnectError> {
        match Counted::take(upstream) {
            Some(counted) => Ok(counted),
            // Boxed: rare, and the future of every request would be as large as this one.
            None => Box::pin(self.counted_after_another(upstream)).await,
        }
    }

    async fn counted_after_another(&self, upstream: &Arc<Upstream>) -> Result<Counted, ConnectError> {
        let _pending = Pending::enter(upstream)?;
        let limit = GIVEN_WAY_WITHIN.min(upstream.policy.connect_timeout);
        self.wait_for(upstream, limit, async || Counted::take(upstream)).await
    }

    /// Closes the connection of the upstream that was unused for longest, so that another takes its place: an endpoint
    /// that nobody calls must not keep the others from being called. Whether there was one.
    pub(super) fn close_unused(&self, upstream: &Arc<Upstream>) -> bool {
        let Some(all) = self.all.upgrade() else { return false };
        let all = all.borrow();
        let own = all.values().filter(|pool| std::ptr::eq(pool.upstream.as_ptr(), Arc::as_ptr(upstream)));
        let unused = own.filter_map(|pool| pool.unused_since().map(|since| (since, pool)));
        let Some((since, pool)) = unused.min_by_key(|(since, _)| *since) else { return false };
        pool.close_unused_since(since);
        true
    }

    /// Since when the connection is unused that is so for longest.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        [self.http1.unused_since(), self.multiplexed.unused_since()].into_iter().flatten().min()
    }

    /// Closes the one that [`Self::unused_since`] tells of.
    pub(super) fn close_unused_since(&self, since: Instant) {
        if self.http1.unused_since() == Some(since) {
            self.http1.close_oldest();
        } else {
            self.multiplexed.close_unused_since(since);
        }
    }
}

/// A connection's place in its upstream's count.
#[derive(Debug)]
pub struct ConnectionPlace(#[expect(dead_code, reason = "counted out when dropped")] pub(super) Counted);

/// A request that waits for a connection.
pub(super) struct Pending(Arc<Upstream>);

impl Pending {
    /// Joins those who wait, if there is room.
    pub(super) fn enter(upstream: &Arc<Upstream>) -> Result<Self, ConnectError> {
        let limit = upstream.policy.max_pending_requests;
        upstream
            .pending
            .fetch_update(Relaxed, Relaxed, |waiting| (waiting < limit).then_some(waiting + 1))
            .map(|_| Self(upstream.clone()))
            .map_err(|_| ConnectError::Full {
                upstream: upstream.name.clone(),
                limit,
                what: "waiting requests",
            })
    }

    /// The error of a request that can't wait for a connection.
    pub(super) fn no_connection(upstream: &Upstream) -> ConnectError {
        ConnectError::Full {
            upstream: upstream.name.clone(),
            limit: upstream.policy.max_connections,
            what: "connections",
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
