//! Rules that go beyond types: what is refused with line, rule and remedy, and what is merely unwise.

mod actions;
mod discovery;
mod duplicates;
mod inbound;
mod measured;
mod proxy;
mod report;
mod routes;
mod survival;
mod upstreams;

use super::measured::Measured;
use super::model::{Config, Route, Upstream};
use super::problem::{Path, Problem};
use super::tree::Node;
use report::Report;

/// Everything wrong, else every warning; both in the order of the file. Of sections that could not be
/// read whole, only that is reported: what is missing from them would only make up mistakes.
/// `measured` is what a running proxy has seen, if somebody asked it.
pub(super) fn check(
    config: &Config,
    root: &Node,
    unread: Vec<Problem>,
    measured: Option<&Measured>,
) -> Result<Vec<Problem>, Vec<Problem>> {
    let mut report = Report::new(root.positions());
    proxy::check(config, &mut report);
    inbound::check(config, &mut report);
    upstreams::check(config, &mut report);
    routes::check(config, &mut report);
    duplicates::check(config, &mut report);
    if let Some(measured) = measured {
        measured::check(config, measured, &mut report);
    }
    let has_upstreams = report.states(&Path::default().field("upstreams"));
    let is_whole = |name: &str| unread.iter().all(|problem| section(problem) != name);
    report.errors.retain(|error| match section(error) {
        // Routes refer to upstreams, whose very name may be what was misspelled.
        "routes" => unread.is_empty() || has_upstreams && is_whole("routes") && is_whole("upstreams"),
        name => is_whole(name),
    });
    let Report { mut errors, mut warnings, .. } = report;
    errors.extend(unread);
    errors.sort_by_key(|problem| problem.position);
    warnings.sort_by_key(|problem| problem.position);
    if errors.is_empty() { Ok(warnings) } else { Err(errors) }
}

/// The field of the file that a problem lies in.
fn section(problem: &Problem) -> &str {
    problem.field.split(['.', '[']).next().unwrap_or_default()
}

/// The places of a config's parts.
fn root() -> Path {
    Path::default()
}

/// All upstreams, each with its place.
fn upstreams(config: &Config) -> impl Iterator<Item = (Path, &str, &Upstream)> {
    let at = root().field("upstreams");
    config.upstreams.iter().map(move |(name, upstream)| (at.field(name), name.as_str(), upstream))
}

/// All routes, each with its place.
fn routes(config: &Config) -> impl Iterator<Item = (Path, &Route)> {
    let at = root().field("routes");
    config.routes.iter().enumerate().map(move |(index, route)| (at.item(index), route))
}
