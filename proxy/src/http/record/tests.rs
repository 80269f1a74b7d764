use tokio::sync::mpsc::Receiver;

use super::super::local_response::ProxyError;
use super::*;
use crate::config::{self, Sampling};
use crate::telemetry::trace::{Environment, Span, SpanKind, Spans, Tracing, Trust};
use crate::telemetry::{AccessLog, AccessLogSettings, Metrics};

/// An exchange that has entered its trace, and where its span will come out.
fn exchange(sampling: Sampling, fields: &[(&str, &str)]) -> (Box<Recording>, Receiver<Box<Span>>) {
    let metrics = Arc::new(Metrics::new());
    let (spans, finished) = Spans::queue(metrics.clone());
    let log = AccessLog::new(AccessLogSettings::default(), &metrics).unwrap();
    let recorder = Rc::new(Recorder::new(metrics, log).with_spans(spans));
    let mut request = Request::builder().uri("http://api:8080/orders?token=x");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::empty()).unwrap();
    let client = ClientAddress(([10, 0, 0, 1], 40_000).into());
    let mut recording = Exchange::begin(&recorder, Direction::Outbound, client, &request, &Arc::from(""));
    let config = config::Tracing { sampling: Some(sampling), ..Default::default() };
    let tracing = Tracing::of(Some(&config), &Environment::of_process()).unwrap();
    recording.traced(tracing.enter(&mut request, None, Trust::Continue, &mut rand::rng()));
    (recording, finished)
}

#[test]
fn an_exchange_that_is_recorded_leaves_one_span_with_its_retries_when_it_has_ended() {
    let parent = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let (mut recording, mut finished) = exchange(Sampling::ParentBased, &[parent]);
    recording.endpoint = Some(([10, 0, 0, 7], 8080).into());
    recording.retried(|| ("status 503".into(), Some(StatusCode::SERVICE_UNAVAILABLE)));
    recording.endpoint = Some(([10, 0, 0, 8], 8080).into());
    recording.answered(StatusCode::OK, &HeaderMap::new());
    let response = recording.follow(Response::new(Body::empty()));
    drop(response);
    let span = finished.try_recv().unwrap();
    assert_eq!(span.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
    assert_eq!((span.parent, span.kind), (Some(0x00f0_67aa_0ba9_02b7), SpanKind::Client));
    let attribute = |name| span.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value);
    assert_eq!(attribute("http.request.resend_count"), Some(&1_u16.into()));
    assert_eq!(attribute("network.peer.address"), Some(&"10.0.0.8".into()));
    assert_eq!(attribute("url.full"), Some(&"http://api:8080/orders".into()));
    let [retry] = span.events.as_slice() else { panic!("{:?}", span.events) };
    assert_eq!(retry.name, "retry");
    assert_eq!(retry.attributes[0], ("outrigger.endpoint", "10.0.0.7:8080".into()));
    assert_eq!(span.error, None);
    assert!(finished.try_recv().is_err(), "one and no more");
}

#[test]
fn an_exchange_that_the_proxy_answers_leaves_a_span_that_says_why() {
    let (recording, mut finished) = exchange(Sampling::Always, &[]);
    drop(recording.answer_locally(&LocalResponse::new(ProxyError::INTERNAL, "a bug")));
    let span = finished.try_recv().unwrap();
    assert!(span.error.is_some_and(|error| error.starts_with("outrigger; error=proxy_internal_error")));
    assert!(span.attributes.contains(&("error.type", "proxy_internal_error".into())));
}

#[test]
fn an_exchange_that_is_not_recorded_leaves_no_span_and_looks_for_no_reasons() {
    let (mut recording, mut finished) = exchange(Sampling::Never, &[]);
    recording.retried(|| unreachable!("nobody asks why"));
    drop(recording);
    assert!(finished.try_recv().is_err());
}
