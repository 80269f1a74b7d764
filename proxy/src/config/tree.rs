//! A YAML file as a tree in which every value knows its path and position.

use std::collections::HashMap;
use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_saphyr::{
    Error, Location, MessageFormatter as _, Options, Spanned, UserMessageFormatter, budget, options,
};

use super::problem::{Path, Position, Problem};

/// A value of the file.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) path: Path,
    /// Where its key stands, else where it stands itself.
    pub(super) named_at: Position,
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What stands there. Every key is text; what a key may be is for the reader to say.
#[derive(Debug)]
pub(super) enum Value {
    Nothing,
    Boolean(bool),
    Whole(i128),
    Fraction(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// The positions of all values by their path.
#[derive(Debug)]
pub(super) struct Positions(HashMap<String, Position>);

/// Reads YAML 1.2 with unique keys, one document, and budgets against files that explode.
pub(super) fn parse(text: &str) -> Result<Node, Problem> {
    let mut root: Node = match serde_saphyr::from_str_with_options(text, strict()) {
        Ok(root) => root,
        Err(error) => return Err(syntax_problem(error.without_snippet())),
    };
    root.name(&Path::default());
    Ok(root)
}

fn strict() -> Options {
    options! {
        // Far above any config of ours, and low enough to stop a bomb at once.
        budget: budget! { max_aliases: 1_000, max_anchors: 1_000, max_depth: 32, max_documents: 2 },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        strict_booleans: true,
        with_snippet: false,
        // Long blocks of comments count against a budget otherwise.
        emit_comments: false,
    }
}

fn syntax_problem(error: &Error) -> Problem {
    let (message, remedy) = match error {
        Error::DuplicateMappingKey { key: Some(key), .. } => {
            (format!("`{key}` is stated twice"), "keep one of them")
        }
        Error::MultipleDocuments { .. } => {
            ("the file holds more than one YAML document".into(), "remove what follows the line `---`")
        }
        other => (format!("the YAML can't be read: {}", UserMessageFormatter.format_message(other)), ""),
    };
    let position = error.location().map_or(START, position);
    Problem { position, field: String::new(), message, remedy: remedy.into() }
}

const START: Position = Position { line: 1, column: 1 };

fn position(location: Location) -> Position {
    Position { line: location.line().max(1), column: location.column().max(1) }
}

impl Node {
    /// The positions of everything below.
    pub(super) fn positions(&self) -> Positions {
        let mut positions = HashMap::new();
        self.collect(&mut positions);
        Positions(positions)
    }

    fn collect(&self, positions: &mut HashMap<String, Position>) {
        positions.insert(self.path.as_str().into(), self.shown_at());
        match &self.value {
            Value::List(items) => items.iter().for_each(|item| item.collect(positions)),
            Value::Map(entries) => entries.iter().for_each(|(_, node)| node.collect(positions)),
            _ => {}
        }
    }

    /// A block is shown at its key, a plain value where it stands.
    pub(super) fn shown_at(&self) -> Position {
        match self.value {
            Value::List(_) | Value::Map(_) | Value::Nothing => self.named_at,
            _ => self.at,
        }
    }

    fn name(&mut self, path: &Path) {
        self.path = path.clone();
        match &mut self.value {
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    item.name(&path.item(index));
                }
            }
            Value::Map(entries) => {
                for (key, node) in entries {
                    node.name(&path.field(key));
                }
            }
            _ => {}
        }
    }
}

impl Positions {
    /// Where a field stands; for one that is absent, where its nearest parent does.
    pub(super) fn of(&self, path: &Path) -> Position {
        path.and_parents().find_map(|path| self.0.get(path)).copied().unwrap_or(START)
    }

    /// Whether the file states the field.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.0.contains_key(path.as_str())
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let at = position(spanned.referenced);
        Ok(Self { path: Path::default(), named_at: at, at, value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E>(self, boolean: bool) -> Result<Value, E> {
        Ok(Value::Boolean(boolean))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Whole(number.into()))
    }

    fn visit_i128<E>(self, number: i128) -> Result<Value, E> {
        Ok(Value::Whole(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Fraction(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let mut node: Node = entries.next_value()?;
            node.named_at = position(key.referenced);
            map.push((key.value, node));
        }
        Ok(Value::Map(map))
    }
}
