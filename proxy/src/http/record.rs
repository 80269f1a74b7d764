//! What is remembered of an exchange until its response has ended, and then counted and logged, once.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use outrigger_ca::SpiffeId;
use tokio::sync::Notify;

use super::headers::is_grpc;
use super::hop::PumpGuard;
use super::local_response::LocalResponse;
use crate::net::{Body, BodyEnd, BodyWatch, ClientAddress, Copied};
use crate::telemetry::trace::{Hop, Retried};
use crate::telemetry::{Direction, OpenConnection, Recorder, RequestRecord, Tls};
use crate::upstream::{
    Admission, Attempt, ConnectionPlace, Endpoint, EndpointId, Http1Lease, InFlight, StreamLease, Upstream,
};

/// The client left before there was a response; nginx's status for it.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// For the access log: the response's headers had gone out when it broke off.
const RESPONSE_INCOMPLETE: &str = "outrigger; error=http_response_incomplete";
const GRPC_STATUS: &str = "grpc-status";
/// gRPC's 503.
pub(super) const GRPC_UNAVAILABLE: u16 = 14;

/// A request as it came in, and where it goes.
pub struct Exchange {
    recorder: Rc<Recorder>,
    direction: Direction,
    started: Instant,
    client: SocketAddr,
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    version: Version,
    grpc: bool,
    /// Name of the route, empty without one.
    pub route: Arc<str>,
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// How the connection to the peer is secured.
    pub tls: Tls,
    /// The verified peer.
    pub peer: Option<SpiffeId>,
}

/// How much of a request's body has come.
#[derive(Debug, Default)]
pub struct RequestProgress {
    bytes: Cell<u64>,
    /// When the last of them came, or the end.
    last: Cell<Option<Instant>>,
    ended: Cell<Option<Instant>>,
    broken: Cell<bool>,
    end: Notify,
}

/// Follows an exchange to its end, and holds what must last until then.
pub struct Recording {
    exchange: Exchange,
    trace: Option<Hop>,
    progress: Option<Rc<RequestProgress>>,
    code: u16,
    grpc_status: Option<u16>,
    endpoint: Option<SocketAddr>,
    tried: Option<EndpointId>,
    proxy_status: Option<String>,
    sent_bytes: u64,
    received_bytes: u64,
    in_flight: Option<InFlight>,
    /// Whose endpoint `in_flight` counts at.
    upstream: Option<Arc<Upstream>>,
    /// How the last try ended is not told yet.
    trying: bool,
    /// The last try went to a verified peer.
    is_verified: bool,
    /// Response headers have come that are no failure: what comes after them decides how the try ended.
    answered: bool,
    admission: Admission,
    retries: u32,
    retry_refused: bool,
    stream: Option<StreamLease>,
    http1: Option<Http1Lease>,
    pump: Option<PumpGuard>,
    recorded: bool,
    tunnel_ends: Option<Instant>,
    idle_timeout: Option<Duration>,
    /// The connections on both sides of a tunnel, in their counts.
    tunnel_holds: (Option<Rc<OpenConnection>>, Option<ConnectionPlace>),
}

impl Exchange {
    /// Remembers what a record will need of `request`. Cheap: reference counts, no copies.
    pub fn begin(
        recorder: &Rc<Recorder>,
        direction: Direction,
        client: ClientAddress,
        request: &Request<Body>,
        unknown: &Arc<str>,
    ) -> Box<Recording> {
        Recording::of(Self {
            recorder: recorder.clone(),
            direction,
            started: Instant::now(),
            client: client.0,
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(HOST).cloned(),
            version: request.version(),
            grpc: is_grpc(request.headers()),
            route: unknown.clone(),
            upstream: unknown.clone(),
            tls: Tls::Plain,
            peer: None,
        })
    }
}

impl Recording {
    /// Boxed at once: it ends as the watch of the response's body, and is moved often until then.
    fn of(exchange: Exchange) -> Box<Self> {
        Box::new(Self {
            exchange,
            trace: None,
            progress: None,
            code: CLIENT_CLOSED_REQUEST,
            grpc_status: None,
            endpoint: None,
            tried: None,
            proxy_status: None,
            sent_bytes: 0,
            received_bytes: 0,
            in_flight: None,
            upstream: None,
            trying: false,
            is_verified: false,
            answered: false,
            admission: Admission::default(),
            retries: 0,
            retry_refused: false,
            stream: None,
            http1: None,
            pump: None,
            recorded: false,
            tunnel_ends: None,
            idle_timeout: None,
            tunnel_holds: (None, None),
        })
    }

    /// When the request came in.
    pub(super) fn started(&self) -> Instant {
        self.exchange.started
    }

