//! What becomes of weights and slow endpoints while requests are under way, in simulated time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::RngExt;

use super::*;

/// Callers that each send the next request when the one before is answered, and what they call.
struct Simulated {
    balance: Balance,
    /// Weight, and how many times as slow as usual.
    endpoints: Vec<(u32, f64)>,
    callers: usize,
    /// Requests under way at the first endpoint that never end.
    stuck: usize,
}

impl Simulated {
    /// Half a millisecond and exponentially distributed as much again; one answer of a thousand takes 20 ms longer.
    fn service_time(slowness: f64, rng: &mut SmallRng) -> Duration {
        let millis = slowness * (0.5 - 0.5 * (1.0 - rng.random::<f64>()).ln());
        let pause = if rng.random_range(0..1000) == 0 { 20.0 } else { 0.0 };
        Duration::from_secs_f64((millis + pause) / 1000.0)
    }

    /// The share of each.
    fn run(&self, seed: u64) -> Vec<f64> {
        let members: Vec<_> = self
            .endpoints
            .iter()
            .enumerate()
            .map(|(number, (weight, _))| weighted(number, *weight))
            .collect();
        let upstream = balanced_by(self.balance.clone(), members.clone());
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut now = Instant::now();
        let _stuck: Vec<_> = (0..self.stuck).map(|_| InFlight::begin(&members[0].endpoint, now)).collect();
        let mut counts = vec![0_usize; members.len()];
        let mut under_way: Vec<Option<InFlight>> = Vec::new();
        let mut ends = BinaryHeap::new();
        for sent in 0..REQUESTS {
            if sent >= self.callers
                && let Some(Reverse((at, number))) = ends.pop()
            {
                now = at;
                let request: Option<InFlight> = std::mem::take(&mut under_way[number]);
                request.unwrap().answered(None, now);
            }
            let chosen = upstream.choose(&Choice::at(now), &mut rng).unwrap();
            let index = members.iter().position(|member| member.endpoint.id == chosen.id).unwrap();
            counts[index] += 1;
            ends.push(Reverse((now + Self::service_time(self.endpoints[index].1, &mut rng), sent)));
            under_way.push(Some(InFlight::begin(&chosen, now)));
        }
        counts.iter().map(|count| *count as f64 / REQUESTS as f64).collect()
    }
}

/// The shares for each number of callers and each of the two balancers that look at load, by two seeds.
fn each(endpoints: &[(u32, f64)], stuck: usize, mut check: impl FnMut(&Balance, usize, &[f64])) {
    for balance in [Balance::PeakEwma, Balance::LeastRequest] {
        for callers in [1, 4, 16, 64] {
            for seed in 0..2 {
                let (balance, endpoints) = (balance.clone(), endpoints.to_vec());
                let shares = Simulated { balance: balance.clone(), endpoints, callers, stuck }.run(seed);
                check(&balance, callers, &shares);
            }
        }
    }
}

#[test]
fn weights_are_met_within_two_percent_however_many_call() {
    for weights in [&[1; 10][..], &[7, 2, 1, 90], &[3, 1], &[9, 1]] {
        let sum: u32 = weights.iter().sum();
        let want: Vec<f64> = weights.iter().map(|weight| f64::from(*weight) / f64::from(sum)).collect();
        let endpoints: Vec<_> = weights.iter().map(|weight| (*weight, 1.0)).collect();
        each(&endpoints, 0, |balance, callers, shares| {
            assert_shares(shares, &want, &format!("{balance:?}, {callers} callers"));
        });
    }
}

#[test]
fn a_slow_endpoint_gets_clearly_less_and_a_very_slow_one_next_to_nothing() {
    // By requests in flight alone few callers leave nothing to tell by.
    for (slowness, by_latency, by_requests) in [(3.0, 0.125, 0.21), (10.0, 0.025, 0.14)] {
        let endpoints = [(1, slowness), (1, 1.0), (1, 1.0), (1, 1.0)];
        each(&endpoints, 0, |balance, callers, shares| match balance {
            Balance::PeakEwma => assert!(shares[0] < by_latency, "{callers} callers: {shares:.3?}"),
            _ if callers < 16 => {}
            _ => assert!(shares[0] < by_requests, "{callers} callers: {shares:.3?}"),
        });
    }
}

#[test]
fn requests_that_pile_up_at_one_endpoint_keep_others_from_it() {
    each(&[(1, 1.0); 4], 200, |balance, callers, shares| {
        assert!(shares[0] < 0.02, "{balance:?}, {callers} callers: {shares:.3?}");
    });
}
