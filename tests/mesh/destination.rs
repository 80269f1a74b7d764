//! Where a request goes, and each way to lie about it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::support::dns::{Dns, Reply};
use crate::support::pki::shop;
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok, respond};
use crate::support::wire::Ending;
use crate::support::{API, Mesh, Message, Pair, wait};

/// Serves HTTP that answers with the pod's name.
fn serve_name(pod: &Pod, port: u16) -> Server {
    let name = pod.name.clone();
    pod.serve_http(port, move |_| ok(&name))
}

/// A client whose names are resolved by a DNS server of the test's.
struct Named {
    _web_sidecar: Process,
    dns: Dns,
    web: Pod,
    one: Pod,
    two: Pod,
    _sidecars: Vec<Process>,
    mesh: Mesh,
}

impl Named {
    /// Two servers with sidecars, both of service account `api`.
    fn new(config: &str) -> Self {
        let mesh = Mesh::new();
        let (web, one, two, resolver) =
            (mesh.pod("web"), mesh.pod("one"), mesh.pod("two"), mesh.pod("resolver"));
        let dns = Dns::serve(&resolver);
        let start = |pod| mesh.sidecar(pod).identity(mesh.pki.identity(&shop("api"))).start();
        let _sidecars = vec![start(&one), start(&two)];
        let server = dns.address.to_string();
        let _web_sidecar = mesh.sidecar(&web).config(config).arguments(["--dns-server", &server]).start();
        Self { _web_sidecar, dns, web, one, two, _sidecars, mesh }
    }

    fn get(&self, to: &Pod, host: &str) -> Message {
        self.web.connect(to.at(8080)).get(host, "/")
    }
}

const MESH: &str = "outbound: {meshDomains: [svc.cluster.local], meshNetworks: [10.77.0.0/24]}\n";
/// Nothing is said to be of the mesh, but for names of the cluster.
const MESH_NAMES: &str = "outbound: {meshDomains: [svc.cluster.local]}\n";

#[test]
fn a_name_is_balanced_over_all_its_endpoints_whichever_was_dialled() {
    let bed = Named::new(MESH);
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address, bed.two.address]));
    // No request is answered before all are there, so that each is a load the next one sees.
    let everybody = Arc::new(Barrier::new(12));
    let hold = |pod: &Pod| {
        let (name, everybody) = (pod.name.clone(), Arc::clone(&everybody));
        pod.serve_http(8080, move |_| {
            everybody.wait();
            ok(&name)
        })
    };
    let _servers = (hold(&bed.one), hold(&bed.two));
    let mut connections: Vec<_> = (0..12).map(|_| bed.web.connect(bed.one.at(8080))).collect();
    for connection in &mut connections {
        connection.send(format!("GET / HTTP/1.1\r\nHost: {API}\r\n\r\n"));
    }
    let answers: Vec<_> =
        connections.iter_mut().map(|connection| connection.response("GET").text()).collect();
    let one = answers.iter().filter(|answer| *answer == "one").count();
    assert!((4..=8).contains(&one), "{one} of 12 to the first of two: {answers:?}");
}

#[test]
fn a_name_is_qualified_by_the_search_domains() {
    let bed = Named::new(&format!(
        "{MESH}dns: {{search: [shop.svc.cluster.local, svc.cluster.local], ndots: 5}}\n"
    ));
    let _servers = (serve_name(&bed.one, 8080), serve_name(&bed.two, 8080));
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address]));
    for host in ["api", "api.shop", API, "API.shop.SVC.cluster.local.", "api:8080"] {
        let answer = bed.get(&bed.one, host);
        assert_eq!((answer.status(), answer.text().as_str()), (200, "one"), "{host}: {answer:?}");
    }
}

#[test]
fn a_forged_host_does_not_carry_a_request_into_another_service() {
    let bed = Named::new(&format!(
        "{MESH_NAMES}upstreams: {{api: {{hosts: [{API}], identity: \"{}\"}}}}\n",
        shop("api")
    ));
    let (real, plain) = (serve_name(&bed.one, 8080), bed.mesh.pod("plain"));
    let _plain = serve_name(&plain, 8080);
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address]));
    assert_eq!(bed.get(&bed.one, API).text(), "one", "said rightly, the name works");
    let before = real.accepted();
    // Dialled is `plain`; the Host claims the configured upstream, and a name that resolves elsewhere.
    bed.dns.set("other.shop.svc.cluster.local", Reply::Addresses(vec![bed.one.address]));
    for host in [API, "other.shop.svc.cluster.local", "no-such-name.example"] {
        let answer = bed.get(&plain, host);
        assert_ne!(answer.text(), "one", "{host}: the request went to another service than was dialled");
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (200, "plain"),
            "{host}: it goes where it was dialled"
        );
    }
    assert_eq!(real.accepted(), before);
}

