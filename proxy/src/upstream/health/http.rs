//! A check by an HTTP GET.

use std::ops::RangeInclusive;
use std::rc::Rc;

use http::header::{HOST, USER_AGENT};
use http::{Request, StatusCode, Uri, Version};
use tokio::task::spawn_local;

use super::probe::{self, ProbeError, Target, send_multiplexed};
use super::schedule::Outcome;
use crate::config::{HttpCheck, Protocol};
use crate::net::{Body, read_rest};
use crate::upstream::EndpointPool;

/// A GET whose status says whether the endpoint is well.
#[derive(Debug)]
pub(super) struct Get {
    pub(super) name: String,
    path: String,
    host: Option<String>,
    expected: Vec<RangeInclusive<u16>>,
    version: Version,
}

impl Get {
    /// `host` is the upstream's own.
    pub(super) fn new(check: &HttpCheck, host: Option<&str>, protocol: Protocol) -> Self {
        Self {
            name: format!("GET {}", check.path),
            path: check.path.clone(),
            host: check.host.as_deref().or(host).map(Into::into),
            expected: check.expected(),
            version: match protocol {
                Protocol::Http2 | Protocol::Grpc => Version::HTTP_2,
                Protocol::Auto | Protocol::Http1 | Protocol::Tcp => Version::HTTP_11,
            },
        }
    }

    pub(super) async fn ask(&self, pool: &Rc<EndpointPool>, target: &Target) -> Result<Outcome, ProbeError> {
        let authority = self.host.clone().unwrap_or_else(|| target.authority());
        let status = if pool.is_meshed() || self.version == Version::HTTP_2 {
            self.by_http2(pool, target, &authority).await?
        } else {
            self.by_http1(pool, target, &authority).await?
        };
        // A redirect is not followed: the status alone decides.
        let is_expected = self.expected.iter().any(|range| range.contains(&status.as_u16()));
        let words = status.as_str().to_owned();
        Ok(if is_expected { Outcome::Passed(words) } else { Outcome::Failed(words) })
    }

    async fn by_http2(
        &self,
        pool: &Rc<EndpointPool>,
        target: &Target,
        authority: &str,
    ) -> Result<StatusCode, ProbeError> {
        let uri = target.uri(authority, &self.path)?;
        let head =
            Request::get(uri).version(Version::HTTP_2).header(USER_AGENT, probe::USER_AGENT).body(())?;
        let (response, lease) = send_multiplexed(pool, target, head, self.version, None).await?;
        let status = response.status();
        let body = Body::from(response.into_body());
        spawn_local(async move {
            read_rest(body).await;
            drop(lease);
        });
        Ok(status)
    }

    async fn by_http1(
        &self,
        pool: &Rc<EndpointPool>,
        target: &Target,
        authority: &str,
    ) -> Result<StatusCode, ProbeError> {
        let uri: Uri = self.path.parse().map_err(http::Error::from)?;
        let request = Request::get(uri)
            .header(HOST, authority)
            .header(USER_AGENT, probe::USER_AGENT)
            .body(Body::empty())?;
        let mut lease = pool.http1(&target.upstream).await?;
        let response = lease.sender.send_request(request).await?;
        let status = response.status();
        lease.give_back_after(response.into_body().into());
        Ok(status)
    }
}
