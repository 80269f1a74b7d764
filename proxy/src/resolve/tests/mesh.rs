//! The mesh's discovery: what it tells, and that nobody else is believed in its place.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use outrigger_ca::{ExpectedIdentity, SpiffeId};
use tokio::sync::Semaphore;

use super::super::owners::FollowedOwners;
use super::super::{LookupError, Owner, ProviderSettings, ServiceInfo, Source};
use super::fake_dns::{FakeDns, Say};
use super::pki::Root;
use super::*;
use crate::config::StaticEndpoint;

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
async fn a_port_that_a_known_service_does_not_have_is_nowhere_whatever_ordinary_dns_says() {
    let (discovery, dns, resolver) = honest().await;
    let zone = &discovery.zone;
    zone.strings(API_8080, 5, &[SERVICE, MESHED]);
    zone.addresses(API, 5, &["10.96.0.7"]);
    zone.strings("7.0.96.10.in-addr.arpa", 5, &[SERVICE, MESHED]);
    dns.zone.addresses(API, 5, &["10.96.0.7"]);
    for host in ["api", API] {
        let snapshot = resolver.follow(name(host, 7001)).first().await;
        assert_eq!(addresses(&snapshot), sockets([]), "{host}");
        let answer = snapshot.answer.as_ref().unwrap();
        assert_eq!((&*answer.name, &answer.vips[..]), (API, &[ip("10.96.0.7")][..]), "{host}");
        assert_eq!(answer.service.as_ref().unwrap().timeout, Some(Duration::from_secs(3)), "{host}");
    }
    assert_eq!(dns.zone.asked(API, RecordType::A), 0);
}

