//! Connections: opaque ones go where somebody answers, and an upstream that hangs takes nobody else's.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::load::{Load, Tally, bad, total};
use super::{Bench, ENDPOINTS, endpoint};
use crate::destination::serve_discovery;
use crate::health::{standing, wait_for_standing};
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::Server;
use crate::support::wire::Ending;
use crate::support::{API, Mesh, wait};

/// No method and no handshake begins like this.
const OPAQUE: &[u8] = b"\0\x01\x02\x03";
const PORT: u16 = 7000;
/// Connections that a service may have at once.
const MOST: usize = 20;
/// Of two services, one in the mesh and one outside of it.
const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 96, 0, 1), Ipv4Addr::new(10, 96, 0, 2)];

/// A client, a pod without a sidecar, and two with one; discovery knows them as the services `plain` and `meshed`.
struct Bed {
    _processes: Vec<Process>,
    web: Pod,
    plain: Pod,
    meshed: [Pod; 2],
    _discovery: Pod,
    _mesh: Mesh,
}

impl Bed {
    fn new() -> Self {
        let mesh = Mesh::new();
        let (web, plain, discovery) = (mesh.pod("web"), mesh.pod("plain"), mesh.pod("discovery"));
        let meshed = ["one", "two"].map(|name| mesh.pod(name));
        for address in ENDPOINTS {
            plain.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        }
        let service = |name: &str, vip: Ipv4Addr, endpoints: &[Ipv4Addr], more: [&str; 2]| {
            let endpoints = endpoints
                .iter()
                .enumerate()
                .map(|(number, address)| format!("{{address: {address}, {}}}", more[number.min(1)]));
            let endpoints = endpoints.collect::<Vec<_>>().join(", ");
            format!(
                "  - {{name: {name}, namespace: shop, vips: [{vip}], ports: [{{port: {PORT}}}], endpoints: [{endpoints}]}}\n"
            )
        };
        let accounts = ["mesh: true, serviceAccount: one", "mesh: true, serviceAccount: two"];
        let services = format!(
            "services:\n{}{}",
            service("plain", VIPS[0], &ENDPOINTS, ["mesh: false"; 2]),
            service("meshed", VIPS[1], &meshed.each_ref().map(|pod| pod.address), accounts)
        );
        let mut processes = vec![serve_discovery(&mesh, &discovery, services)];
        wait::until("discovery listens", || web.try_connect(discovery.at(15053)).is_ok());
        processes.extend(meshed.each_ref().map(|pod| mesh.sidecar(pod).start()));
        let upstream = |name: &str| {
            let host = format!("{name}.shop.svc.cluster.local");
            format!("  {name}: {{hosts: [{host}], discovery: {{dns: {{name: {host}, port: {PORT}}}}}, balance: roundRobin,
    outlier: {{ejection: 4s}}, breaker: {{enabled: false}}, pool: {{maxConnections: {MOST}}}}}\n")
        };
        let config = format!("upstreams:\n{}{}", upstream("plain"), upstream("meshed"));
        let arguments =
            ["--discovery", &discovery.at(15053).to_string(), "--dns-server", &discovery.at(53).to_string()]
                .map(str::to_owned);
        processes.push(mesh.sidecar(&web).config(config).arguments(arguments).start());
        Self { _processes: processes, web, plain, meshed, _discovery: discovery, _mesh: mesh }
    }

    /// What a new connection to a service comes to.
    fn ask(&self, vip: Ipv4Addr) -> Result<String, Ending> {
        let mut connection = self.web.connect((vip, PORT));
        connection.try_send(OPAQUE).map_err(|_| Ending::Reset)?;
        connection.try_take_until(b"!").map(|said| String::from_utf8_lossy(&said).into_owned())
    }
}

/// Says where it is to whoever sends [`OPAQUE`], and waits.
fn serve_opaque(pod: &Pod, at: impl Into<SocketAddr>) -> Server {
    pod.serve_at(at.into(), |mut connection| {
        if connection.try_take_until(OPAQUE).is_ok() {
            let at = connection.socket.local_addr().expect("an address").ip();
            connection.send(format!("{at}!"));
            connection.take_all();
        }
    })
}

