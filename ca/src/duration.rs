//! Durations as people write them, in flags, configs and records: `250ms`, `15s`, `1h30m`, `10y`.

use std::time::Duration;

/// How a duration is written, for error messages.
pub const EXPECTED: &str =
    "write whole numbers with a unit (y, d, h, m, s, ms), for example 250ms, 15s, 1h30m; at most 100y";

/// Milliseconds of each unit, the largest first. A year has 365 days.
const UNITS: [(&str, u64); 6] =
    [("y", 31_536_000_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// A century: beyond it certificates' dates leave what verifiers understand, and timers overflow.
const LONGEST_MILLISECONDS: u64 = 100 * UNITS[0].1;

/// Reads a sum of whole numbers with their units, of at most 100 years; `None` for anything else.
pub fn parse(text: &str) -> Option<Duration> {
    let mut sum: Option<u64> = None;
    let mut rest = text;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
        let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len()));
        let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let part = number.parse::<u64>().ok()?.checked_mul(*milliseconds)?;
        sum = Some(sum.unwrap_or(0).checked_add(part)?);
        rest = tail;
    }
    sum.filter(|sum| *sum <= LONGEST_MILLISECONDS).map(Duration::from_millis)
}

/// Writes a duration so that [`parse`] reads it; what is shorter than a millisecond is left out.
pub fn to_text(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut text = String::new();
    for (unit, milliseconds) in UNITS {
        if rest >= milliseconds {
            text += &format!("{}{unit}", rest / milliseconds);
            rest %= milliseconds;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, milliseconds, shown) in [
            ("250ms", 250, "250ms"),
            ("1s", 1_000, "1s"),
            ("90s", 90_000, "1m30s"),
            ("5m", 300_000, "5m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1h1m1s1ms", 3_661_001, "1h1m1s1ms"),
            ("24h", 86_400_000, "1d"),
            ("10y", 315_360_000_000, "10y"),
            ("100y", 3_153_600_000_000, "100y"),
            ("0s", 0, "0s"),
        ] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(text), Some(duration), "{text}");
            assert_eq!(to_text(duration), shown, "{text}");
            assert_eq!(parse(shown), Some(duration), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_or_longer_than_a_century_is_refused() {
        for text in [
            "",
            "15",
            "s",
            "1.5s",
            "-1s",
            "1 s",
            "1S",
            "1sec",
            "1us",
            "1s ",
            "1é",
            "100y1ms",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
