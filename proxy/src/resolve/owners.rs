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

use super::answer::{Answer, LookupError, Owner, Owners, Source, Target};
use super::follow::Followed;

/// Addresses of one name that discovery is asked about; more would let one name keep it busy.
const MOST_ADDRESSES: usize = 64;

/// Follows the owners of one name's addresses.
#[derive(Default)]
pub(super) struct FollowedOwners {
    addresses: BTreeMap<SocketAddr, (Followed, Owner)>,
}

impl FollowedOwners {
    /// Turns to the addresses of an answer, and waits until each of them is known or can't be.
    pub(super) async fn turn_to(&mut self, answer: Option<&Answer>, follow: impl Fn(Target) -> Followed) {
        let mut before = std::mem::take(&mut self.addresses);
        for address in answer.into_iter().flat_map(in_question).take(MOST_ADDRESSES) {
            let known = before.remove(&address).unwrap_or_else(|| {
                let unasked = LookupError::Failed {
                    target: address.to_string().into(),
                    reason: "it was not asked for yet".to_owned(),
                    undenied: Vec::new(),
                };
                (follow(Target::Address(address)), Owner::Unknown(Arc::new(unasked)))
            });
            self.addresses.insert(address, known);
        }
        join_all(self.addresses.values().map(|(followed, _)| followed.first())).await;
    }

    /// The owners as they are known now; `None` where there is nothing to ask about.
    pub(super) fn known(&mut self) -> Option<Arc<Owners>> {
        for (followed, owner) in self.addresses.values_mut() {
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
        let owners = self.addresses.iter().map(|(address, (_, owner))| (*address, owner.clone()));
        (!self.addresses.is_empty()).then(|| Arc::new(owners.collect()))
    }

    /// Waits until one of them may be another.
    pub(super) async fn changed(&mut self) {
        let mut all: Vec<Pin<Box<dyn Future<Output = ()> + Send + '_>>> = Vec::new();
        for (followed, _) in self.addresses.values_mut() {
            all.push(Box::pin(followed.changed()));
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
