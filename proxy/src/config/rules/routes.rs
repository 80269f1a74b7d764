//! Rules about routes.

use std::collections::HashSet;

use super::upstreams::refer;
use super::{Report, root, routes};
use crate::config::defaults::MAX_RETRY_ATTEMPTS;
use crate::config::model::{Config, PathMatch, Protocol, Retry, Route, RouteMatch};
use crate::config::problem::Path;

/// The Gateway API's limit; it keeps the sum of all weights far from overflow.
const MAX_WEIGHT: u32 = 1_000_000;
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
        report.above_zero(&at.field("timeout"), route.timeout);
        if let Some(settings) = &route.retry {
            retry(&at.field("retry"), route, settings, report);
        }
    }
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
        Some(host) => report.host(&at.field("host"), host),
        None => report.error(
            at,
            "a sidecar's routes belong to hosts, and this match names none",
            "add `host`, the name that the workload calls",
        ),
    }
    match &alternative.path {
        Some(PathMatch::Exact(path)) => report.path(&at.field("path").field("exact"), path),
        Some(PathMatch::Prefix(path)) => report.path(&at.field("path").field("prefix"), path),
        Some(PathMatch::Regex(_)) | None => {}
    }
    report.methods(&at.field("methods"), &alternative.methods);
}

fn destinations(config: &Config, at: &Path, route: &Route, report: &mut Report) {
    let at = at.field("upstreams");
    if route.upstreams.is_empty() {
        report.error(&at, "the route names no upstream", "write [{name: <upstream>}]");
        return;
    }
    let mut named = HashSet::new();
    for (index, upstream) in route.upstreams.iter().enumerate() {
        let at = at.item(index);
        let at_name = at.field("name");
        refer(config, &at_name, &upstream.name, report);
        if !named.insert(&upstream.name) {
            report.error(
                &at_name,
                format!("`{}` is stated twice", upstream.name),
                "name it once, with the sum of the weights",
            );
        }
        if config.upstreams.get(&upstream.name).is_some_and(|upstream| upstream.protocol == Protocol::Tcp) {
            report.error(
                &at_name,
                format!(
                    "`{}` speaks opaque bytes (`protocol: tcp`), and routes are for requests",
                    upstream.name
                ),
                "remove it from the route, or change its `protocol`",
            );
        }
        if upstream.weight > MAX_WEIGHT {
            report.error(&at.field("weight"), "the weight is too large", format!("write 0 to {MAX_WEIGHT}"));
        }
    }
    if route.upstreams.iter().all(|upstream| upstream.weight == 0) {
        report.error(
            &at,
            "all weights are 0, so that no request could go anywhere",
            "give one of them a weight of 1 or more",
        );
    }
}

fn retry(at: &Path, route: &Route, retry: &Retry, report: &mut Report) {
    if let Some(attempts) = retry.attempts
        && attempts > MAX_RETRY_ATTEMPTS
    {
        report.error(
            &at.field("attempts"),
            format!("{attempts} retries would multiply an outage"),
            format!("write 0 to {MAX_RETRY_ATTEMPTS}"),
        );
    }
    for (index, condition) in retry.on.iter().flatten().enumerate() {
        let is_named = matches!(condition.as_str(), "connectFailure" | "refusedStream" | "reset");
        let is_status =
            condition.len() == 3 && condition.parse().is_ok_and(|status: u16| (500..=599).contains(&status));
        if !is_named && !is_status {
            report.error(
                &at.field("on").item(index),
                format!("`{condition}` can't be retried on"),
                "allowed: `connectFailure`, `refusedStream`, `reset`, or a status from \"500\" to \"599\"",
            );
        }
    }
    report.above_zero(&at.field("perTryTimeout"), retry.per_try_timeout);
    if let (Some(one), Some(all)) = (retry.per_try_timeout, route.timeout)
        && one > all
    {
        report.error(
            &at.field("perTryTimeout"),
            format!("one try may take {one}, and all of them together {all}"),
            "write at most the route's `timeout`",
        );
    }
}
