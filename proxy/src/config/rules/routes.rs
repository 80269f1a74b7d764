//! Rules about routes: names, matches, where requests go, and how long they may take.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::report::Report;
use super::upstreams::refer_for_requests;
use super::{actions, root, routes, survival};
use crate::config::model::{
    Config, Discovery, HeaderMatch, Protocol, QueryMatch, Retry, Route, RouteMatch, RouteTracing, Upstream,
    ValueMatch, WeightedUpstream,
};
use crate::config::problem::Path;
use crate::config::syntax::{field_name, host_pattern, is_of_the_mesh};
use crate::config::units;

/// From this many routes on, the same timeout for all of them was hardly thought about.
const MANY_ROUTES: usize = 3;

pub(super) fn check(config: &Config, report: &mut Report) {
    let mut names = HashSet::new();
    for (at, route) in routes(config) {
        let at_name = at.field("name");
        if route.name.is_empty() || route.name.contains(char::is_control) {
            report.error(
                &at_name,
                format!("{:?} is not a name for a route", route.name),
                "write one to be seen in metrics",
            );
        } else if !names.insert(&route.name) {
            report.error(
                &at_name,
                format!("another route is called `{}`", route.name),
                "give each its own name",
            );
        }
        matches(&at, route, report);
        destinations(config, &at, route, report);
        actions::check(config, &at, route, report);
        policies(config, &at, route, report);
        of_an_edge(&at, route, report);
        if let Some(RouteTracing { sampling, sample_ratio }) = route.tracing {
            let inherited = config.tracing.as_ref().and_then(|tracing| tracing.sample_ratio);
            report.sampling(&at.field("tracing"), sampling, sample_ratio, inherited);
        }
    }
    same_timeouts(config, report);
}

fn same_timeouts(config: &Config, report: &mut Report) {
    if let [first, others @ ..] = config.routes.as_slice()
        && let Some(timeout) = first.timeout
        && config.routes.len() >= MANY_ROUTES
        && others.iter().all(|route| route.timeout == first.timeout)
    {
        report.warn(
            &root().field("routes"),
            format!("all routes have the same timeout, {timeout}"),
            "take each route's from its measured 99th percentile",
        );
    }
}

fn matches(at: &Path, route: &Route, report: &mut Report) {
    let at = at.field("match");
    if route.matches.is_empty() {
        report.error(&at, "a route without match would never be used", "write [{host: <name>}]");
    }
    for (index, alternative) in route.matches.iter().enumerate() {
        one_match(&at.item(index), alternative, report);
    }
}

fn one_match(at: &Path, alternative: &RouteMatch, report: &mut Report) {
    match &alternative.host {
        Some(host) => report.checked(&at.field("host"), host_pattern(host)),
        None => report.error(
            at,
            "a sidecar's routes belong to hosts, and this match names none",
            "add `host`, the name that the workload calls",
        ),
    }
    if let Some(path) = &alternative.path {
        report.path_match(&at.field("path"), path);
    }
    report.methods(&at.field("methods"), &alternative.methods);
    for (index, HeaderMatch { name, value: wanted }) in alternative.headers.iter().enumerate() {
        let at = at.field("headers").item(index);
        header_name(&at.field("name"), name, report);
        value(&at.field("value"), wanted, report);
    }
    for (index, QueryMatch { name, value: wanted }) in alternative.query.iter().enumerate() {
        let at = at.field("query").item(index);
        if name.is_empty() {
            report.error(&at.field("name"), "a parameter has a name", "write it as it stands before the `=`");
        }
        value(&at.field("value"), wanted, report);
    }
}

fn header_name(at: &Path, name: &str, report: &mut Report) {
    match field_name(name) {
        Err((message, remedy)) => report.error(at, message, remedy),
        Ok(name) if name == http::header::HOST => {
            report.error(at, "a request's host need not stand in a header field", "write `host: <name>`");
        }
        Ok(name) if is_of_the_mesh(name.as_str()) => report.error(
            at,
            format!("`{name}` is one of the mesh's own fields, which no workload can send"),
            "match on another field",
        ),
        Ok(_) => {}
    }
}

