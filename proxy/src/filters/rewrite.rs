//! Changes of a request's target: host and path.

use std::borrow::Cow;

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Uri};
use http::{Method, Request, StatusCode, Version};

use crate::config;
use crate::http::{LocalResponse, ProxyError};

/// Changes of a route.
#[derive(Debug)]
pub(super) struct Rewrite {
    host: Option<(Authority, HeaderValue)>,
    path: Option<PathChange>,
}

/// A change of a path.
#[derive(Debug)]
pub(super) enum PathChange {
    Full(Box<str>),
    Prefix(Box<str>),
}

impl Rewrite {
    /// Compiles changes. What can't be sent, and what a checked config does not hold, is left out.
    pub(super) fn new(rewrite: &config::Rewrite) -> Self {
        let host = |host: &str| Some((Authority::try_from(host).ok()?, HeaderValue::from_str(host).ok()?));
        Self {
            host: rewrite.host.as_deref().and_then(host),
            path: rewrite.path.as_ref().and_then(PathChange::new),
        }
    }

    /// Changes the target of a request. That of `CONNECT` is where the tunnel ends: it stays.
    ///
    /// # Errors
    /// The path would be longer than one can be.
    pub(super) fn apply<B>(
        &self,
        request: &mut Request<B>,
        prefix: Option<usize>,
    ) -> Result<(), LocalResponse> {
        if *request.method() == Method::CONNECT {
            return Ok(());
        }
        let path = match &self.path {
            Some(change) => Some(change.target(request.uri(), prefix)?),
            None => None,
        };
        if self.host.is_none() && path.is_none() {
            return Ok(());
        }
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        if let Some((authority, value)) = &self.host {
            // HTTP/2 names it in the target, HTTP/1 in a field; either may do both.
            let in_target = parts.authority.is_some();
            if in_target {
                parts.authority = Some(authority.clone());
            }
            if !in_target || request.version() < Version::HTTP_2 || request.headers().contains_key(HOST) {
                request.headers_mut().insert(HOST, value.clone());
            }
        }
        if let Some(path) = path {
            parts.path_and_query = Some(path);
        }
        match Uri::from_parts(parts) {
            Ok(uri) => {
                *request.uri_mut() = uri;
                Ok(())
            }
            Err(error) => Err(too_long(&error)),
        }
    }
}

impl PathChange {
    /// Compiles a change; `None` when it does not make a path.
    pub(super) fn new(change: &config::PathRewrite) -> Option<Self> {
        let is_path = |text: &str| text.starts_with('/') && PathAndQuery::try_from(text).is_ok();
        Some(match change {
            config::PathRewrite::Full(path) if is_path(path) => Self::Full(path.as_str().into()),
            config::PathRewrite::Prefix(prefix) if prefix.is_empty() || is_path(prefix) => {
                Self::Prefix(prefix.as_str().into())
            }
            _ => return None,
        })
    }

    /// The changed path with the query of `uri`.
    ///
    /// # Errors
    /// It would be too long.
    pub(super) fn target(&self, uri: &Uri, prefix: Option<usize>) -> Result<PathAndQuery, LocalResponse> {
        let path = self.changed(uri.path(), prefix);
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.into_owned(),
        };
        PathAndQuery::try_from(target).map_err(|error| too_long(&error))
    }

    /// The changed path, as the Gateway API's table for `ReplacePrefixMatch` says. Without a prefix that matched, and
    /// of `OPTIONS *`, there is none to change.
    fn changed<'a>(&'a self, path: &'a str, prefix: Option<usize>) -> Cow<'a, str> {
        match self {
            Self::Full(full) => (&**full).into(),
            Self::Prefix(replacement) => {
                let Some(rest) =
                    prefix.filter(|_| path.starts_with('/')).and_then(|prefix| path.get(prefix..))
                else {
                    return path.into();
                };
                match (&**replacement, rest) {
                    ("", "") => "/".into(),
                    (whole, "") => whole.into(),
                    (start, rest) => format!("{}{rest}", start.strip_suffix('/').unwrap_or(start)).into(),
                }
            }
        }
    }
}

