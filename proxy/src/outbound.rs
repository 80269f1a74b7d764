//! Outbound: from the workload to its peers.
//!
//! Accept, original destination, detect; then for opaque bytes: upstream, endpoint, connection, copy;
//! for HTTP, request by request: destination, route, upstream, endpoint, connection, send, record.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, Request, Response, Version};
use http_body::Body as _;
use rand::RngExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::config::{Balance, Protocol};
use crate::filters::{Answer, Mirrored, NotMirrored, Scheme};
use crate::http::{
    Affinity, Again, Call, Exchange, Failed, Failure, Fallback, Handler, Limits, LocalResponse, Recording,
    Served, Why, Wire, call, fit_response, host_of, mark_exhausted, refuse, response_cache as cache,
    serve_http1, serve_http2, source_key, speak, to_origin_form,
};
use crate::net::{
    Body, ClientAddress, Detected, OriginalDestination, Prefixed, detect, readable, resume_detection,
};
use crate::opaque::{Carrying, OpaqueError, WAIT_FOR_REQUEST, Way, open_way};
use crate::route::{Asked, CompiledRoute, Matched};
use crate::telemetry::{Direction, OpenConnection};
use crate::upstream::{
    Choice, Destination, DestinationError, Endpoint, EndpointId, HeaderLimits, RetryPolicy, Subset, Upstream,
};
use crate::worker::{Worker, reset};

const SIDE: Direction = Direction::Outbound;
/// Time for a copy of a request where its upstream states none.
const MIRRORED: Duration = Duration::from_secs(15);
/// How long discovery may take to say that a destination is opaque, before its bytes are looked at. It answers within
/// milliseconds, over a new connection within a second; what it does not answer costs the request's own lookups as much
/// again.
const OPAQUE_KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Times a request is looked up again because the config changed meanwhile.
const MOST_CONFIGS: u32 = 4;

/// Carries one connection of the workload.
pub async fn serve(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    client: ClientAddress,
    open: Rc<OpenConnection>,
) {
    let accepted = Instant::now();
    let Some(destination) = destination_of(&worker, &stream) else {
        return worker.refuse(stream, SIDE, "own_listener");
    };
    open.goes_to(destination.0);
    let carrying =
        Carrying { recorder: &worker.recorder, direction: SIDE, client, accepted, client_peer: None };
    let mut first_bytes = BytesMut::new();
    let mut detected = if is_opaque(&worker, destination).await {
        Detected::Opaque
    } else {
        match detect(&mut stream, &mut first_bytes).await {
            Ok(detected) => detected,
            Err(_) => return,
        }
    };
    let mut way = None;
    if detected == Detected::Silent {
        // The client may wait for the server to speak: whoever speaks first decides.
        match Box::pin(way_to(&worker, destination, client)).await {
            Ok(mut opened) => match opened.server_speaks_first(&stream).await {
                Some(true) => {
                    if opened.server_spoke_opaquely() {
                        worker.remember_opaque(destination.0);
                    }
                    open.carries(opened.upstream_name());
                    Box::pin(opened.carry(&carrying, Prefixed::new(first_bytes, stream))).await;
                    return;
                }
                Some(false) => way = Some(opened),
                None => return,
            },
            // Nobody is there to speak first, or the client would speak requests that have a name to go by.
            Err((upstream, error)) => {
                let found = if error.is_final() {
                    None
                } else {
                    Box::pin(timeout(WAIT_FOR_REQUEST, readable(&stream))).await.ok()
                };
                match found {
                    Some(Ok(())) => {}
                    Some(Err(_)) => return,
                    None => {
                        carrying.refused(&upstream, &error);
                        return reset(&stream);
                    }
                }
            }
        }
        detected = match resume_detection(&mut stream, &mut first_bytes).await {
            Ok(detected) => detected,
            Err(_) => return,
        };
    }
    // Each way is boxed: what a silent connection holds is this future, and theirs are large.
    if !matches!(detected, Detected::Http1 | Detected::Http2) {
        // Also for a client that ended without a byte: the server may speak first, or answer at the end.
        let way = match way {
            Some(way) => Ok(way),
            None => Box::pin(way_to(&worker, destination, client)).await,
        };
        match way {
            Ok(way) => {
                open.carries(way.upstream_name());
                Box::pin(way.carry(&carrying, Prefixed::new(first_bytes, stream))).await;
            }
            Err((upstream, error)) => {
                carrying.refused(&upstream, &error);
                reset(&stream);
            }
        }
        return;
    }
    drop(way);
    open.speaks(if detected == Detected::Http2 { "http2" } else { "http1" });
    let limits = Limits {
        headers: HeaderLimits::WORKLOAD,
        draining: worker.shared.outbound_draining.clone(),
        expires: None,
    };
    let handler =
        Rc::new(Outbound { worker: worker.clone(), client, destination, open, last: RefCell::default() });
    let stream = Prefixed::new(first_bytes, stream);
    let served = match detected {
        Detected::Http2 => Box::pin(serve_http2(stream, handler, limits)).await,
        _ => Box::pin(serve_http1(stream, handler, limits)).await,
    };
    if let Served::Refused(reason) = served {
        worker.shared.metrics.connections_refused.inc([SIDE.as_str(), reason]);
    }
}