fn value(at: &Path, value: &ValueMatch, report: &mut Report) {
    if let ValueMatch::Regex(pattern) = value {
        report.pattern(&at.field("regex"), pattern);
    }
}

/// A route sends requests on, or answers them.
fn destinations(config: &Config, at: &Path, route: &Route, report: &mut Report) {
    let at_upstreams = at.field("upstreams");
    let answers = [("redirect", route.redirect.is_some()), ("respond", route.respond.is_some())];
    let stated = answers.iter().find(|(_, is_stated)| *is_stated).map(|(name, _)| *name);
    match stated {
        Some(_) if answers.iter().all(|(_, is_stated)| *is_stated) || !route.upstreams.is_empty() => {
            let upstreams = ("upstreams", !route.upstreams.is_empty());
            report.exactly_one(at, &[upstreams, answers[0], answers[1]]);
        }
        Some(answer) => nothing_is_sent(at, route, answer, report),
        None if route.upstreams.is_empty() => report.error(
            &at_upstreams,
            "the route names no upstream, and neither redirects nor responds",
            "write [{name: <upstream>}], or state `redirect` or `respond`",
        ),
        None => {}
    }
    if route.upstreams.is_empty() {
        return;
    }
    let mut named = HashSet::new();
    for (index, upstream) in route.upstreams.iter().enumerate() {
        let at = at_upstreams.item(index);
        let at_name = at.field("name");
        refer_for_requests(config, &at_name, &upstream.name, report);
        if !named.insert((&upstream.name, &upstream.subset)) {
            report.error(
                &at_name,
                format!("`{}` is stated twice", upstream.name),
                "name it once, with the sum of the weights",
            );
        }
        report.weight(&at.field("weight"), upstream.weight);
        subset(config, &at.field("subset"), upstream, report);
    }
    if route.upstreams.iter().all(|upstream| upstream.weight == 0) {
        report.error(
            &at_upstreams,
            "all weights are 0, so that no request could go anywhere",
            "give one of them a weight of 1 or more",
        );
    }
}

/// What is for requests that are sent does nothing where none is.
fn nothing_is_sent(at: &Path, route: &Route, answer: &str, report: &mut Report) {
    let edits = &route.request_headers;
    let fields = [
        ("rewrite", route.rewrite.is_some()),
        ("requestHeaders", !(edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty())),
        ("mirror", route.mirror.is_some()),
        ("timeout", route.timeout.is_some()),
        ("retry", route.retry.is_some()),
        ("idempotent", route.idempotent),
        ("fallback", route.fallback.is_some()),
    ];
    for (name, _) in fields.iter().filter(|(_, is_stated)| *is_stated) {
        report.warn(
            &at.field(name),
            format!("a route with `{answer}` sends no request, so that this does nothing"),
            "remove it",
        );
    }
}

/// Whether a subset can have an endpoint, as far as the file tells.
fn subset(config: &Config, at: &Path, to: &WeightedUpstream, report: &mut Report) {
    if to.subset.is_empty() {
        return;
    }
    if to.subset.contains_key("") {
        report.error(at, "a tag has a name", "write {<tag>: <value>}");
    }
    let Some(upstream) = config.upstreams.get(&to.name) else {
        return;
    };
    let has_all = |tags: &BTreeMap<String, String>| {
        to.subset.iter().all(|(tag, value)| tags.get(tag).is_some_and(|own| own == value))
    };
    match &upstream.discovery {
        Some(Discovery::Static(endpoints)) if !endpoints.iter().any(|endpoint| has_all(&endpoint.tags)) => {
            report.warn(
                at,
                format!("no endpoint of `{}` has these tags, so that every such request would fail", to.name),
                "give endpoints these `tags`, or remove the subset",
            );
        }
        None | Some(Discovery::Dns(_) | Discovery::Kubernetes(_)) => report.warn(
            at,
            format!("the endpoints of `{}` have no tags where they come from, so that every such request would fail", to.name),
            "find them by `static`, `file`, `consul` or `eureka`, or remove the subset",
        ),
        Some(Discovery::Static(_) | Discovery::File(_) | Discovery::Consul(_) | Discovery::Eureka(_)) => {}
    }
}

