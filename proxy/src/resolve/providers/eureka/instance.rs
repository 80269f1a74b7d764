//! The JSON of a Eureka registry, as its server writes it.
//!
//! <https://github.com/Netflix/eureka/wiki/Eureka-REST-operations> names the questions; the answers' shape is that of the
//! server's `EurekaJacksonCodec`, and of servers old enough to write a list of one as the one.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::super::answer::ResolvedEndpoint;

/// A whole registry or what changed in it.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub applications: Applications,
}

#[derive(Deserialize)]
pub(super) struct Applications {
    /// How many instances there are of each status, in the whole registry.
    #[serde(rename = "apps__hashcode", alias = "apps_hashcode")]
    pub hashcode: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub application: Vec<Application>,
}

#[derive(Deserialize)]
pub(super) struct Application {
    pub name: String,
    #[serde(default, deserialize_with = "one_or_many")]
    pub instance: Vec<Instance>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Instance {
    instance_id: Option<String>,
    host_name: Option<String>,
    ip_addr: Option<String>,
    #[serde(default)]
    pub status: Status,
    port: Option<Port>,
    secure_port: Option<Port>,
    metadata: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    pub action_type: Action,
}

#[derive(Deserialize)]
struct Port {
    #[serde(rename = "$")]
    number: NumberOrText,
    #[serde(rename = "@enabled")]
    enabled: BooleanOrText,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i64),
    Text(String),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum BooleanOrText {
    Boolean(bool),
    Text(String),
}

/// Whether an instance wants traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Status {
    Down,
    OutOfService,
    Starting,
    Up,
    /// Also whatever else there is: as Eureka's own client counts it.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Status {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Down => "DOWN",
            Self::OutOfService => "OUT_OF_SERVICE",
            Self::Starting => "STARTING",
            Self::Unknown => "UNKNOWN",
            Self::Up => "UP",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Action {
    #[default]
    Added,
    Modified,
    Deleted,
}

impl Port {
    fn enabled(&self) -> Option<u16> {
        let enabled = match &self.enabled {
            BooleanOrText::Boolean(enabled) => *enabled,
            BooleanOrText::Text(text) => text.eq_ignore_ascii_case("true"),
        };
        let number = match &self.number {
            NumberOrText::Number(number) => u16::try_from(*number).ok()?,
            NumberOrText::Text(text) => text.parse().ok()?,
        };
        (enabled && number != 0).then_some(number)
    }
}

impl Instance {
    /// What tells it from the others of its application.
    pub(super) fn id(&self) -> &str {
        let stated = self.instance_id.as_deref().filter(|id| !id.is_empty());
        stated.or(self.host_name.as_deref()).unwrap_or_default()
    }

    /// What is to be dialled: the plain port if it is enabled, for the mesh does its own encrypting, else the secure one.
    pub(super) fn endpoint(&self) -> Result<ResolvedEndpoint, String> {
        let id = self.id();
        let address = self.ip_addr.as_deref().unwrap_or_default();
        let ip: IpAddr =
            address.parse().map_err(|_| format!("{id}: its ipAddr `{address}` is no IP address"))?;
        let port = self.port.as_ref().and_then(Port::enabled);
        let port = port
            .or_else(|| self.secure_port.as_ref().and_then(Port::enabled))
            .ok_or_else(|| format!("{id}: it has no enabled port"))?;
        // `@class` says in Java of which kind an empty map is.
        let tags: BTreeMap<String, String> = self
            .metadata
            .iter()
            .flatten()
            .filter(|(key, _)| !key.starts_with('@'))
            .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
            .collect();
        Ok(ResolvedEndpoint {
            zone: tags.get("zone").filter(|zone| !zone.is_empty()).map(|zone| Arc::from(zone.as_str())),
            tags: Arc::new(tags),
            ..ResolvedEndpoint::at(SocketAddr::new(ip, port))
        })
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(boolean) => Some(boolean.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct OneOrMany<T>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMany<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list, or the only one of it")
        }

        fn visit_unit<E>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_map<A: MapAccess<'de>>(self, one: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(one))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(next) = many.next_element()? {
                all.push(next);
            }
            Ok(all)
        }
    }

    deserializer.deserialize_any(OneOrMany(PhantomData))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn instance(value: Value) -> Instance {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_plain_port_is_used_if_it_is_enabled_and_the_secure_one_otherwise() {
        let port = |plain: Value, secure: Value| {
            let instance = instance(json!({"instanceId": "i", "ipAddr": "10.0.0.1", "status": "UP",
                "port": plain, "securePort": secure}));
            instance.endpoint().map(|endpoint| endpoint.address.port())
        };
        let port_json = |number: Value, enabled: Value| json!({"$": number, "@enabled": enabled});
        let (on, off) = (json!("true"), json!("false"));
        assert_eq!(port(port_json(json!(80), on.clone()), port_json(json!(443), on.clone())), Ok(80));
        assert_eq!(port(port_json(json!(80), off.clone()), port_json(json!(443), on.clone())), Ok(443));
        assert_eq!(port(port_json(json!("80"), json!(true)), Value::Null), Ok(80));
        assert!(port(port_json(json!(80), off.clone()), port_json(json!(443), off)).is_err());
        assert!(port(port_json(json!(65_536), on.clone()), Value::Null).is_err());
        assert!(port(Value::Null, Value::Null).unwrap_err().contains("no enabled port"));
    }

    #[test]
    fn metadata_are_tags_and_name_the_zone() {
        let full =
            instance(json!({"hostName": "h", "ipAddr": "10.0.0.1", "port": {"$": 1, "@enabled": "true"},
            "metadata": {"@class": "java.util.Collections$EmptyMap", "zone": "a", "version": "2", "n": 3}}));
        assert_eq!(full.id(), "h");
        let endpoint = full.endpoint().unwrap();
        assert_eq!(endpoint.zone.as_deref(), Some("a"));
        let tags: Vec<_> = endpoint.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(tags, ["n=3", "version=2", "zone=a"]);
    }

    #[test]
    fn a_list_of_one_may_be_written_as_the_one_and_unknown_words_are_unknown() {
        let answer: Answer = serde_json::from_value(json!({"applications": {
            "versions__delta": "1", "apps__hashcode": "UP_1_",
            "application": {"name": "API", "instance": {"instanceId": "i", "status": "RESTING"}},
        }}))
        .unwrap();
        assert_eq!(answer.applications.hashcode.as_deref(), Some("UP_1_"));
        let [application] = &answer.applications.application[..] else { panic!("one application") };
        assert_eq!(application.instance[0].status, Status::Unknown);
        let empty: Answer = serde_json::from_value(json!({"applications": {"application": null}})).unwrap();
        assert!(empty.applications.application.is_empty());
    }
}