/// All that can keep checked parts from making a target is their length.
fn too_long(error: &dyn std::fmt::Display) -> LocalResponse {
    let error_type = ProxyError { status: StatusCode::URI_TOO_LONG, ..ProxyError::BAD_REQUEST };
    LocalResponse::new(error_type, format!("the rewritten path can't be sent: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathRewrite;

    fn request(version: Version, uri: &str, host: Option<&str>) -> Request<()> {
        let mut builder = Request::builder().version(version).uri(uri);
        if let Some(host) = host {
            builder = builder.header(HOST, host);
        }
        builder.body(()).unwrap()
    }

    fn path(change: PathRewrite) -> Rewrite {
        Rewrite::new(&config::Rewrite { host: None, path: Some(change) })
    }

    #[test]
    fn a_prefix_is_replaced_as_the_gateway_api_says() {
        for (asked, prefix, replacement, want) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "/foo", "/xyz/", "/xyz/"),
            ("/bar", "", "/xyz", "/xyz/bar"),
            ("/", "", "/xyz", "/xyz/"),
            ("/", "", "", "/"),
            ("/foo//bar", "/foo", "/xyz", "/xyz//bar"),
            ("/foo/bar?a=/foo&b", "/foo", "/xyz", "/xyz/bar?a=/foo&b"),
            ("/foo?", "/foo", "", "/?"),
        ] {
            let mut request = request(Version::HTTP_11, asked, Some("api"));
            path(PathRewrite::Prefix(replacement.into())).apply(&mut request, Some(prefix.len())).unwrap();
            assert_eq!(request.uri(), want, "{asked} {prefix} {replacement}");
        }
    }

    #[test]
    fn without_a_prefix_that_matched_the_path_stays() {
        let rewrite = path(PathRewrite::Prefix("/xyz".into()));
        for (asked, prefix) in [("/foo", None), ("*", Some(0)), ("/foo", Some(9))] {
            let mut request = request(Version::HTTP_11, asked, Some("api"));
            rewrite.apply(&mut request, prefix).unwrap();
            assert_eq!(request.uri().path(), asked);
        }
    }

    #[test]
    fn a_whole_path_is_replaced_and_the_query_stays() {
        for (version, asked, want) in [
            (Version::HTTP_11, "/a/b?q=1", "/x?q=1"),
            (Version::HTTP_11, "/", "/x"),
            (Version::HTTP_2, "http://api:80/a?q", "http://api:80/x?q"),
        ] {
            let mut request = request(version, asked, Some("api"));
            path(PathRewrite::Full("/x".into())).apply(&mut request, None).unwrap();
            assert_eq!(request.uri(), want);
            assert_eq!(request.headers()[HOST], "api");
        }
    }

    #[test]
    fn the_host_is_replaced_where_the_request_names_it() {
        let rewrite = Rewrite::new(&config::Rewrite { host: Some("new.shop:81".into()), path: None });
        for (version, asked, host, want_uri, want_host) in [
            (Version::HTTP_11, "/a?q", Some("api:8080"), "/a?q", Some("new.shop:81")),
            (Version::HTTP_10, "/a", None, "/a", Some("new.shop:81")),
            (Version::HTTP_2, "http://api:80/a", None, "http://new.shop:81/a", None),
            (Version::HTTP_2, "http://api:80/a", Some("api"), "http://new.shop:81/a", Some("new.shop:81")),
            (Version::HTTP_2, "/a", Some("api"), "/a", Some("new.shop:81")),
            (Version::HTTP_2, "/a", None, "/a", Some("new.shop:81")),
        ] {
            let mut request = request(version, asked, host);
            rewrite.apply(&mut request, None).unwrap();
            assert_eq!(request.uri(), want_uri);
            let got = request.headers().get(HOST).map(|value| value.to_str().unwrap());
            assert_eq!(got, want_host, "{version:?} {asked} {host:?}");
        }
    }

    #[test]
    fn the_target_of_connect_stays() {
        let change = config::Rewrite { host: Some("new".into()), path: Some(PathRewrite::Full("/x".into())) };
        let mut request = request(Version::HTTP_11, "api:443", Some("api:443"));
        *request.method_mut() = Method::CONNECT;
        Rewrite::new(&change).apply(&mut request, Some(0)).unwrap();
        assert_eq!(request.uri(), "api:443");
        assert_eq!(request.headers()[HOST], "api:443");
    }

    #[test]
    fn a_path_that_would_be_too_long_is_refused() {
        let long = format!("/foo/{}", "a".repeat(65_520));
        let mut request = request(Version::HTTP_11, &long, Some("api"));
        let refused = path(PathRewrite::Prefix("/a-longer-prefix".into())).apply(&mut request, Some(4));
        assert_eq!(refused.unwrap_err().error.status, StatusCode::URI_TOO_LONG);
    }

    #[test]
    fn what_makes_no_target_is_left_out() {
        for change in [
            PathRewrite::Full("x".into()),
            PathRewrite::Full(String::new()),
            PathRewrite::Full("/a b".into()),
            PathRewrite::Prefix("x".into()),
        ] {
            assert!(PathChange::new(&change).is_none(), "{change:?}");
        }
        let rewrite = Rewrite::new(&config::Rewrite { host: Some("a b".into()), path: None });
        let mut request = request(Version::HTTP_11, "/a", Some("api"));
        rewrite.apply(&mut request, None).unwrap();
        assert_eq!(request.headers()[HOST], "api");
    }
}
