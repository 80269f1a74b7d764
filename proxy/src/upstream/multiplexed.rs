//! HTTP/2 connections to one endpoint: requests share them, and another is opened when one is not enough.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, SendStream};
use http::Request;
use outrigger_ca::SpiffeId;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval};

use super::Upstream;
use super::connect::{ConnectError, Connected, Transport};
use super::counted::{CloseReason, Counted, Ending};
use super::http1::HeaderLimits;
use super::pool::{EndpointPool, Pending};
use crate::net::MeshProtocol;

/// Requests on a connection beyond which another one is opened: one TLS stream then keeps a core busy.
const ENOUGH_STREAMS: usize = 100;
/// Readers behind on a connection from which on it gets no new requests: each may hold its stream's
/// whole window, and so half of the connection's.
const SLOW_READERS: usize = (CONNECTION_WINDOW / STREAM_WINDOW / 2) as usize;
/// Flow-control windows (the design's section 8): the connection's is many times the stream's, so that
/// a few slow readers don't stop all others.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
pub(crate) const CONNECTION_WINDOW: u32 = 16 << 20;
/// Between our own proxies: a 1 MiB body cost 19 % less CPU than with HTTP/2's 16 KiB.
pub(crate) const FRAME_SIZE: u32 = 64 << 10;
/// Bytes a stream may hold between us and the socket.
pub(crate) const SEND_BUFFER: usize = 256 << 10;
/// PING every second tick, its answer within one.
const TICK: Duration = Duration::from_secs(5);

/// The HTTP/2 connections of a worker to one endpoint.
#[derive(Default)]
pub(super) struct Multiplexed {
    connections: RefCell<Vec<Rc<Connection>>>,
    attempt: RefCell<Option<Rc<Attempt>>>,
}

struct Connection {
    sender: SendRequest<Bytes>,
    streams: Cell<usize>,
    requests: Cell<u64>,
    slow_readers: Cell<usize>,
    idle_since: Cell<Instant>,
    peer: Option<SpiffeId>,
    ending: Ending,
    pool: Weak<EndpointPool>,
}

/// A connection being opened; those who wait for it share its outcome.
#[derive(Default)]
struct Attempt {
    ended: Cell<bool>,
    error: RefCell<Option<ConnectError>>,
    done: Notify,
}

/// One request's place on a connection.
pub struct StreamLease {
    connection: Rc<Connection>,
    /// A handle of its own: a shared one would have each request wait until the one before is on the wire.
    sender: SendRequest<Bytes>,
    upstream: Arc<Upstream>,
    reader_behind: Cell<bool>,
}

impl StreamLease {
    fn new(connection: Rc<Connection>, sender: SendRequest<Bytes>, upstream: &Arc<Upstream>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        Self { connection, sender, upstream: upstream.clone(), reader_behind: Cell::new(false) }
    }

    /// Sends a request's head.
    ///
    /// # Errors
    /// The connection's, which has just ended; nothing was sent then.
    pub fn send(
        &mut self,
        head: Request<()>,
        end_of_stream: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), h2::Error> {
        self.sender.send_request(head, end_of_stream)
    }

    /// The verified peer; `None` outside the mesh.
    pub fn peer(&self) -> Option<&SpiffeId> {
        self.connection.peer.as_ref()
    }

    /// How long a body on it may stand still.
    pub fn idle_limit(&self) -> Option<Duration> {
        self.upstream.policy.stream_idle_timeout
    }

    /// Tells whether the reader of the response has data that it has not asked beyond.
    pub fn set_reader_behind(&self, behind: bool) {
        if self.reader_behind.replace(behind) != behind {
            let readers = &self.connection.slow_readers;
            readers.set(if behind { readers.get() + 1 } else { readers.get() - 1 });
            if !behind
                && readers.get() + 1 == SLOW_READERS
                && let Some(pool) = self.connection.pool.upgrade()
            {
                pool.places_freed();
            }
        }
    }
}

impl Drop for StreamLease {
    fn drop(&mut self) {
        self.set_reader_behind(false);
        let streams = self.connection.streams.get() - 1;
        self.connection.streams.set(streams);
        let Some(pool) = self.connection.pool.upgrade() else { return };
        if streams == 0 {
            self.connection.idle_since.set(Instant::now());
            if pool.gives_way(&self.upstream) {
                pool.multiplexed.remove(Rc::as_ptr(&self.connection));
                return;
            }
        }
        pool.place_freed(&self.upstream);
    }
}

impl EndpointPool {
    /// A place for a request on a connection, opened if need be.
    pub async fn stream(self: &Rc<Self>, upstream: &Arc<Upstream>) -> Result<StreamLease, ConnectError> {
        if let Some(lease) = self.multiplexed.lease(upstream, ENOUGH_STREAMS) {
            return Ok(lease);
        }
        // Boxed: rare, and the future of every request would be as large as this one.
        Box::pin(self.stream_opened(upstream)).await
    }