#[test]
fn an_opaque_connection_goes_to_an_endpoint_that_answers_and_there_are_no_more_than_may_be() {
    let bed = Bed::new();
    // Nobody listens at the third.
    let _servers = [0, 1].map(|index| serve_opaque(&bed.plain, (ENDPOINTS[index], PORT)));
    let here = |index: usize| Ok(format!("{}!", ENDPOINTS[index]));
    for _ in 0..12 {
        let said = bed.ask(VIPS[0]);
        assert!(said == here(0) || said == here(1), "{said:?}");
    }
    wait_for_standing(&bed.web, "plain", (ENDPOINTS[2], PORT).into(), "failed connects in a row");
    let _third = serve_opaque(&bed.plain, (ENDPOINTS[2], PORT));
    wait::until("the third is asked again", || bed.ask(VIPS[0]) == here(2));

    wait::until("all have ended", || bed.web.admin("/upstreams")["plain"]["connections"] == 0);
    let mut held: Vec<_> = (0..MOST).map(|_| bed.web.connect((VIPS[0], PORT))).collect();
    for connection in &mut held {
        connection.send(OPAQUE);
        connection.take_until(b"!");
    }
    assert_eq!(bed.ask(VIPS[0]), Err(Ending::Reset), "one more than there may be");
    drop(held);
    wait::until("there is room again", || bed.ask(VIPS[0]).is_ok());
}

#[test]
fn an_endpoint_whose_sidecar_resets_opaque_connections_is_left_alone_until_its_workload_is_there() {
    let bed = Bed::new();
    let [one, two] = &bed.meshed;
    let _server = serve_opaque(two, ([0, 0, 0, 0], PORT));
    let said = |pod: &Pod| Ok(format!("{}!", pod.address));
    let mut reset = 0;
    wait::until("the one without a workload is out", || {
        match bed.ask(VIPS[1]) {
            Err(_) => reset += 1,
            answer => assert_eq!(answer, said(two)),
        }
        standing(&bed.web, "meshed", one.at(PORT)).starts_with("out for")
    });
    assert_eq!(reset, 5);
    for _ in 0..4 {
        assert_eq!(bed.ask(VIPS[1]), said(two));
    }
    let _late = serve_opaque(one, ([0, 0, 0, 0], PORT));
    wait::until("one is asked again", || bed.ask(VIPS[1]) == said(one));
}

#[test]
fn an_upstream_that_hangs_leaves_the_requests_to_others_alone() {
    let at = ENDPOINTS[0];
    let bench = Bench::new(&format!(
        "  api: {{hosts: [{API}], tls: none, discovery: {{static: [{{all}}]}}}}
  hung: {{hosts: [hung.example], tls: none, discovery: {{static: [\"{at}:8081\"]}}, pool: {{maxConnections: 10, maxPendingRequests: 5}}}}\n"
    ));
    let hung = bench.api.serve(8081, |mut connection| drop(connection.take_all()));
    let load = Load::start(&bench.web, endpoint(0), API, 4, Duration::from_millis(10));
    load.until_told(&format!("200 {at}"));
    let mut hanging: Vec<_> = (0..100).map(|_| bench.web.connect((at, 8081))).collect();
    let began = Instant::now();
    for connection in &mut hanging {
        connection.send("GET / HTTP/1.1\r\nHost: hung.example\r\n\r\n");
    }
    let told = load.told_within(Duration::from_secs(3));
    assert_eq!(bad(&told), Tally::new());
    assert!(total(&told) > 200, "{told:?}");
    assert_eq!(hung.accepted(), 10);
    // All but ten are turned away: at once, or when no connection came free in the time a connect may take.
    let turned_away = hanging.iter_mut().filter_map(|connection| {
        connection.fill_within(Duration::from_millis(20)).map(|_| connection.response("GET"))
    });
    let turned_away: Vec<_> = turned_away.collect();
    assert_eq!(turned_away.len(), 90, "after {:?}", began.elapsed());
    for answer in turned_away {
        assert_eq!(
            (answer.status(), answer.proxy_error().as_deref()),
            (503, Some("connection_limit_reached"))
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
}
