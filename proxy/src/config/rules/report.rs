//! What was found so far, and the checks that many rules share.

use crate::config::model::{PathMatch, Sampling};
use crate::config::pattern::whole_match;
use crate::config::problem::{Path, Problem, listed};
use crate::config::syntax::{self, Wrong};
use crate::config::tree::Positions;
use crate::config::units::Duration;

/// The Gateway API's limit; it keeps the sum of all weights far from overflow.
const MAX_WEIGHT: u32 = 1_000_000;

/// What was found so far.
pub(super) struct Report {
    positions: Positions,
    pub(super) errors: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
}

impl Report {
    pub(super) fn new(positions: Positions) -> Self {
        Self { positions, errors: Vec::new(), warnings: Vec::new() }
    }

    pub(super) fn error(&mut self, at: &Path, message: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(at, message.into(), remedy.into());
        self.errors.push(problem);
    }

    pub(super) fn warn(&mut self, at: &Path, message: impl Into<String>, remedy: impl Into<String>) {
        let problem = self.problem(at, message.into(), remedy.into());
        self.warnings.push(problem);
    }

    fn problem(&self, at: &Path, message: String, remedy: String) -> Problem {
        Problem { position: self.positions.of(at), field: at.as_str().into(), message, remedy }
    }

    /// Whether the file states the field, be it empty.
    pub(super) fn states(&self, at: &Path) -> bool {
        self.positions.has(at)
    }

    /// What a value's own check says of it.
    pub(super) fn checked<T>(&mut self, at: &Path, result: Result<T, Wrong>) {
        if let Err((message, remedy)) = result {
            self.error(at, message, remedy);
        }
    }

    /// Of alternatives, each with whether it is stated, just one holds.
    pub(super) fn exactly_one(&mut self, at: &Path, alternatives: &[(&str, bool)]) {
        let names = || alternatives.iter().map(|(name, _)| *name);
        let mut stated = alternatives.iter().filter(|(_, is_stated)| *is_stated).map(|(name, _)| *name);
        let remedy = format!("state exactly one of {}", listed(names()));
        match (stated.next(), stated.next()) {
            (Some(_), None) => {}
            (None, _) => {
                // `tcp:` without anything behind it is no value in YAML.
                let empty = names().find(|name| self.states(&at.field(name)));
                let remedy = match empty {
                    Some(name) => format!("{remedy}; without fields it is written `{name}: {{}}`"),
                    None => remedy,
                };
                self.error(at, "none of the fields that belong here is stated", remedy);
            }
            (Some(_), Some(_)) => {
                let stated = alternatives.iter().filter(|(_, is_stated)| *is_stated).map(|(name, _)| *name);
                let message = format!("only one of the fields can hold, found {}", listed(stated));
                self.error(at, message, remedy);
            }
        }
    }

    pub(super) fn port(&mut self, at: &Path, port: Option<u16>) {
        if port == Some(0) {
            self.error(at, "0 is not a port", "write 1 to 65535");
        }
    }

    pub(super) fn ports(&mut self, at: &Path, ports: &[u16]) {
        for (index, port) in ports.iter().enumerate() {
            self.port(&at.item(index), Some(*port));
        }
    }

    /// A limit that 0 would make to let nothing through.
    pub(super) fn above_zero(&mut self, at: &Path, duration: Option<Duration>) {
        if is_zero(duration) {
            self.error(
                at,
                "a time of 0 would fail everything",
                "write a time above 0, or leave the field out",
            );
        }
    }

    /// A span that 0 would make to do nothing.
    pub(super) fn not_zero(&mut self, at: &Path, duration: Option<Duration>) {
        if is_zero(duration) {
            self.error(at, "a time of 0 does nothing", "write a time above 0, or leave the field out");
        }
    }

    pub(super) fn at_least_one<N: Default + PartialEq>(&mut self, at: &Path, number: Option<N>) {
        if number == Some(N::default()) {
            self.error(at, "0 is not allowed", "write 1 or more, or leave the field out");
        }
    }

    pub(super) fn percent(&mut self, at: &Path, percent: Option<f64>) {
        if percent.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
            self.error(at, "this is no share in percent", "write 0 to 100");
        }
    }

    /// Which traces are recorded; `inherited` is the ratio where none is stated.
    pub(super) fn sampling(
        &mut self,
        at: &Path,
        sampling: Option<Sampling>,
        ratio: Option<f64>,
        inherited: Option<f64>,
    ) {
        let at_ratio = at.field("sampleRatio");
        match (sampling, ratio) {
            (_, Some(ratio)) if !(0.0..=1.0).contains(&ratio) => {
                self.error(&at_ratio, "a share lies between 0 and 1", "write 0.01 for one in a hundred");
            }
            (Some(Sampling::Always | Sampling::Never), Some(_)) => {
                self.warn(&at_ratio, "`sampling` decides without it", "remove one of both");
            }
            (Some(Sampling::Ratio), None) if inherited.is_none() => {
                self.warn(
                    &at.field("sampling"),
                    "no ratio is stated, and so no trace is recorded",
                    "state `sampleRatio`, 0.01 for one in a hundred",
                );
            }
            _ => {}
        }
    }

    pub(super) fn weight(&mut self, at: &Path, weight: u32) {
        if weight > MAX_WEIGHT {
            self.error(at, "the weight is too large", format!("write 0 to {MAX_WEIGHT}"));
        }
    }

    /// The status of a response, within what `allowed` holds.
    pub(super) fn status(&mut self, at: &Path, status: u16, allowed: std::ops::RangeInclusive<u16>) {
        if !allowed.contains(&status) {
            let what = if *allowed.start() == 400 { "an error" } else { "a final response" };
            self.error(
                at,
                format!("{status} is not the status of {what}"),
                format!("write {} to {}", allowed.start(), allowed.end()),
            );
        }
    }

    pub(super) fn methods(&mut self, at: &Path, methods: &[String]) {
        for (index, method) in methods.iter().enumerate() {
            self.checked(&at.item(index), syntax::method(method));
        }
    }

    pub(super) fn path(&mut self, at: &Path, path: &str) {
        self.checked(at, syntax::path(path));
    }

    pub(super) fn path_match(&mut self, at: &Path, path: &PathMatch) {
        match path {
            PathMatch::Exact(path) => self.path(&at.field("exact"), path),
            PathMatch::Prefix(path) => self.path(&at.field("prefix"), path),
            PathMatch::Regex(pattern) => self.pattern(&at.field("regex"), pattern),
        }
    }

    pub(super) fn pattern(&mut self, at: &Path, pattern: &str) {
        if let Err(error) = whole_match(pattern) {
            self.error(at, error.to_string(), "write it in the syntax of the crate `regex`, short and ASCII");
        }
    }

    pub(super) fn host(&mut self, at: &Path, host: &str) {
        self.checked(at, syntax::host(host));
    }
}

fn is_zero(duration: Option<Duration>) -> bool {
    duration.is_some_and(|duration| duration.as_std().is_zero())
}