    async fn stream_opened(self: &Rc<Self>, upstream: &Arc<Upstream>) -> Result<StreamLease, ConnectError> {
        let take = || {
            let attempt = self.attempt(upstream);
            // While the new connection is on its way the others take what their peer allows.
            match self.multiplexed.lease(upstream, usize::MAX) {
                Some(lease) => Some(Ok(lease)),
                None => attempt.map(Err),
            }
        };
        let mut pending = None;
        let mut taken = take();
        loop {
            if !matches!(taken, Some(Ok(_))) && pending.is_none() {
                pending = Some(Pending::enter(upstream)?);
            }
            match taken {
                Some(Ok(lease)) => return Ok(lease),
                Some(Err(attempt)) => {
                    attempt.wait().await?;
                    if let Some(lease) = self.multiplexed.lease(upstream, ENOUGH_STREAMS) {
                        return Ok(lease);
                    }
                    taken = take();
                }
                None => {
                    let limit = upstream.policy.connect_timeout;
                    taken = Some(self.wait_for(upstream, limit, async || take()).await?);
                }
            }
        }
    }

    /// The attempt under way, or a new one; `None` when the upstream has all its connections.
    fn attempt(self: &Rc<Self>, upstream: &Arc<Upstream>) -> Option<Rc<Attempt>> {
        if let Some(attempt) = &*self.multiplexed.attempt.borrow() {
            return Some(attempt.clone());
        }
        let counted = Counted::take(upstream)?;
        let attempt = Rc::new(Attempt::default());
        *self.multiplexed.attempt.borrow_mut() = Some(attempt.clone());
        let ending = EndAttempt { pool: self.clone(), attempt: attempt.clone() };
        let upstream = upstream.clone();
        tokio::task::spawn_local(async move {
            let result = ending.pool.open(&upstream, counted).await;
            ending.attempt.error.replace(result.err());
            ending.attempt.ended.set(true);
        });
        Some(attempt)
    }

    async fn open(self: &Rc<Self>, upstream: &Upstream, counted: Counted) -> Result<(), ConnectError> {
        let Connected { transport, peer, counted } =
            self.connect(upstream, counted, MeshProtocol::H2).await?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_SIZE)
            .max_header_list_size(HeaderLimits::of(peer.is_some()).list_bytes)
            .max_send_buffer_size(SEND_BUFFER)
            // Until the peer's settings are there; RFC 9113 6.5.2 recommends that no peer allows fewer.
            .initial_max_send_streams(ENOUGH_STREAMS)
            .enable_push(false)
            .handshake::<_, Bytes>(transport)
            .await;
        let address = self.endpoint.address;
        let (sender, driver) =
            handshake.map_err(|error| ConnectError::Protocol(address, error.to_string().into()))?;
        let connection = Rc::new(Connection {
            sender,
            streams: Cell::new(0),
            requests: Cell::new(0),
            slow_readers: Cell::new(0),
            idle_since: Cell::new(Instant::now()),
            peer: peer.as_ref().map(|peer| peer.id.clone()),
            ending: counted.ending(),
            pool: Rc::downgrade(self),
        });
        self.multiplexed.connections.borrow_mut().push(connection.clone());
        let peer_expires = peer.as_ref().map(|peer| peer.expires);
        tokio::task::spawn_local(drive(Driver {
            driver,
            connection: Rc::downgrade(&connection),
            pool: Rc::downgrade(self),
            expires: peer_expires,
            retire_at: retirement(peer_expires, upstream.policy.max_connection_age),
            idle_timeout: upstream.policy.idle_timeout,
            counted,
        }));
        Ok(())
    }
}

/// Ends an attempt even when its task is dropped, so that nobody waits for ever.
struct EndAttempt {
    pool: Rc<EndpointPool>,
    attempt: Rc<Attempt>,
}

impl Drop for EndAttempt {
    fn drop(&mut self) {
        if !self.attempt.ended.replace(true) {
            let address = self.pool.endpoint.address;
            self.attempt
                .error
                .replace(Some(ConnectError::Protocol(address, "connecting was interrupted".into())));
        }
        self.pool.multiplexed.attempt.replace(None);
        self.attempt.done.notify_waiters();
        self.pool.places_freed();
    }
}

impl Attempt {
    async fn wait(&self) -> Result<(), ConnectError> {
        let done = self.done.notified();
        if !self.ended.get() {
            done.await;
        }
        self.error.borrow().clone().map_or(Ok(()), Err)
    }
}

impl Multiplexed {
    /// A place on the least used connection that has fewer than `enough` requests.
    fn lease(&self, upstream: &Arc<Upstream>, enough: usize) -> Option<StreamLease> {
        let mut connections = self.connections.borrow_mut();
        loop {
            let (index, connection) = connections
                .iter()
                .enumerate()
                .filter(|(_, connection)| connection.slow_readers.get() < SLOW_READERS)
                .min_by_key(|(_, connection)| connection.streams.get())?;
            if !connection.has_room(enough) {
                return None;
            }
            let mut sender = connection.sender.clone();
            // Of a fresh handle this only says whether the connection has ended or said GOAWAY; it waits for nothing.
            match sender.poll_ready(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => {
                    let lease = StreamLease::new(connection.clone(), sender, upstream);
                    let requests = connection.requests.get() + 1;
                    connection.requests.set(requests);
                    if requests >= upstream.policy.max_requests_per_connection {
                        // It closes when its requests are done.
                        connections.swap_remove(index).ending.is(CloseReason::Age);
                    }
                    return Some(lease);
                }
                _ => drop(connections.swap_remove(index)),
            }
        }
    }

