//! Reads a config out of the tree, and says of every value that does not fit what would.

mod error;

use std::collections::HashSet;

use serde::Deserialize as _;
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use error::{Place, ReadError};

use super::model::Config;
use super::problem::{Problem, listed};
use super::tree::{Node, Value};

/// Problems after which no more are looked for.
const MAX_PROBLEMS: usize = 50;

/// Alternatives that are fields with a value rather than words; serde does not say which are.
const WITH_CONTENT: [&str; 4] = ["PathMatch", "Discovery", "ValueMatch", "PathRewrite"];

/// Reads the whole config. A value that does not fit is reported and left out, and the rest read again,
/// so that all of them are found at once.
///
/// Returns what could be read, and what could not.
pub(super) fn read(root: &Node) -> (Config, Vec<Problem>) {
    let mut rest = Config::default();
    let mut skipped = HashSet::new();
    let mut problems = Vec::new();
    while problems.len() < MAX_PROBLEMS {
        let error = match Config::deserialize(Reader { node: root, skipped: &skipped }) {
            Ok(config) => {
                rest = config;
                break;
            }
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
    (rest, problems)
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
            Value::List(items) => visitor.visit_seq(Items { reader: self, items: items.iter() }),
            Value::Map(entries) => {
                visitor.visit_map(Entries { reader: self, entries: entries.iter(), value: None })
            }
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
            Value::Nothing => visitor.visit_seq(Items { reader: self, items: [].iter() }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.node.value {
            // A section whose lines are all commented out.
            Value::Nothing => visitor.visit_map(Entries { reader: self, entries: [].iter(), value: None }),
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
            let what = if has_content { "one of the fields" } else { "one of" };
            let all = listed(variants.iter().copied());
            let written: Vec<String> = variants.iter().map(|name| format!("{{{name}: …}}")).collect();
            let remedy = if has_content { format!("write {}", written.join(" or ")) } else { String::new() };
            Err(ReadError::new(format!("expected {what} {all}, found {found}"), remedy))
        };
        match &self.node.value {
            Value::Text(text) if has_content => wrong(&format!("the text {text:?}")),
            Value::Text(name) => visitor.visit_enum(Variant { reader: self, name, content: None }),
            Value::Map(entries) => match entries.as_slice() {
                [(_, content)] if !self.is_read(content) => {
                    Err(ReadError { reported: true, ..ReadError::new("", "") })
                }
                [(name, content)] => {
                    visitor.visit_enum(Variant { reader: self, name, content: Some(content) })
                }
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

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let reader = self.reader;
        let Some(node) = self.items.find(|node| reader.is_read(node)) else {
            return Ok(None);
        };
        seed.deserialize(reader.of(node)).map(Some).map_err(|error| error.at(node, reader.skipped))
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: std::slice::Iter<'a, (String, Node)>,
    value: Option<&'a Node>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        let reader = self.reader;
        let Some((key, node)) = self.entries.find(|(_, node)| reader.is_read(node)) else {
            return Ok(None);
        };
        self.value = Some(node);
        seed.deserialize(Key(key)).map(Some).map_err(|error| error.at_key(node))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        let Some(node) = self.value.take() else {
            return Err(ReadError::new("a value was asked for before its key", ""));
        };
        seed.deserialize(self.reader.of(node)).map_err(|error| error.at(node, self.reader.skipped))
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
            Err(_) => Err(ReadError::mismatch(&format!("{:?}", self.0), &"a port, 1 to 65535")),
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
        seed.deserialize(reader).map_err(|error| error.at(content, reader.skipped))
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
            self.content.map_or(self.reader, |content| self.reader.of(content)),
            visitor,
        )
    }
}
