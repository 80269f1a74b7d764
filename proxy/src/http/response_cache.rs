//! The last good responses of an upstream, for when it has none: only what a shared cache may keep (RFC 9111).
//!
//! Nothing is answered from here as long as the upstream answers, so nothing is ever validated, and a response is
//! stored each time it comes. It streams to its caller meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{
    AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_LOCATION, DATE, ETAG, EXPIRES, HOST, HeaderName, HeaderValue,
    IF_MATCH, IF_UNMODIFIED_SINCE, LAST_MODIFIED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, VARY,
};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use self::rules::{Freshness, Selection};
use crate::config;
use crate::net::{Body, BodyError, BodySource, strip_hop_by_hop, strip_mesh_headers};
use crate::upstream::Subset;

mod rules;

/// Content of a response that is kept; with more it is not.
const MAX_CONTENT: usize = 1 << 20;
/// Responses of one answerer to one target that are kept, by what `Vary` names: there is no limit to what callers can
/// state there.
const MAX_VARIANTS: usize = 8;
/// moka evicts when 64 entries have come or 300 ms have passed. From this size on that would be too many bytes, and it
/// is made to at once.
const EVICT_AT_ONCE: u32 = 16 << 10;
/// An estimate of what a response takes besides its content and fields.
const OVERHEAD: usize = 512;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const PROXY_AUTHENTICATION_INFO: HeaderName = HeaderName::from_static("proxy-authentication-info");
/// What a 304 carries of the response it stands for (RFC 9110 15.4.5).
const OF_NOT_MODIFIED: [HeaderName; 7] =
    [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY];

/// The last good responses of an upstream, shared by all workers.
#[derive(Debug)]
pub struct ResponseCache {
    entries: Cache<Key, Variants>,
    max_age: Duration,
    max_bytes: u64,
    /// Bytes of responses that are on their way: at most `max_bytes` once more.
    gathering: AtomicU64,
}

/// What a request asked for, and whom, kept until its response is there.
#[derive(Debug)]
pub struct Asked {
    key: Key,
    answerer: Answerer,
    headers: HeaderMap,
    at: Instant,
}

/// Who answers, as far as the config decides it: what one said of a target is no answer of another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answerer {
    /// The name of the route, which may choose by what `Vary` does not name and edits what is sent.
    pub route: Arc<str>,
    /// The name of the upstream.
    pub upstream: Arc<str>,
    /// Its endpoints with these tags only.
    pub subset: Option<Subset>,
    /// The one endpoint that was dialled by its own address.
    pub dialled: Option<SocketAddr>,
}

/// RFC 9111 2: method and target. Not who answers: what a request changes, it may have changed for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    method: Method,
    target: Arc<str>,
}

/// The latest first.
type Variants = Arc<[Arc<Stored>]>;

#[derive(Debug)]
struct Stored {
    answerer: Answerer,
    status: StatusCode,
    headers: HeaderMap,
    content: Bytes,
    selection: Selection,
    freshness: Freshness,
    received: Instant,
    age_when_received: Duration,
}

impl Asked {
    /// To be taken of a request as it came, before its body is; `None` when no cache has to do with it.
    pub fn of(request: &Request<Body>, answerer: Answerer, now: Instant) -> Option<Self> {
        let (method, uri, headers) = (request.method(), request.uri(), request.headers());
        let is_read = *method == Method::GET || *method == Method::HEAD;
        // What content of a request means to its server, nobody knows (RFC 9110 9.3.1).
        if is_read && (!request.body().is_end() || !rules::may_be_stored(headers)) {
            return None;
        }
        if !is_read && method.is_safe() {
            return None;
        }
        let authority = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => headers.get(HOST)?.to_str().ok()?,
        };
        let scheme = uri.scheme_str().unwrap_or("http");
        let target = format!("{scheme}://{}{}", authority.to_ascii_lowercase(), uri.path_and_query()?);
        let headers = if is_read { headers.clone() } else { HeaderMap::new() };
        Some(Self { key: Key { method: method.clone(), target: target.into() }, answerer, headers, at: now })
    }
}

impl ResponseCache {
    /// An empty one.
    pub fn new(settings: &config::CacheFallback) -> Self {
        let (max_age, max_bytes) = (settings.max_age(), settings.max_bytes());
        let entries = Cache::builder()
            .max_capacity(max_bytes)
            .weigher(|key: &Key, variants: &Variants| {
                variants.iter().fold(key.target.len().try_into().unwrap_or(u32::MAX), |sum: u32, stored| {
                    sum.saturating_add(stored.bytes())
                })
            })
            // Reading is rare, so how often something is read says nothing about its worth.
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(max_age)
            .build();
        Self { entries, max_age, max_bytes, gathering: AtomicU64::new(0) }
    }

