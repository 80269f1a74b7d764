//! Drawing by weight.

use rand::{Rng, RngExt};

/// Weights of a group, ready to be drawn from.
#[derive(Debug)]
pub(super) struct Weights {
    count: usize,
    /// Where the part of each ends on a line from 0 to the sum; empty when all are alike.
    ends: Vec<u64>,
    least: u64,
}

impl Weights {
    /// None of `weights` is 0.
    pub(super) fn new(weights: &[u64]) -> Self {
        let least = weights.iter().copied().min().unwrap_or(1);
        let mut sum = 0;
        let mut ends = Vec::new();
        if weights.iter().any(|weight| *weight != least) {
            ends.extend(weights.iter().map(|weight| {
                sum += weight;
                sum
            }));
        }
        Self { count: weights.len(), ends, least }
    }

    /// One, by its weight.
    pub(super) fn draw(&self, rng: &mut impl Rng) -> usize {
        match self.ends.last() {
            None => rng.random_range(0..self.count),
            Some(sum) => self.at(rng.random_range(0..*sum)),
        }
    }

    /// Another one to compare `first` with. Where weights differ it may be the same: each stands for as many as the
    /// least weight goes into its own, and only one of those was drawn. So whatever the comparison says, as long as it
    /// says it of all alike, each is taken as often as its weight says.
    pub(super) fn draw_other(&self, first: usize, rng: &mut impl Rng) -> usize {
        match self.ends.last() {
            None if self.count < 2 => first,
            None => {
                let other = rng.random_range(0..self.count - 1);
                if other < first { other } else { other + 1 }
            }
            Some(sum) => {
                let start = first.checked_sub(1).map_or(0, |before| self.ends[before]);
                let other = rng.random_range(0..sum - self.least);
                self.at(if other < start { other } else { other + self.least })
            }
        }
    }

    fn at(&self, place: u64) -> usize {
        self.ends.partition_point(|end| *end <= place)
    }
}
