//! `/failures`: what went wrong last, and why.

use serde_json::{Value, json};

use crate::telemetry::Failures;

/// The last failures, the newest first: each in the words of the access log, and `why` for people.
pub(super) fn last(failures: &Failures) -> Value {
    let last: Vec<Value> = failures
        .last()
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .map(|mut failure: Value| {
            failure["why"] = why(&failure).into();
            failure
        })
        .collect();
    json!({ "failures": last, "missed": failures.missed() })
}

/// What the proxy said of it; else what the other side said.
fn why(failure: &Value) -> String {
    let text = |name: &str| failure[name].as_str().filter(|text| !text.is_empty());
    if let Some(status) = text("proxy_status") {
        return words(status);
    }
    let upstream = text("upstream").unwrap_or("the upstream");
    match (failure["grpc_status"].as_u64(), failure["code"].as_u64(), text("reason")) {
        (Some(status), ..) if status != 0 => format!("{upstream} answered with grpc-status {status}"),
        (_, Some(code), _) => format!("{upstream} answered with {code}"),
        (.., Some(reason)) => format!("the connection ended: {}", reason.replace('_', " ")),
        _ => String::new(),
    }
}

/// The details of a `Proxy-Status` (RFC 9209), or its error type where it has none.
fn words(proxy_status: &str) -> String {
    let after = |mark: &str| proxy_status.split_once(mark).map(|(_, rest)| rest);
    if let Some(details) = after("details=\"") {
        let mut words = String::new();
        let mut characters = details.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => words.extend(characters.next()),
                other => words.push(other),
            }
        }
        return words;
    }
    let kind = after("error=").unwrap_or(proxy_status);
    kind.split(';').next().unwrap_or_default().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_says_why() {
        for (failure, want) in [
            (
                json!({ "code": 502, "proxy_status": r#"outrigger; error=connection_refused; details="upstream api: \"x\" \\ y""# }),
                r#"upstream api: "x" \ y"#,
            ),
            (
                json!({ "code": 200, "proxy_status": "outrigger; error=http_response_incomplete" }),
                "http response incomplete",
            ),
            (json!({ "code": 503, "upstream": "api" }), "api answered with 503"),
            (
                json!({ "code": 200, "grpc_status": 14, "upstream": "api" }),
                "api answered with grpc-status 14",
            ),
            (
                json!({ "reason": "certificate_expired", "upstream": "store" }),
                "the connection ended: certificate expired",
            ),
        ] {
            assert_eq!(why(&failure), want, "{failure}");
        }
    }
}
