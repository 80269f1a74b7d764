//! Tries of requests at servers of the test's own, over real sockets.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;

use http::{StatusCode, Version};
use rand::SeedableRng;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::config;
use crate::http::{Exchange, Recording};
use crate::net::{ClientAddress, Dialler};
use crate::telemetry::{AccessLog, Direction, Metrics, Recorder, Tls};
use crate::upstream::{EndpointSet, EndpointState, Member, Policy, PoolsSettings, Security};

const SOON: Duration = Duration::from_secs(10);

/// An endpoint, what came to it, and on how many connections.
struct Server {
    endpoint: Arc<Endpoint>,
    came: Rc<Cell<usize>>,
    accepted: Rc<Cell<usize>>,
}

impl Server {
    /// `answer` gives the response to a request, which so many came before; without one the client waits for ever.
    async fn start(answer: impl Fn(usize) -> Option<String> + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        let endpoint = Endpoint::new(address, false, Security::Plain, name);
        let (came, accepted) = (Rc::<Cell<usize>>::default(), Rc::<Cell<usize>>::default());
        let (counter, connections, answer) = (came.clone(), accepted.clone(), Rc::new(answer));
        spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.set(connections.get() + 1);
                spawn_local(serve(stream, counter.clone(), answer.clone()));
            }
        });
        Self { endpoint, came, accepted }
    }
}

async fn serve(
    mut stream: TcpStream,
    came: Rc<Cell<usize>>,
    answer: Rc<impl Fn(usize) -> Option<String> + 'static>,
) {
    let mut read = Vec::new();
    while stream.read_buf(&mut read).await.is_ok_and(|read| read > 0) {
        while let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            read.drain(..end + 4);
            came.set(came.get() + 1);
            match answer(came.get() - 1) {
                Some(response) if stream.write_all(response.as_bytes()).await.is_ok() => {}
                Some(_) => return,
                None => pending().await,
            }
        }
    }
}

fn response(status: &str, fields: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len()))
}

/// One worker's connections.
struct World {
    pools: Pools,
    recorder: Rc<Recorder>,
    rng: RefCell<SmallRng>,
}

impl World {
    fn new() -> Self {
        let metrics = Arc::new(Metrics::new());
        let access_log = AccessLog::off(&metrics);
        let recorder = Rc::new(Recorder::new(metrics, access_log));
        let settings = PoolsSettings {
            dialler: Dialler::to_peers(None),
            tls: Arc::default(),
            recorder: recorder.clone(),
        };
        Self { pools: Pools::new(settings), recorder, rng: RefCell::new(SmallRng::seed_from_u64(7)) }
    }

    fn call<'a>(&'a self, upstream: &'a Arc<Upstream>) -> Call<'a> {
        Call {
            pools: &self.pools,
            upstream,
            dialled: None,
            key: None,
            subset: None,
            wire: Wire::Http1(Version::HTTP_11),
            timeout: None,
            again: Again::Retry(&upstream.policy.retry),
            idempotent: false,
            keeps_mesh_headers: false,
            keeps_request: false,
            rng: &self.rng,
        }
    }

    fn recording(&self, request: &Request<Body>) -> Box<Recording> {
        let client = ClientAddress("127.0.0.1:1".parse().unwrap());
        Exchange::begin(&self.recorder, Direction::Outbound, client, request, &"unknown".into())
    }

    async fn ask(&self, call: &Call<'_>, mut request: Request<Body>) -> Result<Response<Body>, Box<Failed>> {
        let recording = self.recording(&request);
        super::call(call, &mut request, recording).await
    }

    /// Asks, and reads the response to its end.
    async fn status(&self, call: &Call<'_>, request: Request<Body>) -> StatusCode {
        let response = match self.ask(call, request).await {
            Ok(response) => response,
            Err(failed) => failed.into_response(),
        };
        let status = response.status();
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        status
    }
}

fn request(method: &str, fields: &[(&'static str, &'static str)]) -> Request<Body> {
    let mut request = Request::builder().method(method).uri("/").header("host", "api");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Body::empty()).unwrap()
}

fn grpc(timeout: &'static str) -> Request<Body> {
    request("POST", &[("content-type", "application/grpc"), ("grpc-timeout", timeout)])
}

fn upstream(policy: Policy, servers: &[&Server]) -> Arc<Upstream> {
    let upstream = Arc::new(Upstream::new("api", policy, false));
    let members = servers.iter().map(|server| Member::new(server.endpoint.clone())).collect();
    upstream.update(EndpointSet { members, ..EndpointSet::default() });
    upstream
}

fn retrying(retry: &config::Retry) -> Policy {
    let outlier = config::Outlier { enabled: Some(false), ..config::Outlier::default() };
    let breaker = config::Breaker { enabled: Some(false), ..config::Breaker::default() };
    Policy { retry: RetryPolicy::new(retry), outlier, breaker, ..Policy::default() }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

/// Runs a test as a worker would.
fn run(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test());
}

#[test]
fn nobody_but_a_verified_peer_is_believed_that_it_has_not_processed_a_request() {
    run(async || {
        let world = World::new();
        let liar =
            Server::start(|_| response("503 Service Unavailable", "outrigger-unprocessed: 1\r\n", "")).await;
        let upstream = upstream(Policy::default(), &[&liar]);
        for again in [Again::Retry(&upstream.policy.retry), Again::Connect(Duration::ZERO)] {
            let call = Call { again, ..world.call(&upstream) };
            let mut request = request("POST", &[]);
            let mut recording = world.recording(&request);
            // How a peer of the mesh came, or an earlier try went.
            recording.exchange().tls = Tls::Mesh;
            let failed = super::call(&call, &mut request, recording).await.err().unwrap();
            assert!(!failed.unprocessed, "{again:?}");
            assert_eq!(liar.came.replace(0), 1, "{again:?}");
        }
    });
}

