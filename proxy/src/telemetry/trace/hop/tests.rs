use TraceHeaders::{B3, B3multi, W3c};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::*;
use crate::config::{RouteTracing, TraceHeaders};

const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;
const SAMPLED: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
const UNSAMPLED: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
const INVALID: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01");
const STATE: (&str, &str) = ("tracestate", "congo=t61rcWkgMzE");

fn tracing(sampling: Sampling, ratio: f64, read: &[TraceHeaders], write: &[TraceHeaders]) -> Tracing {
    Tracing {
        sampler: Sampler { sampling, ratio },
        propagation: Propagation { read: read.to_vec(), write: write.to_vec() },
    }
}

/// The defaults, with that ratio.
fn usual(ratio: f64) -> Tracing {
    tracing(Sampling::ParentBased, ratio, &READ_TRACE_HEADERS, &WRITTEN_TRACE_HEADERS)
}

fn request(fields: &[(&'static str, &'static str)]) -> Request<()> {
    let mut request = Request::builder().uri("/orders?token=x");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn entered(tracing: &Tracing, request: &mut Request<()>, trust: Trust) -> Hop {
    tracing.enter(request, None, trust, &mut SmallRng::seed_from_u64(7))
}

fn values(request: &Request<()>, name: &str) -> Vec<String> {
    request.headers().get_all(name).iter().map(|value| value.to_str().unwrap().into()).collect()
}

fn traceparent(context: &SpanContext, flags: &str) -> Vec<String> {
    vec![format!("00-{:032x}-{:016x}-{flags}", context.trace_id, context.span_id)]
}

#[test]
fn a_sampled_hop_goes_on_with_its_parents_trace_under_a_span_of_its_own() {
    let mut request = request(&[SAMPLED, STATE, ("user-agent", "curl"), ("baggage", "a=1")]);
    let Hop { context, sampled } = entered(&usual(0.0), &mut request, Trust::Continue);
    assert_eq!((context.trace_id, context.is_sampled, context.is_random), (TRACE, true, false));
    assert!(![0, SPAN].contains(&context.span_id));
    assert_eq!(values(&request, "traceparent"), traceparent(&context, "01"));
    assert_eq!(values(&request, "tracestate"), ["congo=t61rcWkgMzE"]);
    assert_eq!(values(&request, "baggage"), ["a=1"]);
    let sampled = sampled.unwrap();
    assert_eq!((sampled.parent, sampled.link), (Some(SPAN), None));
    assert_eq!(sampled.trace_state.as_deref(), Some("congo=t61rcWkgMzE"));
    assert_eq!(sampled.user_agent.unwrap(), "curl");
}

#[test]
fn an_unsampled_hop_passes_its_parent_on_as_it_came() {
    let fields = [UNSAMPLED, STATE, ("baggage", "a=1")];
    let mut asked = request(&fields);
    let Hop { context, sampled } = entered(&usual(1.0), &mut asked, Trust::Continue);
    assert!(sampled.is_none());
    assert_eq!((context.trace_id, context.span_id, context.is_sampled), (TRACE, SPAN, false));
    assert_eq!(asked.headers(), request(&fields).headers());
}

#[test]
fn what_an_unsampled_hop_may_not_pass_on_is_put_right() {
    for (came, goes) in [
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more", "00"),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-fc", "00"),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-06", "02"),
    ] {
        let mut request = request(&[("traceparent", came), ("tracestate", "FOO=1")]);
        let hop = entered(&usual(1.0), &mut request, Trust::Continue);
        assert_eq!((hop.context.trace_id, hop.context.span_id), (TRACE, SPAN));
        assert_eq!(values(&request, "traceparent"), traceparent(&hop.context, goes), "{came}");
        assert!(values(&request, "tracestate").is_empty(), "it breaks a rule");
    }
}

#[test]
fn without_a_valid_parent_a_trace_is_started_and_what_came_of_one_is_dropped() {
    for fields in [
        vec![],
        vec![STATE],
        vec![INVALID, STATE],
        vec![SAMPLED, SAMPLED, STATE],
        vec![("traceparent", ""), STATE],
    ] {
        for (ratio, flags) in [(0.0, "02"), (1.0, "03")] {
            let mut request = request(&fields);
            let Hop { context, sampled } = entered(&usual(ratio), &mut request, Trust::Continue);
            assert!(context.trace_id != TRACE && context.trace_id != 0 && context.span_id != 0);
            assert_eq!(values(&request, "traceparent"), traceparent(&context, flags), "{fields:?}");
            assert!(values(&request, "tracestate").is_empty());
            assert_eq!(sampled.is_some(), ratio == 1.0);
            assert!(sampled.is_none_or(|sampled| (sampled.parent, sampled.link) == (None, None)));
        }
    }
}

