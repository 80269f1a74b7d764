//! Which alternatives a path leads to.
//!
//! Every path that routes name is a node: one hash table holds the nodes of all hosts. A request's path is hashed
//! segment by segment, with one look into the table after each, until the deepest node is known; from there each
//! node knows the next shorter one. So the cost grows with the segments of the path, not with the routes.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use hashbrown::HashTable;

use super::regexes::{Pattern, Regexes};
use super::table::{Alternative, Asked};
use crate::config::PathMatch;

/// How an alternative looks at the path.
#[derive(Clone, Debug)]
pub(super) enum PathRule {
    /// The path is exactly this.
    Exact(String),
    /// The whole path matches this.
    Regex(Pattern),
    /// The path begins with these whole segments; without a slash at the end, so that the empty text is every path.
    Prefix(String),
}

impl PathRule {
    /// Compiles a match on a path; `None` when it is no regular expression.
    pub(super) fn new(path: Option<&PathMatch>) -> Option<Self> {
        Some(match path {
            None => Self::Prefix(String::new()),
            Some(PathMatch::Exact(path)) => Self::Exact(path.clone()),
            Some(PathMatch::Regex(pattern)) => Self::Regex(Pattern::parse(pattern)?),
            Some(PathMatch::Prefix(path)) => Self::Prefix(path.strip_suffix('/').unwrap_or(path).to_owned()),
        })
    }
}

/// The paths of all hosts.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Places in `nodes`, by hash of host and path.
    index: HashTable<u32>,
    nodes: Vec<Node>,
    alternatives: Vec<Alternative>,
}

/// The paths of one host.
#[derive(Debug)]
pub(super) struct Host {
    /// Begins the hash of its paths, and tells its nodes from others'.
    number: u32,
    /// The node of the empty path, above all others.
    root: u32,
    /// Segments in its longest path.
    depth: u32,
    has_regexes: bool,
}

/// One path that routes of a host name.
#[derive(Debug)]
struct Node {
    host: u32,
    /// The node of the longest shorter path; a root is its own.
    above: u32,
    path: Box<str>,
    /// Alternatives with this very path, the first in order first; likewise the others.
    exact: Range<u32>,
    /// Alternatives with this prefix.
    prefix: Range<u32>,
    /// Alternatives with regular expressions on paths below this one.
    regexes: Option<Box<(Regexes, Range<u32>)>>,
}

/// What routes name one path for.
#[derive(Default)]
struct Named {
    exact: Vec<Alternative>,
    prefix: Vec<Alternative>,
    regexes: Vec<(Pattern, Alternative)>,
}

impl Paths {
    /// Adds a host with its alternatives, the first in order first.
    pub(super) fn add(&mut self, alternatives: Vec<(PathRule, Alternative)>) -> Host {
        let mut named: BTreeMap<String, Named> = [(String::new(), Named::default())].into();
        for (rule, alternative) in alternatives {
            match rule {
                PathRule::Exact(path) => named.entry(path).or_default().exact.push(alternative),
                PathRule::Prefix(path) => named.entry(path).or_default().prefix.push(alternative),
                PathRule::Regex(pattern) => {
                    let above = named.entry(pattern.literal_segments()).or_default();
                    above.regexes.push((pattern, alternative));
                }
            }
        }
        // In order of their texts the root comes first, and each path after those that it begins with.
        let root = number(self.nodes.len());
        let mut host = Host { number: root, root, depth: 0, has_regexes: false };
        let mut known: HashMap<String, u32> = HashMap::new();
        for (path, named) in named {
            let at = number(self.nodes.len());
            host.depth = host.depth.max(number(segments(&path).count()));
            host.has_regexes |= !named.regexes.is_empty();
            let above = std::iter::successors(path.rfind('/'), |slash| path[..*slash].rfind('/'))
                .find_map(|slash| known.get(&path[..slash]).copied());
            let (patterns, with_regexes): (Vec<_>, Vec<_>) = named.regexes.into_iter().unzip();
            let node = Node {
                host: host.number,
                above: above.unwrap_or(root),
                path: path.as_str().into(),
                exact: self.append(named.exact),
                prefix: self.append(named.prefix),
                regexes: (!patterns.is_empty())
                    .then(|| Box::new((Regexes::new(&patterns), self.append(with_regexes)))),
            };
            self.nodes.push(node);
            known.insert(path, at);
            let nodes = &self.nodes;
            self.index.insert_unique(hash_of(&nodes[at as usize]), at, |at| hash_of(&nodes[*at as usize]));
        }
        host
    }

    fn append(&mut self, alternatives: Vec<Alternative>) -> Range<u32> {
        let start = number(self.alternatives.len());
        self.alternatives.extend(alternatives);
        start..number(self.alternatives.len())
    }

