//! How a line of the access log is written.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::time::SystemTime;

use http::Version;
use outrigger_ca::{SpiffeId, since_1970};

use crate::config::{LogField, LogFormat, LogPiece};
use crate::telemetry::recorder::{RequestRecord, TcpRecord};

/// Bytes of a path or an authority that are logged. A path may have 64 KiB, and the queue is bounded in lines.
const LONGEST_TEXT: usize = 1024;
/// Room that most lines need.
const USUAL: usize = 512;

/// What a line is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry<'a> {
    Request(&'a RequestRecord<'a>),
    Tcp(&'a TcpRecord<'a>),
}

/// A request's line of JSON with all its fields, and its newline.
pub(in crate::telemetry) fn request(now: SystemTime, record: &RequestRecord<'_>) -> String {
    json(LogField::ALL.iter().map(|(field, ..)| *field), now, Entry::Request(record))
}

/// An opaque TCP connection's line of JSON with all its fields, and its newline.
pub(in crate::telemetry) fn tcp(now: SystemTime, record: &TcpRecord<'_>) -> String {
    json(LogField::ALL.iter().map(|(field, ..)| *field), now, Entry::Tcp(record))
}

/// A line in this format, with its newline.
pub(super) fn formatted(format: &LogFormat, now: SystemTime, entry: Entry<'_>) -> String {
    match format {
        LogFormat::Json(fields) => json(fields.iter().copied(), now, entry),
        LogFormat::Text(pieces) => text(pieces, now, entry),
    }
}

fn json(fields: impl Iterator<Item = LogField>, now: SystemTime, entry: Entry<'_>) -> String {
    let mut line = String::with_capacity(USUAL);
    let mut separator = '{';
    for field in fields {
        let Some(value) = value(field, now, entry) else { continue };
        let quote = if value.is_number() { "" } else { "\"" };
        push(&mut line, format_args!("{separator}\"{}\":{quote}", field.name()));
        value.push_to(&mut line);
        line.push_str(quote);
        separator = ',';
    }
    if separator == '{' {
        line.push('{');
    }
    line.push_str("}\n");
    line
}

fn text(pieces: &[LogPiece], now: SystemTime, entry: Entry<'_>) -> String {
    let mut line = String::with_capacity(USUAL);
    for piece in pieces {
        match piece {
            LogPiece::Literal(text) => line.push_str(text),
            LogPiece::Field(field) => {
                let before = line.len();
                if let Some(value) = value(*field, now, entry) {
                    value.push_to(&mut line);
                }
                if line.len() == before {
                    line.push('-');
                }
            }
        }
    }
    line.push('\n');
    line
}

