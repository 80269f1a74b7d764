//! Each provider against its stand-in, in memory, so that the clock is paused for both.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};

use super::{Network, ProviderSettings, Providers};
use crate::config::{
    ConsulDiscovery, EurekaDiscovery, FileDiscovery, KubernetesDiscovery, ServicePort, StaticEndpoint,
};
use crate::resolve::{Followed, LookupError, Snapshot};

use consul::Consul;
use eureka::Eureka;
use http::{Exchange, Fault, Faults, LOOK, Request, StandIn, Step, response, step};
use kubernetes::{Endpoint, Kubernetes, TOKEN};

#[allow(dead_code, reason = "the integration tests use more of it")]
#[path = "../../../../tests/mesh/stand_ins/consul.rs"]
mod consul;
#[allow(dead_code, reason = "the integration tests use more of it")]
#[path = "../../../../tests/mesh/stand_ins/eureka.rs"]
mod eureka;
#[allow(dead_code, reason = "the integration tests use more of it")]
#[path = "../../../../tests/mesh/stand_ins/http.rs"]
mod http;
#[allow(dead_code, reason = "the integration tests use more of it")]
#[path = "../../../../tests/mesh/stand_ins/kubernetes.rs"]
mod kubernetes;

/// Longer than the longest pause after failures and than any blocking question.
const LONG: Duration = Duration::from_secs(120);
/// Ways to answer with nothing usable.
const LIES: [Fault; 9] = [
    Fault::HangsUp,
    Fault::Stalls,
    Fault::Status(500),
    Fault::Status(403),
    Fault::Page,
    Fault::Half,
    Fault::BrokenJson,
    Fault::OtherJson,
    Fault::Flood,
];

