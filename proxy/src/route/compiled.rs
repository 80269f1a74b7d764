//! One route, ready to be used.

use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, RngExt};

use crate::config::Route;
use crate::filters::Filters;
use crate::http::Fallback;
use crate::upstream::{RetryPolicy, Subset};

/// A route, ready to be used.
#[derive(Debug)]
pub struct CompiledRoute {
    /// Its name in metrics and logs.
    pub name: Arc<str>,
    /// From the request's end to the response's headers, all tries together; `None` leaves it to the upstream.
    pub timeout: Option<Duration>,
    /// When a request is tried again; `None` leaves it to the upstream.
    pub retry: Option<RetryPolicy>,
    /// Repeating a request does no harm, whatever its method.
    pub idempotent: bool,
    /// What is done when nothing else works; `None` leaves it to the upstream.
    pub fallback: Option<Fallback>,
    /// What is done to requests and responses.
    pub filters: Filters,
    targets: Box<[(Target, u32)]>,
    total_weight: u64,
}

/// Where a route's requests go.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Name of the upstream.
    pub upstream: Arc<str>,
    /// Only its endpoints with these tags; `None` for all of them.
    pub subset: Option<Subset>,
}

impl CompiledRoute {
    /// Compiles a route. `before` is what stood in its place before a change of the config.
    pub fn new(route: &Route, before: Option<&Self>) -> Self {
        let target = |upstream: &crate::config::WeightedUpstream| {
            let subset = Subset::new(&upstream.subset);
            (Target { upstream: upstream.name.as_str().into(), subset }, upstream.weight)
        };
        let fallback_before = before.and_then(|before| before.fallback.as_ref());
        Self {
            name: route.name.as_str().into(),
            timeout: route.timeout(),
            retry: route.retry.as_ref().map(RetryPolicy::new),
            idempotent: route.idempotent,
            fallback: route.fallback.as_ref().and_then(|fallback| Fallback::new(fallback, fallback_before)),
            filters: Filters::new(route),
            targets: route.upstreams.iter().map(target).collect(),
            total_weight: route.upstreams.iter().map(|upstream| u64::from(upstream.weight)).sum(),
        }
    }

    /// All the upstreams it may go to, with their weights.
    pub fn targets(&self) -> &[(Target, u32)] {
        &self.targets
    }

    /// Where one request goes, by weight; `None` where the route itself answers.
    pub fn choose(&self, rng: &mut impl Rng) -> Option<&Target> {
        if let [(only, _)] = &*self.targets {
            return Some(only);
        }
        if self.total_weight == 0 {
            return None;
        }
        let mut at = rng.random_range(0..self.total_weight);
        for (target, weight) in &self.targets {
            let weight = u64::from(*weight);
            if at < weight {
                return Some(target);
            }
            at -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;
    use crate::config::WeightedUpstream;

    fn to(upstreams: &[(&str, u32)]) -> CompiledRoute {
        let weighted = |(name, weight): &(&str, u32)| WeightedUpstream {
            name: (*name).into(),
            weight: *weight,
            subset: BTreeMap::new(),
        };
        let route = Route { upstreams: upstreams.iter().map(weighted).collect(), ..Route::default() };
        CompiledRoute::new(&route, None)
    }

    #[test]
    fn upstreams_are_chosen_by_weight() {
        let route = to(&[("a", 3), ("b", 0), ("c", 1)]);
        let mut rng = SmallRng::seed_from_u64(1);
        let mut shares = HashMap::new();
        for _ in 0..8000 {
            *shares.entry(route.choose(&mut rng).unwrap().upstream.to_string()).or_insert(0) += 1;
        }
        assert!((5800..6200).contains(&shares["a"]), "{shares:?}");
        assert!(!shares.contains_key("b"), "{shares:?}");
    }

    #[test]
    fn a_route_that_answers_itself_goes_nowhere() {
        let mut rng = SmallRng::seed_from_u64(1);
        assert_eq!(to(&[]).choose(&mut rng), None);
    }

    #[test]
    fn a_subset_is_kept_with_its_upstream() {
        let tags: BTreeMap<String, String> = [("version".to_owned(), "canary".to_owned())].into();
        let upstreams = vec![WeightedUpstream { name: "a".into(), weight: 1, subset: tags.clone() }];
        let route = CompiledRoute::new(&Route { upstreams, ..Route::default() }, None);
        let target = route.choose(&mut SmallRng::seed_from_u64(1)).unwrap();
        assert_eq!(target.subset, Subset::new(&tags));
        assert_eq!(to(&[("a", 1)]).choose(&mut SmallRng::seed_from_u64(1)).unwrap().subset, None);
    }
}
