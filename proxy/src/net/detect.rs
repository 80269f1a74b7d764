//! Which protocol a connection speaks, by its first bytes (the design's "Interception").

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::client_hello::{self, Hello};

/// A client silent for this long may be waiting for the server to speak first.
pub const SILENCE: Duration = Duration::from_millis(100);
/// Time the rest of a partial match may take. After it, what is there decides.
const PARTIAL: Duration = Duration::from_secs(5);
/// A request line longer than this is left to the HTTP parser, which answers it with 431.
const MAX_REQUEST_LINE: usize = 16 << 10;
const READ: usize = 4 << 10;

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Methods of RFC 9110, PATCH, and those of WebDAV and its relatives that are in use.
pub(super) const METHODS: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
    b"PURGE ",
    b"MKCALENDAR ",
    b"ACL ",
    b"BIND ",
    b"LINK ",
    b"UNLINK ",
    b"QUERY ",
    b"SUBSCRIBE ",
    b"UNSUBSCRIBE ",
    b"NOTIFY ",
    b"M-SEARCH ",
    b"MERGE ",
    b"CHECKOUT ",
];

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
    /// A TLS ClientHello; `mesh` when it offers one of the mesh's application protocols.
    Tls { mesh: bool },
    /// Anything else.
    Opaque,
    /// Nothing came within [`SILENCE`].
    Silent,
    /// The client ended its half without sending a byte; it may read on.
    Closed,
}

enum Verdict {
    Is(Detected),
    Partial,
}

