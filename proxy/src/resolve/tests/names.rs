//! The hosts file and ordinary DNS.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;

use super::super::{LookupError, Resolver, Source};
use super::fake_dns::{FakeDns, Say, alias, host, service};
use super::*;

#[tokio::test]
async fn a_short_name_is_found_in_its_search_domain_with_the_port_that_was_asked_for() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 300, &["10.77.0.9", "10.77.0.8"]);
    let followed = resolver(&dns, None).follow(name("API", 8080));
    let snapshot = followed.first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.8:8080", "10.77.0.9:8080"]));
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!(&*answer.name, "api.lan");
    assert_eq!(answer.source, Source::Dns);
    assert_eq!(answer.valid_for, Duration::from_secs(60));
    assert!(answer.endpoints.iter().all(|one| one.mesh.is_none() && one.identity.is_none()));
    assert!(snapshot.error.is_none());
}

#[tokio::test]
async fn addresses_of_both_families_are_kept_where_both_can_be_reached() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 5, &["10.77.0.9", "fd00::9"]);
    let snapshot = resolver(&dns, None).follow(name("api.lan.", 80)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.9:80"]));

    let mut both = settings(&dns, None);
    both.own_addresses = Arc::new(|| vec![ip(OWN), ip("fd00::2")]);
    let both = Resolver::new(both, None).unwrap();
    let snapshot = both.follow(name("api.lan.", 80)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.9:80", "[fd00::9]:80"]));
}

#[tokio::test]
async fn an_answer_that_leads_to_this_machine_is_not_believed() {
    let dns = FakeDns::start().await;
    let lies = ["127.0.0.1", "169.254.169.254", OWN];
    dns.zone.addresses("liar.lan", 5, &[lies[0], lies[1], lies[2], "10.77.0.9"]);
    dns.zone.addresses("worse.lan", 5, &lies);
    let resolver = resolver(&dns, None);

    let snapshot = resolver.follow(name("liar", 15000)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.9:15000"]));
    assert_eq!(snapshot.answer.as_ref().unwrap().dropped, [ip(OWN), ip("127.0.0.1"), ip("169.254.169.254")]);
    let snapshot = resolver.follow(name("worse", 15000)).first().await;
    assert_eq!(addresses(&snapshot), sockets([]));
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_not_found_and_a_failure_never_is() {
    let dns = FakeDns::start().await;
    for kind in [RecordType::A, RecordType::SRV] {
        dns.zone.say("broken.lan", kind, Say::Code(ResponseCode::ServFail));
        dns.zone.say("refused.lan", kind, Say::Code(ResponseCode::Refused));
    }
    dns.zone.say("empty.lan", RecordType::A, Say::NoData);
    let resolver = resolver(&dns, None);
    for (host, found) in [
        ("absent", false),
        ("empty", false),
        ("10.0.0.1", false),
        ("bad host", false),
        ("broken", true),
        ("refused.lan.", true),
    ] {
        let snapshot = resolver.follow(name(host, 80)).first().await;
        assert!(snapshot.answer.is_none(), "{host}");
        let error = snapshot.error.as_deref().unwrap();
        assert_eq!(matches!(error, LookupError::Failed { .. }), found, "{host}: {error}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_a_failure() {
    let dns = FakeDns::start().await;
    for kind in [RecordType::A, RecordType::SRV] {
        dns.zone.say("silent.lan", kind, Say::Nothing);
    }
    let snapshot = resolver(&dns, None).follow(name("silent.lan.", 80)).first().await;
    let error = snapshot.error.as_deref();
    assert!(matches!(error, Some(LookupError::Failed { .. })), "{error:?}");
}

#[tokio::test]
async fn a_changed_answer_is_seen_and_the_last_good_one_stays_while_dns_fails() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 1, &["10.77.0.8"]);
    let mut followed = resolver(&dns, None).follow(name("api.lan.", 80));
    let first = followed.first().await;
    assert_eq!(addresses(&first), sockets(["10.77.0.8:80"]));

    dns.zone.addresses("api.lan", 1, &["10.77.0.9"]);
    until(&mut followed, |now| addresses(now) == sockets(["10.77.0.9:80"])).await;

    dns.zone.say("api.lan", RecordType::A, Say::Code(ResponseCode::ServFail));
    let failing = until(&mut followed, |now| now.error.is_some()).await;
    assert_eq!(addresses(&failing), sockets(["10.77.0.9:80"]));

    dns.zone.addresses("api.lan", 1, &["10.77.0.7"]);
    let good = until(&mut followed, |now| now.error.is_none()).await;
    assert_eq!(addresses(&good), sockets(["10.77.0.7:80"]));

    dns.zone.forget("api.lan", RecordType::A);
    dns.zone.forget("api.lan", RecordType::AAAA);
    let gone = until(&mut followed, |now| now.error.is_some()).await;
    assert!(matches!(gone.error.as_deref(), Some(LookupError::NotFound(_))));
    assert_eq!(addresses(&gone), sockets(["10.77.0.7:80"]), "kept for the grace");
}

#[tokio::test]
async fn srv_gives_ports_priorities_and_weights_and_the_names_own_addresses_are_its_vips() {
    let dns = FakeDns::start().await;
    let at = "_80._tcp.api.lan";
    dns.zone.say(
        at,
        RecordType::SRV,
        Say::With(
            vec![
                service(at, 1, 30, 8080, "a.lan"),
                service(at, 1, 0, 8081, "b.lan"),
                service(at, 2, 1, 8082, "c.lan"),
                service(at, 1, 1, 8083, "."),
            ],
            vec![host("a.lan", 5, "10.77.0.11"), host("c.lan", 5, "10.77.0.13")],
        ),
    );
    dns.zone.addresses("b.lan", 3, &["10.77.0.12", "127.0.0.1"]);
    dns.zone.addresses("api.lan", 4, &["10.96.0.7", "169.254.169.254"]);
    let resolver = resolver(&dns, None);
    let snapshot = resolver.follow(name("api", 80)).first().await;
    let all = sockets(["10.77.0.11:8080", "10.77.0.12:8081", "10.77.0.13:8082"]);
    assert_eq!(addresses(&snapshot), all);
    let answer = snapshot.answer.as_ref().unwrap();
    let ranks: Vec<_> = answer.endpoints.iter().map(|one| (one.priority, one.weight)).collect();
    assert_eq!(ranks, [(1, 30), (1, 1), (2, 1)]);
    assert_eq!(answer.vips, [ip("10.96.0.7")]);
    assert_eq!(answer.dropped, [ip("127.0.0.1"), ip("169.254.169.254")]);
    assert_eq!(answer.valid_for, Duration::from_secs(3));

    let snapshot = resolver.follow(srv(at)).first().await;
    assert_eq!(addresses(&snapshot), all);
    let snapshot = resolver.follow(srv("_81._tcp.api.lan")).first().await;
    assert!(matches!(snapshot.error.as_deref(), Some(LookupError::NotFound(_))));
}

#[tokio::test]
async fn aliases_are_followed_and_an_answer_too_long_for_udp_comes_over_tcp() {
    let dns = FakeDns::start().await;
    dns.zone.truncate_udp();
    let records = vec![alias("www.lan", 2, "web.lan"), host("web.lan", 9, "10.77.0.9")];
    dns.zone.records("www.lan", RecordType::A, records);
    let snapshot = resolver(&dns, None).follow(name("www.lan.", 80)).first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.9:80"]));
    let answer = snapshot.answer.as_ref().unwrap();
    assert_eq!(&*answer.name, "www.lan");
    assert_eq!(answer.valid_for, Duration::from_secs(2));
}

#[tokio::test]
async fn the_hosts_file_comes_first_and_is_followed() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 60, &["10.77.0.9"]);
    let folder = tempfile::tempdir().unwrap();
    let mut settings = settings(&dns, None);
    settings.hosts_file = folder.path().join("hosts");
    std::fs::write(&settings.hosts_file, "10.77.0.5 api api.shop\n127.0.0.1 here\n").unwrap();
    let hosts_file = settings.hosts_file.clone();
    let resolver = Resolver::new(settings, None).unwrap();

    let mut followed = resolver.follow(name("api", 80));
    let snapshot = followed.first().await;
    assert_eq!(addresses(&snapshot), sockets(["10.77.0.5:80"]));
    assert_eq!(snapshot.answer.as_ref().unwrap().source, Source::Hosts);
    let here = resolver.follow(name("here", 80)).first().await;
    assert_eq!(addresses(&here), sockets([]));
    assert_eq!(here.answer.as_ref().unwrap().dropped, [ip("127.0.0.1")]);

    std::fs::write(&hosts_file, "10.77.0.6 api\n").unwrap();
    until(&mut followed, |now| addresses(now) == sockets(["10.77.0.6:80"])).await;
    std::fs::remove_file(&hosts_file).unwrap();
    let snapshot = until(&mut followed, |now| addresses(now) == sockets(["10.77.0.9:80"])).await;
    assert_eq!(snapshot.answer.as_ref().unwrap().source, Source::Dns);
}

#[tokio::test]
async fn a_target_is_looked_up_once_for_all_who_follow_it_and_forgotten_after_the_last() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 60, &["10.77.0.9"]);
    let resolver = resolver(&dns, None);
    let first = resolver.follow(name("api.lan.", 80));
    let second = resolver.follow(name("API.lan.", 80));
    assert!(Arc::ptr_eq(&first.first().await, &second.first().await));
    assert_eq!(dns.zone.asked("api.lan", RecordType::A), 1);
    drop((first, second));
    let forgotten = async {
        while resolver.followed_targets() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(GUARD, forgotten).await.expect("forgotten");
    resolver.follow(name("api.lan.", 80)).first().await;
    assert_eq!(dns.zone.asked("api.lan", RecordType::A), 2);
}

