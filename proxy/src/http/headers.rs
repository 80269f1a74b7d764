//! The mesh's own header fields, and what is read out of a request's head.

use http::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};

pub use crate::net::{ORIGINAL_VERSION, version_to_mesh};

/// The verified SPIFFE ID of the peer, for the workload. What anybody else wrote there is dropped.
pub const CLIENT_ID: HeaderName = HeaderName::from_static("outrigger-client-id");

/// The version that a peer's [`ORIGINAL_VERSION`] names; HTTP/1.1 when it names none.
pub fn version_from_mesh(headers: &HeaderMap) -> Version {
    match headers.get(ORIGINAL_VERSION).map(HeaderValue::as_bytes) {
        Some(b"2") => Version::HTTP_2,
        Some(b"1.0") => Version::HTTP_10,
        _ => Version::HTTP_11,
    }
}

/// The host a request names, without its port: of the target, else of `Host`. Both are what [`super::refuse`] let
/// pass.
pub fn host_of<B>(request: &Request<B>) -> Option<&str> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?.0,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
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
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

#[cfg(test)]
mod tests {
    use super::*;

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
