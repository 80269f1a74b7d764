//! Consistent hashing on a ring, as Ketama does it: each endpoint has many points, a key belongs to the next one.
//!
//! An endpoint's points depend on its address and weight alone, so one that goes takes only its own keys with it.
//! Karger et al., "Consistent Hashing and Random Trees" (1997).

use std::net::SocketAddr;

use super::{hash_key, mix};

/// Points of an endpoint of usual weight. With fewer, shares stray from the weights: two endpoints' by 0.8 % with
/// this many (standard deviation), by 3 % with Ketama's 160.
const POINTS: u64 = 2048;
/// Points of a ring, 8 bytes each. Beyond 256 endpoints of equal weight all get half as many, and so on.
const MAX_POINTS: u64 = 1 << 19;
/// Low bits of a point that say whose it is.
const OWNER_BITS: u32 = 24;

/// Points in order: the upper bits the place, the lower ones the owner.
#[derive(Debug)]
pub(super) struct Ring(Vec<u64>);

impl Ring {
    /// The ring of these addresses with their weights, none of which is 0.
    pub(super) fn new(members: &[(SocketAddr, u64)]) -> Self {
        let sum: u64 = members.iter().map(|(_, weight)| weight).sum();
        // A power of two: the mean itself would change with each member, and move points of all.
        let usual = 1 << (sum / (members.len() as u64).max(1)).max(1).ilog2();
        let mut points = POINTS;
        while points > 1 && sum.saturating_mul(points) / usual > MAX_POINTS {
            points /= 2;
        }
        let mut ring = Vec::new();
        for (owner, (address, weight)) in (0_u64..1 << OWNER_BITS).zip(members) {
            let seed = hash_key(address.to_string().as_bytes());
            let own = (weight.saturating_mul(points) / usual).clamp(1, MAX_POINTS);
            ring.extend((0..own).map(|point| place(mix(seed.wrapping_add(point))) | owner));
        }
        ring.sort_unstable();
        Self(ring)
    }

    /// The index of the point that `key` belongs to.
    pub(super) fn find(&self, key: u64) -> usize {
        self.0.partition_point(|point| *point < place(key))
    }

    /// Whose point this is, counted around the ring.
    pub(super) fn owner(&self, index: usize) -> usize {
        let point = self.0[index % self.0.len()];
        (point & ((1 << OWNER_BITS) - 1)) as usize
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

fn place(hash: u64) -> u64 {
    hash >> OWNER_BITS << OWNER_BITS
}
