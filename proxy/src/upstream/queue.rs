//! Who waits for a connection when an upstream has all that it may have, and who closes one for them. Connections belong
//! to one worker and lead to one endpoint; the limit holds for all workers and endpoints together.

use std::cell::Cell;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Upstream;
use super::connect::ConnectError;
use super::pool::{EndpointPool, Pending};

/// All workers' requests to an upstream that wait for a connection or a place on one.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// How many they are.
    waiting: AtomicUsize,
    /// Connections that were unused and are being closed for them.
    closing: AtomicUsize,
    /// What came free while somebody waited.
    freed: AtomicU64,
    /// There are fewer connections than may be.
    connection_closed: Notify,
    /// Somebody waits and has no unused connection to close.
    wanted: Arc<Notify>,
}

/// Those of them who wait in one pool: a place on its connections is of use to nobody else.
#[derive(Default)]
pub(super) struct OwnQueue {
    waiting: Cell<usize>,
    freed: Notify,
}

impl Queue {
    /// A connection has left its place in the count.
    pub(super) fn connection_closed(&self) {
        if self.waiting.load(Relaxed) > 0 {
            self.freed.fetch_add(1, Relaxed);
            // Any that closes serves them, whether it was unused or not.
            let _ = self.closing.fetch_update(Relaxed, Relaxed, |closing| closing.checked_sub(1));
        }
        self.connection_closed.notify_one();
    }

    /// Takes it on to close a connection, unless enough are closing for `waiting` requests.
    fn closes_for(&self, waiting: usize) -> bool {
        waiting > 0
            && self
                .closing
                .fetch_update(Relaxed, Relaxed, |closing| (closing < waiting).then_some(closing + 1))
                .is_ok()
    }
}

/// A request's place in both queues.
struct Waiting<'a> {
    pool: &'a EndpointPool,
    upstream: &'a Upstream,
}

impl<'a> Waiting<'a> {
    fn enter(pool: &'a EndpointPool, upstream: &'a Upstream) -> Self {
        pool.queue.waiting.set(pool.queue.waiting.get() + 1);
        upstream.queue.waiting.fetch_add(1, Relaxed);
        Self { pool, upstream }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (own, queue) = (&self.pool.queue, &self.upstream.queue);
        own.waiting.set(own.waiting.get() - 1);
        if queue.waiting.fetch_sub(1, Relaxed) == 1 {
            queue.closing.store(0, Relaxed);
        } else if self.upstream.open_connections() < self.upstream.policy.max_connections {
            // It may have been told of this one, and gone by another.
            queue.connection_closed.notify_one();
        }
    }
}

impl EndpointPool {
    /// Waits until `take` gives something: for `limit`, and on while others get what comes free. Those who wait are woken
    /// in their order.
    ///
    /// # Errors
    /// Nothing came free.
    pub(super) async fn wait_for<T>(
        &self,
        upstream: &Arc<Upstream>,
        limit: Duration,
        mut take: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, ConnectError> {
        let queue = &upstream.queue;
        let _waiting = Waiting::enter(self, upstream);
        let mut freed = queue.freed.load(Relaxed);
        let mut late = pin!(sleep_until(Instant::now() + limit));
        loop {
            let mut closed = pin!(queue.connection_closed.notified());
            let mut own = pin!(self.queue.freed.notified());
            // Before it is looked: what comes free from now on wakes.
            closed.as_mut().enable();
            own.as_mut().enable();
            if let Some(taken) = take().await {
                return Ok(taken);
            }
            self.have_one_closed(upstream);
            tokio::select! {
                biased;
                () = closed => {}
                () = own => {}
                () = &mut late => {
                    if let Some(taken) = take().await {
                        return Ok(taken);
                    }
                    let now = queue.freed.load(Relaxed);
                    if now == freed {
                        return Err(Pending::no_connection(upstream));
                    }
                    freed = now;
                    late.as_mut().reset(Instant::now() + limit);
                }
            }
        }
    }

    /// An unused connection of this worker, else of another.
    fn have_one_closed(&self, upstream: &Arc<Upstream>) {
        let queue = &upstream.queue;
        if queue.closes_for(queue.waiting.load(Relaxed)) && !self.close_unused(upstream) {
            let _ = queue.closing.fetch_update(Relaxed, Relaxed, |closing| closing.checked_sub(1));
            queue.wanted.notify_waiters();
        }
    }

    /// A place on a connection is free.
    pub(super) fn place_freed(&self, upstream: &Upstream) {
        if self.queue.waiting.get() > 0 {
            upstream.queue.freed.fetch_add(1, Relaxed);
            self.queue.freed.notify_one();
        }
    }

    /// Places on a connection are free, as many as all may need.
    pub(super) fn places_freed(&self) {
        self.queue.freed.notify_waiters();
    }

    /// Whether a connection that is unused now is to be closed for requests of other workers, or to other endpoints:
    /// where more of them wait than here. Who is told so closes it.
    pub(super) fn gives_way(&self, upstream: &Upstream) -> bool {
        let waiting = upstream.queue.waiting.load(Relaxed);
        if waiting == 0 {
            return false;
        }
        let own = self.queue.waiting.get();
        let others = waiting.saturating_sub(own);
        others > own && upstream.queue.closes_for(others)
    }
}

/// The task that closes a pool's unused connections when others wait for one.
pub(super) struct GivingWay(JoinHandle<()>);

impl GivingWay {
    pub(super) fn start(pool: Weak<EndpointPool>, upstream: &Arc<Upstream>) -> Self {
        let (wanted, upstream) = (upstream.queue.wanted.clone(), Arc::downgrade(upstream));
        Self(tokio::task::spawn_local(async move {
            loop {
                let is_wanted = wanted.notified();
                let (Some(pool), Some(upstream)) = (pool.upgrade(), upstream.upgrade()) else { return };
                give_way(&pool, &upstream);
                drop((pool, upstream));
                is_wanted.await;
            }
        }))
    }
}

fn give_way(pool: &Rc<EndpointPool>, upstream: &Upstream) {
    while let Some(since) = pool.unused_since()
        && pool.gives_way(upstream)
    {
        pool.close_unused_since(since);
    }
}

impl Drop for GivingWay {
    fn drop(&mut self) {
        self.0.abort();
    }
}