#[test]
fn any_destination_lets_a_name_go_to_its_upstream_whatever_was_dialled() {
    let bed = Named::new(&format!(
        "{MESH_NAMES}upstreams: {{api: {{hosts: [{API}], identity: \"{}\", anyDestination: true, discovery: {{dns: {{name: {API}, port: 8080}}}}}}}}\n",
        shop("api")
    ));
    let _real = serve_name(&bed.one, 8080);
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address]));
    let answer = bed.get(&bed.two, API);
    assert_eq!((answer.status(), answer.text().as_str()), (200, "one"), "{answer:?}");
}

#[test]
fn a_name_that_resolves_to_loopback_or_metadata_addresses_leads_nowhere_but_where_it_was_dialled() {
    let bed = Named::new(MESH_NAMES);
    let plain = bed.mesh.pod("plain");
    let _plain = serve_name(&plain, 8080);
    // What an attacker wants to reach: a private port of the client's own pod.
    let private =
        bed.web.serve_at(([127, 0, 0, 1], 8080).into(), |mut connection| connection.send("private"));
    for (host, address) in [
        ("loop.example", [127, 0, 0, 1]),
        ("metadata.example", [169, 254, 169, 254]),
        ("self.example", bed.web.address.octets()),
        ("nowhere.example", [0, 0, 0, 0]),
        ("group.example", [224, 0, 0, 1]),
    ] {
        bed.dns.set(host, Reply::Addresses(vec![address.into()]));
        let answer = bed.get(&plain, host);
        assert_eq!((answer.status(), answer.text().as_str()), (200, "plain"), "{host}: {answer:?}");
    }
    assert_eq!(private.accepted(), 0);
}

#[test]
fn a_text_record_of_ordinary_dns_cannot_talk_a_client_out_of_mtls() {
    let bed = Named::new(MESH);
    let fake = bed.mesh.pod("fake");
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&seen);
    let _fake = fake.serve(8080, move |mut connection| {
        // 22 begins a TLS record; anything else would be plaintext.
        if connection.take(1) != [22] {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    let lie = format!("v=1 addr={}:8080 mesh=0 ns=shop sa=api zone=a weight=1 opaque=0", fake.address);
    bed.dns.set(API, Reply::Addresses(vec![fake.address]));
    bed.dns.set(&format!("_8080._tcp.{API}"), Reply::Text(lie.clone()));
    let reversed: Vec<_> = fake.address.octets().iter().rev().map(u8::to_string).collect();
    bed.dns.set(&format!("{}.in-addr.arpa", reversed.join(".")), Reply::Text(lie));
    assert_eq!(bed.get(&fake, API).status(), 502);
    assert_eq!(bed.get(&fake, &fake.address.to_string()).status(), 502);
    assert_eq!(seen.load(Ordering::SeqCst), 0, "plaintext was sent");
}

#[test]
fn names_that_do_not_exist_or_time_out_leave_the_request_where_it_was_dialled() {
    let bed = Named::new(MESH_NAMES);
    let plain = bed.mesh.pod("plain");
    let _plain = serve_name(&plain, 8080);
    bed.dns.set("silent.example", Reply::Silence);
    for host in ["no-such-name.example", "silent.example"] {
        let answer = bed.get(&plain, host);
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (200, "plain"),
            "{host}: {answer:?} {}",
            answer.text()
        );
    }
    bed.web.wait_for_metric("outrigger_dns_lookups_total", &[("result", "not_found")], 1.0);
}

#[test]
fn a_mesh_name_that_dns_is_silent_about_is_never_called_in_plaintext() {
    let bed = Named::new(MESH_NAMES);
    let plain = bed.mesh.pod("plain");
    let server = serve_name(&plain, 8080);
    bed.dns.set(API, Reply::Silence);
    let answer = bed.get(&plain, API);
    assert_eq!((answer.status(), answer.proxy_error().as_deref()), (503, Some("dns_error")), "{answer:?}");
    assert_eq!(server.accepted(), 0);
    bed.web.wait_for_metric("outrigger_dns_lookups_total", &[("result", "failed")], 1.0);
}

#[test]
fn the_last_good_answer_serves_while_dns_fails() {
    let bed = Named::new(MESH);
    let _server = serve_name(&bed.one, 8080);
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address]));
    assert_eq!(bed.get(&bed.one, API).text(), "one");
    bed.dns.set(API, Reply::Silence);
    let asked = bed.dns.asked();
    wait::until("the lifetime of the answer is over and DNS was asked again", || bed.dns.asked() > asked + 2);
    for _ in 0..10 {
        let answer = bed.get(&bed.one, API);
        assert_eq!((answer.status(), answer.text().as_str()), (200, "one"), "{answer:?}");
    }
    bed.web.wait_for_metric("outrigger_dns_age_seconds", &[], 1.0);
}

