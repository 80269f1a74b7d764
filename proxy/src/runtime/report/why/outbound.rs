//! Where a request of the workload goes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::HOST;
use http::{HeaderValue, Request, Version};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::upstreams::{self, rounded};
use super::Question;
use crate::http::{Affinity, LocalResponse, host_of, refuse, source_key};
use crate::outbound::{retry_of, timeout_of};
use crate::route::{Asked, CompiledRoute, Explained, Matched, explain as explain_route};
use crate::upstream::{BreakerState, Choice, Destination, HeaderLimits, Subset, Upstream};
use crate::worker::{Effective, Shared};

/// For the lookup that the workload would make.
const LOOKED_UP_WITHIN: Duration = Duration::from_secs(3);
/// Endpoints that are told of.
const MOST_ENDPOINTS: usize = 100;

pub(super) async fn explain(shared: &Shared, question: &Question) -> Result<Value, String> {
    let request = request(question)?;
    let (dialled, looked_up) = dialled(question).await?;
    let mut told = json!({
        "direction": "outbound",
        "request": {
            "method": question.method.as_str(),
            "host": host_of(&request),
            "path": request.uri().path(),
            "dialled": dialled,
            "dialledIs": looked_up,
        },
    });
    if let Some(note) = not_intercepted(shared, dialled) {
        told["note"] = note.into();
    }
    let mut checked = request;
    if let Some(refused) = refuse(&mut checked, Version::HTTP_11, HeaderLimits::WORKLOAD) {
        told["chosen"] = Value::Null;
        told["callerGets"] = caller_gets(&refused);
        return Ok(told);
    }
    let effective = shared.effective.load_full();
    let is_opaque = effective.config.outbound.is_opaque(dialled.port());
    if is_opaque {
        told["opaque"] = format!(
            "port {} is declared opaque: its bytes are carried unread, and no route applies",
            dialled.port()
        )
        .into();
    }
    let host = if is_opaque { None } else { host_of(&checked) };
    let destination = match shared.directory.locate(host.map(Into::into), dialled).await {
        Ok(destination) => destination,
        Err(error) => {
            told["chosen"] = Value::Null;
            told["callerGets"] = caller_gets(&LocalResponse::destination(&error));
            return Ok(told);
        }
    };
    told["destination"] = describe_destination(&destination, host, dialled);
    let Destination { upstream, endpoint, routed_host } = destination;
    let asked = Asked::of(&checked);
    let matched = routed_host.as_ref().and_then(|host| effective.routes.find(host, &asked));
    if let Some(host) = &routed_host {
        told["route"] = describe_route(&effective, matched, host, &asked);
    }
    let route = matched.map(|matched| &**matched.route);
    let mut way = Way { upstream, dialled: endpoint.map(|endpoint| endpoint.address), subset: None };
    if let Some(route) = route {
        if let Some(target) = route.choose(&mut rng()).cloned() {
            match shared.directory.configured(target.upstream.clone(), dialled.port()).await {
                Ok(upstream) => way = Way { upstream, dialled: None, subset: target.subset },
                Err(error) => {
                    told["chosen"] = Value::Null;
                    told["callerGets"] = caller_gets(&LocalResponse::destination(&error));
                    return Ok(told);
                }
            }
        } else if let Some(answers) =
            route.filters.names().into_iter().find(|name| ["redirect", "respond"].contains(name))
        {
            told["chosen"] = Value::Null;
            told["callerGets"] = format!("what the route itself answers ({answers})").into();
            return Ok(told);
        }
    }
    let key = if is_opaque {
        source_key(&way.upstream.policy.balance, question.client)
    } else {
        let affinity =
            Affinity::of(&way.upstream.policy.balance, checked.headers(), question.client, &mut rng());
        affinity.and_then(|affinity| affinity.key)
    };
    way.describe(route, key, &mut told);
    Ok(told)
}

/// The request as the workload would send it.
fn request(question: &Question) -> Result<Request<()>, String> {
    let Some(url) = &question.url else { return Err("there is no url".into()) };
    let target = url.path_and_query().map_or("/", |target| target.as_str());
    let mut request = Request::new(());
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = target.parse().map_err(|error| format!("url: {error}"))?;
    *request.headers_mut() = question.headers.clone();
    if !request.headers().contains_key(HOST) {
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let host = HeaderValue::from_str(authority).map_err(|error| format!("url: {error}"))?;
        request.headers_mut().insert(HOST, host);
    }
    Ok(request)
}

/// The address that the workload would dial, and how it is known.
async fn dialled(question: &Question) -> Result<(SocketAddr, &'static str), String> {
    let Some(url) = &question.url else { return Err("there is no url".into()) };
    let host = url.host().unwrap_or_default();
    let url_port = url.port_u16().unwrap_or(80);
    if let Some((ip, port)) = question.address {
        return Ok((SocketAddr::new(ip, port.unwrap_or(url_port)), "as asked"));
    }
    if let Ok(ip) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok((SocketAddr::new(ip, url_port), "of the url"));
    }
    // As the workload does it, by the C library and the pod's own files.
    let missing = |why: String| format!("the address of {host} is not known ({why}): say address=IP");
    match timeout(LOOKED_UP_WITHIN, tokio::net::lookup_host((host, url_port))).await {
        Ok(Ok(mut addresses)) => {
            let first = addresses.next().ok_or_else(|| missing("it has none".into()))?;
            Ok((first, "looked up as the workload does"))
        }
        Ok(Err(error)) => Err(missing(error.to_string())),
        Err(_) => Err(missing(format!("no answer within {LOOKED_UP_WITHIN:?}"))),
    }
}

