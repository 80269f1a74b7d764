//! What a request's head alone has every server refuse, whoever sent it and wherever it goes.

use std::net::Ipv6Addr;

use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Uri, Version};

use super::local_response::{LocalResponse, ProxyError};
use crate::net::has_unknown_coding;
use crate::upstream::HeaderLimits;

/// Refuses what must not go on, and has an HTTP/2 request name its host once, in its target. `version` is the one
/// that the request was first sent in.
pub fn refuse<B>(request: &mut Request<B>, version: Version, limits: HeaderLimits) -> Option<LocalResponse> {
    // Of HTTP/1.1 the parser has looked.
    if request.headers().len() > limits.fields {
        let what = format!("over {} fields", limits.fields);
        return Some(LocalResponse::new(ProxyError::TOO_LARGE, what));
    }
    if has_unknown_coding(request.headers()) {
        let what = "transfer coding other than chunked";
        return Some(LocalResponse::new(ProxyError::UNKNOWN_CODING, what));
    }
    settle_host(request, version).err().map(|wrong| LocalResponse::new(ProxyError::BAD_REQUEST, wrong))
}

/// RFC 9112 3.2 and RFC 9113 8.3.1: parties that disagree on the host disagree on the policy.
fn settle_host<B>(request: &mut Request<B>, version: Version) -> Result<(), &'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    let authority = request.uri().authority();
    if authority.is_some_and(|authority| !is_host_and_port(authority.as_str().as_bytes())) {
        return Err("the target's authority is no host and port");
    }
    if request.headers().get(HOST).is_some_and(|host| !is_host_and_port(host.as_bytes())) {
        return Err("Host is no host and port");
    }
    let host = match (hosts.next(), hosts.next(), authority) {
        (Some(_), Some(_), _) => return Err("more than one Host"),
        (None, _, Some(_)) => return Ok(()),
        (None, _, None) if version == Version::HTTP_10 => return Ok(()),
        (None, _, None) if version == Version::HTTP_2 => return Err("neither :authority nor Host"),
        (None, _, None) => return Err("HTTP/1.1 without Host"),
        (Some(_), None, _) if version < Version::HTTP_2 => return Ok(()),
        (Some(host), None, _) => host,
    };
    let host = Authority::try_from(host.as_bytes()).map_err(|_| "Host is empty")?;
    match authority {
        Some(authority) if !names_the_same(authority, &host, request.uri().scheme()) => {
            return Err(":authority and Host differ");
        }
        Some(_) => {}
        None => {
            let mut parts = std::mem::take(request.uri_mut()).into_parts();
            // The scheme came without an authority, and http's type can't hold that; nobody looks at it.
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Some(host);
            *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "no target")?;
        }
    }
    request.headers_mut().remove(HOST);
    Ok(())
}

/// Whether `value` is a host with or without a port (RFC 3986 3.2.2 and 3.2.3), or nothing. Userinfo makes it none
/// (RFC 9110 4.2.4): `api@other` is to deceive who reads it.
fn is_host_and_port(value: &[u8]) -> bool {
    let (is_host, rest) = if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = literal.iter().position(|byte| *byte == b']') else {
            return false;
        };
        (is_ipv6(&literal[..end]), &literal[end + 1..])
    } else {
        let (name, rest) = value.split_at(value.iter().position(|byte| *byte == b':').unwrap_or(value.len()));
        (is_name(name), rest)
    };
    is_host && rest.strip_prefix(b":").map_or(rest.is_empty(), is_port)
}

/// A registered name or an IPv4 address. RFC 3986 lets `,` and `*` into names too; here they are refused: a `,` joins
/// fields that stood twice (RFC 9110 5.3), and a `*` stands for many names.
fn is_name(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        let fits = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => true,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'+' | b';' | b'=' => true,
            b'%' => (0..2).all(|_| bytes.next().is_some_and(u8::is_ascii_hexdigit)),
            _ => false,
        };
        if !fits {
            return false;
        }
    }
    true
}

fn is_ipv6(address: &[u8]) -> bool {
    std::str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok())
}