#[test]
fn a_change_of_dns_under_load_loses_no_request() {
    let bed = Named::new(MESH);
    let _servers = (serve_name(&bed.one, 8080), serve_name(&bed.two, 8080));
    bed.dns.set(API, Reply::Addresses(vec![bed.one.address]));
    let (mut last, mut changed, mut answers) = (String::new(), 0, 0);
    let mut connection = bed.web.connect(bed.one.at(8080));
    // The client holds its connection and dials an address that the name will not have any more.
    wait::within(wait::PATIENCE * 2, "the requests follow the name there and back", || {
        let answer = connection.get(API, "/");
        assert_eq!(answer.status(), 200, "{answer:?} {}", answer.text());
        answers += 1;
        if answer.text() != last {
            last = answer.text();
            changed += 1;
            let next = if last == "one" { bed.two.address } else { bed.one.address };
            // Both are there for a while: only a name's own addresses are believed.
            bed.dns.set(API, Reply::Addresses(vec![bed.one.address, next]));
        }
        (changed >= 4).then_some(())
    });
    assert!(answers >= 4);
}

#[test]
fn a_workload_that_calls_itself_through_its_service_reaches_itself() {
    let mesh = Mesh::new();
    let api = mesh.pod("api");
    api.add_hosts(&format!("{} {API}", api.address));
    let _sidecar = mesh.sidecar(&api).config(MESH).start();
    let _server = api.serve_echo(8080);
    for host in [API, "127.0.0.1"] {
        let address = if host == API { api.at(8080) } else { ([127, 0, 0, 1], 8080).into() };
        let answer = api.connect(address).get(host, "/self");
        assert_eq!(answer.status(), 200, "{host}: {answer:?} {}", answer.text());
        assert!(answer.text().starts_with("GET /self "), "{}", answer.text());
    }
}

#[test]
fn a_workload_bound_to_loopback_only_stays_unreachable_and_one_bound_to_the_pod_s_address_is_reached() {
    let pair = Pair::new();
    let private =
        pair.api.serve_at(([127, 0, 0, 1], 8080).into(), |mut connection| connection.send("private"));
    let address = pair.api.at(8081);
    let _public = pair.api.serve_at(address, |mut connection| {
        connection.request();
        connection.send(ok("public"));
    });
    let answer = pair.get(8080, "/");
    assert_eq!(
        (answer.status(), answer.proxy_error().as_deref()),
        (502, Some("connection_refused")),
        "{answer:?}"
    );
    assert_eq!(private.accepted(), 0);
    assert_eq!(pair.get(8081, "/").text(), "public");
}

#[test]
fn ipv6_crosses_the_mesh_as_well() {
    let mesh = Mesh::new();
    let (web, api) = (mesh.pod("web"), mesh.pod("api"));
    web.add_hosts(&format!("{} {API}", api.address6));
    let _api_sidecar = mesh.sidecar(&api).start();
    let config = "outbound: {meshDomains: [svc.cluster.local], meshNetworks: [\"fd77::/64\"]}\n";
    let _web_sidecar = mesh.sidecar(&web).config(config).start();
    let _server = api.serve_at((std::net::Ipv6Addr::UNSPECIFIED, 8080).into(), |mut connection| {
        while let Some(request) = connection.request() {
            connection.send(ok(request.header("outrigger-client-id").unwrap_or("nobody")));
        }
    });
    let answer = web.connect((api.address6, 8080)).get(API, "/");
    assert_eq!((answer.status(), answer.text()), (200, shop("web")), "{answer:?} {}", answer.text());
}

