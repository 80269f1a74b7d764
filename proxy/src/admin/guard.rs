//! Who may ask the admin port: whoever is on this machine, but no website that a browser on it shows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, Method, Uri};

use super::ReachedBy;

/// Checks that the request is for a loopback name and does not come from another website.
///
/// A website can have its own name resolve to 127.0.0.1 (DNS rebinding): then the browser sends that name
/// as Host. And it can post a form to 127.0.0.1 itself: then the browser sends the website as Origin.
///
/// # Errors
/// Why the request is refused.
pub(super) fn check(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    reached_by: ReachedBy,
) -> Result<(), String> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err("the request must have one Host header; it has none, or several".into());
    };
    let host = host.to_str().unwrap_or_default();
    for name in uri.authority().map(|authority| authority.as_str()).into_iter().chain([host]) {
        let (is_known, known) = match reached_by {
            ReachedBy::Loopback => (is_loopback(name), "127.0.0.0/8 and [::1]"),
            ReachedBy::AnyAddress => (is_loopback(name) || is_address(name), "addresses"),
        };
        if !is_known {
            return Err(format!(
                "the admin port answers to localhost, {known} only, not to the host `{name}`: \
                 a website could have its name resolve to this machine"
            ));
        }
    }
    if method.is_safe() {
        return Ok(());
    }
    match headers.get(ORIGIN) {
        Some(origin) if origin.as_bytes().strip_prefix(b"http://") != Some(host.as_bytes()) => {
            Err("what changes state is not taken from another website's page".into())
        }
        _ => Ok(()),
    }
}

/// Whether `host`, with or without a port, is a name of this machine that no resolver is asked for.
fn is_loopback(host: &str) -> bool {
    let Some((name, is_port)) = parted(host) else { return false };
    let is_name = name.eq_ignore_ascii_case("localhost") && !host.starts_with('[');
    is_port && (is_name || address(host, name).is_some_and(|address| address.to_canonical().is_loopback()))
}

/// Whether `host`, with or without a port, is an address.
fn is_address(host: &str) -> bool {
    parted(host).is_some_and(|(name, is_port)| is_port && address(host, name).is_some())
}

/// What stands before the port, and whether what follows is one.
fn parted(host: &str) -> Option<(&str, bool)> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    Some((name, is_port(port)))
}

/// IPv6 stands in brackets, and nothing else does.
fn address(host: &str, name: &str) -> Option<IpAddr> {
    if host.starts_with('[') {
        name.parse().ok().map(|address: Ipv6Addr| address.into())
    } else {
        name.parse().ok().map(|address: Ipv4Addr| address.into())
    }
}

/// Nothing, or a colon with a port.
fn is_port(text: &str) -> bool {
    text.is_empty() || text.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        let cases = [
            ("localhost", true),
            ("LocalHost:15000", true),
            ("127.0.0.1", true),
            ("127.0.0.1:15000", true),
            ("127.9.8.7:1", true),
            ("[::1]", true),
            ("[::1]:15000", true),
            ("[::ffff:127.0.0.1]:15000", true),
            ("", false),
            (":15000", false),
            ("evil.example", false),
            ("evil.example:15000", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("[localhost]", false),
            ("[127.0.0.1]", false),
            ("localhost:x", false),
            ("localhost:99999", false),
            ("localhost@evil.example", false),
            ("user@localhost", false),
            ("::1", false),
            ("[::1]x", false),
            ("[::2]:15000", false),
            ("[::1", false),
            ("0.0.0.0", false),
            ("10.0.0.1:15000", false),
            ("2130706433", false),
            ("0x7f.1", false),
        ];
        for (host, loopback) in cases {
            assert_eq!(is_loopback(host), loopback, "{host}");
        }
    }

    #[test]
    fn told_to_listen_elsewhere_it_answers_to_addresses_and_never_to_names() {
        for (host, is_let_in) in [
            ("localhost:15000", true),
            ("10.0.0.1:15000", true),
            ("10.0.0.1", true),
            ("[fd00::1]:15000", true),
            ("evil.example:15000", false),
            ("10.0.0.1.evil.example", false),
            ("fd00::1", false),
            ("2130706433", false),
            ("[10.0.0.1]", false),
        ] {
            let headers = [(HOST, host.parse().unwrap())].into_iter().collect();
            let checked = check(&Method::GET, &Uri::from_static("/"), &headers, ReachedBy::AnyAddress);
            assert_eq!(checked.is_ok(), is_let_in, "{host}");
        }
    }

    fn checked(method: Method, uri: &'static str, headers: &[(&'static str, &'static str)]) -> bool {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect();
        check(&method, &Uri::from_static(uri), &headers, ReachedBy::Loopback).is_ok()
    }

    #[test]
    fn every_name_in_a_request_must_be_loopback() {
        assert!(checked(Method::GET, "/", &[("host", "localhost")]));
        assert!(checked(Method::GET, "http://127.0.0.1/", &[("host", "localhost")]));
        assert!(!checked(Method::GET, "http://evil.example/", &[("host", "localhost")]));
        assert!(!checked(Method::GET, "http://localhost/", &[("host", "evil.example")]));
        assert!(!checked(Method::GET, "/", &[]));
    }

    #[test]
    fn a_website_may_not_change_state_and_a_page_of_this_port_may() {
        let host = ("host", "localhost:15000");
        assert!(checked(Method::POST, "/quit", &[host]));
        assert!(checked(Method::POST, "/quit", &[host, ("origin", "http://localhost:15000")]));
        for origin in ["http://evil.example", "null", "https://localhost:15000", "http://localhost:3000"] {
            assert!(!checked(Method::POST, "/quit", &[host, ("origin", origin)]), "{origin}");
            assert!(checked(Method::GET, "/config", &[host, ("origin", origin)]), "{origin}");
        }
    }
}
