//! Forwards one request to one endpoint: over the mesh as HTTP/2, else as the client spoke.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use h2::RecvStream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, Version};
use hyper::body::Incoming;

use super::headers::{ORIGINAL_VERSION, version_to_mesh};
use super::hop::{HopError, PumpGuard, is_unprocessed, send_multiplexed};
use super::local_response::{LocalResponse, ProxyError};
use super::record::{Recording, RequestProgress};
use super::tunnel::{ClientSide, strip_but_upgrade};
use crate::net::{Body, has_unknown_coding, strip_hop_by_hop, strip_mesh_headers};
use crate::telemetry::Tls;
use crate::upstream::{ConnectError, Endpoint, EndpointPool, InFlight, Pools, StreamLease, Upstream};

/// How a request leaves the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// One of many on an HTTP/2 connection.
    Multiplexed,
    /// One at a time, in this version of HTTP/1.
    Http1(Version),
    /// In HTTP/1.1 on a connection of its own: it may become a tunnel, or needs an interim response.
    Own,
}

/// One way a request can go.
pub struct Forward<'a> {
    /// The worker's connections.
    pub pools: &'a Pools,
    /// The upstream.
    pub upstream: &'a Arc<Upstream>,
    /// The endpoint chosen.
    pub endpoint: &'a Arc<Endpoint>,
    /// How it leaves to an endpoint without a sidecar; the mesh multiplexes all but [`Wire::Own`].
    pub wire: Wire,
    /// From the request's end to the response's headers.
    pub timeout: Option<Duration>,
    /// Fields of the mesh's own that are in the request were put there by us.
    pub keeps_mesh_headers: bool,
}

/// Sends `request` and gives its response, or the response that the proxy makes in its place.
pub async fn forward(
    way: &Forward<'_>,
    request: &mut Request<Body>,
    mut recording: Box<Recording>,
) -> Response<Body> {
    recording.sent_to(InFlight::begin(way.endpoint, Instant::now()));
    if !way.keeps_mesh_headers {
        strip_mesh_headers(request.headers_mut());
    }
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let idle_timeout = way.upstream.policy.stream_idle_timeout;
    recording.ends_when_idle_for(idle_timeout);
    let body = recording.watch_request(std::mem::take(request.body_mut())).ending_when_idle_for(idle_timeout);
    *request.body_mut() = body;
    let client_side = (way.wire == Wire::Own).then(|| ClientSide::prepare(request));
    let progress = recording.progress();
    let result = match way.timeout {
        None => way.send(request, &mut recording).await,
        Some(limit) => within(limit, progress, Box::pin(way.send(request, &mut recording))).await,
    };
    match result {
        Ok(mut response) => {
            recording.answered(response.status(), response.headers());
            match client_side {
                Some(side) if side.is_granted(&response) => side.join(&mut response, recording),
                _ => {
                    strip_hop_by_hop(response.headers_mut());
                    response = recording.follow(response).map(|body| body.ending_when_idle_for(idle_timeout));
                }
            }
            response
        }
        Err(error) => {
            let local = if recording.request_broke() {
                // Not the endpoint's fault.
                LocalResponse::new(ProxyError::BAD_REQUEST, "the request's body broke off")
            } else {
                recording.failed();
                error.to_local_response(&way.upstream.name, way.endpoint.address)
            };
            let request: HeaderMap = content_type.map(|value| (CONTENT_TYPE, value)).into_iter().collect();
            recording.answer_locally(&local, &request)
        }
    }
}

