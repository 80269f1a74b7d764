//! What a line of the access log says, and how: the fields by their names, and the format.

use thiserror::Error;

use super::problem::listed;

/// The format's name for lines of JSON.
pub(super) const JSON: &str = "json";

/// A field of the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`ALL` has name and meaning of each")]
pub enum LogField {
    Time,
    Direction,
    Reason,
    Method,
    Path,
    Authority,
    Version,
    Code,
    GrpcStatus,
    Duration,
    ReceivedBytes,
    SentBytes,
    Route,
    Upstream,
    Endpoint,
    Retries,
    Client,
    Peer,
    Tls,
    TraceId,
    SpanId,
    ProxyStatus,
}

/// A field, its name, and its meaning for the README.
type Described = (LogField, &'static str, &'static str);

impl LogField {
    /// All of them, in the order in which a line of JSON has them.
    pub const ALL: [Described; 22] = [
        (Self::Time, "time", "When the request or connection had ended, in UTC, to the millisecond."),
        (Self::Direction, "direction", "`inbound` (to the workload) or `outbound` (from it)."),
        (
            Self::Reason,
            "reason",
            "Of an opaque connection only: why it ended, `end` if both sides were done. It has none of the fields that only requests have.",
        ),
        (Self::Method, "method", "The request's method."),
        (
            Self::Path,
            "path",
            "The request's path. Never its query, which may hold credentials. Of more than 1 KiB only the beginning.",
        ),
        (Self::Authority, "authority", "The host that was asked for, with its port if it was stated."),
        (Self::Version, "version", "What the client spoke: `1.0`, `1.1` or `2`."),
        (Self::Code, "code", "The response's status; 499 if the client left before there was one."),
        (Self::GrpcStatus, "grpc_status", "The status of a gRPC call, a number."),
        (
            Self::Duration,
            "duration_ms",
            "From the request's head, or accepting the connection, to the end, in milliseconds.",
        ),
        (Self::ReceivedBytes, "received_bytes", "Bytes of the request's body, or all that the client sent."),
        (Self::SentBytes, "sent_bytes", "Bytes of the response's body, or all that the client got."),
        (Self::Route, "route", "The route's name."),
        (Self::Upstream, "upstream", "The upstream's name; `workload:<port>` for the workload."),
        (Self::Endpoint, "endpoint", "Address of the endpoint of the last try, if one was chosen."),
        (Self::Retries, "retries", "Tries after the first, if there were any."),
        (Self::Client, "client", "Address that the request or connection came from."),
        (
            Self::Peer,
            "peer",
            "SPIFFE ID that the other proxy proved: inbound the caller's, outbound the endpoint's.",
        ),
        (
            Self::Tls,
            "tls",
            "What protected the connection to the peer: `mesh`, `server` (TLS to a server outside the mesh) or `none`.",
        ),
        (Self::TraceId, "trace_id", "The trace that the request belongs to, if requests are traced."),
        (Self::SpanId, "span_id", "Its span within that trace."),
        (
            Self::ProxyStatus,
            "proxy_status",
            "Why the proxy answered itself or broke off, in the words of `Proxy-Status` (RFC 9209).",
        ),
    ];

    /// The field of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(field, ..)| *field)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        // The test below holds each field to its number.
        Self::ALL[self as usize].1
    }
}

/// How a line of the access log is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object with those of these fields that there are, in this order.
    Json(Vec<LogField>),
    /// Text between fields.
    Text(Vec<LogPiece>),
}

/// A part of a line of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPiece {
    /// As it stands.
    Literal(String),
    /// A field's value, or `-` where there is none.
    Field(LogField),
}

/// Why a text is no format of a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LogFormatError {
    /// No such field.
    #[error("there is no field `{0}`")]
    Field(String),
    /// A percent sign that begins nothing.
    #[error("`%` begins a field, as in `%{{path}}`; a percent sign itself is written `%%`")]
    Percent,
    /// Lines without a field would be all alike.
    #[error("it has no field")]
    NoField,
    /// A line is one line.
    #[error("it has a line break or another control character")]
    Control,
}

