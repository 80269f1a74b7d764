//! The mesh's discovery: what it tells, and that nobody else is believed in its place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use outrigger_ca::{ExpectedIdentity, SpiffeId};

use super::super::{LookupError, ServiceInfo, Source};
use super::fake_dns::{FakeDns, Say};
use super::pki::Root;
use super::*;

const DISCOVERY: &str = "spiffe://cluster.local/ns/outrigger/sa/outrigger-discovery";
const PROXY: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API: &str = "api.shop.svc.cluster.local";
const API_8080: &str = "_8080._tcp.api.shop.svc.cluster.local";
const SERVICE: &str = "v=1 service name=api ns=shop vip=10.96.0.7 timeout=3s retries=1";
const MESHED: &str = "v=1 addr=10.77.0.3:8080 mesh=1 ns=shop sa=api zone=a weight=3 opaque=0";
const BARE: &str = "v=1 addr=10.77.0.4:8080 mesh=0 ns=shop sa=old weight=1 opaque=1";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn mesh(root: &Root, address: SocketAddr) -> MeshServer {
    let client = root.client(PROXY);
    MeshServer {
        address: address.to_string(),
        tls: Arc::new(move || Some(client.clone())),
        expected: ExpectedIdentity::Exact(id(DISCOVERY)),
    }
}

/// The same, and how often its TLS configuration was taken.
fn counted_mesh(root: &Root, address: SocketAddr) -> (MeshServer, Arc<AtomicUsize>) {
    let (client, taken) = (root.client(PROXY), Arc::new(AtomicUsize::new(0)));
    let counter = taken.clone();
    let tls = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        Some(client.clone())
    };
    (MeshServer { tls: Arc::new(tls), ..mesh(root, address) }, taken)
}

/// A discovery that is what it says, ordinary DNS, and a resolver that asks both.
async fn honest() -> (FakeDns, FakeDns, Resolver) {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    let resolver = resolver(&dns, Some(mesh(&root, discovery.address)));
    (discovery, dns, resolver)
}

fn is_failed(snapshot: &Snapshot) -> bool {
    matches!(snapshot.error.as_deref(), Some(LookupError::Failed { .. }))
}

fn is_not_found(snapshot: &Snapshot) -> bool {
    matches!(snapshot.error.as_deref(), Some(LookupError::NotFound(_)))
}

#[tokio::test]
async fn discovery_tells_of_a_service_who_is_meshed_under_which_account_and_its_policy() {
    let (discovery, dns, resolver) = honest().await;
    let own = format!("v=1 addr={OWN}:8080 mesh=1 ns=shop sa=api weight=1 opaque=0");
    let strings = [SERVICE, MESHED, BARE, &own, "v=9 something new"];
    discovery.zone.strings(API_8080, 5, &strings);
    for target in [name("api", 8080), name(API, 8080), srv(API_8080)] {
        let snapshot = resolver.follow(target.clone()).first().await;
        assert!(snapshot.error.is_none(), "{target}: {:?}", snapshot.error);
        let answer = snapshot.answer.as_ref().unwrap();
        assert_eq!(answer.source, Source::Mesh, "{target}");
        assert_eq!(answer.vips, [ip("10.96.0.7")]);
        assert_eq!(answer.dropped, [ip(OWN)]);
        assert_eq!(answer.valid_for, Duration::from_secs(5));
        let service = ServiceInfo {
            name: "api".into(),
            namespace: "shop".into(),
            timeout: Some(Duration::from_secs(3)),
            retries: Some(1),
        };
        assert_eq!(answer.service, Some(service));
        let [meshed, bare] = &answer.endpoints[..] else { panic!("{:?}", answer.endpoints) };
        assert_eq!(meshed.address, "10.77.0.3:8080".parse().unwrap());
        assert_eq!((meshed.mesh, meshed.weight), (Some(true), 3));
        assert_eq!(meshed.zone.as_deref(), Some("a"));
        assert_eq!(meshed.identity, Some(id("spiffe://cluster.local/ns/shop/sa/api")));
        assert_eq!((bare.mesh, bare.opaque), (Some(false), true));
    }
    assert!(!dns.zone.was_asked_for(RecordType::TXT));
}

#[tokio::test]
async fn a_service_without_endpoints_is_an_answer_and_ordinary_dns_is_not_asked() {
    let (discovery, dns, resolver) = honest().await;
    discovery.zone.strings(API_8080, 5, &[SERVICE]);
    dns.zone.addresses(API, 5, &["10.96.0.7"]);
    let snapshot = resolver.follow(name(API, 8080)).first().await;
    assert_eq!(addresses(&snapshot), sockets([]));
    assert_eq!(dns.zone.asked(API, RecordType::A), 0);
}

