//! Watches a client's opaque bytes for what only the mesh may tell a workload: who calls.
//!
//! What a workload takes for a request is its own affair: servers in use accept tabs between words, versions such as
//! `1.+1`, third words that are no version, requests behind other bytes. In all of them the caller's name stands in a
//! line that begins with the field's name. In HTTP/2 it does not; but what its connections begin with can stand anywhere:
//! behind the addresses of a PROXY header, or the body of a request that asked for an upgrade.

use std::io;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};

use memchr::{memchr2, memmem};
use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};

use super::write_through::write_through;

/// The field's name. CGI and its heirs read what is no letter or digit as `_`, so that a hyphen here stands for all of it.
const FIELD: &[u8] = b"outrigger-client-id";
/// How the line ends with which an HTTP/2 connection begins, and what stands before that.
const HTTP2: &[u8] = b"HTTP/2.0";
const HTTP2_WORDS: [&[u8]; 2] = [b"*", b"PRI"];
/// Jetty takes any number of blanks between the words of that line. More than these have no other reason than to hide it.
const MAX_BLANKS: usize = 100;
/// Bytes that are kept of what has passed, since the line may come in pieces: as many as it may have.
const KEPT: usize = 256;

static FIND_HTTP2: LazyLock<memmem::Finder<'static>> = LazyLock::new(|| memmem::Finder::new(HTTP2));

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
    /// Where nothing of interest comes before its end.
    Rest,
}

/// Reads along.
#[derive(Debug)]
struct Watch {
    place: Place,
    passed: Passed,
}

impl Watch {
    fn new() -> Self {
        Self { place: Place::Begin, passed: Passed { bytes: [0; KEPT], length: 0 } }
    }

    /// Reads on; whether it is a forgery.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        self.feed_lines(bytes) || self.passed.feed(bytes)
    }

    fn feed_lines(&mut self, mut bytes: &[u8]) -> bool {
        while let Some((first, rest)) = bytes.split_first() {
            if matches!(self.place, Place::Rest) {
                let Some(end) = memchr2(b'\r', b'\n', bytes) else { return false };
                self.place = Place::Begin;
                bytes = &bytes[end + 1..];
                continue;
            }
            self.place = match (self.place, *first) {
                (_, b'\r' | b'\n') => Place::Begin,
                (Place::Begin, byte) if is_blank(byte) => Place::Begin,
                (Place::Begin, byte) => place_in(0, byte),
                (Place::Field(at), byte) => place_in(at, byte),
                (Place::Named, b':') => return true,
                (Place::Named, byte) if is_blank(byte) => Place::Named,
                (Place::Named | Place::Rest, _) => Place::Rest,
            };
            bytes = rest;
        }
        false
    }
}

/// The place behind `byte`, which comes behind so many bytes of [`FIELD`].
fn place_in(at: usize, byte: u8) -> Place {
    let is_next = match FIELD[at] {
        // With a colon the name would end there.
        b'-' => !byte.is_ascii_alphanumeric() && byte != b':',
        letter => letter == byte.to_ascii_lowercase(),
    };
    match at + 1 {
        _ if !is_next => Place::Rest,
        length if length == FIELD.len() => Place::Named,
        length => Place::Field(length),
    }
}

/// The last bytes that have passed.
#[derive(Debug)]
struct Passed {
    bytes: [u8; KEPT],
    length: usize,
}

impl Passed {
    /// Reads on; whether an HTTP/2 connection begins there.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        // What is kept and the beginning of what is new lie side by side for lines that come in pieces.
        let mut joint = [0; 2 * KEPT];
        let (old, new) = (self.length, bytes.len().min(KEPT));
        joint[..old].copy_from_slice(&self.bytes[..old]);
        joint[old..old + new].copy_from_slice(&bytes[..new]);
        let joint = &joint[..old + new];
        let last = if bytes.len() >= KEPT { bytes } else { joint };
        self.length = last.len().min(KEPT);
        self.bytes[..self.length].copy_from_slice(&last[last.len() - self.length..]);
        begins_http2(joint, 0) || (bytes.len() > KEPT && begins_http2(bytes, KEPT))
    }
}