    /// Whether it is one of these settings, so that it may go on after a change of the config.
    pub fn is_of(&self, settings: &config::CacheFallback) -> bool {
        (self.max_age, self.max_bytes) == (settings.max_age(), settings.max_bytes())
    }

    /// To be told of every response of the upstream's that is passed on: stores what may be stored while it streams,
    /// and forgets what a request has changed (RFC 9111 4.4). `now` and `clock` are the moment of its headers.
    pub fn pass(
        self: &Arc<Self>,
        asked: Asked,
        response: Response<Body>,
        now: Instant,
        clock: SystemTime,
    ) -> Response<Body> {
        let status = response.status();
        if !asked.key.method.is_safe() {
            if status.is_success() || status.is_redirection() {
                self.forget(asked.key);
            }
            return response;
        }
        let freshness = rules::freshness(&asked.headers, status, response.headers(), clock);
        let selection = rules::selection(&asked.headers, response.headers());
        let (Some(freshness), Some(selection)) = (freshness, selection) else {
            return response;
        };
        let announced = announced(response.headers());
        let is_head = asked.key.method == Method::HEAD;
        if !is_head && announced.is_some_and(|length| length > MAX_CONTENT) {
            return response;
        }
        let delay = now.saturating_duration_since(asked.at);
        let stored = Stored {
            answerer: asked.answerer,
            status,
            age_when_received: rules::initial_age(response.headers(), clock, delay),
            headers: kept_fields(response.headers(), clock),
            content: Bytes::new(),
            selection,
            freshness,
            received: now,
        };
        let keeper = Keeper {
            key: asked.key,
            stored,
            gathered: Gathered { cache: self.clone(), content: Vec::new() },
            announced: if is_head { None } else { announced },
        };
        if response.body().is_end() {
            if keeper.is_whole() {
                keeper.keep();
            }
            return response;
        }
        response.map(|body| Body::from_source(Tee { body, keeper: Some(keeper) }))
    }

    /// The last good response to what was asked; `None` when there is none that may be served. `detail` says in
    /// `Cache-Status` why it is not the upstream's: a token of RFC 9651.
    pub fn answer(&self, asked: &Asked, detail: &str, now: Instant) -> Option<Response<Body>> {
        let unanswerable = !asked.key.method.is_safe()
            || rules::asks_for_the_server(&asked.headers)
            // Only a server may say that these hold (RFC 9111 4.3.2).
            || asked.headers.contains_key(IF_MATCH)
            || asked.headers.contains_key(IF_UNMODIFIED_SINCE);
        if unanswerable {
            return None;
        }
        let get = Key { method: Method::GET, target: asked.key.target.clone() };
        let stored = self.find(&get, asked, now).or_else(|| self.find(&asked.key, asked, now))?;
        let mut response = stored.to_response(asked);
        let age = stored.age(now);
        // Both are whole seconds; a response that is stale says less than nothing.
        let ttl = i128::from(stored.freshness.lifetime.as_secs()) - i128::from(age.as_secs());
        let headers = response.headers_mut();
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
        if let Ok(value) = HeaderValue::from_str(&format!("outrigger; hit; ttl={ttl}; detail={detail}")) {
            headers.append(CACHE_STATUS, value);
        }
        Some(response)
    }

    fn find(&self, key: &Key, asked: &Asked, now: Instant) -> Option<Arc<Stored>> {
        let variants = self.entries.get(key)?;
        variants
            .iter()
            .filter(|stored| stored.answerer == asked.answerer)
            .find(|stored| rules::is_selected(&stored.selection, &asked.headers))
            .filter(|stored| stored.age(now) <= self.max_age && stored.may_be_served(now))
            .cloned()
    }

    fn keep(&self, key: Key, stored: Stored) {
        let evicts = stored.bytes() >= EVICT_AT_ONCE;
        let stored = Arc::new(stored);
        self.entries.entry(key).and_upsert_with(|before| {
            let before = before.map(moka::Entry::into_value);
            let mut of_this_answerer = 1;
            let others = before.iter().flat_map(|variants| variants.iter()).filter(|other| {
                if other.answerer != stored.answerer {
                    // How many there are, the config says; what they said before the last change of it ages too.
                    return true;
                }
                let is_kept = other.selection != stored.selection && of_this_answerer < MAX_VARIANTS;
                of_this_answerer += usize::from(is_kept);
                is_kept
            });
            [stored.clone()].into_iter().chain(others.cloned()).collect()
        });
        if evicts {
            self.entries.run_pending_tasks();
        }
    }

