//! Many regular expressions on paths at once: one run over a path tells all that match it.

use std::cell::RefCell;

use regex_automata::meta::{self, Regex};
use regex_automata::nfa::thompson::WhichCaptures;
use regex_automata::{Anchored, Input, MatchKind, PatternSet};
use regex_syntax::hir::{Hir, HirKind, Look};

/// Patterns in one automaton. With more of them a run gets slower, not faster: the states of the automaton hold
/// what is left of each.
const MAX_PATTERNS: usize = 256;
/// What one automaton may take compiled; patterns that take more together are in several.
const MAX_COMPILED_BYTES: usize = 4 * 1024 * 1024;
/// What the states made while matching may take, a thread: so much for an automaton, and so much for each of its
/// patterns. Beyond it they are made anew.
const CACHE_BYTES: usize = 256 * 1024;
const CACHE_BYTES_OF_PATTERN: usize = 8 * 1024;

thread_local! {
    /// Which patterns matched, kept so that a run allocates nothing.
    static MATCHED: RefCell<PatternSet> = RefCell::new(PatternSet::new(MAX_PATTERNS));
}

/// A parsed pattern that must match the whole of a path.
#[derive(Clone, Debug)]
pub(super) struct Pattern(Hir);

/// Patterns in order, compiled.
#[derive(Debug)]
pub(super) struct Regexes(Vec<Regex>);

impl Pattern {
    /// Parses a pattern; in the same dialect as [`crate::config::whole_match`].
    pub(super) fn parse(pattern: &str) -> Option<Self> {
        let parsed =
            regex_syntax::ParserBuilder::new().unicode(false).utf8(false).build().parse(pattern).ok()?;
        Some(Self(parsed))
    }

    /// The whole segments that every path which matches begins with: `/v1/users` for `/v1/users/[0-9]+`.
    pub(super) fn literal_segments(&self) -> String {
        let mut literal = Vec::new();
        collect_literal(&self.0, &mut literal);
        let whole = literal.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        literal.truncate(whole);
        // A path that begins so is text.
        String::from_utf8(literal).unwrap_or_default()
    }
}

/// Adds what `hir` begins with; returns whether that was all of it, so that what follows it follows.
fn collect_literal(hir: &Hir, literal: &mut Vec<u8>) -> bool {
    match hir.kind() {
        HirKind::Empty => true,
        HirKind::Look(Look::Start) => literal.is_empty(),
        HirKind::Literal(bytes) => {
            literal.extend_from_slice(&bytes.0);
            true
        }
        HirKind::Capture(group) => collect_literal(&group.sub, literal),
        HirKind::Concat(parts) => parts.iter().all(|part| collect_literal(part, literal)),
        _ => false,
    }
}

impl Regexes {
    /// Compiles patterns; one that is too large by itself matches nothing.
    pub(super) fn new(patterns: &[Pattern]) -> Self {
        let whole: Vec<Hir> = patterns
            .iter()
            .map(|pattern| Hir::concat(vec![Hir::look(Look::Start), pattern.0.clone(), Hir::look(Look::End)]))
            .collect();
        let mut automata = Vec::new();
        for some in whole.chunks(MAX_PATTERNS) {
            compile(some, &mut automata);
        }
        Self(automata)
    }

    /// The first of the patterns that matches `path` and that `accepts` takes, by its place among them.
    pub(super) fn first_match(&self, path: &str, mut accepts: impl FnMut(usize) -> bool) -> Option<usize> {
        let input = Input::new(path).anchored(Anchored::Yes);
        MATCHED.with_borrow_mut(|matched| {
            let mut before = 0;
            for automaton in &self.0 {
                matched.clear();
                automaton.which_overlapping_matches(&input, matched);
                if !matched.is_empty()
                    && let Some(found) =
                        matched.iter().map(|id| before + id.as_usize()).find(|at| accepts(*at))
                {
                    return Some(found);
                }
                before += automaton.pattern_len();
            }
            None
        })
    }
}

