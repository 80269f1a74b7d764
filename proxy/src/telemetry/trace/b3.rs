//! B3, the headers of Zipkin (<https://github.com/openzipkin/b3-propagation>): one field or several. A trace's id has 64
//! or 128 bits; of 64 it keeps its 16 digits.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::context::{Caller, Parent, SpanContext};
use super::hex::{push_hex, read_hex};

const SINGLE: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// What the names of the several fields begin with.
const PREFIX: &str = "x-b3-";

/// Whether to record, and whether by all means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Decision {
    is_sampled: bool,
    is_debug: bool,
}

impl Decision {
    fn of(text: &[u8]) -> Option<Self> {
        match text {
            b"0" => Some(Self { is_sampled: false, is_debug: false }),
            b"1" => Some(Self { is_sampled: true, is_debug: false }),
            b"d" => Some(Self { is_sampled: true, is_debug: true }),
            _ => None,
        }
    }
}

fn caller(trace_id: u128, span_id: u64, decision: Option<Decision>, is_canonical: bool) -> Caller {
    Caller::Parent(Parent {
        trace_id,
        span_id,
        is_sampled: decision.map(|decision| decision.is_sampled),
        is_random: false,
        is_debug: decision.is_some_and(|decision| decision.is_debug),
        is_canonical,
    })
}

/// The one value of a field, without white space around it. `Err` for several: nobody knows which to believe.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a [u8]>, Unreadable> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(value.as_bytes().trim_ascii())),
        (Some(_), Some(_)) => Err(Unreadable),
    }
}

struct Unreadable;

fn trace_id(text: &[u8]) -> Option<u128> {
    read_hex(text).filter(|id| *id != 0 && matches!(text.len(), 16 | 32))
}

fn span_id(text: &[u8]) -> Option<u64> {
    read_hex(text).filter(|id| *id != 0 && text.len() == 16).map(|id| id as u64)
}

/// What the field `b3` says: `TRACE-SPAN[-SAMPLED[-PARENT]]`, or `SAMPLED` alone.
pub(super) fn read_single(headers: &HeaderMap) -> Caller {
    only(headers, &SINGLE).ok().flatten().and_then(single).unwrap_or(Caller::Unknown)
}

