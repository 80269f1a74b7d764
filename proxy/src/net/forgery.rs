//! Watches a client's opaque bytes for what only the mesh may tell a workload: who calls.
//!
//! What a workload takes for a request is its own affair: servers in use accept tabs between words, versions such as
//! `1.+1`, third words that are no version, requests behind other bytes. In all of them the caller's name stands in a
//! line that begins with the field's name. In HTTP/2 it does not, whose connections begin with a line of their own.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use memchr::memchr2;
use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};

use super::write_through::write_through;

/// The field's name, as CGI reads it too; a hyphen here stands for both.
const FIELD: &[u8] = b"outrigger-client-id";
/// With what an HTTP/2 connection begins.
const HTTP2: &[u8] = b"PRI * HTTP/2.0";

/// Why reading opaque bytes failed: they would tell the workload who calls.
#[derive(Debug, Error)]
#[error("opaque bytes that name the caller in the mesh's place")]
pub struct Forgery;

impl Forgery {
    /// Whether it is what `error` says.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Where in a line the next byte is.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// At its beginning, or behind whitespace and control bytes there.
    Begin,
    /// Behind so many bytes of [`FIELD`].
    Field(usize),
    /// Behind the whole of it.
    Named,
    /// Behind so many bytes of [`HTTP2`].
    Http2(usize),
    /// Where nothing of interest comes before its end.
    Rest,
}

/// Reads along and keeps nothing of it.
#[derive(Debug)]
struct Watch(Place);

impl Watch {
    /// Reads on; whether it is a forgery.
    fn feed(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            if matches!(self.0, Place::Rest) {
                let Some(end) = memchr2(b'\r', b'\n', bytes) else { return false };
                self.0 = Place::Begin;
                bytes = &bytes[end + 1..];
                continue;
            }
            self.0 = match (self.0, *first) {
                (_, b'\r' | b'\n') => Place::Begin,
                (Place::Begin, byte) if is_blank(byte) => Place::Begin,
                (Place::Begin, byte) => place_in(Place::Field(0), byte),
                (Place::Named, b':') => return true,
                (Place::Named, byte) if is_blank(byte) => Place::Named,
                (place, byte) => place_in(place, byte),
            };
            if matches!(self.0, Place::Http2(length) if length == HTTP2.len()) {
                return true;
            }
            bytes = rest;
        }
        false
    }
}

/// The place behind `byte`, which comes at `place`.
fn place_in(place: Place, byte: u8) -> Place {
    match place {
        Place::Field(at) if FIELD[at] == byte.to_ascii_lowercase() || (FIELD[at] == b'-' && byte == b'_') => {
            if at + 1 == FIELD.len() {
                Place::Named
            } else {
                Place::Field(at + 1)
            }
        }
        Place::Field(0) if byte == HTTP2[0] => Place::Http2(1),
        Place::Http2(at) if HTTP2.get(at) == Some(&byte) => Place::Http2(at + 1),
        _ => Place::Rest,
    }
}

/// Whether some server skips such a byte: whitespace and control bytes, of Latin-1 too.
fn is_blank(byte: u8) -> bool {
    byte <= b' ' || (0x7f..=0xa0).contains(&byte)
}

/// Passes a client's bytes until they are a forgery; then reading fails, before the line is given away to its end.
#[derive(Debug)]
pub struct Guarded<S> {
    inner: S,
    /// `None` where nothing is looked at.
    watch: Option<Watch>,
}

impl<S> Guarded<S> {
    /// Watches all that `inner` gives, or nothing of it.
    pub fn new(inner: S, is_watched: bool) -> Self {
        Self { inner, watch: is_watched.then_some(Watch(Place::Begin)) }
    }

    /// The stream behind it.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if let Some(watch) = &mut self.watch
            && watch.feed(&buf.filled()[before..])
        {
            buf.set_filled(before);
            return Poll::Ready(Err(io::Error::other(Forgery)));
        }
        Poll::Ready(Ok(()))
    }
}

write_through!(Guarded);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn is_forgery(bytes: &[u8]) -> bool {
        let at_once = Watch(Place::Begin).feed(bytes);
        let mut watch = Watch(Place::Begin);
        let byte_by_byte = bytes.iter().any(|byte| watch.feed(&[*byte]));
        assert_eq!(at_once, byte_by_byte, "{}", bytes.escape_ascii());
        at_once
    }

    #[test]
    fn a_line_that_names_the_caller_is_a_forgery_whatever_stands_before_it() {
        let before: &[&[u8]] = &[
            b"",
            b"GET\t/ HTTP/1.1\r\nHost: a\r\n",
            b"GET x\x1cHTTP/1.+1\r\n",
            b"get / x\n",
            b"FOO / BAR\r",
            b"\0\x01\x02\nEHLO /x y\r\nHost: a\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\nGET / HTTP/1.1\r\n",
            b"*1\r\n$4\r\nPING\r\noutrigger\r\noutrigger-client-i\r\n",
            b"PRI * HTTP/2\r\n",
        ];
        let lines: &[&[u8]] = &[
            b"outrigger-client-id: x",
            b"Outrigger-Client-Id:x",
            b"OUTRIGGER_CLIENT-ID : x",
            b" \t\x0boutrigger_client_id\t\x0b:",
            b"\x85\xa0Outrigger-Client-ID:",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ];
        for start in before {
            for line in lines {
                assert!(is_forgery(&[*start, line].concat()), "{}", [*start, line].concat().escape_ascii());
            }
        }
    }

    #[test]
    fn all_other_bytes_pass() {
        let cases: &[&[u8]] = &[
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            b"{\"said\":\"outrigger-client-id: x\"}\n",
            b"<134>1 - web - \"GET / HTTP/1.1\" outrigger-client-id: x\n",
            b"x-outrigger-client-id: x\r\n",
            b"outrigger-client-ids: x\r\n",
            b"outrigger-client-id\r\n: x\r\n",
            b"outrigger-client-id x: y\r\n",
            b"PRI * HTTP/1.1\r\n",
            b"PRIVATE\r\n",
            b"OPTIONS sip:a@b.example SIP/2.0\r\nVia: x\r\n",
            b"GET key\r\nget key\r\nSET user:1 a:b\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x08http/1.1",
        ];
        for bytes in cases {
            assert!(!is_forgery(bytes), "{}", bytes.escape_ascii());
        }
    }

    #[tokio::test]
    async fn a_forgery_in_pieces_is_not_given_away_to_its_end() {
        for is_watched in [true, false] {
            let (mut client, stream) = duplex(64);
            let mut guarded = Guarded::new(stream, is_watched);
            let mut read = Vec::new();
            for piece in ["GET\t/\r\nOutrig", "ger-Client-Id", ": ADMIN\r\n\r\n"] {
                client.write_all(piece.as_bytes()).await.unwrap();
                if let Err(error) = guarded.read_buf(&mut read).await {
                    assert!(Forgery::is(&error), "{error}");
                }
            }
            let text = String::from_utf8(read).unwrap();
            assert_eq!(text.contains("ADMIN"), !is_watched, "{text}");
        }
    }
}