#[tokio::test]
async fn a_workload_alone_behind_a_service_may_call_it_and_so_itself() {
    let (discovery, _dns, resolver) = honest().await;
    let own = format!("v=1 addr={OWN}:8080 mesh=1 ns=shop sa=api weight=1 opaque=0");
    let loopback = "v=1 addr=127.0.0.1:8080 mesh=1 ns=shop sa=api weight=1 opaque=0";
    discovery.zone.strings(API_8080, 5, &[&own, loopback]);
    let snapshot = resolver.follow(name(API, 8080)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.2:8080"]));
    assert_eq!(snapshot.answer.as_ref().unwrap().dropped, [ip("127.0.0.1")]);
}

#[tokio::test]
async fn what_discovery_does_not_know_ordinary_dns_may_know_without_a_word_on_meshing() {
    let (_discovery, dns, resolver) = honest().await;
    dns.zone.addresses(API, 5, &["10.77.0.3"]);
    dns.zone.strings(API_8080, 5, &[BARE]);
    let snapshot = resolver.follow(name(API, 8080)).first().await;
    assert!(snapshot.error.is_none());
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!(answer.source, Source::Dns);
    assert_eq!(answer.endpoints[0].mesh, None);
    assert!(is_not_found(&*resolver.follow(address("10.77.0.3:8080")).first().await));
    assert!(!dns.zone.was_asked_for(RecordType::TXT), "strings of plain DNS are not even asked for");
}

#[tokio::test]
async fn spoofed_strings_are_never_believed() {
    let root = Root::new();
    let stranger = Root::new();
    let servers = [
        ("another account", root.server("spiffe://cluster.local/ns/shop/sa/evil")),
        ("another trust domain", root.server("spiffe://evil.test/ns/outrigger/sa/outrigger-discovery")),
        ("another root", stranger.server(DISCOVERY)),
        ("another protocol", root.server_speaking(DISCOVERY, b"h2")),
    ];
    for (what, config) in servers {
        let liar = FakeDns::start_tls(config).await;
        let dns = FakeDns::start().await;
        for zone in [&liar.zone, &dns.zone] {
            zone.strings(API_8080, 5, &[SERVICE, BARE]);
            zone.strings("4.0.77.10.in-addr.arpa", 5, &[BARE]);
        }
        dns.zone.addresses(API, 5, &["10.77.0.3"]);
        let resolver = resolver(&dns, Some(mesh(&root, liar.address)));

        let snapshot = resolver.follow(name(API, 8080)).first().await;
        assert!(is_failed(&snapshot), "{what}: {:?}", snapshot.error);
        let answer = snapshot.answer.as_ref().unwrap();
        assert_eq!(answer.source, Source::Dns, "{what}");
        assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:8080"]), "{what}");
        assert_eq!(answer.endpoints[0].mesh, None, "{what}");
        assert_eq!(answer.service, None, "{what}");

        let snapshot = resolver.follow(address("10.77.0.4:8080")).first().await;
        assert!(is_failed(&snapshot), "{what}: {:?}", snapshot.error);
        assert!(snapshot.answer.is_none(), "{what}");
        assert!(!liar.zone.was_asked_for(RecordType::TXT), "{what}");
    }
}

#[tokio::test]
async fn while_discovery_is_away_nothing_of_the_mesh_turns_into_something_outside_of_it() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = nobody.local_addr().unwrap();
    drop(nobody);
    let resolver = resolver(&dns, Some(mesh(&root, away)));
    // Whoever controls ordinary DNS denies the service's name and answers the short one as if it were a full one.
    dns.zone.addresses("api", 5, &["203.0.113.6"]);
    dns.zone.addresses("api.lan", 5, &["203.0.113.6"]);
    dns.zone.addresses("api.shop", 5, &["203.0.113.6"]);
    for target in [name("api", 8080), name(API, 8080), srv(API_8080), address("10.77.0.3:1")] {
        let snapshot = resolver.follow(target.clone()).first().await;
        assert!(is_failed(&snapshot), "{target}: {:?}", snapshot.error);
        assert!(snapshot.answer.is_none(), "{target}");
    }
    // A name outside of the mesh does not need discovery.
    dns.zone.addresses("db.example.org.lan", 5, &["10.9.9.9"]);
    let snapshot = resolver.follow(name("db.example.org", 5432)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.9.9.9:5432"]));
}

#[tokio::test]
async fn what_discovery_said_stays_when_it_goes_away_and_is_renewed_when_it_is_back() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    dns.zone.addresses(API, 1, &["10.77.0.66"]);
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    discovery.zone.strings(API_8080, 1, &[MESHED]);
    let resolver = resolver(&dns, Some(mesh(&root, discovery.address)));
    let mut followed = resolver.follow(name(API, 8080));
    assert_eq!(addresses(&*followed.first().await), sockets(["10.77.0.3:8080"]));

    let away = discovery.restart_tls(Root::new().server(DISCOVERY)).await;
    let failing = until(&mut followed, |now| now.error.is_some()).await;
    assert!(is_failed(&failing));
    assert_eq!(addresses(&failing), sockets(["10.77.0.3:8080"]));
    assert_eq!(failing.answer.as_ref().unwrap().endpoints[0].mesh, Some(true));

    let _back = away.restart_tls(root.server(DISCOVERY)).await;
    _back.zone.strings(API_8080, 1, &[BARE]);
    let renewed = until(&mut followed, |now| now.error.is_none()).await;
    assert_eq!(addresses(&renewed), sockets(["10.77.0.4:8080"]));
}

