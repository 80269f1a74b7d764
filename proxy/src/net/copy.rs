//! Copies opaque bytes both ways, half-close included.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A direction's buffer: one TLS record's payload fits, so that nothing is sent in halves.
const BUFFER: usize = 16 << 10;

/// Bytes that went each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// From the client.
    pub received: u64,
    /// To the client.
    pub sent: u64,
}

struct Direction {
    buffer: Option<Box<[u8; BUFFER]>>,
    start: usize,
    end: usize,
    total: u64,
    unflushed: bool,
    state: State,
}

enum State {
    Copying,
    ShuttingDown,
    Done,
}

impl Direction {
    fn new() -> Self {
        Self { buffer: None, start: 0, end: 0, total: 0, unflushed: false, state: State::Copying }
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
                    if self.start == self.end {
                        match self.poll_fill(cx, reader)? {
                            Poll::Ready(0) => {
                                self.state = State::ShuttingDown;
                                continue;
                            }
                            Poll::Ready(_) => {}
                            Poll::Pending => {
                                if self.unflushed {
                                    ready!(Pin::new(&mut *writer).poll_flush(cx))?;
                                    self.unflushed = false;
                                }
                                // An idle connection holds no buffer.
                                self.buffer = None;
                                return Poll::Pending;
                            }
                        }
                    }
                    if let Some(buffer) = &self.buffer {
                        let written =
                            ready!(Pin::new(&mut *writer).poll_write(cx, &buffer[self.start..self.end]))?;
                        if written == 0 {
                            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                        }
                        self.start += written;
                        self.total += written as u64;
                        self.unflushed = true;
                    }
                }
            }
        }
    }

    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
    ) -> Poll<io::Result<usize>> {
        let buffer = self.buffer.get_or_insert_with(|| Box::new([0; BUFFER]));
        let mut read = ReadBuf::new(&mut buffer[..]);
        ready!(Pin::new(reader).poll_read(cx, &mut read))?;
        self.start = 0;
        self.end = read.filled().len();
        Poll::Ready(Ok(self.end))
    }
}

/// Copies until both sides have ended; an end of one is passed on to the other as a half-close.
/// `copied` counts along, and holds what was copied also when this fails or is dropped.
///
/// # Errors
/// Those of either side.
pub async fn copy_both_ways<A, B>(client: &mut A, server: &mut B, copied: &mut Copied) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Direction::new();
    let mut down = Direction::new();
    poll_fn(|cx| {
        let first = up.poll(cx, client, server);
        let second = down.poll(cx, server, client);
        *copied = Copied { received: up.total, sent: down.total };
        let (first, second) = (first?, second?);
        if first.is_ready() && second.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
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
            copy_both_ways(&mut proxy_client, &mut proxy_server, &mut copied).await.map(|()| copied)
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
        assert_eq!(copying.await.unwrap().unwrap(), Copied { received: 8, sent: 10 });
    }
}