/// Where the workload wanted to go; `None` when that is the proxy itself, which would be a loop.
fn destination_of(worker: &Worker, stream: &TcpStream) -> Option<OriginalDestination> {
    let destination =
        OriginalDestination::of(stream).or_else(|_| stream.local_addr().map(OriginalDestination)).ok()?;
    let own = worker.shared.own_ports.contains(&destination.port())
        && worker.shared.local.contains(destination.ip());
    (!own).then_some(destination)
}

/// Whether nothing is to be parsed: configured for the port or the upstream, remembered, or declared to the mesh's
/// discovery.
async fn is_opaque(worker: &Worker, destination: OriginalDestination) -> bool {
    let effective = worker.effective().clone();
    if effective.config.outbound.is_opaque(destination.port()) || worker.is_remembered_opaque(destination.0) {
        return true;
    }
    let asked = || timeout(OPAQUE_KNOWN_WITHIN, worker.locate(None, destination.0));
    (effective.config.dns.mesh_server.is_some() || effective.has_opaque_upstreams)
        && asked().await.is_ok_and(|answer| {
            answer.is_ok_and(|located| {
                let set = located.upstream.set();
                located.upstream.policy.protocol == Protocol::Tcp
                    || !set.members.is_empty() && set.endpoints().all(|endpoint| endpoint.opaque)
            })
        })
}

/// Opens the way for opaque bytes, at another endpoint where one does not answer; an error comes with the name of the
/// upstream, as far as it is known.
async fn way_to(
    worker: &Rc<Worker>,
    destination: OriginalDestination,
    client: ClientAddress,
) -> Result<Box<Way>, (Arc<str>, OpaqueError)> {
    let Destination { upstream, endpoint: dialled, .. } = worker
        .locate(None, destination.0)
        .await
        .map_err(|error| (Arc::from(destination.to_string()), error.into()))?;
    let choose = |tried: &[EndpointId]| {
        let key = source_key(&upstream.policy.balance, client.0.ip());
        let choice = Choice { now: Instant::now(), key, subset: None, tried };
        worker.random(|rng| upstream.pick(dialled.as_ref(), &choice, rng))
    };
    open_way(&worker.peers, &upstream, choose).await.map_err(|error| (upstream.name.clone(), error))
}

/// Answers the requests of one connection.
struct Outbound {
    worker: Rc<Worker>,
    client: ClientAddress,
    destination: OriginalDestination,
    /// Its place in the gauge; a tunnel keeps it.
    open: Rc<OpenConnection>,
    /// The last host's answer: the next request nearly always asks the same.
    last: RefCell<Option<(Box<str>, u64, Destination)>>,
}

/// What was found for a request.
struct Found {
    upstream: Arc<Upstream>,
    /// The one endpoint that was dialled by its own address.
    dialled: Option<Arc<Endpoint>>,
    /// Endpoints with these tags only.
    subset: Option<Subset>,
    /// When it is tried again, as the service's owner says.
    declared_retry: Option<Arc<RetryPolicy>>,
    routed: Option<Routed>,
}

impl Found {
    fn at(upstream: Arc<Upstream>, dialled: Option<Arc<Endpoint>>) -> Self {
        let declared_retry = upstream.set().retry.clone();
        Self { upstream, dialled, subset: None, declared_retry, routed: None }
    }

    /// Whose response the cache may give to whom.
    fn answerer(&self) -> cache::Answerer {
        cache::Answerer {
            route: self.routed.as_ref().map_or_else(|| Arc::from(""), |routed| routed.route.name.clone()),
            upstream: self.upstream.name.clone(),
            subset: self.subset.clone(),
            dialled: self.dialled.as_ref().map(|endpoint| endpoint.address),
        }
    }
}

/// The route of a request.
struct Routed {
    route: Arc<CompiledRoute>,
    /// Length of the prefix of the path by which it matched.
    prefix: Option<usize>,
}