    fn remove(&self, connection: *const Connection) {
        self.connections.borrow_mut().retain(|known| !std::ptr::eq(Rc::as_ptr(known), connection));
    }

    /// Since when the one is unused that is so for longest.
    pub(super) fn unused_since(&self) -> Option<Instant> {
        let connections = self.connections.borrow();
        let unused = connections.iter().filter(|connection| connection.streams.get() == 0);
        unused.map(|connection| connection.idle_since.get()).min()
    }

    /// Closes those that are unused since then.
    pub(super) fn close_unused_since(&self, since: Instant) {
        let is_it = |connection: &Rc<Connection>| {
            connection.streams.get() == 0 && connection.idle_since.get() == since
        };
        self.connections.borrow_mut().retain(|connection| {
            if is_it(connection) {
                connection.ending.is(CloseReason::Displaced);
            }
            !is_it(connection)
        });
    }

    /// Puts no more requests on the connections there are, since their endpoint is gone; each closes with its last one.
    pub(super) fn retire(&self) {
        let mut connections = self.connections.borrow_mut();
        connections.drain(..).for_each(|connection| connection.ending.is(CloseReason::EndpointGone));
    }

    pub(super) fn len(&self) -> usize {
        self.connections.borrow().len()
    }
}

impl Connection {
    /// Whether it takes one more request, by our measure and by the peer's.
    fn has_room(&self, enough: usize) -> bool {
        let streams = self.streams.get();
        streams < enough && streams < self.sender.current_max_send_streams()
    }
}

struct Driver {
    driver: h2::client::Connection<Transport, Bytes>,
    connection: Weak<Connection>,
    pool: Weak<EndpointPool>,
    expires: Option<Instant>,
    retire_at: Option<Instant>,
    idle_timeout: Duration,
    counted: Counted,
}

/// Moves a connection's bytes until it ends: by either side, unused for too long, without answer to a
/// PING, or with the peer's certificate.
async fn drive(mut this: Driver) {
    let mut ping_pong = this.driver.ping_pong();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut awaiting_pong = false;
    let mut ping_due = false;
    let mut expired = pin!(expiry(this.expires));
    loop {
        tokio::select! {
            biased;
            ended = &mut this.driver => {
                if let Err(error) = ended {
                    this.counted.ending().is(CloseReason::Ended);
                    tracing::debug!("connection ended: {error}");
                }
                break;
            }
            pong = pong(&mut ping_pong), if awaiting_pong => {
                if pong.is_err() {
                    break;
                }
                awaiting_pong = false;
            }
            // The connection ends with the certificate, and not a moment earlier: there may be no newer one.
            () = &mut expired => {
                this.counted.ending().is(CloseReason::Certificate);
                break;
            }
            _ = tick.tick() => {
                let now = Instant::now();
                if awaiting_pong {
                    this.counted.ending().is(CloseReason::Ping);
                    tracing::debug!("peer did not answer a PING within {TICK:?}");
                    break;
                }
                let is_old = this.retire_at.is_some_and(|at| at <= now);
                if is_old || this.is_idle(now) {
                    // Requests on it go on; with the last one the connection closes.
                    this.counted.ending().is(if is_old { CloseReason::Age } else { CloseReason::Idle });
                    this.retire();
                }
                ping_due = !ping_due;
                // Not to workloads: gRPC servers end connections that ping them in quiet times.
                if ping_due && this.expires.is_some() && let Some(ping_pong) = &mut ping_pong {
                    awaiting_pong = ping_pong.send_ping(Ping::opaque()).is_ok();
                }
            }
        }
    }
    this.retire();
}

/// Time before the certificate's end in which no new request is put on a connection: longer than the time
/// in which the peer's serving side takes none, so that no request meets its GOAWAY.
fn margin(expires: Instant) -> Duration {
    let left = expires.saturating_duration_since(Instant::now());
    (left / 4).clamp(4 * TICK, Duration::from_secs(90)).min(left / 2)
}

/// When a connection takes no new request any longer.
fn retirement(expires: Option<Instant>, max_age: Option<Duration>) -> Option<Instant> {
    let by_certificate = expires.map(|expires| expires - margin(expires));
    let by_age = max_age.map(|age| Instant::now() + age);
    by_certificate.into_iter().chain(by_age).min()
}

async fn expiry(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn pong(ping_pong: &mut Option<PingPong>) -> Result<(), h2::Error> {
    match ping_pong {
        Some(ping_pong) => poll_fn(|cx| ping_pong.poll_pong(cx)).await.map(|_| ()),
        None => std::future::pending().await,
    }
}

impl Driver {
    fn retire(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.multiplexed.remove(self.connection.as_ptr());
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.connection.upgrade().is_some_and(|connection| {
            connection.streams.get() == 0
                && now.saturating_duration_since(connection.idle_since.get()) >= self.idle_timeout
        })
    }
}
