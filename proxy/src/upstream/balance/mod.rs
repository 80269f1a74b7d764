//! How an endpoint is chosen: subset, priority level, panic mode, zone, slow start, then one of the balancers.
//!
//! `picker.rs` composes them; each other file is one rule or one balancer.

mod levels;
mod maglev;
mod picker;
mod ring;
mod round_robin;
mod weights;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use twox_hash::XxHash3_64;

use super::EndpointId;

pub(super) use picker::Picker;

/// What decides which endpoint one try of a request goes to.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The time.
    pub now: Instant,
    /// Hash of what the request is balanced by, made by [`hash_key`]. Without one it goes anywhere.
    pub key: Option<u64>,
    /// Only members that have these tags; all where there is none.
    pub subset: Option<&'a Subset>,
    /// Endpoints that it has been tried on: they are left alone as long as there is another that is in.
    pub tried: &'a [EndpointId],
}

impl Choice<'_> {
    /// A first try that may go anywhere.
    pub fn at(now: Instant) -> Self {
        Self { now, key: None, subset: None, tried: &[] }
    }
}

/// Tags that members must have, all of them.
#[derive(Clone, Debug)]
pub struct Subset(Arc<BTreeMap<String, String>>);

impl Subset {
    /// The members that have these tags; `None` if there are none, which is the whole set.
    pub fn new(tags: &BTreeMap<String, String>) -> Option<Self> {
        (!tags.is_empty()).then(|| Self(Arc::new(tags.clone())))
    }

    /// The tags.
    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// Whether a member with these tags is one.
    pub fn holds(&self, tags: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(name, value)| tags.get(name) == Some(value))
    }
}

impl PartialEq for Subset {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Subset {}

/// Hash of what a request is balanced by: XXH3 (64 bits, seed 0), so that every proxy sends the same key to the same
/// endpoint, whatever its version.
pub fn hash_key(key: &[u8]) -> u64 {
    XxHash3_64::oneshot(key)
}

/// Evenly spread numbers from one: the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests;