#[tokio::test]
async fn a_connection_that_ends_costs_no_answer_and_the_next_one_has_the_certificate_of_its_time() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    let (server, taken) = counted_mesh(&root, discovery.address);
    let resolver = resolver(&dns, Some(server));
    discovery.zone.strings("3.0.77.10.in-addr.arpa", 5, &[MESHED]);
    discovery.zone.strings("4.0.77.10.in-addr.arpa", 5, &[BARE]);
    let first = resolver.follow(address("10.77.0.3:8080")).first().await;
    assert!(first.error.is_none(), "{:?}", first.error);

    // One question makes the server hang up; all that were under way are asked again.
    discovery.zone.hang_up_at("4.0.77.10.in-addr.arpa");
    let snapshot = resolver.follow(address("10.77.0.4:8080")).first().await;
    assert!(snapshot.error.is_none(), "{:?}", snapshot.error);
    assert_eq!(taken.load(Ordering::SeqCst), 2, "each connection takes the configuration anew");

    // One at which it always hangs up is asked again once, not for ever.
    let hang_up = "9.0.77.10.in-addr.arpa";
    discovery.zone.say(hang_up, RecordType::TXT, Say::HangUp);
    assert!(is_failed(&*resolver.follow(address("10.77.0.9:8080")).first().await));
    assert_eq!(discovery.zone.asked(hang_up, RecordType::TXT), 2);
}

#[tokio::test]
async fn before_there_is_a_certificate_lookups_fail_and_then_they_do_not() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    discovery.zone.strings("3.0.77.10.in-addr.arpa", 5, &[MESHED]);
    let held = Arc::new(Mutex::new(None));
    let mut server = mesh(&root, discovery.address);
    server.tls = {
        let held = held.clone();
        Arc::new(move || held.lock().unwrap().clone())
    };
    let mut followed = resolver(&dns, Some(server)).follow(address("10.77.0.3:8080"));
    assert!(is_failed(&*followed.first().await));
    *held.lock().unwrap() = Some(root.client(PROXY));
    let snapshot = until(&mut followed, |now| now.error.is_none()).await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:8080"]));
}

#[tokio::test]
async fn a_vip_is_its_service_and_a_pods_address_is_that_pod() {
    let (discovery, _dns, resolver) = honest().await;
    let target = "v=1 addr=10.77.0.3:9090 mesh=1 ns=shop sa=api weight=1 opaque=0";
    let zone = &discovery.zone;
    zone.strings("7.0.96.10.in-addr.arpa", 5, &[SERVICE, MESHED, target, BARE]);
    zone.strings(API_8080, 5, &[SERVICE, MESHED, BARE]);
    zone.strings("_80._tcp.api.shop.svc.cluster.local", 5, &[SERVICE, target]);
    zone.strings("3.0.77.10.in-addr.arpa", 5, &[SERVICE, MESHED]);
    zone.strings("4.0.77.10.in-addr.arpa", 5, &[BARE]);
    zone.strings(
        "5.0.77.10.in-addr.arpa",
        5,
        &["v=1 addr=10.77.0.5:0 mesh=1 ns=shop sa=any weight=1 opaque=0"],
    );
    zone.strings(
        "2.0.77.10.in-addr.arpa",
        5,
        &["v=1 addr=10.77.0.2:80 mesh=1 ns=shop sa=web weight=1 opaque=0"],
    );
    let account = |name| Some(id(&format!("spiffe://cluster.local/ns/shop/sa/{name}")));

    let snapshot = resolver.follow(address("10.96.0.7:80")).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:9090"]));
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!((&*answer.name, &answer.vips[..]), (API, &[ip("10.96.0.7")][..]));

    let snapshot = resolver.follow(address("10.96.0.7:81")).first().await;
    assert_eq!(addresses(&snapshot), sockets([]), "a port that the service does not have");
    assert_eq!(&*snapshot.answer.as_ref().unwrap().name, API);

    for (dialled, mesh, sa) in [
        ("10.77.0.3:8080", Some(true), "api"),
        ("10.77.0.3:9999", Some(true), "api"),
        ("10.77.0.4:8080", Some(false), "old"),
        ("10.77.0.4:9999", None, "old"),
        ("10.77.0.5:1234", Some(true), "any"),
        ("10.77.0.2:80", Some(true), "web"),
    ] {
        let snapshot = resolver.follow(address(dialled)).first().await;
        assert_eq!(addresses(&snapshot), sockets([dialled]));
        let answer = snapshot.answer.as_ref().unwrap();
        assert_eq!(answer.endpoints[0].mesh, mesh, "{dialled}");
        assert_eq!(answer.endpoints[0].identity, account(sa), "{dialled}");
        assert!(answer.vips.is_empty(), "{dialled}");
    }
    assert!(is_not_found(&*resolver.follow(address("203.0.113.1:80")).first().await));
}

