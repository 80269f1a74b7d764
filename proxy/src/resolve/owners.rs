//! Whose addresses those are that others than the mesh's discovery gave: the hosts file, ordinary DNS, the config.
//!
//! What these say of a name proves nothing about who is called by it, and a list of addresses says nothing of it at all:
//! discovery is asked about each address, as it is about one that was dialled without a name.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{join_all, select_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::answer::{Answer, LookupError, Owner, Owners, Source, Target};
use super::follow::Followed;
use super::lookup::LOOKUP_TIMEOUT;

/// Addresses of one name that discovery is asked about; more would let one name keep it busy.
const MOST_ADDRESSES: usize = 64;

/// Addresses of all such names together that are followed: each is a task.
pub(super) const MOST_IN_ALL: usize = 4096;

/// Follows the owners of one answer's addresses.
pub(super) struct FollowedOwners {
    addresses: BTreeMap<SocketAddr, FollowedOwner>,
    places: Arc<Semaphore>,
}

struct FollowedOwner {
    followed: Followed,
    owner: Owner,
    /// None where the answer's source bounds how many there are.
    _place: Option<OwnedSemaphorePermit>,
}

impl FollowedOwners {
    /// `places` are those of all names together.
    pub(super) fn new(places: Arc<Semaphore>) -> Self {
        Self { addresses: BTreeMap::new(), places }
    }

    /// Turns to the addresses of an answer, and waits until each of them is known or can't be, for as long as a lookup may
    /// take. Those that are then still asked about are known as soon as they are.
    pub(super) async fn turn_to(&mut self, answer: Option<&Answer>, follow: impl Fn(Target) -> Followed) {
        let mut before = std::mem::take(&mut self.addresses);
        let most = answer.map_or(Some(0), |answer| most_addresses(answer.source));
        for address in answer.into_iter().flat_map(in_question).take(most.unwrap_or(usize::MAX)) {
            if let Some(known) = before.remove(&address) {
                self.addresses.insert(address, known);
                continue;
            }
            let place = match most.map(|_| self.places.clone().try_acquire_owned()) {
                None => None,
                Some(Ok(place)) => Some(place),
                // Left out, it is no address of the name: dialled, it is asked about for itself.
                Some(Err(_)) => continue,
            };
            let unasked = LookupError::Failed {
                target: address.to_string().into(),
                reason: "it was not asked for yet".to_owned(),
                undenied: Vec::new(),
            };
            let owner = Owner::Unknown(Arc::new(unasked));
            let followed = follow(Target::Address(address));
            self.addresses.insert(address, FollowedOwner { followed, owner, _place: place });
        }
        let all = join_all(self.addresses.values().map(|known| known.followed.first()));
        let _ = timeout(LOOKUP_TIMEOUT, all).await;
    }

    /// The owners as they are known now.
    pub(super) fn known(&mut self) -> Arc<Owners> {
        for FollowedOwner { followed, owner, .. } in self.addresses.values_mut() {
            let snapshot = followed.take_in();
            match (&snapshot.answer, &snapshot.error) {
                (Some(answer), _) => *owner = Owner::Known(answer.clone()),
                (None, Some(error)) if matches!(**error, LookupError::NotFound(_)) => *owner = Owner::Nobody,
                // What was said before stays while discovery is away.
                (None, Some(error)) if matches!(owner, Owner::Unknown(_)) => {
                    *owner = Owner::Unknown(error.clone());
                }
                (None, _) => {}
            }
        }
        let owners = self.addresses.iter().map(|(address, known)| (*address, known.owner.clone()));
        Arc::new(owners.collect())
    }

    /// Has those looked up soon of which nobody could say whose they are.
    pub(super) fn want_unknown(&self) {
        let unknown = self.addresses.values().filter(|known| matches!(known.owner, Owner::Unknown(_)));
        unknown.for_each(|known| known.followed.want());
    }

    /// Waits until one of them may be another.
    pub(super) async fn changed(&mut self) {
        let mut all: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
        for known in self.addresses.values_mut() {
            all.push(Box::pin(known.followed.changed()));
        }
        if all.is_empty() {
            return pending().await;
        }
        select_all(all).await;
    }
}

/// How many addresses of an answer discovery is asked about; `None`: all, for the operator bounds them.
fn most_addresses(source: Source) -> Option<usize> {
    match source {
        // It has said whose they are.
        Source::Mesh => Some(0),
        Source::Hosts | Source::Dns => Some(MOST_ADDRESSES),
        Source::Static | Source::File | Source::Consul | Source::Eureka | Source::Kubernetes => None,
    }
}

/// What discovery is asked about. A name's VIPs stand for all its ports.
fn in_question(answer: &Answer) -> impl Iterator<Item = SocketAddr> {
    let vips = answer.vips.iter().map(|vip| SocketAddr::new(*vip, 0));
    vips.chain(answer.endpoints.iter().map(|endpoint| endpoint.address))
}
