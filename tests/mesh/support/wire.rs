//! HTTP/1 and raw bytes over a blocking socket, with nothing done behind the test's back.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::wait::PATIENCE;

/// Anything bytes go through: a TCP connection, or TLS over one.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection whose every byte the test decides.
pub struct Connection {
    stream: Box<dyn Stream>,
    /// The socket below, for shutdown and timeouts.
    pub socket: TcpStream,
    buffer: Vec<u8>,
}

/// One HTTP/1 message, a request or a response.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// The request line or the status line.
    pub start: String,
    /// The fields, in order, names as received.
    pub headers: Vec<(String, String)>,
    /// The body, chunks put together.
    pub body: Vec<u8>,
    /// The trailer fields of a chunked body.
    pub trailers: Vec<(String, String)>,
}

/// How a read without data ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peer closed in order.
    Closed,
    /// The peer reset the connection.
    Reset,
}

/// `length` bytes that differ from place to place, so that lost or swapped ones are seen.
pub fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index % 251) as u8).collect()
}

impl Message {
    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.start
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status in {:?}", self.start))
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }

    /// The value of the one field with this name; panics when there are several.
    pub fn header(&self, name: &str) -> Option<&str> {
        let values = self.header_values(name);
        assert!(values.len() < 2, "{name} stands {} times: {values:?}", values.len());
        values.first().copied()
    }

    /// The values of all fields with this name.
    pub fn header_values(&self, name: &str) -> Vec<&str> {
        let fields = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        fields.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a trailer field.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        let field = self.trailers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The error type in the proxy's `Proxy-Status`, where there is one.
    pub fn proxy_error(&self) -> Option<String> {
        let value = self.header("proxy-status")?;
        assert!(value.starts_with("outrigger;"), "Proxy-Status names the proxy: {value}");
        let rest = value.split("error=").nth(1)?;
        Some(rest.split([';', ',', ' ']).next().unwrap_or(rest).to_owned())
    }

    fn chunked(&self) -> bool {
        self.header_values("transfer-encoding")
            .iter()
            .any(|value| value.to_ascii_lowercase().contains("chunked"))
    }

    fn content_length(&self) -> Option<usize> {
        self.header("content-length").map(|value| value.parse().expect("a Content-Length is a number"))
    }
}

impl Connection {
    /// Plain TCP.
    pub fn new(socket: TcpStream) -> Self {
        let stream = socket.try_clone().expect("share a socket");
        Self::over(Box::new(stream), socket)
    }

    /// A stream over `socket`, for example TLS.
    pub fn over(stream: Box<dyn Stream>, socket: TcpStream) -> Self {
        socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        socket.set_write_timeout(Some(PATIENCE)).expect("set a timeout");
        socket.set_nodelay(true).expect("switch Nagle's algorithm off");
        Self { stream, socket, buffer: Vec::new() }
    }

