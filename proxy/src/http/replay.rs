//! A request body that can be sent more than once: it streams at once, and what has streamed is kept for
//! another try as long as it is little.
//!
//! The client's body is read by one try at a time. A try that is given up gives back what it had read: the next
//! one begins with what was kept and goes on with what the client still sends. Whoever holds the body of the
//! earlier try (hyper or a task of ours) may drop it or poll it again: it reads nothing more, and ends with an
//! error, so that half a request never looks like a whole one.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use crate::net::{Body, BodyError, BodySource};

/// Bytes that are kept of a body (the design's section 4); with more it can't be sent again.
const MAX_KEPT: usize = 64 << 10;
/// Pieces that are kept before they are put together: each is some bytes of bookkeeping and may hold a buffer larger than
/// itself, so that a client that sends byte by byte would have us keep a multiple of [`MAX_KEPT`]. At one byte each, all
/// of [`MAX_KEPT`] is copied 64 times, 2 MiB together.
const MAX_PIECES: usize = 1024;

/// A request's body for all of its tries. Dropped when no more of them come: nothing is kept from then on,
/// and the last try goes on with what it has.
pub struct Replay(Option<Rc<RefCell<Shared>>>);

impl Replay {
    /// `body` is the client's, watched already: it is read once, whatever the number of tries. Costs nothing where
    /// there is no body.
    pub fn new(body: Body) -> Self {
        Self((!body.is_end()).then(|| {
            Rc::new(RefCell::new(Shared {
                original: Some(body),
                kept: Vec::new(),
                kept_bytes: 0,
                trailers: None,
                keeps: true,
                is_whole: true,
                is_broken: false,
                current: 0,
                waiting: None,
            }))
        }))
    }

    /// Whether another try could send all of the body.
    pub fn can_be_sent(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.borrow().is_whole)
    }

    /// The body for the first try or another one, in place of the try before; `None` when the client broke its body
    /// off or too much of it is gone.
    pub fn next_try(&self) -> Option<Body> {
        let Some(shared) = &self.0 else {
            return Some(Body::empty());
        };
        let (number, given_up) = {
            let mut state = shared.borrow_mut();
            if !state.is_whole {
                return None;
            }
            state.current += 1;
            (state.current, state.waiting.take())
        };
        // From now on the client's body wakes the new reader; the earlier one, if it still waits, is to see its end.
        if let Some(waker) = given_up {
            waker.wake();
        }
        let reader = Reader { shared: shared.clone(), number, next: 0, trailers_given: false };
        Some(Body::from_source(reader))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if let Some(shared) = &self.0 {
            let mut state = shared.borrow_mut();
            state.keeps = false;
            state.is_whole = false;
        }
    }
}

struct Shared {
    /// The client's body; dropped at its end, since its watch waits for that.
    original: Option<Body>,
    /// What has been read of it.
    kept: Vec<Bytes>,
    kept_bytes: usize,
    trailers: Option<HeaderMap>,
    /// What is read is kept.
    keeps: bool,
    /// All that was read is there for another try.
    is_whole: bool,
    /// The client broke it off.
    is_broken: bool,
    /// The try that reads, counted from 1.
    current: u32,
    /// Of the reader that found nothing to read.
    waiting: Option<Waker>,
}

impl Shared {
    /// Whether the reader of this number gets no more, other than by the body's end.
    fn is_over_for(&self, number: u32) -> bool {
        self.is_broken || self.current != number
    }

    /// Keeps a piece that was read, unless that makes it too much.
    fn keep(&mut self, data: &Bytes) {
        if !self.keeps || data.is_empty() {
            return;
        }
        if self.kept_bytes + data.len() > MAX_KEPT {
            self.keeps = false;
            self.is_whole = false;
            // Whoever reads the client's body has been given all of it.
            self.kept = Vec::new();
            return;
        }
        if self.kept.len() == MAX_PIECES {
            // Whoever reads the client's body has been given all of them, and a later try begins with the first.
            self.kept = vec![self.kept.concat().into()];
        }
        self.kept_bytes += data.len();
        self.kept.push(data.clone());
    }

    /// Reads on in the client's body.
    fn read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(original) = &mut self.original else {
            return Poll::Ready(None);
        };
        let Poll::Ready(frame) = Pin::new(&mut *original).poll_frame(cx) else {
            return Poll::Pending;
        };
        let ended = !matches!(frame, Some(Ok(_))) || original.is_end();
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.keep(data);
                } else if let (Some(trailers), true) = (frame.trailers_ref(), self.keeps) {
                    self.trailers = Some(trailers.clone());
                }
            }
            Some(Err(_)) => {
                self.is_whole = false;
                self.is_broken = true;
            }
            None => {}
        }
        if ended {
            self.original = None;
        }
        Poll::Ready(frame)
    }
}

/// The body of one try.
struct Reader {
    shared: Rc<RefCell<Shared>>,
    number: u32,
    /// Index of the kept piece that comes next.
    next: usize,
    trailers_given: bool,
}

impl BodySource for Reader {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut guard = self.shared.borrow_mut();
        let shared = &mut *guard;
        if shared.is_over_for(self.number) {
            return Poll::Ready(Some(Err(BodyError::GivenUp)));
        }
        let keeps = shared.keeps;
        if let Some(piece) = shared.kept.get_mut(self.next) {
            self.next += 1;
            let piece = if keeps { piece.clone() } else { std::mem::take(piece) };
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if shared.original.is_none() {
            let trailers = (!self.trailers_given).then(|| shared.trailers.clone()).flatten();
            self.trailers_given = true;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if !keeps {
            shared.kept.clear();
            self.next = 0;
        }
        let Poll::Ready(frame) = shared.read(cx) else {
            let before = match &shared.waiting {
                Some(waker) if waker.will_wake(cx.waker()) => None,
                _ => shared.waiting.replace(cx.waker().clone()),
            };
            drop(guard);
            // Outside of the borrow: what a waker holds is not ours to know.
            drop(before);
            return Poll::Pending;
        };
        if matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
            self.trailers_given = true;
        }
        self.next = shared.kept.len();
        Poll::Ready(frame)
    }

    fn is_end(&self) -> bool {
        let shared = self.shared.borrow();
        !shared.is_over_for(self.number)
            && shared.original.is_none()
            && self.next >= shared.kept.len()
            && (self.trailers_given || shared.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let shared = self.shared.borrow();
        let kept: usize = shared.kept.iter().skip(self.next).map(Bytes::len).sum();
        let to_come = match &shared.original {
            Some(original) => original.size_hint(),
            None => SizeHint::with_exact(0),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(kept as u64 + to_come.lower());
        if let Some(upper) = to_come.upper() {
            hint.set_upper(kept as u64 + upper);
        }
        hint
    }
}

#[cfg(test)]
mod tests;