fn single(text: &[u8]) -> Option<Caller> {
    if let Some(Decision { is_sampled, is_debug }) = Decision::of(text) {
        return Some(Caller::Decided { is_sampled, is_debug });
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let (trace, span) = (trace_id(parts.next()?)?, span_id(parts.next()?)?);
    let decision = match parts.next() {
        None => None,
        Some(text) => Some(Decision::of(text)?),
    };
    if let Some(parent) = parts.next() {
        span_id(parent)?;
    }
    parts.next().is_none().then(|| caller(trace, span, decision, true))
}

/// What the fields `X-B3-*` say.
pub(super) fn read_multi(headers: &HeaderMap) -> Caller {
    // Most requests have none: this costs less than to look each of them up.
    if !headers.keys().any(|name| name.as_str().starts_with(PREFIX)) {
        return Caller::Unknown;
    }
    multi(headers).unwrap_or(Caller::Unknown)
}

fn multi(headers: &HeaderMap) -> Option<Caller> {
    let (flags, sampled) = (only(headers, &FLAGS).ok()?, only(headers, &SAMPLED).ok()?);
    let decision = match (flags, sampled) {
        (Some(b"1"), _) => Decision::of(b"d"),
        (_, None) => None,
        // Older libraries write it so.
        (_, Some(b"true")) => Decision::of(b"1"),
        (_, Some(b"false")) => Decision::of(b"0"),
        (_, Some(text)) => Some(Decision::of(text).filter(|decision| !decision.is_debug)?),
    };
    match (only(headers, &TRACE_ID).ok()?, only(headers, &SPAN_ID).ok()?, decision) {
        (Some(trace), Some(span), decision) => {
            let is_canonical = flags.is_none() && matches!(sampled, Some(b"0" | b"1"));
            Some(caller(trace_id(trace)?, span_id(span)?, decision, is_canonical))
        }
        (None, None, Some(Decision { is_sampled, is_debug })) => {
            Some(Caller::Decided { is_sampled, is_debug })
        }
        _ => None,
    }
}

fn digits_of(trace_id: u128) -> usize {
    if trace_id >> 64 == 0 { 16 } else { 32 }
}

fn hex(number: u128, digits: usize) -> Option<HeaderValue> {
    let mut text = Vec::with_capacity(digits);
    push_hex(&mut text, number, digits);
    HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
}

/// Makes `context`, whose own parent is `parent`, the parent of who gets the request, by one field.
pub(super) fn write_single(headers: &mut HeaderMap, context: &SpanContext, parent: Option<u64>) {
    let mut text = Vec::with_capacity(68);
    push_hex(&mut text, context.trace_id, digits_of(context.trace_id));
    text.push(b'-');
    push_hex(&mut text, context.span_id.into(), 16);
    text.push(b'-');
    text.push(match (context.is_debug, context.is_sampled) {
        (true, _) => b'd',
        (false, true) => b'1',
        (false, false) => b'0',
    });
    if let Some(parent) = parent {
        text.push(b'-');
        push_hex(&mut text, parent.into(), 16);
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
        headers.insert(SINGLE, value);
    }
}

/// The same by several fields.
pub(super) fn write_multi(headers: &mut HeaderMap, context: &SpanContext, parent: Option<u64>) {
    let fixed = HeaderValue::from_static;
    let debug = context.is_debug.then(|| fixed("1"));
    // Debug implies it.
    let sampled = (!context.is_debug).then(|| fixed(if context.is_sampled { "1" } else { "0" }));
    for (name, value) in [
        (TRACE_ID, hex(context.trace_id, digits_of(context.trace_id))),
        (SPAN_ID, hex(context.span_id.into(), 16)),
        (PARENT_SPAN_ID, parent.and_then(|parent| hex(parent.into(), 16))),
        (SAMPLED, sampled),
        (FLAGS, debug),
    ] {
        match value {
            Some(value) => _ = headers.insert(name, value),
            None => _ = headers.remove(name),
        }
    }
}

/// Takes the field `b3` out.
pub(super) fn remove_single(headers: &mut HeaderMap) {
    headers.remove(SINGLE);
}

/// Takes the fields `X-B3-*` out.
pub(super) fn remove_multi(headers: &mut HeaderMap) {
    for name in [TRACE_ID, SPAN_ID, PARENT_SPAN_ID, SAMPLED, FLAGS] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: u128 = 0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7;
    const SHORT: u128 = 0x64fe_8b2a_57d3_eff7;
    const SPAN: u64 = 0xe457_b5a2_e4d8_6bd1;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        fields.iter().map(field).for_each(|(name, value)| _ = headers.append(name, value));
        headers
    }

    fn parent(trace_id: u128, said: Option<&[u8]>) -> Caller {
        caller(trace_id, SPAN, said.and_then(Decision::of), true)
    }

    fn decided(is_sampled: bool, is_debug: bool) -> Caller {
        Caller::Decided { is_sampled, is_debug }
    }

    #[test]
    fn one_field_says_trace_span_decision_and_parent_or_the_decision_alone() {
        for (value, said) in [
            ("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1", parent(LONG, None)),
            ("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1", parent(LONG, Some(b"1"))),
            ("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-0", parent(LONG, Some(b"0"))),
            ("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-d", parent(LONG, Some(b"d"))),
            (
                "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90",
                parent(LONG, Some(b"1")),
            ),
            ("64fe8b2a57d3eff7-e457b5a2e4d86bd1-1", parent(SHORT, Some(b"1"))),
            (" 64fe8b2a57d3eff7-e457b5a2e4d86bd1-0 ", parent(SHORT, Some(b"0"))),
            ("0", decided(false, false)),
            ("1", decided(true, false)),
            ("d", decided(true, true)),
        ] {
            assert_eq!(read_single(&map(&[("b3", value)])), said, "{value}");
        }
    }

    #[test]
    fn one_field_that_breaks_a_rule_says_nothing() {
        for value in [
            "",
            "2",
            "-",
            "true",
            "64fe8b2a57d3eff7",
            "64fe8b2a57d3eff7-",
            "0000000000000000-e457b5a2e4d86bd1-1",
            "64fe8b2a57d3eff7-0000000000000000-1",
            "64FE8B2A57D3EFF7-e457b5a2e4d86bd1-1",
            "64fe8b2a57d3eff-e457b5a2e4d86bd1-1",
            "064fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
            "64fe8b2a57d3eff7-e457b5a2e4d86bd-1",
            "64fe8b2a57d3eff7-e457b5a2e4d86bd1-",
            "64fe8b2a57d3eff7-e457b5a2e4d86bd1-2",
            "64fe8b2a57d3eff7-e457b5a2e4d86bd1-1-x",
            "64fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90-1",
        ] {
            assert_eq!(read_single(&map(&[("b3", value)])), Caller::Unknown, "{value}");
        }
        let twice = [("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-1"); 2];
        assert_eq!(read_single(&map(&twice)), Caller::Unknown, "two of them");
        assert_eq!(read_single(&map(&[])), Caller::Unknown);
    }

    #[test]
    fn several_fields_say_the_same() {
        let ids = [("X-B3-TraceId", "64fe8b2a57d3eff7"), ("X-B3-SpanId", "e457b5a2e4d86bd1")];
        for (fields, said) in [
            (vec![], caller(SHORT, SPAN, None, false)),
            (vec![("X-B3-Sampled", "1")], parent(SHORT, Some(b"1"))),
            (vec![("X-B3-Sampled", "0")], parent(SHORT, Some(b"0"))),
            (vec![("X-B3-Sampled", "true")], caller(SHORT, SPAN, Decision::of(b"1"), false)),
            (vec![("X-B3-Sampled", "false")], caller(SHORT, SPAN, Decision::of(b"0"), false)),
            (vec![("X-B3-Flags", "1")], caller(SHORT, SPAN, Decision::of(b"d"), false)),
            (
                vec![("X-B3-Sampled", "1"), ("X-B3-ParentSpanId", "05e3ac9a4f6e3b90")],
                parent(SHORT, Some(b"1")),
            ),
        ] {
            let all = [ids.as_slice(), &fields].concat();
            assert_eq!(read_multi(&map(&all)), said, "{fields:?}");
        }
        for (fields, said) in [
            (vec![("X-B3-Sampled", "0")], decided(false, false)),
            (vec![("X-B3-Sampled", "1")], decided(true, false)),
            (vec![("X-B3-Flags", "1")], decided(true, true)),
            (vec![], Caller::Unknown),
            (vec![("X-B3-Sampled", "d")], Caller::Unknown),
            (vec![ids[0], ("X-B3-Sampled", "1")], Caller::Unknown),
            (vec![ids[1], ("X-B3-Sampled", "1")], Caller::Unknown),
            (vec![ids[0], ids[1], ids[1], ("X-B3-Sampled", "1")], Caller::Unknown),
            (vec![ids[0], ids[1], ("X-B3-Sampled", "yes")], Caller::Unknown),
            (vec![("X-B3-TraceId", "0"), ids[1]], Caller::Unknown),
        ] {
            assert_eq!(read_multi(&map(&fields)), said, "{fields:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_leaves_nothing_of_what_was_there() {
        for (trace_id, is_sampled, is_debug, single, said) in [
            (LONG, true, false, "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1", Some("1")),
            (SHORT, false, false, "64fe8b2a57d3eff7-e457b5a2e4d86bd1-0", Some("0")),
            (SHORT, true, true, "64fe8b2a57d3eff7-e457b5a2e4d86bd1-d", None),
        ] {
            let mut headers = map(&[
                ("b3", "0"),
                ("b3", "1"),
                ("x-b3-traceid", "x"),
                ("x-b3-parentspanid", "x"),
                ("x-b3-flags", "1"),
                ("x-b3-sampled", "1"),
            ]);
            let context = SpanContext { trace_id, span_id: SPAN, is_sampled, is_random: true, is_debug };
            write_single(&mut headers, &context, None);
            write_multi(&mut headers, &context, None);
            assert_eq!(headers.get_all(SINGLE).iter().collect::<Vec<_>>(), [single]);
            let value = |name| headers.get(name).map(|value| value.to_str().unwrap());
            assert_eq!(value(SAMPLED), said);
            assert_eq!(value(FLAGS), is_debug.then_some("1"));
            assert_eq!(value(PARENT_SPAN_ID), None);
            for read in [read_single(&headers), read_multi(&headers)] {
                let parent = read.parent().copied().unwrap();
                assert_eq!((parent.trace_id, parent.span_id), (trace_id, SPAN));
                assert_eq!((parent.is_sampled, parent.is_debug), (Some(is_sampled), is_debug));
            }
            write_single(&mut headers, &context, Some(7));
            write_multi(&mut headers, &context, Some(7));
            assert_eq!(headers[SINGLE], format!("{single}-0000000000000007"));
            assert_eq!(headers[PARENT_SPAN_ID], "0000000000000007");
            remove_single(&mut headers);
            remove_multi(&mut headers);
            assert!(headers.is_empty(), "{headers:?}");
        }
    }
}
