//! Which headers carry a trace: those that are read, and those that are written.

use http::HeaderMap;

use super::b3;
use super::context::{self, Caller, SpanContext};
use super::trace_state::{TRACESTATE, TraceState};
use crate::config::TraceHeaders;

/// The headers that are read, and those that are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Propagation {
    /// The first that is valid counts.
    pub read: Vec<TraceHeaders>,
    pub write: Vec<TraceHeaders>,
}

impl Propagation {
    /// What a request says of where it comes from, and by which headers.
    pub fn read(&self, headers: &HeaderMap) -> (Caller, Option<TraceHeaders>) {
        for by in &self.read {
            let caller = match by {
                TraceHeaders::W3c => context::read(headers).map_or(Caller::Unknown, Caller::Parent),
                TraceHeaders::B3 => b3::read_single(headers),
                TraceHeaders::B3multi => b3::read_multi(headers),
            };
            if caller != Caller::Unknown {
                return (caller, Some(*by));
            }
        }
        (Caller::Unknown, None)
    }

    /// Has a request carry `context`, whose own parent is `parent`, in all headers that are written but `but`.
    pub fn write(
        &self,
        headers: &mut HeaderMap,
        context: &SpanContext,
        parent: Option<u64>,
        but: Option<TraceHeaders>,
    ) {
        for by in self.write.iter().filter(|by| but != Some(**by)) {
            match by {
                TraceHeaders::W3c => context::write(headers, context),
                TraceHeaders::B3 => b3::write_single(headers, context, parent),
                TraceHeaders::B3multi => b3::write_multi(headers, context, parent),
            }
        }
    }

    /// What the request carries in `tracestate` from here on, and so what goes into the span. It belongs to a valid
    /// `traceparent`, and goes with one that is not.
    pub fn trace_state(&self, headers: &mut HeaderMap, by: Option<TraceHeaders>) -> TraceState {
        if !self.write.contains(&TraceHeaders::W3c) {
            return TraceState::Absent;
        }
        let state = match by {
            Some(TraceHeaders::W3c) => TraceState::of(headers),
            _ if headers.contains_key(&TRACESTATE) => TraceState::Dropped,
            _ => TraceState::Absent,
        };
        state.write(headers);
        state
    }

    /// Takes all headers out by which a caller could say where it comes from.
    pub fn remove(headers: &mut HeaderMap) {
        headers.remove(context::TRACEPARENT);
        headers.remove(TRACESTATE);
        b3::remove_single(headers);
        b3::remove_multi(headers);
    }
}

#[cfg(test)]
mod tests {
    use TraceHeaders::{B3, B3multi, W3c};

    use super::*;

    const TRACEPARENT: (&str, &str) =
        ("traceparent", "00-0000000000000000000000000000000a-000000000000000a-01");
    const SINGLE: (&str, &str) = ("b3", "000000000000000b-000000000000000b-1");
    const MULTI: [(&str, &str); 2] =
        [("x-b3-traceid", "000000000000000c"), ("x-b3-spanid", "000000000000000c")];
    const INVALID: (&str, &str) = ("traceparent", "00-0-0-0");

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn the_first_valid_headers_in_the_order_of_the_config_count() {
        let all = [TRACEPARENT, SINGLE, MULTI[0], MULTI[1]];
        let invalid = [INVALID, SINGLE, MULTI[0], MULTI[1]];
        for (read, fields, trace, by) in [
            (vec![W3c, B3, B3multi], all.as_slice(), 0xa, Some(W3c)),
            (vec![B3, W3c], &all, 0xb, Some(B3)),
            (vec![B3multi, W3c], &all, 0xc, Some(B3multi)),
            (vec![W3c, B3multi, B3], &invalid, 0xc, Some(B3multi)),
            (vec![W3c], &invalid, 0, None),
            (vec![W3c, B3], &MULTI, 0, None),
            (vec![], &all, 0, None),
        ] {
            let propagation = Propagation { read, write: vec![] };
            let (caller, found) = propagation.read(&map(fields));
            let found = (caller.parent().map_or(0, |parent| parent.trace_id), found);
            assert_eq!(found, (trace, by), "{propagation:?} {fields:?}");
        }
    }

    #[test]
    fn a_trace_state_goes_with_its_traceparent_or_not_at_all() {
        let fields = [("tracestate", "foo=1")];
        let written = Propagation { read: vec![W3c, B3], write: vec![W3c] };
        let mut headers = map(&fields);
        assert_eq!(written.trace_state(&mut headers, Some(W3c)), TraceState::AsItIs);
        assert_eq!(headers, map(&fields));
        assert_eq!(written.trace_state(&mut headers, Some(B3)), TraceState::Dropped);
        assert_eq!(headers, map(&[]));
        assert_eq!(written.trace_state(&mut headers, None), TraceState::Absent);
        let untouched = Propagation { read: vec![B3], write: vec![B3] };
        let mut headers = map(&fields);
        assert_eq!(untouched.trace_state(&mut headers, None), TraceState::Absent);
        assert_eq!(headers, map(&fields), "W3C's are none of the headers that are written");
    }
}
