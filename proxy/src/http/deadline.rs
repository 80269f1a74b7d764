//! How long a request may wait for its response: the limit that the route or the upstream has, and the caller's own
//! deadline (`grpc-timeout`), which is passed on shortened by the time that was spent here.
//!
//! The two are not the same. A configured timeout runs from the request's end to the response's headers. A gRPC
//! deadline runs from the call's start to its last trailer, and the peer ends the call by it: so the peer is
//! told what is left of the deadline, but never a configured timeout, which would cut streams off.

use std::future::Future;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use thiserror::Error;

use super::headers::is_grpc;

/// gRPC's "Timeout" (PROTOCOL-HTTP2.md): up to eight digits and a unit.
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const MOST_DIGITS: usize = 8;
const MOST_VALUE: u128 = 99_999_999;

/// Units of `grpc-timeout` in nanoseconds, the finest first.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60 * 1_000_000_000),
    (b'H', 3_600 * 1_000_000_000),
];

/// When a gRPC caller stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

/// The caller's deadline has passed: it does not wait any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the caller's deadline has passed")]
pub struct DeadlinePassed;

/// How long a request may wait for the response's headers; by default for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeLimit {
    /// From the request's end: what the route says, else the upstream.
    pub after_request: Option<Duration>,
    /// The caller's.
    pub deadline: Option<Deadline>,
}

impl Deadline {
    /// The deadline in the head of a gRPC request that came in at `received`. What is not a timeout as gRPC writes it
    /// says nothing here, and goes on to whom it may say something.
    pub fn of(headers: &HeaderMap, received: Instant) -> Option<Self> {
        if !is_grpc(headers) {
            return None;
        }
        let timeouts = headers.get_all(GRPC_TIMEOUT).iter();
        let timeout = timeouts.filter_map(|value| parse(value.as_bytes())).min()?;
        received.checked_add(timeout).map(Self)
    }

    /// Time left.
    ///
    /// # Errors
    ///
    /// None is left.
    pub fn left(self, now: Instant) -> Result<Duration, DeadlinePassed> {
        let left = self.0.saturating_duration_since(now);
        if left.is_zero() { Err(DeadlinePassed) } else { Ok(left) }
    }

    /// Writes the time that is left into a request about to be sent; for each try anew.
    ///
    /// # Errors
    ///
    /// None is left: don't send it.
    pub fn pass_on(self, headers: &mut HeaderMap, now: Instant) -> Result<(), DeadlinePassed> {
        let mut buffer = [0; MOST_DIGITS + 1];
        // Digits and a letter are a field's value; what was there could only be longer.
        if let Ok(value) = HeaderValue::from_bytes(write(self.left(now)?, &mut buffer)) {
            headers.insert(GRPC_TIMEOUT, value);
        }
        Ok(())
    }
}

impl From<Duration> for TimeLimit {
    /// A configured limit alone.
    fn from(after_request: Duration) -> Self {
        Self { after_request: Some(after_request), deadline: None }
    }
}

impl TimeLimit {
    /// Whether it may wait for ever.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// When it has waited too long, whichever is first; as far as that is known while the request has not ended.
    pub fn end(self, request_ended: Option<Instant>) -> Option<Instant> {
        let configured =
            request_ended.zip(self.after_request).and_then(|(ended, after)| ended.checked_add(after));
        let deadline = self.deadline.map(|Deadline(deadline)| deadline);
        configured.into_iter().chain(deadline).min()
    }

    /// Is done when the request has waited too long; tells whether that is so by the caller's own deadline.
    pub async fn passed(self, request_ended: impl Future<Output = ()>) -> Passed {
        let configured = async {
            match self.after_request {
                Some(after) => {
                    request_ended.await;
                    tokio::time::sleep(after).await;
                    Passed::Timeout(after)
                }
                None => std::future::pending().await,
            }
        };
        match self.deadline {
            None => configured.await,
            Some(Deadline(deadline)) => tokio::select! {
                biased;
                () = tokio::time::sleep_until(deadline.into()) => Passed::Deadline,
                passed = configured => passed,
            },
        }
    }
}

