//! Endpoints as an operator wrote them.

use std::sync::Arc;

use super::super::answer::ResolvedEndpoint;
use crate::config::StaticEndpoint;

/// The endpoints, each as it is stated.
pub(super) fn endpoints(stated: &[StaticEndpoint]) -> Vec<ResolvedEndpoint> {
    stated
        .iter()
        .map(|stated| ResolvedEndpoint {
            weight: stated.weight,
            priority: stated.priority,
            zone: stated.zone.as_deref().map(Arc::from),
            tags: Arc::new(stated.tags.clone()),
            ..ResolvedEndpoint::at(stated.address)
        })
        .collect()
}
