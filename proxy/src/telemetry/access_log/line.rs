//! How a line of the access log is written.

use std::fmt::{Display, Write as _};
use std::time::SystemTime;

use http::Version;
use outrigger_ca::since_1970;

use crate::telemetry::recorder::{RequestRecord, TcpRecord};

/// Bytes of a path or an authority that are logged. A path may have 64 KiB, and the queue is bounded in lines.
const LONGEST_TEXT: usize = 1024;

/// A request's line, with its newline.
pub(in crate::telemetry) fn request(now: SystemTime, record: &RequestRecord<'_>) -> String {
    let mut line = Line::new(now);
    line.text("direction", record.direction.as_str());
    line.text("method", record.method.as_str());
    // A query may hold credentials; which it does only the workload knows.
    line.text("path", record.path.split(['?', '#']).next().unwrap_or_default());
    line.text("authority", record.authority);
    line.text("version", version(record.version));
    line.raw("code", record.code);
    if let Some(status) = record.grpc_status {
        line.raw("grpc_status", status);
    }
    line.raw("duration_ms", Milliseconds(record.duration.as_micros()));
    line.raw("received_bytes", record.received_bytes);
    line.raw("sent_bytes", record.sent_bytes);
    line.text("route", record.route);
    line.text("upstream", record.upstream);
    if let Some(endpoint) = record.endpoint {
        line.display("endpoint", endpoint);
    }
    if record.retries > 0 {
        line.raw("retries", record.retries);
    }
    line.display("client", record.client);
    if let Some(peer) = record.peer {
        line.text("peer", peer.as_str());
    }
    line.text("tls", record.tls.as_str());
    if let Some(status) = record.proxy_status {
        line.text("proxy_status", status);
    }
    line.finish()
}

/// An opaque TCP connection's line, with its newline. It has a `reason`, which a request's has not.
pub(in crate::telemetry) fn tcp(now: SystemTime, record: &TcpRecord<'_>) -> String {
    let mut line = Line::new(now);
    line.text("direction", record.labels.direction.as_str());
    line.text("reason", record.reason);
    line.raw("duration_ms", Milliseconds(record.duration.as_micros()));
    line.raw("received_bytes", record.received_bytes);
    line.raw("sent_bytes", record.sent_bytes);
    line.text("upstream", record.labels.upstream);
    if let Some(endpoint) = record.endpoint {
        line.display("endpoint", endpoint);
    }
    line.display("client", record.client);
    if let Some(peer) = record.labels.peer {
        line.text("peer", peer.as_str());
    }
    line.text("tls", record.labels.tls.as_str());
    if let Some(status) = record.proxy_status {
        line.text("proxy_status", status);
    }
    line.finish()
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => "3",
    }
}

struct Line(String);

impl Line {
    fn new(now: SystemTime) -> Self {
        let mut line = Self(String::with_capacity(512));
        line.push(format_args!("{{\"time\":\"{}\"", Rfc3339(now)));
        line
    }

    fn finish(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }

    fn push(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.0.write_fmt(arguments).expect("writing into a String does not fail");
    }

    /// A number.
    fn raw(&mut self, name: &str, value: impl Display) {
        self.push(format_args!(",\"{name}\":{value}"));
    }

    /// A value whose text needs no escaping.
    fn display(&mut self, name: &str, value: impl Display) {
        self.push(format_args!(",\"{name}\":\"{value}\""));
    }

    fn text(&mut self, name: &str, value: &str) {
        let shown = &value[..value.floor_char_boundary(LONGEST_TEXT)];
        self.push(format_args!(",\"{name}\":\""));
        for character in shown.chars() {
            match character {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                // JSON asks for those below 0x20 only; the others can drive a terminal that shows the log.
                control if control.is_control() => {
                    self.push(format_args!("\\u{:04x}", u32::from(control)));
                }
                other => self.0.push(other),
            }
        }
        if shown.len() < value.len() {
            self.0.push('…');
        }
        self.0.push('"');
    }
}

/// Microseconds, shown as milliseconds.
struct Milliseconds(u128);

impl Display for Milliseconds {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// A time as RFC 3339 writes it, in UTC, to the millisecond.
struct Rfc3339(SystemTime);

impl Display for Rfc3339 {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = since_1970(self.0);
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil_from_days(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let millisecond = since.subsec_millis();
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
    }
}

/// The Gregorian date of a day since 1970. Years begin in March here, so that the leap day comes last and
/// the lengths of the months before it follow one line; Euclidean affine functions, Neri and Schneider
/// (2022), after Howard Hinnant's `civil_from_days`.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    const DAYS_IN_400_YEARS: u64 = 146_097;
    let days = days + DAYS_FROM_MARCH_OF_YEAR_0;
    let (era, day_of_era) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use http::Method;
    use outrigger_ca::SpiffeId;

