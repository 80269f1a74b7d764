//! A message body as it streams through: never collected, never copied.

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use thiserror::Error;

use super::fields::strip_trailers;
use super::standstill::Standstill;

/// Is told what passes through a body.
pub trait BodyWatch {
    /// Bytes of content passed.
    fn data(&mut self, bytes: usize);
    /// Nothing is there at the moment, and the reader waits for more.
    fn waiting(&mut self);
    /// Trailers passed.
    fn trailers(&mut self, trailers: &HeaderMap);
    /// The body ended. Called once.
    fn end(&mut self, how: BodyEnd);
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// Whole.
    Complete,
    /// Its sender broke off.
    Broken,
    /// Its reader lost interest.
    Abandoned,
}

/// Where a body comes from that is neither there already nor read from a connection directly.
pub trait BodySource {
    /// The next frame; `None` at the end.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;
    /// Whether nothing more comes.
    fn is_end(&self) -> bool;
    /// How many bytes of content are still to come, as far as that is known.
    fn size_hint(&self) -> SizeHint;
}

/// Why a body broke off.
#[derive(Debug, Error)]
pub enum BodyError {
    /// On an HTTP/1.1 connection.
    #[error("body broke off: {0}")]
    Http1(#[from] hyper::Error),
    /// On an HTTP/2 stream.
    #[error("body broke off: {0}")]
    Http2(#[from] h2::Error),
    /// Nothing came for too long.
    #[error("nothing of the body came within {0:?}")]
    Standstill(Duration),
    /// The request goes another way by now. Never an end: half a request must not look like a whole one.
    #[error("this try of the request was given up")]
    GivenUp,
}

impl BodyError {
    /// The HTTP/2 error code that tells the next party why.
    pub fn reason(&self) -> h2::Reason {
        match self {
            Self::Http2(error) => error.reason().unwrap_or(h2::Reason::CANCEL),
            // Chunks or trailers that are none: our own peer then knows that HTTP was broken, and not a connection.
            Self::Http1(error) if breaks_http(error) => h2::Reason::PROTOCOL_ERROR,
            Self::Http1(_) | Self::Standstill(_) | Self::GivenUp => h2::Reason::CANCEL,
        }
    }
}

/// Whether bytes came that are no body; of what was wrong hyper tells the kind of its cause only.
fn breaks_http(error: &hyper::Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), ErrorKind::InvalidInput | ErrorKind::InvalidData))
}

/// A body from any of the parties, with an optional observer.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    ended: bool,
    watch: Option<Box<dyn BodyWatch>>,
    held: Option<Arc<()>>,
    standstill: Option<Box<Standstill>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    /// No content, and a length for the head: what a 304 leaves away.
    LeftAway(u64),
    Http1(Incoming),
    Http2 {
        stream: h2::RecvStream,
        data_ended: bool,
    },
    Source(Box<dyn BodySource>),
}

impl Body {
    /// No content.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Content that is there already.
    pub fn full(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        if content.is_empty() { Self::empty() } else { Self::of(Kind::Full(content)) }
    }

    /// What `source` gives.
    pub fn from_source(source: impl BodySource + 'static) -> Self {
        if source.is_end() { Self::empty() } else { Self::of(Kind::Source(Box::new(source))) }
    }

    /// Of no content, keeps its `Content-Length`, which hyper would drop from a response that is none to `HEAD`.
    #[must_use]
    pub fn left_away(mut self, length: u64) -> Self {
        if self.is_end() {
            self.kind = Kind::LeftAway(length);
        }
        self
    }

    fn of(kind: Kind) -> Self {
        Self { kind, ended: false, watch: None, held: None, standstill: None }
    }

    /// Has `watch` told what passes, in place of any earlier one.
    #[must_use]
    pub fn watched(mut self, watch: Box<dyn BodyWatch>) -> Self {
        self.watch = Some(watch);
        self
    }

    /// Holds `token` for as long as the body lives: who counts its holders knows when it is over.
    #[must_use]
    pub fn holding(mut self, token: Arc<()>) -> Self {
        self.held = Some(token);
        self
    }

