//! The JSON schema of a config, for editors and for the reference.

use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use serde_json::Value;

use super::model::Config;

/// The schema, JSON Schema draft 2020-12.
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>();
    schema.insert("title".into(), "Configuration of an Outrigger sidecar".into());
    // Defaults that hold are in the descriptions; `null` and empty objects would only be read as such.
    RecursiveTransform(|schema: &mut schemars::Schema| {
        schema.remove("default");
    })
    .transform(&mut schema);
    schema.to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_refused_everywhere() {
        let schema = schema();
        let definitions = schema["$defs"].as_object().unwrap();
        for (name, definition) in definitions.iter().chain([(&"Config".to_owned(), &schema)]) {
            if definition.get("properties").is_some() {
                assert_eq!(definition["additionalProperties"], false, "{name}");
            }
        }
        assert!(definitions.len() > 20);
    }
}
