//! A check by gRPC's health protocol (`grpc.health.v1.Health/Check`).

use std::rc::Rc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use http_body_util::{BodyExt, Limited};
use prost::Message;

use super::probe::{self, ProbeError, Target, send_multiplexed};
use super::schedule::Outcome;
use crate::config::{GrpcCheck, grpc_status_name};
use crate::net::Body;
use crate::upstream::EndpointPool;

const PATH: &str = "/grpc.health.v1.Health/Check";
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
/// An answer holds one number.
const MOST_BYTES: usize = 4096;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

/// Asks for the health of a service.
#[derive(Debug)]
pub(super) struct Check {
    message: Bytes,
    host: Option<String>,
}

impl Check {
    /// `host` is the upstream's own.
    pub(super) fn new(check: &GrpcCheck, host: Option<&str>) -> Self {
        let request = HealthCheckRequest { service: check.service.clone().unwrap_or_default() };
        Self { message: framed(&request), host: host.map(Into::into) }
    }

    pub(super) async fn ask(&self, pool: &Rc<EndpointPool>, target: &Target) -> Result<Outcome, ProbeError> {
        let authority = self.host.clone().unwrap_or_else(|| target.authority());
        let head = Request::post(target.uri(&authority, PATH)?)
            .version(Version::HTTP_2)
            .header(USER_AGENT, probe::USER_AGENT)
            .header(CONTENT_TYPE, GRPC)
            .header(TE, "trailers")
            .body(())?;
        let message = Some(self.message.clone());
        let (response, _lease) = send_multiplexed(pool, target, head, Version::HTTP_2, message).await?;
        let (head, body) = response.into_parts();
        if head.status != StatusCode::OK {
            return Ok(Outcome::Failed(format!("HTTP {}", head.status.as_str())));
        }
        let collected = Limited::new(Body::from(body), MOST_BYTES).collect().await;
        let collected = collected.map_err(|error| ProbeError::Nonsense(error.to_string()))?;
        // Where nothing but a status is said, it stands in the only headers there are.
        let trailers = collected.trailers().filter(|trailers| trailers.contains_key(STATUS));
        let status = status(trailers.unwrap_or(&head.headers));
        Ok(judged(status, &collected.to_bytes()))
    }
}

const STATUS: &str = "grpc-status";

fn status(headers: &HeaderMap) -> Option<u16> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

fn judged(status: Option<u16>, body: &[u8]) -> Outcome {
    match status {
        Some(0) => {}
        Some(code) => {
            let name = grpc_status_name(code).map_or_else(|| code.to_string(), Into::into);
            return Outcome::Failed(format!("the call failed: {name}"));
        }
        None => return Outcome::Failed("an answer without a gRPC status".into()),
    }
    match unframed(body).map(|response| ServingStatus::try_from(response.status)) {
        Some(Ok(ServingStatus::Serving)) => Outcome::Passed("SERVING".into()),
        Some(Ok(ServingStatus::NotServing)) => Outcome::Failed("NOT_SERVING".into()),
        Some(Ok(ServingStatus::ServiceUnknown)) => Outcome::Failed("SERVICE_UNKNOWN".into()),
        Some(Ok(ServingStatus::Unknown) | Err(_)) => Outcome::Failed("UNKNOWN".into()),
        None => Outcome::Failed("an answer that is none of gRPC's health protocol".into()),
    }
}

fn framed(message: &HealthCheckRequest) -> Bytes {
    let encoded = message.encode_to_vec();
    let mut framed = BytesMut::with_capacity(PREFIX + encoded.len());
    framed.put_u8(0);
    // A service's name comes from a config file, and is no 4 GiB.
    framed.put_u32(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    framed.extend_from_slice(&encoded);
    framed.freeze()
}

fn unframed(body: &[u8]) -> Option<HealthCheckResponse> {
    let (prefix, message) = body.split_at_checked(PREFIX)?;
    let length = u32::from_be_bytes(prefix[1..].try_into().ok()?);
    let is_whole = prefix[0] == 0 && usize::try_from(length).is_ok_and(|length| length == message.len());
    is_whole.then(|| HealthCheckResponse::decode(message).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(outcome: Outcome) -> String {
        match outcome {
            Outcome::Passed(words) => format!("passed: {words}"),
            Outcome::Failed(words) => format!("failed: {words}"),
            Outcome::NotAsked(words) => format!("not asked: {words}"),
        }
    }

    #[test]
    fn the_request_is_a_frame_with_the_services_name() {
        assert_eq!(&framed(&HealthCheckRequest::default())[..], b"\0\0\0\0\0");
        assert_eq!(&framed(&HealthCheckRequest { service: "shop".into() })[..], b"\0\0\0\0\x06\x0a\x04shop");
    }

    #[test]
    fn only_a_call_that_ends_well_and_says_serving_passes() {
        const NONE: &str = "failed: an answer that is none of gRPC's health protocol";
        let cases: [(Option<u16>, &[u8], &str); 11] = [
            (Some(0), b"\0\0\0\0\x02\x08\x01", "passed: SERVING"),
            (Some(0), b"\0\0\0\0\x02\x08\x02", "failed: NOT_SERVING"),
            (Some(0), b"\0\0\0\0\x02\x08\x03", "failed: SERVICE_UNKNOWN"),
            (Some(0), b"\0\0\0\0\x02\x08\x09", "failed: UNKNOWN"),
            (Some(0), b"\0\0\0\0\0", "failed: UNKNOWN"),
            (Some(0), b"", NONE),
            (Some(0), b"\0\0\0\0\x03\x08\x01", NONE),
            (Some(0), b"\x01\0\0\0\x02\x08\x01", NONE),
            (Some(12), b"", "failed: the call failed: UNIMPLEMENTED"),
            (Some(14), b"\0\0\0\0\x02\x08\x01", "failed: the call failed: UNAVAILABLE"),
            (None, b"\0\0\0\0\x02\x08\x01", "failed: an answer without a gRPC status"),
        ];
        for (status, body, want) in cases {
            assert_eq!(words(judged(status, body)), want, "{status:?} {body:?}");
        }
    }
}
