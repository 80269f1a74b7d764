//! HTTP/1.1 connections to one endpoint, kept while they are unused.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;

use super::Upstream;
use super::connect::{ConnectError, Connected};
use super::counted::{CloseReason, Counted, Ending};
use super::pool::{ConnectionPlace, EndpointPool, Pending};
use crate::identity::Peer;
use crate::net::{Body, MeshProtocol, read_rest};

/// How large a header section may be.
#[derive(Clone, Copy, Debug)]
pub struct HeaderLimits {
    /// Fields.
    pub fields: usize,
    /// Bytes on HTTP/1.1.
    pub bytes: usize,
    /// Bytes on HTTP/2, as RFC 9113 6.5.2 counts them: 32 more for each field than it has characters.
    pub list_bytes: u32,
}

impl HeaderLimits {
    /// Of what workloads send, and peers outside the mesh (the design's section 8).
    pub const WORKLOAD: Self = Self { fields: 100, bytes: 64 << 10, list_bytes: (64 << 10) + 4096 };
    /// On mesh connections: the proxy at the other end has held [`Self::WORKLOAD`] against its workload, and adds
    /// fields of the mesh and of the connection.
    pub const MESH: Self = Self { fields: 116, bytes: (64 << 10) + 4096, list_bytes: (64 << 10) + 8192 };

    /// Of a connection, on the mesh or not.
    pub fn of(mesh: bool) -> Self {
        if mesh { Self::MESH } else { Self::WORKLOAD }
    }
}

/// Connections nobody uses, the one used last on top.
#[derive(Default)]
pub(super) struct Http1Idle {
    idle: RefCell<Vec<(Reusable, Instant)>>,
}

/// A connection, and what it may still be used for.
struct Reusable {
    sender: SendRequest<Body>,
    opened: Instant,
    requests: u64,
    ending: Ending,
}

/// A connection for one request.
pub struct Http1Lease {
    /// Takes the request.
    pub sender: SendRequest<Body>,
    pool: Rc<EndpointPool>,
    upstream: Arc<Upstream>,
    /// It served a request before, so that it may have been closed just now.
    pub reused: bool,
    opened: Instant,
    requests: u64,
    ending: Ending,
    /// The verified peer; `None` outside the mesh.
    pub peer: Option<Peer>,
    /// The place in the upstream's count of a connection that may become a tunnel; others keep theirs
    /// until the connection has ended.
    pub place: Option<ConnectionPlace>,
}

impl Http1Lease {
    /// Keeps the connection for the next request; for after the end of the response.
    pub fn give_back(self) {
        let now = Instant::now();
        let requests = self.requests + 1;
        let keeps = self.upstream.policy.keeps_connection(self.opened, requests, now);
        if !keeps {
            self.ending.is(CloseReason::Age);
        } else if !self.sender.is_closed() {
            if self.pool.gives_way(&self.upstream) {
                return self.ending.is(CloseReason::Displaced);
            }
            let (sender, opened, ending) = (self.sender, self.opened, self.ending);
            let reusable = Reusable { sender, opened, requests, ending };
            self.pool.http1.idle.borrow_mut().push((reusable, now));
            self.pool.place_freed(&self.upstream);
        }
    }

    /// Keeps the connection for the next request once what is left of the response has been read, which nobody waits for.
    /// One that is too long or too slow costs its connection.
    pub fn give_back_after(self, rest: Body) {
        if rest.is_end() {
            return self.give_back();
        }
        tokio::task::spawn_local(async move {
            if read_rest(rest).await {
                self.give_back();
            }
        });
    }
}

impl EndpointPool {
    /// A connection that no other request uses.
    pub async fn http1(self: &Rc<Self>, upstream: &Arc<Upstream>) -> Result<Http1Lease, ConnectError> {
        match self.ready_idle(upstream).await {
            Some(reusable) => Ok(self.http1_reused(upstream, reusable)),
            // Boxed: rare, and the future of every request would be as large as this one.
            None => Box::pin(self.http1_opened(upstream)).await,
        }
    }

    async fn http1_opened(self: &Rc<Self>, upstream: &Arc<Upstream>) -> Result<Http1Lease, ConnectError> {
        let counted = match Counted::take(upstream) {
            Some(counted) => counted,
            None => {
                let _pending = Pending::enter(upstream)?;
                let take = async || match self.ready_idle(upstream).await {
                    Some(reusable) => Some(Ok(reusable)),
                    None => Counted::take(upstream).map(Err),
                };
                match self.wait_for(upstream, upstream.policy.connect_timeout, take).await? {
                    Ok(reusable) => return Ok(self.http1_reused(upstream, reusable)),
                    Err(counted) => counted,
                }
            }
        };
        self.open_http1(upstream, counted, false).await
    }