/// Reads first bytes into `buffer` until they tell the protocol. All that was read stays in `buffer`.
///
/// # Errors
/// The socket's.
pub async fn detect(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Detected> {
    match timeout(SILENCE, first_read(stream, buffer)).await {
        Ok(Ok(0)) => Ok(Detected::Closed),
        Ok(read) => {
            read?;
            resume_detection(stream, buffer).await
        }
        Err(_) => Ok(Detected::Silent),
    }
}

/// Waits for the first byte without a buffer: thousands of silent connections cost nothing.
async fn first_read(stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    loop {
        // A fresh socket claims once to be readable when it is not.
        stream.readable().await?;
        buffer.reserve(READ);
        match stream.try_read_buf(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => *buffer = BytesMut::new(),
            read => return read,
        }
    }
}

/// Waits until `stream` has bytes or an end to read.
///
/// # Errors
/// The socket's. It tells them once: the next read would take a reset for an end.
pub async fn readable(stream: &TcpStream) -> io::Result<()> {
    stream.peek(&mut [0]).await.map(|_| ())
}

/// As [`detect`], for a connection that was silent and now is readable.
///
/// # Errors
/// The socket's.
pub async fn resume_detection(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Detected> {
    // One deadline for all of it: a client that sends a byte now and then gains nothing.
    let deadline = Instant::now() + PARTIAL;
    loop {
        match classify(buffer) {
            Verdict::Is(detected) => return Ok(detected),
            Verdict::Partial => {}
        }
        buffer.reserve(READ);
        let read = if buffer.is_empty() {
            stream.read_buf(buffer).await?
        } else {
            match timeout_at(deadline, stream.read_buf(buffer)).await {
                Ok(read) => read?,
                Err(_) => return Ok(decide(buffer)),
            }
        };
        if read == 0 {
            return Ok(if buffer.is_empty() { Detected::Closed } else { decide(buffer) });
        }
    }
}

/// What stands when no more bytes come: a whole method is HTTP, which then tells its client what is wrong.
fn decide(bytes: &[u8]) -> Detected {
    if METHODS.iter().any(|m| bytes.starts_with(m)) { Detected::Http1 } else { Detected::Opaque }
}

/// Reads first bytes of opaque traffic into `buffer` until they tell whether a server would take them for a request.
/// Wider than [`detect`]: here the question is not what a client speaks, but what a workload would understand. What
/// only lenient servers understand is [`Guarded`](super::Guarded)'s to see.
///
/// # Errors
/// The stream's.
pub async fn would_be_http<S>(stream: &mut S, buffer: &mut BytesMut) -> io::Result<bool>
where
    S: AsyncRead + Unpin,
{
    let deadline = Instant::now() + SILENCE;
    loop {
        if let Some(found) = is_request_line(buffer) {
            return Ok(found);
        }
        buffer.reserve(READ);
        match timeout_at(deadline, stream.read_buf(buffer)).await {
            // The end, or a pause.
            Ok(Ok(0)) | Err(_) => return Ok(false),
            Ok(read) => read?,
        };
    }
}

/// Whether bytes begin with any method, a target and a version of HTTP; `None` when more are needed.
fn is_request_line(bytes: &[u8]) -> Option<bool> {
    let bytes = bytes.trim_ascii_start();
    let method = bytes.iter().position(|b| !is_token(b))?;
    if method == 0 || bytes[method] != b' ' {
        return Some(false);
    }
    match bytes.iter().position(|b| *b == b'\n') {
        Some(end) => {
            let version = bytes[..end].trim_ascii_end().rsplit(|b| *b == b' ').next();
            Some(version.is_some_and(|version| version.starts_with(b"HTTP/")))
        }
        None if bytes.iter().any(|b| *b < b' ' && *b != b'\r' && *b != b'\t') => Some(false),
        None if bytes.len() > MAX_REQUEST_LINE => Some(true),
        None => None,
    }
}

fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn classify(bytes: &[u8]) -> Verdict {
    if bytes.is_empty() {
        return Verdict::Partial;
    }
    match client_hello::parse(bytes) {
        Hello::Whole { mesh } => return Verdict::Is(Detected::Tls { mesh }),
        Hello::Partial => return Verdict::Partial,
        Hello::NotTls => {}
    }
    // RFC 9112 2.2: empty lines before a request are to be ignored.
    let bytes = bytes.trim_ascii_start();
    if bytes.is_empty() {
        return Verdict::Partial;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Verdict::Is(Detected::Http2);
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Verdict::Partial;
    }
    if let Some(method) = METHODS.iter().find(|m| bytes.starts_with(m)) {
        // Redis and others have commands that look like methods; the line's end tells.
        return match bytes.iter().position(|b| *b == b'\n') {
            Some(end) => {
                let http = is_version_1(&bytes[method.len()..end]);
                Verdict::Is(if http { Detected::Http1 } else { Detected::Opaque })
            }
            None if bytes.len() > MAX_REQUEST_LINE => Verdict::Is(Detected::Http1),
            None => Verdict::Partial,
        };
    }
    if METHODS.iter().any(|m| m.starts_with(bytes)) {
        return Verdict::Partial;
    }
    // Any other method: only a whole line tells, and nobody waits for one who has not begun a path.
    match bytes.iter().position(|b| *b == b'\n') {
        Some(end) if is_version_1(&bytes[..end]) && is_request_line(bytes) == Some(true) => {
            Verdict::Is(Detected::Http1)
        }
        None if begins_a_path(bytes) => match is_request_line(bytes) {
            None => Verdict::Partial,
            Some(true) => Verdict::Is(Detected::Http1),
            Some(false) => Verdict::Is(Detected::Opaque),
        },
        _ => Verdict::Is(Detected::Opaque),
    }
}

/// Whether a line ends with a version of HTTP/1.
fn is_version_1(line: &[u8]) -> bool {
    let line = line.trim_ascii_end();
    line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0")
}

/// Whether bytes are a word, a space and a slash.
fn begins_a_path(bytes: &[u8]) -> bool {
    let end = bytes.iter().position(|b| *b == b' ');
    end.is_some_and(|end| end > 0 && bytes[..end].iter().all(is_token) && bytes.get(end + 1) == Some(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(bytes: &[u8]) -> Option<Detected> {
        match classify(bytes) {
            Verdict::Is(detected) => Some(detected),
            Verdict::Partial => None,
        }
    }

    #[test]
    fn first_bytes_tell_the_protocol() {
        let cases: &[(&[u8], Option<Detected>)] = &[
            (b"GET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"GET / HTTP/1.0\n", Some(Detected::Http1)),
            (b"PROPFIND /dav HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"GET key\r\n", Some(Detected::Opaque)),
            (b"GET / HTTP/1.", None),
            (b"G", None),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"\r\n", None),
            (b"PR", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Detected::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\n", None),
            (b"PRIVATE", Some(Detected::Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Detected::Opaque)),
            (b"SSH-2.0-x\r\n", Some(Detected::Opaque)),
            (b"get key\r\n", Some(Detected::Opaque)),
            (b"get /key HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"X-Y * HTTP/1.0\n", Some(Detected::Http1)),
            (b"get /ke", None),
            (b"get ke", Some(Detected::Opaque)),
            (b"get", Some(Detected::Opaque)),
            (b"SETUP /film RTSP/1.0\r\n", Some(Detected::Opaque)),
            (b"two words / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"get: / HTTP/1.1\r\n", Some(Detected::Opaque)),
            (b" HTTP/1.1\r\n", Some(Detected::Opaque)),
            (b"get /\x00", Some(Detected::Opaque)),
            (b"\x00", Some(Detected::Opaque)),
            (b"\x16\x03\x01", None),
        ];
        for (bytes, want) in cases {
            assert_eq!(verdict(bytes), *want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_a_lenient_server_takes_for_a_request_is_found() {
        let cases: &[(&[u8], Option<bool>)] = &[
            (b"GET / HTTP/1.1\r\n", Some(true)),
            (b"\r\nGET / HTTP/1.2\r\n", Some(true)),
            (b"A-B /a HTTP/1.1\r\n", Some(true)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(true)),
            (b"GET / HT", None),
            (b"abcdefghijklmnopqrstuvwxyz", None),
            (b"GET key\r\n", Some(false)),
            (b"SSH-2.0-OpenSSH_9\r\n", Some(false)),
            (b"*1\r\n$4\r\nPING\r\n", Some(false)),
            (b"\x16\x03\x01\x02\x00", Some(false)),
            (b"Z \x00\x01", Some(false)),
            (b"", None),
        ];
        for (bytes, want) in cases {
            assert_eq!(is_request_line(bytes), *want, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn opaque_bytes_are_requests_when_a_whole_line_says_so() {
        let cases: &[(&[u8], bool)] = &[
            (b"GET / HTTP/1.1\r\n", true),
            (b"\r\n BREW /a HTTP/1.2\r\n", true),
            (b"GET\t/ HTTP/1.1\r\n", false),
            (b"GET /a", false),
            (b"SSH-2.0-x\r\n", false),
            (b"set a b\r\n", false),
            (b"set a", false),
            (b"\0\x01\x02", false),
            (b"", false),
        ];
        for (bytes, want) in cases {
            let (mut client, mut stream) = tokio::io::duplex(64);
            tokio::io::AsyncWriteExt::write_all(&mut client, bytes).await.unwrap();
            let (started, mut read) = (Instant::now(), BytesMut::new());
            assert_eq!(
                would_be_http(&mut stream, &mut read).await.unwrap(),
                *want,
                "{}",
                bytes.escape_ascii()
            );
            assert_eq!(read, bytes, "all that was read is kept");
            let waited = bytes.is_empty() || bytes.starts_with(b"set a") || *bytes == b"GET /a";
            let waited = waited && !bytes.ends_with(b"\n");
            assert_eq!(started.elapsed() >= SILENCE, waited, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn every_prefix_of_a_request_line_waits_for_more() {
        let line = b"DELETE /a?b=c HTTP/1.1";
        for end in 1..line.len() {
            assert_eq!(verdict(&line[..end]), None, "first {end} bytes");
        }
    }

    #[test]
    fn an_endless_request_line_is_left_to_the_parser() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_REQUEST_LINE + 1, b'a');
        assert_eq!(verdict(&line), Some(Detected::Http1));
    }
}
