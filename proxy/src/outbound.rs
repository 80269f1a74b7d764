//! Outbound: from the workload to its peers.
//!
//! Accept, original destination, detect; then for opaque bytes: upstream, endpoint, connection, copy;
//! for HTTP, request by request: destination, route, upstream, endpoint, connection, send, record.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, Version};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::http::{
    Exchange, Forward, Handler, Limits, LocalResponse, ProxyError, Served, Wire, forward, host_of, refuse,
    serve_http1, serve_http2, to_origin_form, wants_own_connection,
};
use crate::net::{
    Body, ClientAddress, Detected, OriginalDestination, Prefixed, detect, readable, resume_detection,
};
use crate::opaque::{Carrying, OpaqueError, WAIT_FOR_REQUEST, Way};
use crate::telemetry::{Direction, Held};
use crate::upstream::{Destination, Endpoint, HeaderLimits, Upstream};
use crate::worker::{Worker, reset};

const SIDE: Direction = Direction::Outbound;
/// How long discovery may take to say that a destination is opaque, before its bytes are looked at. It answers within
/// milliseconds, over a new connection within a second; what it does not answer costs the request's own lookups as much
/// again.
const OPAQUE_KNOWN_WITHIN: Duration = Duration::from_secs(1);

/// Carries one connection of the workload.
pub async fn serve(worker: Rc<Worker>, mut stream: TcpStream, client: ClientAddress, open: Rc<Held>) {
    let accepted = Instant::now();
    let Some(destination) = destination_of(&worker, &stream) else {
        return worker.refuse(stream, SIDE, "own_listener");
    };
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
        match Box::pin(way_to(&worker, destination)).await {
            Ok(mut opened) => match opened.server_speaks_first(&stream).await {
                Some(true) => {
                    if opened.server_spoke_opaquely() {
                        worker.remember_opaque(destination.0);
                    }
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
            None => Box::pin(way_to(&worker, destination)).await,
        };
        match way {
            Ok(way) => {
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

/// Whether nothing is to be parsed: configured, remembered, or declared to the mesh's discovery.
async fn is_opaque(worker: &Worker, destination: OriginalDestination) -> bool {
    let effective = worker.effective().clone();
    if effective.config.outbound.is_opaque(destination.port()) || worker.is_remembered_opaque(destination.0) {
        return true;
    }
    let asked = || timeout(OPAQUE_KNOWN_WITHIN, worker.locate(None, destination.0));
    effective.config.dns.mesh_server.is_some()
        && asked().await.is_ok_and(|answer| {
            answer.is_ok_and(|located| {
                let set = located.upstream.set();
                !set.endpoints.is_empty() && set.endpoints.iter().all(|endpoint| endpoint.opaque)
            })
        })
}

/// Opens the way for opaque bytes; an error comes with the name of the upstream, as far as it is known.
async fn way_to(
    worker: &Rc<Worker>,
    destination: OriginalDestination,
) -> Result<Box<Way>, (Arc<str>, OpaqueError)> {
    let located = worker
        .locate(None, destination.0)
        .await
        .map_err(|error| (Arc::from(destination.to_string()), error.into()))?;
    let endpoint = worker.random(|rng| located.choose(Instant::now(), rng));
    let upstream = located.upstream;
    let Some(endpoint) = endpoint else {
        let name = upstream.name.clone();
        return Err((name.clone(), OpaqueError::NoEndpoint(name)));
    };
    match Way::open(&worker.peers, &upstream, &endpoint).await {
        Ok(way) => Ok(Box::new(way)),
        Err(error) => Err((upstream.name.clone(), error)),
    }
}

/// Answers the requests of one connection.
struct Outbound {
    worker: Rc<Worker>,
    client: ClientAddress,
    destination: OriginalDestination,
    /// Its place in the gauge; a tunnel keeps it.
    open: Rc<Held>,
    /// The last host's answer: the next request nearly always asks the same.
    last: RefCell<Option<(Box<str>, u64, Destination)>>,
}

/// What was decided about a request.
struct Decision {
    upstream: Arc<Upstream>,
    /// `None` when the upstream has none.
    endpoint: Option<Arc<Endpoint>>,
    timeout: Option<Duration>,
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
                return recording.answer_locally(&response, request.headers());
            }
            worker.panic_if_told(request.uri().path());
            if request.version() < Version::HTTP_2 {
                to_origin_form(&mut request);
            }
            let Decision { upstream, endpoint, timeout } =
                match self.decide(&request, recording.exchange()).await {
                    Ok(decision) => decision,
                    Err(response) => return recording.answer_locally(&response, request.headers()),
                };
            recording.exchange().upstream = upstream.name.clone();
            let Some(endpoint) = endpoint else {
                let response = no_endpoint(&upstream);
                return recording.answer_locally(&response, request.headers());
            };
            let wire = match request.version() {
                Version::HTTP_2 => Wire::Multiplexed,
                _ if wants_own_connection(&request) => Wire::Own,
                version => Wire::Http1(version),
            };
            let way = Forward {
                pools: &worker.peers,
                upstream: &upstream,
                endpoint: &endpoint,
                wire,
                timeout,
                keeps_mesh_headers: false,
            };
            let mut response = forward(&way, &mut request, recording).await;
            if worker.shared.stopping.load(Relaxed)
                && wire != Wire::Multiplexed
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
    /// Destination, then route, then upstream, then endpoint.
    async fn decide(
        &self,
        request: &Request<Body>,
        exchange: &mut Exchange,
    ) -> Result<Decision, LocalResponse> {
        let destination =
            self.locate(host_of(request)).await.map_err(|error| LocalResponse::destination(&error))?;
        let mut endpoint = self.worker.random(|rng| destination.choose(Instant::now(), rng));
        let mut upstream = destination.upstream;
        let mut timeout = upstream.policy.request_timeout.or(upstream.set().request_timeout);
        if let Some(host) = &destination.routed_host {
            let effective = self.worker.effective().clone();
            let path = request.uri().path();
            if let Some(route) = effective.routes.find(host, request.method(), path) {
                exchange.route = route.name.clone();
                timeout = route.timeout.or(timeout);
                if let Some(name) = self.worker.random(|rng| route.choose(rng).cloned()) {
                    upstream = self
                        .worker
                        .configured(&name, self.destination.port())
                        .await
                        .map_err(|error| LocalResponse::destination(&error))?;
                    endpoint = self.worker.random(|rng| upstream.choose(Instant::now(), rng));
                }
            }
        }
        Ok(Decision { upstream, endpoint, timeout })
    }

    async fn locate(&self, host: Option<&str>) -> Result<Destination, crate::upstream::DestinationError> {
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

fn no_endpoint(upstream: &Upstream) -> LocalResponse {
    let why = match &upstream.set().error {
        Some(error) => format!("upstream {} has no endpoint: {error}", upstream.name),
        None => format!("upstream {} has no endpoint", upstream.name),
    };
    LocalResponse {
        retry_after: Some(Duration::from_secs(1)),
        ..LocalResponse::new(ProxyError::NO_ENDPOINT, why)
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
