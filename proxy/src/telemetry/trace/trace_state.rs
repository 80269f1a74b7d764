//! The field `tracestate`: what other tracing systems send along with `traceparent`. It is theirs, and passed on; what
//! breaks the rules is dropped, and takes nothing else with it.

use http::header::{HeaderMap, HeaderName, HeaderValue};

pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Most members of a list; one with more is not valid.
const MAX_MEMBERS: usize = 32;
/// Most bytes of a key, and of a value.
const MAX_PART: usize = 256;
/// What everybody passes on of a list; of a longer one whole members are left away.
const MAX_LENGTH: usize = 512;
/// Members longer than this are left away first.
const LONG_MEMBER: usize = 128;

/// What becomes of a request's `tracestate`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum TraceState {
    /// It has none.
    Absent,
    /// It stays.
    AsItIs,
    /// This takes its place: several fields made one, or a shorter list.
    Rewritten(String),
    /// It is not valid, or empty.
    Dropped,
}

impl TraceState {
    /// Looks at the fields of a request whose `traceparent` is valid.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        if !headers.contains_key(&TRACESTATE) {
            return Self::Absent;
        }
        let mut members: [&[u8]; MAX_MEMBERS] = [&[]; MAX_MEMBERS];
        let mut keys = members;
        let (mut kept, mut count, mut fields, mut length) = (0, 0, 0, 0);
        for value in headers.get_all(&TRACESTATE) {
            fields += 1;
            length += value.len();
            let all = value.as_bytes().split(|byte| *byte == b',');
            for member in all.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty()) {
                let Some(key) = key_of(member).filter(|_| count < MAX_MEMBERS) else {
                    return Self::Dropped;
                };
                count += 1;
                // Of several the first is the latest.
                if !keys[..kept].contains(&key) {
                    (members[kept], keys[kept]) = (member, key);
                    kept += 1;
                }
            }
        }
        match (fields, kept) {
            (_, 0) => Self::Dropped,
            (1, _) if kept == count && length <= MAX_LENGTH => Self::AsItIs,
            _ => Self::shortened(members[..kept].to_vec()),
        }
    }

    fn shortened(mut members: Vec<&[u8]>) -> Self {
        while length_of(&members) > MAX_LENGTH {
            let long = members.iter().rposition(|member| member.len() > LONG_MEMBER);
            members.remove(long.unwrap_or(members.len() - 1));
        }
        if members.is_empty() {
            return Self::Dropped;
        }
        // Members are ASCII: `key_of` has seen to it.
        Self::Rewritten(String::from_utf8_lossy(&members.join(&b',')).into_owned())
    }

    /// Has the request carry it.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        match self {
            Self::Absent | Self::AsItIs => {}
            Self::Rewritten(text) => match HeaderValue::from_str(text) {
                Ok(value) => _ = headers.insert(TRACESTATE, value),
                Err(_) => _ = headers.remove(TRACESTATE),
            },
            Self::Dropped => _ = headers.remove(TRACESTATE),
        }
    }
}

fn length_of(members: &[&[u8]]) -> usize {
    let commas = members.len().saturating_sub(1);
    members.iter().map(|member| member.len()).sum::<usize>() + commas
}