    /// The alternative of `host` that wins a request, and the length of the prefix by which it does.
    pub(super) fn find(&self, host: &Host, asked: &Asked<'_>) -> Option<(&Alternative, Option<usize>)> {
        let deepest = self.deepest(host, asked.path);
        if deepest.path.len() == asked.path.len()
            && let Some(found) = self.first(&deepest.exact, asked)
        {
            return Some((found, None));
        }
        if host.has_regexes
            && let Some(found) = self.first_regex(deepest, asked)
        {
            return Some((found, None));
        }
        self.upwards(deepest).find_map(|node| Some((self.first(&node.prefix, asked)?, Some(node.path.len()))))
    }

    /// The node of the longest known path that `path` begins with.
    fn deepest(&self, host: &Host, path: &str) -> &Node {
        let mut deepest = &self.nodes[host.root as usize];
        let mut hash = Hash::of(host.number);
        for end in segments(path).take(host.depth as usize) {
            hash = hash.with(&path.as_bytes()[hash.length..end]);
            let is_it = |at: &u32| {
                let node = &self.nodes[*at as usize];
                node.host == host.number && *node.path == path[..end]
            };
            if let Some(at) = self.index.find(hash.state, is_it) {
                deepest = &self.nodes[*at as usize];
            }
        }
        deepest
    }

    /// A node and all above it.
    fn upwards<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        std::iter::successors(Some(node), |node| {
            let above = &self.nodes[node.above as usize];
            (!std::ptr::eq(above, *node)).then_some(above)
        })
    }

    fn first(&self, some: &Range<u32>, asked: &Asked<'_>) -> Option<&Alternative> {
        self.alternatives[some.start as usize..some.end as usize]
            .iter()
            .find(|alternative| alternative.conditions.as_deref().is_none_or(|it| it.hold(asked)))
    }

    /// The first in order of all alternatives with regular expressions, whatever path they lie below.
    fn first_regex(&self, deepest: &Node, asked: &Asked<'_>) -> Option<&Alternative> {
        let mut best: Option<&Alternative> = None;
        for (regexes, some) in self.upwards(deepest).filter_map(|node| node.regexes.as_deref()) {
            let some = &self.alternatives[some.start as usize..some.end as usize];
            let accepts = |at: usize| {
                best.is_some_and(|best| best.order < some[at].order)
                    || some[at].conditions.as_deref().is_none_or(|conditions| conditions.hold(asked))
            };
            if let Some(found) = regexes.first_match(asked.path, accepts).map(|at| &some[at])
                && best.is_none_or(|best| found.order < best.order)
            {
                best = Some(found);
            }
        }
        best
    }
}

/// Where the segments of a path end. A path ends before each slash but the first, and at its end: `/a/b/` is known by
/// `/a`, `/a/b` and `/a/b/`.
fn segments(path: &str) -> impl Iterator<Item = usize> {
    let mut start = if path.starts_with('/') { Some(0) } else { None };
    std::iter::from_fn(move || {
        let after = start? + 1;
        let slash = path.as_bytes()[after..].iter().position(|byte| *byte == b'/');
        start = slash.map(|at| after + at);
        Some(start.unwrap_or(path.len()))
    })
}

fn hash_of(node: &Node) -> u64 {
    let path = node.path.as_bytes();
    let hashed =
        segments(&node.path).fold(Hash::of(node.host), |hash, end| hash.with(&path[hash.length..end]));
    hashed.state
}

/// The running hash of a path. What is in the table comes from the config alone, so that nobody can fill it with
/// collisions.
#[derive(Clone, Copy)]
struct Hash {
    state: u64,
    /// Bytes hashed.
    length: usize,
}

impl Hash {
    fn of(host: u32) -> Self {
        Self { state: fold(u64::from(host) ^ 0x9e37_79b9_7f4a_7c15), length: 0 }
    }

    fn with(self, segment: &[u8]) -> Self {
        let (words, rest) = segment.as_chunks::<8>();
        let state = words.iter().fold(self.state, |state, word| fold(state ^ u64::from_le_bytes(*word)));
        // Fewer than eight bytes are left, so that the length fits beside them.
        let last = rest.iter().fold(rest.len() as u64, |word, byte| word << 8 | u64::from(*byte));
        Self { state: fold(state ^ last), length: self.length + segment.len() }
    }
}

/// Multiplies to twice the width and adds the halves without carry, as wyhash does: every bit in moves every bit out.
fn fold(word: u64) -> u64 {
    let wide = u128::from(word) * 0xa076_1d64_78bd_642f;
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// Places of nodes and alternatives. A config of 8 MiB has far fewer than four thousand million of them.
fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_before_each_slash_and_at_its_end() {
        for (path, want) in [
            ("", &[][..]),
            ("*", &[]),
            ("/", &["/"]),
            ("/a", &["/a"]),
            ("/a/", &["/a", "/a/"]),
            ("/a/bc/d", &["/a", "/a/bc", "/a/bc/d"]),
            ("//a", &["/", "//a"]),
        ] {
            let ends: Vec<&str> = segments(path).map(|end| &path[..end]).collect();
            assert_eq!(ends, want, "{path}");
        }
    }
}