/// RFC 3986 lets the digits be missing.
fn is_port(digits: &[u8]) -> bool {
    let port = digits.iter().try_fold(0, |port: u16, digit| {
        let value = digit.is_ascii_digit().then(|| digit - b'0')?;
        port.checked_mul(10)?.checked_add(value.into())
    });
    port.is_some()
}

/// RFC 3986 6.2: letters of either case are the same, and so are the scheme's port and none.
fn names_the_same(one: &Authority, other: &Authority, scheme: Option<&Scheme>) -> bool {
    let default_port = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default_port);
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The target after a request with these fields `host` is settled; an error is refused.
    fn settled(version: Version, target: &str, hosts: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        let mut request = request.body(()).unwrap();
        settle_host(&mut request, version)?;
        assert_eq!(request.headers().contains_key(HOST), version < Version::HTTP_2 && !hosts.is_empty());
        Ok(request.uri().to_string())
    }

    #[test]
    fn a_request_names_one_host() {
        use http::Version as V;
        for (version, target, hosts, want) in [
            (V::HTTP_10, "/a", &[][..], Some("/a")),
            (V::HTTP_11, "/a", &[][..], None),
            (V::HTTP_11, "/a", &["api"][..], Some("/a")),
            (V::HTTP_11, "/a", &["api", "api"][..], None),
            (V::HTTP_11, "http://api/a", &["other"][..], Some("http://api/a")),
            (V::HTTP_2, "http://api/a", &[][..], Some("http://api/a")),
            (V::HTTP_2, "/a?b", &["api:81"][..], Some("http://api:81/a?b")),
            (V::HTTP_2, "/a", &[][..], None),
            (V::HTTP_2, "/a", &[""][..], None),
            (V::HTTP_2, "/a", &["two words"][..], None),
            (V::HTTP_2, "/a", &["api", "api"][..], None),
            (V::HTTP_2, "http://api/a", &["API"][..], Some("http://api/a")),
            (V::HTTP_2, "http://api/a", &["api:80"][..], Some("http://api/a")),
            (V::HTTP_2, "https://api:443/a", &["api"][..], Some("https://api:443/a")),
            (V::HTTP_2, "https://api/a", &["api:80"][..], None),
            (V::HTTP_2, "http://api/a", &["other"][..], None),
            (V::HTTP_2, "http://api/a", &["api:81"][..], None),
            (V::HTTP_2, "http://[::1]:80/a", &["[::1]"][..], Some("http://[::1]:80/a")),
            (V::HTTP_11, "/a", &["two words"][..], None),
            (V::HTTP_11, "/a", &[""][..], Some("/a")),
            (V::HTTP_11, "http://api/a", &["a/b"][..], None),
            (V::HTTP_11, "http://user@api/a", &["api"][..], None),
            (V::HTTP_2, "http://user:password@api/a", &[][..], None),
            (V::HTTP_2, "http://api:99999/a", &[][..], None),
            (V::HTTP_2, "/a", &["user@api"][..], None),
        ] {
            let got = settled(version, target, hosts);
            assert_eq!(got.as_deref().ok(), want, "{version:?} {target} {hosts:?}: {got:?}");
        }
    }

    #[test]
    fn a_host_is_a_name_or_an_address_and_maybe_a_port() {
        let hosts = "api api:80 api: api:0 api:65535 a_b -a- API.Shop api.shop. xn--bcher-kva.de a%2Db a%c3%bc \
            ~a!$&'()+;= 10.0.0.1 10.0.0.1:80 [::1] [::1]:80 [::ffff:10.0.0.1]";
        for host in hosts.split(' ').chain([""]) {
            assert!(is_host_and_port(host.as_bytes()), "{host}");
        }
        let others = "a,b a/b a?x a#x a\\b <a> \"a\" a|b a^b {a} `a` * *.a u@api u:p@api @api a% a%2 a%zz büch a\0 \
            a:b a:-1 a:+1 a:99999 a:65536 a:80:80 ::1 [::1 ::1] [] [::1]80 [::1]:x [a] [10.0.0.1] [fe80::1%25eth0] a[::1]";
        for other in others.split(' ').chain(["a, b", "a b", "a\tb", " a", "a:80 "]) {
            assert!(!is_host_and_port(other.as_bytes()), "{other}");
        }
    }
}