    use super::*;
    use crate::telemetry::labels::{Direction, Tls};
    use crate::telemetry::recorder::TcpLabels;

    fn at(seconds: u64, milliseconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(seconds * 1000 + milliseconds)
    }

    #[test]
    fn times_are_written_as_rfc_3339_says() {
        let cases = [
            (0, 0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, 999, "2000-02-28T23:59:59.999Z"),
            (951_782_400, 0, "2000-02-29T00:00:00.000Z"),
            (951_868_800, 1, "2000-03-01T00:00:00.001Z"),
            (1_709_210_096, 7, "2024-02-29T12:34:56.007Z"),
            (1_798_761_599, 0, "2026-12-31T23:59:59.000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000Z"),
            (253_402_300_799, 0, "9999-12-31T23:59:59.000Z"),
        ];
        for (seconds, milliseconds, text) in cases {
            assert_eq!(Rfc3339(at(seconds, milliseconds)).to_string(), text);
        }
    }

    #[test]
    fn a_request_is_one_line_with_every_field_and_without_its_query() {
        let peer = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let record = RequestRecord {
            direction: Direction::Inbound,
            route: &Arc::from("api"),
            upstream: &Arc::from("workload"),
            code: 200,
            grpc_status: Some(14),
            tls: Tls::Mesh,
            peer: Some(&peer),
            duration: Duration::from_micros(12_345),
            method: &Method::POST,
            path: "/orders?token=secret",
            authority: "api.shop.svc.cluster.local",
            version: Version::HTTP_2,
            received_bytes: 12,
            sent_bytes: 34,
            endpoint: Some(([10, 0, 0, 7], 8080).into()),
            retries: 0,
            retry_refused: false,
            client: ([10, 0, 0, 5], 40_000).into(),
            proxy_status: Some("outrigger; error=connection_refused"),
        };
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:01.002Z","direction":"inbound","method":"POST","path":"/orders","#,
            r#""authority":"api.shop.svc.cluster.local","version":"2","code":200,"grpc_status":14,"#,
            r#""duration_ms":12.345,"received_bytes":12,"sent_bytes":34,"route":"api","upstream":"workload","#,
            r#""endpoint":"10.0.0.7:8080","client":"10.0.0.5:40000","#,
            r#""peer":"spiffe://cluster.local/ns/shop/sa/web","tls":"mesh","#,
            r#""proxy_status":"outrigger; error=connection_refused"}"#,
            "\n"
        );
        assert_eq!(request(at(1, 2), &record), expected);
    }

    #[test]
    fn a_connection_has_a_reason_and_no_field_that_only_requests_have() {
        let labels = TcpLabels {
            direction: Direction::Outbound,
            upstream: &Arc::from("store"),
            tls: Tls::Plain,
            peer: None,
        };
        let record = TcpRecord {
            labels,
            reason: "end",
            duration: Duration::from_millis(1),
            received_bytes: 1,
            sent_bytes: 2,
            endpoint: None,
            client: "[::1]:9".parse().unwrap(),
            proxy_status: None,
        };
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:00.000Z","direction":"outbound","reason":"end","duration_ms":1.000,"#,
            r#""received_bytes":1,"sent_bytes":2,"upstream":"store","client":"[::1]:9","tls":"none"}"#,
            "\n"
        );
        assert_eq!(tcp(at(0, 0), &record), expected);
    }

    #[test]
    fn hostile_text_comes_back_out_of_any_json_parser_and_stays_on_its_line() {
        let every: String = (0..0x300).filter_map(char::from_u32).chain(['\u{2028}', '\u{1f6a3}']).collect();
        let mut line = Line::new(at(0, 0));
        line.text("path", &every);
        let text = line.finish();
        assert_eq!(text.chars().filter(|character| character.is_control()).collect::<String>(), "\n");
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let path = parsed["path"].as_str().unwrap();
        assert_eq!(path, format!("{}…", &every[..every.floor_char_boundary(LONGEST_TEXT)]));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let mut line = Line::new(at(0, 0));
        line.text("path", &"é".repeat(LONGEST_TEXT));
        let parsed: serde_json::Value = serde_json::from_str(&line.finish()).unwrap();
        assert_eq!(parsed["path"].as_str().unwrap(), format!("{}…", "é".repeat(LONGEST_TEXT / 2)));
    }
}