    /// The exchange.
    pub fn exchange(&mut self) -> &mut Exchange {
        &mut self.exchange
    }

    /// The request has this place in its trace.
    pub fn traced(&mut self, hop: Hop) {
        self.trace = Some(hop);
    }

    /// Has the request's body counted as it passes.
    pub fn watch_request(&mut self, body: Body) -> Body {
        if body.is_end() {
            return body;
        }
        let progress = Rc::new(RequestProgress::default());
        self.progress = Some(progress.clone());
        body.watched(Box::new(RequestWatch(progress)))
    }

    /// Is done when the request has come to its end: at once when it has no body.
    pub(super) fn request_ended(&self) -> impl Future<Output = ()> + use<> {
        let progress = self.progress.clone();
        async move {
            if let Some(progress) = progress {
                progress.ended().await;
            }
        }
    }

    /// When the request came to its end, which is not before `begun`; `None` as long as it has not.
    pub(super) fn request_ended_at(&self, begun: Instant) -> Option<Instant> {
        match &self.progress {
            None => Some(begun),
            Some(progress) => progress.ended.get().map(|ended| ended.max(begun)),
        }
    }

    /// When the last of the request came; `None` when it has no body, or none of it has come.
    fn last_of_request(&self) -> Option<Instant> {
        self.progress.as_ref().and_then(|progress| progress.last.get())
    }

    /// The request holds a place of its upstream until the response has ended.
    pub(super) fn admitted(&mut self, admission: Admission) {
        self.admission = admission;
    }

    /// A try goes to this endpoint of `upstream`.
    pub(super) fn sent_to(&mut self, upstream: &Arc<Upstream>, in_flight: InFlight) {
        self.endpoint = Some(in_flight.endpoint().address);
        self.tried = Some(in_flight.endpoint().id);
        self.in_flight = Some(in_flight);
        self.upstream = Some(upstream.clone());
        self.trying = true;
        self.is_verified = false;
    }

    /// The try goes by a connection that is secured so. What is recorded of the inbound side is how its caller came.
    pub(super) fn secured_by(&mut self, tls: Tls) {
        if self.exchange.direction == Direction::Outbound {
            self.exchange.tls = tls;
            self.exchange.peer = None;
        }
    }

    /// The try has gone to this peer.
    fn met(&mut self, peer: Option<&SpiffeId>) {
        self.is_verified = peer.is_some();
        if self.exchange.direction == Direction::Outbound {
            self.exchange.peer = peer.cloned();
        }
    }

    /// The address of the endpoint that the last try went to.
    pub(super) fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// Where the try goes that is not over.
    pub(super) fn trying_at(&self) -> Option<&Arc<Endpoint>> {
        self.in_flight.as_ref().map(InFlight::endpoint)
    }

    /// Where the last try went.
    pub(super) fn tried(&self) -> Option<EndpointId> {
        self.tried
    }

    /// There is another try. `last` tells of the last one why it was not enough, and the status of its response.
    pub(super) fn retried(&mut self, last: impl FnOnce() -> (String, Option<StatusCode>)) {
        self.retries += 1;
        if let Some(Hop { sampled: Some(sampled), .. }) = &mut self.trace {
            let (reason, status) = last();
            let status = status.map(|status| status.as_u16());
            sampled.retried(Retried { at: Instant::now(), endpoint: self.endpoint, reason, status });
        }
    }

    /// The budget did not allow another try.
    pub(super) fn retry_refused(&mut self) {
        self.retry_refused = true;
    }

    /// Whether the response of the last try comes from a verified peer, whoever asked for it.
    pub(super) fn is_from_peer(&self) -> bool {
        self.is_verified
    }

    /// Lets go of what a try held that something else is done after. `unread` is what is left of its response: its
    /// connection serves other requests when that has been read.
    pub(super) fn try_over(&mut self, unread: Option<Body>) {
        if let (Some(lease), Some(body)) = (self.http1.take(), unread)
            && self.is_request_sent()
        {
            lease.give_back_after(body);
        }
        self.answered = false;
        self.in_flight = None;
        self.stream = None;
        self.pump = None;
        self.tunnel_holds.1 = None;
    }

    /// Whether all of the request has gone out. One that is still being sent keeps its connection busy: the next one
    /// would wait behind it.
    fn is_request_sent(&self) -> bool {
        self.progress.as_ref().is_none_or(|progress| progress.ended.get().is_some())
    }

