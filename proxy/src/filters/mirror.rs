//! Copies of requests, for an upstream whose responses nobody waits for.
//!
//! A copy is made of what is sent, while it is sent: the request itself never waits for its copy, and one that is
//! not whole in the end is not sent. Left out, so that what is kept is bounded: requests with more than
//! [`MAX_MIRRORED_BYTES`] of body, those beyond [`MAX_UNDER_WAY`] copies of a worker, and those that may become
//! tunnels or wait for an interim response. Trailers are not copied.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request};
use http_body::{Body as _, Frame, SizeHint};
use thiserror::Error;

use super::share::Share;
use crate::config;
use crate::http::wants_own_connection;
use crate::net::{Body, BodyError, BodySource};

/// Most that a copy may hold: as much as a retry keeps of a body.
pub const MAX_MIRRORED_BYTES: usize = 64 * 1024;
/// Most copies of a worker that are being made or sent: with their bodies at most 6.25 MiB.
const MAX_UNDER_WAY: usize = 100;

/// The copies of one worker under way.
#[derive(Clone, Debug, Default)]
pub struct Mirrors(Rc<Cell<usize>>);

/// The place of one copy among those under way, given back when dropped.
#[derive(Debug)]
pub struct Place(Rc<Cell<usize>>);

/// A whole copy, to be sent.
pub struct Mirrored {
    /// The copy, in the version the request came in.
    pub request: Request<Body>,
    /// To be dropped when the response has been.
    pub place: Place,
}

/// Why a request has no copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotMirrored {
    /// Too many copies are under way.
    #[error("{MAX_UNDER_WAY} copies are under way")]
    Full,
    /// Its body is too large.
    #[error("its body is larger than {} KiB", MAX_MIRRORED_BYTES / 1024)]
    TooLarge,
    /// Its body broke off, or was not read to its end.
    #[error("its body was not sent to its end")]
    Incomplete,
    /// It may become a tunnel, or waits for an interim response.
    #[error("it needs a connection of its own")]
    OwnConnection,
}

impl NotMirrored {
    /// A word for the metrics.
    pub fn result(self) -> &'static str {
        match self {
            Self::Full => "dropped_too_many",
            Self::TooLarge => "dropped_body",
            Self::Incomplete => "dropped_incomplete",
            Self::OwnConnection => "dropped_connection",
        }
    }
}

/// Which requests of a route are copied, and for whom.
#[derive(Debug)]
pub(super) struct Mirror {
    upstream: Arc<str>,
    share: Share,
}

impl Mirrors {
    fn enter(&self) -> Option<Place> {
        let under_way = self.0.get();
        (under_way < MAX_UNDER_WAY).then(|| {
            self.0.set(under_way + 1);
            Place(self.0.clone())
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Mirror {
    /// Compiles a mirror.
    pub(super) fn new(mirror: &config::Mirror) -> Self {
        Self { upstream: mirror.upstream.as_str().into(), share: Share::of_percent(mirror.percent()) }
    }

    /// The name of the upstream that gets the copies.
    pub(super) fn upstream(&self) -> &Arc<str> {
        &self.upstream
    }

    /// Has a request copied, if this one is to be; `done` gets the copy, or why there is none.
    pub(super) fn copy(
        &self,
        request: &mut Request<Body>,
        mirrors: &Mirrors,
        draw: impl Fn() -> f64,
        done: impl FnOnce(Result<Mirrored, NotMirrored>) + 'static,
    ) {
        if !self.share.takes(draw()) {
            return;
        }
        let place = match self.admit(request, mirrors) {
            Ok(place) => place,
            Err(why) => return done(Err(why)),
        };
        let mut head = Request::new(Body::empty());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        let copy = Mirrored { request: head, place };
        if request.body().is_end() {
            return done(Ok(copy));
        }
        let copying = Copying { copy, content: BytesMut::new(), done: Box::new(done) };
        let body = std::mem::take(request.body_mut());
        *request.body_mut() = Body::from_source(MirrorBody { body, copying: Some(copying) });
    }

    fn admit(&self, request: &Request<Body>, mirrors: &Mirrors) -> Result<Place, NotMirrored> {
        if *request.method() == Method::CONNECT || wants_own_connection(request) {
            return Err(NotMirrored::OwnConnection);
        }
        if request.body().size_hint().lower() > MAX_MIRRORED_BYTES as u64 {
            return Err(NotMirrored::TooLarge);
        }
        mirrors.enter().ok_or(NotMirrored::Full)
    }
}

/// A request's body, copied as it passes.
struct MirrorBody {
    body: Body,
    /// `None` once the copy is whole, or given up.
    copying: Option<Copying>,
}

struct Copying {
    copy: Mirrored,
    /// Copied rather than shared: a few bytes of a frame would keep the whole buffer it was read into.
    content: BytesMut,
    done: Box<dyn FnOnce(Result<Mirrored, NotMirrored>)>,
}

impl Copying {
    fn complete(mut self) {
        let headers = self.copy.request.headers_mut();
        // The copy is there as a whole, and is no longer chunked.
        headers.remove(TRANSFER_ENCODING);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(self.content.len()));
        *self.copy.request.body_mut() = Body::full(self.content.freeze());
        (self.done)(Ok(self.copy));
    }

    fn give_up(self, why: NotMirrored) {
        // Its place is free before anybody is told.
        drop(self.copy);
        (self.done)(Err(why));
    }
}

impl MirrorBody {
    fn complete(&mut self) {
        if let Some(copying) = self.copying.take() {
            copying.complete();
        }
    }

    fn give_up(&mut self, why: NotMirrored) {
        if let Some(copying) = self.copying.take() {
            copying.give_up(why);
        }
    }
}

impl BodySource for MirrorBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self;
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            return Poll::Pending;
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(copying)) = (frame.data_ref(), &mut this.copying) {
                    if copying.content.len() + data.len() > MAX_MIRRORED_BYTES {
                        this.give_up(NotMirrored::TooLarge);
                    } else {
                        copying.content.extend_from_slice(data);
                    }
                }
                // Its reader does not ask again when it knows that nothing more comes.
                if this.body.is_end() {
                    this.complete();
                }
            }
            Some(Err(_)) => this.give_up(NotMirrored::Incomplete),
            None => this.complete(),
        }
        Poll::Ready(frame)
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for MirrorBody {
    fn drop(&mut self) {
        self.give_up(NotMirrored::Incomplete);
    }
}

#[cfg(test)]
mod tests;
