//! A Netflix Eureka server: the whole registry, one application, and what has changed.
//!
//! <https://github.com/Netflix/eureka/wiki/Eureka-REST-operations>; the shape of its JSON and what it refuses are after its
//! `EurekaJacksonCodec` and `ApplicationsResource`: who does not accept JSON gets XML, a registry that is not ready and
//! deltas that are switched off are 403.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Exchange, Faults, Request, StandIn, Step, response};

/// An instance of an application.
#[derive(Clone, Debug, PartialEq)]
pub struct Instance {
    /// Its ID.
    pub id: String,
    /// Its application, in upper case.
    pub app: String,
    /// Its address.
    pub address: String,
    /// Its port, and whether it is enabled.
    pub port: (u16, bool),
    /// Its secure port, and whether it is enabled.
    pub secure_port: (u16, bool),
    /// Its status.
    pub status: &'static str,
    /// Its metadata.
    pub metadata: Vec<(String, String)>,
}

impl Instance {
    /// An instance that is up.
    pub fn new(app: &str, address: &str, port: u16) -> Self {
        Self {
            id: format!("{address}:{app}:{port}"),
            app: app.to_uppercase(),
            address: address.to_owned(),
            port: (port, true),
            secure_port: (443, false),
            status: "UP",
            metadata: Vec::new(),
        }
    }

    /// The same with another status.
    pub fn with_status(mut self, status: &'static str) -> Self {
        self.status = status;
        self
    }
}

/// The server.
#[derive(Debug, Default)]
pub struct Eureka {
    state: Mutex<State>,
    faults: Faults,
}

#[derive(Debug, Default)]
struct State {
    instances: BTreeMap<String, Instance>,
    /// What has changed of late, and how.
    changes: Vec<(Instance, &'static str)>,
    without_deltas: bool,
    not_ready: bool,
    miscounts: bool,
}

impl Eureka {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Registers an instance, or changes one.
    pub fn register(&self, instance: Instance) {
        let mut state = self.state();
        let known = state.instances.insert(instance.id.clone(), instance.clone());
        state.changes.push((instance, if known.is_some() { "MODIFIED" } else { "ADDED" }));
    }

    /// Cancels the instance at an address.
    pub fn cancel(&self, address: &str) {
        let mut state = self.state();
        let gone: Vec<_> =
            state.instances.extract_if(.., |_, instance| instance.address == address).collect();
        state.changes.extend(gone.into_iter().map(|(_, instance)| (instance, "DELETED")));
    }

    /// Forgets what has changed, as after 3 minutes.
    pub fn forget_changes(&self) {
        self.state().changes.clear();
    }

    /// Begins anew with an empty registry.
    pub fn restart(&self) {
        *self.state() = State::default();
    }

    /// Deltas are switched off.
    pub fn without_deltas(&self) {
        self.state().without_deltas = true;
    }

    /// Whether it may be asked at all.
    pub fn ready(&self, ready: bool) {
        self.state().not_ready = !ready;
    }

    /// Counts in deltas what is not there.
    pub fn miscount(&self, miscounts: bool) {
        self.state().miscounts = miscounts;
    }
}

impl StandIn for Eureka {
    fn step(&self, exchange: &mut Exchange, _waited: Duration) -> Step {
        let (status, kind, body) = self.state().answer(&exchange.request);
        Step::Finish(response(status, &[("Content-Type", kind)], body.as_bytes()))
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl State {
    fn answer(&self, request: &Request) -> (u16, &'static str, String) {
        let refused = |status| (status, "text/html", String::new());
        let Some(path) = request.path.strip_prefix("/eureka/apps") else { return refused(404) };
        if request.method != "GET" {
            return refused(405);
        }
        if request.unknown_query(&["regions"]).is_some() {
            return refused(400);
        }
        if self.not_ready || (path == "/delta" && self.without_deltas) {
            return refused(403);
        }
        let of =
            |app: &str| self.instances.values().filter(|one| one.app == app).cloned().collect::<Vec<_>>();
        let json = match path.trim_start_matches('/') {
            "" => self.applications(self.instances.values().map(|one| (one, "ADDED")), self.hashcode()),
            "delta" => {
                let hashcode =
                    if self.miscounts { format!("{}X_1_", self.hashcode()) } else { self.hashcode() };
                self.applications(self.changes.iter().map(|(one, action)| (one, *action)), hashcode)
            }
            app if of(app).is_empty() => return refused(404),
            app => {
                let instances: Vec<_> = of(app).iter().map(|one| one.json("ADDED")).collect();
                json!({"application": {"name": app, "instance": instances}})
            }
        };
        if request.header("Accept").is_some_and(|accept| accept.contains("json")) {
            (200, "application/json", json.to_string())
        } else {
            (
                200,
                "application/xml",
                "<applications><versions__delta>1</versions__delta></applications>".into(),
            )
        }
    }

    fn applications<'a>(
        &self,
        instances: impl Iterator<Item = (&'a Instance, &'static str)>,
        hashcode: String,
    ) -> Value {
        let mut applications: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for (instance, action) in instances {
            applications.entry(&instance.app).or_default().push(instance.json(action));
        }
        let applications: Vec<_> =
            applications.iter().map(|(name, instance)| json!({"name": name, "instance": instance})).collect();
        json!({"applications": {
            "versions__delta": "1", "apps__hashcode": hashcode, "application": applications,
        }})
    }

    fn hashcode(&self) -> String {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for instance in self.instances.values() {
            *counts.entry(instance.status).or_default() += 1;
        }
        counts.iter().map(|(status, count)| format!("{status}_{count}_")).collect()
    }
}

impl Instance {
    fn json(&self, action: &str) -> Value {
        let port = |(number, enabled): (u16, bool)| json!({"$": number, "@enabled": enabled.to_string()});
        let mut metadata: serde_json::Map<String, Value> =
            self.metadata.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        if metadata.is_empty() {
            metadata.insert("@class".into(), json!("java.util.Collections$EmptyMap"));
        }
        json!({
            "instanceId": self.id, "hostName": self.address, "app": self.app, "ipAddr": self.address,
            "status": self.status, "overriddenStatus": "UNKNOWN",
            "port": port(self.port), "securePort": port(self.secure_port), "countryId": 1,
            "dataCenterInfo": {"@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo", "name": "MyOwn"},
            "leaseInfo": {"renewalIntervalInSecs": 30, "durationInSecs": 90},
            "metadata": metadata, "vipAddress": self.app, "lastUpdatedTimestamp": "1611512016403",
            "actionType": action,
        })
    }
}
