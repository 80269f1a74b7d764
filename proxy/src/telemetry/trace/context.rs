//! Which span a request comes from, and the field `traceparent` that says so: W3C Trace Context, levels 1 and 2
//! (<https://www.w3.org/TR/trace-context/>, <https://www.w3.org/TR/trace-context-2/>).

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::hex::{push_hex, read_hex};

/// The parent's trace, its id and its flags.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Length of version 00, and the least length of later ones.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;
/// The trace id's last 7 bytes are random (level 2).
const RANDOM: u8 = 2;

/// A span, as a request names it to whoever it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// The trace; never 0.
    pub trace_id: u128,
    /// The span within it; never 0.
    pub span_id: u64,
    /// Whether this trace is recorded.
    pub is_sampled: bool,
    /// Whether the last 7 bytes of the trace's id are random.
    pub is_random: bool,
    /// B3's debug flag: recorded by all means. W3C has no word for it.
    pub is_debug: bool,
}

/// The span that a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    /// Whether it is recorded; `None` leaves the decision to us.
    pub is_sampled: Option<bool>,
    /// Whether the last 7 bytes of the trace's id are random.
    pub is_random: bool,
    /// B3's debug flag.
    pub is_debug: bool,
    /// Whether its fields are what we would write for it, and so can stay.
    pub is_canonical: bool,
}

/// What a request says of where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nothing, or nothing valid.
    Unknown,
    /// No span, but whether to record; only B3 can say so.
    Decided {
        /// Whether to record.
        is_sampled: bool,
        /// By all means.
        is_debug: bool,
    },
    /// A span.
    Parent(Parent),
}

impl Caller {
    /// The span.
    pub fn parent(&self) -> Option<&Parent> {
        match self {
            Self::Parent(parent) => Some(parent),
            Self::Unknown | Self::Decided { .. } => None,
        }
    }

    /// Whether to record, as far as it says.
    pub fn is_sampled(&self) -> Option<bool> {
        match self {
            Self::Unknown => None,
            Self::Decided { is_sampled, .. } => Some(*is_sampled),
            Self::Parent(parent) => parent.is_sampled,
        }
    }

    /// Whether to record by all means.
    pub fn is_debug(&self) -> bool {
        match self {
            Self::Unknown => false,
            Self::Decided { is_debug, .. } => *is_debug,
            Self::Parent(parent) => parent.is_debug,
        }
    }
}

/// The parent by `traceparent`. Two fields are none: nobody knows which to believe.
pub(super) fn read(headers: &HeaderMap) -> Option<Parent> {
    let mut values = headers.get_all(&TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => parse(value.as_bytes()),
        _ => None,
    }
}

fn parse(value: &[u8]) -> Option<Parent> {
    // HTTP/1 has no white space here any more, HTTP/2 may.
    let trimmed = value.trim_ascii();
    let (fields, further) = trimmed.split_at_checked(LENGTH)?;
    let [b'-', b'-', b'-'] = [fields[2], fields[35], fields[52]] else { return None };
    let version = read_hex(&fields[..2])?;
    // Later versions may say more, behind another dash; 00 says no more, and ff is none.
    let is_whole = match version {
        0 => further.is_empty(),
        0xff => false,
        _ => further.is_empty() || further[0] == b'-',
    };
    let trace_id = read_hex(&fields[3..35]).filter(|id| *id != 0)?;
    let span_id = read_hex(&fields[36..52]).filter(|id| *id != 0)?;
    let flags = read_hex(&fields[53..])? as u8;
    is_whole.then_some(Parent {
        trace_id,
        span_id: span_id as u64,
        is_sampled: Some(flags & SAMPLED != 0),
        is_random: flags & RANDOM != 0,
        is_debug: false,
        // What no version that we know defines is not passed on.
        is_canonical: version == 0 && flags & !(SAMPLED | RANDOM) == 0 && trimmed.len() == value.len(),
    })
}

/// Makes `context` the parent of who gets the request.
pub(super) fn write(headers: &mut HeaderMap, context: &SpanContext) {
    let mut text = Vec::with_capacity(LENGTH);
    text.extend_from_slice(b"00-");
    push_hex(&mut text, context.trace_id, 32);
    text.push(b'-');
    push_hex(&mut text, context.span_id.into(), 16);
    text.push(b'-');
    let flags = u8::from(context.is_sampled) * SAMPLED + u8::from(context.is_random) * RANDOM;
    push_hex(&mut text, flags.into(), 2);
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(text)) {
        headers.insert(TRACEPARENT, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> Option<Parent> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_str(value).unwrap());
        }
        read(&headers)
    }

    const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
    const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

    fn valid(flags: u8, is_canonical: bool) -> Option<Parent> {
        Some(Parent {
            trace_id: TRACE,
            span_id: SPAN,
            is_sampled: Some(flags & 1 != 0),
            is_random: flags & 2 != 0,
            is_debug: false,
            is_canonical,
        })
    }

    #[test]
    fn a_valid_traceparent_is_read_and_unknown_flags_are_not_passed_on() {
        for (flags, parent) in [
            ("00", valid(0, true)),
            ("01", valid(1, true)),
            ("02", valid(2, true)),
            ("03", valid(3, true)),
            ("04", valid(0, false)),
            ("05", valid(1, false)),
            ("ff", valid(3, false)),
        ] {
            let value = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            assert_eq!(of(&[&value]), parent, "{value}");
        }
        for value in [
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\t",
            "\t 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 \t",
        ] {
            assert_eq!(of(&[value]), valid(1, false), "white space around it is none of it: {value:?}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for value in [
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
        ] {
            assert_eq!(of(&[value]), valid(1, false), "{value}");
        }
        for value in [
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what-the-future-will-be-like",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(of(&[value]), None, "{value}");
        }
    }

    #[test]
    fn whatever_breaks_a_rule_is_no_parent() {
        for value in [
            "",
            "-",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            // More than version 00 has.
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
            // The version.
            ".0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0.-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "0000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "CC-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            // The trace.
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-.bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473.-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-00f067aa0ba902b7-01",
            // The span.
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-.0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b.-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b70-01",
            // The flags.
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-.1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0A",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-001",
            // What holds the fields apart.
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7_01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01,00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(of(&[value]), None, "{value}");
        }
        let twice = ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"; 2];
        assert_eq!(of(&twice), None, "two of them, be they equal");
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn what_is_written_takes_the_place_of_all_that_was_there_and_is_read_again() {
        for (is_sampled, is_random, flags) in
            [(false, false, "00"), (true, false, "01"), (false, true, "02"), (true, true, "03")]
        {
            let mut headers = HeaderMap::new();
            headers.append(TRACEPARENT, HeaderValue::from_static("x"));
            headers.append(TRACEPARENT, HeaderValue::from_static("y"));
            let context =
                SpanContext { trace_id: TRACE, span_id: SPAN, is_sampled, is_random, is_debug: false };
            write(&mut headers, &context);
            let values: Vec<_> = headers.get_all(TRACEPARENT).iter().collect();
            assert_eq!(values, [&format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}")]);
            let read = read(&headers).unwrap();
            assert_eq!((read.trace_id, read.span_id, read.is_canonical), (TRACE, SPAN, true));
        }
    }
}
