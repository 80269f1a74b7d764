//! What hyper's HTTP/1.1 server does by itself and a transparent proxy must not, put right on its way
//! to the socket:
//!
//! - hyper sends `100 Continue` as soon as a body is read; the client must see one only if the workload
//!   sent it, so hyper's is swallowed and the workload's is written in its place.
//! - hyper answers unparsable requests with a bare status; the client is told by `Proxy-Status` who
//!   refused them and why.
//! - hyper drops what it has not written yet, the head too, when a response's body breaks off; the client
//!   must get what came before.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{Body, BodyError};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Shared by a connection's bytes and its requests. hyper demands `Send` of both, hence atomics; they
/// all live on one thread.
#[derive(Debug, Default)]
pub(super) struct Control {
    swallow_continue: AtomicBool,
    continue_due: AtomicBool,
    continue_written: AtomicU8,
    /// Held by the request being served and by the bodies of its exchange.
    in_service: Arc<()>,
    /// A response was handed over, and not a byte of it is written yet.
    answering: AtomicBool,
    /// The connection became a tunnel: its bytes are no longer ours.
    tunnel: AtomicBool,
    /// The response broke off, and not all that came of it is written yet.
    flush_awaited: AtomicBool,
    reader: Mutex<Option<Waker>>,
    head_began: Mutex<Option<Instant>>,
    refused: AtomicBool,
}

impl Control {
    /// A request's head is whole.
    /// What is returned is held until the exchange is over.
    pub(super) fn request_began(&self, expects_continue: bool) -> Arc<()> {
        self.swallow_continue.store(expects_continue, Relaxed);
        self.continue_due.store(false, Relaxed);
        self.continue_written.store(0, Relaxed);
        self.set_head_began(None);
        self.in_service.clone()
    }

    /// Its response is handed over; `tunnel` when it turns the connection into one.
    pub(super) fn answered(&self, tunnel: bool) {
        self.answering.store(true, Relaxed);
        self.swallow_continue.store(false, Relaxed);
        self.tunnel.store(tunnel, Relaxed);
    }

