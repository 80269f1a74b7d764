//! Why a value of a config does not fit, and what would.

use std::collections::HashSet;
use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::config::problem::{Path, Position, listed, nearest};
use crate::config::tree::{Node, Value};

/// Why a value does not fit.
#[derive(Debug)]
pub(super) struct ReadError {
    pub(super) message: String,
    pub(super) remedy: String,
    /// The field that is not there.
    pub(super) missing: Option<&'static str>,
    /// It follows from a problem that was reported before.
    pub(super) reported: bool,
    pub(super) place: Option<Box<Place>>,
}

#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: Path,
    pub(super) position: Position,
    /// Fields that stand here and were reported already.
    pub(super) skipped_fields: Vec<String>,
}

impl Place {
    pub(super) fn of(node: &Node, skipped: &HashSet<String>) -> Box<Self> {
        let skipped_fields = match &node.value {
            Value::Map(entries) => entries
                .iter()
                .filter(|(_, node)| skipped.contains(node.path.as_str()))
                .map(|(key, _)| key.clone())
                .collect(),
            _ => Vec::new(),
        };
        Box::new(Self { path: node.path.clone(), position: node.shown_at(), skipped_fields })
    }
}

impl ReadError {
    pub(super) fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: remedy.into(), missing: None, reported: false, place: None }
    }

    /// The innermost place counts.
    pub(super) fn at(mut self, node: &Node, skipped: &HashSet<String>) -> Self {
        self.place.get_or_insert_with(|| Place::of(node, skipped));
        self
    }

    /// At a key rather than its value.
    pub(super) fn at_key(mut self, node: &Node) -> Self {
        let place = Place { path: node.path.clone(), position: node.named_at, skipped_fields: Vec::new() };
        self.place.get_or_insert(Box::new(place));
        self
    }

    pub(super) fn mismatch(found: &str, expected: &dyn Expected) -> Self {
        let expected = match expected.to_string().as_str() {
            "u8" => "a whole number from 0 to 255".into(),
            "u16" => "a whole number from 0 to 65535".into(),
            "u32" => "a whole number from 0 to 4294967295".into(),
            "usize" | "u64" => "a whole number, 0 or more".into(),
            "f64" => "a number".into(),
            "a boolean" => "true or false".into(),
            "a sequence" => "a list".into(),
            "a string" | "path string" => "text".into(),
            other if other.starts_with("struct ") || other == "a map" => {
                "fields with values (`name: value`)".into()
            }
            other => other.to_owned(),
        };
        let remedy = match expected.as_str() {
            "text" if found.contains('`') => "put it in quotes",
            _ => "",
        };
        Self::new(format!("expected {expected}, found {found}"), remedy)
    }
}

fn found(unexpected: &Unexpected<'_>) -> String {
    match unexpected {
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        Unexpected::Bool(value) => format!("the boolean `{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(value) => format!("the text {value:?}"),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map => "fields".into(),
        other => other.to_string(),
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        let text = message.to_string();
        // Texts of our own types read "what is wrong: what to do".
        match text.rsplit_once(": ") {
            Some((message, remedy)) => Self::new(message, remedy),
            None => Self::new(text, ""),
        }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::mismatch(&found(&unexpected), expected)
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::mismatch(&found(&unexpected), expected)
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("there is no field `{field}` here"), allowed(field, known))
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::new(format!("`{variant}` is not known here"), allowed(variant, known))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: Some(field), ..Self::new("this field is missing and required", "") }
    }
}

fn allowed(written: &str, known: &[&'static str]) -> String {
    let all = listed(known.iter().copied());
    match nearest(written, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`? Allowed: {all}"),
        None => format!("allowed: {all}"),
    }
}
