//! One after the other, each as often as its weight says, spread over the round.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Places in a round, unless there are more endpoints. Weights that need more are rounded to this.
const MAX_ROUND: u64 = 4096;

/// A round, and where it stands: all workers share it.
#[derive(Debug)]
pub(super) struct RoundRobin {
    count: usize,
    /// Whose turn it is at each place; empty when all are alike.
    round: Vec<u32>,
    pub(super) turn: Arc<AtomicUsize>,
}

impl RoundRobin {
    /// None of `weights` is 0. `turn` is where the round before stood: a new one goes on from there.
    pub(super) fn new(weights: &[u64], turn: Option<Arc<AtomicUsize>>) -> Self {
        // Else the first endpoint would get the first request of every proxy that starts.
        let turn = turn.unwrap_or_else(|| Arc::new(AtomicUsize::new(rand::random::<u32>() as usize)));
        Self { count: weights.len(), round: round(weights), turn }
    }

    /// Whose turn it is.
    pub(super) fn next(&self) -> usize {
        let turn = self.turn.fetch_add(1, Relaxed);
        match self.round.len() {
            0 => turn % self.count.max(1),
            places => self.round[turn % places] as usize,
        }
    }
}

/// Each endpoint's turns lie evenly over the round.
fn round(weights: &[u64]) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let sum = weights.iter().sum::<u64>() / divisor;
    if sum == weights.len() as u64 {
        return Vec::new();
    }
    let turns = |weight: u64| match sum {
        0..=MAX_ROUND => weight / divisor,
        _ => (weight as f64 / divisor as f64 * MAX_ROUND as f64 / sum as f64).round().max(1.0) as u64,
    };
    let mut places: Vec<(f64, u32)> = Vec::new();
    for (endpoint, weight) in (0..).zip(weights) {
        let turns = turns(*weight);
        places.extend((0..turns).map(|turn| ((turn as f64 + 0.5) / turns as f64, endpoint)));
    }
    places.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    places.into_iter().map(|(_, endpoint)| endpoint).collect()
}

fn greatest_common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(weights: &[u64], count: usize) -> String {
        let robin = RoundRobin::new(weights, Some(Arc::default()));
        (0..count).map(|_| char::from(b'a' + robin.next() as u8)).collect()
    }

    #[test]
    fn turns_are_spread_over_the_round() {
        for (weights, want) in [
            (&[1, 1, 1][..], "abcabcab"),
            (&[7, 7], "abababab"),
            (&[2, 1], "abaabaab"),
            (&[20, 10], "abaabaab"),
            (&[3, 1], "aabaaaba"),
            (&[1], "aaaaaaaa"),
        ] {
            assert_eq!(turns(weights, 8), want, "{weights:?}");
        }
    }

    #[test]
    fn a_round_is_bounded_and_nobody_is_left_out() {
        let round = round(&[1, 1_000_000, 1_000_003]);
        assert!(round.len() <= MAX_ROUND as usize + 3, "{}", round.len());
        assert!(round.contains(&0));
    }

    #[test]
    fn a_new_round_goes_on_where_the_one_before_stood() {
        let first = RoundRobin::new(&[1, 1, 1], Some(Arc::default()));
        assert_eq!((first.next(), first.next()), (0, 1));
        let second = RoundRobin::new(&[1, 1, 1], Some(first.turn));
        assert_eq!(second.next(), 2);
    }
}