/// Compiles `patterns` to one automaton, or to several when one would be too large.
fn compile(patterns: &[Hir], automata: &mut Vec<Regex>) {
    let settings = meta::Config::new()
        .match_kind(MatchKind::All)
        .which_captures(WhichCaptures::None)
        .utf8_empty(false)
        .nfa_size_limit(Some(MAX_COMPILED_BYTES))
        .hybrid_cache_capacity(CACHE_BYTES + CACHE_BYTES_OF_PATTERN * patterns.len());
    match meta::Builder::new().configure(settings.clone()).build_many_from_hir(patterns) {
        Ok(automaton) => automata.push(automaton),
        Err(_) if patterns.len() > 1 => {
            let (first, second) = patterns.split_at(patterns.len() / 2);
            compile(first, automata);
            compile(second, automata);
        }
        Err(error) => {
            tracing::error!("a route's regular expression matches nothing: {error}");
            // One that never matches keeps the others' places.
            automata.extend(meta::Builder::new().configure(settings).build_many_from_hir(&[Hir::fail()]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::whole_match;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    fn all(regexes: &Regexes, path: &str) -> Vec<usize> {
        let mut found = Vec::new();
        regexes.first_match(path, |at| {
            found.push(at);
            false
        });
        found
    }

    #[test]
    fn each_pattern_matches_as_it_would_alone() {
        const PATTERNS: [&str; 12] = [
            "/users/[0-9]+",
            "/users/.*",
            "/a|/b",
            "(?i)/Shop",
            "/a$",
            "",
            ".*",
            r"/\w+/\d{2,3}",
            "/(x|y)?z",
            "^/users",
            r"/a\b.*",
            "(?s)/.+",
        ];
        const PATHS: [&str; 14] = [
            "",
            "/",
            "/users/17",
            "/users/",
            "/users",
            "/a",
            "/b",
            "/SHOP",
            "/ab/123",
            "/ab/1234",
            "/z",
            "/xz",
            "/a-b",
            "*",
        ];
        let regexes = Regexes::new(&PATTERNS.map(pattern));
        for path in PATHS {
            let alone: Vec<usize> = (0..PATTERNS.len())
                .filter(|at| whole_match(PATTERNS[*at]).unwrap().is_match(path.as_bytes()))
                .collect();
            assert_eq!(all(&regexes, path), alone, "{path}");
        }
    }

    #[test]
    fn more_patterns_than_one_automaton_holds_keep_their_places() {
        let patterns: Vec<Pattern> =
            (0..3 * MAX_PATTERNS + 1).map(|n| pattern(&format!("/{n}/[a-z]+"))).collect();
        let regexes = Regexes::new(&patterns);
        assert!(regexes.0.len() > 3);
        for at in [0, 1, MAX_PATTERNS - 1, MAX_PATTERNS, 3 * MAX_PATTERNS] {
            assert_eq!(all(&regexes, &format!("/{at}/abc")), [at]);
        }
    }

    #[test]
    fn patterns_that_are_too_large_together_keep_their_places() {
        let large = |n: usize| pattern(&format!("/{n}/([ab]{{100}}[cd]{{100}}){{10}}x?"));
        let patterns: Vec<Pattern> = (0..64).map(large).collect();
        let regexes = Regexes::new(&patterns);
        assert!(regexes.0.len() > 1, "one automaton holds them all: the case is none");
        let content = format!("{}{}", "a".repeat(100), "d".repeat(100)).repeat(10);
        for at in [0, 31, 32, 63] {
            assert_eq!(all(&regexes, &format!("/{at}/{content}")), [at]);
        }
    }

    #[test]
    fn a_pattern_that_is_too_large_matches_nothing_and_keeps_the_places_of_others() {
        let regexes = Regexes::new(&[pattern("/a"), pattern("(a{1000}){1000}"), pattern("/a?b?")]);
        assert_eq!(all(&regexes, "/a"), [0, 2]);
    }

    #[test]
    fn the_first_that_is_accepted_is_found() {
        let regexes = Regexes::new(&[pattern("/a.*"), pattern("/.*b"), pattern(".*")]);
        assert_eq!(regexes.first_match("/ab", |_| true), Some(0));
        assert_eq!(regexes.first_match("/ab", |at| at > 0), Some(1));
        assert_eq!(regexes.first_match("/xb", |at| at > 1), Some(2));
        assert_eq!(regexes.first_match("/xb", |at| at > 2), None);
    }

    #[test]
    fn the_segments_that_every_match_begins_with_are_known() {
        for (text, want) in [
            ("/v1/users/[0-9]+", "/v1/users"),
            ("/v1/us[ae]rs/x", "/v1"),
            ("/v1/users", "/v1"),
            ("^/v1/(users/[0-9]+)", "/v1/users"),
            ("/v1/(users|orders)/x", "/v1"),
            ("(?i)/v1/users/x", ""),
            ("/v1/?", ""),
            ("/v1/(a/)?b", "/v1"),
            (".*/v1/", ""),
            ("", ""),
            ("/", ""),
            ("/a/|/b/", ""),
        ] {
            assert_eq!(pattern(text).literal_segments(), want, "{text}");
        }
    }
}
