//! The resolver against real sockets: DNS servers that answer, fail, change and lie.

mod fake_dns;
mod mesh;
mod names;
mod pki;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::fake_dns::FakeDns;
use super::{Followed, MeshServer, ResolveSettings, Resolver, Snapshot, Target};

/// So that a condition that never comes fails a test instead of hanging it.
const GUARD: Duration = Duration::from_secs(60);
const OWN: &str = "10.77.0.2";

/// Settings that ask `dns` only, and leave nothing to this machine's resolv.conf and hosts file.
fn settings(dns: &FakeDns, mesh: Option<MeshServer>) -> ResolveSettings {
    ResolveSettings {
        servers: vec![dns.address],
        hosts_file: PathBuf::from("/nonexistent/hosts"),
        search: Some(vec!["shop.svc.cluster.local".into(), "lan".into()]),
        ndots: Some(5),
        cluster_domain: "cluster.local".into(),
        own_addresses: Arc::new(|| vec![OWN.parse().unwrap(), "127.0.0.1".parse().unwrap()]),
        mesh,
        mark: None,
    }
}

fn resolver(dns: &FakeDns, mesh: Option<MeshServer>) -> Resolver {
    Resolver::new(settings(dns, mesh), None).unwrap()
}

fn name(host: &str, port: u16) -> Target {
    Target::Name { host: host.into(), port }
}

fn srv(name: &str) -> Target {
    Target::Srv { name: name.into() }
}

fn address(text: &str) -> Target {
    Target::Address(text.parse().unwrap())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn addresses(snapshot: &Snapshot) -> Vec<SocketAddr> {
    let answer = snapshot.answer.as_ref().expect("an answer");
    answer.endpoints.iter().map(|endpoint| endpoint.address).collect()
}

fn sockets<const N: usize>(texts: [&str; N]) -> Vec<SocketAddr> {
    texts.map(|text| text.parse().unwrap()).to_vec()
}

/// Waits until what is known has become so.
async fn until(followed: &mut Followed, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let becomes_so = async {
        loop {
            let snapshot = followed.current();
            if is_so(&snapshot) {
                return snapshot;
            }
            followed.changed().await;
        }
    };
    tokio::time::timeout(GUARD, becomes_so).await.expect("it never became so")
}
