//! A Consul agent: `GET /v1/health/service/:service` with blocking queries and ACLs.
//!
//! <https://developer.hashicorp.com/consul/api-docs/health#list-service-instances-for-service>,
//! <https://developer.hashicorp.com/consul/api-docs/features/blocking>. What the real one does and no document says, is
//! after its `agent/http.go`: texts of errors, and that results which a token may not read are left out silently but for
//! the header `X-Consul-Results-Filtered-By-ACLs`, which an anonymous caller does not get.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Exchange, Faults, Request, StandIn, Step, response, unescaped};

const HEALTH: &str = "/v1/health/service/";
/// What is sent beyond these the real one ignores; here a misspelt field is to be found.
const FIELDS: [&str; 5] = ["passing", "dc", "tag", "index", "wait"];
/// The datacenter of the agent.
pub const DATACENTER: &str = "dc1";

/// An instance of a service.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Its ID.
    pub id: String,
    /// The service.
    pub service: String,
    /// Its own address, or none.
    pub address: String,
    /// Its node's address.
    pub node_address: String,
    /// Its port.
    pub port: u16,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its service meta.
    pub meta: Vec<(String, String)>,
    /// Its weight while it passes.
    pub weight: u32,
    /// The status of its check.
    pub check: &'static str,
}

impl Instance {
    /// An instance that passes.
    pub fn new(service: &str, address: &str, port: u16) -> Self {
        Self {
            id: format!("{service}-{address}-{port}"),
            service: service.to_owned(),
            address: address.to_owned(),
            node_address: "10.0.99.99".into(),
            port,
            tags: Vec::new(),
            meta: Vec::new(),
            weight: 1,
            check: "passing",
        }
    }
}

/// The agent.
#[derive(Debug, Default)]
pub struct Consul {
    state: Mutex<State>,
    faults: Faults,
}

#[derive(Debug)]
struct State {
    index: u64,
    instances: Vec<Instance>,
    /// Tokens and whether each may read; `None`: everybody may.
    tokens: Option<Vec<(String, bool)>>,
    has_leader: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { index: 10, instances: Vec::new(), tokens: None, has_leader: true }
    }
}

impl Consul {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Changes the catalog.
    pub fn set(&self, instances: Vec<Instance>) {
        let mut state = self.state();
        state.instances = instances;
        state.index += 1;
    }

    /// Raises the index though nothing has changed, as a write of the same does.
    pub fn touch(&self) {
        self.state().index += 1;
    }

    /// Puts the index where it pleases, as a restored snapshot does.
    pub fn restore(&self, index: u64, instances: Vec<Instance>) {
        let mut state = self.state();
        state.index = index;
        state.instances = instances;
    }

    /// From now on only these tokens are known; with each, whether it may read services and nodes.
    pub fn protect(&self, tokens: &[(&str, bool)]) {
        let tokens = tokens.iter().map(|(token, may)| ((*token).to_owned(), *may)).collect();
        self.state().tokens = Some(tokens);
    }

    /// Whether its servers have a leader.
    pub fn lead(&self, has_leader: bool) {
        self.state().has_leader = has_leader;
    }
}

