use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::{EndpointSet, Member, Policy};
use super::*;
use crate::telemetry::{AccessLog, Metrics};

const SOON: Duration = Duration::from_secs(5);

/// An upstream with one endpoint that listens, and the connections to it.
struct World {
    listener: TcpListener,
    upstream: Arc<Upstream>,
    endpoint: Arc<Endpoint>,
    pools: Pools,
}

impl World {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        let endpoint = Endpoint::new(address, false, Security::Plain, name);
        let upstream = Arc::new(Upstream::new("api", Policy::default(), false));
        upstream
            .update(EndpointSet { members: vec![Member::new(endpoint.clone())], ..EndpointSet::default() });
        let metrics = Arc::new(Metrics::new());
        let access_log = AccessLog::off(&metrics);
        let pools = Pools::new(PoolsSettings {
            dialler: Dialler::to_peers(None),
            tls: Arc::default(),
            recorder: Rc::new(Recorder::new(metrics, access_log)),
        });
        Self { listener, upstream, endpoint, pools }
    }

    fn pool(&self) -> Rc<EndpointPool> {
        self.pools.of(&self.upstream, &self.endpoint)
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// Discovery says that the endpoint is no more.
    fn remove(&self) {
        self.upstream.update(EndpointSet::default());
    }
}

/// Whether the peer ends the connection.
async fn ends(stream: &mut TcpStream) -> bool {
    let mut read = [0; 256];
    let ended = async { while stream.read(&mut read).await.is_ok_and(|read| read > 0) {} };
    timeout(SOON, ended).await.is_ok()
}

#[tokio::test]
async fn an_idle_http1_connection_closes_when_its_endpoint_is_gone() {
    let test = async {
        let world = World::new().await;
        let pool = world.pool();
        let (lease, mut accepted) = tokio::join!(pool.http1(&world.upstream), world.accept());
        lease.unwrap().give_back();
        world.pools.sweep(Instant::now());
        assert_eq!(pool.http1.len(), 1);
        world.remove();
        world.pools.sweep(Instant::now());
        assert_eq!(pool.http1.len(), 0);
        assert!(ends(&mut accepted).await);
        drop(pool);
        world.pools.sweep(Instant::now());
        assert!(world.pools.pools.borrow().is_empty());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn an_http2_connection_to_an_endpoint_that_is_gone_closes_with_its_last_request() {
    let test = async {
        let world = World::new().await;
        let pool = world.pool();
        let (answer, answers) = oneshot::channel();
        let accepting = world.listener.accept();
        let serving = async {
            let mut connection = h2::server::handshake(accepting.await.unwrap().0).await.unwrap();
            let (_, mut respond) = connection.accept().await.unwrap().unwrap();
            answers.await.unwrap();
            respond.send_response(http::Response::new(()), true).unwrap();
            while let Some(Ok(_)) = connection.accept().await {}
        };
        let calling = async {
            let mut lease = pool.stream(&world.upstream).await.unwrap();
            let (response, _) = lease.send(http::Request::new(()), true).unwrap();
            assert_eq!(pool.multiplexed.len(), 1);
            world.remove();
            world.pools.sweep(Instant::now());
            assert_eq!(pool.multiplexed.len(), 0, "no more requests are put on it");
            answer.send(()).unwrap();
            assert_eq!(response.await.unwrap().status(), 200);
        };
        // The server's side ends when the connection does.
        let both = async { tokio::join!(serving, calling) };
        assert!(timeout(SOON, both).await.is_ok());
    };
    LocalSet::new().run_until(test).await;
}

/// The reasons of the connections that ended.
fn reasons(upstream: &Upstream) -> Vec<&'static str> {
    let ended = upstream.closed_connections().filter(|(_, count)| *count > 0);
    ended.flat_map(|(reason, count)| std::iter::repeat_n(reason, count as usize)).collect()
}

#[tokio::test]
async fn a_connection_that_ended_counts_once_by_why_it_did() {
    let test = async {
        let world = World::new().await;
        let pool = world.pool();
        // Both at once, so that there are two connections.
        let both = async { (pool.http1(&world.upstream).await, pool.http1(&world.upstream).await) };
        let ((one, other), mut accepted, other_accepted) = {
            let accept = async { (world.accept().await, world.accept().await) };
            let (leases, (first, second)) = tokio::join!(both, accept);
            (leases, first, second)
        };
        assert_eq!(world.upstream.opened_connections(), 2);
        assert!(reasons(&world.upstream).is_empty());
        one.unwrap().give_back();
        other.unwrap().give_back();
        // The peer ends one of them.
        drop(other_accepted);
        while world.upstream.open_connections() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reasons(&world.upstream), ["ended"]);
        world.pools.sweep(Instant::now() + Duration::from_secs(3600));
        assert!(ends(&mut accepted).await);
        while world.upstream.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reasons(&world.upstream), ["ended", "idle"]);
        // One that carries opaque bytes.
        let (opaque, _accepted) = tokio::join!(pool.opaque(&world.upstream), world.accept());
        drop(opaque.unwrap());
        assert_eq!(reasons(&world.upstream), ["ended", "done", "idle"]);
        // One whose endpoint goes.
        let (lease, _accepted) = tokio::join!(pool.http1(&world.upstream), world.accept());
        lease.unwrap().give_back();
        world.remove();
        world.pools.sweep(Instant::now());
        while world.upstream.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(reasons(&world.upstream), ["ended", "done", "idle", "endpoint_gone"]);
        assert_eq!(world.upstream.opened_connections(), 4);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn an_http2_connection_that_had_its_requests_ends_of_age() {
    let test = async {
        let policy = Policy { max_requests_per_connection: 1, ..Policy::default() };
        let world = World::new().await;
        let upstream = Arc::new(Upstream::new("api", policy, false));
        let members = vec![Member::new(world.endpoint.clone())];
        upstream.update(EndpointSet { members, ..EndpointSet::default() });
        let pool = world.pools.of(&upstream, &world.endpoint);
        let (lease, _accepted) = tokio::join!(pool.stream(&upstream), world.accept());
        assert!(reasons(&upstream).is_empty());
        drop(lease);
        while upstream.open_connections() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!((upstream.opened_connections(), reasons(&upstream)), (1, vec!["age"]));
    };
    LocalSet::new().run_until(test).await;
}
