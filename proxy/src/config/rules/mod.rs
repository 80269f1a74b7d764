//! Rules that go beyond types: what is refused with line, rule and remedy, and what is merely unwise.

mod inbound;
mod proxy;
mod routes;
mod upstreams;

use super::model::{Config, Route, Upstream};
use super::problem::{Path, Problem};
use super::syntax;
use super::tree::{Node, Positions};
use super::units::Duration;

/// Everything wrong, else every warning; both in the order of the file. Of sections that could not be
/// read whole, only that is reported: what is missing from them would only make up mistakes.
pub(super) fn check(
    config: &Config,
    root: &Node,
    unread: Vec<Problem>,
) -> Result<Vec<Problem>, Vec<Problem>> {
    let mut report = Report { positions: root.positions(), errors: Vec::new(), warnings: Vec::new() };
    proxy::check(config, &mut report);
    inbound::check(config, &mut report);
    upstreams::check(config, &mut report);
    routes::check(config, &mut report);
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

/// What was found so far.
struct Report {
    positions: Positions,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Report {
    fn error(&mut self, at: &Path, message: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(at, message.into(), remedy.into());
        self.errors.push(problem);
    }

    fn warn(&mut self, at: &Path, message: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(at, message.into(), remedy.into());
        self.warnings.push(problem);
    }

    fn problem(&self, at: &Path, message: String, remedy: String) -> Problem {
        Problem { position: self.positions.of(at), field: at.as_str().into(), message, remedy }
    }

    /// Whether the file states the field, be it empty.
    fn states(&self, at: &Path) -> bool {
        self.positions.has(at)
    }

    /// A field that is read and checked, and does nothing yet.
    fn later(&mut self, at: &Path) {
        self.warn(at, "this takes effect with a later release; until then it is only checked", "");
    }

    fn ports(&mut self, at: &Path, ports: &[u16]) {
        for (index, _) in ports.iter().enumerate().filter(|(_, port)| **port == 0) {
            self.error(&at.item(index), "0 is not a port", "write 1 to 65535");
        }
    }

    fn above_zero(&mut self, at: &Path, duration: Option<Duration>) {
        if duration.is_some_and(|duration| duration.as_std().is_zero()) {
            self.error(
                at,
                "a time of 0 would fail everything",
                "write a time above 0, or leave the field out",
            );
        }
    }

    fn at_least_one(&mut self, at: &Path, number: Option<u32>) {
        if number == Some(0) {
            self.error(at, "0 is not allowed", "write 1 or more, or leave the field out");
        }
    }

    fn methods(&mut self, at: &Path, methods: &[String]) {
        for (index, method) in methods.iter().enumerate() {
            if let Err((message, remedy)) = syntax::method(method) {
                self.error(&at.item(index), message, remedy);
            }
        }
    }

    fn path(&mut self, at: &Path, path: &str) {
        if let Err((message, remedy)) = syntax::path(path) {
            self.error(at, message, remedy);
        }
    }

    fn host(&mut self, at: &Path, host: &str) {
        if let Err((message, remedy)) = syntax::host(host) {
            self.error(at, message, remedy);
        }
    }
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
