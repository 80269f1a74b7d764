//! Whose addresses those are that the hosts file or ordinary DNS led to.
//!
//! What these say of a name proves nothing about who is called by it: the mesh's discovery is asked about each address, as
//! it is about one that was dialled without a name.

use std::collections::BTreeMap;
use std::future::{Future, pending};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::{join_all, select_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::answer::{Answer, LookupError, Owner, Owners, Source, Target};
use super::follow::Followed;

/// Addresses of one name that discovery is asked about; more would let one name keep it busy.
const MOST_ADDRESSES: usize = 64;

/// Addresses of all names together that are followed: each is a task.
pub(super) const MOST_IN_ALL: usize = 4096;

/// Follows the owners of one name's addresses.
pub(super) struct FollowedOwners {
    addresses: BTreeMap<SocketAddr, FollowedOwner>,
    places: Arc<Semaphore>,
}

struct FollowedOwner {
    followed: Followed,
    owner: Owner,
    _place: OwnedSemaphorePermit,
}

impl FollowedOwners {
    /// `places` are those of all names together.
    pub(super) fn new(places: Arc<Semaphore>) -> Self {
        Self { addresses: BTreeMap::new(), places }
    }

    /// Turns to the addresses of an answer, and waits until each of them is known or can't be.
    pub(super) async fn turn_to(&mut self, answer: Option<&Answer>, follow: impl Fn(Target) -> Followed) {
        let mut before = std::mem::take(&mut self.addresses);
        for address in answer.into_iter().flat_map(in_question).take(MOST_ADDRESSES) {
            if let Some(known) = before.remove(&address) {
                self.addresses.insert(address, known);
                continue;
            }
            // Left out, it is no address of the name: dialled, it is asked about for itself.
            let Ok(place) = self.places.clone().try_acquire_owned() else { continue };
            let unasked = LookupError::Failed {
                target: address.to_string().into(),
                reason: "it was not asked for yet".to_owned(),
                undenied: Vec::new(),
            };
            let owner = Owner::Unknown(Arc::new(unasked));
            let followed = follow(Target::Address(address));
            self.addresses.insert(address, FollowedOwner { followed, owner, _place: place });
        }
        join_all(self.addresses.values().map(|known| known.followed.first())).await;
    }

    /// The owners as they are known now.
    pub(super) fn known(&mut self) -> Arc<Owners> {
        for FollowedOwner { followed, owner, .. } in self.addresses.values_mut() {
            let snapshot = followed.current();
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

/// What discovery is asked about: nothing where the answer is its own. A name's VIPs stand for all its ports.
fn in_question(answer: &Answer) -> impl Iterator<Item = SocketAddr> {
    let asked = answer.source != Source::Mesh;
    let vips = answer.vips.iter().map(|vip| SocketAddr::new(*vip, 0));
    let endpoints = answer.endpoints.iter().map(|endpoint| endpoint.address);
    vips.chain(endpoints).filter(move |_| asked)
}
