//! The README's config reference, made of the schema.

use std::fmt::Write as _;

use serde_json::Value;

use super::schema::schema;

/// A Markdown table with a row for each field.
pub fn reference() -> String {
    let schema = schema();
    let mut table = String::from("| field | type | meaning |\n|---|---|---|\n");
    Table { definitions: &schema["$defs"], rows: &mut table }.object("", &schema);
    table
}

struct Table<'a> {
    definitions: &'a Value,
    rows: &'a mut String,
}

impl<'a> Table<'a> {
    /// The fields of an object, each followed by those within it.
    fn object(&mut self, path: &str, schema: &'a Value) {
        let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let is_required = required.iter().any(|field| field == name.as_str());
            self.field(&path, property, property, is_required);
        }
    }

    /// One row, and those of what lies below. What `described` says comes before what the type says.
    fn field(&mut self, path: &str, described: &'a Value, property: &'a Value, is_required: bool) {
        let target = self.resolved(property);
        let text = [described, target].into_iter().find_map(|schema| schema["description"].as_str());
        let mut meaning = one_line(text.unwrap_or_default());
        for (value, text) in self.values(target) {
            let _ = write!(meaning, " `{value}`: {}", lower_first(&one_line(text)));
        }
        if is_required {
            meaning.push_str(" Required.");
        }
        let kind = self.kind(target);
        let _ = writeln!(self.rows, "| `{path}` | {kind} | {} |", meaning.trim().replace('|', "\\|"));
        self.within(path, target);
    }

    /// What lies below a field: of an object, a list's items, a map's entries, alternatives.
    fn within(&mut self, path: &str, target: &'a Value) {
        self.object(path, target);
        if let Some(items) = target.get("items") {
            self.within(&format!("{path}[]"), self.resolved(items));
        }
        for entries in [
            target.get("additionalProperties"),
            target["patternProperties"].as_object().and_then(|p| p.values().next()),
        ] {
            if let Some(entries) = entries.filter(|entries| entries.is_object()) {
                self.within(&format!("{path}.<{}>", map_key(path)), self.resolved(entries));
            }
        }
        for alternative in alternatives(target) {
            match choice(alternative) {
                Some((name, property)) => self.field(&format!("{path}.{name}"), alternative, property, false),
                None => self.within(path, self.resolved(alternative)),
            }
        }
    }

    /// The type behind a reference, a nullable type, or a wrapper that only adds a description.
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        if let Some(name) = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            return self.resolved(&self.definitions[name]);
        }
        let others: Vec<&Value> = alternatives(schema).filter(|schema| schema["type"] != "null").collect();
        match others.as_slice() {
            [only] if alternatives(schema).count() == 2 => self.resolved(only),
            _ => schema,
        }
    }

    /// The values of an enumeration, with their meaning.
    fn values(&self, target: &'a Value) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        alternatives(target).filter_map(|alternative| {
            Some((alternative["const"].as_str()?, alternative["description"].as_str()?))
        })
    }

    fn kind(&self, target: &'a Value) -> String {
        if let Some(title) = target["title"].as_str() {
            return title.into();
        }
        let has_values = self.values(target).next().is_some();
        let has_choices = alternatives(target).any(|alternative| choice(alternative).is_some());
        match (has_values, has_choices) {
            (true, true) => return "one of the values or fields".into(),
            (true, false) => return "one of the values".into(),
            (false, true) => return "one of the fields".into(),
            (false, false) => {}
        }
        let kinds: Vec<String> = alternatives(target).map(|one| self.kind(self.resolved(one))).collect();
        if kinds.iter().any(|kind| kind == "fields") {
            return "value or fields".into();
        }
        if !kinds.is_empty() {
            return kinds.join(" or ");
        }
        if let Some(items) = target.get("items") {
            return format!("list of {}", plural(&self.kind(self.resolved(items))));
        }
        let name = match &target["type"] {
            Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
            name => name.as_str(),
        };
        match name {
            Some("object") if target.get("properties").is_some() => "fields".into(),
            Some("object") => "map".into(),
            Some("integer") => "whole number".into(),
            Some("string") => "text".into(),
            other => other.unwrap_or("any").into(),
        }
    }
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    ["oneOf", "anyOf"].into_iter().filter_map(|word| schema[word].as_array()).flatten()
}

/// The field of an alternative that is an object with just one.
fn choice(alternative: &Value) -> Option<(&String, &Value)> {
    let fields = alternative["properties"].as_object()?;
    fields.iter().next().filter(|_| fields.len() == 1)
}

/// What the keys of a map are.
fn map_key(path: &str) -> &'static str {
    if path.ends_with("ports") { "port" } else { "name" }
}

fn plural(kind: &str) -> String {
    match kind {
        "text" => "texts".into(),
        "fields" => "objects".into(),
        "value or fields" => "values or objects".into(),
        "one of the values" => "values".into(),
        "one of the fields" => "objects".into(),
        other => format!("{other}s"),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lower_first(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        // `HTTP/1.1` and `TLS` keep their case.
        Some(first) if characters.clone().next().is_some_and(char::is_lowercase) => {
            first.to_lowercase().chain(characters).collect()
        }
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_holds_the_reference_as_it_is() {
        let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
        // The README comes last in the making of this project.
        let Ok(text) = std::fs::read_to_string(readme) else {
            return;
        };
        let markers = ("<!-- config reference: begin -->", "<!-- config reference: end -->");
        let Some((_, rest)) = text.split_once(markers.0) else {
            return;
        };
        let (held, _) = rest.split_once(markers.1).expect("the marker of the reference's end is missing");
        assert!(
            held.trim() == reference().trim(),
            "the README's config reference is out of date: put the output of `outrigger validate --reference` between its markers"
        );
    }

    #[test]
    fn every_field_has_a_row_with_its_meaning() {
        let reference = reference();
        for row in [
            "| `trustDomain` | text | The trust domain of every identity in this mesh. Default: `cluster.local`. |",
            "| `inbound.ports.<port>.mtls` | one of the values | mTLS mode of this port.",
            "| `upstreams.<name>.pool.idleTimeout` | duration | How long a connection may stay unused. Default: 55s. |",
            "| `upstreams.<name>.discovery.static` | list of values or objects | Fixed addresses: `ip:port`, or fields. |",
            "| `upstreams.<name>.discovery.static[].weight` | whole number | Share",
            "| `upstreams.<name>.discovery.kubernetes.port` | whole number or text | Name",
            "| `upstreams.<name>.balance` | one of the values or fields | How",
            "| `upstreams.<name>.balance.maglev.key.cookie.name` | text |",
            "| `routes[].match[].headers[].value` | one of the fields | Its value.",
            "| `upstreams.<name>.tls.serverName` | text |",
            "| `routes[].match[].path.prefix` | text |",
            "| `outbound.meshNetworks` | list of networks |",
            "| `identity.ca.address` | text | `host:port` of the CA, for example `ca.outrigger.svc:15012`. Required. |",
        ] {
            assert!(reference.contains(row), "{row}\n\n{reference}");
        }
        let empty: Vec<&str> = reference.lines().filter(|row| row.ends_with("|  |")).collect();
        assert_eq!(empty, Vec::<&str>::new());
    }
}
