//! How header fields, statuses and the conditions of a retry are written.

use std::ops::RangeInclusive;

use http::{HeaderName, HeaderValue};

use super::{Wrong, wrong};

/// Fields that are about the connection or the message's frame; each hop writes its own (RFC 9110 7.6.1).
const OF_THE_CONNECTION: [&str; 10] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// gRPC's statuses but `OK`, which is none to try again after; each stands at its number less 1.
const GRPC_STATUSES: [&str; 16] = [
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// One of the conditions on which a request is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RetryCondition {
    /// `connectFailure`: no connection came about.
    ConnectFailure,
    /// `refusedStream`: the peer said that it has not looked at the request.
    RefusedStream,
    /// `reset`: the connection or stream ended before the response.
    Reset,
    /// `timeout`: one try took longer than `perTryTimeout`.
    Timeout,
    /// A response with this HTTP status.
    Status(u16),
    /// A response with this gRPC status.
    Grpc(u16),
}

impl RetryCondition {
    /// Reads an item of `retry.on`; `None` if it is none.
    pub(in crate::config) fn parse(text: &str) -> Option<Self> {
        match text {
            "connectFailure" => Some(Self::ConnectFailure),
            "refusedStream" => Some(Self::RefusedStream),
            "reset" => Some(Self::Reset),
            "timeout" => Some(Self::Timeout),
            _ => match status(text) {
                // A 4xx says that the request is wrong, and will be wrong again; 429 alone says "later".
                Some(status) => matches!(status, 429 | 500..=599).then_some(Self::Status(status)),
                None => grpc_status(text).map(Self::Grpc),
            },
        }
    }

    /// Every name that can be written, for error texts.
    pub(in crate::config) fn names() -> impl Iterator<Item = &'static str> {
        ["connectFailure", "refusedStream", "reset", "timeout"].into_iter().chain(GRPC_STATUSES)
    }
}

/// The name of a gRPC status; `None` for `OK`, and for what is no status.
pub fn grpc_status_name(status: u16) -> Option<&'static str> {
    GRPC_STATUSES.get(usize::from(status.checked_sub(1)?)).copied()
}

fn grpc_status(name: &str) -> Option<u16> {
    let index = GRPC_STATUSES.iter().position(|known| *known == name)?;
    u16::try_from(index + 1).ok()
}

/// Three digits, 100 to 599.
fn status(text: &str) -> Option<u16> {
    let is_plain = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|status| is_plain && (100..=599).contains(status))
}

/// `200` or `200-299`.
pub(in crate::config) fn statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some(first..=last)
}

/// A header field's name that a route may look at.
pub(in crate::config) fn field_name(name: &str) -> Result<HeaderName, Wrong> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| wrong(format!("{name:?} is not a header field's name"), "write one such as x-version"))
}

/// A header field that a config may set or remove.
pub(in crate::config) fn editable(name: &str) -> Result<(), Wrong> {
    let parsed = field_name(name)?;
    let lower = parsed.as_str();
    if is_of_the_mesh(lower) {
        return Err(wrong(
            format!("`{name}` is one of the mesh's own fields, `outrigger-*`"),
            "choose another name",
        ));
    }
    if lower == "host" {
        return Err(wrong(
            "`Host` says where a request goes",
            "leave it out; `rewrite: {host: …}` changes it",
        ));
    }
    if OF_THE_CONNECTION.contains(&lower) {
        return Err(wrong(
            format!(
                "`{name}` is about the connection or the frame of a message, and each hop writes its own"
            ),
            "leave it out",
        ));
    }
    Ok(())
}

/// CGI and its heirs read `_` as `-`.
pub(in crate::config) fn is_of_the_mesh(name: &str) -> bool {
    name.strip_prefix("outrigger").is_some_and(|rest| rest.starts_with(['-', '_']))
}

/// A header field's value.
pub(in crate::config) fn field_value(value: &str) -> Result<(), Wrong> {
    // Blanks at its ends are no part of a value (RFC 9110 5.5): a peer would read another one.
    if HeaderValue::from_str(value).is_ok() && value.is_ascii() && value.trim_matches([' ', '\t']) == value {
        return Ok(());
    }
    Err(wrong(
        format!("{value:?} can't be the value of a header field"),
        "write visible ASCII without blanks at the ends",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_of_a_retry_are_names_statuses_and_grpc_statuses() {
        for (text, want) in [
            ("connectFailure", Some(RetryCondition::ConnectFailure)),
            ("refusedStream", Some(RetryCondition::RefusedStream)),
            ("reset", Some(RetryCondition::Reset)),
            ("timeout", Some(RetryCondition::Timeout)),
            ("429", Some(RetryCondition::Status(429))),
            ("500", Some(RetryCondition::Status(500))),
            ("599", Some(RetryCondition::Status(599))),
            ("CANCELLED", Some(RetryCondition::Grpc(1))),
            ("RESOURCE_EXHAUSTED", Some(RetryCondition::Grpc(8))),
            ("UNAVAILABLE", Some(RetryCondition::Grpc(14))),
            ("UNAUTHENTICATED", Some(RetryCondition::Grpc(16))),
            ("404", None),
            ("600", None),
            ("5xx", None),
            ("+50", None),
            ("0503", None),
            ("OK", None),
            ("unavailable", None),
            ("14", None),
            ("", None),
        ] {
            assert_eq!(RetryCondition::parse(text), want, "{text}");
        }
    }

    #[test]
    fn statuses_are_single_or_ranges() {
        for (text, want) in [
            ("200", Some(200..=200)),
            ("200-299", Some(200..=299)),
            ("299-200", None),
            ("200-", None),
            ("-200", None),
            ("200-299-300", None),
            ("99", None),
            ("200-600", None),
            ("2xx", None),
        ] {
            assert_eq!(statuses(text), want, "{text}");
        }
    }

    #[test]
    fn fields_of_the_mesh_and_of_the_connection_can_not_be_edited() {
        for name in ["x-version", "Authorization", "Set-Cookie", "forwarded", "outriggers"] {
            assert!(editable(name).is_ok(), "{name}");
        }
        for name in [
            "outrigger-client-id",
            "Outrigger_Client_Id",
            "HOST",
            "Connection",
            "Transfer-Encoding",
            "content-length",
            "TE",
            "",
            "a b",
            ":path",
            "ä",
        ] {
            assert!(editable(name).is_err(), "{name}");
        }
        for (value, good) in [
            ("", true),
            ("a b", true),
            ("a\tb", true),
            (" a", false),
            ("a\n", false),
            ("a\r\nb: c", false),
            ("ä", false),
        ] {
            assert_eq!(field_value(value).is_ok(), good, "{value:?}");
        }
    }
}
