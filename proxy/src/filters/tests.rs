use std::cell::RefCell;
use std::rc::Rc;

use http::StatusCode;
use http::header::{HOST, HeaderValue};
use tokio::time::Instant;

use super::*;
use crate::config::{self, Abort, Delay, HeaderValueOf, PathRewrite};

fn get() -> Request<Body> {
    Request::get("/old/x?q").header(HOST, "api").body(Body::empty()).unwrap()
}

fn edits(name: &str) -> config::HeaderEdits {
    let field = HeaderValueOf { name: name.into(), value: "1".into() };
    config::HeaderEdits { set: vec![field], ..config::HeaderEdits::default() }
}

fn respond() -> config::Respond {
    config::Respond { status: 418, body: String::new(), headers: Default::default() }
}

fn fault(delay: Option<u64>, abort: Option<u16>) -> config::Fault {
    config::Fault {
        delay: delay.map(|seconds| Delay { duration: Duration::from_secs(seconds).into(), percent: None }),
        abort: abort.map(|status| Abort { status, percent: None }),
    }
}

async fn pass(route: &Route, request: &mut Request<Body>) -> Result<(), Answer> {
    Filters::new(route).request(request, Scheme::Http, Some(4), || 0.0).await
}

#[tokio::test]
async fn a_route_without_filters_changes_nothing() {
    let mut request = get();
    assert!(pass(&Route::default(), &mut request).await.is_ok());
    assert_eq!(request.uri(), "/old/x?q");
    assert_eq!(request.headers().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_fault_comes_first_and_its_delay_before_its_abort() {
    let route =
        Route { fault: Some(fault(Some(3), Some(503))), respond: Some(respond()), ..Route::default() };
    let started = Instant::now();
    let Err(Answer::Error(error)) = pass(&route, &mut get()).await else { panic!("it is not aborted") };
    assert_eq!(error.error.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(started.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_goes_on() {
    let route = Route { fault: Some(fault(Some(3), None)), ..Route::default() };
    let started = Instant::now();
    assert!(pass(&route, &mut get()).await.is_ok());
    assert_eq!(started.elapsed(), Duration::from_secs(3));
}

#[tokio::test]
async fn fixed_responses_are_edited_and_the_proxys_errors_are_not() {
    let redirect = config::Redirect { host: Some("new".into()), ..Default::default() };
    for route in [
        Route { respond: Some(respond()), response_headers: edits("x-edited"), ..Route::default() },
        Route { redirect: Some(redirect), response_headers: edits("x-edited"), ..Route::default() },
    ] {
        let Err(Answer::Fixed(response)) = pass(&route, &mut get()).await else { panic!("it is sent on") };
        assert_eq!(response.headers()["x-edited"], "1");
        assert!(!response.headers().contains_key("proxy-status"));
    }
}

#[tokio::test]
async fn a_copy_is_of_what_is_sent() {
    let route = Route {
        rewrite: Some(config::Rewrite {
            host: Some("new".into()),
            path: Some(PathRewrite::Prefix("/v2".into())),
        }),
        request_headers: edits("x-edited"),
        mirror: Some(config::Mirror { upstream: "shadow".into(), percent: None }),
        ..Route::default()
    };
    let filters = Filters::new(&route);
    let mut request = get();
    assert!(filters.request(&mut request, Scheme::Http, Some(4), || 0.0).await.is_ok());
    let copies = Rc::new(RefCell::new(Vec::new()));
    let told = copies.clone();
    filters.mirror(
        &mut request,
        &Mirrors::default(),
        || 0.0,
        move |upstream, copy| {
            assert_eq!(&*upstream, "shadow");
            told.borrow_mut().push(copy);
        },
    );
    let copy = copies.borrow_mut().pop().unwrap().unwrap();
    for sent in [&request, &copy.request] {
        assert_eq!(sent.uri(), "/v2/x?q");
        assert_eq!(sent.headers()[HOST], "new");
        assert_eq!(sent.headers()["x-edited"], "1");
    }
}

#[tokio::test]
async fn only_a_rewrite_of_the_host_changes_it_and_nothing_changes_the_meshs_own_fields() {
    const OWN: &str = "outrigger-client-id";
    let all = |name: &str| config::HeaderEdits { remove: vec![name.into()], ..edits(name) };
    for name in [OWN, "host"] {
        let route = Route {
            request_headers: all(name),
            response_headers: all(name),
            rewrite: Some(config::Rewrite { host: None, path: Some(PathRewrite::Full("/x".into())) }),
            ..Route::default()
        };
        let mut request = get();
        request.headers_mut().insert(OWN, HeaderValue::from_static("spiffe"));
        assert!(pass(&route, &mut request).await.is_ok());
        assert_eq!(request.headers()[HOST], "api");
        assert_eq!(request.headers()[OWN], "spiffe");
        let mut response: HeaderMap = request.headers().clone();
        Filters::new(&route).response(&mut response);
        assert_eq!(response, *request.headers());
    }
}

#[test]
fn the_future_of_a_filtered_request_stays_small() {
    fn size_of_future<F>(_: &F) -> usize {
        size_of::<F>()
    }
    let filters = Filters::new(&Route::default());
    let mut request = get();
    let future = filters.request(&mut request, Scheme::Http, None, || 0.0);
    let size = size_of_future(&future);
    assert!(size <= 128, "{size} bytes");
}
