//! All routes of a config, found by host, then path, then what else they ask for.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use http::{HeaderMap, Method, Request};

use super::compiled::CompiledRoute;
use super::conditions::Conditions;
use super::paths::{Host, PathRule, Paths};
use crate::config::{HostPatterns, PathMatch, Route, RouteMatch};

#[cfg(test)]
mod tests;

/// All routes of a config.
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: HostPatterns<Host>,
    paths: Paths,
    names: HashMap<Arc<str>, Arc<CompiledRoute>>,
}

/// The route that a request goes by.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'a> {
    /// The route.
    pub route: &'a Arc<CompiledRoute>,
    /// Length of the prefix of the path by which it matched, without a slash at its end: 0 for all paths. `None` when
    /// it matched the whole path.
    pub prefix: Option<usize>,
}

/// What of a request routes look at beside its host.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, without the query.
    pub path: &'a str,
    /// The query.
    pub query: Option<&'a str>,
    /// The header fields.
    pub headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    /// What routes look at of `request`.
    pub fn of<B>(request: &'a Request<B>) -> Self {
        let uri = request.uri();
        Self { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() }
    }
}

/// One alternative of a route's match, without host and path.
#[derive(Debug)]
pub(super) struct Alternative {
    /// Its place among those of its host, the most specific first.
    pub(super) order: u32,
    /// What must hold beside host and path.
    pub(super) conditions: Option<Box<Conditions>>,
    route: Arc<CompiledRoute>,
}

impl RouteTable {
    /// Compiles `routes`.
    pub fn new(routes: &[Route]) -> Self {
        Self::after(&Self::default(), routes)
    }

    /// Compiles `routes`, which take the place of those `before`: where names are the same, what lasts is handed on.
    pub fn after(before: &Self, routes: &[Route]) -> Self {
        let mut names = HashMap::new();
        let mut by_host: HostPatterns<Vec<(&RouteMatch, Arc<CompiledRoute>)>> = HostPatterns::default();
        for route in routes {
            let last = before.names.get(&*route.name).map(|route| &**route);
            let compiled = Arc::new(CompiledRoute::new(route, last));
            names.insert(compiled.name.clone(), compiled.clone());
            for alternative in &route.matches {
                let of_host = by_host.entry(alternative.host.as_deref(), Vec::new);
                of_host.push((alternative, compiled.clone()));
            }
        }
        let mut paths = Paths::default();
        let hosts = by_host.map(|mut alternatives| {
            // Stable: equal ones stay in the order of the file.
            alternatives.sort_by_key(|(alternative, _)| precedence(alternative));
            let compiled = (0..)
                .zip(alternatives)
                .filter_map(|(order, (alternative, route))| compile(alternative, route, order));
            paths.add(compiled.collect())
        });
        Self { hosts, paths, names }
    }

    /// The route of a request for `host`. It costs no allocation, unless several fields of one name or an encoded
    /// parameter must be put together for a regular expression.
    pub fn find(&self, host: &str, asked: &Asked<'_>) -> Option<Matched<'_>> {
        let (found, prefix) = self.hosts.find_map(host, |host| self.paths.find(host, asked))?;
        Some(Matched { route: &found.route, prefix })
    }
}

/// Which of two alternatives of a host comes first, as the module says.
pub(super) fn precedence(alternative: &RouteMatch) -> impl Ord + use<> {
    let (kind, length) = match &alternative.path {
        Some(PathMatch::Exact(path)) => (0, path.len()),
        // Its length says nothing about how much it matches.
        Some(PathMatch::Regex(_)) => (1, 0),
        Some(PathMatch::Prefix(path)) => (2, path.strip_suffix('/').unwrap_or(path).len()),
        None => (2, 0),
    };
    (
        kind,
        Reverse(length),
        alternative.methods.is_empty(),
        Reverse(alternative.headers.len()),
        Reverse(alternative.query.len()),
    )
}

fn compile(
    alternative: &RouteMatch,
    route: Arc<CompiledRoute>,
    order: u32,
) -> Option<(PathRule, Alternative)> {
    let Some(rule) = PathRule::new(alternative.path.as_ref()) else {
        tracing::error!("route {}: {:?} matches nothing", route.name, alternative.path);
        return None;
    };
    match Conditions::new(alternative) {
        Ok(conditions) => Some((rule, Alternative { order, conditions: conditions.map(Box::new), route })),
        Err(error) => {
            tracing::error!("route {}: {error}: this alternative matches nothing", route.name);
            None
        }
    }
}
