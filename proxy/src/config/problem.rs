//! What is wrong with a config, and where.

use std::fmt;

use serde::Serialize;

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// One thing that is wrong, or unwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Where in the file.
    #[serde(flatten)]
    pub position: Position,
    /// The field's path, such as `routes[0].upstreams[1].name`; empty for the file as a whole.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "; {}", self.remedy) }
    }
}

/// A field's path that knows its parents, so that a field that is absent is shown where it would stand.
#[derive(Clone, Debug, Default)]
pub(super) struct Path {
    text: String,
    parents: Vec<usize>,
}

impl Path {
    /// A field of this object, or an entry of this map.
    pub(super) fn field(&self, name: &str) -> Self {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
        let separator = if self.text.is_empty() { "" } else { "." };
        if !name.is_empty() && name.chars().all(is_plain) {
            self.with(&format!("{separator}{name}"))
        } else {
            self.with(&format!("{separator}{name:?}"))
        }
    }

    /// An item of this list.
    pub(super) fn item(&self, index: usize) -> Self {
        self.with(&format!("[{index}]"))
    }

    fn with(&self, segment: &str) -> Self {
        let mut parents = self.parents.clone();
        parents.push(self.text.len());
        Self { text: format!("{}{segment}", self.text), parents }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// This path, then its parents from the nearest to the whole file.
    pub(super) fn and_parents(&self) -> impl Iterator<Item = &str> {
        let parents = self.parents.iter().rev().map(|end| &self.text[..*end]);
        std::iter::once(&*self.text).chain(parents)
    }
}

/// The known name that was probably meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = name.to_lowercase().replace(['-', '_'], "");
    known
        .into_iter()
        .map(|candidate| (distance(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().min(name.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Characters to insert, remove, replace or swap with their neighbor to come from one to the other
/// (optimal string alignment).
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = last[j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(before_last[j - 2] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

/// `a, b, c`, each in backquotes.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_finds_what_was_meant() {
        let known = ["connectTimeout", "hosts", "identity", "tls", "anyDestination"];
        for (written, meant) in [
            ("conectTimeout", Some("connectTimeout")),
            ("connect_timeout", Some("connectTimeout")),
            ("ConnectTimeout", Some("connectTimeout")),
            ("host", Some("hosts")),
            ("idnetity", Some("identity")),
            ("tsl", Some("tls")),
            ("timeout", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, known), meant, "{written}");
        }
    }

    #[test]
    fn a_path_names_its_parents_and_quotes_what_is_no_plain_name() {
        let path = Path::default().field("upstreams").field("a.b").field("hosts").item(0);
        assert_eq!(
            path.and_parents().collect::<Vec<_>>(),
            [
                r#"upstreams."a.b".hosts[0]"#,
                r#"upstreams."a.b".hosts"#,
                r#"upstreams."a.b""#,
                "upstreams",
                ""
            ]
        );
    }
}
