use std::path::Path;

use outrigger_ca::ExpectedIdentity;

use super::super::Choice;
use super::super::Security;
use super::*;
use crate::config::DnsDiscovery;
use crate::resolve::{MeshServer, ResolveSettings};

fn rules() -> Arc<SecurityRules> {
    Arc::new(SecurityRules {
        trust_domain: "cluster.local".into(),
        cluster_domain: "cluster.local".into(),
        outbound: Arc::default(),
        tries_tls: false,
        discovery: false,
    })
}

fn upstream(discovery: Discovery) -> config::Upstream {
    config::Upstream { discovery: Some(discovery), ..Default::default() }
}

fn fixed(addresses: &[&str]) -> config::Upstream {
    upstream(Discovery::Static(
        addresses.iter().map(|address| config::StaticEndpoint::at(address.parse().unwrap())).collect(),
    ))
}

fn by_dns(name: &str, port: u16) -> config::Upstream {
    upstream(Discovery::Dns(DnsDiscovery { name: name.into(), port: Some(port) }))
}

fn config<const N: usize>(upstreams: [(&str, config::Upstream); N]) -> Arc<Config> {
    let upstreams = upstreams.into_iter().map(|(name, upstream)| (name.to_owned(), upstream)).collect();
    Arc::new(Config { upstreams, ..Config::default() })
}

/// A directory whose names are those of a hosts file.
fn directory(hosts: &Path, config: Arc<Config>) -> Directory {
    directory_asking("127.0.0.1:9".parse().unwrap(), hosts, config, rules())
}

/// A directory that asks `server` for what is not in a hosts file.
fn directory_asking(
    server: SocketAddr,
    hosts: &Path,
    config: Arc<Config>,
    rules: Arc<SecurityRules>,
) -> Directory {
    let settings = ResolveSettings {
        servers: vec![server],
        hosts_file: hosts.into(),
        search: Some(Vec::new()),
        ndots: Some(1),
        cluster_domain: "cluster.local".into(),
        own_addresses: Arc::new(Vec::new),
        mesh: rules.discovery.then(discovery_that_is_away),
        mark: None,
    };
    Directory::start(Resolver::new(settings, None).unwrap(), HealthChecks::channel().0, config, rules)
}

fn discovery_that_is_away() -> MeshServer {
    let id = "spiffe://cluster.local/ns/outrigger/sa/outrigger-discovery".parse().unwrap();
    MeshServer {
        address: "127.0.0.1:9".into(),
        tls: Arc::new(|| None),
        expected: ExpectedIdentity::Exact(id),
    }
}

async fn located(directory: &Directory, host: Option<&str>, dialled: &str) -> Destination {
    directory.locate(host.map(Into::into), dialled.parse().unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_name_that_changes_its_address_ends_what_was_decided_by_the_old_one_and_a_new_one_ends_nothing() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "10.0.0.1 api.example\n10.0.0.3 other.example\n").unwrap();
    let directory = directory(&hosts, config([]));
    let before = directory.generation();
    let dialled = "10.0.0.2:80";
    assert_eq!(&*located(&directory, Some("api.example"), dialled).await.upstream.name, dialled);
    assert_eq!(
        &*located(&directory, Some("other.example"), "10.0.0.3:80").await.upstream.name,
        "other.example:80"
    );
    assert_eq!(directory.generation(), before);
    let target = Target::Name { host: "api.example".into(), port: 80 };
    let mut followed = directory.shared.resolver.follow(target);
    std::fs::write(&hosts, "10.0.0.2 api.example\n10.0.0.3 other.example\n").unwrap();
    followed.changed().await;
    assert_eq!(&*located(&directory, Some("api.example"), dialled).await.upstream.name, "api.example:80");
    assert_ne!(directory.generation(), before);
}

