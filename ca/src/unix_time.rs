//! Points in time as the time since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970; before that, as of a clock that is not set, counts as 1970.
pub fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The whole seconds since 1970.
pub fn unix_seconds(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

/// A point in time as RFC 3339 writes it, in seconds since 1970.
pub(crate) fn rfc3339(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// A point in time of a certificate, in seconds since 1970; before that counts as 1970.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