impl StandIn for Consul {
    fn step(&self, exchange: &mut Exchange, waited: Duration) -> Step {
        let (request, state) = (&exchange.request, self.state());
        match state.answer(request, waited) {
            Ok(None) => Step::Wait,
            Ok(Some(bytes)) => Step::Finish(bytes),
            Err((status, text)) => {
                Step::Finish(response(status, &[("Content-Type", "text/plain")], text.as_bytes()))
            }
        }
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl State {
    /// The response; `None` as long as the query blocks.
    fn answer(&self, request: &Request, waited: Duration) -> Result<Option<Vec<u8>>, (u16, String)> {
        let refused = |status, text: &str| Err((status, text.to_owned()));
        let Some(service) = request.path.strip_prefix(HEALTH) else {
            return refused(404, "Invalid URL path: not a recognized HTTP API endpoint");
        };
        if request.method != "GET" {
            return refused(405, &format!("method {} not allowed", request.method));
        }
        if let Some(field) = request.unknown_query(&FIELDS) {
            return refused(400, &format!("the stand-in knows no field {field}"));
        }
        let (service, wait) = (unescaped(service), request.query("wait").unwrap_or("5m"));
        let Some(wait) = duration(wait) else { return refused(400, "Invalid wait time") };
        let Ok(index) = request.query("index").unwrap_or("0").parse::<u64>() else {
            return refused(400, "Invalid index");
        };
        let passing = match request.query("passing") {
            None => false,
            Some("" | "1" | "true") => true,
            Some("0" | "false") => false,
            Some(_) => return refused(400, "Invalid value for ?passing"),
        };
        if request.query("dc").is_some_and(|dc| dc != DATACENTER) {
            return refused(500, "No path to datacenter");
        }
        let token = request.header("X-Consul-Token").unwrap_or_default();
        let may_read = match &self.tokens {
            None => true,
            Some(_) if token.is_empty() => false,
            Some(tokens) => match tokens.iter().find(|(known, _)| known == token) {
                Some((_, may_read)) => *may_read,
                None => return refused(403, "ACL not found"),
            },
        };
        if !self.has_leader {
            return refused(500, "No cluster leader");
        }
        if index > 0 && self.index <= index && waited < wait + wait / 16 {
            return Ok(None);
        }
        let found: Vec<Value> = self
            .instances
            .iter()
            .filter(|instance| instance.service == service && (!passing || instance.check == "passing"))
            .filter(|instance| {
                request.query("tag").is_none_or(|tag| instance.tags.iter().any(|own| own == tag))
            })
            .map(Instance::entry)
            .collect();
        let filtered = !may_read && !token.is_empty() && !found.is_empty();
        let body = json!(if may_read { found } else { Vec::new() }).to_string();
        let index = self.index.to_string();
        let mut headers = vec![
            ("Content-Type", "application/json"),
            ("X-Consul-Index", index.as_str()),
            ("X-Consul-KnownLeader", "true"),
            ("X-Consul-LastContact", "0"),
        ];
        if filtered {
            headers.push(("X-Consul-Results-Filtered-By-ACLs", "true"));
        }
        Ok(Some(response(200, &headers, body.as_bytes())))
    }
}

impl Instance {
    fn entry(&self) -> Value {
        let meta: serde_json::Map<String, Value> =
            self.meta.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let tags = if self.tags.is_empty() { Value::Null } else { json!(self.tags) };
        json!({
            "Node": {
                "ID": "40e4a748-2192-161a-0510-9bf59fe950b5", "Node": "foobar", "Address": self.node_address,
                "Datacenter": DATACENTER, "TaggedAddresses": {"lan": self.node_address}, "Meta": {},
            },
            "Service": {
                "ID": self.id, "Service": self.service, "Tags": tags, "Address": self.address, "Meta": meta,
                "Port": self.port, "Weights": {"Passing": self.weight, "Warning": 1},
                "EnableTagOverride": false, "CreateIndex": 7, "ModifyIndex": 7,
            },
            "Checks": [
                {"Node": "foobar", "CheckID": "serfHealth", "Status": "passing", "ServiceID": "", "ServiceTags": []},
                {"Node": "foobar", "CheckID": format!("service:{}", self.id), "Status": self.check,
                    "ServiceID": self.id, "ServiceTags": self.tags},
            ],
        })
    }
}

/// A duration as Go writes it, as far as anybody here does.
fn duration(text: &str) -> Option<Duration> {
    let (number, seconds) =
        text.strip_suffix('s').map(|n| (n, 1)).or(text.strip_suffix('m').map(|n| (n, 60)))?;
    number.parse::<u64>().ok().map(|number| Duration::from_secs(number * seconds))
}