#[test]
fn a_decision_other_than_the_parents_comes_with_another_span() {
    for (sampling, came, flags) in [(Sampling::Never, SAMPLED, "00"), (Sampling::Always, UNSAMPLED, "01")] {
        let mut request = request(&[came]);
        let tracing = tracing(sampling, 0.0, &[W3c], &[W3c]);
        let Hop { context, sampled } = entered(&tracing, &mut request, Trust::Continue);
        assert_eq!(context.trace_id, TRACE);
        assert_ne!(context.span_id, SPAN);
        assert_eq!(values(&request, "traceparent"), traceparent(&context, flags));
        assert_eq!(sampled.map(|sampled| sampled.parent), (flags == "01").then_some(Some(SPAN)));
    }
}

#[test]
fn a_route_decides_otherwise_for_its_requests() {
    let route = RouteTracing { sampling: Some(Sampling::Always), sample_ratio: None };
    let mut request = request(&[]);
    let hop = usual(0.0).enter(&mut request, Some(&route), Trust::Continue, &mut SmallRng::seed_from_u64(1));
    assert!(hop.sampled.is_some());
}

#[test]
fn an_untrusted_caller_gets_a_new_trace_that_is_linked_to_its_own() {
    let b3 = ("b3", "000000000000000b-000000000000000b-d");
    let multi = [("x-b3-traceid", "000000000000000c"), ("x-b3-spanid", "000000000000000c")];
    for (fields, link) in [
        (vec![SAMPLED, STATE, b3, multi[0], multi[1]], Some((TRACE, SPAN))),
        (vec![UNSAMPLED], Some((TRACE, SPAN))),
        (vec![INVALID, b3], Some((0xb, 0xb))),
        (vec![("b3", "1")], None),
        (vec![], None),
    ] {
        let mut request = request(&fields);
        let Hop { context, sampled } = entered(&usual(1.0), &mut request, Trust::NewRoot);
        assert!(!context.is_debug && context.is_random && context.trace_id != TRACE);
        let sampled = sampled.unwrap();
        assert_eq!((sampled.parent, sampled.link, sampled.trace_state), (None, link, None), "{fields:?}");
        assert_eq!(values(&request, "traceparent"), traceparent(&context, "03"));
        assert_eq!(request.headers().len(), 1, "nothing of the caller's stays: {:?}", request.headers());
    }
    let mut request = request(&[SAMPLED]);
    let hop = entered(&usual(0.0), &mut request, Trust::NewRoot);
    assert!(hop.sampled.is_none(), "nor does its decision");
}

#[test]
fn b3_is_read_and_written_as_the_config_says() {
    let single = ("b3", "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1");
    let mut asked = request(&[single]);
    let hop = entered(&usual(0.0), &mut asked, Trust::Continue);
    assert_eq!(hop.context.trace_id, 0x80f1_98ee_5634_3ba8_64fe_8b2a_57d3_eff7);
    assert_eq!(values(&asked, "traceparent"), traceparent(&hop.context, "01"));
    assert_eq!(values(&asked, "b3"), [single.1], "it is not written, and stays as it came");
    assert_eq!(hop.sampled.unwrap().parent, Some(0xe457_b5a2_e4d8_6bd1));

    let all = tracing(Sampling::ParentBased, 0.0, &READ_TRACE_HEADERS, &[W3c, B3, B3multi]);
    let mut asked = request(&[
        ("x-b3-traceid", "64fe8b2a57d3eff7"),
        ("x-b3-spanid", "e457b5a2e4d86bd1"),
        ("x-b3-flags", "1"),
    ]);
    let hop = entered(&all, &mut asked, Trust::Continue);
    let span = format!("{:016x}", hop.context.span_id);
    assert!(hop.context.is_debug);
    assert_eq!(values(&asked, "traceparent"), [format!("00-000000000000000064fe8b2a57d3eff7-{span}-01")]);
    assert_eq!(values(&asked, "b3"), [format!("64fe8b2a57d3eff7-{span}-d-e457b5a2e4d86bd1")]);
    assert_eq!(values(&asked, "x-b3-spanid"), [span]);
    assert_eq!(values(&asked, "x-b3-parentspanid"), ["e457b5a2e4d86bd1"]);

    // Not sampled: its own headers stay, and the others say the same.
    let mut asked = request(&[("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1-0-05e3ac9a4f6e3b90"), STATE]);
    entered(&all, &mut asked, Trust::Continue);
    assert_eq!(values(&asked, "b3"), ["64fe8b2a57d3eff7-e457b5a2e4d86bd1-0-05e3ac9a4f6e3b90"]);
    assert_eq!(values(&asked, "traceparent"), ["00-000000000000000064fe8b2a57d3eff7-e457b5a2e4d86bd1-00"]);
    assert_eq!(values(&asked, "x-b3-sampled"), ["0"]);
    assert!(values(&asked, "tracestate").is_empty(), "there was no traceparent that it belonged to");
}