#[tokio::test]
async fn a_broken_upstream_fails_only_those_who_want_it() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "10.0.0.5 db.example\n").unwrap();
    let tls = config::UpstreamTls::Server(config::ServerTls {
        server_name: "a.example".into(),
        ca_file: files.path().join("missing.pem"),
    });
    let broken = config::Upstream { tls: Some(tls), ..fixed(&["10.0.0.1:80"]) };
    let broken_by_dns = config::Upstream { tls: broken.tls.clone(), ..by_dns("db.example", 1) };
    let directory = directory(
        &hosts,
        config([
            ("broken", broken),
            ("broken-by-dns", broken_by_dns),
            ("db", by_dns("db.example", 5432)),
            ("store", fixed(&["10.0.0.2:6379", "10.0.0.3:6379"])),
        ]),
    );
    let failed = directory.locate(None, "10.0.0.1:80".parse().unwrap()).await;
    assert!(matches!(failed, Err(DestinationError::Config(_))), "{failed:?}");
    for (dialled, name, its_endpoint) in [
        ("10.0.0.1:81", "10.0.0.1:81", false),
        ("10.0.0.3:6379", "store", true),
        ("10.0.0.5:5432", "db", true),
        ("10.0.0.5:5433", "10.0.0.5:5433", false),
    ] {
        let found = located(&directory, None, dialled).await;
        assert_eq!(&*found.upstream.name, name, "{dialled}");
        assert_eq!(found.endpoint.is_some(), its_endpoint, "{dialled}");
        let chosen = found
            .upstream
            .pick(found.endpoint.as_ref(), &Choice::at(Instant::now()), &mut rand::rng())
            .unwrap();
        assert_eq!(chosen.address, dialled.parse().unwrap());
    }
}

#[tokio::test]
async fn a_stated_address_is_not_called_while_discovery_is_away_unless_the_config_says_how() {
    let files = tempfile::tempdir().unwrap();
    let plain = Some(config::UpstreamTls::Mode(config::UpstreamTlsMode::None));
    let pinned = Some("spiffe://cluster.local/ns/shop/sa/db".to_owned());
    let config = config([
        ("listed", fixed(&["10.0.0.1:80", "127.0.0.1:80"])),
        ("meshed", config::Upstream { identity: pinned.clone(), ..fixed(&["10.9.0.1:80"]) }),
        ("pinned", config::Upstream { identity: pinned, ..fixed(&["10.0.0.2:80"]) }),
        ("plain", config::Upstream { tls: plain, ..fixed(&["10.0.0.3:80"]) }),
    ]);
    let mesh_networks = vec!["10.9.0.0/24".parse().unwrap()];
    let outbound = Arc::new(config::Outbound { mesh_networks, ..Default::default() });
    let with = |discovery| {
        let rules = SecurityRules { discovery, outbound: outbound.clone(), ..(*rules()).clone() };
        let server = "127.0.0.1:9".parse().unwrap();
        directory_asking(server, &files.path().join("hosts"), config.clone(), Arc::new(rules))
    };
    let directory = with(true);
    for dialled in ["10.0.0.1:80", "10.0.0.2:80"] {
        let answer = directory.locate(None, dialled.parse().unwrap()).await;
        assert!(matches!(answer, Err(DestinationError::Lookup(_))), "{dialled}: {answer:?}");
    }
    let security =
        async |directory: &Directory, dialled| match located(directory, None, dialled).await.endpoint {
            Some(endpoint) => endpoint.security.clone(),
            None => panic!("{dialled} is no endpoint"),
        };
    assert_eq!(security(&directory, "10.0.0.3:80").await, Security::Plain);
    assert_eq!(security(&directory, "127.0.0.1:80").await, Security::Plain);
    assert!(matches!(security(&directory, "10.9.0.1:80").await, Security::Mesh(_)));

    // Without a discovery nothing is followed, and nothing waited for.
    let directory = with(false);
    for dialled in ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"] {
        assert_eq!(security(&directory, dialled).await, Security::Plain, "{dialled}");
    }
    assert!(directory.shared.made().values().all(|made| made.followed.is_fixed()));
}

#[tokio::test]
async fn a_reload_keeps_unchanged_upstreams_and_applies_new_rules_to_them() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "").unwrap();
    let directory =
        directory(&hosts, config([("a", fixed(&["10.0.0.1:80"])), ("b", fixed(&["10.0.0.2:80"]))]));
    let get = async |name: &str| directory.configured(name.into(), 80).await;
    let (a, b) = (get("a").await.unwrap(), get("b").await.unwrap());
    let endpoint = a.set().members[0].endpoint.clone();
    let before = directory.generation();

    directory.reconfigure(
        config([("a", fixed(&["10.0.0.1:80"])), ("b", fixed(&["10.0.0.3:80"]))]),
        rules(),
        || (),
    );
    assert_ne!(directory.generation(), before);
    assert!(Arc::ptr_eq(&a, &get("a").await.unwrap()));
    assert!(Arc::ptr_eq(&endpoint, &a.set().members[0].endpoint));
    assert!(!Arc::ptr_eq(&b, &get("b").await.unwrap()));

    let outbound =
        config::Outbound { mesh_networks: vec!["10.0.0.0/24".parse().unwrap()], ..Default::default() };
    let meshed = SecurityRules { outbound: Arc::new(outbound), ..(*rules()).clone() };
    directory.reconfigure(config([("a", fixed(&["10.0.0.1:80"]))]), Arc::new(meshed), || ());
    assert!(Arc::ptr_eq(&a, &get("a").await.unwrap()));
    assert!(matches!(a.set().members[0].endpoint.security, Security::Refused(_)));
    assert!(get("b").await.is_err());
}

