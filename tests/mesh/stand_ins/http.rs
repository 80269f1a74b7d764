//! What the stand-ins share: HTTP without sockets, and the ways to fail.

use std::sync::Mutex;
use std::time::Duration;

/// How long whoever serves a stand-in sleeps between two looks for news.
pub const LOOK: Duration = Duration::from_millis(10);

/// A request that was read.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path, still escaped.
    pub path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

impl Request {
    /// A request of its parts.
    pub fn new(method: &str, target: &str, headers: Vec<(String, String)>) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pair = |pair: &str| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (unescaped(name), unescaped(value))
        };
        let query = query.split('&').filter(|text| !text.is_empty()).map(pair).collect();
        Self { method: method.to_owned(), path: path.to_owned(), query, headers }
    }

    /// A request out of the bytes of its head.
    pub fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.trim_end().split("\r\n");
        let mut start = lines.next().unwrap_or_default().split(' ');
        let (method, target) = (start.next().unwrap_or_default(), start.next().unwrap_or_default());
        let field = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        };
        Self::new(method, target, lines.filter_map(field).collect())
    }

    /// The value of a field of the query.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The first field of the query that is none of these.
    pub fn unknown_query(&self, known: &[&str]) -> Option<&str> {
        self.query.iter().map(|(key, _)| key.as_str()).find(|key| !known.contains(key))
    }

    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    }
}

/// What escapes stand for (RFC 3986 2.1).
pub fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = text_of(tail.get(..2)).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, escape) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn text_of(bytes: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(bytes?).ok()
}

/// One request under way.
#[derive(Debug)]
pub struct Exchange {
    /// What was asked.
    pub request: Request,
    /// How far a stream of events has come; `None` before its head.
    pub cursor: Option<u64>,
}

/// What is to be done next for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this; there is more to come.
    Send(Vec<u8>),
    /// Send this and close.
    Finish(Vec<u8>),
    /// There is no news yet.
    Wait,
}

/// A registry.
pub trait StandIn: Send + Sync + 'static {
    /// What is to be done next; `waited` is the time since the request came.
    fn step(&self, exchange: &mut Exchange, waited: Duration) -> Step;

    /// How it fails.
    fn faults(&self) -> &Faults;
}

/// A way to fail.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// None.
    #[default]
    None,
    /// Connections are closed without a word, open ones too.
    HangsUp,
    /// Nothing is said, on open connections either.
    Stalls,
    /// An error with this status and a page about it.
    Status(u16),
    /// A web page, as of a proxy's login or a wrong port, with status 200.
    Page,
    /// The first half of what is right.
    Half,
    /// JSON that breaks off, in whole HTTP.
    BrokenJson,
    /// Good JSON of something else.
    OtherJson,
    /// Forty megabytes.
    Flood,
}

/// How a stand-in fails, and what it was asked.
#[derive(Debug, Default)]
pub struct Faults {
    fault: Mutex<Fault>,
    asked: Mutex<Vec<String>>,
}

impl Faults {
    /// Fails this way from now on.
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().expect("not poisoned") = fault;
    }

    /// How it fails now.
    pub fn get(&self) -> Fault {
        *self.fault.lock().expect("not poisoned")
    }

    /// The targets of all requests that came, escapes undone.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }

    /// Begins an exchange.
    pub fn begin(&self, request: Request) -> Exchange {
        let pairs: Vec<_> = request.query.iter().map(|(key, value)| format!("{key}={value}")).collect();
        self.asked.lock().expect("not poisoned").push(format!("{}?{}", request.path, pairs.join("&")));
        Exchange { request, cursor: None }
    }
}

/// What whoever serves `stand_in` does next: as it says, unless it fails. `None`: close.
pub fn step(stand_in: &dyn StandIn, exchange: &mut Exchange, waited: Duration) -> Option<Step> {
    let whole = |body: &[u8], kind: &str| Some(Step::Finish(response(200, &[("Content-Type", kind)], body)));
    match stand_in.faults().get() {
        Fault::None => Some(stand_in.step(exchange, waited)),
        Fault::HangsUp => None,
        Fault::Stalls => Some(Step::Wait),
        // A stream that has begun can only break off.
        _ if exchange.cursor.is_some() => None,
        Fault::Status(status) => {
            let page = format!("<html><h1>{status}</h1>\nall is lost</html>");
            Some(Step::Finish(response(status, &[("Content-Type", "text/html")], page.as_bytes())))
        }
        Fault::Page => whole(b"<!DOCTYPE html>\n<html><body>Please log in</body></html>", "text/html"),
        Fault::Half => match stand_in.step(exchange, waited) {
            Step::Send(bytes) | Step::Finish(bytes) => {
                let body = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or_default() + 4;
                Some(Step::Finish(bytes[..body + (bytes.len() - body) / 2].to_vec()))
            }
            Step::Wait => Some(Step::Wait),
        },
        Fault::BrokenJson => whole(br#"[{"Node":{"#, "application/json"),
        Fault::OtherJson => whole(br#"{"error": null, "data": {"viewer": 7}}"#, "application/json"),
        Fault::Flood => whole(&vec![b' '; 40 << 20], "application/json"),
    }
}

/// A whole response, after which the connection is closed.
pub fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut all = head(status, headers);
    all.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
    all.extend(body);
    all
}

/// The head of a response whose body comes in chunks.
pub fn chunked_head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut all = head(status, headers);
    all.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    all
}

fn head(status: u16, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text.into_bytes()
}

/// A chunk of a body; an empty one is the last.
pub fn chunk(data: &[u8]) -> Vec<u8> {
    let mut all = format!("{:x}\r\n", data.len()).into_bytes();
    all.extend(data);
    all.extend(b"\r\n");
    all
}
