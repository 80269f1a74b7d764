//! Reads a config out of the tree, and says of every value that does not fit what would.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize as _;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, EnumAccess, Expected, IntoDeserializer as _, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::model::Config;
use super::problem::{Path, Position, Problem, listed, nearest};
use super::tree::{Node, Value};

/// Problems after which no more are looked for.
const MAX_PROBLEMS: usize = 50;

/// Alternatives that are fields with a value rather than words; serde does not say which are.
const WITH_CONTENT: [&str; 2] = ["PathMatch", "Discovery"];

/// Reads the whole config. A value that does not fit is reported and left out, and the rest read again,
/// so that all of them are found at once.
pub(super) fn read(root: &Node) -> Result<Config, Vec<Problem>> {
    let mut skipped = HashSet::new();
    let mut problems = Vec::new();
    while problems.len() < MAX_PROBLEMS {
        let error = match Config::deserialize(Reader {
            node: root,
            skipped: &skipped,
        }) {
            Ok(config) if problems.is_empty() => return Ok(config),
            Ok(_) => break,
            Err(error) => error,
        };
        let place = error.place.unwrap_or_else(|| Place::of(root, &skipped));
        // A required field that is there was reported already.
        let skipped_field = |field| place.skipped_fields.iter().any(|skipped| skipped == field);
        if !error.reported && !error.missing.is_some_and(skipped_field) {
            let field = match error.missing {
                Some(field) => place.path.field(field),
                None => place.path.clone(),
            };
            problems.push(Problem {
                position: place.position,
                field: field.as_str().into(),
                message: error.message,
                remedy: error.remedy,
            });
        }
        // Without the whole file there is nothing left to read.
        if place.path.as_str().is_empty() || !skipped.insert(place.path.as_str().to_owned()) {
            break;
        }
    }
    problems.sort_by_key(|problem| problem.position);
    Err(problems)
}

/// Why a value does not fit.
#[derive(Debug)]
struct ReadError {
    message: String,
    remedy: String,
    missing: Option<&'static str>,
    /// It follows from a problem that was reported before.
    reported: bool,
    place: Option<Box<Place>>,
}

#[derive(Debug)]
struct Place {
    path: Path,
    position: Position,
    skipped_fields: Vec<String>,
}

impl Place {
    fn of(node: &Node, skipped: &HashSet<String>) -> Box<Self> {
        let skipped_fields = match &node.value {
            Value::Map(entries) => entries
                .iter()
                .filter(|(_, node)| skipped.contains(node.path.as_str()))
                .map(|(key, _)| key.clone())
                .collect(),
            _ => Vec::new(),
        };
        Box::new(Self {
            path: node.path.clone(),
            position: node.shown_at(),
            skipped_fields,
        })
    }
}

impl ReadError {
    fn new(message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            remedy: remedy.into(),
            missing: None,
            reported: false,
            place: None,
        }
    }

    /// The innermost place counts.
    fn at(mut self, node: &Node, skipped: &HashSet<String>) -> Self {
        self.place.get_or_insert_with(|| Place::of(node, skipped));
        self
    }

    /// At a key rather than its value.
    fn at_key(mut self, node: &Node) -> Self {
        let place = Place {
            path: node.path.clone(),
            position: node.named_at,
            skipped_fields: Vec::new(),
        };
        self.place.get_or_insert(Box::new(place));
        self
    }

    fn mismatch(found: &str, expected: &dyn Expected) -> Self {
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
        Self::new(
            format!("there is no field `{field}` here"),
            allowed(field, known),
        )
    }

    fn unknown_variant(variant: &str, known: &'static [&'static str]) -> Self {
        Self::new(
            format!("`{variant}` is not known here"),
            allowed(variant, known),
        )
    }

    fn missing_field(field: &'static str) -> Self {
        Self {
            missing: Some(field),
            ..Self::new("this field is missing and required", "")
        }
    }
}