#[test]
fn the_hosts_file_is_read_again_when_it_changes() {
    let pair = Pair::new();
    let _server = pair.api.serve_echo(8080);
    let name = "added.shop.svc.cluster.local";
    // Nobody knows the name, and so not whom to expect there.
    assert_ne!(pair.connect(8080).get(name, "/").status(), 200);
    pair.web.add_hosts(&format!("{} {name}", pair.api.address));
    wait::until("the name is known", || pair.connect(8080).get(name, "/").status() == 200);
    // Now it is the name of somebody else, and says nothing about who was dialled.
    pair.web.write("hosts", format!("127.0.0.1 localhost\n10.77.0.9 {name}\n"));
    wait::until("the name means another address", || pair.connect(8080).get(name, "/").status() != 200);
}

/// Starts the real discovery server in `pod`, which knows these services, over DNS over TLS and plain DNS.
pub fn serve_discovery(mesh: &Mesh, pod: &Pod, services: String) -> Process {
    mesh.pki.identity("spiffe://cluster.local/ns/outrigger/sa/outrigger-discovery").write(&pod.directory);
    let file = pod.write("services.yaml", services).display().to_string();
    let own = |name: &str| pod.directory.join(name).display().to_string();
    pod.start(&[
        &pod.binary(),
        "discovery",
        "--file",
        &file,
        "--certificate",
        &own("tls.crt"),
        "--key",
        &own("tls.key"),
        "--trust-bundle",
        &mesh.bundle().display().to_string(),
        "--plain",
        "0.0.0.0:53",
    ])
}

/// A mesh with the real discovery server, asked over DNS over TLS.
struct Discovered {
    _web_sidecar: Process,
    _api_sidecar: Process,
    _discovery: Process,
    web: Pod,
    api: Pod,
    discovery: Pod,
    mesh: Mesh,
}

impl Discovered {
    fn new(services: impl FnOnce(&Pod) -> String) -> Self {
        Self::with(services, |_| String::new(), "")
    }

    /// With lines in the hosts file of the client's pod, and a config of its sidecar.
    fn with(services: impl FnOnce(&Pod) -> String, hosts: impl FnOnce(&Pod) -> String, config: &str) -> Self {
        let mesh = Mesh::new();
        let (web, api, discovery) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("discovery"));
        web.add_hosts(&hosts(&api));
        let server = serve_discovery(&mesh, &discovery, services(&api));
        wait::until("discovery listens", || web.try_connect(discovery.at(15053)).is_ok());
        let _api_sidecar = mesh.sidecar(&api).start();
        let address = discovery.at(15053).to_string();
        let dns = discovery.at(53).to_string();
        let _web_sidecar = mesh
            .sidecar(&web)
            .config(config)
            .arguments(["--discovery", &address, "--dns-server", &dns])
            .start();
        Self { _web_sidecar, _api_sidecar, _discovery: server, web, api, discovery, mesh }
    }
}

fn services(address: &std::net::Ipv4Addr, account: &str) -> String {
    format!(
        "services:\n  - name: api\n    namespace: shop\n    vips: [10.96.0.7]\n    ports: [{{port: 8080}}, {{port: 7000}}]\n    \
         endpoints: [{{address: {address}, serviceAccount: {account}, mesh: true}}]\n"
    )
}

#[test]
fn a_service_s_owner_says_how_often_a_request_is_tried_again_where_the_config_does_not() {
    let services = [("once", "retries: 0, "), ("thrice", ""), ("stated", "retries: 0, ")];
    let mesh = Mesh::new();
    let (web, api, discovery) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("discovery"));
    let mut file = String::from("services:\n");
    for (number, (name, declared)) in services.iter().enumerate() {
        file += &format!(
            "  - {{name: {name}, namespace: shop, vips: [10.96.0.{number}], {declared}ports: [{{port: 8080}}], endpoints: [{{address: {}, mesh: false}}]}}\n",
            api.address
        );
    }
    let _discovery = serve_discovery(&mesh, &discovery, file);
    wait::until("discovery listens", || web.try_connect(discovery.at(15053)).is_ok());
    let host = |name: &str| format!("{name}.shop.svc.cluster.local");
    let config = format!("upstreams: {{stated: {{hosts: [{}], retry: {{attempts: 1}}}}}}", host("stated"));
    let server = discovery.at(15053).to_string();
    let _sidecar = mesh.sidecar(&web).config(config).arguments(["--discovery", &server]).start();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let _server = api.serve_http(8080, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        respond("503 Service Unavailable", "", "failing")
    });
    for (number, (name, times)) in [("once", 1), ("thrice", 3), ("stated", 2)].into_iter().enumerate() {
        let vip = std::net::Ipv4Addr::new(10, 96, 0, number as u8);
        let answer = web.connect((vip, 8080)).get(&host(name), "/");
        assert_eq!(answer.text(), "failing", "{name}: {answer:?}");
        assert_eq!(asked.swap(0, Ordering::SeqCst), times, "{name}");
    }
}

