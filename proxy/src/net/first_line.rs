//! Watches a client's first line pass: opaque bytes may turn out to be a request after all.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

use super::detect::is_request_line;
use super::write_through::write_through;

/// Passes a client's bytes until its first line proves to be a request's; then reading fails, before the
/// rest of the line is given away.
#[derive(Debug)]
pub struct FirstLine<S> {
    inner: S,
    /// What passed of the first line; `None` once it is known not to be a request's.
    passed: Option<BytesMut>,
}

impl<S> FirstLine<S> {
    /// Goes on after `passed`, which did not decide it; `None` when it was decided.
    pub fn after(passed: Option<&Bytes>, inner: S) -> Self {
        Self { inner, passed: passed.map(|passed| BytesMut::from(&passed[..])) }
    }

    /// The stream behind it.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for FirstLine<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(passed) = &mut self.passed {
            passed.extend_from_slice(&buf.filled()[before..]);
            match is_request_line(passed) {
                None => {}
                Some(false) => self.passed = None,
                Some(true) => {
                    buf.set_filled(before);
                    return Poll::Ready(Err(io::Error::other(
                        "a request that came as opaque bytes, in pieces",
                    )));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

write_through!(FirstLine);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_request_in_pieces_is_stopped_and_other_bytes_pass() {
        for (rest, passes) in [("T /a HTTP/1.2\r\nx: y\r\n", false), ("T key\r\nPING\r\n", true)] {
            let (mut client, stream) = duplex(64);
            let mut guarded = FirstLine::after(Some(&Bytes::from_static(b"GE")), stream);
            client.write_all(rest.as_bytes()).await.unwrap();
            drop(client);
            let mut read = Vec::new();
            let result = guarded.read_to_end(&mut read).await;
            assert_eq!((result.is_ok(), read.is_empty()), (passes, !passes), "{rest}");
        }
    }
}
