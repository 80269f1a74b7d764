//! Endpoints as an operator wrote them.

use std::future::pending;
use std::sync::Arc;

use super::super::answer::ResolvedEndpoint;
use super::super::outcome::Miss;
use super::Provider;
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

/// What is said once for all.
pub(super) struct Fixed(Option<Vec<ResolvedEndpoint>>);

impl Fixed {
    pub(super) fn new(endpoints: Vec<ResolvedEndpoint>) -> Self {
        Self(Some(endpoints))
    }
}

impl Provider for Fixed {
    async fn next(&mut self) -> Result<Vec<ResolvedEndpoint>, Miss> {
        match self.0.take() {
            Some(endpoints) => Ok(endpoints),
            None => pending().await,
        }
    }
}