/// Which limit a request's wait was over by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// The configured one.
    Timeout(Duration),
    /// The caller's.
    Deadline,
}

/// Reads a `grpc-timeout`. Nothing at all, `0S`, is what callers send whose deadline is over.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, nanoseconds) = UNITS.iter().find(|(name, _)| name == unit)?;
    if digits.is_empty() || digits.len() > MOST_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(Duration::from_nanos(*nanoseconds) * value)
}

/// Writes a `grpc-timeout` in the finest unit that fits, rounded down: never more than is left, and never nothing.
fn write(timeout: Duration, buffer: &mut [u8; MOST_DIGITS + 1]) -> &[u8] {
    let nanoseconds = timeout.as_nanos();
    let fits = |(_, unit): &&(u8, u64)| nanoseconds / u128::from(*unit) <= MOST_VALUE;
    let (name, unit) = UNITS.iter().find(fits).unwrap_or(&UNITS[UNITS.len() - 1]);
    let mut value = (nanoseconds / u128::from(*unit)).min(MOST_VALUE) as u32;
    let mut start = MOST_DIGITS;
    buffer[start] = *name;
    loop {
        start -= 1;
        buffer[start] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &buffer[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use http::header::CONTENT_TYPE;
    use proptest::prelude::*;

    use super::*;

    const fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn grpc(timeouts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"));
        for timeout in timeouts {
            headers.append(GRPC_TIMEOUT, HeaderValue::from_static(timeout));
        }
        headers
    }

    #[test]
    fn a_timeout_is_up_to_eight_digits_and_a_unit() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("15S", Some(Duration::from_secs(15))),
            ("250m", Some(milliseconds(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("00000001S", Some(Duration::from_secs(1))),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("1h", None),
            ("1 S", None),
            (" 1S", None),
            ("1S ", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("1SS", None),
            ("000000001S", None),
            ("123456789n", None),
            ("\u{661}S", None),
        ] {
            assert_eq!(parse(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn a_timeout_is_written_in_the_finest_unit_that_fits_and_rounded_down() {
        for (timeout, want) in [
            (Duration::from_nanos(1), "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(5), "5000000u"),
            (Duration::from_nanos(99_999_999_999), "99999999u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(99_999), "99999000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(99_999_999), "99999999S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(6_000_000_000), "1666666H"),
            (Duration::from_secs(99_999_999 * 3600), "99999999H"),
            (Duration::MAX, "99999999H"),
        ] {
            let mut buffer = [0; MOST_DIGITS + 1];
            assert_eq!(std::str::from_utf8(write(timeout, &mut buffer)).unwrap(), want, "{timeout:?}");
        }
    }

    #[test]
    fn the_deadline_is_that_of_a_grpc_call_the_shortest_if_there_are_several() {
        let now = Instant::now();
        for (headers, want) in [
            (grpc(&["250m"]), Some(milliseconds(250))),
            (grpc(&["3S", "1S", "2S"]), Some(milliseconds(1000))),
            (grpc(&["soon", "2S"]), Some(milliseconds(2000))),
            (grpc(&["soon"]), None),
            (grpc(&[]), None),
            (HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static("1S"))]), None),
        ] {
            let deadline = Deadline::of(&headers, now);
            assert_eq!(deadline, want.map(|want| Deadline(now + want)), "{headers:?}");
        }
    }

    #[test]
    fn what_is_passed_on_is_shorter_by_the_time_that_was_spent() {
        let received = Instant::now();
        for (said, spent, want) in [
            ("5S", milliseconds(0), Ok("5000000u")),
            ("5S", milliseconds(1), Ok("4999000u")),
            ("5S", Duration::from_nanos(4_999_999_999), Ok("1n")),
            ("5S", milliseconds(5_000), Err(DeadlinePassed)),
            ("5S", milliseconds(9_000), Err(DeadlinePassed)),
            ("0n", milliseconds(0), Err(DeadlinePassed)),
            ("1H", milliseconds(20), Ok("3599980m")),
            ("99999999H", milliseconds(1), Ok("99999998H")),
        ] {
            let mut headers = grpc(&["7H", said, "8H"]);
            if said == "99999999H" {
                headers = grpc(&[said]);
            }
            let deadline = Deadline::of(&headers, received).unwrap();
            let passed_on = deadline.pass_on(&mut headers, received + spent).map(|()| {
                let values: Vec<_> = headers.get_all(GRPC_TIMEOUT).iter().collect();
                assert_eq!(values.len(), 1, "{values:?}");
                values[0].to_str().unwrap().to_owned()
            });
            assert_eq!(passed_on, want.map(String::from), "{said} after {spent:?}");
        }
    }

    #[test]
    fn the_limit_of_a_request_is_the_earlier_of_both() {
        let base = Instant::now();
        let deadline = |after| Some(Deadline(base + milliseconds(after)));
        let after = |after| Some(milliseconds(after));
        for (after_request, deadline, ended, want) in [
            (None, None, Some(base), None),
            (after(20), None, Some(base), after(20)),
            (after(20), None, None, None),
            (None, deadline(30), Some(base), after(30)),
            (None, deadline(30), None, after(30)),
            (after(20), deadline(30), Some(base), after(20)),
            (after(20), deadline(10), Some(base), after(10)),
            (after(20), deadline(30), None, after(30)),
        ] {
            let limit = TimeLimit { after_request, deadline };
            assert_eq!(limit.end(ended), want.map(|want| base + want), "{limit:?} {ended:?}");
            assert_eq!(limit.is_none(), after_request.is_none() && deadline.is_none());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_configured_timeout_waits_for_the_requests_end_and_a_deadline_does_not() {
        let (after, upload) = (milliseconds(20), milliseconds(100));
        for (after_request, deadline, want, passed) in [
            (Some(after), None, 120, Passed::Timeout(after)),
            (Some(after), Some(50), 50, Passed::Deadline),
            (Some(after), Some(110), 110, Passed::Deadline),
            (Some(after), Some(130), 120, Passed::Timeout(after)),
            (None, Some(30), 30, Passed::Deadline),
        ] {
            let start = tokio::time::Instant::now();
            let deadline = deadline.map(|after| Deadline(start.into_std() + milliseconds(after)));
            let limit = TimeLimit { after_request, deadline };
            assert_eq!(limit.passed(tokio::time::sleep(upload)).await, passed);
            assert_eq!(start.elapsed(), milliseconds(want), "{limit:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_a_request_waits_for_ever() {
        let day = Duration::from_secs(86_400);
        for limit in [TimeLimit::default(), TimeLimit { after_request: Some(day), deadline: None }] {
            assert!(tokio::time::timeout(day * 365, limit.passed(pending())).await.is_err(), "{limit:?}");
        }
        let limit = TimeLimit::default();
        assert!(tokio::time::timeout(day * 365, limit.passed(ready(()))).await.is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_passed_on_is_neither_nothing_nor_more_than_is_left_and_hardly_less(
            value in 1..=MOST_VALUE as u64,
            unit in 0..UNITS.len(),
            spent_thousandths in 0..1000_u32,
        ) {
            let said = Duration::from_nanos(UNITS[unit].1) * value as u32;
            let left = said - (said / 1000 * spent_thousandths);
            let mut buffer = [0; MOST_DIGITS + 1];
            let read = parse(write(left, &mut buffer)).unwrap();
            prop_assert!(!read.is_zero() && read <= left, "{read:?} of {left:?}");
            // A unit is a thousand times the next finer one at most, which would take more than eight digits.
            prop_assert!((left - read).as_secs_f64() <= left.as_secs_f64() / 1e5, "{read:?} of {left:?}");
        }
    }
}