/// Why it may be that the proxy never sees the connection.
fn not_intercepted(shared: &Shared, dialled: SocketAddr) -> Option<String> {
    if shared.own_ports.contains(&dialled.port()) && shared.local.contains(dialled.ip()) {
        return Some("it is a port of the proxy itself: redirected, it would be refused".into());
    }
    dialled.ip().is_loopback().then(|| {
        "what is dialled to loopback is not redirected to the proxy: the workload reaches itself; say address=IP for another".into()
    })
}

fn describe_destination(destination: &Destination, host: Option<&str>, dialled: SocketAddr) -> Value {
    let upstream = &destination.upstream;
    let why = match (&destination.routed_host, &destination.endpoint, host) {
        (Some(_), ..) => {
            "routes or the config name this host, and it is believed for this address".to_owned()
        }
        (None, Some(_), _) => format!("{dialled} is an endpoint of it, dialled by its own address"),
        (None, None, _) if *upstream.name == *dialled.to_string() => {
            "as dialled: nobody configured the name, or it does not belong to this address".into()
        }
        (None, None, Some(_)) => "no route names this host; its addresses hold the dialled one".into(),
        (None, None, None) => "whose the dialled address is".into(),
    };
    json!({
        "upstream": *upstream.name,
        "endpoint": destination.endpoint.as_ref().map(|endpoint| endpoint.address),
        "routedHost": destination.routed_host.as_deref(),
        "why": why,
    })
}

fn describe_route(
    effective: &Effective,
    matched: Option<Matched<'_>>,
    host: &str,
    asked: &Asked<'_>,
) -> Value {
    let name = matched.map(|matched| &*matched.route.name);
    let Explained { matched_by, passed_over, passed_over_more, for_other_hosts } =
        explain_route(&effective.config.routes, name, host, asked);
    let passed_over: Vec<Value> =
        passed_over.into_iter().map(|one| json!({ "route": one.route, "why": one.why })).collect();
    let mut told = json!({
        "name": name,
        "matchedBy": matched_by,
        "passedOver": passed_over,
        "passedOverMore": passed_over_more,
        "forOtherHosts": for_other_hosts,
    });
    if let Some(Matched { route, .. }) = matched {
        let all: u64 = route.targets().iter().map(|(_, weight)| u64::from(*weight)).sum();
        let upstreams = route.targets().iter().map(|(target, weight)| {
            json!({ "upstream": *target.upstream, "share": rounded(f64::from(*weight) / all.max(1) as f64) })
        });
        told["upstreams"] = upstreams.collect();
        told["filters"] = route.filters.names().into();
    }
    told
}

/// Which upstream, and of it what.
struct Way {
    upstream: Arc<Upstream>,
    dialled: Option<SocketAddr>,
    subset: Option<Subset>,
}

impl Way {
    fn describe(&self, route: Option<&CompiledRoute>, key: Option<u64>, told: &mut Value) {
        let (upstream, now) = (&self.upstream, Instant::now());
        let breaker = upstream.breaker.describe(now);
        told["upstream"] = json!({
            "name": *upstream.name,
            "subset": self.subset.as_ref().map(Subset::tags),
            "balance": upstream.policy.balance,
            "timeoutSeconds": timeout_of(route, upstream).map(|limit| limit.as_secs_f64()),
            "retry": retry_of(route, upstream.set().retry.as_deref(), upstream).describe(),
            "retryBudget": upstream.retry_budget.describe(now),
            "breaker": breaker,
            "source": upstream.set().source,
        });
        let set = upstream.set().clone();
        let shares = upstream.shares(self.subset.as_ref(), now);
        let members = set
            .members
            .iter()
            .filter(|member| self.dialled.is_none_or(|dialled| dialled == member.endpoint.address))
            .filter(|member| self.subset.as_ref().is_none_or(|subset| subset.holds(&member.tags)));
        let endpoints = members.clone().take(MOST_ENDPOINTS).map(|member| {
            let share = shares.get(&member.endpoint.id).copied().unwrap_or_default();
            // What was dialled by its own address gets it all, whatever its standing.
            let share = if self.dialled.is_some() { 1.0 } else { share };
            let explained = upstreams::explain(upstream, member, share, now);
            json!({
                "address": member.endpoint.address,
                "state": explained.state,
                "why": explained.why,
                "share": rounded(share),
                "inFlight": member.endpoint.in_flight(),
                "latencyMs": rounded(member.endpoint.latency().as_secs_f64() * 1e3),
                "security": upstreams::describe(&member.endpoint.security),
            })
        });
        told["endpoints"] = endpoints.collect();
        told["endpointsMore"] = members.count().saturating_sub(MOST_ENDPOINTS).into();
        let dialled = self.dialled.and_then(|address| upstream.endpoint_at(address));
        let choice = Choice { now, key, subset: self.subset.as_ref(), tried: &[] };
        let chosen = upstream.pick(dialled.as_ref(), &choice, &mut rng());
        told["chosen"] = json!(chosen.as_ref().map(|endpoint| endpoint.address));
        told["mtls"] = chosen.as_ref().map(|endpoint| upstreams::describe(&endpoint.security)).into();
        told["callerGets"] = match (upstream.breaker.state(now), chosen) {
            (BreakerState::Open, _) => format!(
                "503, destination_unavailable: the circuit breaker is open, {}",
                breaker["why"].as_str().unwrap_or_default()
            )
            .into(),
            (_, None) => caller_gets(&LocalResponse::no_endpoint(upstream)),
            (_, Some(_)) => "what the endpoint answers".into(),
        };
    }
}

fn caller_gets(response: &LocalResponse) -> Value {
    format!("{}, {}: {}", response.error.status.as_u16(), response.error.kind, response.detail).into()
}

fn rng() -> SmallRng {
    SmallRng::from_rng(&mut rand::rng())
}