    fn forget(&self, key: Key) {
        for method in [Method::GET, Method::HEAD] {
            self.entries.invalidate(&Key { method, target: key.target.clone() });
        }
    }
}

impl Stored {
    /// RFC 9111 4.2.3.
    fn age(&self, now: Instant) -> Duration {
        self.age_when_received.saturating_add(now.saturating_duration_since(self.received))
    }

    fn may_be_served(&self, now: Instant) -> bool {
        self.age(now) < self.freshness.lifetime.saturating_add(self.freshness.stale_for)
    }

    /// What it takes in memory, about.
    fn bytes(&self) -> u32 {
        let selection = self.selection.iter().map(|(_, value)| value.as_ref().map_or(0, |value| value.len()));
        let fields = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 64);
        let sum = OVERHEAD + self.content.len() + selection.sum::<usize>() + fields.sum::<usize>();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    /// The server drops the content of an answer to `HEAD`.
    fn to_response(&self, asked: &Asked) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        if self.status.is_success() && rules::is_not_modified(&asked.headers, &self.headers) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            for name in OF_NOT_MODIFIED {
                for value in self.headers.get_all(&name) {
                    response.headers_mut().append(&name, value.clone());
                }
            }
            return response;
        }
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        *response.body_mut() = Body::full(self.content.clone());
        response
    }
}

/// The length that `Content-Length` states.
fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The fields of a response that may be stored (RFC 9111 3.1).
fn kept_fields(headers: &HeaderMap, received: SystemTime) -> HeaderMap {
    let mut headers = headers.clone();
    strip_hop_by_hop(&mut headers);
    strip_mesh_headers(&mut headers);
    for name in [PROXY_AUTHENTICATE, PROXY_AUTHENTICATION_INFO, PROXY_AUTHORIZATION, AGE] {
        headers.remove(name);
    }
    // RFC 9110 6.6.1.
    if !headers.contains_key(DATE)
        && let Some(date) = rules::date_value(received)
    {
        headers.insert(DATE, date);
    }
    headers
}

/// A response that is kept when it is whole.
struct Keeper {
    key: Key,
    stored: Stored,
    gathered: Gathered,
    announced: Option<usize>,
}

/// What has come of a response's content.
struct Gathered {
    cache: Arc<ResponseCache>,
    /// A copy: pieces of what a connection has read would keep all of that alive.
    content: Vec<u8>,
}

impl Gathered {
    /// Whether there was room for `data`.
    fn add(&mut self, data: &[u8]) -> bool {
        if self.content.len() + data.len() > MAX_CONTENT {
            return false;
        }
        self.content.extend_from_slice(data);
        let before = self.cache.gathering.fetch_add(data.len() as u64, Relaxed);
        before + data.len() as u64 <= self.cache.max_bytes
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.cache.gathering.fetch_sub(self.content.len() as u64, Relaxed);
    }
}

impl Keeper {
    fn is_whole(&self) -> bool {
        self.announced.is_none_or(|length| length == self.gathered.content.len())
    }

    fn keep(mut self) {
        self.stored.content = Bytes::copy_from_slice(&self.gathered.content);
        self.gathered.cache.keep(self.key, self.stored);
    }
}

/// A response's body on its way, and a copy of it to keep.
struct Tee {
    body: Body,
    /// `None` when it is kept already, or is not to be.
    keeper: Option<Keeper>,
}

impl Tee {
    fn pass(&mut self, frame: &Option<Result<Frame<Bytes>, BodyError>>) {
        let Some(keeper) = &mut self.keeper else { return };
        match frame {
            Some(Err(_)) => self.keeper = None,
            Some(Ok(frame)) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if !keeper.gathered.add(data) {
                    self.keeper = None;
                    return;
                }
                // A reader that was told the length does not ask for the end.
                let is_all = keeper.announced.is_some() && keeper.is_whole();
                if is_all || self.body.is_end() {
                    self.end();
                }
            }
            None => self.end(),
        }
    }

    fn end(&mut self) {
        if let Some(keeper) = self.keeper.take_if(|keeper| keeper.is_whole()) {
            keeper.keep();
        }
    }
}

impl BodySource for Tee {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(std::pin::Pin::new(&mut self.body).poll_frame(cx));
        self.pass(&frame);
        Poll::Ready(frame)
    }

    fn is_end(&self) -> bool {
        self.body.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
