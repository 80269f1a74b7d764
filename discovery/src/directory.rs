//! The services in force.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::answer::{Asker, Reply, answer};
use crate::index::{ClusterDomain, Index};
use crate::services::Services;

/// The services that are answered from; clones share them. Until there are any, every question about the cluster's
/// domain fails, so that nobody takes a server that has just started for one that knows of no service.
#[derive(Clone)]
pub struct Directory {
    cluster_domain: Arc<ClusterDomain>,
    index: Arc<ArcSwapOption<Index>>,
}

impl Directory {
    pub fn new(cluster_domain: ClusterDomain) -> Self {
        Self { cluster_domain: Arc::new(cluster_domain), index: Arc::default() }
    }

    /// Puts services in force, in place of all that were.
    pub fn replace(&self, services: &Services) {
        self.index.store(Some(Arc::new(Index::new(services, &self.cluster_domain))));
    }

    pub(crate) fn answer(&self, question: &[u8], asker: Asker) -> Reply {
        answer(self.index.load().as_deref(), question, asker)
    }

    #[cfg(test)]
    pub(crate) fn in_force(&self) -> Arc<Index> {
        self.index.load_full().expect("services were put in force")
    }
}