#[tokio::test]
async fn what_is_kept_on_demand_is_bounded_and_what_is_in_use_stays() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "").unwrap();
    let directory = directory(&hosts, config([("db", by_dns("localhost", 1))]));
    for port in 1..=MAX_ON_DEMAND as u16 {
        located(&directory, None, &format!("10.0.0.1:{port}")).await;
    }
    let far_ahead = Instant::now() + Duration::from_secs(60);
    let used = located(&directory, None, "10.0.0.1:7").await.upstream;
    used.choose(&Choice::at(far_ahead), &mut rand::rng());
    let before = directory.generation();
    located(&directory, None, "10.0.0.2:1").await;
    assert_ne!(directory.generation(), before);
    let made = directory.shared.made();
    assert_eq!(made.len(), MAX_ON_DEMAND - MADE_ROOM + 2);
    assert!(made.contains_key(&Key::Dialled("10.0.0.1:7".parse().unwrap())));
    assert!(made.contains_key(&Key::Configured("db".into(), None)));
}

#[tokio::test(start_paused = true)]
async fn names_that_nobody_answers_for_take_their_places_only_and_known_ones_are_found_at_once() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "10.0.0.1 api.example\n").unwrap();
    // It takes questions and says nothing.
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let outbound = config::Outbound { mesh_domains: vec!["gone.example".into()], ..Default::default() };
    let rules = SecurityRules { outbound: Arc::new(outbound), ..(*rules()).clone() };
    let directory = directory_asking(silent.local_addr().unwrap(), &hosts, config([]), Arc::new(rules));
    let dialled: SocketAddr = "10.0.0.1:80".parse().unwrap();
    located(&directory, Some("api.example"), "10.0.0.1:80").await;

    let began = tokio::time::Instant::now();
    let ask = |number: usize| {
        let directory = directory.clone();
        tokio::spawn(async move {
            let answer = directory.locate(Some(format!("n{number}.gone.example").into()), dialled).await;
            (answer.unwrap_err(), began.elapsed())
        })
    };
    let asked: Vec<_> = (0..NEW_AT_ONCE + 44).map(ask).collect();
    tokio::task::yield_now().await;
    located(&directory, Some("api.example"), "10.0.0.1:80").await;
    assert_eq!(began.elapsed(), Duration::ZERO);
    let (mut looked_up, mut refused) = (0, 0);
    for asked in asked {
        match asked.await.unwrap() {
            (DestinationError::Lookup(_), after) => {
                assert!(after <= LONGEST_QUESTION, "{after:?}");
                looked_up += 1;
            }
            (DestinationError::Overload, after) => {
                assert!((LONGEST_WAIT..LONGEST_WAIT * 2).contains(&after), "{after:?}");
                refused += 1;
            }
            (other, _) => panic!("{other:?}"),
        }
    }
    assert_eq!((looked_up, refused), (NEW_AT_ONCE, 44));
}

#[tokio::test]
async fn questions_beyond_their_places_are_refused_at_once() {
    let files = tempfile::tempdir().unwrap();
    let hosts = files.path().join("hosts");
    std::fs::write(&hosts, "10.0.0.1 api.example\n").unwrap();
    let directory = directory(&hosts, config([]));
    let dialled = "10.0.0.1:80".parse().unwrap();
    let all = directory.shared.questions.clone().acquire_many_owned(QUESTIONS as u32).await.unwrap();
    let refused = directory.locate(Some("api.example".into()), dialled).await;
    assert!(matches!(refused, Err(DestinationError::Overload)), "{refused:?}");
    drop(all);
    located(&directory, Some("api.example"), "10.0.0.1:80").await;
    assert_eq!(directory.shared.questions.available_permits(), QUESTIONS);
}
