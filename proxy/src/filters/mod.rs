//! What routes do to requests and responses: one file a filter.
//!
//! The order in which a request passes them, and why:
//!
//! 1. `fault`: a delay, then an abort, stands for what the network or the upstream does to every request;
//! 2. `redirect`, `respond`: the route answers, and nothing is sent;
//! 3. `rewrite`: the target that the upstream is asked for;
//! 4. `header_edits` of the request;
//! 5. `mirror`: a copy of what is sent, so it comes last;
//!
//! and a response from an upstream, or from step 2:
//!
//! 6. `header_edits` of the response. Errors that the proxy answers with are none of the route's responses.
//!
//! None of them touches the mesh's own fields, or those of the connection; `rewrite` alone touches `Host`.

mod fault;
mod header_edits;
mod mirror;
mod redirect;
mod respond;
mod rewrite;
mod share;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};

use self::fault::Fault;
use self::header_edits::HeaderEdits;
use self::mirror::Mirror;
pub use self::mirror::{MAX_MIRRORED_BYTES, Mirrored, Mirrors, NotMirrored, Place};
use self::redirect::Redirect;
pub use self::redirect::Scheme;
use self::respond::Respond;
use self::rewrite::Rewrite;
use crate::config::Route;
use crate::http::LocalResponse;
use crate::net::Body;

/// The filters of one route. Most routes have none.
#[derive(Debug)]
pub struct Filters {
    fault: Option<Fault>,
    redirect: Option<Redirect>,
    respond: Option<Respond>,
    rewrite: Option<Rewrite>,
    request_headers: Option<HeaderEdits>,
    mirror: Option<Mirror>,
    response_headers: Option<HeaderEdits>,
}

/// What is answered in place of sending a request.
pub enum Answer {
    /// A response of the route's: it carries no `Proxy-Status`, because nothing went wrong.
    Fixed(Response<Body>),
    /// An error.
    Error(LocalResponse),
}

impl Filters {
    /// Compiles the filters of a route.
    pub fn new(route: &Route) -> Self {
        Self {
            fault: route.fault.as_ref().and_then(|fault| Fault::new(fault, &route.name)),
            redirect: route.redirect.as_ref().map(Redirect::new),
            respond: route.respond.as_ref().map(Respond::new),
            rewrite: route.rewrite.as_ref().map(Rewrite::new),
            request_headers: HeaderEdits::new(&route.request_headers),
            mirror: route.mirror.as_ref().map(Mirror::new),
            response_headers: HeaderEdits::new(&route.response_headers),
        }
    }

    /// Whether there are none, which is the usual route.
    pub fn is_empty(&self) -> bool {
        let Self { fault, redirect, respond, rewrite, request_headers, mirror, response_headers } = self;
        fault.is_none()
            && redirect.is_none()
            && respond.is_none()
            && rewrite.is_none()
            && request_headers.is_none()
            && mirror.is_none()
            && response_headers.is_none()
    }

    /// The names of those there are, in the order in which a request passes them; the last is the response's.
    pub fn names(&self) -> Vec<&'static str> {
        let Self { fault, redirect, respond, rewrite, request_headers, mirror, response_headers } = self;
        [
            (fault.is_some(), "fault"),
            (redirect.is_some(), "redirect"),
            (respond.is_some(), "respond"),
            (rewrite.is_some(), "rewrite"),
            (request_headers.is_some(), "requestHeaders"),
            (mirror.is_some(), "mirror"),
            (response_headers.is_some(), "responseHeaders"),
        ]
        .into_iter()
        .filter_map(|(is_there, name)| is_there.then_some(name))
        .collect()
    }

    /// Has a request pass steps 1 to 4. It came by `scheme`, and `prefix` is the length of the prefix by which the
    /// route matched; `draw` gives another number from 0 to below 1 each time.
    ///
    /// # Errors
    /// Not one: what is to be answered in place of sending the request, with step 6 done.
    pub async fn request(
        &self,
        request: &mut Request<Body>,
        scheme: Scheme,
        prefix: Option<usize>,
        draw: impl Fn() -> f64,
    ) -> Result<(), Answer> {
        if let Some(fault) = &self.fault {
            if let Some(delay) = fault.delay(&draw) {
                wait(delay).await;
            }
            if let Some(abort) = fault.abort(&draw) {
                return Err(Answer::Error(abort));
            }
        }
        if let Some(redirect) = &self.redirect {
            return Err(match redirect.response(request, scheme, prefix) {
                Ok(response) => self.fixed(response),
                Err(error) => Answer::Error(error),
            });
        }
        if let Some(respond) = &self.respond {
            return Err(self.fixed(respond.response()));
        }
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(request, prefix).map_err(Answer::Error)?;
        }
        if let Some(edits) = &self.request_headers {
            edits.apply(request.headers_mut());
        }
        Ok(())
    }

    /// Step 5: has a request copied as it is sent, if this one is to be. `done` gets the whole copy, which is to be
    /// sent to the upstream that it is told, and its response dropped, or why there is none; at once where there is no body, else when
    /// the body has passed. Not called at all for requests that are not to be copied.
    pub fn mirror(
        &self,
        request: &mut Request<Body>,
        mirrors: &Mirrors,
        draw: impl Fn() -> f64,
        done: impl FnOnce(Arc<str>, Result<Mirrored, NotMirrored>) + 'static,
    ) {
        if let Some(mirror) = &self.mirror {
            let upstream = mirror.upstream().clone();
            mirror.copy(request, mirrors, draw, move |copy| done(upstream, copy));
        }
    }

    /// Step 6, for the header fields of a response from an upstream.
    pub fn response(&self, headers: &mut HeaderMap) {
        if let Some(edits) = &self.response_headers {
            edits.apply(headers);
        }
    }

    fn fixed(&self, mut response: Response<Body>) -> Answer {
        self.response(response.headers_mut());
        Answer::Fixed(response)
    }
}

/// Boxed: the future of every request would be as large as this one.
fn wait(delay: Duration) -> std::pin::Pin<Box<tokio::time::Sleep>> {
    Box::pin(tokio::time::sleep(delay))
}

#[cfg(test)]
mod tests;
