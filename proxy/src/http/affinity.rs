//! What a request is balanced by: the key that consistent hashing sends to the same endpoint each time.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::net::IpAddr;

use http::HeaderMap;
use http::header::{COOKIE, HeaderValue, SET_COOKIE};
use rand::{Rng, RngExt};

use crate::config::{Balance, Cookie, HashKey, HashPolicy};
use crate::upstream::hash_key;

/// The key of one request.
#[derive(Debug)]
pub struct Affinity {
    /// Its hash; without one the request goes anywhere.
    pub key: Option<u64>,
    /// The cookie that the response is to set, where the request had none.
    set_cookie: Option<HeaderValue>,
}

impl Affinity {
    /// Of a request with these fields from `client`, as `balance` says; `None` where keys are no matter.
    pub fn of(balance: &Balance, headers: &HeaderMap, client: IpAddr, rng: &mut impl Rng) -> Option<Self> {
        let (Balance::RingHash(HashPolicy { key }) | Balance::Maglev(HashPolicy { key })) = balance else {
            return None;
        };
        let without_cookie = |key| Self { key, set_cookie: None };
        Some(match key {
            HashKey::SourceAddress => without_cookie(Some(source(client))),
            HashKey::Header(name) => without_cookie(header(headers, name).map(|value| hash_key(&value))),
            HashKey::Cookie(cookie) => match sent(headers, &cookie.name) {
                Some(value) => without_cookie(Some(hash_key(value))),
                None => {
                    // As many as nobody meets twice; it is no secret.
                    let value = format!("{:016x}", rng.random::<u64>());
                    Self { key: Some(hash_key(value.as_bytes())), set_cookie: set_cookie(cookie, &value) }
                }
            },
        })
    }

    /// Has a response set the cookie, if the request had none.
    pub fn set(&self, response: &mut HeaderMap) {
        if let Some(cookie) = &self.set_cookie {
            response.append(SET_COOKIE, cookie.clone());
        }
    }
}

/// The key of opaque bytes: nothing but the client's address can be one.
pub fn source_key(balance: &Balance, client: IpAddr) -> Option<u64> {
    match balance {
        Balance::RingHash(HashPolicy { key: HashKey::SourceAddress })
        | Balance::Maglev(HashPolicy { key: HashKey::SourceAddress }) => Some(source(client)),
        _ => None,
    }
}

/// An IPv4 client is the same one over an IPv6 socket.
fn source(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => hash_key(&address.octets()),
        IpAddr::V6(address) => hash_key(&address.octets()),
    }
}

/// Several fields of one name are one list (RFC 9110 5.3).
fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<Cow<'a, [u8]>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let mut joined = Cow::Borrowed(first.as_bytes());
    for value in values {
        joined.to_mut().extend_from_slice(b", ");
        joined.to_mut().extend_from_slice(value.as_bytes());
    }
    Some(joined)
}

/// The value of a cookie that a request carries; of several of one name the first, as most servers take it.
fn sent<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers.get_all(COOKIE).iter().flat_map(|field| field.as_bytes().split(|byte| *byte == b';')).find_map(
        |pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let value = pair[at + 1..].trim_ascii();
            (pair[..at].trim_ascii() == name.as_bytes() && !value.is_empty()).then_some(value)
        },
    )
}

/// RFC 6265 4.1. Scripts have no use for it.
fn set_cookie(cookie: &Cookie, value: &str) -> Option<HeaderValue> {
    let mut text = format!("{}={value}; Path={}", cookie.name, cookie.path.as_deref().unwrap_or("/"));
    if let Some(ttl) = cookie.ttl {
        // Writing to a string can't fail.
        let _ = write!(text, "; Max-Age={}", ttl.as_std().as_secs());
    }
    text.push_str("; HttpOnly; SameSite=Lax");
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn of(key: HashKey, fields: &[(&'static str, &str)], client: &str) -> Affinity {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().unwrap());
        }
        let balance = Balance::RingHash(HashPolicy { key });
        Affinity::of(&balance, &headers, client.parse().unwrap(), &mut SmallRng::seed_from_u64(7)).unwrap()
    }

    #[test]
    fn a_request_is_balanced_by_a_header_or_its_source() {
        let header = || HashKey::Header("x-user".into());
        let key = |fields, client| of(header(), fields, client).key;
        assert_eq!(key(&[("x-user", "ann")], "10.0.0.1"), Some(hash_key(b"ann")));
        assert_eq!(key(&[("x-user", "a"), ("x-user", "b")], "10.0.0.1"), Some(hash_key(b"a, b")));
        assert_eq!(key(&[], "10.0.0.1"), None);
        let source = |client| of(HashKey::SourceAddress, &[], client).key;
        assert_eq!(source("10.0.0.1"), source("::ffff:10.0.0.1"));
        assert_ne!(source("10.0.0.1"), source("10.0.0.2"));
        let none = Affinity::of(
            &Balance::PeakEwma,
            &HeaderMap::new(),
            [127, 0, 0, 1].into(),
            &mut SmallRng::seed_from_u64(7),
        );
        assert!(none.is_none());
    }

    #[test]
    fn a_cookie_is_set_where_there_is_none_and_leads_to_the_same_key() {
        let cookie = |ttl: Option<&str>, path: Option<&str>| {
            HashKey::Cookie(Cookie {
                name: "at".into(),
                ttl: ttl.map(|ttl| ttl.parse().unwrap()),
                path: path.map(Into::into),
            })
        };
        for (ttl, path, attributes) in [
            (None, None, "; Path=/; HttpOnly; SameSite=Lax"),
            (Some("1h"), Some("/shop"), "; Path=/shop; Max-Age=3600; HttpOnly; SameSite=Lax"),
        ] {
            let first = of(cookie(ttl, path), &[("cookie", "a=b; ats=1; at="), ("cookie", "c")], "10.0.0.1");
            let mut response = HeaderMap::new();
            first.set(&mut response);
            let set = response[SET_COOKIE].to_str().unwrap();
            let (pair, rest) = set.split_at(set.find(';').unwrap());
            assert_eq!(rest, attributes);
            let sent = format!("a=b;{pair} ; c=d");
            let next = of(cookie(ttl, path), &[("cookie", &sent)], "10.0.0.2");
            assert_eq!(next.key, first.key);
            let mut response = HeaderMap::new();
            next.set(&mut response);
            assert!(response.is_empty());
        }
    }
}