    /// The workload wants the body: the client is told so.
    pub(super) fn send_continue(&self) {
        if self.swallow_continue.load(Relaxed) && !self.continue_due.swap(true, Relaxed) {
            let waker = self.reader.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// When the first byte of a head came that is not whole yet.
    pub(super) fn head_began(&self) -> Option<Instant> {
        *self.head_began.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether hyper refused a request as unparsable.
    pub(super) fn refused_a_request(&self) -> bool {
        self.refused.load(Relaxed)
    }

    fn set_head_began(&self, at: Option<Instant>) {
        *self.head_began.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn is_between_requests(&self) -> bool {
        Arc::strong_count(&self.in_service) == 1
    }
}

/// The bytes of an HTTP/1.1 server connection.
#[derive(Debug)]
pub(super) struct Http1Io<S> {
    inner: S,
    control: Arc<Control>,
    /// Our version of a refusal, and how much of it is written.
    refusal: Option<(Vec<u8>, usize)>,
}

impl<S> Http1Io<S> {
    pub(super) fn new(inner: S) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        (Self { inner, control: control.clone(), refusal: None }, control)
    }

    pub(super) fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: AsyncWrite + Unpin> Http1Io<S> {
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut written = usize::from(self.control.continue_written.load(Relaxed));
        while written < CONTINUE.len() {
            written += ready!(Pin::new(&mut self.inner).poll_write(cx, &CONTINUE[written..]))?;
            // CONTINUE is 25 bytes long.
            self.control.continue_written.store(written as u8, Relaxed);
        }
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.control.continue_written.store(0, Relaxed);
        self.control.continue_due.store(false, Relaxed);
        self.control.swallow_continue.store(false, Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Writes `buf` if it holds nothing of what must not pass; `None` when there is nothing to do here.
    fn poll_mend(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if self.control.tunnel.load(Relaxed) {
            return None;
        }
        if let Some((refusal, written)) = &mut self.refusal {
            while *written < refusal.len() {
                match Pin::new(&mut self.inner).poll_write(cx, &refusal[*written..]) {
                    Poll::Ready(Ok(n)) => *written += n,
                    Poll::Ready(Err(error)) => return Some(Poll::Ready(Err(error))),
                    Poll::Pending => return Some(Poll::Pending),
                }
            }
            self.refusal = None;
            return Some(Poll::Ready(Ok(buf.len())));
        }
        if self.control.swallow_continue.load(Relaxed) && buf.ends_with(CONTINUE) {
            let before = buf.len() - CONTINUE.len();
            return Some(if before == 0 {
                Poll::Ready(Ok(buf.len()))
            } else {
                Pin::new(&mut self.inner).poll_write(cx, &buf[..before])
            });
        }
        let a_response = self.control.answering.swap(false, Relaxed);
        if !a_response && self.control.is_between_requests() && is_bare_refusal(buf) {
            self.control.refused.store(true, Relaxed);
            self.refusal = Some((refusal(buf), 0));
            return self.poll_mend(cx, buf);
        }
        None
    }
}

/// A response's body that tells hyper of its breaking off once all before is written.
pub(super) struct FlushedFirst {
    body: Body,
    broken: Option<BodyError>,
    control: Arc<Control>,
}

impl FlushedFirst {
    /// `control` is of the connection that the response goes to.
    pub(super) fn new(body: Body, control: Arc<Control>) -> Self {
        Self { body, broken: None, control }
    }
}

impl http_body::Body for FlushedFirst {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.broken.is_none() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Err(error)) => {
                    self.broken = Some(error);
                    self.control.flush_awaited.store(true, Relaxed);
                }
                frame => return Poll::Ready(frame),
            }
        }
        if self.control.flush_awaited.load(Relaxed) {
            // The flush that hyper tries next wakes this task.
            return Poll::Pending;
        }
        Poll::Ready(self.broken.take().map(Err))
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// hyper's answer to what it can't parse: 400, 414 or 431, without any field that a workload would add.
fn is_bare_refusal(buf: &[u8]) -> bool {
    (buf.starts_with(b"HTTP/1.1 400 ")
        || buf.starts_with(b"HTTP/1.1 414 ")
        || buf.starts_with(b"HTTP/1.1 431 "))
        && buf.ends_with(b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        && buf.iter().filter(|b| **b == b'\n').count() == 4
}

fn refusal(buf: &[u8]) -> Vec<u8> {
    let detail = match &buf[9..12] {
        b"431" => "header section over 64 KiB or 100 fields",
        b"414" => "request target too long",
        _ => "request can not be parsed",
    };
    let mut mended = buf[..buf.len() - 2].to_vec();
    mended.extend_from_slice(
        format!("proxy-status: outrigger; error=http_request_error; details=\"{detail}\"\r\n\r\n").as_bytes(),
    );
    mended
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Http1Io<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.control.swallow_continue.load(Relaxed) {
            if this.control.continue_due.load(Relaxed) {
                ready!(this.poll_continue(cx))?;
            } else {
                *this.control.reader.lock().unwrap_or_else(PoisonError::into_inner) =
                    Some(cx.waker().clone());
            }
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
        if buf.filled().len() > before
            && this.control.is_between_requests()
            && this.control.head_began().is_none()
        {
            this.control.set_head_began(Some(Instant::now()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Http1Io<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(done) = self.poll_mend(cx, buf) {
            return done;
        }
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        if self.control.flush_awaited.load(Relaxed) {
            self.control.flush_awaited.store(false, Relaxed);
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(first) = bufs.iter().find(|buf| !buf.is_empty())
            && let Some(done) = self.poll_mend(cx, first)
        {
            return done;
        }
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_refusal_is_told_from_a_workloads_response() {
        let bare =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert!(is_bare_refusal(bare));
        let text = String::from_utf8(refusal(bare)).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 "), "{text}");
        assert!(
            text.contains("\r\nproxy-status: outrigger; error=http_request_error; details=\"header section"),
            "{text}"
        );
        assert!(text.ends_with("\"\r\n\r\n"), "{text}");
        assert!(!is_bare_refusal(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"));
        assert!(!is_bare_refusal(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nsorry"));
    }
}
