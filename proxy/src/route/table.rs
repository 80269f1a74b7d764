//! Routes by host, in the order of the file: the first that matches wins.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use outrigger_ca::host::normal;
use rand::{Rng, RngExt};

use crate::config::{PathMatch, Route, RouteMatch};

/// A route, ready to be matched.
#[derive(Debug)]
pub struct CompiledRoute {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// From the request's end to the response's headers.
    pub timeout: Option<Duration>,
    upstreams: Vec<(Arc<str>, u32)>,
    total_weight: u32,
}

/// All routes of a config.
#[derive(Debug, Default)]
pub struct RouteTable {
    hosts: HashMap<String, Vec<(RouteMatch, Arc<CompiledRoute>)>>,
}

impl RouteTable {
    /// Compiles `routes`.
    pub fn new(routes: &[Route]) -> Self {
        let mut hosts: HashMap<String, Vec<_>> = HashMap::new();
        for route in routes {
            let compiled = Arc::new(CompiledRoute {
                name: route.name.as_str().into(),
                timeout: route.timeout.map(Into::into),
                upstreams: route.upstreams.iter().map(|u| (u.name.as_str().into(), u.weight)).collect(),
                total_weight: route.upstreams.iter().map(|u| u.weight).sum(),
            });
            for alternative in &route.matches {
                if let Some(host) = &alternative.host {
                    hosts.entry(normal(host)).or_default().push((alternative.clone(), compiled.clone()));
                }
            }
        }
        Self { hosts }
    }

    /// The route of a request for `host`.
    pub fn find(&self, host: &str, method: &Method, path: &str) -> Option<&Arc<CompiledRoute>> {
        self.hosts
            .get(host)?
            .iter()
            .find(|(alternative, _)| matches(alternative, method, path))
            .map(|(_, route)| route)
    }
}

impl CompiledRoute {
    /// One of its upstreams, by weight.
    pub fn choose(&self, rng: &mut impl Rng) -> Option<&Arc<str>> {
        if let [(only, _)] = &*self.upstreams {
            return Some(only);
        }
        let mut at = rng.random_range(0..self.total_weight.max(1));
        self.upstreams
            .iter()
            .find(|(_, weight)| {
                let chosen = at < *weight;
                at = at.saturating_sub(*weight);
                chosen
            })
            .map(|(name, _)| name)
    }
}

fn matches(alternative: &RouteMatch, method: &Method, path: &str) -> bool {
    let path_matches = match &alternative.path {
        None => true,
        Some(PathMatch::Exact(exact)) => path == exact,
        Some(PathMatch::Prefix(prefix)) => {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        Some(PathMatch::Regex(_)) => false,
    };
    path_matches
        && (alternative.methods.is_empty() || alternative.methods.iter().any(|m| m == method.as_str()))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::config::WeightedUpstream;

    fn route(name: &str, alternative: RouteMatch, upstreams: &[(&str, u32)]) -> Route {
        Route {
            name: name.into(),
            matches: vec![alternative],
            upstreams: upstreams
                .iter()
                .map(|(name, weight)| WeightedUpstream {
                    name: (*name).into(),
                    weight: *weight,
                    subset: Default::default(),
                })
                .collect(),
            ..Route::default()
        }
    }

    fn on(host: &str, path: Option<PathMatch>, methods: &[&str]) -> RouteMatch {
        RouteMatch {
            host: Some(host.into()),
            path,
            methods: methods.iter().map(|m| (*m).into()).collect(),
            ..RouteMatch::default()
        }
    }

    #[test]
    fn the_first_route_that_matches_wins() {
        let table = RouteTable::new(&[
            route("post", on("API.shop", Some(PathMatch::Prefix("/v1/".into())), &["POST"]), &[("w", 1)]),
            route("v1", on("api.shop", Some(PathMatch::Prefix("/v1".into())), &[]), &[("a", 1)]),
            route("root", on("api.shop", Some(PathMatch::Exact("/".into())), &[]), &[("b", 1)]),
        ]);
        let found = |host, method: Method, path| table.find(host, &method, path).map(|r| r.name.to_string());
        assert_eq!(found("api.shop", Method::POST, "/v1/x").as_deref(), Some("post"));
        assert_eq!(found("api.shop", Method::GET, "/v1").as_deref(), Some("v1"));
        assert_eq!(found("api.shop", Method::GET, "/v10"), None);
        assert_eq!(found("api.shop", Method::GET, "/").as_deref(), Some("root"));
        assert_eq!(found("other.shop", Method::GET, "/"), None);
    }

    #[test]
    fn upstreams_are_chosen_by_weight() {
        let table = RouteTable::new(&[route("r", on("h", None, &[]), &[("a", 3), ("b", 0), ("c", 1)])]);
        let route = table.find("h", &Method::GET, "/").unwrap();
        let mut rng = SmallRng::seed_from_u64(1);
        let mut shares = HashMap::new();
        for _ in 0..8000 {
            *shares.entry(route.choose(&mut rng).unwrap().to_string()).or_insert(0) += 1;
        }
        assert!((5800..6200).contains(&shares["a"]), "{shares:?}");
        assert!(!shares.contains_key("b"), "{shares:?}");
    }
}
