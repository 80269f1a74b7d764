//! A client for the HTTP APIs of registries: HTTP/1.1, one connection a request, every wait and every size bounded.
//!
//! Registries are asked a few times a minute at most, so that a pool would save nothing, and a fresh connection finds the
//! server that took over from one that died.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::super::outcome::Miss;
use super::super::plain::Plain;
use crate::identity::{TlsError, server_tls};
use crate::net::{DialError, Dialler};

/// One address of several must not use up the whole wait.
const CONNECT: Duration = Duration::from_millis(1500);
/// From the first byte of the head to the last of the body.
const WHOLE_BODY: Duration = Duration::from_secs(20);
/// A body. The whole registry of a large Eureka has a few MiB.
const MOST_BODY_BYTES: usize = 16 * 1024 * 1024;
/// Of what a server says in place of an answer, for the log.
const MOST_EXPLANATION_BYTES: usize = 4096;
/// The Kubernetes API names a missing right in 270 characters.
const MOST_EXPLANATION_SHOWN: usize = 320;
const EXPLANATION: Duration = Duration::from_secs(2);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("`{url}` can't be asked: {reason}")]
    Url { url: String, reason: &'static str },
    #[error("the address of {host} can't be found: {reason}")]
    Host { host: String, reason: String },
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Roots(#[from] TlsError),
    #[error("the token file {} can't be used: {reason}", file.display())]
    Token { file: PathBuf, reason: String },
    #[error("TLS with {server}: {source}")]
    Tls { server: Arc<str>, source: io::Error },
    #[error("{server} broke off: {reason}")]
    Lost { server: Arc<str>, reason: String },
    #[error("{server} sent nothing more for {patience:?}")]
    Silent { server: Arc<str>, patience: Duration },
    #[error("{server} sent more than {MOST_BODY_BYTES} bytes")]
    TooLarge { server: Arc<str> },
    #[error("{server} answered {status}: {said}")]
    Refused { server: Arc<str>, status: StatusCode, said: String },
    #[error("{server} sent what is no answer ({reason}): {said}")]
    Nonsense { server: Arc<str>, reason: String, said: String },
}

impl HttpError {
    /// The status of a response that is no success.
    pub(super) fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<HttpError> for Miss {
    fn from(error: HttpError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Bytes in both directions.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to `host:port`.
#[cfg(test)]
type OpenInMemory = dyn Fn(&str) -> io::Result<tokio::io::DuplexStream> + Send + Sync;

/// How servers are reached.
#[derive(Clone)]
pub(in crate::resolve) enum Network {
    /// Names by the hosts file and ordinary DNS, whose lies TLS finds out.
    Sockets { names: Arc<Plain>, dialler: Dialler },
    /// A stand-in in the test's own memory, so that a paused clock is everybody's.
    #[cfg(test)]
    Memory(Arc<OpenInMemory>),
}

/// A response whose body is not read yet.
pub(super) struct Answer {
    head: HeaderMap,
    body: Incoming,
    /// Ends with this: hyper waits for a silent server even when nobody waits for the body any longer.
    _connection: JoinSet<()>,
}

/// Asks one server.
#[derive(Clone)]
pub(super) struct Client {
    network: Network,
    tls: bool,
    host: String,
    port: u16,
    /// `host:port`, for errors and the Host field.
    server: Arc<str>,
    /// What stands before every path, without a trailing slash.
    prefix: String,
    roots: Option<PathBuf>,
}

impl Client {
    /// A client of the server at `url`; `roots` is the PEM file to verify an `https` one by, read at each connection.
    pub(super) fn new(network: Network, url: &str, roots: Option<PathBuf>) -> Result<Self, HttpError> {
        let unusable = |reason| HttpError::Url { url: without_userinfo(url), reason };
        let parsed: Uri = url.parse().map_err(|_| unusable("it is no URL"))?;
        let tls = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") if roots.is_some() => true,
            Some("https") => return Err(unusable("https needs the roots to verify the server by (caFile)")),
            _ => return Err(unusable("it must begin with http:// or https://")),
        };
        let authority = parsed.authority().ok_or_else(|| unusable("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(unusable("credentials in it would be shown on the admin port and in logs"));
        }
        if parsed.query().is_some() {
            return Err(unusable("it has a query"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(unusable("it names no host"));
        }
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let server = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        Ok(Self {
            network,
            tls,
            host: host.into(),
            port,
            server: server.into(),
            prefix: parsed.path().trim_end_matches('/').into(),
            roots,
        })
    }

    /// Whether the server is on this machine, as far as the URL tells.
    pub(super) fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    /// Asks for JSON at `path` (query included) and waits `patience` for the answer's head.
    ///
    /// # Errors
    /// Everything but a success with a whole body.
    pub(super) async fn get(
        &self,
        path: &str,
        fields: &[(HeaderName, HeaderValue)],
        patience: Duration,
    ) -> Result<(HeaderMap, Bytes), HttpError> {
        let Answer { head, body, _connection } = self.open(path, fields, patience).await?;
        let whole = timeout(WHOLE_BODY, Limited::new(body, MOST_BODY_BYTES).collect());
        let body = whole.await.map_err(|_| self.silent(WHOLE_BODY))?.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                HttpError::TooLarge { server: self.server.clone() }
            } else {
                self.lost(&error)
            }
        })?;
        Ok((head, body.to_bytes()))
    }

    /// Asks for JSON at `path` and gives the response as soon as its head is there.
    ///
    /// # Errors
    /// Everything but a success.
    pub(super) async fn open(
        &self,
        path: &str,
        fields: &[(HeaderName, HeaderValue)],
        patience: Duration,
    ) -> Result<Answer, HttpError> {
        let exchange = timeout(patience, self.exchange(path, fields));
        let (response, _connection) = exchange.await.map_err(|_| self.silent(patience))??;
        let status = response.status();
        let (head, body) = response.into_parts();
        if status.is_success() {
            return Ok(Answer { head: head.headers, body, _connection });
        }
        let body = Limited::new(body, MOST_EXPLANATION_BYTES).collect();
        let said = match timeout(EXPLANATION, body).await {
            Ok(Ok(body)) => shown(&body.to_bytes()),
            _ => String::new(),
        };
        Err(HttpError::Refused { server: self.server.clone(), status, said })
    }

    /// What a body is that can't be read as what was asked for.
    pub(super) fn nonsense(&self, body: &[u8], reason: impl ToString) -> HttpError {
        HttpError::Nonsense { server: self.server.clone(), reason: reason.to_string(), said: shown(body) }
    }

    async fn exchange(
        &self,
        path: &str,
        fields: &[(HeaderName, HeaderValue)],
    ) -> Result<(Response<Incoming>, JoinSet<()>), HttpError> {
        let unusable =
            |_| HttpError::Url { url: format!("{}{path}", self.prefix), reason: "it is no path of a URL" };
        let mut request = Request::get(format!("{}{path}", self.prefix))
            .header(HOST, &*self.server)
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close")
            .header(USER_AGENT, concat!("outrigger/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(unusable)?;
        request.headers_mut().extend(fields.iter().cloned());
        let stream = self.connect().await?;
        let (mut sender, exchange) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.lost(&error))?;
        let mut connection = JoinSet::new();
        connection.spawn(async move {
            // Whoever reads the response is told of the failure.
            let _ = exchange.await;
        });
        let response = sender.send_request(request).await.map_err(|error| self.lost(&error))?;
        Ok((response, connection))
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, HttpError> {
        let stream = self.dial().await?;
        let Some(roots) = self.roots.as_deref().filter(|_| self.tls) else { return Ok(stream) };
        let config = server_tls(roots)?;
        let failed = |source| HttpError::Tls { server: self.server.clone(), source };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let stream = TlsConnector::from(config).connect(name, stream).await.map_err(failed)?;
        Ok(Box::new(stream))
    }

    async fn dial(&self) -> Result<Box<dyn Stream>, HttpError> {
        let unknown = |reason| HttpError::Host { host: self.host.clone(), reason };
        let (names, dialler) = match &self.network {
            Network::Sockets { names, dialler } => (names, dialler),
            #[cfg(test)]
            Network::Memory(open) => {
                return match open(&self.server) {
                    Ok(stream) => Ok(Box::new(stream)),
                    Err(error) => Err(self.lost(&error)),
                };
            }
        };
        let addresses = match self.host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => names.server_addresses(&self.host).await.map_err(|miss| {
                unknown(match miss {
                    Miss::Absent { .. } => "there is no such name".into(),
                    Miss::Failed(reason) => reason,
                })
            })?,
        };
        let mut last = None;
        for ip in addresses {
            match dialler.dial((ip, self.port).into(), CONNECT).await {
                Ok(stream) => return Ok(Box::new(stream)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.map_or_else(|| unknown("it has none".into()), HttpError::Dial))
    }

    pub(super) fn silent(&self, patience: Duration) -> HttpError {
        HttpError::Silent { server: self.server.clone(), patience }
    }

    pub(super) fn lost(&self, error: &(impl std::fmt::Display + ?Sized)) -> HttpError {
        HttpError::Lost { server: self.server.clone(), reason: error.to_string() }
    }
}

/// The lines of a body, as they come.
pub(super) struct Lines {
    client: Client,
    answer: Answer,
    pending: BytesMut,
    /// Up to here there is no end of a line.
    searched: usize,
}

impl Lines {
    pub(super) fn new(client: Client, answer: Answer) -> Self {
        Self { client, answer, pending: BytesMut::new(), searched: 0 }
    }

    /// The next line without its end; `None` when the body has ended in order.
    ///
    /// # Errors
    /// Nothing came for `patience`, the connection broke, a line is longer than any body may be, or the last one has no end.
    pub(super) async fn next(&mut self, patience: Duration) -> Result<Option<Bytes>, HttpError> {
        loop {
            if let Some(at) = self.pending[self.searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.pending.split_to(self.searched + at + 1);
                line.truncate(line.len() - 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.pending.len();
            let frame = timeout(patience, self.answer.body.frame());
            match frame.await.map_err(|_| self.client.silent(patience))? {
                None if self.pending.is_empty() => return Ok(None),
                None => return Err(self.client.nonsense(&self.pending, "a line without an end")),
                Some(Err(error)) => return Err(self.client.lost(&error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        if self.pending.len() + data.len() > MOST_BODY_BYTES {
                            return Err(HttpError::TooLarge { server: self.client.server.clone() });
                        }
                        self.pending.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}

/// A credential out of a file, read now: whoever rotates it tells nobody.
///
/// # Errors
/// The file can't be read, is empty, or holds what no header field can.
pub(super) fn token(file: &Path, prefix: &str) -> Result<HeaderValue, HttpError> {
    let unusable = |reason: String| HttpError::Token { file: file.into(), reason };
    let text = std::fs::read_to_string(file).map_err(|error| unusable(error.to_string()))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(unusable("it is empty".into()));
    }
    let mut value = HeaderValue::from_str(&format!("{prefix}{text}"))
        .map_err(|_| unusable("it holds more than one line of visible characters".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A part of a path or a query, so that nothing in it has a meaning there (RFC 3986 2.3).
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The beginning of a body in one line.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(MOST_EXPLANATION_BYTES)]);
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let text = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MOST_EXPLANATION_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// A URL that may be shown.
fn without_userinfo(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &url[..scheme], &url[at..]),
        _ => url.into(),
    }
}
