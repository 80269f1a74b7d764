//! Inbound: from peers to the workload.
//!
//! Accept, original destination, first bytes; mesh TLS and who the peer is; then for opaque bytes:
//! authorization, connection, copy; for HTTP, request by request: authorization, connection, send, record.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::header::HeaderValue;
use http::{Request, Response, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Mtls, Protocol};
use crate::http::{
    Again, CLIENT_ID, Call, Exchange, Failed, Handler, Limits, LocalResponse, ProxyError, Recording, Served,
    Wire, call, mark_retries_exhausted, mark_unprocessed, refuse, serve_http1, serve_http2, to_origin_form,
    version_from_mesh, wants_own_connection,
};
use crate::identity::{self, HandshakeError, Peer};
use crate::net::{
    Body, ClientAddress, Detected, Guarded, MeshProtocol, OriginalDestination, Prefixed, detect, readable,
    resume_detection, strip_mesh_headers, would_be_http,
};
use crate::opaque::{Carrying, ClientStream, WAIT_FOR_REQUEST, Way};
use crate::telemetry::{Direction, OpenConnection, Tls};
use crate::upstream::HeaderLimits;
use crate::worker::{Effective, Worker, reset};

const SIDE: Direction = Direction::Inbound;
/// Time for a peer's first byte where it must speak first, and for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The label of bytes that a workload could take for a request, and we can't.
const BAD_REQUEST: &str = "bad_request";

/// Carries one connection of a peer.
pub async fn serve(
    worker: Rc<Worker>,
    mut stream: TcpStream,
    client: ClientAddress,
    open: Rc<OpenConnection>,
) {
    let accepted = Instant::now();
    let destination = match destination_of(&worker, &stream) {
        Ok(destination) => destination,
        Err(reason) => return worker.refuse(stream, SIDE, reason),
    };
    open.goes_to(destination.0);
    let effective = worker.effective().clone();
    let mtls = effective.config.inbound_mtls(destination.port());
    let protocol = effective.config.inbound.protocol(destination.port());
    let mut connection =
        Connection { worker: worker.clone(), client, destination, accepted, protocol, peer: None, open };
    let mut first_bytes = BytesMut::new();
    let detected = match first(&mut stream, &mut first_bytes, mtls).await {
        Ok(detected) => detected,
        Err(Reset) => return worker.refuse(stream, SIDE, "silent"),
    };
    // Each way is boxed: what a silent connection holds is this future, and theirs are large.
    if detected == (Detected::Tls { mesh: true }) {
        return Box::pin(connection.mesh(first_bytes, stream, &effective)).await;
    }
    match mtls {
        // Health checks open connections and close them without a word: nobody who would be refused.
        Mtls::Strict if detected == Detected::Closed => return,
        Mtls::Strict => {
            return Box::pin(connection.refuse_plaintext(detected, first_bytes, stream)).await;
        }
        Mtls::Audit if detected != Detected::Closed => connection.audit(detected),
        Mtls::Audit | Mtls::Permissive => {}
    }
    Box::pin(connection.plaintext(detected, first_bytes, stream, &effective)).await;
}

struct Reset;

/// The first bytes. In strict mode the peer must send them; a plaintext peer may wait for the workload.
async fn first(stream: &mut TcpStream, first_bytes: &mut BytesMut, mtls: Mtls) -> Result<Detected, Reset> {
    match detect(stream, first_bytes).await {
        Ok(Detected::Silent) if mtls == Mtls::Strict => {
            match tokio::time::timeout(HANDSHAKE, readable(stream)).await {
                Ok(Ok(())) => resume_detection(stream, first_bytes).await.map_err(|_| Reset),
                Ok(Err(_)) => Ok(Detected::Closed),
                Err(_) => Err(Reset),
            }
        }
        detected => detected.map_err(|_| Reset),
    }
}

/// Where the peer wanted to go: an address of this pod and not the proxy itself.
fn destination_of(worker: &Worker, stream: &TcpStream) -> Result<OriginalDestination, &'static str> {
    let destination = OriginalDestination::of(stream).map_err(|_| "not_redirected")?;
    if !worker.shared.local.contains(destination.ip()) {
        return Err("not_local");
    }
    if worker.shared.own_ports.contains(&destination.port()) {
        return Err("own_listener");
    }
    Ok(destination)
}

