//! What else must hold of a request once its host and path match: method, header fields, query.

use std::borrow::Cow;

use http::header::{COOKIE, HeaderName};
use http::{HeaderMap, Method};
use regex::bytes::Regex;
use thiserror::Error;

use super::table::Asked;
use crate::config::{self, PatternError, RouteMatch, whole_match};

/// Why an alternative can't be compiled; a config that was checked has none such.
#[derive(Debug, Error)]
pub(super) enum ConditionError {
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("`{0}` is not a method")]
    Method(String),
    #[error("`{0}` is not a header field's name")]
    Name(String),
}

/// Method, header fields and query of one alternative.
#[derive(Debug)]
pub(super) struct Conditions {
    /// One of these; any when there is none.
    methods: Box<[Method]>,
    /// All of these.
    headers: Box<[(HeaderName, Value)]>,
    /// All of these.
    query: Box<[(Box<str>, Value)]>,
}

/// What a value must be.
#[derive(Debug)]
enum Value {
    Exact(Box<str>),
    Regex(Regex),
    Present(bool),
}

impl Conditions {
    /// Compiles the conditions of an alternative; `None` when it states none.
    pub(super) fn new(alternative: &RouteMatch) -> Result<Option<Self>, ConditionError> {
        let method = |method: &String| {
            Method::from_bytes(method.as_bytes()).map_err(|_| ConditionError::Method(method.clone()))
        };
        let header = |header: &config::HeaderMatch| {
            let name = HeaderName::from_bytes(header.name.as_bytes())
                .map_err(|_| ConditionError::Name(header.name.clone()))?;
            Ok::<_, ConditionError>((name, Value::new(&header.value)?))
        };
        let query = |parameter: &config::QueryMatch| {
            Ok::<_, ConditionError>((parameter.name.as_str().into(), Value::new(&parameter.value)?))
        };
        let conditions = Self {
            methods: alternative.methods.iter().map(method).collect::<Result<_, _>>()?,
            headers: alternative.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: alternative.query.iter().map(query).collect::<Result<_, _>>()?,
        };
        let states_none =
            conditions.methods.is_empty() && conditions.headers.is_empty() && conditions.query.is_empty();
        Ok((!states_none).then_some(conditions))
    }

    /// Whether all of them hold.
    pub(super) fn hold(&self, asked: &Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(asked.method))
            && self.headers.iter().all(|(name, value)| value.is_of_header(asked.headers, name))
            && self.query.iter().all(|(name, value)| value.is_of_parameter(asked.query, name))
    }
}

impl Value {
    fn new(value: &config::ValueMatch) -> Result<Self, PatternError> {
        Ok(match value {
            config::ValueMatch::Exact(exact) => Self::Exact(exact.as_str().into()),
            config::ValueMatch::Regex(pattern) => Self::Regex(whole_match(pattern)?),
            config::ValueMatch::Present(present) => Self::Present(*present),
        })
    }

    fn is_of_header(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        match self {
            Self::Present(present) => headers.contains_key(name) == *present,
            Self::Exact(exact) => is_joined(headers, name, exact.as_bytes()),
            Self::Regex(regex) => joined(headers, name).is_some_and(|value| regex.is_match(&value)),
        }
    }

    fn is_of_parameter(&self, query: Option<&str>, name: &str) -> bool {
        let mut parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let value = parameters.find(|(other, _)| other == name).map(|(_, value)| value);
        match (self, value) {
            (Self::Present(present), value) => value.is_some() == *present,
            (_, None) => false,
            (Self::Exact(exact), Some(value)) => value == **exact,
            (Self::Regex(regex), Some(value)) => regex.is_match(value.as_bytes()),
        }
    }
}

/// What stands between the fields of one name when they are taken together: a comma (RFC 9110 5.3), and between
/// those of a cookie that HTTP/2 split what stood there before (RFC 9113 8.2.3).
fn separator(name: &HeaderName) -> &'static [u8] {
    if *name == COOKIE { b"; " } else { b"," }
}

/// Whether the fields of this name, taken together, are exactly `want`.
fn is_joined(headers: &HeaderMap, name: &HeaderName, want: &[u8]) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(mut rest) = values.next().and_then(|first| want.strip_prefix(first.as_bytes())) else {
        return false;
    };
    for value in values {
        let Some(after) =
            rest.strip_prefix(separator(name)).and_then(|rest| rest.strip_prefix(value.as_bytes()))
        else {
            return false;
        };
        rest = after;
    }
    rest.is_empty()
}

