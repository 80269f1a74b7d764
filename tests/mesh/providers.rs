//! Endpoints that registries and files name: they follow each change, and outlive their source.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::stand_ins::consul::{self, Consul};
use crate::stand_ins::eureka::{self, Eureka};
use crate::stand_ins::http::{Fault, StandIn};
use crate::stand_ins::kubernetes::{Endpoint, Kubernetes, TOKEN};
use crate::stand_ins::pod::Serving;
use crate::support::pki::{Leaf, Pki};
use crate::support::pod::Pod;
use crate::support::process::Process;
use crate::support::serve::{Server, ok};
use crate::support::{Mesh, tls, wait};

/// The host that the upstream under test is called by.
const HOST: &str = "api.example";
/// The name in the certificate of a server outside the mesh.
const SERVER: &str = "plain.example";
/// Longer than the pauses of a proxy that was disappointed a few times.
const RECOVERY: Duration = Duration::from_secs(45);
/// Faults that a proxy notices at once, whatever it waits for.
const FAULTS: [Fault; 4] = [Fault::HangsUp, Fault::Status(500), Fault::Page, Fault::BrokenJson];

/// A client and two servers without sidecars, and a pod for a registry.
struct Bed {
    web: Pod,
    one: Pod,
    two: Pod,
    registry: Pod,
    _servers: [Server; 2],
    mesh: Mesh,
}

impl Bed {
    fn new() -> Self {
        let mesh = Mesh::new();
        let (web, one, two, registry) =
            (mesh.pod("web"), mesh.pod("one"), mesh.pod("two"), mesh.pod("registry"));
        web.add_hosts(&format!("{} registry.example {SERVER}", registry.address));
        let serve = |pod: &Pod| {
            let name = pod.name.clone();
            pod.serve_http(8080, move |_| ok(&name))
        };
        let _servers = [serve(&one), serve(&two)];
        Self { web, one, two, registry, _servers, mesh }
    }

    /// Starts the client's sidecar with an upstream whose endpoints come from `discovery`.
    fn start(&self, discovery: &str) -> Process {
        let config = format!(
            "upstreams: {{api: {{hosts: [{HOST}], anyDestination: true, tls: none, discovery: {{{discovery}}}}}}}\n"
        );
        self.mesh.sidecar(&self.web).config(config).start()
    }

    /// Ten requests, each of which must be answered by `name`.
    fn is_answered_by(&self, name: &str) {
        for _ in 0..10 {
            let answer = self.web.connect(self.one.at(8080)).get(HOST, "/");
            assert_eq!((answer.status(), answer.text().as_str()), (200, name), "{answer:?}");
        }
    }

    fn upstream(&self) -> Value {
        self.web.admin("/upstreams")["api"].clone()
    }

    fn endpoints(&self) -> Vec<String> {
        let upstream = self.upstream();
        let endpoints = upstream["endpoints"].as_array().into_iter().flatten();
        endpoints.map(|endpoint| endpoint["address"].as_str().expect("an address").to_owned()).collect()
    }

    fn until_at(&self, pods: &[&Pod]) {
        let expected: Vec<_> = pods.iter().map(|pod| pod.at(8080).to_string()).collect();
        // An upstream is followed from its first use on.
        self.web.connect(self.one.at(8080)).get(HOST, "/");
        wait::within(RECOVERY, &format!("the endpoints are {expected:?}"), || {
            (self.endpoints() == expected).then_some(())
        });
    }

    fn until_missed(&self) -> String {
        wait::eventually("the source is missed", || self.upstream()["lastError"].as_str().map(str::to_owned))
    }

    /// The endpoints follow `change`, stay while the registry is away or lies, and follow again afterwards.
    fn follow_and_outlive<S: StandIn>(
        &self,
        stand_in: &Arc<S>,
        serve: impl Fn() -> Serving<S>,
        change: impl Fn(&[&Pod]),
    ) {
        let serving = serve();
        self.until_at(&[&self.one]);
        self.is_answered_by("one");
        change(&[&self.one, &self.two]);
        self.until_at(&[&self.one, &self.two]);
        change(&[&self.two]);
        self.until_at(&[&self.two]);
        self.is_answered_by("two");

        drop(serving);
        self.until_missed();
        self.web.wait_for_metric("outrigger_discovery_age_seconds", &[("upstream", "api")], 3.0);
        self.is_answered_by("two");
        change(&[&self.one]);
        let _serving = serve();
        self.until_at(&[&self.one]);
        self.is_answered_by("one");

        let (mut now, mut next) = (&self.one, &self.two);
        for fault in FAULTS {
            stand_in.faults().set(fault);
            change(&[next]);
            self.until_missed();
            self.is_answered_by(&now.name);
            stand_in.faults().set(Fault::None);
            self.until_at(&[next]);
            assert!(self.upstream()["lastError"].is_null(), "after {fault:?}: {}", self.upstream());
            self.is_answered_by(&next.name);
            (now, next) = (next, now);
        }
    }
}

