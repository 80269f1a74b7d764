//! What RFC 9111 lets a shared cache store and serve. Where it leaves a choice, the stricter one: a response too few
//! is an outage that there is anyway, one too many is somebody else's data.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, COOKIE, DATE, ETAG, EXPIRES, HeaderName, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, SET_COOKIE, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};

/// For how long a response is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Freshness {
    /// Age up to which it is fresh (RFC 9111 4.2.1). Nothing is guessed: without a word about it, nothing.
    pub(super) lifetime: Duration,
    /// How long beyond it may be served when its server can't be asked (4.2.4, and RFC 5861 4).
    pub(super) stale_for: Duration,
}

/// What `Cache-Control` says, of a request or a response.
#[derive(Debug, Default)]
struct Directives {
    no_store: bool,
    no_cache: bool,
    private: bool,
    public: bool,
    must_revalidate: bool,
    proxy_revalidate: bool,
    max_age: Option<Duration>,
    s_maxage: Option<Duration>,
    stale_if_error: Option<Duration>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut says = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let Ok(value) = value.to_str() else {
                // What can't be read may forbid anything.
                says.no_store = true;
                continue;
            };
            let mut quoted = false;
            let members = value.split(|c| {
                quoted ^= c == '"';
                c == ',' && !quoted
            });
            members.for_each(|member| says.take(member));
        }
        says
    }

    /// `no-cache` and `private` count as a whole where they name fields (5.2.2.4 and 5.2.2.7 let them).
    fn take(&mut self, member: &str) {
        let (name, argument) = member.split_once('=').unwrap_or((member, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" => self.no_store = true,
            "no-cache" => self.no_cache = true,
            "private" => self.private = true,
            "public" => self.public = true,
            "must-revalidate" => self.must_revalidate = true,
            "proxy-revalidate" => self.proxy_revalidate = true,
            "max-age" => least(&mut self.max_age, argument),
            "s-maxage" => least(&mut self.s_maxage, argument),
            "stale-if-error" => least(&mut self.stale_if_error, argument),
            _ => {}
        }
    }
}

/// Seconds; none where they can't be read, and the fewest where they are stated twice (4.2.1).
fn least(stated: &mut Option<Duration>, text: &str) {
    let text = text.trim().trim_matches('"');
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // More than fits is as long as can be (1.2.2).
    let seconds = if is_plain { text.parse().unwrap_or(u32::MAX) } else { 0 };
    let seconds = Duration::from_secs(seconds.into());
    *stated = Some(stated.map_or(seconds, |other| other.min(seconds)));
}

/// Whether the response to a request may be stored (5.2.1.5).
pub(super) fn may_be_stored(request: &HeaderMap) -> bool {
    !Directives::of(request).no_store
}

/// Whether its caller asks for the server's own word (5.2.1.4).
pub(super) fn asks_for_the_server(request: &HeaderMap) -> bool {
    Directives::of(request).no_cache
}

/// For how long a response may be served from a shared cache; `None` when it may not be stored or could never be used.
pub(super) fn freshness(
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    received: SystemTime,
) -> Option<Freshness> {
    let says = Directives::of(response);
    // `no-cache` could be served after a validation only, and nobody is there to validate.
    if says.no_store || says.no_cache || says.private || response.contains_key(SET_COOKIE) {
        return None;
    }
    // Credentials (3.5). A cookie is as good a guess at somebody's own data, although the RFC does not say so.
    let is_personal = request.contains_key(AUTHORIZATION) || request.contains_key(COOKIE);
    if is_personal && !says.public && !says.must_revalidate && says.s_maxage.is_none() {
        return None;
    }
    let explicit = says.s_maxage.or(says.max_age).or_else(|| expires(response, received));
    let is_storable = match status.as_u16() {
        // RFC 9110 15.1, less what says that the server is at fault, and 206, of which we keep no parts.
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 => true,
        206 | 304 => false,
        200..=399 => explicit.is_some() || says.public,
        _ => false,
    };
    // `s-maxage` forbids stale responses too (5.2.2.10).
    let is_never_stale = says.must_revalidate || says.proxy_revalidate || says.s_maxage.is_some();
    let freshness = Freshness {
        lifetime: explicit.unwrap_or_default(),
        stale_for: if is_never_stale { Duration::ZERO } else { says.stale_if_error.unwrap_or(Duration::MAX) },
    };
    let is_usable = freshness.lifetime > Duration::ZERO || freshness.stale_for > Duration::ZERO;
    (is_storable && is_usable).then_some(freshness)
}

/// The lifetime by `Expires`; what can't be read has expired (5.3).
fn expires(response: &HeaderMap, received: SystemTime) -> Option<Duration> {
    response.get(EXPIRES)?;
    let begin = date(response, &DATE).unwrap_or(received);
    let end = date(response, &EXPIRES).unwrap_or(begin);
    Some(end.duration_since(begin).unwrap_or_default())
}

/// How old a response is when it comes (4.2.3). `delay`: the time from its request to its headers.
pub(super) fn initial_age(response: &HeaderMap, received: SystemTime, delay: Duration) -> Duration {
    let apparent =
        date(response, &DATE).and_then(|date| received.duration_since(date).ok()).unwrap_or_default();
    let stated = response.get(AGE).and_then(|age| age.to_str().ok()?.trim().parse::<u32>().ok()).unwrap_or(0);
    apparent.max(Duration::from_secs(stated.into()).saturating_add(delay))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// The request's fields that chose a response (4.1), with their values.
pub(super) type Selection = Box<[(HeaderName, Option<Box<[u8]>>)]>;

/// `None` where no other request can ever be told to be the same: `*`, or what can't be read.
pub(super) fn selection(request: &HeaderMap, response: &HeaderMap) -> Option<Selection> {
    let mut chosen = Vec::new();
    for value in response.get_all(VARY) {
        for name in value.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            // `*` would pass as a name.
            let name = (name != "*").then(|| name.parse::<HeaderName>().ok()).flatten()?;
            let value = combined(request, &name);
            chosen.push((name, value));
        }
    }
    Some(chosen.into())
}

/// Whether a request's fields choose the same response.
pub(super) fn is_selected(selection: &Selection, request: &HeaderMap) -> bool {
    selection.iter().all(|(name, value)| combined(request, name) == *value)
}

/// A field's values in one, as a server may read them (RFC 9110 5.3).
fn combined(headers: &HeaderMap, name: &HeaderName) -> Option<Box<[u8]>> {
    let values: Vec<&[u8]> =
        headers.get_all(name).iter().map(|value| value.as_bytes().trim_ascii()).collect();
    (!values.is_empty()).then(|| values.join(b", ".as_slice()).into())
}

/// Whether the caller has the stored response already (4.3.2).
pub(super) fn is_not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let members =
            request.get_all(IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
        let tag = stored.get(ETAG).map(|tag| opaque(tag.as_bytes()));
        return members.map(opaque).any(|member| member == b"*" || Some(member) == tag);
    }
    let Some(since) = date(request, &IF_MODIFIED_SINCE) else { return false };
    date(stored, &LAST_MODIFIED).or_else(|| date(stored, &DATE)).is_some_and(|modified| modified <= since)
}

/// An entity tag for the weak comparison (RFC 9110 8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// A field's value for a moment.
pub(super) fn date_value(moment: SystemTime) -> Option<HeaderValue> {
    HeaderValue::from_str(&httpdate::fmt_http_date(moment)).ok()
}
