//! What a request's head alone has every server refuse, whoever sent it and wherever it goes.

use http::header::HOST;
use http::{Request, Version};

use super::local_response::{LocalResponse, ProxyError};
use crate::net::has_unknown_coding;
use crate::upstream::HeaderLimits;

/// Refuses what must not go on. `version` is the one the request was first sent in.
pub fn refuse<B>(request: &Request<B>, version: Version, limits: HeaderLimits) -> Option<LocalResponse> {
    // Of HTTP/1.1 the parser has looked.
    if request.headers().len() > limits.fields {
        let what = format!("over {} fields", limits.fields);
        return Some(LocalResponse::new(ProxyError::TOO_LARGE, what));
    }
    if has_unknown_coding(request.headers()) {
        let what = "transfer coding other than chunked";
        return Some(LocalResponse::new(ProxyError::UNKNOWN_CODING, what));
    }
    wrong_host(request, version).map(|wrong| LocalResponse::new(ProxyError::BAD_REQUEST, wrong))
}

/// RFC 9112 3.2: parties that disagree on the host disagree on the policy.
fn wrong_host<B>(request: &Request<B>, version: Version) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => Some("more than one Host"),
        (None, _) if version == Version::HTTP_11 && request.uri().authority().is_none() => {
            Some("HTTP/1.1 without Host")
        }
        _ => None,
    }
}