#[test]
fn b3_may_leave_the_decision_to_us_or_send_nothing_else() {
    let b3 = tracing(Sampling::ParentBased, 1.0, &[B3], &[B3]);
    let mut asked = request(&[("b3", "64fe8b2a57d3eff7-e457b5a2e4d86bd1")]);
    let hop = entered(&b3, &mut asked, Trust::Continue);
    assert_eq!((hop.context.trace_id, hop.sampled.is_some()), (0x64fe_8b2a_57d3_eff7, true));
    let mut asked = request(&[("b3", "0")]);
    let hop = entered(&b3, &mut asked, Trust::Continue);
    assert!(hop.sampled.is_none());
    assert_eq!(
        values(&asked, "b3"),
        [format!("{:032x}-{:016x}-0", hop.context.trace_id, hop.context.span_id)]
    );
    assert!(values(&asked, "traceparent").is_empty());
}

#[test]
fn the_config_wins_over_the_environment_and_without_both_nothing_is_traced() {
    let of = |config: Option<&config::Tracing>, variables: &[(&str, &str)]| {
        let get =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Tracing::of(config, &Environment::of(&get))
    };
    let exporter = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    let sampler = ("OTEL_TRACES_SAMPLER", "always_on");
    let propagators = ("OTEL_PROPAGATORS", "b3");
    assert_eq!(of(None, &[]), None);
    assert_eq!(of(None, &[sampler, propagators]), None, "nobody wants spans");
    assert_eq!(of(None, &[exporter]), Some(usual(0.0)));
    assert_eq!(
        of(None, &[exporter, sampler, propagators]),
        Some(tracing(Sampling::Always, 0.0, &[B3], &[B3]))
    );
    let silent = config::Tracing::default();
    assert_eq!(of(Some(&silent), &[]), Some(usual(0.0)));
    assert_eq!(
        of(Some(&silent), &[sampler, propagators]),
        Some(tracing(Sampling::Always, 0.0, &[B3], &[B3]))
    );
    let stated = config::Tracing {
        sample_ratio: Some(0.5),
        propagation: config::Propagation { read: None, write: Some(vec![B3multi]) },
        ..silent
    };
    let expected = tracing(Sampling::ParentBased, 0.5, &READ_TRACE_HEADERS, &[B3multi]);
    assert_eq!(of(Some(&stated), &[sampler, propagators]), Some(expected));
}

/// What it costs a request to be traced, beside what a request costs at all. For a person to read:
/// `cargo test --release -p outrigger-proxy --lib -- --ignored --nocapture trace_costs`.
#[test]
#[ignore = "a measurement, to be read: build with --release"]
fn trace_costs() {
    const TIMES: u32 = 1_000_000;
    let mut rng = SmallRng::seed_from_u64(7);
    let unrelated =
        [("accept", "*/*"), ("user-agent", "curl/8"), ("host", "api.shop"), ("x-request-id", "1")];
    for (what, ratio, fields) in [
        ("not recorded, with a parent", 0.0, vec![UNSAMPLED]),
        ("not recorded, with a parent and a tracestate", 0.0, vec![UNSAMPLED, STATE]),
        ("not recorded, started here", 0.0, vec![]),
        ("recorded, with a parent", 0.0, vec![SAMPLED]),
        ("recorded, started here", 1.0, vec![]),
    ] {
        let tracing = usual(ratio);
        let [bare, traced] = [None, Some(&tracing)].map(|tracing| {
            let request = request(&[unrelated.as_slice(), &fields].concat());
            let began = Instant::now();
            for _ in 0..TIMES {
                let mut asked = request.clone();
                let hop = tracing.map(|tracing| tracing.enter(&mut asked, None, Trust::Continue, &mut rng));
                std::hint::black_box((asked, hop));
            }
            began.elapsed() / TIMES
        });
        println!("{what}: {:?}", traced.saturating_sub(bare));
    }
}
