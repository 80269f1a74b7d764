//! The part of a Kubernetes API server that has EndpointSlices: list and watch.
//!
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/>. A version that is too old is refused as the real one
//! does, by status 410 or by an event that says so; a token that is unknown is 401, one without the right 403.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::http::{Exchange, Faults, Request, StandIn, Step, chunk, chunked_head, response};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
/// The real one ignores others; here a misspelt field is to be found.
const FIELDS: [&str; 5] =
    ["labelSelector", "watch", "allowWatchBookmarks", "timeoutSeconds", "resourceVersion"];
/// A token that may list and watch.
pub const TOKEN: &str = "t0ken";

/// An endpoint of a slice.
#[derive(Clone, Debug)]
pub struct Endpoint {
    address: String,
    zone: Option<String>,
    conditions: Value,
}

impl Endpoint {
    /// One that is ready.
    pub fn ready(address: &str) -> Self {
        Self::new(address, json!({"ready": true, "serving": true, "terminating": false}))
    }

    /// One that ends and answers still.
    pub fn leaving(address: &str) -> Self {
        Self::new(address, json!({"ready": false, "serving": true, "terminating": true}))
    }

    /// One that does not answer.
    pub fn unready(address: &str) -> Self {
        Self::new(address, json!({"ready": false, "serving": false, "terminating": false}))
    }

    fn new(address: &str, conditions: Value) -> Self {
        Self { address: address.to_owned(), zone: None, conditions }
    }

    /// The same in a zone.
    pub fn in_zone(mut self, zone: &str) -> Self {
        self.zone = Some(zone.to_owned());
        self
    }
}

/// The API server.
#[derive(Debug, Default)]
pub struct Kubernetes {
    state: Mutex<State>,
    faults: Faults,
}

#[derive(Debug)]
struct State {
    version: u64,
    /// By namespace and name.
    slices: BTreeMap<(String, String), Value>,
    /// What happened: version, type, namespace, object.
    events: Vec<(u64, &'static str, String, Value)>,
    /// Versions before this one are forgotten.
    oldest: u64,
    /// An old version is refused by an event rather than a status.
    refuses_by_event: bool,
    rights: BTreeMap<String, BTreeSet<&'static str>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            version: 100,
            slices: BTreeMap::new(),
            events: Vec::new(),
            oldest: 0,
            refuses_by_event: false,
            rights: BTreeMap::from([(TOKEN.into(), BTreeSet::from(["list", "watch"]))]),
        }
    }
}

impl Kubernetes {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Makes or replaces a slice of a service in the namespace `shop`, with the ports `name` and number.
    pub fn put(&self, name: &str, service: &str, ports: &[(&str, u16)], endpoints: &[Endpoint]) {
        let mut state = self.state();
        state.version += 1;
        let ports: Vec<_> =
            ports.iter().map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"})).collect();
        let one = |endpoint: &Endpoint| json!({"addresses": [endpoint.address], "conditions": endpoint.conditions, "zone": endpoint.zone});
        let is_v6 = endpoints.first().is_some_and(|endpoint| endpoint.address.contains(':'));
        let slice = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {
                "name": name, "namespace": "shop", "resourceVersion": state.version.to_string(),
                "labels": {SERVICE_LABEL: service},
            },
            "addressType": if is_v6 { "IPv6" } else { "IPv4" },
            "ports": ports,
            "endpoints": endpoints.iter().map(one).collect::<Vec<_>>(),
        });
        let known = state.slices.insert(("shop".into(), name.into()), slice.clone());
        let kind = if known.is_some() { "MODIFIED" } else { "ADDED" };
        let version = state.version;
        state.events.push((version, kind, "shop".into(), slice));
    }

    /// Deletes a slice.
    pub fn delete(&self, name: &str) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        if let Some(mut slice) = state.slices.remove(&("shop".into(), name.into())) {
            slice["metadata"]["resourceVersion"] = json!(version.to_string());
            state.events.push((version, "DELETED", "shop".into(), slice));
        }
    }

    /// Tells watchers the version, as it does about once a minute.
    pub fn bookmark(&self) {
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        let object = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": version.to_string(), "creationTimestamp": null},
            "endpoints": null, "ports": null, "addressType": "",
        });
        state.events.push((version, "BOOKMARK", "shop".into(), object));
    }

    /// Forgets what happened so far, so that older versions are gone; refused by event or by status.
    pub fn compact(&self, refuses_by_event: bool) {
        let mut state = self.state();
        state.version += 1;
        state.oldest = state.version;
        state.events.clear();
        state.refuses_by_event = refuses_by_event;
    }

    /// What a token may do from now on, of `list` and `watch`; `None`: it is not known any more.
    pub fn allow(&self, token: &str, verbs: Option<&[&'static str]>) {
        let mut state = self.state();
        match verbs {
            Some(verbs) => _ = state.rights.insert(token.into(), verbs.iter().copied().collect()),
            None => _ = state.rights.remove(token),
        }
    }
}

