//! Failures made on purpose: requests that wait, and requests that are answered with an error.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::share::Share;
use crate::config;
use crate::http::{LocalResponse, ProxyError};

/// Failures of a route.
#[derive(Debug)]
pub(super) struct Fault {
    delay: Option<(Duration, Share)>,
    abort: Option<(StatusCode, Share)>,
    route: Arc<str>,
}

impl Fault {
    /// Compiles the failures of `route`; `None` when it states none.
    pub(super) fn new(fault: &config::Fault, route: &str) -> Option<Self> {
        let delay =
            fault.delay.as_ref().map(|delay| (delay.duration.into(), Share::of_percent(delay.percent())));
        let abort = fault.abort.as_ref().and_then(|abort| {
            Some((StatusCode::from_u16(abort.status).ok()?, Share::of_percent(abort.percent())))
        });
        (delay.is_some() || abort.is_some()).then(|| Self { delay, abort, route: route.into() })
    }

    /// How long a request waits, if it does.
    pub(super) fn delay(&self, draw: impl Fn() -> f64) -> Option<Duration> {
        self.delay.and_then(|(delay, share)| share.takes(draw()).then_some(delay))
    }

    /// What a request is answered with, if it is aborted.
    pub(super) fn abort(&self, draw: impl Fn() -> f64) -> Option<LocalResponse> {
        let (status, share) = self.abort?;
        share.takes(draw()).then(|| {
            let detail = format!("route {}: fault on purpose", self.route);
            LocalResponse::new(ProxyError::injected(status), detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http::header::{CONTENT_TYPE, HeaderValue};

    use super::*;

    fn abort(status: u16, percent: Option<f64>) -> Fault {
        let abort = Some(config::Abort { status, percent });
        Fault::new(&config::Fault { delay: None, abort }, "api").unwrap()
    }

    #[test]
    fn delay_and_abort_each_take_their_share() {
        let delay = config::Delay { duration: Duration::from_millis(20).into(), percent: Some(10.0) };
        let abort = config::Abort { status: 503, percent: Some(30.0) };
        let both = Fault::new(&config::Fault { delay: Some(delay), abort: Some(abort) }, "api").unwrap();
        for (drawn, delays, aborts) in [(0.05, true, true), (0.2, false, true), (0.4, false, false)] {
            assert_eq!(both.delay(|| drawn), delays.then_some(Duration::from_millis(20)), "{drawn}");
            assert_eq!(both.abort(|| drawn).is_some(), aborts, "{drawn}");
        }
        assert!(Fault::new(&config::Fault::default(), "api").is_none());
    }

    #[test]
    fn an_abort_says_that_it_is_one() {
        let response = abort(418, None).abort(|| 0.99).unwrap().to_response(&HeaderMap::new());
        assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
        assert_eq!(
            response.headers()["proxy-status"],
            "outrigger; error=proxy_internal_response; details=\"route api: fault on purpose\""
        );
    }

    #[test]
    fn a_grpc_caller_gets_the_status_that_stands_for_it() {
        let grpc: HeaderMap =
            [(CONTENT_TYPE, HeaderValue::from_static("application/grpc"))].into_iter().collect();
        for (status, want) in [
            (400, "13"),
            (401, "16"),
            (403, "7"),
            (404, "12"),
            (429, "14"),
            (502, "14"),
            (503, "14"),
            (504, "14"),
            (500, "2"),
            (418, "2"),
        ] {
            let response = abort(status, None).abort(|| 0.0).unwrap().to_response(&grpc);
            assert_eq!(response.status(), StatusCode::OK, "{status}");
            assert_eq!(response.headers()["grpc-status"], want, "{status}");
        }
    }
}
