//! Answers that send the caller elsewhere, by the rules of the Gateway API's `HTTPRequestRedirectFilter`.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, LOCATION};
use http::uri::Authority;
use http::{Request, Response, StatusCode};

use super::rewrite::PathChange;
use crate::config;
use crate::http::{LocalResponse, ProxyError};
use crate::net::Body;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// In plaintext.
    Http,
    /// Over TLS.
    Https,
}

/// A redirect of a route.
#[derive(Debug)]
pub(super) struct Redirect {
    status: StatusCode,
    scheme: Option<Scheme>,
    host: Option<Box<str>>,
    port: Option<u16>,
    path: Option<PathChange>,
}

impl Scheme {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "https" => Some(Self::Https),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

impl Redirect {
    /// Compiles a redirect. What a checked config does not hold is left out.
    pub(super) fn new(redirect: &config::Redirect) -> Self {
        Self {
            status: StatusCode::from_u16(redirect.status()).unwrap_or(StatusCode::FOUND),
            scheme: redirect.scheme.as_deref().and_then(Scheme::parse),
            host: redirect.host.as_deref().map(Into::into),
            port: redirect.port,
            path: redirect.path.as_ref().and_then(PathChange::new),
        }
    }

    /// Answers a request that came by `scheme`.
    ///
    /// # Errors
    /// The place can't be named: neither route nor request has a host, or the path would be too long.
    pub(super) fn response<B>(
        &self,
        request: &Request<B>,
        scheme: Scheme,
        prefix: Option<usize>,
    ) -> Result<Response<Body>, LocalResponse> {
        let asked = authority_of(request);
        let host = match (&self.host, &asked) {
            (Some(host), _) => host,
            (None, Some(asked)) => asked.host(),
            (None, None) => {
                return Err(LocalResponse::new(ProxyError::BAD_REQUEST, "a redirect needs a host to go to"));
            }
        };
        let asked_port = || asked.as_ref().and_then(Authority::port_u16);
        let (scheme, port) = match self.scheme {
            Some(scheme) => (scheme, self.port),
            None => (scheme, self.port.or_else(asked_port)),
        };
        let target: Cow<'_, str> = match (&self.path, request.uri().path_and_query()) {
            (Some(change), _) => change.target(request.uri(), prefix)?.as_str().to_owned().into(),
            // `OPTIONS *` asks for no path.
            (None, Some(asked)) if asked.as_str().starts_with('/') => asked.as_str().into(),
            (None, _) => "/".into(),
        };
        let scheme_name = scheme.as_str();
        let location = match port.filter(|port| *port != scheme.default_port()) {
            Some(port) => format!("{scheme_name}://{host}:{port}{target}"),
            None => format!("{scheme_name}://{host}{target}"),
        };
        let location = HeaderValue::from_str(&location)
            .or_else(|_| HeaderValue::from_bytes(location.as_bytes()))
            .map_err(|_| LocalResponse::new(ProxyError::BAD_REQUEST, "the target can't be redirected"))?;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.headers_mut().insert(LOCATION, location);
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok(response)
    }
}