/// The names of all fields, to be named in a remedy.
pub(super) fn field_names() -> String {
    listed(LogField::ALL.iter().map(|(_, name, _)| *name))
}

impl Default for LogFormat {
    fn default() -> Self {
        Self::Json(LogField::ALL.iter().map(|(field, ..)| *field).collect())
    }
}

impl LogFormat {
    /// Reads a format such as `%{method} %{path} %{code}`.
    ///
    /// # Errors
    /// It is none.
    pub fn text(text: &str) -> Result<Self, LogFormatError> {
        if text.chars().any(|character| character.is_control() && character != '\t') {
            return Err(LogFormatError::Control);
        }
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(percent) = rest.find('%') {
            literal.push_str(&rest[..percent]);
            rest = &rest[percent + 1..];
            if let Some(after) = rest.strip_prefix('%') {
                literal.push('%');
                rest = after;
                continue;
            }
            let (name, after) = rest
                .strip_prefix('{')
                .and_then(|rest| rest.split_once('}'))
                .ok_or(LogFormatError::Percent)?;
            let field = LogField::named(name).ok_or_else(|| LogFormatError::Field(name.into()))?;
            if !literal.is_empty() {
                pieces.push(LogPiece::Literal(std::mem::take(&mut literal)));
            }
            pieces.push(LogPiece::Field(field));
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(LogPiece::Literal(literal));
        }
        if !pieces.iter().any(|piece| matches!(piece, LogPiece::Field(_))) {
            return Err(LogFormatError::NoField);
        }
        Ok(Self::Text(pieces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_stands_at_its_number_and_is_found_by_its_name() {
        for (number, (field, name, _)) in LogField::ALL.into_iter().enumerate() {
            assert_eq!((field as usize, field.name(), LogField::named(name)), (number, name, Some(field)));
        }
    }

    #[test]
    fn a_format_is_text_and_fields_in_their_order() {
        let literal = |text: &str| LogPiece::Literal(text.into());
        let field = LogPiece::Field;
        let cases = [
            ("%{path}", vec![field(LogField::Path)]),
            (
                "%{method} \"%{path}\" %{code}ms",
                vec![
                    field(LogField::Method),
                    literal(" \""),
                    field(LogField::Path),
                    literal("\" "),
                    field(LogField::Code),
                    literal("ms"),
                ],
            ),
            ("%%%{code}%%", vec![literal("%"), field(LogField::Code), literal("%")]),
        ];
        for (text, pieces) in cases {
            assert_eq!(LogFormat::text(text), Ok(LogFormat::Text(pieces)), "{text}");
        }
    }

    #[test]
    fn what_is_no_format_is_refused() {
        let cases = [
            ("", LogFormatError::NoField),
            ("json", LogFormatError::NoField),
            ("%%{code}", LogFormatError::NoField),
            ("%", LogFormatError::Percent),
            ("%{code} %", LogFormatError::Percent),
            ("%path", LogFormatError::Percent),
            ("%{path", LogFormatError::Percent),
            ("%{colour}", LogFormatError::Field("colour".into())),
            ("%{}", LogFormatError::Field("".into())),
            ("%{code}\n", LogFormatError::Control),
        ];
        for (text, error) in cases {
            assert_eq!(LogFormat::text(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_readme_has_the_table_of_fields() {
        let readme = include_str!("../../../README.md");
        let markers = ("<!-- access log reference: begin -->", "<!-- access log reference: end -->");
        let mut table = String::from("| field | meaning |\n|---|---|\n");
        for (_, name, meaning) in LogField::ALL {
            table += &format!("| `{name}` | {meaning} |\n");
        }
        let (_, rest) = readme.split_once(markers.0).expect("it has a place for the table");
        let (inside, _) = rest.split_once(markers.1).expect("which ends");
        assert!(
            inside.trim() == table.trim(),
            "the README's table of the access log's fields is out of date; put this between its markers:\n{table}"
        );
    }
}