#[tokio::test]
async fn a_pods_own_name_is_known_by_discovery_alone() {
    let (discovery, dns, resolver) = honest().await;
    let pod = "api-0.api.shop.svc.cluster.local";
    // Ordinary DNS would put another account behind the name.
    dns.zone.addresses(pod, 5, &["10.77.0.66"]);
    discovery.zone.addresses(pod, 5, &["10.77.0.3"]);
    discovery.zone.strings("3.0.77.10.in-addr.arpa", 5, &[MESHED]);
    discovery.zone.strings(
        "66.0.77.10.in-addr.arpa",
        5,
        &["v=1 addr=10.77.0.66:8080 mesh=0 ns=evil sa=evil weight=1 opaque=0"],
    );
    let snapshot = resolver.follow(name(pod, 8080)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:8080"]));
    assert_eq!(snapshot.answer.as_ref().unwrap().endpoints[0].mesh, Some(true));

    discovery.zone.forget(pod, RecordType::A);
    discovery.zone.forget(pod, RecordType::AAAA);
    let snapshot = resolver.follow(name(pod, 8081)).first().await;
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.66:8081"]));
    assert_eq!((answer.endpoints[0].mesh, &answer.endpoints[0].identity), (None, &None));
}

#[tokio::test]
async fn an_error_code_or_silence_of_discovery_is_a_failure() {
    let (discovery, _dns, resolver) = honest().await;
    let refused = Say::Code(ResponseCode::ServFail);
    discovery.zone.say("3.0.77.10.in-addr.arpa", RecordType::TXT, refused);
    discovery.zone.say("4.0.77.10.in-addr.arpa", RecordType::TXT, Say::Nothing);
    discovery.zone.strings("5.0.77.10.in-addr.arpa", 5, &["v=9 unknown"]);
    for dialled in ["10.77.0.3:80", "10.77.0.4:80", "10.77.0.5:80"] {
        let snapshot = resolver.follow(address(dialled)).first().await;
        assert!(is_failed(&snapshot), "{dialled}: {:?}", snapshot.error);
    }
}

#[tokio::test]
async fn many_questions_share_one_connection() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    let (server, taken) = counted_mesh(&root, discovery.address);
    let resolver = resolver(&dns, Some(server));
    let mut followed = Vec::new();
    for last in 3..=250 {
        let reverse = format!("{last}.1.77.10.in-addr.arpa");
        let string = format!("v=1 addr=10.77.1.{last}:80 mesh=1 ns=shop sa=a{last} weight=1 opaque=0");
        discovery.zone.strings(&reverse, 60, &[&string]);
        followed.push((last, resolver.follow(address(&format!("10.77.1.{last}:80")))));
    }
    for (last, one) in followed {
        let snapshot = one.first().await;
        let endpoint = &snapshot.answer.as_ref().expect("an answer").endpoints[0];
        let account = endpoint.identity.as_ref().unwrap();
        assert_eq!(account.service_account(), Some(format!("a{last}").as_str()));
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_host_of_discovery_is_found_by_ordinary_dns() {
    let root = Root::new();
    let dns = FakeDns::start().await;
    let discovery = FakeDns::start_tls(root.server(DISCOVERY)).await;
    dns.zone.addresses("discovery.outrigger.svc.lan", 5, &["127.0.0.1"]);
    discovery.zone.strings(API_8080, 5, &[MESHED]);
    let mut server = mesh(&root, discovery.address);
    server.address = format!("discovery.outrigger.svc:{}", discovery.address.port());
    let snapshot = resolver(&dns, Some(server)).follow(srv(API_8080)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:8080"]));
}