#[tokio::test]
async fn sockets_carry_the_mark_or_say_why_not() {
    let dns = FakeDns::start().await;
    dns.zone.addresses("api.lan", 60, &["10.77.0.9"]);
    dns.zone.truncate_udp();
    let mut settings = settings(&dns, None);
    settings.mark = Some(1337);
    let resolver = Resolver::new(settings, None).unwrap();
    let snapshot = resolver.follow(name("api.lan.", 80)).first().await;
    // Without the privilege the failure is one of lookups, never a lookup without the mark.
    match snapshot.error.as_deref() {
        None => assert_eq!(addresses(&snapshot), sockets(["10.77.0.9:80"])),
        Some(error) => assert!(matches!(error, LookupError::Failed { .. }), "{error}"),
    }
}

#[test]
fn a_resolver_is_made_on_a_runtime() {
    let address = "127.0.0.1:53".parse().unwrap();
    let settings = super::super::ResolveSettings {
        servers: vec![address],
        hosts_file: "/nonexistent/hosts".into(),
        search: Some(Vec::new()),
        ndots: Some(1),
        cluster_domain: "cluster.local".into(),
        own_addresses: Arc::new(Vec::new),
        mesh: None,
        mark: None,
    };
    let refused = Resolver::new(settings, None).err().unwrap();
    assert!(matches!(refused, super::super::ResolveError::NoRuntime));
}