/// A connection of a peer.
#[derive(Clone)]
struct Connection {
    worker: Rc<Worker>,
    client: ClientAddress,
    destination: OriginalDestination,
    accepted: Instant,
    protocol: Protocol,
    peer: Option<Peer>,
    /// Its place in the gauge; a tunnel keeps it.
    open: Rc<OpenConnection>,
}

impl Connection {
    /// Accepts mesh TLS and serves what it carries.
    async fn mesh(&mut self, first_bytes: BytesMut, stream: TcpStream, effective: &Effective) {
        let worker = self.worker.clone();
        let Some(config) = worker.shared.tls.server() else {
            worker.recorder.tls_handshake(SIDE, Err(HandshakeError::NotCertified.reason()));
            return worker.refuse(stream, SIDE, "not_certified");
        };
        let stream = Prefixed::new(first_bytes, stream);
        let (stream, protocol, peer) =
            match identity::accept(config, stream, &effective.trust_domain, HANDSHAKE).await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!("{} to {}: {error}", self.client, self.destination);
                    return worker.recorder.tls_handshake(SIDE, Err(error.reason()));
                }
            };
        worker.recorder.tls_handshake(SIDE, Ok(()));
        self.open.is_from(&peer.id);
        self.peer = Some(peer);
        let limits = self.limits();
        if protocol != MeshProtocol::Tcp {
            self.open.speaks(if protocol == MeshProtocol::H2 { "http2" } else { "http1" });
        }
        let handler = Rc::new(Inbound::new(self.clone(), protocol));
        let served = match protocol {
            MeshProtocol::H2 => Box::pin(serve_http2(stream, handler, limits)).await,
            MeshProtocol::H1 => Box::pin(serve_http1(stream, handler, limits)).await,
            MeshProtocol::Tcp => return Box::pin(self.opaque(stream, effective)).await,
        };
        self.count(served);
    }

    /// Serves a plaintext peer that permissive mode lets in.
    async fn plaintext(
        &self,
        detected: Detected,
        mut first_bytes: BytesMut,
        mut stream: TcpStream,
        effective: &Effective,
    ) {
        let worker = &self.worker;
        let port = self.destination.port();
        let opaque_port = effective.config.inbound.is_opaque(port) || self.protocol == Protocol::Tcp;
        let mut detected = if opaque_port { Detected::Opaque } else { detected };
        let mut way = None;
        if detected == Detected::Silent {
            let (upstream, endpoint) = worker.workload_at(self.destination.0);
            if self.demands_http(effective) {
                // Such a port takes no opaque bytes, so the client must speak first.
                match tokio::time::timeout(HANDSHAKE, readable(&stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(_)) => return,
                    Err(_) => return worker.refuse(stream, SIDE, "silent"),
                }
            } else if !effective.authorization.allows_opaque(None, port) {
                return worker.refuse(stream, SIDE, "denied");
            } else {
                match Way::open(&worker.workload, &upstream, &endpoint).await {
                    Err(error) => {
                        self.carrying().refused(&upstream.name, &error);
                        return reset(&stream);
                    }
                    Ok(mut opened) => match opened.server_speaks_first(&stream).await {
                        Some(true) => return self.carry(opened, stream, effective).await,
                        Some(false) => way = Some(opened),
                        None => return,
                    },
                }
            }
            detected = match resume_detection(&mut stream, &mut first_bytes).await {
                Ok(detected) => detected,
                Err(_) => return,
            };
        }
        let stream = Prefixed::new(first_bytes, stream);
        if !matches!(detected, Detected::Http1 | Detected::Http2) {
            return match way {
                Some(way) => self.carry(way, stream, effective).await,
                None => self.opaque(stream, effective).await,
            };
        }
        drop(way);
        self.open.speaks(if detected == Detected::Http2 { "http2" } else { "http1" });
        let limits = self.limits();
        let handler = Rc::new(Inbound::new(self.clone(), MeshProtocol::H1));
        self.count(match detected {
            Detected::Http2 => serve_http2(stream, handler, limits).await,
            _ => serve_http1(stream, handler, limits).await,
        });
    }

    /// Strict mode lets mesh TLS in and nothing else. HTTP is told so; the rest gets a reset.
    async fn refuse_plaintext(&self, detected: Detected, first_bytes: BytesMut, stream: TcpStream) {
        let worker = &self.worker;
        let reason = match detected {
            Detected::Tls { .. } => "tls_without_mesh",
            _ => "plaintext",
        };
        // Who is not let in holds nothing for long: one answer on HTTP/1.1, some seconds on HTTP/2, whose clients
        // drop a request that meets GOAWAY.
        let (_, once) = tokio::sync::watch::channel(true);
        let draining = match detected {
            Detected::Http1 => once,
            _ => worker.shared.inbound_draining.clone(),
        };
        let limits = Limits { draining, ..self.limits() };
        let handler = Rc::new(Denied(self.clone()));
        match detected {
            Detected::Http1 | Detected::Http2 => {
                worker.shared.metrics.connections_refused.inc([SIDE.as_str(), reason]);
                let stream = Prefixed::new(first_bytes, stream);
                let serving = async {
                    match detected {
                        Detected::Http1 => serve_http1(stream, handler, limits).await,
                        _ => serve_http2(stream, handler, limits).await,
                    }
                };
                // Counted already; that it was cut off changes nothing.
                let _ = tokio::time::timeout(HANDSHAKE, serving).await;
            }
            _ => worker.refuse(stream, SIDE, reason),
        }
    }

    /// Names whom strict mode would have refused.
    fn audit(&self, detected: Detected) {
        let what = match detected {
            Detected::Tls { .. } => "tls_without_mesh",
            _ => "plaintext",
        };
        self.worker.shared.metrics.audit_would_refuse.inc([SIDE.as_str(), what]);
        tracing::warn!("audit: strict mode would refuse {what} from {} to {}", self.client, self.destination);
    }

    async fn opaque<C: ClientStream + Send + 'static>(&self, stream: C, effective: &Effective) {
        let worker = &self.worker;
        let port = self.destination.port();
        let id = self.peer.as_ref().map(|peer| &peer.id);
        if self.demands_http(effective) {
            return self.refuse_opaque(stream).await;
        }
        if !effective.authorization.allows_opaque(id, port) {
            worker.shared.metrics.connections_refused.inc([SIDE.as_str(), "denied"]);
            return reset(stream.socket());
        }
        let (upstream, endpoint) = worker.workload_at(self.destination.0);
        match Way::open(&worker.workload, &upstream, &endpoint).await {
            Ok(way) => self.carry(way, stream, effective).await,
            Err(error) => {
                self.carrying().refused(&upstream.name, &error);
                reset(stream.socket());
            }
        }
    }

    /// Whether the port takes nothing but requests: by its rules, or by the protocol declared for it.
    fn demands_http(&self, effective: &Effective) -> bool {
        matches!(self.protocol, Protocol::Http1 | Protocol::Http2 | Protocol::Grpc)
            || effective.authorization.demands_http(self.destination.port())
    }

    /// A port that takes requests only refuses bytes. A silent client has sent none: its sidecar opened this
    /// connection for what the workload may say first, and sends the client's requests by another.
    async fn refuse_opaque<C: ClientStream>(&self, mut stream: C) {
        let reason = match tokio::time::timeout(WAIT_FOR_REQUEST, stream.read(&mut [0])).await {
            Ok(Ok(0)) => {
                // To fail is all that is left to it.
                let _ = stream.shutdown().await;
                return;
            }
            Ok(Ok(_)) => "denied",
            Ok(Err(_)) => return,
            Err(_) => "silent",
        };
        self.worker.shared.metrics.connections_refused.inc([SIDE.as_str(), reason]);
        reset(stream.socket());
    }

    /// Carries opaque bytes, unless they prove to be requests.
    async fn carry<C: ClientStream + Send + 'static>(
        &self,
        mut way: Way,
        mut stream: C,
        effective: &Effective,
    ) {
        let mut first_bytes = BytesMut::new();
        let is_watched = !effective.config.inbound.is_opaque(self.destination.port());
        if is_watched {
            // Requests that come as opaque bytes are read as requests all the same: nobody may write to the
            // workload in the mesh's name.
            let spoken = async {
                if !way.server_has_spoken() {
                    let server_first = way.server_speaks_before(&mut stream, &mut first_bytes).await?;
                    if !server_first {
                        return Some(true);
                    }
                }
                // Who is greeted so may be about to send requests.
                if !way.server_may_await_requests() {
                    return Some(false);
                }
                stream.read_buf(&mut first_bytes).await.ok().map(|_| true)
            };
            let spoken = match self.peer.as_ref().map(|peer| peer.expires.into()) {
                // Silence does not outlive the peer's certificate.
                Some(expires) => tokio::time::timeout_at(expires, spoken).await.unwrap_or(None),
                None => spoken.await,
            };
            let Some(client_spoke) = spoken else { return reset(stream.socket()) };
            if client_spoke {
                match would_be_http(&mut stream, &mut first_bytes).await {
                    Ok(false) => {}
                    Ok(true) => {
                        drop(way);
                        return Box::pin(self.requests(first_bytes, stream)).await;
                    }
                    Err(_) => return reset(stream.socket()),
                }
            }
        }
        self.open.carries(way.upstream_name());
        let stream = Guarded::new(Prefixed::new(first_bytes, stream), is_watched);
        if way.carry(&self.carrying(), stream).await {
            self.count(Served::Refused(BAD_REQUEST));
        }
    }

    /// Serves requests that came as opaque bytes.
    async fn requests<C: ClientStream + Send + 'static>(&self, first_bytes: BytesMut, stream: C) {
        let limits = self.limits();
        let handler = Rc::new(Inbound::new(self.clone(), MeshProtocol::H1));
        let http2 = first_bytes.starts_with(b"PRI * HTTP/2.0\r\n");
        self.open.speaks(if http2 { "http2" } else { "http1" });
        let stream = Prefixed::new(first_bytes, stream);
        self.count(if http2 {
            serve_http2(stream, handler, limits).await
        } else {
            serve_http1(stream, handler, limits).await
        });
    }

    fn limits(&self) -> Limits {
        Limits {
            headers: HeaderLimits::of(self.peer.is_some()),
            draining: self.worker.shared.inbound_draining.clone(),
            expires: self.peer.as_ref().map(|peer| peer.expires),
        }
    }

    fn carrying(&self) -> Carrying<'_> {
        Carrying {
            recorder: &self.worker.recorder,
            direction: SIDE,
            client: self.client,
            accepted: self.accepted,
            client_peer: self.peer.as_ref().map(|peer| (&peer.id, peer.expires)),
        }
    }

    fn count(&self, served: Served) {
        if let Served::Refused(reason) = served {
            self.worker.shared.metrics.connections_refused.inc([SIDE.as_str(), reason]);
        }
    }

    fn recording(&self, request: &Request<Body>) -> Box<Recording> {
        let worker = &self.worker;
        let mut recording = Exchange::begin(&worker.recorder, SIDE, self.client, request, &worker.unnamed);
        if let Some(peer) = &self.peer {
            recording.exchange().tls = Tls::Mesh;
            recording.exchange().peer = Some(peer.id.clone());
            recording.ends_by(peer.expires);
        }
        recording.holds_open(self.open.clone());
        recording
    }
}

