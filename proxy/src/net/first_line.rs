//! Watches the first line of opaque bytes: a lenient server may take for a request what no client speaks.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use thiserror::Error;
use tokio::io::{AsyncRead, ReadBuf};

use super::detect::{METHODS, is_token};
use super::write_through::write_through;

/// Further methods of servers in use: Node's parser takes those of RTSP and Icecast, and their versions, for its own.
const MORE_METHODS: &[&[u8]] = &[
    b"REBIND",
    b"UNBIND",
    b"MKACTIVITY",
    b"PRI",
    b"SOURCE",
    b"DESCRIBE",
    b"ANNOUNCE",
    b"SETUP",
    b"PLAY",
    b"PAUSE",
    b"TEARDOWN",
    b"GET_PARAMETER",
    b"SET_PARAMETER",
    b"REDIRECT",
    b"RECORD",
    b"FLUSH",
];
/// The longest method.
const WORD: usize = 13;
const PROXY_1: &[u8] = b"PROXY";
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What is known of opaque bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing yet: more bytes are needed.
    Nothing,
    /// No server would take them for a request.
    Opaque,
    /// A lenient server might.
    Request,
}

/// Reads along, byte by byte, and keeps none but the last few: a first line may be endless.
///
/// What precedes the line is skipped: blank lines, whitespace, control bytes, and a header of the PROXY protocol.
#[derive(Clone, Debug)]
pub struct FirstLineWatch {
    place: Place,
    found: Found,
    /// The last 16 bytes.
    recent: u128,
    /// Bytes since the beginning, or the end of a PROXY header.
    position: u64,
    /// They are a TLS ClientHello, which may name `http/1.1` as an application protocol.
    tls: bool,
    word: [u8; WORD],
    word_length: usize,
    version: Version,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Before the line.
    Lead,
    /// In its first word.
    Word,
    /// Behind a method; whether one space is all that came.
    Gap { plain: bool },
    /// In the rest of a line of no interest but for a version.
    Rest,
    /// Behind a method and one space, in words that are no path: Redis' inline `GET key`, SIP's `OPTIONS sip:…`.
    Words { blank: bool, third: bool },
    /// Behind it: a server of HTTP/0.9 may read fields there.
    Fields(Field),
    /// In a PROXY header of version 1.
    Proxy1,
    /// In one of version 2, with so many bytes to come before its length is known.
    Proxy2(u8),
    /// In one of version 2, with so many bytes to come.
    Proxy2Rest(u16),
}

/// How much of `HTTP/1.1` at the end of a line has come. Elsewhere in it, as in a line of an access log that is shipped,
/// no server takes it for a request's.
#[derive(Clone, Copy, Debug)]
enum Version {
    None,
    Named,
    Numbered,
    Ended,
}

#[derive(Clone, Copy, Debug)]
enum Field {
    Lead,
    Name,
    Gap,
    Other,
}

impl FirstLineWatch {
    /// Nothing has been read.
    pub(super) fn new() -> Self {
        Self {
            place: Place::Lead,
            found: Found::Nothing,
            recent: 0,
            position: 0,
            tls: false,
            word: [0; WORD],
            word_length: 0,
            version: Version::None,
        }
    }