#[test]
fn discovery_leads_a_service_s_address_to_its_endpoints_over_mtls() {
    let bed = Discovered::new(|api| services(&api.address, "api"));
    let _http = bed.api.serve_echo(8080);
    let _opaque = bed.api.serve(7000, |mut connection| {
        let got = connection.take(3);
        connection.send(got);
    });
    for address in [([10, 96, 0, 7], 8080).into(), bed.api.at(8080)] {
        let answer = bed.web.connect(address).get(API, "/");
        assert_eq!(answer.status(), 200, "{address}: {answer:?} {}", answer.text());
        assert!(
            answer.text().contains(&format!("outrigger-client-id: {}", shop("web"))),
            "{}",
            answer.text()
        );
        let mut opaque = bed.web.connect(std::net::SocketAddr::new(address.ip(), 7000));
        opaque.send("\0\x01\x02");
        assert_eq!(opaque.take(3), b"\0\x01\x02");
    }
    bed.web.wait_for_metric(
        "outrigger_tcp_connections_opened_total",
        &[("direction", "outbound"), ("tls", "mesh")],
        2.0,
    );
}

#[test]
fn discovery_that_knows_a_pod_does_not_hide_its_metrics_and_its_health() {
    for ports in ["{port: 8080}", ""] {
        let services = |api: &Pod| services(&api.address, "api").replace("{port: 8080}, {port: 7000}", ports);
        let bed = Discovered::new(services);
        for (port, path) in [(15020, "/metrics"), (15021, "/readyz")] {
            let answer = bed.web.connect(bed.api.at(port)).get(&bed.api.address.to_string(), path);
            assert_eq!(answer.status(), 200, "{ports} {port}: {answer:?} {}", answer.text());
        }
    }
}

#[test]
fn neither_a_forged_record_nor_a_list_leads_from_another_port_to_those_that_a_sidecar_serves_in_plaintext() {
    let bed = Discovered::new(|api| services(&api.address, "api"));
    let _workload = bed.api.serve_echo(8080);
    let (web, resolver) = (bed.mesh.pod("client"), bed.mesh.pod("resolver"));
    let dns = Dns::serve(&resolver);
    dns.set("evil.example", Reply::Addresses(vec![bed.api.address]));
    dns.set("_8080._tcp.evil.example", Reply::Service(15021, "target.example".to_owned()));
    dns.set("_health._tcp.evil.example", Reply::Service(15021, "target.example".to_owned()));
    dns.set("target.example", Reply::Addresses(vec![bed.api.address]));
    let config = format!(
        "upstreams:\n  listed: {{hosts: [listed.example], anyDestination: true, discovery: {{static: [\"{0}:15021\"]}}}}\n  \
         named: {{hosts: [named.example], anyDestination: true, discovery: {{dns: {{name: _health._tcp.evil.example}}}}}}\n  \
         plain: {{hosts: [plain.example], anyDestination: true, tls: none, discovery: {{static: [\"{0}:15020\"]}}}}\n",
        bed.api.address
    );
    let (discovery, server) = (bed.discovery.at(15053).to_string(), dns.address.to_string());
    let _sidecar = bed
        .mesh
        .sidecar(&web)
        .config(&config)
        .arguments(["--discovery", &discovery, "--dns-server", &server])
        .start();
    for host in ["evil.example", "listed.example", "named.example"] {
        let answer = web.connect(bed.api.at(8080)).get(host, "/livez");
        let error = answer.proxy_error();
        assert_eq!(
            (answer.status(), error.as_deref()),
            (502, Some("tls_protocol_error")),
            "{host}: {answer:?}"
        );
    }
    // The port that was dialled counts, and what the config says.
    for (host, port) in [
        ("evil.example", 15021),
        ("listed.example", 15021),
        ("other.example", 15021),
        ("plain.example", 8080),
    ] {
        let answer =
            web.connect(bed.api.at(port)).get(host, if port == 8080 { "/metrics" } else { "/livez" });
        assert_eq!(answer.status(), 200, "{host}: {answer:?} {}", answer.text());
    }
}