/// Answers the requests of one connection.
struct Inbound {
    connection: Connection,
    carried_by: MeshProtocol,
    client_id: Option<HeaderValue>,
}

impl Inbound {
    fn new(connection: Connection, carried_by: MeshProtocol) -> Self {
        let client_id =
            connection.peer.as_ref().and_then(|peer| HeaderValue::from_str(peer.id.as_str()).ok());
        Self { connection, carried_by, client_id }
    }

    /// The answer to a request, which came then, that the workload did not see or could not serve; its proxy is told
    /// whether another try makes sense.
    fn failed(&self, failed: Failed, came: Instant) -> Response<Body> {
        let Connection { worker, peer, .. } = &self.connection;
        let is_unprocessed = failed.unprocessed;
        let mut response = failed.into_response();
        if peer.is_some() {
            if is_unprocessed {
                mark_unprocessed(response.headers_mut());
            } else if worker.was_exhausted_since(came) {
                // What the workload waited for has been tried often enough further in.
                mark_retries_exhausted(response.headers_mut());
            }
        }
        response
    }
}

impl Handler for Inbound {
    // Not an `async fn`: that would hold the request twice, and this future is copied once a request.
    #[expect(clippy::manual_async_fn, reason = "see above")]
    fn handle(self: Rc<Self>, mut request: Request<Body>) -> impl Future<Output = Response<Body>> {
        async move {
            let connection = &self.connection;
            let worker = &connection.worker;
            let came = Instant::now();
            let mut recording = connection.recording(&request);
            let meshed = connection.peer.is_some();
            let version = if meshed && self.carried_by == MeshProtocol::H2 {
                version_from_mesh(request.headers())
            } else {
                request.version()
            };
            if let Some(response) = refuse(&mut request, version, HeaderLimits::of(meshed)) {
                return recording.answer_locally(&response);
            }
            worker.panic_if_told(request.uri().path());
            let id = connection.peer.as_ref().map(|peer| &peer.id);
            let port = connection.destination.port();
            let asked = identity::Request { method: request.method(), path: request.uri().path() };
            if !worker.effective().authorization.allows(id, port, asked) {
                let detail = match id {
                    Some(id) => format!("{id} may not {} this path on port {port}", request.method()),
                    None => {
                        format!(
                            "a peer without identity may not {} this path on port {port}",
                            request.method()
                        )
                    }
                };
                let response = LocalResponse::new(ProxyError::DENIED, detail);
                return recording.answer_locally(&response);
            }
            if !meshed && worker.effective().config.inbound_mtls(port) == Mtls::Strict {
                // Let in before a reload made the port strict.
                return recording.answer_locally(&strict_port(port));
            }
            strip_mesh_headers(request.headers_mut());
            if let Some(client_id) = &self.client_id {
                request.headers_mut().insert(CLIENT_ID, client_id.clone());
            }
            let wire = match version {
                Version::HTTP_2 => Wire::Multiplexed,
                _ if self.carried_by == MeshProtocol::H1 && wants_own_connection(&request) => Wire::Own,
                version => Wire::Http1(version),
            };
            if wire != Wire::Multiplexed {
                to_origin_form(&mut request);
            }
            let (upstream, endpoint) = worker.workload_at(connection.destination.0);
            connection.open.is_for(&upstream.name);
            recording.exchange().upstream = upstream.name.clone();
            let way = Call {
                pools: &worker.workload,
                upstream: &upstream,
                dialled: Some(&endpoint),
                key: None,
                subset: None,
                wire,
                timeout: None,
                again: Again::Connect(worker.effective().workload.connect_retry()),
                idempotent: false,
                keeps_mesh_headers: true,
                keeps_request: false,
                rng: &worker.rng,
            };
            match call(&way, &mut request, recording).await {
                Ok(response) => response,
                Err(failed) => self.failed(*failed, came),
            }
        }
    }
}

fn strict_port(port: u16) -> LocalResponse {
    let detail = format!(
        "port {port} takes mesh TLS only: call it through a sidecar, or exempt the port with inbound.ports.{port}.mtls"
    );
    LocalResponse::new(ProxyError::DENIED, detail)
}

/// Tells plaintext callers that a strict port takes mesh TLS only.
struct Denied(Connection);

impl Handler for Denied {
    async fn handle(self: Rc<Self>, request: Request<Body>) -> Response<Body> {
        let response = strict_port(self.0.destination.port());
        self.0.recording(&request).answer_locally(&response)
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
        let size = size_of_future(crate::http::serve_stream::<Inbound>);
        assert!(size <= 2560, "{size} bytes");
    }

    /// Thousands of connections may be open and silent.
    #[test]
    fn the_future_of_a_connection_stays_small() {
        let size = size_of_future(|worker, stream, (client, open)| serve(worker, stream, client, open));
        assert!(size <= 1280, "{size} bytes");
    }
}
