//! One try of a request at one endpoint: over the mesh as HTTP/2, else as the client spoke.

use std::rc::Rc;
use std::sync::Arc;

use h2::RecvStream;
use http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;

use super::headers::{ORIGINAL_VERSION, version_to_mesh};
use super::hop::{HopError, PumpGuard, is_unprocessed, send_multiplexed};
use super::record::Recording;
use super::tunnel::{Interim, strip_but_upgrade};
use crate::net::{Body, has_unknown_coding, strip_hop_by_hop};
use crate::telemetry::Tls;
use crate::upstream::{ConnectError, Endpoint, EndpointPool, Pools, StreamLease, Upstream};

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

/// One try: the way to one endpoint.
pub(super) struct Forward<'a> {
    /// The worker's connections.
    pub(super) pools: &'a Pools,
    /// The upstream.
    pub(super) upstream: &'a Arc<Upstream>,
    /// The endpoint chosen.
    pub(super) endpoint: &'a Arc<Endpoint>,
    /// How it leaves to an endpoint without a sidecar; the mesh multiplexes all but [`Wire::Own`].
    pub(super) wire: Wire,
    /// The request's head once more, if the caller keeps one.
    pub(super) spare: Option<&'a Request<Body>>,
}

impl Forward<'_> {
    /// Sends `request` and gives the head of its response, with the mesh's fields in it. After [`HopError::Connect`] the
    /// request is still where it was; after anything else it is gone.
    pub(super) async fn send(
        &self,
        request: &mut Request<Body>,
        recording: &mut Recording,
    ) -> Result<Response<Body>, HopError> {
        let mut pool = self.pools.of(self.upstream, self.endpoint);
        let mut stream = loop {
            // The inbound side's says how the peer came, and stays.
            if pool.is_meshed() {
                recording.exchange().tls = Tls::Mesh;
            } else if pool.is_server_tls() {
                recording.exchange().tls = Tls::Server;
            }
            match self.wire {
                Wire::Own => return Box::pin(self.send_own(&pool, request, recording)).await,
                Wire::Http1(version) if !pool.is_meshed() => {
                    return self.send_http1(&pool, version, request, recording).await;
                }
                Wire::Http1(_) | Wire::Multiplexed => match pool.stream(self.upstream).await {
                    // Permissive mode found no sidecar there: what is known now makes it another pool.
                    Err(ConnectError::NotMeshed(_)) => {
                        recording.exchange().tls = Tls::Plain;
                        pool = self.pools.of(self.upstream, self.endpoint);
                    }
                    stream => break stream?,
                },
            }
        };
        strip_hop_by_hop(request.headers_mut());
        if pool.is_meshed() {
            let version = version_to_mesh(request.version());
            request.headers_mut().insert(ORIGINAL_VERSION, version);
        }
        let (response, pump) = self.send_stream(&pool, &mut stream, request).await?;
        recording.on_stream(stream, pump);
        Ok(response.map(Body::from))
    }

    /// Sends on `stream`. A request without a body that meets the peer's GOAWAY on its way goes by another
    /// connection: the peer has not looked at it, and a drain or a new certificate must cost nobody a request.
    async fn send_stream(
        &self,
        pool: &Rc<EndpointPool>,
        stream: &mut StreamLease,
        request: &mut Request<Body>,
    ) -> Result<(Response<RecvStream>, Option<PumpGuard>), HopError> {
        let has_body = !request.body().is_end();
        let own = (!has_body && self.spare.is_none()).then(|| head_of(request));
        let error = match send_multiplexed(stream, request).await {
            Ok(sent) => return Ok(sent),
            Err(error) => error,
        };
        let spare = self.spare.or(own.as_deref()).filter(|_| !has_body && is_unprocessed(&error));
        let Some(spare) = spare else { return Err(error.into()) };
        // Without another connection it stays what it is: a request that nobody has processed.
        let Ok(other) = Box::pin(pool.stream(self.upstream)).await else { return Err(error.into()) };
        *stream = other;
        let mut again = head_of(spare);
        Ok(Box::pin(send_multiplexed(stream, &mut again)).await?)
    }

    async fn send_http1(
        &self,
        pool: &Rc<EndpointPool>,
        version: Version,
        request: &mut Request<Body>,
        recording: &mut Recording,
    ) -> Result<Response<Body>, HopError> {
        strip_hop_by_hop(request.headers_mut());
        *request.version_mut() = version;
        let mut lease = pool.http1(self.upstream).await?;
        let response = loop {
            match lease.sender.try_send_request(std::mem::take(request)).await {
                Ok(response) => break response,
                Err(error) => *request = unsent(error, lease.reused)?,
            }
            lease = pool.http1(self.upstream).await?;
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

/// The request, if the workload closed an unused connection just now: nothing was sent on it.
fn unsent(mut error: TrySendError<Request<Body>>, reused: bool) -> Result<Request<Body>, HopError> {
    match error.take_message() {
        Some(unsent) if reused => Ok(unsent),
        _ => Err(error.into_error().into()),
    }
}

/// What of a response over HTTP/1.1 may go on.
fn checked(response: Response<Incoming>) -> Result<Response<Body>, HopError> {
    let response = response.map(Body::from);
    if has_unknown_coding(response.headers()) && !response.body().is_end() {
        return Err(HopError::UnknownCoding);
    }
    Ok(response)
}

/// The same request once more, without its body, and what was made for a tunnel. Boxed: the future of every request would be as large as it.
pub(super) fn head_of(request: &Request<Body>) -> Box<Request<Body>> {
    let mut head = Box::new(Request::new(Body::empty()));
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.version_mut() = request.version();
    *head.headers_mut() = request.headers().clone();
    if let Some(interim) = request.extensions().get::<Interim>() {
        head.extensions_mut().insert(interim.clone());
    }
    head
}