/// The key of a member, if key and value are what the grammar of level 2 allows; it allows all that level 1's does.
fn key_of(member: &[u8]) -> Option<&[u8]> {
    let at = memchr::memchr(b'=', member)?;
    let (key, value) = (&member[..at], &member[at + 1..]);
    let is_key = (1..=MAX_PART).contains(&key.len())
        && matches!(key[0], b'a'..=b'z' | b'0'..=b'9')
        && key
            .iter()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/' | b'@'));
    // That it does not end with a space is the trimming's doing.
    let is_value = (1..=MAX_PART).contains(&value.len())
        && value.iter().all(|byte| matches!(byte, 0x20..=0x7e) && !matches!(byte, b',' | b'='));
    (is_key && is_value).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> TraceState {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACESTATE, HeaderValue::from_str(value).unwrap());
        }
        TraceState::of(&headers)
    }

    fn rewritten(text: &str) -> TraceState {
        TraceState::Rewritten(text.into())
    }

    #[test]
    fn a_valid_list_stays_as_it_is() {
        let longest = format!("{}={}", "k".repeat(250), "v".repeat(256));
        let value: String = (0x20..=0x7e_u8).map(char::from).filter(|c| !matches!(c, ',' | '=')).collect();
        let every = format!("abcdefghijklmnopqrstuvwxyz0123456789_-*/@a-z0-9_-*/={value}");
        let many: Vec<_> = (0..32).map(|number| format!("bar{number:02}={number}")).collect();
        let key = "z".repeat(256) + "=1";
        for list in [
            "foo=1",
            "foo=1,bar=2",
            "foo=1 \t , \t bar=2, \t baz=3",
            "foo=1,",
            ",foo=1",
            "foo=1,,,bar=2",
            "foo=1, ,bar=2",
            "1a=1",
            "tenant@system=1",
            "foo@=1,bar=2",
            "foo@@bar=1,bar=2",
            "foo@bar@baz=1,bar=2",
            "foo=  leading spaces",
            &every,
            &longest,
            &many.join(","),
            &key,
        ] {
            assert_eq!(of(&[list]), TraceState::AsItIs, "{list}");
        }
        assert_eq!(of(&[]), TraceState::Absent);
    }

    #[test]
    fn several_fields_are_one_list_in_their_order() {
        for (fields, list) in [
            (["foo=1,bar=2", "rojo=1,congo=2", "baz=3"], "foo=1,bar=2,rojo=1,congo=2,baz=3"),
            (["foo=1", "", "bar=2"], "foo=1,bar=2"),
            ([" foo=1\t", "bar=2 ", "\t"], "foo=1,bar=2"),
            (["", "", "foo=1"], "foo=1"),
        ] {
            assert_eq!(of(&fields), rewritten(list), "{fields:?}");
        }
        let thirty_two: Vec<_> = (0..32).map(|number| format!("bar{number:02}={number}")).collect();
        let halves = [thirty_two[..16].join(","), thirty_two[16..].join(",")];
        assert_eq!(of(&[&halves[0], &halves[1]]), rewritten(&thirty_two.join(",")));
    }

    #[test]
    fn of_members_with_one_key_the_first_stays() {
        assert_eq!(of(&["foo=1,foo=1"]), rewritten("foo=1"));
        assert_eq!(of(&["foo=1,bar=2,foo=2"]), rewritten("foo=1,bar=2"));
        assert_eq!(of(&["foo=1", "foo=2"]), rewritten("foo=1"));
        assert_eq!(of(&[&["foo=1"; 33].join(",")]), TraceState::Dropped, "33 are too many all the same");
    }

    #[test]
    fn a_list_that_breaks_a_rule_is_dropped_whole() {
        let many: Vec<_> = (0..33).map(|number| format!("bar{number:02}={number}")).collect();
        let long_key = format!("foo=1,{}=1", "z".repeat(257));
        let long_value = format!("foo=1,bar={}", "z".repeat(257));
        for list in [
            "",
            " ",
            ",,",
            "foo",
            "=",
            "=1",
            "foo=",
            "foo=,bar=3",
            "foo=bar=baz",
            "foo =1",
            "FOO=1",
            "Foo=1,bar=2",
            "foo.bar=1",
            "@foo=1,bar=2",
            "_foo=1",
            "-foo=1",
            "foo=1,bar",
            "foo=1\tx",
            "foo=1;bar=2,baz",
            &many.join(","),
            &long_key,
            &long_value,
        ] {
            assert_eq!(of(&[list]), TraceState::Dropped, "{list}");
        }
        assert_eq!(of(&["foo=1", "BAR=2"]), TraceState::Dropped, "all fields are one list");
        let mut headers = HeaderMap::new();
        headers.insert(TRACESTATE, HeaderValue::from_bytes(b"foo=caf\xe9").unwrap());
        assert_eq!(TraceState::of(&headers), TraceState::Dropped);
    }

    #[test]
    fn of_a_list_that_is_too_long_long_members_go_first_and_then_the_last() {
        let member = |key: &str, length: usize| format!("{key}={}", "v".repeat(length - key.len() - 1));
        let (a, b, c, d) = (member("a", 200), member("b", 100), member("c", 200), member("d", 100));
        let all = [a.as_str(), &b, &c, &d].join(",");
        assert_eq!(of(&[&all]), rewritten(&[a.as_str(), &b, &d].join(",")), "c is the last long one");
        let short: Vec<_> = (0..6).map(|number| member(&format!("k{number}"), 100)).collect();
        assert_eq!(of(&[&short.join(",")]), rewritten(&short[..5].join(",")));
        let exactly = [member("a", 128), member("b", 128), member("c", 128), member("d", 125)].join(",");
        assert_eq!(exactly.len(), 512);
        assert_eq!(of(&[&exactly]), TraceState::AsItIs);
        let giant = format!("{}={}", "k".repeat(256), "v".repeat(256));
        assert_eq!(of(&[&giant]), TraceState::Dropped);
        assert_eq!(of(&[&format!("{giant},foo=1")]), rewritten("foo=1"));
    }

    #[test]
    fn one_field_is_written_in_the_place_of_all() {
        let mut headers = HeaderMap::new();
        headers.append(TRACESTATE, HeaderValue::from_static("foo=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("bar=2"));
        TraceState::AsItIs.write(&mut headers);
        assert_eq!(headers.get_all(TRACESTATE).iter().count(), 2);
        TraceState::of(&headers).write(&mut headers);
        assert_eq!(headers.get_all(TRACESTATE).iter().collect::<Vec<_>>(), ["foo=1,bar=2"]);
        TraceState::Dropped.write(&mut headers);
        assert!(headers.is_empty());
    }
}
