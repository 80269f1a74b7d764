//! A message body as it streams through: never collected, never copied.

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
}

impl BodyError {
    /// The HTTP/2 error code that tells the next party why.
    pub fn reason(&self) -> h2::Reason {
        match self {
            Self::Http2(error) => error.reason().unwrap_or(h2::Reason::CANCEL),
            Self::Http1(_) | Self::Standstill(_) => h2::Reason::CANCEL,
        }
    }
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
    Http1(Incoming),
    Http2 {
        stream: h2::RecvStream,
        data_ended: bool,
    },
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

    /// Whether nothing more comes.
    pub fn is_end(&self) -> bool {
        self.ended
            || match &self.kind {
                Kind::Empty => true,
                Kind::Full(content) => content.is_empty(),
                Kind::Http1(incoming) => http_body::Body::is_end_stream(incoming),
                Kind::Http2 { stream, .. } => stream.is_end_stream(),
            }
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.kind {
            Kind::Empty => Poll::Ready(None),
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
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Full(content) => SizeHint::with_exact(content.len() as u64),
            Kind::Http1(incoming) => http_body::Body::size_hint(incoming),
            Kind::Http2 { .. } => SizeHint::default(),
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