    /// Breaks off when nothing comes for `limit` while its reader waits.
    #[must_use]
    pub fn ending_when_idle_for(mut self, limit: Option<Duration>) -> Self {
        if let Some(limit) = limit
            && !self.is_end()
        {
            self.standstill = Some(Box::new(Standstill::new(limit)));
        }
        self
    }

    /// How long it may stand still.
    pub fn idle_limit(&self) -> Option<Duration> {
        self.standstill.as_ref().map(|standstill| standstill.limit())
    }

    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        self.ended
            || match &self.kind {
                Kind::Empty | Kind::LeftAway(_) => true,
                Kind::Full(content) => content.is_empty(),
                Kind::Http1(incoming) => http_body::Body::is_end_stream(incoming),
                Kind::Http2 { stream, .. } => stream.is_end_stream(),
                Kind::Source(source) => source.is_end(),
            }
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty | Kind::LeftAway(_) => Poll::Ready(None),
            Kind::Full(content) => {
                let content = std::mem::take(content);
                Poll::Ready((!content.is_empty()).then(|| Ok(Frame::data(content))))
            }
            Kind::Http1(incoming) => Pin::new(incoming).poll_frame(cx).map_err(BodyError::from),
            Kind::Http2 { stream, data_ended } => {
                if !*data_ended {
                    match ready!(stream.poll_data(cx)) {
                        Some(Ok(bytes)) => {
                            // The reader asks only when it has room, so the window may open again.
                            let released = stream.flow_control().release_capacity(bytes.len());
                            return Poll::Ready(Some(
                                released.map(|()| Frame::data(bytes)).map_err(Into::into),
                            ));
                        }
                        // NO_ERROR after a whole response: the peer does not want the rest of the request.
                        Some(Err(error)) if error.reason() == Some(h2::Reason::NO_ERROR) => {
                            return Poll::Ready(None);
                        }
                        Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                        None => *data_ended = true,
                    }
                }
                match ready!(stream.poll_trailers(cx)) {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(error.into()))),
                }
            }
            Kind::Source(source) => source.poll_frame(cx),
        }
    }
}

impl From<Incoming> for Body {
    fn from(incoming: Incoming) -> Self {
        if http_body::Body::is_end_stream(&incoming) {
            Self::empty()
        } else {
            Self::of(Kind::Http1(incoming))
        }
    }
}

impl From<h2::RecvStream> for Body {
    fn from(stream: h2::RecvStream) -> Self {
        if stream.is_end_stream() {
            return Self::empty();
        }
        Self::of(Kind::Http2 { stream, data_ended: false })
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut frame = match self.poll_kind(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if let Some(watch) = &mut self.watch {
                    watch.waiting();
                }
                let Some(standstill) = &mut self.standstill else { return Poll::Pending };
                ready!(standstill.poll(cx));
                Some(Err(BodyError::Standstill(standstill.limit())))
            }
        };
        if let Some(standstill) = &mut self.standstill {
            standstill.moved();
        }
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_mut() {
                    // Nothing comes after them, and their reader does not ask again.
                    self.ended = true;
                    strip_trailers(trailers);
                    if let Some(watch) = &mut self.watch {
                        watch.trailers(trailers);
                    }
                } else if let (Some(watch), Some(data)) = (&mut self.watch, frame.data_ref()) {
                    watch.data(data.len());
                }
            }
            Some(Err(_)) => {
                if let Some(mut watch) = self.watch.take() {
                    watch.end(BodyEnd::Broken);
                }
            }
            None => self.ended = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.is_end() && !matches!(self.kind, Kind::LeftAway(_))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(content) => SizeHint::with_exact(content.len() as u64),
            Kind::LeftAway(length) => SizeHint::with_exact(*length),
            Kind::Http1(incoming) => http_body::Body::size_hint(incoming),
            Kind::Http2 { .. } => SizeHint::default(),
            Kind::Source(source) => source.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            watch.end(if self.is_end() { BodyEnd::Complete } else { BodyEnd::Abandoned });
        }
    }
}