/// The fields of this name, taken together; copied only when there are several.
fn joined<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?.as_bytes();
    Some(match values.next() {
        None => first.into(),
        Some(second) => {
            let mut all = first.to_vec();
            for value in std::iter::once(second).chain(values) {
                all.extend_from_slice(separator(name));
                all.extend_from_slice(value.as_bytes());
            }
            all.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use http::header::HeaderValue;

    use super::*;
    use crate::config::{HeaderMatch, QueryMatch, ValueMatch};

    fn exact(value: &str) -> ValueMatch {
        ValueMatch::Exact(value.into())
    }

    fn regex(value: &str) -> ValueMatch {
        ValueMatch::Regex(value.into())
    }

    fn hold(alternative: RouteMatch, method: &str, query: Option<&str>, fields: &[(&str, &str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let asked = Asked { method: &method, path: "/", query, headers: &headers };
        Conditions::new(&alternative).unwrap().unwrap().hold(&asked)
    }

    #[test]
    fn one_of_the_methods_must_be_the_requests() {
        let some = || RouteMatch { methods: vec!["GET".into(), "PURGE".into()], ..RouteMatch::default() };
        for (method, want) in [("GET", true), ("PURGE", true), ("POST", false), ("get", false)] {
            assert_eq!(hold(some(), method, None, &[]), want, "{method}");
        }
    }

    #[test]
    fn fields_of_one_name_are_taken_together() {
        const TWO: &[(&str, &str)] = &[("x-a", "1"), ("x-b", "9"), ("X-A", "2")];
        const CRUMBS: &[(&str, &str)] = &[("cookie", "a=1"), ("cookie", "canary=yes")];
        for (name, value, fields, want) in [
            ("x-a", exact("1"), &[("x-a", "1")][..], true),
            ("X-A", exact("1"), &[("x-a", "1")], true),
            ("x-a", exact("1"), TWO, false),
            ("x-a", exact("1,2"), TWO, true),
            ("x-a", exact("1,"), TWO, false),
            ("x-a", exact("1,2,"), TWO, false),
            ("x-a", exact("1,2"), &[("x-a", "1,2")], true),
            ("x-a", exact(""), &[("x-a", "")], true),
            ("x-a", exact(""), &[], false),
            ("x-a", regex("[0-9]"), &[("x-a", "1")], true),
            ("x-a", regex("[0-9]"), &[("x-a", "12")], false),
            ("x-a", regex("[0-9]"), TWO, false),
            ("x-a", regex("1,2"), TWO, true),
            ("x-a", regex(".*"), &[], false),
            ("x-a", ValueMatch::Present(true), TWO, true),
            ("x-a", ValueMatch::Present(true), &[("x-b", "1")], false),
            ("x-a", ValueMatch::Present(false), &[("x-b", "1")], true),
            ("x-a", ValueMatch::Present(false), TWO, false),
            ("cookie", regex("(.*; )?canary=yes(;.*)?"), CRUMBS, true),
            ("cookie", exact("a=1; canary=yes"), CRUMBS, true),
        ] {
            let one = HeaderMatch { name: name.into(), value: value.clone() };
            let alternative = RouteMatch { headers: vec![one], ..RouteMatch::default() };
            assert_eq!(hold(alternative, "GET", None, fields), want, "{name} {value:?} {fields:?}");
        }
    }

    #[test]
    fn the_first_parameter_of_a_name_counts_and_is_read_decoded() {
        for (value, query, want) in [
            (exact("1"), Some("v=1"), true),
            (exact("1"), Some("a=b&v=1&v=2"), true),
            (exact("2"), Some("v=1&v=2"), false),
            (exact("1"), Some("vv=1"), false),
            (exact("a b/c"), Some("v=a+b%2Fc"), true),
            (exact(""), Some("v"), true),
            (exact(""), Some("v="), true),
            (exact(""), None, false),
            (regex("[a-c]+"), Some("v=abc"), true),
            (regex("[a-c]+"), Some("v=abcd"), false),
            (regex(".*"), Some("w=1"), false),
            (ValueMatch::Present(true), Some("v"), true),
            (ValueMatch::Present(true), None, false),
            (ValueMatch::Present(false), None, true),
            (ValueMatch::Present(false), Some("v=1"), false),
        ] {
            let one = QueryMatch { name: "v".into(), value: value.clone() };
            let alternative = RouteMatch { query: vec![one], ..RouteMatch::default() };
            assert_eq!(hold(alternative, "GET", query, &[]), want, "{value:?} {query:?}");
        }
    }

    #[test]
    fn all_that_is_stated_must_hold() {
        let all = || RouteMatch {
            methods: vec!["GET".into()],
            headers: vec![HeaderMatch { name: "x-a".into(), value: exact("1") }],
            query: vec![QueryMatch { name: "v".into(), value: exact("2") }],
            ..RouteMatch::default()
        };
        assert!(hold(all(), "GET", Some("v=2"), &[("x-a", "1")]));
        assert!(!hold(all(), "PUT", Some("v=2"), &[("x-a", "1")]));
        assert!(!hold(all(), "GET", Some("v=3"), &[("x-a", "1")]));
        assert!(!hold(all(), "GET", Some("v=2"), &[("x-a", "2")]));
        assert!(Conditions::new(&RouteMatch::default()).unwrap().is_none());
    }

    #[test]
    fn what_can_not_be_compiled_is_an_error() {
        let header = |name: &str, value| RouteMatch {
            headers: vec![HeaderMatch { name: name.into(), value }],
            ..RouteMatch::default()
        };
        assert!(matches!(Conditions::new(&header("a b", exact("1"))), Err(ConditionError::Name(_))));
        assert!(matches!(Conditions::new(&header("a", regex("("))), Err(ConditionError::Pattern(_))));
        let method = RouteMatch { methods: vec!["a b".into()], ..RouteMatch::default() };
        assert!(matches!(Conditions::new(&method), Err(ConditionError::Method(_))));
    }
}