/// A field's value.
#[derive(Clone, Copy)]
enum Value<'a> {
    /// From the network, and so anything.
    Text(&'a str),
    /// Written in the code.
    Word(&'static str),
    Number(u64),
    /// Shown as milliseconds.
    Microseconds(u128),
    Address(SocketAddr),
    Time(SystemTime),
    TraceId(u128),
    SpanId(u64),
}

/// The value of a field; `None` if there is none here.
fn value(field: LogField, now: SystemTime, entry: Entry<'_>) -> Option<Value<'_>> {
    match entry {
        Entry::Request(record) => of_request(field, now, record),
        Entry::Tcp(record) => of_tcp(field, now, record),
    }
}

fn of_request<'a>(field: LogField, now: SystemTime, record: &'a RequestRecord<'_>) -> Option<Value<'a>> {
    Some(match field {
        LogField::Time => Value::Time(now),
        LogField::Direction => Value::Word(record.direction.as_str()),
        LogField::Reason => return None,
        LogField::Method => Value::Text(record.method.as_str()),
        // A query may hold credentials; which it does only the workload knows.
        LogField::Path => Value::Text(record.path.split(['?', '#']).next().unwrap_or_default()),
        LogField::Authority => Value::Text(record.authority),
        LogField::Version => Value::Word(version(record.version)),
        LogField::Code => Value::Number(record.code.into()),
        LogField::GrpcStatus => Value::Number(record.grpc_status?.into()),
        LogField::Duration => Value::Microseconds(record.duration.as_micros()),
        LogField::ReceivedBytes => Value::Number(record.received_bytes),
        LogField::SentBytes => Value::Number(record.sent_bytes),
        LogField::Route => Value::Text(record.route),
        LogField::Upstream => Value::Text(record.upstream),
        LogField::Endpoint => Value::Address(record.endpoint?),
        LogField::Retries => Value::Number(Some(record.retries).filter(|retries| *retries > 0)?.into()),
        LogField::Client => Value::Address(record.client),
        LogField::Peer => Value::Text(record.peer.map(SpiffeId::as_str)?),
        LogField::Tls => Value::Word(record.tls.as_str()),
        LogField::TraceId => Value::TraceId(record.trace?.context.trace_id),
        LogField::SpanId => Value::SpanId(record.trace?.context.span_id),
        LogField::ProxyStatus => Value::Text(record.proxy_status?),
    })
}

fn of_tcp<'a>(field: LogField, now: SystemTime, record: &'a TcpRecord<'_>) -> Option<Value<'a>> {
    Some(match field {
        LogField::Time => Value::Time(now),
        LogField::Direction => Value::Word(record.labels.direction.as_str()),
        LogField::Reason => Value::Word(record.reason),
        LogField::Duration => Value::Microseconds(record.duration.as_micros()),
        LogField::ReceivedBytes => Value::Number(record.received_bytes),
        LogField::SentBytes => Value::Number(record.sent_bytes),
        LogField::Upstream => Value::Text(record.labels.upstream),
        LogField::Endpoint => Value::Address(record.endpoint?),
        LogField::Client => Value::Address(record.client),
        LogField::Peer => Value::Text(record.labels.peer.map(SpiffeId::as_str)?),
        LogField::Tls => Value::Word(record.labels.tls.as_str()),
        LogField::ProxyStatus => Value::Text(record.proxy_status?),
        LogField::Method
        | LogField::Path
        | LogField::Authority
        | LogField::Version
        | LogField::Code
        | LogField::GrpcStatus
        | LogField::Route
        | LogField::Retries
        | LogField::TraceId
        | LogField::SpanId => return None,
    })
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

impl Value<'_> {
    fn is_number(self) -> bool {
        matches!(self, Self::Number(_) | Self::Microseconds(_))
    }

    fn push_to(self, line: &mut String) {
        match self {
            Self::Text(text) => push_escaped(line, text),
            Self::Word(word) => line.push_str(word),
            Self::Number(number) => push(line, format_args!("{number}")),
            Self::Microseconds(micros) => push(line, format_args!("{}.{:03}", micros / 1000, micros % 1000)),
            Self::Address(address) => push(line, format_args!("{address}")),
            Self::Time(time) => push(line, format_args!("{}", Rfc3339(time))),
            Self::TraceId(id) => push(line, format_args!("{id:032x}")),
            Self::SpanId(id) => push(line, format_args!("{id:016x}")),
        }
    }
}

fn push(line: &mut String, arguments: std::fmt::Arguments<'_>) {
    line.write_fmt(arguments).expect("writing into a String does not fail");
}

/// As JSON escapes it, in lines of text as well: nobody forges a line, or ends a value that stands in quotes.
fn push_escaped(line: &mut String, value: &str) {
    let shown = &value[..value.floor_char_boundary(LONGEST_TEXT)];
    for character in shown.chars() {
        match character {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            // JSON asks for those below 0x20 only; the others can drive a terminal that shows the log.
            control if control.is_control() => push(line, format_args!("\\u{:04x}", u32::from(control))),
            other => line.push(other),
        }
    }
    if shown.len() < value.len() {
        line.push('…');
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
    use crate::telemetry::trace::{Hop, SpanContext};

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
        let context = SpanContext {
            trace_id: 0x4bf9,
            span_id: 0xf067,
            is_sampled: false,
            is_random: false,
            is_debug: false,
        };
        let traced = Hop { context, sampled: None };
        let record = RequestRecord {
            direction: Direction::Inbound,
            route: &Arc::from("api"),
            upstream: &Arc::from("workload"),
            code: 200,
            is_grpc: true,
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
            trace: Some(&traced),
        };
        let expected = concat!(
            r#"{"time":"1970-01-01T00:00:01.002Z","direction":"inbound","method":"POST","path":"/orders","#,
            r#""authority":"api.shop.svc.cluster.local","version":"2","code":200,"grpc_status":14,"#,
            r#""duration_ms":12.345,"received_bytes":12,"sent_bytes":34,"route":"api","upstream":"workload","#,
            r#""endpoint":"10.0.0.7:8080","client":"10.0.0.5:40000","#,
            r#""peer":"spiffe://cluster.local/ns/shop/sa/web","tls":"mesh","#,
            r#""trace_id":"00000000000000000000000000004bf9","span_id":"000000000000f067","#,
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

    fn escaped(text: &str) -> String {
        let mut line = String::new();
        push_escaped(&mut line, text);
        line
    }

    #[test]
    fn hostile_text_comes_back_out_of_any_json_parser_and_stays_on_its_line() {
        let every: String = (0..0x300).filter_map(char::from_u32).chain(['\u{2028}', '\u{1f6a3}']).collect();
        let text = escaped(&every);
        assert!(!text.contains(char::is_control));
        let parsed: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(parsed, format!("{}…", &every[..every.floor_char_boundary(LONGEST_TEXT)]));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(escaped(&"é".repeat(LONGEST_TEXT)), format!("{}…", "é".repeat(LONGEST_TEXT / 2)));
    }

    #[test]
    fn a_line_has_the_fields_that_it_shall_have_in_their_order_and_nobody_forges_one() {
        let labels = TcpLabels {
            direction: Direction::Outbound,
            upstream: &Arc::from(""),
            tls: Tls::Plain,
            peer: None,
        };
        let tcp = TcpRecord {
            labels,
            reason: "end",
            duration: Duration::from_millis(1),
            received_bytes: 1,
            sent_bytes: 2,
            endpoint: None,
            client: "[::1]:9".parse().unwrap(),
            proxy_status: Some("one\" two\nthree\\"),
        };
        let line = |format: &LogFormat| formatted(format, at(0, 0), Entry::Tcp(&tcp));
        let text = LogFormat::text(
            "%{client} %{upstream} %{path} [%{reason}] \"%{proxy_status}\" %{duration_ms} 100%%",
        );
        assert_eq!(line(&text.unwrap()), "[::1]:9 - - [end] \"one\\\" two\\u000athree\\\\\" 1.000 100%\n");
        let fields = |fields: &[LogField]| line(&LogFormat::Json(fields.to_vec()));
        assert_eq!(
            fields(&[LogField::SentBytes, LogField::Path, LogField::Reason]),
            "{\"sent_bytes\":2,\"reason\":\"end\"}\n"
        );
        assert_eq!(fields(&[LogField::Code]), "{}\n");
    }
}