fn allowed(written: &str, known: &[&'static str]) -> String {
    let all = listed(known.iter().copied());
    match nearest(written, known.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`? Allowed: {all}"),
        None => format!("allowed: {all}"),
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    skipped: &'a HashSet<String>,
}

impl<'a> Reader<'a> {
    fn of(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    fn is_read(self, node: &Node) -> bool {
        !self.skipped.contains(node.path.as_str())
    }
}

impl<'de> de::Deserializer<'de> for Reader<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.node.value {
            Value::Nothing => visitor.visit_unit(),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Whole(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => visitor.visit_i128(*value),
            },
            Value::Fraction(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => visitor.visit_seq(Items {
                reader: self,
                items: items.iter(),
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                reader: self,
                entries: entries.iter(),
                value: None,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Nothing => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            Value::Nothing => visitor.visit_seq(Items {
                reader: self,
                items: [].iter(),
            }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            // A section whose lines are all commented out.
            Value::Nothing => visitor.visit_map(Entries {
                reader: self,
                entries: [].iter(),
                value: None,
            }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match self.node.value {
            // serde would take a list for the fields in their order.
            Value::List(_) => Err(ReadError::mismatch("a list", &"struct ")),
            _ => self.deserialize_map(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        let has_content = WITH_CONTENT.contains(&name);
        let wrong = |found: &str| {
            let what = if has_content {
                "one of the fields"
            } else {
                "one of"
            };
            let all = listed(variants.iter().copied());
            let written: Vec<String> = variants
                .iter()
                .map(|name| format!("{{{name}: …}}"))
                .collect();
            let remedy = if has_content {
                format!("write {}", written.join(" or "))
            } else {
                String::new()
            };
            Err(ReadError::new(
                format!("expected {what} {all}, found {found}"),
                remedy,
            ))
        };
        match &self.node.value {
            Value::Text(text) if has_content => wrong(&format!("the text {text:?}")),
            Value::Text(name) => visitor.visit_enum(Variant {
                reader: self,
                name,
                content: None,
            }),
            Value::Map(entries) => match entries.as_slice() {
                [(_, content)] if !self.is_read(content) => Err(ReadError {
                    reported: true,
                    ..ReadError::new("", "")
                }),
                [(name, content)] => visitor.visit_enum(Variant {
                    reader: self,
                    name,
                    content: Some(content),
                }),
                [] => wrong("no field"),
                _ => {
                    let both = listed(entries.iter().map(|(name, _)| name.as_str()));
                    Err(ReadError::new(
                        format!("only one of the fields can hold, found {both}"),
                        format!("state exactly one of {}", listed(variants.iter().copied())),
                    ))
                }
            },
            Value::Nothing => wrong("nothing"),
            Value::Boolean(value) => wrong(&format!("the boolean `{value}`")),
            Value::Whole(value) => wrong(&format!("the number `{value}`")),
            Value::Fraction(value) => wrong(&format!("the number `{value}`")),
            Value::List(_) => wrong("a list"),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    items: std::slice::Iter<'a, Node>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let reader = self.reader;
        let Some(node) = self.items.find(|node| reader.is_read(node)) else {
            return Ok(None);
        };
        seed.deserialize(reader.of(node))
            .map(Some)
            .map_err(|error| error.at(node, reader.skipped))
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: std::slice::Iter<'a, (String, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let reader = self.reader;
        let Some((key, node)) = self.entries.find(|(_, node)| reader.is_read(node)) else {
            return Ok(None);
        };
        self.value = Some(node);
        seed.deserialize(Key(key))
            .map(Some)
            .map_err(|error| error.at_key(node))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let Some(node) = self.value.take() else {
            return Err(ReadError::new("a value was asked for before its key", ""));
        };
        seed.deserialize(self.reader.of(node))
            .map_err(|error| error.at(node, self.reader.skipped))
    }
}

/// A key: text, or a number in a map from ports.
struct Key<'a>(&'a str);

impl<'de> de::Deserializer<'de> for Key<'_> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_str(self.0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.0.parse() {
            Ok(number) => visitor.visit_u16(number),
            Err(_) => Err(ReadError::mismatch(
                &format!("{:?}", self.0),
                &"a port, 1 to 65535",
            )),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

struct Variant<'a> {
    reader: Reader<'a>,
    name: &'a str,
    content: Option<&'a Node>,
}

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = ReadError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ReadError> {
        let name: StrDeserializer<'_, ReadError> = self.name.into_deserializer();
        let variant = seed.deserialize(name).map_err(|error| match self.content {
            Some(content) => error.at_key(content),
            None => error,
        })?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        match self.content {
            None => Ok(()),
            Some(content) => {
                let error = ReadError::new(
                    format!("`{}` has no fields", self.name),
                    format!("write `{}` alone", self.name),
                );
                Err(error.at_key(content))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        let Some(content) = self.content else {
            return Err(ReadError::new(
                format!("`{}` needs a value", self.name),
                format!("write `{{{}: …}}`", self.name),
            ));
        };
        let reader = self.reader.of(content);
        seed.deserialize(reader)
            .map_err(|error| error.at(content, reader.skipped))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.struct_variant(&[], visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        de::Deserializer::deserialize_any(
            self.content
                .map_or(self.reader, |content| self.reader.of(content)),
            visitor,
        )
    }
}
