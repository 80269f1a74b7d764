//! Which fields end at this hop, and which are the mesh's own.

use http::Version;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

/// The HTTP version a request had before it crossed the mesh: `1.0`, `1.1` or `2`.
pub const ORIGINAL_VERSION: HeaderName = HeaderName::from_static("outrigger-version");

/// The value of [`ORIGINAL_VERSION`] for a request's version.
pub fn version_to_mesh(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    })
}

/// Whether a field is the mesh's own, or would be taken for one: CGI and its heirs read every character that is no
/// letter or digit as `_`.
fn is_of_the_mesh(name: &HeaderName) -> bool {
    let rest = name.as_str().strip_prefix("outrigger");
    rest.is_some_and(|rest| rest.starts_with(|separator: char| !separator.is_ascii_alphanumeric()))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Removes the fields of RFC 9110 7.6.1 that are about this connection only, and those that
/// `Connection` nominates. Fields that tell where a request came from can't be nominated away:
/// otherwise a client could make the proxy strip what a proxy before it wrote.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none of them: one look at each name's length is cheaper than eight lookups.
    if !headers.keys().any(|name| may_be_hop_by_hop(name.as_str())) {
        return;
    }
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

/// Whether a message has transfer codings other than one `chunked`. The HTTP/1.1 parser takes `chunked` off and
/// leaves the others on, whose name then ends with this hop: coded bytes would pass for content (RFC 9112 6.1).
pub fn has_unknown_coding(headers: &HeaderMap) -> bool {
    if !headers.contains_key(TRANSFER_ENCODING) {
        return false;
    }
    let lines = headers.get_all(TRANSFER_ENCODING).iter();
    let mut codings = lines.flat_map(|line| line.as_bytes().split(|b| *b == b','));
    let chunked = codings.next().is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    !chunked || codings.next().is_some()
}

/// Whether a name is as long as one of `te`, `upgrade`, `connection`, `keep-alive`, `http2-settings`,
/// `proxy-connection` and `transfer-encoding`, and begins like it.
fn may_be_hop_by_hop(name: &str) -> bool {
    matches!(
        (name.len(), name.as_bytes()[0]),
        (2, b't') | (7, b'u') | (10, b'c' | b'k') | (14, b'h') | (16, b'p') | (17, b't')
    )
}

fn is_protected(name: &HeaderName) -> bool {
    let name_str = name.as_str();
    name_str.starts_with("x-forwarded-")
        || is_of_the_mesh(name)
        || matches!(
            name_str,
            "forwarded" | "x-real-ip" | "host" | "content-length" | "cookie" | "authorization" | "te"
        )
        || *name == PROXY_AUTHENTICATE
        || *name == PROXY_AUTHORIZATION
}

/// Removes every field of the mesh's own.
pub fn strip_mesh_headers(headers: &mut HeaderMap) {
    // Nearly no message has one: look before collecting.
    if headers.keys().any(is_of_the_mesh) {
        let ours: Vec<HeaderName> = headers.keys().filter(|name| is_of_the_mesh(name)).cloned().collect();
        for name in ours {
            headers.remove(name);
        }
    }
}

/// Removes what trailers must not say (RFC 9110 6.5.1): servers that merge them into the fields would
/// take an identity, a host or a length from there that nobody verified.
pub(super) fn strip_trailers(trailers: &mut HeaderMap) {
    strip_mesh_headers(trailers);
    strip_hop_by_hop(trailers);
    for name in [HOST, CONTENT_LENGTH, AUTHORIZATION] {
        trailers.remove(name);
    }
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
    fn chunked_alone_is_the_transfer_coding_that_is_known() {
        for (lines, unknown) in [
            (&[][..], false),
            (&["chunked"][..], false),
            (&[" Chunked "][..], false),
            (&["gzip, chunked"][..], true),
            (&["gzip"][..], true),
            (&["chunked, identity"][..], true),
            (&["xchunked"][..], true),
            (&["chunked,"][..], true),
            (&[""][..], true),
            (&["gzip", "chunked"][..], true),
            (&["chunked", "chunked"][..], true),
        ] {
            let fields: Vec<_> = lines.iter().map(|line| ("transfer-encoding", *line)).collect();
            assert_eq!(has_unknown_coding(&map(&fields)), unknown, "{lines:?}");
        }
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
        let mut headers = map(&[
            ("outrigger-client-id", "x"),
            ("Outrigger-Version", "2"),
            ("outrigger_client_id", "1"),
            ("Outrigger.Client.Id", "1"),
            ("outrigger~client|id", "1"),
            ("outrigger!", "1"),
            ("outriggers", "kept"),
            ("outrigger2-x", "kept"),
            ("outrigger", "kept"),
            ("accept", "kept"),
        ]);
        strip_mesh_headers(&mut headers);
        assert_eq!(headers.len(), 4, "{headers:?}");
        assert!(headers.values().all(|value| value == "kept"), "{headers:?}");
    }
}
