//! Why a request goes by the route by which it goes, and not by one before it.
//!
//! Whether something matches is asked of route tables of one alternative each, with more and more of what it states: no
//! rule stands here a second time.

use std::cmp::Reverse;

use super::table::{Asked, RouteTable, precedence};
use crate::config::{PathMatch, Route, RouteMatch, ValueMatch};

/// Alternatives that are looked at one by one. Each costs some compiling.
const MOST_LOOKED_AT: usize = 200;
/// Those that are told of.
const MOST_TOLD: usize = 20;

/// What the routes say of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// How the route matched, in words; `None` where none did.
    pub matched_by: Option<String>,
    /// The alternatives that came first and did not match, in their order.
    pub passed_over: Vec<PassedOver>,
    /// How many more there were.
    pub passed_over_more: usize,
    /// How many are for other hosts.
    pub for_other_hosts: usize,
}

/// An alternative of a route that did not match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The route's name.
    pub route: String,
    /// What it asks for and the request has not.
    pub why: String,
}

/// Explains what [`RouteTable::find`] finds among `routes` for the same host and request: by the route named `winner`.
pub fn explain(routes: &[Route], winner: Option<&str>, host: &str, asked: &Asked<'_>) -> Explained {
    let alternatives = routes.iter().flat_map(|route| route.matches.iter().map(move |one| (route, one)));
    let (mut of_host, others): (Vec<_>, Vec<_>) = alternatives.partition(|(_, one)| {
        is_match(RouteMatch { host: one.host.clone(), ..RouteMatch::default() }, host, asked)
    });
    // As the table has them: one order over all.
    of_host.sort_by_key(|(_, one)| (host_rank(one.host.as_deref()), precedence(one)));
    let mut told = Explained { for_other_hosts: others.len(), ..Explained::default() };
    for (number, (route, one)) in of_host.iter().enumerate() {
        let is_winners = winner.is_none_or(|winner| winner == route.name);
        if is_winners && winner.is_some() && is_match((*one).clone(), host, asked) {
            told.matched_by = Some(words(one));
            break;
        }
        if number >= MOST_LOOKED_AT || told.passed_over.len() >= MOST_TOLD {
            told.passed_over_more += 1;
            continue;
        }
        let why = why_not(one, host, asked).unwrap_or_else(|| "it is not in force yet".into());
        told.passed_over.push(PassedOver { route: route.name.clone(), why });
    }
    told
}

/// The host itself, then the longest domain, then every host.
fn host_rank(pattern: Option<&str>) -> (u8, Reverse<usize>) {
    match pattern {
        Some(pattern) => match pattern.strip_prefix("*.") {
            Some(domain) => (1, Reverse(domain.bytes().filter(|byte| *byte == b'.').count())),
            None => (0, Reverse(0)),
        },
        None => (2, Reverse(0)),
    }
}

fn is_match(alternative: RouteMatch, host: &str, asked: &Asked<'_>) -> bool {
    let route = Route { name: "one".into(), matches: vec![alternative], ..Route::default() };
    RouteTable::new(&[route]).find(host, asked).is_some()
}

/// The first thing that is missing.
fn why_not(one: &RouteMatch, host: &str, asked: &Asked<'_>) -> Option<String> {
    let only = |part: RouteMatch| is_match(part, host, asked);
    if !only(RouteMatch { path: one.path.clone(), ..RouteMatch::default() }) {
        return one.path.as_ref().map(|path| format!("the path is not {}", path_words(path)));
    }
    if !only(RouteMatch { methods: one.methods.clone(), ..RouteMatch::default() }) {
        return Some(format!("the method is not {}", one.methods.join(" or ")));
    }
    let field = one
        .headers
        .iter()
        .find(|field| !only(RouteMatch { headers: vec![(*field).clone()], ..RouteMatch::default() }));
    if let Some(field) = field {
        return Some(format!("the header {} is not {}", field.name, value_words(&field.value)));
    }
    let parameter = one
        .query
        .iter()
        .find(|parameter| !only(RouteMatch { query: vec![(*parameter).clone()], ..RouteMatch::default() }));
    parameter.map(|parameter| {
        format!("the query's parameter {} is not {}", parameter.name, value_words(&parameter.value))
    })
}

