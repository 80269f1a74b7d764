//! Changes of header fields: remove, set, add, in this order.

use http::HeaderMap;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};

use crate::config;

/// Changes of a route, names and values ready.
#[derive(Debug)]
pub(super) struct HeaderEdits {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
}

impl HeaderEdits {
    /// Compiles changes; `None` when there are none. One that may not be made, and that a checked config does not
    /// hold, is left out.
    pub(super) fn new(edits: &config::HeaderEdits) -> Option<Self> {
        let fields = |fields: &[config::HeaderValueOf]| {
            fields
                .iter()
                .filter_map(|field| Some((editable(&field.name)?, HeaderValue::from_str(&field.value).ok()?)))
                .collect::<Box<[_]>>()
        };
        let edits = Self {
            remove: edits.remove.iter().filter_map(|name| editable(name)).collect(),
            set: fields(&edits.set),
            add: fields(&edits.add),
        };
        (!(edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty())).then_some(edits)
    }

    /// Makes the changes.
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// A name whose field a route may change: not the mesh's own, by which peers believe what they are told; not `Host`,
/// which decides where a request goes; not what is about the connection or the message's frame.
pub(super) fn editable(name: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    let of_the_mesh =
        name.as_str().strip_prefix("outrigger").is_some_and(|rest| rest.starts_with(['-', '_']));
    let of_the_connection =
        [CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE].contains(&name)
            || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings");
    (!of_the_mesh && !of_the_connection).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HeaderValueOf;

    fn field(name: &str, value: &str) -> HeaderValueOf {
        HeaderValueOf { name: name.into(), value: value.into() }
    }

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn fields_are_removed_then_set_then_added() {
        let edits = HeaderEdits::new(&config::HeaderEdits {
            remove: vec!["X-Gone".into(), "x-back".into(), "x-not-there".into()],
            set: vec![field("x-back", "2"), field("X-Set", "3"), field("x-new", "4")],
            add: vec![field("x-added", "6"), field("x-set", "7"), field("x-added", "8")],
        });
        let mut fields = headers(&[
            ("x-gone", "0"),
            ("x-gone", "0"),
            ("x-back", "1"),
            ("x-set", "1"),
            ("x-set", "2"),
            ("x-added", "5"),
            ("x-kept", "9"),
        ]);
        edits.unwrap().apply(&mut fields);
        let want = headers(&[
            ("x-back", "2"),
            ("x-set", "3"),
            ("x-set", "7"),
            ("x-new", "4"),
            ("x-added", "5"),
            ("x-added", "6"),
            ("x-added", "8"),
            ("x-kept", "9"),
        ]);
        assert_eq!(fields, want);
    }

    #[test]
    fn no_edit_touches_the_meshs_own_fields_the_host_or_the_connection() {
        const PROTECTED: [&str; 14] = [
            "outrigger-client-id",
            "Outrigger-Version",
            "outrigger_client_id",
            "Host",
            "connection",
            "content-length",
            "expect",
            "http2-settings",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "transfer-encoding",
            "upgrade",
        ];
        for name in PROTECTED {
            let edits = config::HeaderEdits {
                remove: vec![name.into()],
                set: vec![field(name, "x")],
                add: vec![field(name, "x")],
            };
            assert!(HeaderEdits::new(&edits).is_none(), "{name}");
        }
        let broken = config::HeaderEdits {
            set: vec![field("x", "a\r\nb: c"), field("a b", "c")],
            ..Default::default()
        };
        assert!(HeaderEdits::new(&broken).is_none());
    }
}