    /// A connection of its own, for what may turn it into a tunnel.
    pub async fn http1_dedicated(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
    ) -> Result<Http1Lease, ConnectError> {
        let counted = self.counted(upstream).await?;
        self.open_http1(upstream, counted, true).await
    }

    fn http1_reused(self: &Rc<Self>, upstream: &Arc<Upstream>, reusable: Reusable) -> Http1Lease {
        let Reusable { sender, opened, requests, ending } = reusable;
        Http1Lease {
            sender,
            pool: self.clone(),
            upstream: upstream.clone(),
            reused: true,
            opened,
            requests,
            ending,
            peer: None,
            place: None,
        }
    }

    /// An unused connection that takes a request.
    async fn ready_idle(&self, upstream: &Upstream) -> Option<Reusable> {
        while let Some(reusable) = self.pop_idle(upstream) {
            if reusable.sender.is_ready() {
                return Some(reusable);
            }
            // Boxed: rare, as above.
            if let Some(reusable) = Box::pin(after_a_turn(reusable)).await {
                return Some(reusable);
            }
        }
        None
    }

    /// The one used last; those that have become too old are closed.
    fn pop_idle(&self, upstream: &Upstream) -> Option<Reusable> {
        let mut idle = self.http1.idle.borrow_mut();
        loop {
            let (reusable, _) = idle.pop()?;
            if upstream.policy.max_connection_age.is_none()
                || upstream.policy.keeps_connection(reusable.opened, reusable.requests, Instant::now())
            {
                return Some(reusable);
            }
            reusable.ending.is(CloseReason::Age);
        }
    }

    async fn open_http1(
        self: &Rc<Self>,
        upstream: &Arc<Upstream>,
        counted: Counted,
        dedicated: bool,
    ) -> Result<Http1Lease, ConnectError> {
        let Connected { transport, peer, counted } =
            self.connect(upstream, counted, MeshProtocol::H1).await?;
        let limits = HeaderLimits::of(peer.is_some());
        let (sender, connection) = Builder::new()
            .max_headers(limits.fields)
            .max_header_size(limits.bytes)
            .handshake(TokioIo::new(transport))
            .await
            .map_err(|error| ConnectError::Protocol(self.endpoint.address, error.to_string().into()))?;
        let expires = peer.as_ref().map(|peer| tokio::time::Instant::from_std(peer.expires));
        let ending = counted.ending();
        let place = ConnectionPlace(counted);
        let (of_driver, of_lease) = if dedicated { (None, Some(place)) } else { (Some(place), None) };
        if dedicated {
            ending.is(CloseReason::Done);
        }
        let of_expiry = ending.clone();
        tokio::task::spawn_local(async move {
            let _place = of_driver;
            let connection = connection.with_upgrades();
            let ended = match expires {
                // The connection ends with the peer's certificate.
                Some(at) => tokio::time::timeout_at(at, connection).await.unwrap_or_else(|_| {
                    of_expiry.is(CloseReason::Certificate);
                    Ok(())
                }),
                None => connection.await,
            };
            if let Err(error) = ended {
                tracing::debug!("connection ended: {error}");
            }
        });
        let reusable = Reusable { sender, opened: Instant::now(), requests: 0, ending };
        Ok(Http1Lease { peer, reused: false, place: of_lease, ..self.http1_reused(upstream, reusable) })
    }
}

/// The end of its last response may not be taken in yet: one turn of the runtime is enough for that.
async fn after_a_turn(reusable: Reusable) -> Option<Reusable> {
    tokio::task::yield_now().await;
    reusable.sender.is_ready().then_some(reusable)
}

impl Http1Idle {
    /// Closes connections that were unused since `before`.
    pub(super) fn sweep(&self, before: Instant) {
        self.idle.borrow_mut().retain(|(reusable, since)| {
            let is_closed = reusable.sender.is_closed();
            if !is_closed && *since < before {
                reusable.ending.is(CloseReason::Idle);
            }
            !is_closed && *since >= before
        });
    }

    /// Since when the one is unused that was used longest ago.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let mut idle = self.idle.borrow_mut();
        // One that its peer has closed has no place in the count to give.
        idle.retain(|(reusable, _)| !reusable.sender.is_closed());
        idle.first().map(|(_, since)| *since)
    }

    /// Closes the one that was used longest ago.
    pub(super) fn close_oldest(&self) {
        let mut idle = self.idle.borrow_mut();
        if !idle.is_empty() {
            idle.remove(0).0.ending.is(CloseReason::Displaced);
        }
    }

    /// Closes them all: their endpoint is gone.
    pub(super) fn close(&self) {
        self.idle
            .borrow_mut()
            .drain(..)
            .for_each(|(reusable, _)| reusable.ending.is(CloseReason::EndpointGone));
    }

    pub(super) fn len(&self) -> usize {
        self.idle.borrow().len()
    }
}