impl Forward<'_> {
    async fn send(
        &self,
        request: &mut Request<Body>,
        recording: &mut Recording,
    ) -> Result<Response<Body>, HopError> {
        let pool = self.pools.of(self.upstream, self.endpoint);
        if !pool.is_meshed() {
            return self.send_plain(&pool, request, recording).await;
        }
        recording.exchange().tls = Tls::Mesh;
        if self.wire == Wire::Own {
            return Box::pin(self.send_own(&pool, request, recording)).await;
        }
        let stream = match pool.stream(self.upstream).await {
            Ok(stream) => stream,
            Err(ConnectError::NotMeshed(_)) => {
                // Permissive mode found no sidecar there.
                recording.exchange().tls = Tls::Plain;
                let pool = self.pools.of(self.upstream, self.endpoint);
                return Box::pin(self.send_plain(&pool, request, recording)).await;
            }
            Err(error) => return Err(error.into()),
        };
        strip_hop_by_hop(request.headers_mut());
        let version = version_to_mesh(request.version());
        request.headers_mut().insert(ORIGINAL_VERSION, version);
        let (response, stream, pump) = self.send_stream(&pool, stream, request).await?;
        recording.on_stream(stream, pump);
        let mut response = response.map(Body::from);
        strip_mesh_headers(response.headers_mut());
        Ok(response)
    }

    /// Sends on `stream`. A request without a body that meets the peer's GOAWAY on its way goes by another
    /// connection: the peer has not looked at it, and a drain or a new certificate must cost nobody a request.
    async fn send_stream(
        &self,
        pool: &Rc<EndpointPool>,
        mut stream: StreamLease,
        request: &mut Request<Body>,
    ) -> Result<(Response<RecvStream>, StreamLease, Option<PumpGuard>), HopError> {
        // Boxed: the future of every request would be as large as this one.
        let spare = request.body().is_end().then(|| Box::new(head_of(request)));
        match (send_multiplexed(&mut stream, std::mem::take(request)).await, spare) {
            (Ok((response, pump)), _) => Ok((response, stream, pump)),
            (Err(error), Some(spare)) if is_unprocessed(&error) => {
                drop(stream);
                let mut stream = Box::pin(pool.stream(self.upstream)).await?;
                let (response, pump) = Box::pin(send_multiplexed(&mut stream, *spare)).await?;
                Ok((response, stream, pump))
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    async fn send_plain(
        &self,
        pool: &Rc<EndpointPool>,
        request: &mut Request<Body>,
        recording: &mut Recording,
    ) -> Result<Response<Body>, HopError> {
        recording.exchange().tls = if pool.is_server_tls() { Tls::Server } else { recording.exchange().tls };
        let version = match self.wire {
            Wire::Own => return Box::pin(self.send_own(pool, request, recording)).await,
            Wire::Multiplexed => {
                strip_hop_by_hop(request.headers_mut());
                let stream = pool.stream(self.upstream).await?;
                let (response, stream, pump) = self.send_stream(pool, stream, request).await?;
                recording.on_stream(stream, pump);
                let mut response = response.map(Body::from);
                strip_mesh_headers(response.headers_mut());
                return Ok(response);
            }
            Wire::Http1(version) => version,
        };
        strip_hop_by_hop(request.headers_mut());
        *request.version_mut() = version;
        let mut lease = pool.http1(self.upstream).await?;
        let mut request = std::mem::take(request);
        let response = loop {
            match lease.sender.try_send_request(request).await {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    // The workload closed an unused connection just now; nothing was sent on it.
                    Some(unsent) if lease.reused => {
                        request = unsent;
                        lease = pool.http1(self.upstream).await?;
                    }
                    _ => return Err(error.into_error().into()),
                },
            }
        };
        let response = checked(response)?;
        recording.on_connection(lease);
        Ok(response)
    }

    async fn send_own(
        &self,
        pool: &Rc<EndpointPool>,
        request: &mut Request<Body>,
        recording: &mut Recording,
    ) -> Result<Response<Body>, HopError> {
        strip_but_upgrade(request.headers_mut());
        *request.version_mut() = Version::HTTP_11;
        let mut lease = match pool.http1_dedicated(self.upstream).await {
            Err(ConnectError::NotMeshed(_)) => {
                recording.exchange().tls = Tls::Plain;
                self.pools.of(self.upstream, self.endpoint).http1_dedicated(self.upstream).await?
            }
            lease => lease?,
        };
        let response = lease.sender.send_request(std::mem::take(request)).await?;
        let response = checked(response)?;
        recording.on_own_connection(lease);
        Ok(response)
    }
}

/// What of a response over HTTP/1.1 may go on.
fn checked(response: Response<Incoming>) -> Result<Response<Body>, HopError> {
    let mut response = response.map(Body::from);
    if has_unknown_coding(response.headers()) && !response.body().is_end() {
        return Err(HopError::UnknownCoding);
    }
    strip_mesh_headers(response.headers_mut());
    Ok(response)
}

/// The same request once more, without extensions and body.
fn head_of(request: &Request<Body>) -> Request<Body> {
    let mut head = Request::new(Body::empty());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    head
}

/// Waits for the response's headers until `limit` after the request's end.
async fn within<F>(
    limit: Duration,
    progress: Option<Rc<RequestProgress>>,
    sending: F,
) -> Result<Response<Body>, HopError>
where
    F: Future<Output = Result<Response<Body>, HopError>>,
{
    let too_late = async {
        if let Some(progress) = progress {
            progress.ended().await;
        }
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        biased;
        response = sending => response,
        () = too_late => Err(HopError::Timeout(limit)),
    }
}
