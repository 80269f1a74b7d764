//! Copies opaque bytes both ways, half-close included.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::standstill::Standstill;

/// Bytes read at once. One buffer serves all connections of a thread: an idle connection holds none.
const BUFFER: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Bytes that went each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
    /// It was the server's side that failed.
    pub server_failed: bool,
}

struct Direction {
    /// What was read and could not be written yet.
    rest: Bytes,
    total: u64,
    unflushed: bool,
    read_failed: bool,
    state: State,
}

enum State {
    Copying,
    ShuttingDown,
    Done,
}

impl Direction {
    fn new() -> Self {
        Self { rest: Bytes::new(), total: 0, unflushed: false, read_failed: false, state: State::Copying }
    }

    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<io::Result<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::ShuttingDown => {
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx))?;
                    self.state = State::Done;
                }
                State::Copying => {
                    while !self.rest.is_empty() {
                        let written = ready!(self.poll_write(cx, writer, &self.rest.clone()))?;
                        self.rest.advance(written);
                    }
                    match SCRATCH.with_borrow_mut(|scratch| self.poll_through(cx, scratch, reader, writer))? {
                        Poll::Ready(0) => self.state = State::ShuttingDown,
                        Poll::Ready(_) => {}
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                }
            }
        }
    }

    /// Reads once and writes what was read; what can't be written now is kept. Gives the bytes read.
    fn poll_through<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut [u8],
        reader: &mut R,
        writer: &mut W,
    ) -> Poll<io::Result<usize>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut read = ReadBuf::new(scratch);
        if let Err(error) = ready!(Pin::new(reader).poll_read(cx, &mut read)) {
            self.read_failed = true;
            return Poll::Ready(Err(error));
        }
        let bytes = read.filled();
        let mut written = 0;
        while written < bytes.len() {
            match self.poll_write(cx, writer, &bytes[written..]) {
                Poll::Ready(n) => written += n?,
                Poll::Pending => {
                    self.rest = Bytes::copy_from_slice(&bytes[written..]);
                    break;
                }
            }
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write<W>(&mut self, cx: &mut Context<'_>, writer: &mut W, bytes: &[u8]) -> Poll<io::Result<usize>>
    where
        W: AsyncWrite + Unpin,
    {
        let written = ready!(Pin::new(writer).poll_write(cx, bytes))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.total += written as u64;
        self.unflushed = true;
        Poll::Ready(Ok(written))
    }
}

/// Copies until both sides have ended; an end of one is passed on to the other as a half-close.
/// `copied` counts along, and holds what was copied also when this fails or is dropped.
///
/// # Errors
/// Those of either side; [`io::ErrorKind::TimedOut`] when nothing moved for `idle_timeout`.
pub async fn copy_both_ways<A, B>(
    client: &mut A,
    server: &mut B,
    copied: &mut Copied,
    idle_timeout: Option<Duration>,
) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Direction::new();
    let mut down = Direction::new();
    let mut standstill = idle_timeout.map(Standstill::new);
    poll_fn(|cx| {
        let first = up.poll(cx, client, server);
        let second = down.poll(cx, server, client);
        let server_failed = down.read_failed || (matches!(first, Poll::Ready(Err(_))) && !up.read_failed);
        let now = Copied { received: up.total, sent: down.total, server_failed };
        let before = std::mem::replace(copied, now);
        let (first, second) = (first?, second?);
        if first.is_ready() && second.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let Some(standstill) = &mut standstill else { return Poll::Pending };
        if now != before {
            standstill.moved();
        }
        standstill.poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_half_close_is_passed_on_and_the_other_way_goes_on() {
        let (mut client, mut proxy_client) = duplex(64);
        let (mut server, mut proxy_server) = duplex(64);
        let copying = tokio::spawn(async move {
            let mut copied = Copied::default();
            copy_both_ways(&mut proxy_client, &mut proxy_server, &mut copied, None).await.map(|()| copied)
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut question = Vec::new();
        server.read_to_end(&mut question).await.unwrap();
        assert_eq!(question, b"question");
        server.write_all(b"the answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"the answer");
        assert_eq!(copying.await.unwrap().unwrap(), Copied { received: 8, sent: 10, ..Copied::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn what_stands_still_for_too_long_ends_and_what_moves_does_not() {
        let limit = Duration::from_secs(10);
        let (mut client, mut proxy_client) = duplex(64);
        let (mut server, mut proxy_server) = duplex(64);
        let started = tokio::time::Instant::now();
        let copying = tokio::spawn(async move {
            let mut copied = Copied::default();
            let ended = copy_both_ways(&mut proxy_client, &mut proxy_server, &mut copied, Some(limit)).await;
            (ended, copied)
        });
        for _ in 0..5 {
            tokio::time::sleep(limit * 9 / 10).await;
            client.write_all(b"x").await.unwrap();
            server.read_u8().await.unwrap();
        }
        let (ended, copied) = copying.await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(copied.received, 5);
        assert_eq!(started.elapsed().as_secs(), 45 + 10);
    }
}