impl StandIn for Kubernetes {
    fn step(&self, exchange: &mut Exchange, waited: Duration) -> Step {
        let state = self.state();
        let refusal = |(code, reason, message): (u16, &str, String)| {
            let body = status(code, reason, &message).to_string();
            Step::Finish(response(code, &[("Content-Type", "application/json")], body.as_bytes()))
        };
        match exchange.cursor {
            Some(cursor) => state.events_after(cursor, exchange, waited),
            None => match state.begin(exchange) {
                Ok(step) => step,
                Err(refused) => refusal(refused),
            },
        }
    }

    fn faults(&self) -> &Faults {
        &self.faults
    }
}

type Refused = (u16, &'static str, String);

impl State {
    fn begin(&self, exchange: &mut Exchange) -> Result<Step, Refused> {
        let request = &exchange.request;
        let namespace = request
            .path
            .strip_prefix("/apis/discovery.k8s.io/v1/namespaces/")
            .and_then(|rest| rest.strip_suffix("/endpointslices"))
            .ok_or((404, "NotFound", "the server could not find the requested resource".to_owned()))?
            .to_owned();
        if let Some(field) = request.unknown_query(&FIELDS) {
            return Err((400, "BadRequest", format!("the stand-in knows no field {field}")));
        }
        let is_watch = matches!(request.query("watch"), Some("true" | "1"));
        self.authorize(request, if is_watch { "watch" } else { "list" }, &namespace)?;
        let version = request.query("resourceVersion").unwrap_or_default();
        let version = match version {
            "" => None,
            text => Some(text.parse::<u64>().map_err(|_| {
                (400, "BadRequest", format!("invalid resource version \"{text}\": must be a number"))
            })?),
        };
        if version.is_some_and(|version| version > self.version) {
            return Err((504, "Timeout", "Too large resource version".into()));
        }
        if !is_watch {
            let items: Vec<_> = self
                .slices
                .iter()
                .filter(|((own, _), slice)| *own == namespace && is_selected(request, slice))
                .map(|(_, slice)| slice.clone())
                .collect();
            let list = json!({
                "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
            });
            let body = list.to_string();
            return Ok(Step::Finish(response(200, &[("Content-Type", "application/json")], body.as_bytes())));
        }
        let version = version.unwrap_or(self.version);
        let mut head = chunked_head(200, &[("Content-Type", "application/json")]);
        if version < self.oldest {
            let gone = (410, "Expired", format!("too old resource version: {version} ({})", self.oldest));
            if !self.refuses_by_event {
                return Err(gone);
            }
            head.extend(event("ERROR", &status(gone.0, gone.1, &gone.2)));
            head.extend(chunk(b""));
            return Ok(Step::Finish(head));
        }
        exchange.cursor = Some(version);
        Ok(Step::Send(head))
    }

    fn events_after(&self, cursor: u64, exchange: &mut Exchange, waited: Duration) -> Step {
        let request = &exchange.request;
        let seconds = request.query("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(1800);
        let wants_bookmarks = request.query("allowWatchBookmarks") == Some("true");
        let mut bytes = Vec::new();
        let news = self.events.iter().filter(|(version, ..)| *version > cursor);
        for (version, kind, _, object) in news {
            exchange.cursor = Some(*version);
            let wanted = if *kind == "BOOKMARK" { wants_bookmarks } else { is_selected(request, object) };
            if wanted {
                bytes.extend(event(kind, object));
            }
        }
        if !bytes.is_empty() {
            Step::Send(bytes)
        } else if waited >= Duration::from_secs(seconds) {
            Step::Finish(chunk(b""))
        } else {
            Step::Wait
        }
    }

    fn authorize(&self, request: &Request, verb: &'static str, namespace: &str) -> Result<(), Refused> {
        let forbidden = |user: &str| {
            let message = format!(
                "endpointslices.discovery.k8s.io is forbidden: User \"{user}\" cannot {verb} resource \
                 \"endpointslices\" in API group \"discovery.k8s.io\" in the namespace \"{namespace}\""
            );
            Err((403, "Forbidden", message))
        };
        let Some(authorization) = request.header("Authorization") else {
            return forbidden("system:anonymous");
        };
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        match self.rights.get(token) {
            None => Err((401, "Unauthorized", "Unauthorized".into())),
            Some(verbs) if verbs.contains(verb) => Ok(()),
            Some(_) => forbidden("system:serviceaccount:shop:web"),
        }
    }
}

fn is_selected(request: &Request, slice: &Value) -> bool {
    let Some(selector) = request.query("labelSelector") else { return true };
    let (label, value) = selector.split_once('=').unwrap_or((selector, ""));
    slice["metadata"]["labels"][label] == value
}

fn event(kind: &str, object: &Value) -> Vec<u8> {
    chunk(format!("{}\n", json!({"type": kind, "object": object})).as_bytes())
}

fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