    /// Sends bytes; panics when the peer does not take them.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("send");
    }

    /// Sends bytes.
    pub fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Says that nothing more will be sent.
    pub fn finish(&self) {
        self.socket.shutdown(Shutdown::Write).expect("shut a socket down");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let zero = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&self.socket, nix::sys::socket::sockopt::Linger, &zero)
            .expect("set SO_LINGER");
    }

    /// Waits at most `limit` for the next bytes: how the connection ended, if it did.
    pub fn fill_within(&mut self, limit: Duration) -> Option<Result<(), Ending>> {
        self.socket.set_read_timeout(Some(limit)).expect("set a timeout");
        let mut chunk = [0; 4096];
        let got = self.stream.read(&mut chunk);
        self.socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        match got {
            Ok(0) => Some(Err(Ending::Closed)),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Some(Ok(()))
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(_) => Some(Err(Ending::Reset)),
        }
    }

    /// Fetches at least one more byte; gives how the connection ended if it did.
    pub fn fill(&mut self) -> Result<(), Ending> {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Ending::Closed),
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("nothing came for {PATIENCE:?}; so far: {:?}", String::from_utf8_lossy(&self.buffer))
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(Ending::Closed),
            Err(_) => Err(Ending::Reset),
        }
    }

    /// Reads exactly `count` bytes.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        self.try_take(count)
            .unwrap_or_else(|end| panic!("{end:?} after {} of {count} bytes", self.buffer.len()))
    }

    /// Reads exactly `count` bytes, or gives how the connection ended before.
    pub fn try_take(&mut self, count: usize) -> Result<Vec<u8>, Ending> {
        while self.buffer.len() < count {
            self.fill()?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads up to and with `mark`.
    pub fn take_until(&mut self, mark: &[u8]) -> Vec<u8> {
        self.try_take_until(mark).unwrap_or_else(|end| {
            panic!(
                "{end:?} before {:?}; got {:?}",
                String::from_utf8_lossy(mark),
                String::from_utf8_lossy(&self.buffer)
            )
        })
    }

    /// Reads up to and with `mark`, or gives how the connection ended before.
    pub fn try_take_until(&mut self, mark: &[u8]) -> Result<Vec<u8>, Ending> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.buffer.drain(..at + mark.len()).collect());
            }
            self.fill()?;
        }
    }

    /// Reads to the end of the connection; gives what came and how it ended.
    pub fn take_all(&mut self) -> (Vec<u8>, Ending) {
        loop {
            if let Err(end) = self.fill() {
                return (std::mem::take(&mut self.buffer), end);
            }
        }
    }

    /// Asserts that nothing arrives within `time`.
    pub fn assert_silent_for(&mut self, time: Duration) {
        assert!(self.buffer.is_empty(), "left over: {:?}", String::from_utf8_lossy(&self.buffer));
        self.socket.set_read_timeout(Some(time)).expect("set a timeout");
        let mut byte = [0];
        let got = self.stream.read(&mut byte);
        self.socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        match got {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            other => panic!("silence was due, and there came {other:?} {byte:?}"),
        }
    }

    /// Reads a message's start line and fields.
    pub fn head(&mut self) -> Message {
        self.try_head().unwrap_or_else(|end| {
            panic!("{end:?} before a message's head; got {:?}", String::from_utf8_lossy(&self.buffer))
        })
    }

    /// Reads a message's start line and fields, or gives how the connection ended before.
    pub fn try_head(&mut self) -> Result<Message, Ending> {
        let head = self.try_take_until(b"\r\n\r\n")?;
        let text = String::from_utf8_lossy(&head);
        let mut lines = text.trim_end().split("\r\n");
        let start = lines.next().unwrap_or_default().to_owned();
        Ok(Message { start, headers: lines.map(field).collect(), ..Message::default() })
    }

    /// Reads the next chunk of a chunked body; an empty one is the last.
    pub fn chunk(&mut self) -> Vec<u8> {
        let line = self.take_until(b"\r\n");
        let size = String::from_utf8_lossy(&line);
        let size = size.trim().split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk's size, not {size:?}"));
        if size == 0 {
            return Vec::new();
        }
        let data = self.take(size);
        assert_eq!(self.take(2), b"\r\n", "a chunk ends with a line end");
        data
    }

    fn chunked_body(&mut self, message: &mut Message) {
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                break;
            }
            message.body.extend(chunk);
        }
        loop {
            let line = self.take_until(b"\r\n");
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if line.is_empty() {
                return;
            }
            message.trailers.push(field(line));
        }
    }

    /// Reads a request with its body; none when the peer closed before one began.
    pub fn request(&mut self) -> Option<Message> {
        let mut message = self.try_head().ok()?;
        if message.chunked() {
            self.chunked_body(&mut message);
        } else if let Some(length) = message.content_length() {
            message.body = self.take(length);
        }
        Some(message)
    }

    /// Reads the response to a request with method `method`, with its body.
    pub fn response(&mut self, method: &str) -> Message {
        let mut message = self.head();
        let status = message.status();
        let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        if bodiless {
        } else if message.chunked() {
            self.chunked_body(&mut message);
        } else if let Some(length) = message.content_length() {
            message.body = self.take(length);
        } else {
            let (body, end) = self.take_all();
            assert_eq!(end, Ending::Closed, "a body that ends with the connection ends in order");
            message.body = body;
        }
        message
    }

    /// Sends a request and reads the response.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        let request = request.as_ref();
        let method = String::from_utf8_lossy(request.split(|byte| *byte == b' ').next().unwrap_or_default())
            .into_owned();
        self.send(request);
        self.response(&method)
    }

    /// Sends `GET path` for `host` and reads the response.
    pub fn get(&mut self, host: &str, path: &str) -> Message {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"))
    }
}

fn field(line: &str) -> (String, String) {
    let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("a field, not {line:?}"));
    (name.to_owned(), value.trim().to_owned())
}
