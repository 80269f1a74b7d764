//! In which version of HTTP a request goes on: the one it came in, unless its upstream's `protocol` states one.

use http::header::{CONTENT_LENGTH, COOKIE, HOST, HeaderValue, TRAILER};
use http::uri::{Authority, Scheme};
use http::{HeaderMap, Method, Request, Uri, Version};

use super::forward::Wire;
use super::headers::to_origin_form;
use super::tunnel::wants_own_connection;
use crate::config::Protocol;
use crate::net::Body;

/// Puts `request`, which came in `version`, into the one that its upstream speaks, and says how it leaves. The mesh
/// carries that version too, and the peer's sidecar hands it to its workload. `CONNECT` stays as it came: a tunnel over
/// one version is none over the other.
pub fn speak(protocol: Protocol, version: Version, request: &mut Request<Body>) -> Wire {
    let spoken = match protocol {
        _ if *request.method() == Method::CONNECT => version,
        Protocol::Http2 | Protocol::Grpc => Version::HTTP_2,
        Protocol::Http1 => version.min(Version::HTTP_11),
        Protocol::Auto | Protocol::Tcp => version,
    };
    match (request.version() == Version::HTTP_2, spoken == Version::HTTP_2) {
        (false, true) => to_http2(request),
        (true, false) => to_http1(request, spoken),
        _ => {}
    }
    match spoken {
        Version::HTTP_2 => Wire::Multiplexed,
        _ if wants_own_connection(request) => Wire::Own,
        version => Wire::Http1(version),
    }
}

/// Fits the response of such an upstream to a client that spoke `version`: HTTP/1.1 has trailers behind chunks only (RFC
/// 9112 7.1.2), so the length that HTTP/2 may state beside them goes.
pub fn fit_response(protocol: Protocol, version: Version, headers: &mut HeaderMap) {
    let was_http2 = matches!(protocol, Protocol::Http2 | Protocol::Grpc);
    if was_http2 && version == Version::HTTP_11 && headers.contains_key(TRAILER) {
        headers.remove(CONTENT_LENGTH);
    }
}

/// RFC 9113 8.3.1: the authority is named by the target. Fields of the connection go where it is sent.
fn to_http2(request: &mut Request<Body>) {
    if request.uri().authority().is_none() {
        let host = request.headers().get(HOST);
        let Some(authority) = host.and_then(|host| Authority::try_from(host.as_bytes()).ok()) else {
            // HTTP/1.0 without a host: the version says that there may be none.
            return;
        };
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(authority);
        // Fails only without a path, which the target of no method but `CONNECT` lacks.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    }
    request.headers_mut().remove(HOST);
    *request.version_mut() = Version::HTTP_2;
}

fn to_http1(request: &mut Request<Body>, version: Version) {
    to_origin_form(request);
    join_cookies(request.headers_mut());
    *request.version_mut() = version;
}

/// RFC 9113 8.2.3: HTTP/2 may split `Cookie` into several fields, HTTP/1.1 knows one.
fn join_cookies(headers: &mut HeaderMap) {
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Values with `; ` between them are a value.
    if all.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the pipelines have it when it is sent on.
    fn came(version: Version, fields: &[(&'static str, &'static str)]) -> Request<Body> {
        let target = if version == Version::HTTP_2 { "http://api:81/x?y" } else { "/x?y" };
        let mut request = Request::builder().version(version).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        if version != Version::HTTP_2 {
            request = request.header(HOST, "api:81");
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn a_request_leaves_in_the_version_that_its_upstream_speaks() {
        use Protocol::{Auto, Grpc, Http1, Http2, Tcp};
        const ONE_0: Version = Version::HTTP_10;
        const ONE_1: Version = Version::HTTP_11;
        const TWO: Version = Version::HTTP_2;
        let cases = [
            (Auto, ONE_0, Wire::Http1(ONE_0)),
            (Auto, ONE_1, Wire::Http1(ONE_1)),
            (Auto, TWO, Wire::Multiplexed),
            (Tcp, ONE_1, Wire::Http1(ONE_1)),
            (Http1, ONE_0, Wire::Http1(ONE_0)),
            (Http1, ONE_1, Wire::Http1(ONE_1)),
            (Http1, TWO, Wire::Http1(ONE_1)),
            (Http2, ONE_0, Wire::Multiplexed),
            (Http2, ONE_1, Wire::Multiplexed),
            (Http2, TWO, Wire::Multiplexed),
            (Grpc, ONE_1, Wire::Multiplexed),
        ];
        for (protocol, version, wire) in cases {
            let mut request = came(version, &[]);
            assert_eq!(speak(protocol, version, &mut request), wire, "{protocol:?} {version:?}");
            let (target, host, sent) = match wire {
                Wire::Http1(sent) => ("/x?y", Some("api:81"), sent),
                _ => ("http://api:81/x?y", None, TWO),
            };
            assert_eq!(*request.uri(), target, "{protocol:?} {version:?}");
            let told = request.headers().get(HOST).map(|host| host.to_str().unwrap());
            assert_eq!(told, host, "{protocol:?} {version:?}");
            assert_eq!(request.version(), sent, "{protocol:?} {version:?}");
            // For another upstream, that speaks what the client speaks, it is what it was.
            let again = speak(Auto, version, &mut request);
            assert_eq!(again, speak(Auto, version, &mut came(version, &[])), "{protocol:?} {version:?}");
            assert_eq!(*request.uri(), *came(version, &[]).uri(), "{protocol:?} {version:?}");
        }
    }

    #[test]
    fn only_http_1_has_connections_of_their_own() {
        let upgrade = [("connection", "upgrade"), ("upgrade", "websocket")];
        for (protocol, wire) in
            [(Protocol::Auto, Wire::Own), (Protocol::Http1, Wire::Own), (Protocol::Http2, Wire::Multiplexed)]
        {
            let mut request = came(Version::HTTP_11, &upgrade);
            assert_eq!(speak(protocol, Version::HTTP_11, &mut request), wire, "{protocol:?}");
        }
        let mut connect = came(Version::HTTP_11, &[]);
        *connect.method_mut() = Method::CONNECT;
        assert_eq!(speak(Protocol::Http2, Version::HTTP_11, &mut connect), Wire::Own);
    }

    #[test]
    fn cookies_that_http_2_split_are_one_field_of_http_1() {
        let mut request =
            came(Version::HTTP_2, &[("cookie", "a=1"), ("cookie", "b=2; c=3"), ("cookie", "d")]);
        speak(Protocol::Http1, Version::HTTP_2, &mut request);
        let cookies: Vec<_> = request.headers().get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; b=2; c=3; d"]);
    }

    #[test]
    fn a_request_that_names_no_host_needs_none() {
        let mut request = came(Version::HTTP_10, &[]);
        request.headers_mut().remove(HOST);
        assert_eq!(speak(Protocol::Http2, Version::HTTP_10, &mut request), Wire::Multiplexed);
        assert_eq!((request.version(), request.uri().path()), (Version::HTTP_10, "/x"));
    }
}