    /// Reads on.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Found {
        for byte in bytes {
            if self.found != Found::Nothing {
                break;
            }
            self.found = self.step(*byte);
        }
        self.found
    }

    fn step(&mut self, byte: u8) -> Found {
        self.recent = self.recent << 8 | u128::from(byte);
        self.position += 1;
        match self.place {
            Place::Fields(at) => return self.field(at, byte),
            Place::Proxy2(left) => {
                let [.., high, low] = self.recent.to_be_bytes();
                match (left, u16::from_be_bytes([high, low])) {
                    (1, 0) => self.restart(),
                    (1, length) => self.place = Place::Proxy2Rest(length),
                    _ => self.place = Place::Proxy2(left - 1),
                }
                return Found::Nothing;
            }
            Place::Proxy2Rest(1) => {
                self.restart();
                return Found::Nothing;
            }
            Place::Proxy2Rest(left) => {
                self.place = Place::Proxy2Rest(left - 1);
                return Found::Nothing;
            }
            _ => {}
        }
        let recent = self.recent.to_be_bytes();
        if self.position == 7 {
            // A record of version 3.x with a handshake message, a ClientHello of less than 64 KiB.
            self.tls = matches!(recent, [.., 0x16, 3, 0..=4, _, _, 1, 0]);
        }
        self.version = match (self.version, byte) {
            (_, b'/') if !self.tls && names_a_protocol(&recent) => Version::Named,
            (Version::Named | Version::Numbered, b'0'..=b'9' | b'.') => Version::Numbered,
            (Version::Numbered | Version::Ended, b'\r' | b'\n') => return Found::Request,
            (Version::Numbered | Version::Ended, byte) if is_blank(byte) => Version::Ended,
            _ => Version::None,
        };
        match self.place {
            Place::Lead if is_blank(byte) => {}
            Place::Lead | Place::Word => return self.in_word(byte),
            Place::Gap { .. } if byte == b'\n' => return Found::Opaque,
            Place::Gap { .. } if is_blank(byte) => self.place = Place::Gap { plain: false },
            Place::Gap { plain: true } if !matches!(byte, b'/' | b'*') => {
                self.place = Place::Words { blank: false, third: false };
            }
            Place::Gap { .. } => return Found::Request,
            Place::Rest if byte == b'\n' => return Found::Opaque,
            // A third word that is no version is nothing that a server of HTTP knows.
            Place::Words { third: true, .. } if byte == b'\n' => return Found::Opaque,
            Place::Words { .. } if byte == b'\n' => self.place = Place::Fields(Field::Lead),
            Place::Words { blank, third } => {
                self.place =
                    Place::Words { blank: is_blank(byte), third: third || (blank && !is_blank(byte)) };
            }
            Place::Proxy1 if byte == b'\n' => self.restart(),
            _ => {}
        }
        Found::Nothing
    }

    fn in_word(&mut self, byte: u8) -> Found {
        self.place = match byte {
            b'\n' if self.recent.to_be_bytes().ends_with(PROXY_2) => Place::Proxy2(4),
            b'\n' => return Found::Opaque,
            _ if is_token(&byte) && self.word_length < WORD => {
                self.word[self.word_length] = byte;
                self.word_length += 1;
                Place::Word
            }
            b' ' if self.word() == PROXY_1 => Place::Proxy1,
            _ if is_token(&byte) || !is_method(self.word()) => Place::Rest,
            _ if is_blank(byte) => Place::Gap { plain: byte == b' ' },
            _ => return Found::Request,
        };
        Found::Nothing
    }

    /// Commands have no colon in or after their first word, fields do. Where they end nobody knows.
    fn field(&mut self, at: Field, byte: u8) -> Found {
        let next = match (at, byte) {
            (_, b'\r' | b'\n') => Field::Lead,
            (Field::Lead | Field::Name | Field::Gap, b':') => return Found::Request,
            (Field::Name, byte) if is_blank(byte) => Field::Gap,
            (Field::Lead, byte) if !is_blank(byte) => Field::Name,
            (Field::Gap, byte) if !is_blank(byte) => Field::Other,
            (at, _) => at,
        };
        self.place = Place::Fields(next);
        Found::Nothing
    }

    fn restart(&mut self) {
        *self = Self::new();
    }

    fn word(&self) -> &[u8] {
        &self.word[..self.word_length]
    }
}

/// Whether some server skips such a byte, or splits words by it: whitespace and control bytes, of Latin-1 too.
fn is_blank(byte: u8) -> bool {
    byte <= b' ' || (0x7f..=0xa0).contains(&byte)
}

/// Whether what came last is a name that a version follows.
fn names_a_protocol(recent: &[u8]) -> bool {
    let ends_with = |name: &[u8]| recent[recent.len() - name.len()..].eq_ignore_ascii_case(name);
    ends_with(b"HTTP/") || ends_with(b"RTSP/") || ends_with(b"ICE/")
}

fn is_method(word: &[u8]) -> bool {
    METHODS.iter().any(|method| method.strip_suffix(b" ") == Some(word)) || MORE_METHODS.contains(&word)
}

/// Why reading opaque bytes failed: their first line could be a request's.
#[derive(Debug, Error)]
#[error("a request that came as opaque bytes, in pieces")]
pub struct LateRequest;

impl LateRequest {
    /// Whether it is what `error` says.
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|inner| inner.is::<Self>())
    }
}

/// Passes a client's bytes until its first line could be a request's; then reading fails, before the rest of the
/// line is given away.
#[derive(Debug)]
pub struct FirstLine<S> {
    inner: S,
    /// `None` once the line is known not to be a request's.
    watch: Option<FirstLineWatch>,
}

impl<S> FirstLine<S> {
    /// Goes on with `watch`, which did not decide it; `None` when it was decided.
    pub fn after(watch: Option<FirstLineWatch>, inner: S) -> Self {
        Self { inner, watch }
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
        if let Some(watch) = &mut self.watch {
            match watch.feed(&buf.filled()[before..]) {
                Found::Nothing => {}
                Found::Opaque => self.watch = None,
                Found::Request => {
                    buf.set_filled(before);
                    return Poll::Ready(Err(io::Error::other(LateRequest)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

write_through!(FirstLine);

#[cfg(test)]
mod tests;