#[test]
fn the_log_says_how_the_last_try_went_and_not_an_earlier_one() {
    run(async || {
        let world = World::new();
        let server = Server::start(|_| response("503 Service Unavailable", "", "")).await;
        let upstream = upstream(Policy::default(), &[&server]);
        let mut request = request("POST", &[]);
        let mut recording = world.recording(&request);
        recording.exchange().tls = Tls::Mesh;
        let mut failed = super::call(&world.call(&upstream), &mut request, recording).await.err().unwrap();
        assert_eq!(failed.recording.exchange().tls, Tls::Plain);
    });
}

#[test]
fn a_caller_that_waits_too_little_neither_ejects_an_endpoint_nor_opens_the_breaker() {
    run(async || {
        let world = World::new();
        let servers = [Server::start(|_| None).await, Server::start(|_| None).await];
        let upstream = upstream(Policy::default(), &servers.each_ref());
        let call = world.call(&upstream);
        for (timeout, is_sent) in [("0S", false), ("3m", true)] {
            for _ in 0..20 {
                let response = world.ask(&call, grpc(timeout)).await.err().unwrap().into_response();
                assert_eq!(response.headers()["grpc-status"], "4", "{timeout}");
            }
            let came: usize = servers.iter().map(|server| server.came.get()).sum();
            assert_eq!(came > 0, is_sent, "{timeout}");
            let now = Instant::now();
            for server in &servers {
                assert_eq!(server.endpoint.standing.state(now), EndpointState::Healthy, "{timeout}");
                assert_eq!(server.endpoint.in_flight(), 0, "{timeout}");
                // Nobody who chooses by latency takes it for a fast one.
                let is_slow = server.endpoint.latency() >= Duration::from_millis(1);
                assert_eq!(is_slow, is_sent, "{timeout} {:?}", server.endpoint.latency());
            }
            assert!(upstream.breaker.try_pass(now).is_ok(), "{timeout}");
        }
    });
}

#[test]
fn a_pause_that_would_last_beyond_the_requests_time_is_not_made() {
    run(async || {
        let world = World::new();
        let server =
            Server::start(|_| response("503 Service Unavailable", "Retry-After: 1\r\n", "busy")).await;
        let upstream = upstream(retrying(&config::Retry::default()), &[&server]);
        for (timeout, request) in
            [(Some(Duration::from_millis(500)), request("GET", &[])), (None, grpc("500m"))]
        {
            let call = Call { timeout, idempotent: true, ..world.call(&upstream) };
            let response = world.ask(&call, request).await.err().unwrap().into_response();
            assert_eq!(response.status().as_u16(), 503);
            assert_eq!(response.headers()["retry-after"], "1");
            assert_eq!(server.came.replace(0), 1);
        }
    });
}

#[test]
fn a_try_holds_nothing_while_the_next_one_is_waited_for() {
    run(async || {
        let world = Rc::new(World::new());
        let server = Server::start(|before| match before {
            0 => response("503 Service Unavailable", "Retry-After: 1\r\n", "busy"),
            _ => response("200 OK", "", "well"),
        })
        .await;
        let upstream = upstream(retrying(&config::Retry::default()), &[&server]);
        let (of_task, endpoint) = (upstream.clone(), server.endpoint.clone());
        let asking =
            spawn_local(async move { world.status(&world.call(&of_task), request("GET", &[])).await });
        until("it is asked", || server.came.get() == 1).await;
        until("the first try is over", || endpoint.in_flight() == 0).await;
        assert_eq!(server.came.get(), 1, "the pause lasts");
        assert_eq!(asking.await.unwrap(), StatusCode::OK);
        assert_eq!(server.came.get(), 2);
    });
}

#[test]
fn a_response_that_is_dropped_does_not_cost_its_connection() {
    run(async || {
        let world = World::new();
        let server = Server::start(|before| match before % 2 {
            0 => response("503 Service Unavailable", "", "a few words"),
            _ => response("200 OK", "", "well"),
        })
        .await;
        let upstream = upstream(retrying(&config::Retry::default()), &[&server]);
        for _ in 0..10 {
            assert_eq!(world.status(&world.call(&upstream), request("GET", &[])).await, StatusCode::OK);
        }
        // The next try does not wait for the end of the one before.
        assert_eq!(server.came.get(), 20);
        assert!(server.accepted.get() <= 5, "{} connections", server.accepted.get());
    });
}

#[test]
fn of_what_was_tried_nothing_is_held_by_a_request_that_goes_elsewhere() {
    run(async || {
        let world = World::new();
        let server = Server::start(|_| response("503 Service Unavailable", "", "a few words")).await;
        let policy = Policy {
            max_requests: 1,
            ..retrying(&config::Retry { attempts: Some(0), ..config::Retry::default() })
        };
        let upstream = upstream(policy, &[&server]);
        let call = Call { keeps_request: true, ..world.call(&upstream) };
        for _ in 0..10 {
            let mut failed = world.ask(&call, request("PUT", &[])).await.err().unwrap();
            assert!(failed.request.take().is_some());
            assert_eq!(server.endpoint.in_flight(), 1);
            let mut recording = failed.sent_elsewhere(&"standing_in".into());
            assert_eq!(server.endpoint.in_flight(), 0);
            assert_eq!(&*recording.exchange().upstream, "standing_in");
            assert_eq!(recording.endpoint(), None);
            assert!(upstream.admit(Instant::now()).is_ok());
            // What else is there to be read is read meanwhile.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(server.accepted.get() <= 5, "{} connections", server.accepted.get());
    });
}