#[test]
fn an_address_of_the_mesh_is_called_over_mtls_by_whatever_name_it_is_called() {
    let bed = Discovered::with(
        |api| services(&api.address, "api"),
        |api| format!("{} alias.example\n10.96.0.7 vip.example", api.address),
        "",
    );
    let _http = bed.api.serve_echo(8080);
    for (host, address) in
        [("alias.example", bed.api.at(8080)), ("vip.example", ([10, 96, 0, 7], 8080).into())]
    {
        let answer = bed.web.connect(address).get(host, "/");
        assert_eq!(answer.status(), 200, "{host}: {answer:?} {}", answer.text());
        assert!(
            answer.text().contains(&format!("outrigger-client-id: {}", shop("web"))),
            "{host}: {}",
            answer.text()
        );
    }
    let upstreams = bed.web.admin("/upstreams").to_string();
    assert!(
        upstreams.contains("alias.example:8080") && upstreams.contains("vip.example:8080"),
        "{upstreams}"
    );
}

#[test]
fn an_address_of_the_mesh_that_an_upstream_states_is_called_over_mtls() {
    // The second pod's address, and the VIP.
    let config = "upstreams:\n  store: {hosts: [store.example], discovery: {static: [\"10.77.0.2:8080\"]}}\n  \
                  opaque: {discovery: {static: [\"10.77.0.2:7000\"]}, protocol: tcp}\n  \
                  front: {hosts: [front.example], discovery: {static: [\"10.96.0.7:8080\"]}}\n";
    let bed = Discovered::with(|api| services(&api.address, "api"), |_| String::new(), config);
    assert_eq!(bed.api.address.octets(), [10, 77, 0, 2]);
    let _http = bed.api.serve_echo(8080);
    let _opaque = bed.api.serve(7000, |mut connection| {
        let got = connection.take(3);
        connection.send(got);
    });
    let vip = ([10, 96, 0, 7], 8080).into();
    for (host, address) in
        [("store.example", bed.api.at(8080)), ("other.example", bed.api.at(8080)), ("front.example", vip)]
    {
        let answer = bed.web.connect(address).get(host, "/");
        assert_eq!(answer.status(), 200, "{host}: {answer:?} {}", answer.text());
        let caller = format!("outrigger-client-id: {}", shop("web"));
        assert!(answer.text().contains(&caller), "{host}: {}", answer.text());
    }
    let mut opaque = bed.web.connect(bed.api.at(7000));
    opaque.send("\0\x01\x02");
    assert_eq!(opaque.take(3), b"\0\x01\x02");
    bed.web.wait_for_metric(
        "outrigger_tcp_connections_opened_total",
        &[("direction", "outbound"), ("tls", "mesh")],
        1.0,
    );
}

#[test]
fn an_address_without_a_sidecar_is_called_in_plaintext_by_its_name_as_by_itself() {
    let bed = Discovered::with(
        |_| {
            "services:\n  - name: old\n    namespace: shop\n    ports: [{port: 8080}]\n    endpoints: \
             [{address: 10.77.0.4, mesh: false}]\n"
                .to_owned()
        },
        |_| "10.77.0.4 old.example".to_owned(),
        "outbound: {meshNetworks: [10.77.0.0/24]}\n",
    );
    let old = bed.mesh.pod("old");
    assert_eq!(old.address.octets(), [10, 77, 0, 4]);
    let _server = serve_name(&old, 8080);
    for host in ["10.77.0.4", "old.example"] {
        let answer = bed.web.connect(old.at(8080)).get(host, "/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "old"), "{host}: {answer:?}");
    }
}

#[test]
fn nothing_outside_the_mesh_is_called_in_plaintext_while_nobody_can_say_whose_the_address_is() {
    let mesh = Mesh::new();
    let (web, api, resolver) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("resolver"));
    let dns = Dns::serve(&resolver);
    dns.set("alias.example", Reply::Addresses(vec![api.address]));
    let (workload, stated_workload) = (api.serve_echo(8080), api.serve_echo(8081));
    // Nobody listens there.
    let (discovery, server) = (resolver.at(15053).to_string(), dns.address.to_string());
    let stated = format!("upstreams: {{store: {{discovery: {{static: [\"{}\"]}}}}}}\n", api.at(8081));
    let _web_sidecar = mesh
        .sidecar(&web)
        .config(&stated)
        .arguments(["--discovery", &discovery, "--dns-server", &server])
        .without_waiting()
        .start();
    wait::until("the sidecar listens", || web.try_connect(([127, 0, 0, 1], 15001)).is_ok());
    for port in [8080, 8081] {
        let answer = wait::eventually("the sidecar has its certificate", || {
            let answer = web.connect(api.at(port)).get("alias.example", "/");
            (!answer.text().contains("certificate")).then_some(answer)
        });
        let error = answer.proxy_error();
        assert_eq!((answer.status(), error.as_deref()), (503, Some("dns_error")), "{port}: {answer:?}");
    }
    assert_eq!((workload.accepted(), stated_workload.accepted()), (0, 0));
}