    /// Lets go of all that was tried: the request goes to another upstream.
    pub(super) fn goes_elsewhere(&mut self, upstream: &Arc<str>, unread: Option<Body>) {
        self.try_over(unread);
        self.admission = Admission::default();
        self.endpoint = None;
        self.tried = None;
        self.secured_by(Tls::Plain);
        self.exchange.upstream = upstream.clone();
    }

    /// Whether it is a gRPC call.
    pub(super) fn is_grpc(&self) -> bool {
        self.exchange.grpc
    }

    /// The request goes by this stream.
    pub(super) fn on_stream(&mut self, stream: StreamLease, pump: Option<PumpGuard>) {
        self.met(stream.peer());
        self.stream = Some(stream);
        self.pump = pump;
    }

    /// The response's headers came over this connection, which is free again when the response has ended.
    pub(super) fn on_connection(&mut self, lease: Http1Lease) {
        self.met(lease.peer.as_ref().map(|peer| &peer.id));
        self.http1 = Some(lease);
    }

    /// The response's headers came over this connection, which nothing else will use.
    pub(super) fn on_own_connection(&mut self, lease: Http1Lease) {
        self.met(lease.peer.as_ref().map(|peer| &peer.id));
        if let Some(peer) = lease.peer {
            self.ends_by(peer.expires);
        }
        self.tunnel_holds.1 = lease.place;
    }

    /// The client's connection stays open for as long as a tunnel that comes of this exchange.
    pub fn holds_open(&mut self, open: Rc<OpenConnection>) {
        self.tunnel_holds.0 = Some(open);
    }

    /// A tunnel that comes of this exchange ends by then, with the certificate of a peer.
    pub fn ends_by(&mut self, moment: Instant) {
        self.tunnel_ends = Some(self.tunnel_ends.map_or(moment, |ends| ends.min(moment)));
    }

    /// When a tunnel that comes of this exchange must end.
    pub(super) fn tunnel_ends(&self) -> Option<Instant> {
        self.tunnel_ends
    }

    /// A body or tunnel that stands still for this long ends.
    pub(super) fn ends_when_idle_for(&mut self, limit: Option<Duration>) {
        self.idle_timeout = limit;
    }

    /// How long a tunnel may stand still.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.idle_timeout
    }

    /// The response's headers are there that go to the client.
    pub fn answered(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.code = status.as_u16();
        if self.exchange.grpc {
            self.grpc_status = grpc_status(headers);
        }
    }

    /// A try has ended, or has its response's headers: the endpoint's load, its standing, and the limits learn from it.
    pub(super) fn attempt_ended(&mut self, attempt: Attempt, now: Instant) {
        let (Some(in_flight), Some(upstream)) = (&self.in_flight, &self.upstream) else { return };
        if !std::mem::take(&mut self.trying) {
            return;
        }
        // How long a client takes to send its request is nothing that the endpoint is slow by.
        let asked = self.last_of_request();
        match attempt {
            Attempt::Answered => {
                in_flight.answered(asked, now);
                self.admission.answered(asked, now);
                // Told when the response has ended: it may break off.
                self.answered = true;
            }
            Attempt::Failed | Attempt::ConnectFailed => {
                in_flight.failed(asked, now);
                upstream.attempt_ended(in_flight.endpoint(), attempt, now);
            }
            Attempt::Abandoned => {}
        }
    }

    /// The time for the response's headers is over.
    pub(super) fn timed_out(&mut self, now: Instant) {
        self.admission.answered(self.last_of_request(), now);
        self.attempt_ended(Attempt::Failed, now);
    }

    /// The caller waits no longer, by its own deadline. That says no more of the endpoint than that it is as slow at least.
    pub(super) fn given_up(&mut self, now: Instant) {
        let asked = self.last_of_request();
        self.admission.answered(asked, now);
        if let Some(in_flight) = &self.in_flight
            && std::mem::take(&mut self.trying)
        {
            in_flight.waited(asked, now);
        }
    }

    /// Whether the client broke its request's body off, or HTTP in it.
    pub(super) fn request_broke(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.broken.get())
    }

    /// Answers with a response of the proxy's own.
    pub fn answer_locally(mut self: Box<Self>, response: &LocalResponse) -> Response<Body> {
        let made = response.to_response(self.exchange.grpc);
        self.code = made.status().as_u16();
        self.grpc_status = grpc_status(made.headers());
        self.proxy_status = Some(response.proxy_status());
        self.follow(made)
    }

    /// Answers with what a fallback gives; `proxy_status` says what it stands in for, `unread` is what is left of that.
    pub(super) fn answer_instead(
        mut self: Box<Self>,
        response: Response<Body>,
        proxy_status: String,
        unread: Option<Body>,
    ) -> Response<Body> {
        self.answered(response.status(), response.headers());
        self.proxy_status = Some(proxy_status);
        self.try_over(unread);
        self.follow(response)
    }

    /// Has the response's body followed to its end.
    pub fn follow(self: Box<Self>, response: Response<Body>) -> Response<Body> {
        response.map(|body| body.watched(self))
    }

    /// A try that was answered has ended, whole or not.
    fn try_ended(&mut self, broken: bool) {
        if !std::mem::take(&mut self.answered) {
            return;
        }
        if let (Some(in_flight), Some(upstream)) = (&self.in_flight, &self.upstream) {
            let failed = broken || self.grpc_status == Some(GRPC_UNAVAILABLE);
            let attempt = if failed { Attempt::Failed } else { Attempt::Answered };
            let now = Instant::now();
            if failed {
                let words = if broken { "its response broke off" } else { "it answered with grpc-status 14" };
                in_flight.endpoint().note_error(|| words.into(), now);
            }
            upstream.attempt_ended(in_flight.endpoint(), attempt, now);
        }
    }

    /// The tunnel that the exchange became has ended.
    pub(super) fn tunnel_ended(mut self, copied: Copied) {
        self.try_ended(false);
        self.sent_bytes = copied.sent;
        self.received_bytes = copied.received;
        self.record();
    }

    fn record(&mut self) {
        if std::mem::replace(&mut self.recorded, true) {
            return;
        }
        let exchange = &self.exchange;
        let authority = match exchange.uri.authority() {
            Some(authority) => authority.as_str(),
            None => exchange.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default(),
        };
        let received = self.progress.as_ref().map_or(0, |progress| progress.bytes.get());
        exchange.recorder.request(&RequestRecord {
            direction: exchange.direction,
            route: &exchange.route,
            upstream: &exchange.upstream,
            code: self.code,
            is_grpc: exchange.grpc,
            grpc_status: self.grpc_status,
            tls: exchange.tls,
            peer: exchange.peer.as_ref(),
            duration: exchange.started.elapsed(),
            method: &exchange.method,
            path: exchange.uri.path(),
            authority,
            version: exchange.version,
            received_bytes: received + self.received_bytes,
            sent_bytes: self.sent_bytes,
            endpoint: self.endpoint,
            retries: self.retries,
            retry_refused: self.retry_refused,
            client: exchange.client,
            proxy_status: self.proxy_status.as_deref(),
            trace: self.trace.as_ref(),
        });
    }
}

