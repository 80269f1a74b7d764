//! How the conditions of a retry are written.

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
}