fn path_words(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(path) => format!("exactly {path}"),
        PathMatch::Prefix(path) => format!("{path} or below"),
        PathMatch::Regex(pattern) => format!("of the form {pattern}"),
    }
}

fn value_words(value: &ValueMatch) -> String {
    match value {
        ValueMatch::Exact(value) => format!("`{value}`"),
        ValueMatch::Regex(pattern) => format!("of the form {pattern}"),
        ValueMatch::Present(true) => "there".into(),
        ValueMatch::Present(false) => "missing".into(),
    }
}

/// All that an alternative states.
fn words(one: &RouteMatch) -> String {
    let mut all = Vec::new();
    all.extend(one.host.as_ref().map(|host| format!("the host is {host}")));
    all.extend(one.path.as_ref().map(|path| format!("the path is {}", path_words(path))));
    if !one.methods.is_empty() {
        all.push(format!("the method is {}", one.methods.join(" or ")));
    }
    all.extend(
        one.headers.iter().map(|field| format!("the header {} is {}", field.name, value_words(&field.value))),
    );
    all.extend(
        one.query
            .iter()
            .map(|one| format!("the query's parameter {} is {}", one.name, value_words(&one.value))),
    );
    if all.is_empty() { "it takes everything".into() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::config::{HeaderMatch, QueryMatch};

    fn route(name: &str, matches: RouteMatch) -> Route {
        Route { name: name.into(), matches: vec![matches], ..Route::default() }
    }

    fn on(host: Option<&str>, path: Option<PathMatch>) -> RouteMatch {
        RouteMatch { host: host.map(Into::into), path, ..RouteMatch::default() }
    }

    #[test]
    fn each_that_came_before_says_what_it_misses_and_the_winner_is_the_tables() {
        let prefix = |path: &str| Some(PathMatch::Prefix(path.into()));
        let exact = |value: &str| ValueMatch::Exact(value.into());
        let canary = HeaderMatch { name: "x-canary".into(), value: ValueMatch::Present(true) };
        let version = QueryMatch { name: "v".into(), value: exact("2") };
        let routes = [
            route("all", on(None, None)),
            route("orders", on(Some("api.shop"), prefix("/orders"))),
            route("query", RouteMatch { query: vec![version], ..on(Some("api.shop"), prefix("/orders")) }),
            route(
                "posts",
                RouteMatch { methods: vec!["POST".into()], ..on(Some("api.shop"), prefix("/orders")) },
            ),
            route("canary", RouteMatch { headers: vec![canary], ..on(Some("api.shop"), prefix("/orders")) }),
            route("exact", on(Some("api.shop"), Some(PathMatch::Exact("/orders".into())))),
            route("other", on(Some("web.shop"), None)),
        ];
        let (method, headers) = (Method::GET, HeaderMap::new());
        let asked = Asked { method: &method, path: "/orders/7", query: None, headers: &headers };
        let table = RouteTable::new(&routes);
        let winner = table.find("api.shop", &asked).map(|matched| matched.route.name.to_string());
        let told = explain(&routes, winner.as_deref(), "api.shop", &asked);
        let passed: Vec<(&str, &str)> = told.passed_over.iter().map(|one| (&*one.route, &*one.why)).collect();
        assert_eq!(
            passed,
            [
                ("exact", "the path is not exactly /orders"),
                ("posts", "the method is not POST"),
                ("canary", "the header x-canary is not there"),
                ("query", "the query's parameter v is not `2`"),
            ]
        );
        assert_eq!(winner.as_deref(), Some("orders"));
        assert_eq!(told.matched_by.as_deref(), Some("the host is api.shop, the path is /orders or below"));
        assert_eq!((told.for_other_hosts, told.passed_over_more), (1, 0));
    }

    #[test]
    fn where_none_matches_each_says_why_and_very_many_are_counted() {
        let routes: Vec<Route> = (0..50)
            .map(|number| route(&number.to_string(), on(None, Some(PathMatch::Exact(format!("/{number}"))))))
            .collect();
        let (method, headers) = (Method::GET, HeaderMap::new());
        let asked = Asked { method: &method, path: "/x", query: None, headers: &headers };
        let told = explain(&routes, None, "api", &asked);
        assert_eq!((told.matched_by, told.passed_over.len(), told.passed_over_more), (None, 20, 30));
    }
}