pub(super) fn grpc_status(headers: &HeaderMap) -> Option<u16> {
    headers.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

impl BodyWatch for Recording {
    fn data(&mut self, bytes: usize) {
        self.sent_bytes += bytes as u64;
        if let Some(stream) = &self.stream {
            stream.set_reader_behind(true);
        }
    }

    fn waiting(&mut self) {
        if let Some(stream) = &self.stream {
            stream.set_reader_behind(false);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        if self.exchange.grpc {
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        }
    }

    fn end(&mut self, how: BodyEnd) {
        let incomplete = match how {
            BodyEnd::Complete => None,
            BodyEnd::Broken => Some("upstream"),
            BodyEnd::Abandoned => Some("client"),
        };
        if let Some(by) = incomplete {
            let metrics = self.exchange.recorder.metrics();
            metrics.responses_incomplete.inc([self.exchange.direction.as_str(), by]);
        }
        if how == BodyEnd::Broken && self.proxy_status.is_none() {
            self.proxy_status = Some(RESPONSE_INCOMPLETE.into());
        }
        self.try_ended(how == BodyEnd::Broken);
        self.record();
        if let Some(lease) = self.http1.take()
            && how == BodyEnd::Complete
            && self.is_request_sent()
        {
            lease.give_back();
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.record();
    }
}

struct RequestWatch(Rc<RequestProgress>);

impl BodyWatch for RequestWatch {
    fn data(&mut self, bytes: usize) {
        self.0.bytes.set(self.0.bytes.get() + bytes as u64);
        self.0.last.set(Some(Instant::now()));
    }

    fn waiting(&mut self) {}

    fn trailers(&mut self, _: &HeaderMap) {}

    fn end(&mut self, how: BodyEnd) {
        let now = Instant::now();
        self.0.ended.set(Some(now));
        if how == BodyEnd::Complete {
            self.0.last.set(Some(now));
        }
        self.0.broken.set(how == BodyEnd::Broken);
        self.0.end.notify_waiters();
    }
}

impl RequestProgress {
    /// Waits until the request's body has ended.
    pub(super) async fn ended(&self) {
        let end = self.end.notified();
        if self.ended.get().is_none() {
            end.await;
        }
    }
}

#[cfg(test)]
mod tests;
