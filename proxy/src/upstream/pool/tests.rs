use std::cell::Cell;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::timeout;

use super::super::{EndpointSet, Http1Lease, Member, Policy, StreamLease};
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
        Self::with(Policy::default()).await
    }

    /// With as many connections as that, all workers together.
    async fn of_connections(max_connections: usize) -> Self {
        Self::with(Policy { max_connections, ..Policy::default() }).await
    }

    async fn with(policy: Policy) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = ServerName::IpAddress(address.ip().into());
        let endpoint = Endpoint::new(address, false, Security::Plain, name);
        let upstream = Arc::new(Upstream::new("api", policy, false));
        upstream
            .update(EndpointSet { members: vec![Member::new(endpoint.clone())], ..EndpointSet::default() });
        Self { listener, upstream, endpoint, pools: pools() }
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

/// Those of one worker.
fn pools() -> Pools {
    let metrics = Arc::new(Metrics::new());
    let access_log = AccessLog::off(&metrics);
    Pools::new(PoolsSettings {
        dialler: Dialler::to_peers(None),
        tls: Arc::default(),
        recorder: Rc::new(Recorder::new(metrics, access_log)),
    })
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

/// Accepts connections and speaks HTTP/2 on them, one stream at a time where `one` says so.
fn serve_http2(world: &Rc<World>, one: bool) {
    let world = world.clone();
    tokio::task::spawn_local(async move {
        loop {
            let stream = world.accept().await;
            tokio::task::spawn_local(async move {
                let mut builder = h2::server::Builder::new();
                if one {
                    builder.max_concurrent_streams(1);
                }
                let mut connection = builder.handshake::<_, bytes::Bytes>(stream).await.unwrap();
                while let Some(Ok(_)) = connection.accept().await {}
            });
        }
    });
}

/// How long it took to be given one, where a connection may take a second to be made.
async fn http1_of(pools: &Pools, world: &World) -> (Result<Http1Lease, ConnectError>, Duration) {
    let began = Instant::now();
    let pool = pools.of(&world.upstream, &world.endpoint);
    let lease = pool.http1(&world.upstream).await;
    (lease, began.elapsed())
}

async fn stream_of(pools: &Pools, world: &World) -> Result<StreamLease, ConnectError> {
    pools.of(&world.upstream, &world.endpoint).stream(&world.upstream).await
}

#[tokio::test]
async fn a_connection_that_another_worker_does_not_use_is_closed_for_who_waits() {
    let test = async {
        let world = World::of_connections(1).await;
        let other = pools();
        for (first, second) in [(&world.pools, &other), (&other, &world.pools)] {
            http1_of(first, &world).await.0.unwrap().give_back();
            http1_of(second, &world).await.0.unwrap().give_back();
            let place = second.of(&world.upstream, &world.endpoint).counted(&world.upstream).await;
            assert!(place.is_ok(), "{:?}", place.err());
            let opaque = first.of(&world.upstream, &world.endpoint);
            let (waiting, ()) = tokio::join!(opaque.counted(&world.upstream), async { drop(place) });
            assert!(waiting.is_ok(), "{:?}", waiting.err());
        }
        assert_eq!(world.upstream.open_connections(), 0);
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn a_connection_given_back_serves_who_waits_at_another_worker() {
    let test = async {
        let world = Rc::new(World::of_connections(1).await);
        let other = pools();
        let in_use = http1_of(&world.pools, &world).await.0.unwrap();
        let waits = http1_of(&other, &world);
        let giving_back = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            in_use.give_back();
        };
        let ((lease, took), ()) = tokio::join!(waits, giving_back);
        assert!(lease.is_ok(), "{:?} after {took:?}", lease.err());
        drop(lease);

        serve_http2(&world, false);
        let in_use = stream_of(&world.pools, &world).await.unwrap();
        let giving_back = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(in_use);
        };
        let (lease, ()) = tokio::join!(stream_of(&other, &world), giving_back);
        assert!(lease.is_ok(), "{:?}", lease.err());
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn no_more_connections_are_closed_than_requests_wait() {
    let test = async {
        let world = World::of_connections(4).await;
        let (one, two) = (pools(), pools());
        let mut leases = Vec::new();
        for pools in [&one, &one, &two, &two] {
            leases.push(http1_of(pools, &world).await.0.unwrap());
        }
        leases.into_iter().for_each(Http1Lease::give_back);
        let waiting = http1_of(&world.pools, &world).await.0;
        assert!(waiting.is_ok(), "{:?}", waiting.err());
        let unused = [&one, &two].map(|pools| pools.of(&world.upstream, &world.endpoint).http1.len());
        assert_eq!(unused.iter().sum::<usize>(), 3, "{unused:?}");
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn what_comes_free_while_it_is_looked_for_is_not_missed() {
    let test = async {
        let world = World::of_connections(1).await;
        let pool = world.pool();
        let mut in_use = Counted::take(&world.upstream);
        let mut looked = 0;
        let taken = pool.wait_for(&world.upstream, SOON, async || {
            let taken = Counted::take(&world.upstream);
            // Another worker is done with it just now.
            in_use = None;
            looked += 1;
            taken
        });
        let began = tokio::time::Instant::now();
        assert!(taken.await.is_ok());
        assert_eq!((looked, began.elapsed()), (2, Duration::ZERO));
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn a_place_that_comes_free_wakes_one_of_those_who_wait_for_it() {
    let test = async {
        let world = Rc::new(World::of_connections(1).await);
        let _all = Counted::take(&world.upstream);
        let (free, looked) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let mut waiting = Vec::new();
        for _ in 0..100 {
            let (world, free, looked) = (world.clone(), free.clone(), looked.clone());
            waiting.push(tokio::task::spawn_local(async move {
                let take = async || {
                    looked.set(looked.get() + 1);
                    (free.get() > 0).then(|| free.set(free.get() - 1))
                };
                world.pool().wait_for(&world.upstream, SOON, take).await
            }));
        }
        let turns = async || {
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        };
        turns().await;
        assert_eq!(looked.replace(0), 100);
        for (index, waiting) in waiting.into_iter().enumerate() {
            free.set(1);
            world.pool().place_freed(&world.upstream);
            turns().await;
            assert_eq!(looked.replace(0), 1, "{index}");
            // Those who waited longest are first.
            assert!(waiting.is_finished(), "{index}");
            waiting.await.unwrap().unwrap();
        }
    };
    LocalSet::new().run_until(test).await;
}

#[tokio::test]
async fn all_who_wait_for_streams_of_the_one_connection_get_theirs() {
    let test = async {
        let world = Rc::new(World::of_connections(1).await);
        serve_http2(&world, true);
        let requests = (0..50).map(|_| {
            let world = world.clone();
            async move {
                let lease = stream_of(&world.pools, &world).await;
                tokio::task::yield_now().await;
                lease.map(drop)
            }
        });
        for result in futures_util::future::join_all(requests).await {
            result.unwrap();
        }
        assert_eq!((world.upstream.open_connections(), world.upstream.pending_requests()), (1, 0));
    };
    LocalSet::new().run_until(test).await;
}
