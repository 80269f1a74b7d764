//! Power of two choices: of two endpoints taken at random, the less loaded one.
//!
//! Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing": nearly as good as knowing
//! them all, and no herd runs to the one that looks best.

use std::sync::Arc;
use std::time::Instant;

use rand::{Rng, RngExt};

use super::Endpoint;

/// Chooses an endpoint; `None` when there is none.
pub(super) fn choose<'a>(
    endpoints: &'a [Arc<Endpoint>],
    now: Instant,
    rng: &mut impl Rng,
) -> Option<&'a Arc<Endpoint>> {
    match endpoints {
        [] => None,
        [only] => Some(only),
        _ => {
            let total: u64 = endpoints.iter().map(|e| u64::from(e.weight)).sum();
            if total == 0 {
                return None;
            }
            let first = draw(endpoints, rng.random_range(0..total));
            let rest = total - u64::from(endpoints[first].weight);
            if rest == 0 {
                return Some(&endpoints[first]);
            }
            let second = draw_other(endpoints, first, rng.random_range(0..rest));
            let (a, b) = (&endpoints[first], &endpoints[second]);
            Some(if a.cost(now) <= b.cost(now) { a } else { b })
        }
    }
}

fn draw(endpoints: &[Arc<Endpoint>], at: u64) -> usize {
    draw_other(endpoints, usize::MAX, at)
}

fn draw_other(endpoints: &[Arc<Endpoint>], without: usize, mut at: u64) -> usize {
    let mut last = 0;
    for (i, endpoint) in endpoints.iter().enumerate() {
        let weight = u64::from(endpoint.weight);
        if i == without || weight == 0 {
            continue;
        }
        last = i;
        if at < weight {
            break;
        }
        at -= weight;
    }
    last
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::super::{InFlight, Security};
    use super::*;

    fn endpoint(port: u16, weight: u32) -> Arc<Endpoint> {
        let address = ([10, 0, 0, 1], port).into();
        Endpoint::new(address, weight, false, Security::Plain, "10.0.0.1".try_into().unwrap())
    }

    fn shares(endpoints: &[Arc<Endpoint>]) -> Vec<u32> {
        let mut rng = SmallRng::seed_from_u64(7);
        let now = Instant::now();
        let mut shares = vec![0; endpoints.len()];
        for _ in 0..10_000 {
            let chosen = choose(endpoints, now, &mut rng).unwrap();
            shares[endpoints.iter().position(|e| Arc::ptr_eq(e, chosen)).unwrap()] += 1;
        }
        shares
    }

    #[test]
    fn the_most_loaded_endpoint_gets_nothing() {
        let endpoints = [endpoint(1, 1), endpoint(2, 1), endpoint(3, 1)];
        let now = Instant::now();
        let _busy: Vec<_> = (0..9).map(|_| InFlight::begin(&endpoints[0], now)).collect();
        let shares = shares(&endpoints);
        assert_eq!(shares[0], 0, "{shares:?}");
        assert!(shares[1] > 4000 && shares[2] > 4000, "{shares:?}");
    }

    #[test]
    fn an_endpoint_of_weight_zero_is_left_alone() {
        let shares = shares(&[endpoint(1, 0), endpoint(2, 5), endpoint(3, 0)]);
        assert_eq!(shares, [0, 10_000, 0]);
    }

    #[test]
    fn without_endpoints_there_is_no_choice() {
        let mut rng = SmallRng::seed_from_u64(7);
        assert!(choose(&[], Instant::now(), &mut rng).is_none());
        assert!(choose(&[endpoint(1, 0), endpoint(2, 0)], Instant::now(), &mut rng).is_none());
    }
}