/// Whether an HTTP/2 connection begins in `bytes`, with so many of them at least before [`HTTP2`].
fn begins_http2(bytes: &[u8], before: usize) -> bool {
    // One more byte is needed: the end of the line, which is not given away.
    let from = before.saturating_sub(HTTP2.len());
    FIND_HTTP2.find_iter(&bytes[from..]).any(|at| {
        let (before, rest) = bytes.split_at(from + at);
        matches!(rest.get(HTTP2.len()), Some(b'\r' | b'\n')) && is_before_http2(before)
    })
}

/// Whether these bytes end in what stands before [`HTTP2`].
fn is_before_http2(mut bytes: &[u8]) -> bool {
    for word in HTTP2_WORDS {
        let blanks = bytes.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if blanks > MAX_BLANKS {
            return true;
        }
        match bytes[..bytes.len() - blanks].strip_suffix(word) {
            Some(rest) if blanks > 0 => bytes = rest,
            _ => return false,
        }
    }
    true
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
        Self { inner, watch: is_watched.then(Watch::new) }
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
        let at_once = Watch::new().feed(bytes);
        let mut watch = Watch::new();
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
            b"Outrigger.Client.Id: x",
            b"outrigger client~id: x",
            b"outrigger\x00client\xb7id: x",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ];
        for start in before {
            for line in lines {
                assert!(is_forgery(&[*start, line].concat()), "{}", [*start, line].concat().escape_ascii());
            }
        }
    }

    #[test]
    fn where_http_2_begins_is_a_forgery_wherever_that_is() {
        let addresses = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x30\x39\x1f\x90";
        let upgrade = b"FOO / HTTP/1.1\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc";
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for start in [&addresses[..], upgrade, b"PRI * HTTPRI * ", b"HTTP/2.0", b"x"] {
            assert!(is_forgery(&[start, preface].concat()), "{}", start.escape_ascii());
            assert!(is_forgery(&[start, b"PRI  * \t  HTTP/2.0\n\n"].concat()), "{}", start.escape_ascii());
        }
        // At any distance and in any two or three pieces.
        for distance in (0..20).chain(220..300).step_by(3) {
            let bytes = [&vec![b'.'; distance][..], preface, &[b'.'; 100]].concat();
            for first in 0..bytes.len() {
                let mut watch = Watch::new();
                assert!(watch.feed(&bytes[..first]) || watch.feed(&bytes[first..]), "{distance} {first}");
                let (mut watch, second) = (Watch::new(), (first + 5).min(bytes.len()));
                let mut pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]].into_iter();
                assert!(pieces.any(|piece| watch.feed(piece)), "{distance} {first} {second}");
            }
        }
        // Nothing is gained by blanks that nobody would send.
        for blanks in [1, 30, 100, 101, 150, 500] {
            let blanks = " ".repeat(blanks);
            assert!(is_forgery(format!("x PRI{blanks}*{blanks}HTTP/2.0\r\n").as_bytes()), "{}", blanks.len());
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
            b"PRI * HTTP/2.0",
            b"PRI *HTTP/2.0\r\n",
            b"GET / HTTP/2.0\r\n\r\n",
            b"HTTP/2.0\r\n",
            b" * HTTP/2.0\r\n",
            b"127.0.0.1 \"PRI * HTTP/2.0\" 400 -\n",
            b"\"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n\"\n",
            b"Protocol:                                        HTTP/2.0\r\n",
            b"PRIVATE\r\n",
            b"outrigger:client:id:5\r\n",
            b"outrigger--client-id: x\r\n",
            b"outriggerxclientxid: x\r\n",
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