impl Handler for Outbound {
    // Not an `async fn`: that would hold the request twice, and this future is copied once a request.
    #[expect(clippy::manual_async_fn, reason = "see above")]
    fn handle(self: Rc<Self>, mut request: Request<Body>) -> impl Future<Output = Response<Body>> {
        async move {
            let worker = &self.worker;
            let mut recording =
                Exchange::begin(&worker.recorder, SIDE, self.client, &request, &worker.unnamed);
            recording.holds_open(self.open.clone());
            let version = request.version();
            if let Some(response) = refuse(&mut request, version, HeaderLimits::WORKLOAD) {
                return recording.answer_locally(&response);
            }
            worker.panic_if_told(request.uri().path());
            if version < Version::HTTP_2 {
                to_origin_form(&mut request);
            }
            let found = self.find(&request, recording.exchange()).await;
            // Not before: a route may say which of its requests are recorded.
            let routed = found.as_ref().ok().and_then(|found| found.routed.as_ref());
            let tracing = routed.and_then(|Routed { route, .. }| route.tracing.as_ref());
            worker.trace(&mut request, &mut recording, tracing);
            let found = match found {
                Ok(found) => found,
                Err(response) => return recording.answer_locally(&response),
            };
            self.open.is_for(&found.upstream.name);
            recording.exchange().upstream = found.upstream.name.clone();
            let protocol = found.upstream.policy.protocol;
            let mut response = if self.is_plain(&found) {
                let wire = speak(protocol, version, &mut request);
                match call(&self.way(&found, wire), &mut request, recording).await {
                    Ok(response) => response,
                    Err(failed) => self.give_up(*failed),
                }
            } else {
                // Boxed: the future of every request would be as large as this one.
                Box::pin(self.with_extras(found, version, &mut request, recording)).await
            };
            fit_response(protocol, version, response.headers_mut());
            if worker.shared.stopping.load(Relaxed)
                && version < Version::HTTP_2
                && !response.status().is_informational()
            {
                // Told now, the workload does not send a request into the end of its connection.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

impl Outbound {
    /// Destination, then route, then upstream: all by one config. Half by the next one, a request could fail, or go where
    /// neither has it go.
    async fn find(&self, request: &Request<Body>, exchange: &mut Exchange) -> Result<Found, LocalResponse> {
        let directory = &self.worker.shared.directory;
        let mut tries = MOST_CONFIGS;
        loop {
            let generation = directory.generation();
            let found = self.find_once(request, exchange).await;
            tries -= 1;
            if tries == 0 || directory.generation() == generation {
                return found.map_err(|error| LocalResponse::destination(&error));
            }
            exchange.route = self.worker.unnamed.clone();
        }
    }

    async fn find_once(
        &self,
        request: &Request<Body>,
        exchange: &mut Exchange,
    ) -> Result<Found, DestinationError> {
        let Destination { upstream, endpoint: dialled, routed_host } = self.locate(host_of(request)).await?;
        let mut found = Found::at(upstream, dialled);
        let Some(host) = routed_host else { return Ok(found) };
        let effective = self.worker.effective().clone();
        let Some(Matched { route, prefix }) = effective.routes.find(&host, &Asked::of(request)) else {
            return Ok(found);
        };
        exchange.route = route.name.clone();
        if let Some(target) = self.worker.random(|rng| route.choose(rng).cloned()) {
            found = Found::at(self.configured(&target.upstream).await?, None);
            found.subset = target.subset;
        }
        found.routed = Some(Routed { route: route.clone(), prefix });
        Ok(found)
    }

    async fn configured(&self, name: &Arc<str>) -> Result<Arc<Upstream>, DestinationError> {
        self.worker.configured(name, self.destination.port()).await
    }

    /// Whether it is nothing but sent.
    fn is_plain(&self, found: &Found) -> bool {
        let is_balanced_by_key =
            matches!(found.upstream.policy.balance, Balance::RingHash(_) | Balance::Maglev(_));
        !is_balanced_by_key
            && found
                .routed
                .as_ref()
                .is_none_or(|Routed { route, .. }| route.filters.is_empty() && route.fallback.is_none())
            && self.worker.effective().fallbacks.is_empty()
    }

    fn way<'a>(&'a self, found: &'a Found, wire: Wire) -> Call<'a> {
        let Found { upstream, dialled, subset, declared_retry, routed } = found;
        let route = routed.as_ref().map(|routed| &*routed.route);
        Call {
            pools: &self.worker.peers,
            upstream,
            dialled: dialled.as_ref(),
            key: None,
            subset: subset.as_ref(),
            wire,
            timeout: timeout_of(route, upstream),
            again: Again::Retry(retry_of(route, declared_retry.as_deref(), upstream)),
            idempotent: route.is_some_and(|route| route.idempotent),
            keeps_mesh_headers: false,
            keeps_request: false,
            rng: &self.worker.rng,
        }
    }

    /// What the workload gets when all is tried.
    fn give_up(&self, failed: Failed) -> Response<Body> {
        if failed.is_exhausted() {
            self.worker.note_exhausted();
        }
        failed.into_response()
    }

    /// Filters of the request, affinity, call, fallback, filters of the response.
    async fn with_extras(
        &self,
        found: Found,
        version: Version,
        request: &mut Request<Body>,
        mut recording: Box<Recording>,
    ) -> Response<Body> {
        let worker = &self.worker;
        let effective = worker.effective().clone();
        let filters = found.routed.as_ref().map(|Routed { route, prefix }| (&route.filters, *prefix));
        let draw = || worker.random(|rng| rng.random());
        if let Some((filters, prefix)) = filters {
            match filters.request(request, Scheme::Http, prefix, draw).await {
                Ok(()) => {}
                Err(Answer::Fixed(response)) => {
                    recording.answered(response.status(), response.headers());
                    return recording.follow(response);
                }
                Err(Answer::Error(local)) => return recording.answer_locally(&local),
            }
            let mirror =
                Mirror { worker: worker.clone(), port: self.destination.port(), client: self.client };
            filters.mirror(request, &worker.mirrors, draw, move |upstream, copy| mirror.send(upstream, copy));
        }
        let policy = &found.upstream.policy;
        let client = self.client.0.ip();
        let affinity = worker.random(|rng| Affinity::of(&policy.balance, request.headers(), client, rng));
        let fallback = found
            .routed
            .as_ref()
            .and_then(|Routed { route, .. }| route.fallback.as_ref())
            .or_else(|| effective.fallbacks.get(&*found.upstream.name));
        let asked = fallback
            .and_then(Fallback::cache)
            .and_then(|_| cache::Asked::of(request, found.answerer(), Instant::now()));
        // What a fixed response and the cache look at.
        let fields = fallback.map(|_| request.headers().clone());
        let mut way = self.way(&found, speak(policy.protocol, version, request));
        way.key = affinity.as_ref().and_then(|affinity| affinity.key);
        way.keeps_request = matches!(fallback, Some(Fallback::Upstream(_)));
        let result = match call(&way, request, recording).await {
            Ok(response) => Ok(match (fallback.and_then(Fallback::cache), asked) {
                (Some(cache), Some(asked)) => cache.pass(asked, response, Instant::now(), SystemTime::now()),
                _ => response,
            }),
            Err(failed) => match (fallback, fields) {
                (Some(fallback), Some(fields)) => {
                    self.fall_back(fallback, &fields, asked.as_ref(), failed, version).await
                }
                _ => Err(failed),
            },
        };
        let is_the_proxys = matches!(&result, Err(failed) if matches!(failed.why, Why::Local(_)));
        let mut response = result.unwrap_or_else(|failed| self.give_up(*failed));
        if let Some((filters, _)) = filters.filter(|_| !is_the_proxys) {
            filters.response(response.headers_mut());
        }
        if let Some(affinity) = affinity {
            affinity.set(response.headers_mut());
        }
        response
    }

    /// The next best thing, if there is one.
    async fn fall_back(
        &self,
        fallback: &Fallback,
        request: &HeaderMap,
        asked: Option<&cache::Asked>,
        mut failed: Box<Failed>,
        version: Version,
    ) -> Result<Response<Body>, Box<Failed>> {
        if let Fallback::Upstream(name) = fallback {
            let (Some(mut request), Ok(upstream)) = (failed.request.take(), self.configured(name).await)
            else {
                return Err(failed);
            };
            let recording = failed.sent_elsewhere(&upstream.name);
            let wire = speak(upstream.policy.protocol, version, &mut request);
            let found = Found::at(upstream, None);
            // Its own fallback does not apply.
            return call(&self.way(&found, wire), &mut request, recording).await;
        }
        let why = match &failed.why {
            Why::Local(local) => Failure::Local(local),
            Why::Received(response) => Failure::Received(response.status()),
        };
        match fallback.answer(request, asked, why, Instant::now()) {
            Some(response) => {
                let why = why.proxy_status();
                let is_exhausted = failed.is_exhausted();
                let mut response = failed.answer_instead(response, why);
                // Tried again from further out, it would come to this again.
                if is_exhausted && response.status().is_server_error() {
                    self.worker.note_exhausted();
                    mark_exhausted(response.headers_mut(), None);
                }
                Ok(response)
            }
            None => Err(failed),
        }
    }

    async fn locate(&self, host: Option<&str>) -> Result<Destination, DestinationError> {
        let key = host.unwrap_or_default();
        let generation = self.worker.shared.directory.generation();
        if let Some((known, of, destination)) = &*self.last.borrow()
            && **known == *key
            && *of == generation
        {
            return Ok(destination.clone());
        }
        let destination = self.worker.locate(host, self.destination.0).await?;
        self.last.replace(Some((key.into(), generation, destination.clone())));
        Ok(destination)
    }
}

/// The time for the response's headers: the route's, else the upstream's, else what the service's owner declared.
pub(crate) fn timeout_of(route: Option<&CompiledRoute>, upstream: &Upstream) -> Option<Duration> {
    let stated = route.and_then(|route| route.timeout).or(upstream.policy.request_timeout);
    stated.or_else(|| upstream.set().request_timeout)
}

/// When a request is tried again: as the route says, else as the service's owner declared, else as the upstream says.
pub(crate) fn retry_of<'a>(
    route: Option<&'a CompiledRoute>,
    declared: Option<&'a RetryPolicy>,
    upstream: &'a Upstream,
) -> &'a RetryPolicy {
    route.and_then(|route| route.retry.as_ref()).or(declared).unwrap_or(&upstream.policy.retry)
}

/// Sends copies of requests; nobody waits for what becomes of them.
struct Mirror {
    worker: Rc<Worker>,
    port: u16,
    client: ClientAddress,
}

impl Mirror {
    fn send(self, upstream: Arc<str>, copy: Result<Mirrored, NotMirrored>) {
        match copy {
            Ok(copy) => _ = tokio::task::spawn_local(self.carry(upstream, copy)),
            Err(why) => {
                self.count(&upstream, why.result());
                tracing::debug!("a request is not mirrored: {why}");
            }
        }
    }

    fn count(&self, upstream: &str, result: &'static str) {
        self.worker.shared.metrics.mirrored_requests.inc([upstream, result]);
    }

    async fn carry(self, name: Arc<str>, copy: Mirrored) {
        let Self { worker, port, client } = &self;
        let Mirrored { mut request, place } = copy;
        let upstream = match worker.configured(&name, *port).await {
            Ok(upstream) => upstream,
            Err(error) => {
                self.count(&name, "failed");
                return tracing::debug!("a request is not mirrored: {error}");
            }
        };
        let mut recording = Exchange::begin(&worker.recorder, SIDE, *client, &request, &worker.unnamed);
        recording.exchange().upstream = upstream.name.clone();
        // A hop of its own, which the first one caused.
        worker.trace(&mut request, &mut recording, None);
        let version = request.version();
        let wire = speak(upstream.policy.protocol, version, &mut request);
        let declared_retry = upstream.set().retry.clone();
        let limit = upstream.policy.request_timeout.unwrap_or(MIRRORED);
        let way = Call {
            pools: &worker.peers,
            upstream: &upstream,
            dialled: None,
            key: None,
            subset: None,
            wire,
            timeout: Some(limit),
            again: Again::Retry(declared_retry.as_deref().unwrap_or(&upstream.policy.retry)),
            idempotent: false,
            keeps_mesh_headers: false,
            keeps_request: false,
            rng: &worker.rng,
        };
        let counted = Cell::new(false);
        let carried = async {
            let (response, result) = match call(&way, &mut request, recording).await {
                Ok(response) => (response, "sent"),
                Err(failed) => {
                    let result = if matches!(failed.why, Why::Received(_)) { "sent" } else { "failed" };
                    (failed.into_response(), result)
                }
            };
            self.count(&name, result);
            counted.set(true);
            // Read to its end, so that its connection serves the next; what it says is nobody's business.
            let mut body = response.into_body();
            while let Some(Ok(_)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
        };
        // Over all of it, and as long again for the body: one that is not taken has no end for the limit to run from, and
        // would hold its place for ever.
        if timeout(limit.saturating_mul(2), carried).await.is_err() {
            tracing::debug!("a copy to {name} was given up");
            if !counted.get() {
                self.count(&name, "failed");
            }
        }
        drop(place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: impl Fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// It is copied into its task once a request: at 9 KiB that was a sixth of all CPU.
    #[test]
    fn the_future_of_a_request_stays_small() {
        let size = size_of_future(crate::http::serve_stream::<Outbound>);
        assert!(size <= 2560, "{size} bytes");
    }

    /// Thousands of connections may be open and silent.
    #[test]
    fn the_future_of_a_connection_stays_small() {
        let size = size_of_future(|worker, stream, (client, open)| serve(worker, stream, client, open));
        assert!(size <= 1280, "{size} bytes");
    }
}
