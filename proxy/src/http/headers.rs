//! Which header fields end at this hop, and which are the mesh's own.

use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{Method, Request, Version};

/// The verified SPIFFE ID of the peer, for the workload. What anybody else wrote there is dropped.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("outrigger-client-id");
/// The HTTP version a request had before it crossed the mesh: `1.0`, `1.1` or `2`.
pub const ORIGINAL_VERSION: HeaderName = HeaderName::from_static("outrigger-version");

const MESH_PREFIX: &str = "outrigger-";
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes the fields of RFC 9110 7.6.1 that are about this connection only, and those that
/// `Connection` nominates. Fields that tell where a request came from can't be nominated away:
/// otherwise a client could make the proxy strip what a proxy before it wrote.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .filter(|name| !is_protected(name))
            .collect();
        headers.remove(CONNECTION);
        for name in nominated {
            headers.remove(name);
        }
    }
    if headers.contains_key(TE) {
        // HTTP/2 knows `trailers` only, and gRPC needs it to pass (RFC 9113 8.2.2).
        let trailers = headers
            .get_all(TE)
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','))
            .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"));
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        } else {
            headers.remove(TE);
        }
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // A length beside it is not the length that was read (RFC 9112 6.3): passing it on would let the
        // next party read another message than we did.
        headers.remove(CONTENT_LENGTH);
    }
    for name in [KEEP_ALIVE, PROXY_CONNECTION, TRANSFER_ENCODING, UPGRADE, HTTP2_SETTINGS] {
        headers.remove(name);
    }
}

fn is_protected(name: &HeaderName) -> bool {
    let name_str = name.as_str();
    name_str.starts_with("x-forwarded-")
        || name_str.starts_with(MESH_PREFIX)
        || matches!(name_str, "forwarded" | "x-real-ip" | "host" | "content-length" | "cookie" | "authorization" | "te")
        || *name == PROXY_AUTHENTICATE
        || *name == PROXY_AUTHORIZATION
}

/// Removes every field of the mesh's own.
pub fn strip_mesh_headers(headers: &mut HeaderMap) {
    // Nearly no message has one: look before collecting.
    if headers.keys().any(|name| name.as_str().starts_with(MESH_PREFIX)) {
        let ours: Vec<HeaderName> =
            headers.keys().filter(|name| name.as_str().starts_with(MESH_PREFIX)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

/// The value of [`ORIGINAL_VERSION`] for a request's version.
pub fn version_to_mesh(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    })
}

/// The version that a peer's [`ORIGINAL_VERSION`] names; HTTP/1.1 when it names none.
pub fn version_from_mesh(headers: &HeaderMap) -> Version {
    match headers.get(ORIGINAL_VERSION).map(HeaderValue::as_bytes) {
        Some(b"2") => Version::HTTP_2,
        Some(b"1.0") => Version::HTTP_10,
        _ => Version::HTTP_11,
    }
}

/// The host a request names, without its port: of the target, else of `Host`.
pub fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let host = match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0,
        None => host.split_once(':').map_or(host, |(host, _)| host),
    };
    (!host.is_empty()).then_some(host)
}

/// Turns a target that names its authority (`GET http://host/path`, or HTTP/2's) into a path with a
/// `Host`, as HTTP/1.1 origins expect it. The target's authority wins over `Host` (RFC 9112 3.2.2).
pub fn to_origin_form<B>(request: &mut Request<B>) {
    if request.method() == Method::CONNECT || request.uri().authority().is_none() {
        return;
    }
    let parts = std::mem::take(request.uri_mut()).into_parts();
    if let Some(host) = parts.authority.and_then(|a| HeaderValue::from_str(a.as_str()).ok()) {
        request.headers_mut().insert(HOST, host);
    }
    if let Some(path) = parts.path_and_query {
        *request.uri_mut() = path.into();
    }
}

/// Whether a message is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_is_about_the_connection_ends_here() {
        let mut headers = map(&[
            ("connection", "close, X-One"),
            ("connection", "x-two"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("te", "deflate, trailers;q=0.5"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-three"]);
    }

    #[test]
    fn trailers_are_still_asked_for() {
        let mut headers = map(&[("te", "gzip, Trailers")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers[TE], "trailers");
    }

    #[test]
    fn connection_can_not_nominate_where_a_request_came_from() {
        let mut headers = map(&[
            ("connection", "x-forwarded-for, forwarded, outrigger-client-id, authorization"),
            ("x-forwarded-for", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("outrigger-client-id", "spiffe://cluster.local/ns/a/sa/b"),
            ("authorization", "x"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.len(), 4, "{headers:?}");
    }

    #[test]
    fn the_meshs_own_fields_are_found_whatever_their_name() {
        let mut headers =
            map(&[("outrigger-client-id", "x"), ("Outrigger-Version", "2"), ("outrigger-new", "1"), ("accept", "*/*")]);
        strip_mesh_headers(&mut headers);
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn the_host_is_read_without_its_port() {
        for (authority, want) in [
            ("api", Some("api")),
            ("api:8080", Some("api")),
            ("[::1]:80", Some("::1")),
            ("[::1]", Some("::1")),
            ("", None),
        ] {
            let mut request = Request::new(());
            request.headers_mut().insert(HOST, HeaderValue::from_str(authority).unwrap());
            assert_eq!(host_of(&request), want, "{authority}");
        }
        let request = Request::builder().uri("http://other:1/x").header(HOST, "api").body(()).unwrap();
        assert_eq!(host_of(&request), Some("other"));
    }
}