/// A network in which only these servers are, by `host:port`.
fn network<S: StandIn>(servers: &[(&'static str, &Arc<S>)]) -> Network {
    let servers: Vec<_> = servers.iter().map(|(at, stand_in)| (*at, Arc::clone(stand_in))).collect();
    Network::Memory(Arc::new(move |at| {
        let (_, stand_in) = servers
            .iter()
            .find(|(known, _)| *known == at)
            .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(serve(Arc::clone(stand_in), theirs));
        Ok(ours)
    }))
}

async fn serve<S: StandIn>(stand_in: Arc<S>, mut connection: DuplexStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let mut exchange = stand_in.faults().begin(Request::parse(&head));
    let began = Instant::now();
    while let Some(next) = step(&*stand_in, &mut exchange, began.elapsed()) {
        let sent = match &next {
            Step::Wait => {
                // Whoever asked may have left.
                tokio::select! {
                    () = sleep(LOOK) => Ok(()),
                    _ = connection.read_u8() => return,
                }
            }
            Step::Send(bytes) | Step::Finish(bytes) => connection.write_all(bytes).await,
        };
        if sent.is_err() || matches!(next, Step::Finish(_)) {
            return;
        }
    }
}

fn follow(network: Network, settings: &ProviderSettings) -> Followed {
    providers(network).follow(settings, None)
}

fn providers(network: Network) -> Providers {
    let own = || vec!["10.77.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
    Providers::new(network, Arc::new(own), "cluster.local".into())
}

fn consul_settings() -> ConsulDiscovery {
    ConsulDiscovery {
        url: Some("http://consul:8500".into()),
        service: "api".into(),
        tag: None,
        datacenter: None,
        token_file: None,
        ca_file: None,
    }
}

fn follow_consul(stand_in: &Arc<Consul>) -> Followed {
    follow(network(&[("consul:8500", stand_in)]), &ProviderSettings::Consul(consul_settings()))
}

fn eureka_settings(urls: &[&str], application: &str) -> ProviderSettings {
    ProviderSettings::Eureka(EurekaDiscovery {
        urls: urls.iter().map(|url| (*url).to_owned()).collect(),
        application: application.into(),
        interval: None,
        ca_file: None,
    })
}

fn follow_eureka(stand_in: &Arc<Eureka>) -> Followed {
    let settings = eureka_settings(&["http://one:8761/eureka/"], "api");
    follow(network(&[("one:8761", stand_in)]), &settings)
}

fn kubernetes_settings(token_file: &Path) -> KubernetesDiscovery {
    KubernetesDiscovery {
        service: "api".into(),
        namespace: "shop".into(),
        port: None,
        url: Some("http://kubernetes:6443".into()),
        token_file: Some(token_file.into()),
        ca_file: None,
    }
}

/// A cluster, and a client of it with a token in a file.
struct Cluster {
    stand_in: Arc<Kubernetes>,
    token: tempfile::NamedTempFile,
}

impl Cluster {
    fn new() -> Self {
        let token = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(token.path(), format!("{TOKEN}\n")).unwrap();
        Self { stand_in: Arc::default(), token }
    }

    fn put(&self, name: &str, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses.iter().map(|address| Endpoint::ready(address)).collect();
        self.stand_in.put(name, "api", &[("http", 80)], &endpoints);
    }

    fn follow(&self) -> Followed {
        self.follow_with(kubernetes_settings(self.token.path()))
    }

    fn follow_with(&self, settings: KubernetesDiscovery) -> Followed {
        let network = network(&[("kubernetes:6443", &self.stand_in)]);
        follow(network, &ProviderSettings::Kubernetes(settings))
    }
}

fn addresses(snapshot: &Snapshot) -> Vec<String> {
    let endpoints = snapshot.answer.iter().flat_map(|answer| &answer.endpoints);
    endpoints.map(|endpoint| endpoint.address.to_string()).collect()
}

/// Waits until what is known has become so. A confirmation is no change, so that it is looked at now and then.
async fn until(followed: &Followed, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let began = Instant::now();
    loop {
        let snapshot = followed.current();
        if is_so(&snapshot) {
            return snapshot;
        }
        assert!(began.elapsed() < LONG, "it never came to be that {what}: {snapshot:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn until_at(followed: &Followed, expected: &[&str]) {
    until(followed, &format!("the endpoints are {expected:?}"), |snapshot| addresses(snapshot) == expected)
        .await;
}

fn failure(snapshot: &Snapshot) -> Option<&str> {
    match snapshot.error.as_deref() {
        Some(LookupError::Failed { reason, .. }) => Some(reason),
        _ => None,
    }
}

fn age(followed: &Followed) -> Duration {
    followed.current().age(Instant::now().into_std()).expect("an answer that ages")
}

/// The set stays and its age grows however a source fails, and it is up to date again soon after.
async fn outlives_every_lie<S: StandIn>(stand_in: &S, followed: &Followed, change: impl Fn(&str)) {
    let mut known = "10.0.0.1:80".to_owned();
    until_at(followed, &[&known]).await;
    for (number, lie) in LIES.into_iter().enumerate() {
        stand_in.faults().set(lie);
        change(&format!("10.0.1.{number}"));
        sleep(LONG).await;
        let snapshot = followed.current();
        assert_eq!(addresses(&snapshot), [known.as_str()], "{lie:?}");
        assert!(failure(&snapshot).is_some(), "{lie:?}: {snapshot:?}");
        assert!(age(followed) > LONG / 2, "{lie:?}: {:?}", age(followed));
        stand_in.faults().set(Fault::None);
        known = format!("10.0.1.{number}:80");
        until_at(followed, &[&known]).await;
        let snapshot = followed.current();
        assert!(snapshot.error.is_none(), "after {lie:?}: {snapshot:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_config_states_is_there_at_once_and_never_ages() {
    let mut one = StaticEndpoint::at("127.0.0.1:80".parse().unwrap());
    one.priority = 2;
    one.tags.insert("version".into(), "v2".into());
    let settings = ProviderSettings::Static(vec![one.clone(), one]);
    let followed = follow(network::<Consul>(&[]), &settings);
    assert!(followed.is_fixed());
    let snapshot = followed.current();
    assert_eq!(
        addresses(&snapshot),
        ["127.0.0.1:80"],
        "the operator's loopback is believed, each address once"
    );
    let endpoint = &snapshot.answer.as_ref().unwrap().endpoints[0];
    assert_eq!((endpoint.priority, endpoint.tags["version"].as_str()), (2, "v2"));
    assert_eq!(snapshot.age(Instant::now().into_std()), None);
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let path = at("endpoints.yaml");
    let settings = ProviderSettings::File(FileDiscovery { path: path.clone() });
    let followed = follow(network::<Consul>(&[]), &settings);
    assert!(failure(&*followed.first().await).is_some(), "there is none yet");
    std::fs::write(&path, "- 127.0.0.1:80\n").unwrap();
    until_at(&followed, &["127.0.0.1:80"]).await;
    std::fs::write(&path, "- 127.0.0.1:80\n- {").unwrap();
    let broken = until(&followed, "the error is seen", |snapshot| snapshot.error.is_some()).await;
    assert_eq!(addresses(&broken), ["127.0.0.1:80"]);
    // As a ConfigMap changes.
    std::fs::create_dir(at("v1")).unwrap();
    std::fs::write(at("v1").join("endpoints.yaml"), "[10.0.0.1:80]").unwrap();
    std::os::unix::fs::symlink("v1", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/endpoints.yaml", at("link")).unwrap();
    std::fs::rename(at("link"), &path).unwrap();
    until_at(&followed, &["10.0.0.1:80"]).await;
    std::fs::create_dir(at("v2")).unwrap();
    std::fs::write(at("v2").join("endpoints.yaml"), "[10.0.0.2:80]").unwrap();
    std::os::unix::fs::symlink("v2", at("..new")).unwrap();
    std::fs::rename(at("..new"), at("..data")).unwrap();
    until_at(&followed, &["10.0.0.2:80"]).await;
    std::fs::remove_file(&path).unwrap();
    let gone = until(&followed, "it is missed", |snapshot| snapshot.error.is_some()).await;
    assert_eq!(addresses(&gone), ["10.0.0.2:80"]);
}

#[tokio::test(start_paused = true)]
async fn consul_tells_of_changes_at_once_and_is_not_asked_more_than_it_needs() {
    let stand_in = Arc::new(Consul::default());
    let instance = |address| consul::Instance::new("api", address, 80);
    stand_in.set(vec![instance("10.0.0.1"), consul::Instance::new("other", "10.0.0.8", 80)]);
    let followed = follow_consul(&stand_in);
    until_at(&followed, &["10.0.0.1:80"]).await;
    sleep(Duration::from_secs(10)).await;
    let mut critical = instance("10.0.0.3");
    critical.check = "critical";
    stand_in.set(vec![instance("10.0.0.1"), instance("10.0.0.2"), critical]);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(addresses(&followed.current()), ["10.0.0.1:80", "10.0.0.2:80"]);
    sleep(Duration::from_secs(300)).await;
    assert!(age(&followed) < Duration::from_secs(65), "{:?}", age(&followed));
    let asked = stand_in.faults().asked().len();
    assert!((6..=9).contains(&asked), "asked {asked} times in 310 s: {:?}", stand_in.faults().asked());
    stand_in.set(Vec::new());
    until_at(&followed, &[]).await;
    assert!(followed.current().error.is_none(), "an empty set is believed");
}

#[tokio::test(start_paused = true)]
async fn consul_s_busy_index_does_not_make_it_be_asked_more_than_once_a_second() {
    let stand_in = Arc::new(Consul::default());
    stand_in.set(vec![consul::Instance::new("api", "10.0.0.1", 80)]);
    let followed = follow_consul(&stand_in);
    until_at(&followed, &["10.0.0.1:80"]).await;
    for _ in 0..200 {
        stand_in.touch();
        sleep(Duration::from_millis(100)).await;
    }
    let asked = stand_in.faults().asked().len();
    assert!((15..=24).contains(&asked), "asked {asked} times in 20 s");
}

#[tokio::test(start_paused = true)]
async fn a_consul_whose_index_goes_backwards_is_asked_anew() {
    let stand_in = Arc::new(Consul::default());
    let instance = |address| consul::Instance::new("api", address, 80);
    stand_in.restore(900, vec![instance("10.0.0.1")]);
    let followed = follow_consul(&stand_in);
    until_at(&followed, &["10.0.0.1:80"]).await;
    sleep(Duration::from_secs(5)).await;
    // By the index 900 this would not be told for a long time.
    stand_in.restore(7, vec![instance("10.0.0.2")]);
    until_at(&followed, &["10.0.0.2:80"]).await;
    stand_in.set(vec![instance("10.0.0.3")]);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(addresses(&followed.current()), ["10.0.0.3:80"]);
}

#[tokio::test(start_paused = true)]
async fn consul_s_datacenter_tag_and_token_are_stated_and_a_rotated_token_is_used_at_once() {
    let stand_in = Arc::new(Consul::default());
    let mut tagged = consul::Instance::new("a/b c", "10.0.0.1", 80);
    tagged.tags = vec!["blue & green".into()];
    stand_in.set(vec![tagged, consul::Instance::new("a/b c", "10.0.0.2", 80)]);
    stand_in.protect(&[("first", true)]);
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "first\n").unwrap();
    let settings = ConsulDiscovery {
        service: "a/b c".into(),
        tag: Some("blue & green".into()),
        datacenter: Some(consul::DATACENTER.into()),
        token_file: Some(token.path().into()),
        ..consul_settings()
    };
    let network = network(&[("consul:8500", &stand_in)]);
    let followed = follow(network.clone(), &ProviderSettings::Consul(settings.clone()));
    until_at(&followed, &["10.0.0.1:80"]).await;
    // What may not be read looks like nothing at all.
    stand_in.protect(&[("first", false), ("second", true)]);
    let refused = until(&followed, "the token is refused", |snapshot| snapshot.error.is_some()).await;
    assert_eq!(addresses(&refused), ["10.0.0.1:80"]);
    stand_in.protect(&[("second", true)]);
    let unknown = until(&followed, "the token is unknown", |snapshot| {
        failure(snapshot).is_some_and(|reason| reason.contains("ACL not found"))
    });
    assert_eq!(addresses(&*unknown.await), ["10.0.0.1:80"]);
    std::fs::write(token.path(), "second").unwrap();
    until(&followed, "it may read again", |snapshot| snapshot.error.is_none()).await;
    let elsewhere = ConsulDiscovery { datacenter: Some("dc2".into()), ..settings };
    let snapshot = follow(network, &ProviderSettings::Consul(elsewhere)).first().await;
    assert!(
        failure(&snapshot).is_some_and(|reason| reason.contains("No path to datacenter")),
        "{snapshot:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn nothing_that_consul_does_wrong_costs_the_last_good_set() {
    let stand_in = Arc::new(Consul::default());
    let instance = |address: &str| consul::Instance::new("api", address, 80);
    stand_in.set(vec![instance("10.0.0.1")]);
    let followed = follow_consul(&stand_in);
    outlives_every_lie(&*stand_in, &followed, |address| stand_in.set(vec![instance(address)])).await;
    stand_in.lead(false);
    stand_in.touch();
    let leaderless = until(&followed, "there is no leader", |snapshot| snapshot.error.is_some()).await;
    assert_eq!(addresses(&leaderless).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn loopback_is_believed_of_a_consul_on_loopback_and_other_local_addresses_of_none() {
    let stand_in = Arc::new(Consul::default());
    let instance = |address: &str| consul::Instance::new("api", address, 80);
    let all = ["127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "10.77.0.2", "10.0.0.1"];
    stand_in.set(all.map(instance).to_vec());
    let network = network(&[("consul:8500", &stand_in), ("127.0.0.1:8500", &stand_in)]);
    let far = follow(network.clone(), &ProviderSettings::Consul(consul_settings()));
    until_at(&far, &["10.0.0.1:80", "10.77.0.2:80"]).await;
    let near = follow(network, &ProviderSettings::Consul(ConsulDiscovery { url: None, ..consul_settings() }));
    until_at(&near, &["10.0.0.1:80", "10.77.0.2:80", "127.0.0.1:80"]).await;
    assert_eq!(near.current().answer.as_ref().unwrap().dropped.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn eureka_is_fetched_whole_once_and_then_by_what_changed() {
    let stand_in = Arc::new(Eureka::default());
    let instance = |address| eureka::Instance::new("api", address, 80);
    stand_in.register(instance("10.0.0.1"));
    stand_in.register(instance("10.0.0.2").with_status("STARTING"));
    stand_in.register(eureka::Instance::new("other", "10.0.0.8", 80));
    let followed = follow_eureka(&stand_in);
    until_at(&followed, &["10.0.0.1:80"]).await;
    stand_in.register(instance("10.0.0.2"));
    stand_in.register(instance("10.0.0.3"));
    until_at(&followed, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    stand_in.cancel("10.0.0.1");
    stand_in.register(instance("10.0.0.3").with_status("OUT_OF_SERVICE"));
    until_at(&followed, &["10.0.0.2:80"]).await;
    sleep(Duration::from_secs(300)).await;
    assert!(age(&followed) < Duration::from_secs(35), "{:?}", age(&followed));
    let asked = stand_in.faults().asked();
    let whole = asked.iter().filter(|target| target.as_str() == "/eureka/apps?").count();
    assert_eq!(whole, 1, "{asked:?}");
    assert!((10..=14).contains(&asked.len()), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_eureka_whose_count_does_not_fit_or_that_has_no_deltas_is_fetched_whole() {
    for without_deltas in [false, true] {
        let stand_in = Arc::new(Eureka::default());
        stand_in.register(eureka::Instance::new("api", "10.0.0.1", 80));
        let followed = follow_eureka(&stand_in);
        until_at(&followed, &["10.0.0.1:80"]).await;
        // A change that the deltas do not tell.
        stand_in.register(eureka::Instance::new("api", "10.0.0.2", 80));
        if without_deltas {
            stand_in.without_deltas();
        } else {
            stand_in.forget_changes();
        }
        until_at(&followed, &["10.0.0.1:80", "10.0.0.2:80"]).await;
        let asked = stand_in.faults().asked();
        assert_eq!(asked, ["/eureka/apps?", "/eureka/apps/delta?", "/eureka/apps?"]);
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_eureka_is_asked_when_one_is_away_and_one_registry_serves_all_upstreams() {
    let (one, two) = (Arc::new(Eureka::default()), Arc::new(Eureka::default()));
    for server in [&one, &two] {
        server.register(eureka::Instance::new("api", "10.0.0.1", 80));
        server.register(eureka::Instance::new("web", "10.0.0.2", 80));
    }
    let providers = providers(network(&[("one:8761", &one), ("two:8761", &two)]));
    let urls = ["http://one:8761/eureka", "http://two:8761/eureka"];
    let api = providers.follow(&eureka_settings(&urls, "Api"), None);
    until_at(&api, &["10.0.0.1:80"]).await;
    let web = providers.follow(&eureka_settings(&urls, "WEB"), None);
    until_at(&web, &["10.0.0.2:80"]).await;
    sleep(Duration::from_secs(295)).await;
    let asked = one.faults().asked();
    assert!((10..=15).contains(&asked.len()), "both by one fetch: {asked:?}");
    assert!(two.faults().asked().is_empty());
    one.faults().set(Fault::HangsUp);
    two.register(eureka::Instance::new("api", "10.0.0.3", 80));
    until_at(&api, &["10.0.0.1:80", "10.0.0.3:80"]).await;
    assert!(api.current().error.is_none());
}

#[tokio::test(start_paused = true)]
async fn nothing_that_eureka_does_wrong_costs_the_last_good_set() {
    let stand_in = Arc::new(Eureka::default());
    stand_in.register(eureka::Instance::new("api", "10.0.0.1", 80));
    let followed = follow_eureka(&stand_in);
    outlives_every_lie(&*stand_in, &followed, |address| {
        stand_in.restart();
        stand_in.register(eureka::Instance::new("api", address, 80));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_application_that_eureka_no_longer_has_is_believed_gone_after_a_while() {
    let stand_in = Arc::new(Eureka::default());
    stand_in.register(eureka::Instance::new("api", "10.0.0.1", 80));
    stand_in.register(eureka::Instance::new("other", "10.0.0.8", 80));
    let followed = follow_eureka(&stand_in);
    until_at(&followed, &["10.0.0.1:80"]).await;
    stand_in.cancel("10.0.0.1");
    let missed = until(&followed, "it is missed", |snapshot| snapshot.error.is_some()).await;
    assert!(matches!(missed.error.as_deref(), Some(LookupError::NotFound(_))));
    assert_eq!(addresses(&missed), ["10.0.0.1:80"], "a registry that begins anew lacks it for a moment");
    until_at(&followed, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn kubernetes_slices_are_listed_then_watched_and_each_change_is_seen_at_once() {
    let cluster = Cluster::new();
    cluster.put("api-1", &["10.0.0.1", "10.0.0.2"]);
    cluster.put("api-2", &["10.0.0.2", "10.0.0.3"]);
    cluster.stand_in.put("other-1", "other", &[("http", 80)], &[Endpoint::ready("10.0.0.9")]);
    let followed = cluster.follow();
    until_at(&followed, &["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]).await;
    assert_eq!(&*followed.current().answer.as_ref().unwrap().name, "api.shop.svc.cluster.local");
    sleep(Duration::from_secs(5)).await;
    let soon = || sleep(Duration::from_millis(100));
    cluster.put("api-2", &["10.0.0.3", "fd00::4"]);
    cluster.stand_in.put(
        "api-1",
        "api",
        &[("http", 80)],
        &[
            Endpoint::ready("10.0.0.1").in_zone("a"),
            Endpoint::leaving("10.0.0.5"),
            Endpoint::unready("10.0.0.6"),
        ],
    );
    soon().await;
    let snapshot = followed.current();
    assert_eq!(addresses(&snapshot)[..2], ["10.0.0.1:80", "10.0.0.3:80"]);
    assert_eq!(snapshot.answer.as_ref().unwrap().endpoints[0].zone.as_deref(), Some("a"));
    cluster.stand_in.delete("api-1");
    soon().await;
    assert_eq!(addresses(&followed.current())[0], "10.0.0.3:80");
    let asked = cluster.stand_in.faults().asked();
    assert_eq!(asked.len(), 2, "one list, one watch: {asked:?}");
    sleep(Duration::from_secs(290)).await;
    assert!(age(&followed) < Duration::from_secs(100), "{:?}", age(&followed));
    let asked = cluster.stand_in.faults().asked();
    let lists = asked.iter().filter(|target| !target.contains("watch=true")).count();
    assert_eq!(lists, 1, "a watch that ended in order goes on from where it was: {asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_version_that_is_gone_leads_to_a_new_list_and_bookmarks_spare_it() {
    for by_event in [false, true] {
        let cluster = Cluster::new();
        cluster.put("api-1", &["10.0.0.1"]);
        let followed = cluster.follow();
        until_at(&followed, &["10.0.0.1:80"]).await;
        let lists = || {
            let asked = cluster.stand_in.faults().asked();
            asked.iter().filter(|target| !target.contains("watch=true")).count()
        };
        cluster.stand_in.bookmark();
        sleep(Duration::from_secs(1)).await;
        let newest_is_known = cluster.stand_in.faults().asked().len();
        // Nothing is lost while it is away: what happened is told when it is back, by the version of the bookmark.
        cluster.stand_in.faults().set(Fault::Stalls);
        cluster.put("api-1", &["10.0.0.2"]);
        cluster.stand_in.compact(by_event);
        cluster.stand_in.faults().set(Fault::None);
        until_at(&followed, &["10.0.0.2:80"]).await;
        assert_eq!(lists(), 2, "by_event {by_event}");
        assert!(cluster.stand_in.faults().asked().len() > newest_is_known);
        assert!(followed.current().error.is_none(), "a version that is gone is no failure");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_kubernetes_is_read_again_and_missing_rights_are_named() {
    let cluster = Cluster::new();
    cluster.put("api-1", &["10.0.0.1"]);
    let followed = cluster.follow();
    until_at(&followed, &["10.0.0.1:80"]).await;
    cluster.stand_in.allow(TOKEN, None);
    cluster.stand_in.allow("new", Some(&["list"]));
    let unknown = until(&followed, "the token is refused", |snapshot| {
        failure(snapshot).is_some_and(|reason| reason.contains("401"))
    });
    assert_eq!(addresses(&*unknown.await), ["10.0.0.1:80"]);
    std::fs::write(cluster.token.path(), "new").unwrap();
    until(&followed, "the missing right is named", |snapshot| {
        failure(snapshot).is_some_and(|reason| reason.contains("cannot watch resource"))
    })
    .await;
    cluster.stand_in.allow("new", Some(&["list", "watch"]));
    cluster.put("api-1", &["10.0.0.2"]);
    until_at(&followed, &["10.0.0.2:80"]).await;
    until(&followed, "all is well", |snapshot| snapshot.error.is_none()).await;
}

#[tokio::test(start_paused = true)]
async fn a_port_of_kubernetes_is_chosen_by_name_and_must_be_clear() {
    let cluster = Cluster::new();
    let ports = [("http", 8080), ("grpc", 9090)];
    cluster.stand_in.put("api-1", "api", &ports, &[Endpoint::ready("10.0.0.1")]);
    let settings = kubernetes_settings(cluster.token.path());
    let unclear = cluster.follow_with(settings.clone()).first().await;
    assert!(
        failure(&unclear).is_some_and(|reason| reason.contains("http (8080), grpc (9090)")),
        "{unclear:?}"
    );
    let port = Some(ServicePort::Name("grpc".into()));
    until_at(&cluster.follow_with(KubernetesDiscovery { port, ..settings }), &["10.0.0.1:9090"]).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_that_kubernetes_does_wrong_costs_the_last_good_set() {
    let cluster = Cluster::new();
    cluster.put("api-1", &["10.0.0.1"]);
    let followed = cluster.follow();
    outlives_every_lie(&*cluster.stand_in, &followed, |address| cluster.put("api-1", &[address])).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_silent_source_is_told_so_and_the_source_may_still_answer() {
    let stand_in = Arc::new(Consul::default());
    stand_in.set(vec![consul::Instance::new("api", "10.0.0.1", 80)]);
    stand_in.faults().set(Fault::Stalls);
    let followed = follow_consul(&stand_in);
    let began = Instant::now();
    let snapshot = followed.first().await;
    assert!(snapshot.answer.is_none() && failure(&snapshot).is_some(), "{snapshot:?}");
    assert!(began.elapsed() <= Duration::from_secs(5));
    stand_in.faults().set(Fault::None);
    until_at(&followed, &["10.0.0.1:80"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_away_is_asked_less_and_less_often_and_nobody_is_asked_once_unfollowed() {
    let stand_in = Arc::new(Consul::default());
    stand_in.faults().set(Fault::HangsUp);
    let followed = follow_consul(&stand_in);
    sleep(Duration::from_secs(600)).await;
    let asked = stand_in.faults().asked().len();
    assert!((20..=50).contains(&asked), "asked {asked} times in 600 s");
    drop(followed);
    sleep(LONG).await;
    assert!(stand_in.faults().asked().len() <= asked + 1);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_can_not_be_asked_is_named_at_once() {
    let stand_in = Arc::new(Consul::default());
    for (url, reason) in [
        ("consul:8500", "http://"),
        ("ftp://consul", "http://"),
        ("https://consul", "caFile"),
        ("http://user:secret@consul", "credentials"),
        ("http://consul/?a=1", "query"),
    ] {
        let settings = ConsulDiscovery { url: Some(url.into()), ..consul_settings() };
        let followed = follow(network(&[("consul:8500", &stand_in)]), &ProviderSettings::Consul(settings));
        let snapshot = followed.current();
        let said = failure(&snapshot).unwrap_or_default();
        assert!(said.contains(reason) && !said.contains("secret"), "{url}: {said}");
        assert!(followed.is_fixed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_whoever_asked_by_it_however_silent_the_server_is() {
    let cluster = Cluster::new();
    cluster.put("api-1", &["10.0.0.1"]);
    let followed = cluster.follow();
    until_at(&followed, &["10.0.0.1:80"]).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(cluster.stand_in.faults().asked().len(), 2, "the watch is under way");
    cluster.stand_in.faults().set(Fault::Stalls);
    drop(followed);
    sleep(LONG).await;
    // Each connection that is served holds the server.
    assert_eq!(Arc::strong_count(&cluster.stand_in), 1);
}

/// A cluster behind something that knows lists only, and answers watches with this.
struct NoWatches {
    cluster: Kubernetes,
    answer: &'static str,
}

impl StandIn for NoWatches {
    fn step(&self, exchange: &mut Exchange, waited: Duration) -> Step {
        match exchange.request.query("watch") {
            Some(_) => Step::Finish(response(200, &[], self.answer.as_bytes())),
            None => self.cluster.step(exchange, waited),
        }
    }

    fn faults(&self) -> &Faults {
        self.cluster.faults()
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_none_confirms_nothing_and_leads_to_new_lists() {
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), TOKEN).unwrap();
    for answer in ["", "{\"type\":\"ADD", "<html>", "<html>\n", "{}\n"] {
        let stand_in = Arc::new(NoWatches { cluster: Kubernetes::default(), answer });
        let put =
            |address| stand_in.cluster.put("api-1", "api", &[("http", 80)], &[Endpoint::ready(address)]);
        put("10.0.0.1");
        let network = network(&[("kubernetes:6443", &stand_in)]);
        let followed = follow(network, &ProviderSettings::Kubernetes(kubernetes_settings(token.path())));
        until_at(&followed, &["10.0.0.1:80"]).await;
        until(&followed, "the watch is missed", |snapshot| failure(snapshot).is_some()).await;
        put("10.0.0.2");
        until_at(&followed, &["10.0.0.2:80"]).await;
        sleep(LONG).await;
        let asked = stand_in.faults().asked().len();
        assert!(asked < 150, "{answer:?}: asked {asked} times in 2 minutes");
    }
}