/// The authority that a request names, in its target or by `Host`.
fn authority_of<B>(request: &Request<B>) -> Option<Authority> {
    match request.uri().authority() {
        Some(authority) => Some(authority.clone()),
        None => Authority::try_from(request.headers().get(HOST)?.as_bytes()).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PathRewrite;

    fn redirected(
        redirect: config::Redirect,
        scheme: Scheme,
        host: Option<&str>,
        uri: &str,
        prefix: Option<usize>,
    ) -> Result<Response<Body>, LocalResponse> {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header(HOST, host);
        }
        Redirect::new(&redirect).response(&request.body(()).unwrap(), scheme, prefix)
    }

    fn location(redirect: config::Redirect, scheme: Scheme, host: &str, uri: &str) -> String {
        let response = redirected(redirect, scheme, Some(host), uri, Some(4)).unwrap();
        response.headers()[LOCATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn what_is_not_stated_stays_as_it_was_asked_for() {
        use Scheme::{Http, Https};
        let to = |scheme: Option<&str>, host: Option<&str>, port| config::Redirect {
            scheme: scheme.map(Into::into),
            host: host.map(Into::into),
            port,
            ..config::Redirect::default()
        };
        for (redirect, by, host, want) in [
            (to(Some("https"), None, None), Http, "api", "https://api/a/b?q=1"),
            (to(Some("https"), None, None), Http, "api:8080", "https://api/a/b?q=1"),
            (to(Some("https"), None, Some(8443)), Http, "api:8080", "https://api:8443/a/b?q=1"),
            (to(Some("https"), None, Some(443)), Http, "api:8080", "https://api/a/b?q=1"),
            (to(Some("http"), None, Some(443)), Http, "api", "http://api:443/a/b?q=1"),
            (to(None, Some("new.shop"), None), Http, "api:8080", "http://new.shop:8080/a/b?q=1"),
            (to(None, Some("new.shop"), None), Http, "api:80", "http://new.shop/a/b?q=1"),
            (to(None, Some("new.shop"), None), Https, "api", "https://new.shop/a/b?q=1"),
            (to(None, Some("new.shop"), None), Https, "api:443", "https://new.shop/a/b?q=1"),
            (to(None, None, Some(81)), Http, "api:8080", "http://api:81/a/b?q=1"),
            (to(None, None, Some(80)), Http, "api:8080", "http://api/a/b?q=1"),
            (to(Some("https"), None, None), Http, "[fd00::1]:80", "https://[fd00::1]/a/b?q=1"),
            (to(Some("https"), None, None), Http, "user:secret@api:80", "https://api/a/b?q=1"),
        ] {
            assert_eq!(location(redirect.clone(), by, host, "/a/b?q=1"), want, "{redirect:?} {host}");
        }
    }

    #[test]
    fn the_targets_authority_wins_over_host() {
        let redirect = config::Redirect { scheme: Some("https".into()), ..Default::default() };
        assert_eq!(location(redirect, Scheme::Http, "other", "http://api:80/x"), "https://api/x");
    }

    #[test]
    fn the_path_is_changed_as_by_a_rewrite() {
        let to = |path| config::Redirect { path: Some(path), ..config::Redirect::default() };
        let full = || to(PathRewrite::Full("/new".into()));
        let prefix = || to(PathRewrite::Prefix("/new".into()));
        assert_eq!(location(full(), Scheme::Http, "api", "/old/x?q"), "http://api/new?q");
        assert_eq!(location(prefix(), Scheme::Http, "api", "/old/x?q"), "http://api/new/x?q");
        assert_eq!(location(prefix(), Scheme::Http, "api", "/old"), "http://api/new");
        let anything = config::Redirect { port: Some(81), ..config::Redirect::default() };
        assert_eq!(location(anything.clone(), Scheme::Http, "api", "*"), "http://api:81/");
        assert_eq!(
            location(anything, Scheme::Http, "api", "//evil.example/x"),
            "http://api:81//evil.example/x"
        );
    }

    #[test]
    fn the_status_is_the_stated_one_or_302() {
        for (status, want) in [(None, 302), (Some(301), 301), (Some(308), 308)] {
            let redirect = config::Redirect { status, host: Some("new".into()), ..Default::default() };
            let response = redirected(redirect, Scheme::Http, None, "/", None).unwrap();
            assert_eq!(response.status(), want);
            assert_eq!(response.headers()[LOCATION], "http://new/");
            assert_eq!(response.headers()[CONTENT_LENGTH], "0");
            assert!(!response.headers().contains_key("proxy-status"));
            assert!(response.body().is_end());
        }
    }

    #[test]
    fn without_any_host_there_is_nowhere_to_go() {
        let redirect = config::Redirect { scheme: Some("https".into()), ..Default::default() };
        let refused = redirected(redirect, Scheme::Http, None, "/", None).err().unwrap();
        assert_eq!(refused.error, ProxyError::BAD_REQUEST);
    }
}