#[test]
fn endpoints_follow_consul_and_outlive_it() {
    let (bed, stand_in) = (Bed::new(), Arc::new(Consul::default()));
    let set = |pods: &[&Pod]| {
        let instance = |pod: &&Pod| consul::Instance::new("api", &pod.address.to_string(), 8080);
        stand_in.set(pods.iter().map(instance).collect());
    };
    set(&[&bed.one]);
    stand_in.protect(&[("s3cret", true)]);
    let token = bed.web.write("consul-token", "s3cret\n");
    let _sidecar = bed.start(&format!(
        "consul: {{url: \"http://registry.example:8500\", service: api, tokenFile: {}}}",
        token.display()
    ));
    bed.follow_and_outlive(&stand_in, || Serving::start(&bed.registry, 8500, &stand_in), set);
}

#[test]
fn endpoints_follow_eureka_and_outlive_it() {
    let (bed, stand_in) = (Bed::new(), Arc::new(Eureka::default()));
    let set = |pods: &[&Pod]| {
        for pod in [&bed.one, &bed.two] {
            let status = if pods.iter().any(|up| up.name == pod.name) { "UP" } else { "DOWN" };
            let instance = eureka::Instance::new("api", &pod.address.to_string(), 8080);
            stand_in.register(instance.with_status(status));
        }
    };
    set(&[&bed.one]);
    let url = format!("http://{}/eureka", bed.registry.at(8761));
    let _sidecar = bed.start(&format!("eureka: {{urls: [\"{url}\"], application: api, interval: 1s}}"));
    bed.follow_and_outlive(&stand_in, || Serving::start(&bed.registry, 8761, &stand_in), set);
}

#[test]
fn endpoints_follow_kubernetes_and_outlive_it() {
    let (bed, stand_in) = (Bed::new(), Arc::new(Kubernetes::default()));
    let set = |pods: &[&Pod]| {
        let endpoints: Vec<_> = pods.iter().map(|pod| Endpoint::ready(&pod.address.to_string())).collect();
        stand_in.put("api-1", "api", &[("http", 8080)], &endpoints);
    };
    set(&[&bed.one]);
    let certificate = bed.mesh.pki.issue(&Leaf { uris: Vec::new(), ..Leaf::of("") });
    let config = tls::server_config(&certificate, &[], false);
    let (token, roots) = (bed.web.write("token", TOKEN), bed.mesh.bundle());
    let _sidecar = bed.start(&format!(
        "kubernetes: {{service: api, namespace: shop, port: http, url: \"https://{SERVER}:6443\", tokenFile: {}, caFile: {}}}",
        token.display(),
        roots.display()
    ));
    let serve = || Serving::start_tls(&bed.registry, 6443, &stand_in, Arc::clone(&config));
    bed.follow_and_outlive(&stand_in, serve, set);
}

#[test]
fn a_registry_that_the_stated_roots_do_not_prove_is_not_heard() {
    let (bed, stand_in) = (Bed::new(), Arc::new(Consul::default()));
    stand_in.set(vec![consul::Instance::new("api", &bed.one.address.to_string(), 8080)]);
    let certificate = Pki::new().issue(&Leaf { uris: Vec::new(), ..Leaf::of("") });
    let config = tls::server_config(&certificate, &[], false);
    let _serving = Serving::start_tls(&bed.registry, 8501, &stand_in, config);
    let _sidecar = bed.start(&format!(
        "consul: {{url: \"https://{SERVER}:8501\", service: api, caFile: {}}}",
        bed.mesh.bundle().display()
    ));
    assert_eq!(bed.web.connect(bed.one.at(8080)).get(HOST, "/").status(), 503);
    assert!(bed.until_missed().contains("certificate"), "{}", bed.until_missed());
    assert!(bed.endpoints().is_empty());
    assert!(stand_in.faults().asked().is_empty());
}

#[test]
fn endpoints_follow_a_file_that_is_swapped_and_outlive_a_broken_one() {
    let bed = Bed::new();
    let line = |pod: &Pod| format!("- {{address: \"{}\", tags: {{version: v1}}}}\n", pod.at(8080));
    let path = bed.web.write("endpoints.yaml", line(&bed.one));
    let _sidecar = bed.start(&format!("file: {{path: {}}}", path.display()));
    bed.until_at(&[&bed.one]);
    bed.is_answered_by("one");
    bed.web.write("fresh.yaml", format!("{}{}", line(&bed.one), line(&bed.two)));
    let link = bed.web.directory.join("link");
    std::os::unix::fs::symlink("fresh.yaml", &link).expect("make a symlink");
    std::fs::rename(&link, &path).expect("swap a symlink in");
    bed.until_at(&[&bed.one, &bed.two]);
    bed.web.write("fresh.yaml", line(&bed.two) + "- {");
    bed.until_missed();
    assert_eq!(bed.endpoints().len(), 2);
    bed.web.write("fresh.yaml", line(&bed.two));
    bed.until_at(&[&bed.two]);
    bed.is_answered_by("two");
    assert!(bed.upstream()["lastError"].is_null());
}