fn policies(config: &Config, at: &Path, route: &Route, report: &mut Report) {
    report.above_zero(&at.field("timeout"), route.timeout);
    if let Some(settings) = &route.retry {
        let at = at.field("retry");
        survival::retry(&at, settings, all_tries(config, route), report);
        budget(&at, settings, report);
    } else if let Some(timeout) = route.timeout() {
        shorter_than_a_try(config, &at.field("timeout"), route, timeout, report);
    }
    if let Some(fallback) = &route.fallback {
        let failing: Vec<&str> = named_upstreams(route).collect();
        survival::fallback(config, &at.field("fallback"), fallback, &failing, report);
    }
}

/// The timeout that holds for all tries of a route's request, and whose it is.
fn all_tries(config: &Config, route: &Route) -> Option<(Duration, &'static str)> {
    let own = route.timeout().map(|timeout| (timeout, "route"));
    let upstreams = of_the_file(config, route).filter_map(|(_, upstream)| upstream.timeout());
    own.or_else(|| upstreams.min().map(|timeout| (timeout, "upstream")))
}

fn budget(at: &Path, retry: &Retry, report: &mut Report) {
    for (name, is_stated) in [
        ("budgetPercent", retry.budget_percent.is_some()),
        ("minRetriesPerSecond", retry.min_retries_per_second.is_some()),
    ] {
        if is_stated {
            report.warn(
                &at.field(name),
                "the budget is the upstream's, for all routes together, so that this does nothing",
                "state it under `upstreams.<name>.retry`",
            );
        }
    }
}

/// A route's timeout that ends before one try by the upstream's policy does.
fn shorter_than_a_try(config: &Config, at: &Path, route: &Route, timeout: Duration, report: &mut Report) {
    let longer = of_the_file(config, route)
        .find(|(_, upstream)| upstream.retry.per_try_timeout().is_some_and(|one| one > timeout));
    if let Some((name, _)) = longer {
        let timeout: units::Duration = timeout.into();
        report.warn(
            at,
            format!("{timeout} is less than one try at `{name}` may take, by its `retry.perTryTimeout`"),
            "state `retry` here too, or write a longer timeout",
        );
    }
}

fn named_upstreams(route: &Route) -> impl Iterator<Item = &str> {
    route.upstreams.iter().filter(|upstream| upstream.weight > 0).map(|upstream| upstream.name.as_str())
}

/// A route's upstreams that the file has.
fn of_the_file<'a>(config: &'a Config, route: &'a Route) -> impl Iterator<Item = (&'a str, &'a Upstream)> {
    named_upstreams(route)
        .filter_map(|name| Some((name, config.upstreams.get(name)?)))
        .filter(|(_, upstream)| upstream.protocol != Protocol::Tcp)
}

/// What only an edge does.
fn of_an_edge(at: &Path, route: &Route, report: &mut Report) {
    for (name, is_stated, message) in [
        ("listeners", !route.listeners.is_empty(), "a sidecar has no listeners to choose among"),
        (
            "filters",
            !route.filters.is_empty(),
            "a sidecar has no filters, so that requests pass without them",
        ),
        ("auth", route.auth.is_some(), "a sidecar asks nobody to log in"),
    ] {
        if is_stated {
            report.warn(&at.field(name), message, "remove it; it belongs into an edge's config");
        }
    }
}
