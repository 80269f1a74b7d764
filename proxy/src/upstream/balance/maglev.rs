//! Maglev's table: every entry belongs to an endpoint, each has its share of the entries, a key looks up one entry.
//!
//! Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016), section 3.4; weights as
//! Envoy adds them: an endpoint takes its turn as often as its weight says.

use std::net::SocketAddr;

use super::{hash_key, mix};

/// Sizes of the table, primes. The paper's; with over 100 entries an endpoint shares stray by less than 1 %.
const SIZES: [usize; 2] = [65_537, 655_373];
const ENTRIES_PER_ENDPOINT: usize = 100;
const FREE: u32 = u32::MAX;

/// The owner of each entry.
#[derive(Debug)]
pub(super) struct Maglev(Vec<u32>);

impl Maglev {
    /// The table of these addresses with their weights, none of which is 0.
    pub(super) fn new(members: &[(SocketAddr, u64)]) -> Self {
        let size = if members.len() * ENTRIES_PER_ENDPOINT <= SIZES[0] { SIZES[0] } else { SIZES[1] };
        let mut table = vec![FREE; if members.is_empty() { 0 } else { size }];
        let greatest = members.iter().map(|(_, weight)| *weight).max().unwrap_or(1);
        let mut preferences: Vec<Preference> =
            members.iter().map(|(address, weight)| Preference::new(address, *weight, size)).collect();
        let mut left = table.len();
        while left > 0 {
            for (owner, preference) in (0..).zip(&mut preferences) {
                preference.turns += preference.weight;
                if preference.turns < greatest || left == 0 {
                    continue;
                }
                preference.turns -= greatest;
                // The skip and the prime size have no common divisor: it comes past every entry.
                while table[preference.next] != FREE {
                    preference.next = (preference.next + preference.skip) % size;
                }
                table[preference.next] = owner;
                left -= 1;
            }
        }
        Self(table)
    }

    /// The index of the entry of `key`.
    pub(super) fn find(&self, key: u64) -> usize {
        (key % self.0.len().max(1) as u64) as usize
    }

    /// Whose entry this is, counted around the table.
    pub(super) fn owner(&self, index: usize) -> usize {
        self.0[index % self.0.len()] as usize
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// The order in which an endpoint wants the entries.
struct Preference {
    weight: u64,
    /// Saved up; as many as the greatest weight make a turn.
    turns: u64,
    next: usize,
    skip: usize,
}

impl Preference {
    fn new(address: &SocketAddr, weight: u64, size: usize) -> Self {
        let hash = hash_key(address.to_string().as_bytes());
        let skip = mix(hash) % (size as u64 - 1) + 1;
        Self { weight, turns: 0, next: (hash % size as u64) as usize, skip: skip as usize }
    }
}