#[test]
fn with_the_search_domains_of_a_pod_a_name_that_dns_refuses_leaves_the_request_where_it_was_dialled() {
    let config = "outbound: {meshDomains: [svc.cluster.local]}\ndns: {search: [shop.svc.cluster.local, \
                  svc.cluster.local, cluster.local], ndots: 5}\n";
    // Discovery's plain DNS knows its own names only, and refuses all others.
    let bed = Discovered::with(|api| services(&api.address, "api"), |_| String::new(), config);
    let plain = bed.mesh.pod("plain");
    let _server = serve_name(&plain, 8080);
    for host in ["refused.example", "a", "api_x", "a.b.c.d.example"] {
        let answer = bed.web.connect(plain.at(8080)).get(host, "/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "plain"), "{host}: {answer:?}");
    }
}

#[test]
fn while_discovery_and_dns_are_silent_nobody_waits_over_five_seconds_and_soon_after_all_is_well_again() {
    let config = "outbound: {meshDomains: [svc.cluster.local]}\ndns: {search: [shop.svc.cluster.local, \
                  svc.cluster.local, cluster.local], ndots: 5}\n";
    let bed = Discovered::with(|api| services(&api.address, "api"), |_| String::new(), config);
    let plain = bed.mesh.pod("plain");
    let _servers = (serve_name(&plain, 8080), serve_name(&plain, 7999));
    // It is asked over a connection that is there already, and over one that is to be made.
    assert_eq!(bed.web.connect(plain.at(7999)).get("known.example", "/").status(), 200);
    bed._discovery.signal(Signal::SIGSTOP);
    let hosts = ["fresh", "fresh.example", "a.b.c.example", "10.77.0.99"];
    for round in 0..3 {
        std::thread::scope(|scope| {
            for host in hosts {
                let (web, address) = (&bed.web, plain.at(8080 + round));
                scope.spawn(move || {
                    let asked = Instant::now();
                    let answer = web.connect(address).get(host, "/");
                    let waited = asked.elapsed();
                    assert!(waited < Duration::from_millis(5500), "{host}: {waited:?} {answer:?}");
                    assert_eq!(answer.status(), 503, "{host}: {answer:?}");
                    assert_eq!(answer.proxy_error().as_deref(), Some("dns_error"), "{host}: {answer:?}");
                });
            }
        });
    }
    bed._discovery.signal(Signal::SIGCONT);
    let again = Instant::now();
    for host in hosts {
        wait::until(&format!("{host} is found"), || {
            bed.web.connect(plain.at(8080)).get(host, "/").text() == "plain"
        });
    }
    assert!(again.elapsed() < Duration::from_secs(3), "{:?}", again.elapsed());
}

#[test]
fn a_port_that_a_service_does_not_have_is_refused_at_once() {
    let bed = Discovered::new(|api| services(&api.address, "api"));
    let vip = ([10, 96, 0, 7], 9999);
    for host in [API, "10.96.0.7"] {
        let answer = bed.web.connect(vip).get(host, "/");
        assert_eq!(
            (answer.status(), answer.proxy_error().as_deref()),
            (503, Some("destination_unavailable")),
            "{host}: {answer:?}"
        );
    }
    // Any port of a pod's own address is the pod's.
    let _server = bed.api.serve_echo(9999);
    let answer = bed.web.connect(bed.api.at(9999)).get(API, "/");
    assert_eq!(answer.status(), 200, "{answer:?} {}", answer.text());
}

#[test]
fn discovery_says_which_account_is_expected_and_any_other_is_refused() {
    let bed = Discovered::new(|api| services(&api.address, "somebody-else"));
    let workload = bed.api.serve_echo(8080);
    let answer = bed.web.connect(bed.api.at(8080)).get(API, "/");
    assert_eq!(
        (answer.status(), answer.proxy_error().as_deref()),
        (502, Some("tls_certificate_error")),
        "{answer:?}"
    );
    let mut opaque = bed.web.connect(([10, 96, 0, 7], 7000));
    opaque.send("\0\x01\x02");
    assert_eq!(opaque.take_all(), (Vec::new(), Ending::Reset));
    assert_eq!(workload.accepted(), 0);
}

#[test]
fn a_discovery_with_a_workload_s_certificate_is_not_believed() {
    let bed = Discovered::new(|api| services(&api.address, "api").replace("mesh: true", "mesh: false"));
    // The impostor says that the endpoint has no sidecar, to get the traffic in plaintext.
    bed.mesh.pki.identity(&shop("mallory")).write(&bed.discovery.directory);
    let plain = bed.mesh.pod("impostor");
    bed.mesh.pki.identity(&shop("mallory")).write(&plain.directory);
    let own = |name: &str| plain.directory.join(name).display().to_string();
    let file =
        plain.write("services.yaml", services(&bed.api.address, "api").replace("mesh: true", "mesh: false"));
    let _impostor = plain.start(&[
        &plain.binary(),
        "discovery",
        "--file",
        &file.display().to_string(),
        "--certificate",
        &own("tls.crt"),
        "--key",
        &own("tls.key"),
        "--trust-bundle",
        &bed.mesh.bundle().display().to_string(),
    ]);
    wait::until("the impostor listens", || bed.web.try_connect(plain.at(15053)).is_ok());
    let victim = bed.mesh.pod("victim");
    victim.add_hosts(&format!("{} {API}", bed.api.address));
    let address = plain.at(15053).to_string();
    let _sidecar = bed
        .mesh
        .sidecar(&victim)
        .arguments([
            "--discovery",
            &address,
            "--mesh-network",
            "10.77.0.0/24",
            "--mesh-domain",
            "svc.cluster.local",
        ])
        .start();
    let _workload = bed.api.serve_echo(8080);
    let answer = victim.connect(bed.api.at(8080)).get(API, "/");
    // By the hosts file the name leads there over mesh TLS; plaintext would have got 403 from the strict port.
    assert_ne!(answer.status(), 403, "the request was sent in plaintext");
    let mut opaque = victim.connect(bed.api.at(7000));
    opaque.send("\0\x01\x02");
    assert!(opaque.take_all().0.is_empty());
}

#[test]
fn while_discovery_is_away_ordinary_dns_alone_leads_to_nobody() {
    // Else whoever keeps the client from asking discovery gets the check of the account relaxed to the name's namespace.
    let mesh = Mesh::new();
    let (web, api, resolver) = (mesh.pod("web"), mesh.pod("api"), mesh.pod("resolver"));
    let dns = Dns::serve(&resolver);
    dns.set(API, Reply::Addresses(vec![api.address]));
    let _api_sidecar = mesh.sidecar(&api).start();
    let workload = api.serve_echo(8080);
    // Nobody listens there.
    let (discovery, server) = (resolver.at(15053).to_string(), dns.address.to_string());
    let _web_sidecar = mesh
        .sidecar(&web)
        .config(MESH)
        .arguments(["--discovery", &discovery, "--dns-server", &server])
        .without_waiting()
        .start();
    wait::until("the sidecar listens", || web.try_connect(([127, 0, 0, 1], 15001)).is_ok());
    let answer = wait::eventually("the sidecar has its certificate", || {
        let answer = web.connect(api.at(8080)).get(API, "/");
        (!answer.text().contains("certificate")).then_some(answer)
    });
    assert_eq!(
        (answer.status(), answer.proxy_error().as_deref()),
        (503, Some("dns_error")),
        "{answer:?} {}",
        answer.text()
    );
    assert_eq!(workload.accepted(), 0);
}

#[test]
fn a_change_of_discovery_s_file_is_followed() {
    let bed = Discovered::new(|api| services(&api.address, "somebody-else"));
    let _workload = bed.api.serve_echo(8080);
    assert_eq!(bed.web.connect(bed.api.at(8080)).get(API, "/").status(), 502);
    let fresh = bed.discovery.write("services.new", services(&bed.api.address, "api"));
    std::fs::rename(fresh, bed.discovery.directory.join("services.yaml")).expect("replace a file");
    wait::within(wait::PATIENCE * 2, "the new account is expected", || {
        (bed.web.connect(bed.api.at(8080)).get(API, "/").status() == 200).then_some(())
    });
}