#[tokio::test]
async fn any_port_of_the_pods_of_a_service_without_a_vip_may_be_dialled() {
    let (discovery, dns, resolver) = honest().await;
    let db = "db.shop.svc.cluster.local";
    let zone = &discovery.zone;
    zone.addresses(db, 5, &["10.77.0.3"]);
    zone.strings("3.0.77.10.in-addr.arpa", 5, &["v=1 service name=db ns=shop", MESHED]);
    let snapshot = resolver.follow(name(db, 9999)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.3:9999"]));
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!((answer.source, answer.endpoints[0].mesh), (Source::Mesh, Some(true)));
    assert_eq!(answer.endpoints[0].identity, Some(id("spiffe://cluster.local/ns/shop/sa/api")));
    assert_eq!(dns.zone.asked(db, RecordType::A), 0);
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
async fn what_discovery_has_denied_is_no_longer_what_a_name_may_stand_for_when_ordinary_dns_fails() {
    let (discovery, dns, resolver) = honest().await;
    let cases: [(&str, &[&str]); 4] = [
        ("x.example", &["x.example.lan", "x.example"]),
        ("api_x", &["api_x.lan", "api_x"]),
        // Of a form that no service and no pod has.
        ("a.b.c.example", &["a.b.c.example.lan", "a.b.c.example"]),
        ("away", &["away.shop.svc.cluster.local", "away.lan", "away"]),
    ];
    let failure = || Say::Code(ResponseCode::Refused);
    discovery.zone.say("_80._tcp.away.shop.svc.cluster.local", RecordType::TXT, failure());
    for (host, undenied) in cases {
        for full in [format!("{host}.shop.svc.cluster.local"), format!("{host}.lan"), host.to_owned()] {
            for kind in [RecordType::A, RecordType::AAAA] {
                dns.zone.say(&full, kind, failure());
            }
        }
        let snapshot = resolver.follow(name(host, 80)).first().await;
        assert!(is_failed(&snapshot), "{host}: {snapshot:?}");
        assert_eq!(snapshot.error.as_ref().unwrap().undenied(), undenied, "{host}");
    }
    // And another search domain may know it.
    dns.zone.addresses("x.example.lan", 5, &["10.9.9.9"]);
    let snapshot = resolver.follow(name("x.example", 81)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.9.9.9:81"]));
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

#[tokio::test(start_paused = true)]
async fn what_was_never_answered_is_asked_for_again_each_second_while_somebody_wants_it() {
    let dns = FakeDns::start().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    // It fails at once, without a packet.
    let tls = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        None
    };
    let server = MeshServer { tls: Arc::new(tls), ..mesh(&Root::new(), dns.address) };
    let resolver = resolver(&dns, Some(server));
    // An address of its own, and one that is asked about because a list has it.
    let wanted = [
        ("an address", resolver.follow(address("10.77.0.3:80"))),
        ("a list", resolver.provide(&provided(sockets(["10.77.0.4:80"])), true)),
    ];
    for (target, followed) in wanted {
        followed.first().await;
        tokio::time::sleep(Duration::from_secs(300)).await;
        let before = asked.load(Ordering::SeqCst);
        for _ in 0..100 {
            followed.first().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let times = asked.load(Ordering::SeqCst) - before;
        assert!((8..=11).contains(&times), "{target}: asked {times} times in 10 s");
    }
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
        // No redirect takes a sidecar's own ports.
        ("10.77.0.3:15020", None, "api"),
        ("10.77.0.5:15021", None, "any"),
        ("10.77.0.5:15006", Some(true), "any"),
        ("10.77.0.2:80", Some(true), "web"),
    ] {
        let snapshot = resolver.follow(address(dialled)).first().await;
        assert_eq!(addresses(&snapshot), sockets([dialled]));
        let answer = snapshot.answer.as_ref().unwrap();
        assert_eq!(answer.endpoints[0].mesh, mesh, "{dialled}");
        assert_eq!(answer.endpoints[0].beside_sidecar, mesh.is_none() && sa != "old", "{dialled}");
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
async fn discovery_is_asked_whose_the_addresses_are_that_others_gave_and_they_are_followed() {
    let (discovery, dns, resolver) = honest().await;
    let (meshed, outside) = ("3.0.77.10.in-addr.arpa", "1.113.0.203.in-addr.arpa");
    dns.zone.addresses("alias.example", 60, &["10.77.0.3", "203.0.113.1", "203.0.113.2"]);
    discovery.zone.strings(meshed, 1, &[SERVICE, MESHED]);
    discovery.zone.say("2.113.0.203.in-addr.arpa", RecordType::TXT, Say::Code(ResponseCode::ServFail));
    let mut followed = resolver.follow(name("alias.example.", 8080));
    let snapshot = followed.first().await;
    let of = |snapshot: &Snapshot, address: &str| {
        snapshot.owners.as_ref().unwrap()[&address.parse::<SocketAddr>().unwrap()].clone()
    };
    let Owner::Known(owner) = of(&snapshot, "10.77.0.3:8080") else { panic!("{snapshot:?}") };
    assert_eq!(owner.endpoints[0].identity, Some(id("spiffe://cluster.local/ns/shop/sa/api")));
    assert_eq!(of(&snapshot, "203.0.113.1:8080"), Owner::Nobody);
    assert!(matches!(of(&snapshot, "203.0.113.2:8080"), Owner::Unknown(_)), "{snapshot:?}");
    assert!(snapshot.trouble().is_some());

    // Away: what was said stays. Back: what is said now counts, long before the name's own answer ends.
    let failed = || Say::Code(ResponseCode::ServFail);
    for reverse in [meshed, outside] {
        discovery.zone.say(reverse, RecordType::TXT, failed());
    }
    let asked = discovery.zone.asked(outside, RecordType::TXT);
    let asked_again = async {
        while discovery.zone.asked(outside, RecordType::TXT) < asked + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(GUARD, asked_again).await.expect("asked again");
    let away = followed.current();
    assert!(matches!(of(&away, "10.77.0.3:8080"), Owner::Known(_)));
    assert_eq!(of(&away, "203.0.113.1:8080"), Owner::Nobody);
    discovery.zone.strings(outside, 1, &["v=1 addr=203.0.113.1:0 mesh=1 ns=shop sa=far weight=1 opaque=0"]);
    until(&mut followed, |now| matches!(of(now, "203.0.113.1:8080"), Owner::Known(_))).await;
    assert_eq!(dns.zone.asked("alias.example", RecordType::A), 1);
}

#[tokio::test]
async fn of_very_many_addresses_some_are_asked_about_and_of_discovery_s_own_none() {
    let (discovery, dns, resolver) = honest().await;
    dns.zone.truncate_udp();
    let many: Vec<String> = (1..=200).map(|last| format!("203.0.113.{last}")).collect();
    dns.zone.addresses("many.example", 60, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let snapshot = resolver.follow(name("many.example.", 80)).first().await;
    let owners = snapshot.owners.as_ref().unwrap();
    assert_eq!(owners.len(), 64);
    assert!(owners.values().all(|owner| *owner == Owner::Nobody));

    discovery.zone.strings(API_8080, 5, &[SERVICE, MESHED]);
    let snapshot = resolver.follow(name(API, 8080)).first().await;
    assert!(snapshot.owners.is_none());
    assert_eq!(discovery.zone.asked("3.0.77.10.in-addr.arpa", RecordType::TXT), 0);
}

#[tokio::test]
async fn discovery_is_asked_whose_all_the_addresses_are_that_the_config_states_but_for_local_ones() {
    let (discovery, dns, resolver) = honest().await;
    discovery.zone.strings("3.0.77.10.in-addr.arpa", 5, &[SERVICE, MESHED]);
    discovery.zone.say("1.0.0.127.in-addr.arpa", RecordType::TXT, Say::Code(ResponseCode::ServFail));
    let mut stated = sockets(["127.0.0.1:80", "[::ffff:10.77.0.3]:8080", "10.77.0.3:8080"]);
    stated.extend((1..=200).map(|last| SocketAddr::from(([203, 0, 113, last], 80))));
    let snapshot = resolver.provide(&provided(stated), true).first().await;
    assert_eq!(addresses(&snapshot)[..2], sockets(["10.77.0.3:8080", "127.0.0.1:80"]));
    assert!(snapshot.error.is_none());
    let owners = snapshot.owners.as_ref().unwrap();
    let known = owners.iter().filter(|(_, owner)| **owner != Owner::Nobody).collect::<Vec<_>>();
    let [(address, Owner::Known(answer))] = known[..] else { panic!("{known:?}") };
    assert_eq!((address.to_string().as_str(), answer.endpoints[0].mesh), ("10.77.0.3:8080", Some(true)));
    assert_eq!(owners.len(), 202);
    assert_eq!(discovery.zone.asked("1.0.0.127.in-addr.arpa", RecordType::TXT), 0);

    let alone = super::resolver(&dns, None);
    for (resolver, asks_owners) in [(&alone, true), (&resolver, false)] {
        let followed = resolver.provide(&provided(sockets(["10.77.0.3:8080"])), asks_owners);
        assert!(followed.is_fixed() && followed.first().await.owners.is_none());
    }
    assert_eq!(dns.zone.asked("3.0.77.10.in-addr.arpa", RecordType::TXT), 0);
}

#[tokio::test]
async fn without_a_place_an_address_is_not_asked_about_and_places_come_back() {
    let (discovery, dns, resolver) = honest().await;
    discovery.zone.strings("3.0.77.10.in-addr.arpa", 5, &[MESHED]);
    let addresses = ["10.77.0.3", "203.0.113.1", "203.0.113.2"];
    dns.zone.addresses("alias.example", 60, &addresses);
    let snapshot = resolver.follow(name("alias.example.", 80)).first().await;
    let answer = snapshot.answer.as_deref();
    let places = Arc::new(Semaphore::new(2));
    let mut owners = FollowedOwners::new(places.clone());
    let follow = |target| resolver.follow(target);
    owners.turn_to(answer, follow).await;
    let known = owners.known();
    let asked: Vec<_> = known.keys().map(SocketAddr::to_string).collect();
    assert_eq!(asked, ["10.77.0.3:80", "203.0.113.1:80"]);
    assert!(matches!(known.values().next(), Some(Owner::Known(_))));
    owners.turn_to(None, follow).await;
    assert!(owners.known().is_empty());
    assert_eq!(places.available_permits(), 2);
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

/// Addresses that the config states.
fn provided(addresses: Vec<SocketAddr>) -> ProviderSettings {
    ProviderSettings::Static(addresses.into_iter().map(StaticEndpoint::at).collect())
}
