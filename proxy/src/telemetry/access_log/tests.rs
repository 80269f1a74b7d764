use std::fs;
use std::path::Path;
use std::sync::Arc;

use http::{Method, Version};

use super::*;
use crate::config::LogField;
use crate::telemetry::labels::{Direction, Tls};
use crate::telemetry::recorder::TcpLabels;

const LONG: Duration = Duration::from_secs(60);

fn to(path: &Path) -> AccessLogSettings {
    AccessLogSettings { output: AccessLogOutput::File(path.into()), ..AccessLogSettings::default() }
}

fn log(settings: AccessLogSettings) -> AccessLog {
    AccessLog::new(settings, &Metrics::new()).unwrap()
}

/// Logs a request for `path` that was answered with `code`.
fn request(log: &AccessLog, path: &str, code: u16, proxy_status: Option<&str>) {
    let name = Arc::from("api");
    log.request(&RequestRecord {
        direction: Direction::Outbound,
        route: &name,
        upstream: &name,
        code,
        grpc_status: None,
        is_grpc: false,
        tls: Tls::Plain,
        peer: None,
        duration: Duration::ZERO,
        method: &Method::GET,
        path,
        authority: "api",
        version: Version::HTTP_11,
        received_bytes: 0,
        sent_bytes: 0,
        endpoint: None,
        retries: 0,
        retry_refused: false,
        client: ([127, 0, 0, 1], 1).into(),
        proxy_status,
        trace: None,
    });
}

/// Logs an opaque connection.
fn tcp(log: &AccessLog, reason: &'static str, proxy_status: Option<&str>) {
    let upstream = Arc::from("store");
    let labels =
        TcpLabels { direction: Direction::Outbound, upstream: &upstream, tls: Tls::Plain, peer: None };
    log.tcp(&TcpRecord {
        labels,
        reason,
        duration: Duration::ZERO,
        received_bytes: 0,
        sent_bytes: 0,
        endpoint: None,
        client: ([127, 0, 0, 1], 1).into(),
        proxy_status,
    });
}

fn text(format: &str, settings: AccessLogSettings) -> AccessLogSettings {
    AccessLogSettings { format: LogFormat::text(format).unwrap(), ..settings }
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let (writer, lines) = Writer::queued();
    let log = AccessLog::off(&Metrics::new());
    log.current.store(Arc::new(Current { writer: Some(writer.clone()), ..Current::default() }));
    for _ in 0..QUEUE + 3 {
        request(&log, "/", 200, None);
    }
    assert_eq!(log.dropped.get(), 3);
    assert!(!log.flush(Duration::ZERO));
    assert_eq!(lines.try_iter().count(), QUEUE);
}

#[test]
fn without_an_output_nothing_is_looked_at() {
    let log = log(AccessLogSettings { sample: 0.5, ..AccessLogSettings::default() });
    log.log(|| unreachable!(), |_| unreachable!());
    assert!(log.flush(Duration::ZERO));
}

#[test]
fn a_rotated_file_is_opened_anew_after_reopen_and_appended_to_before() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let rotated = directory.path().join("access.log.1");
    fs::write(&path, "before\n").unwrap();
    let log = log(text("%{path}", to(&path)));
    request(&log, "/one", 200, None);
    assert!(log.flush(LONG));
    fs::rename(&path, &rotated).unwrap();
    request(&log, "/two", 200, None);
    assert!(log.flush(LONG));
    log.reopen();
    request(&log, "/three", 200, None);
    assert!(log.flush(LONG));
    assert_eq!(fs::read_to_string(&rotated).unwrap(), "before\n/one\n/two\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "/three\n");
}

#[test]
fn a_file_that_cannot_be_opened_is_named_and_the_log_goes_on_as_it_was() {
    let error = AccessLog::new(to(Path::new("/nowhere/access.log")), &Metrics::new()).unwrap_err();
    assert!(error.to_string().starts_with("can't open the access log /nowhere/access.log: "), "{error}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = log(text("%{path}", to(&path)));
    assert!(log.reconfigure(to(Path::new("/nowhere/access.log"))).is_err());
    request(&log, "/one", 200, None);
    assert!(log.flush(LONG));
    assert_eq!(fs::read_to_string(&path).unwrap(), "/one\n");
}

#[test]
fn other_settings_hold_for_every_handle_and_what_was_queued_goes_where_it_was_to_go() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] = ["first.log", "second.log"].map(|name| directory.path().join(name));
    let log = log(text("%{path}", to(&first)));
    let handle = log.clone();
    request(&handle, "/one", 200, None);
    log.reconfigure(text("%{code}", to(&first))).unwrap();
    request(&handle, "/two", 201, None);
    assert!(log.flush(LONG));
    let fields = LogFormat::Json(vec![LogField::Code]);
    log.reconfigure(AccessLogSettings { format: fields, ..to(&second) }).unwrap();
    request(&handle, "/three", 202, None);
    assert!(log.flush(LONG));
    log.reconfigure(AccessLogSettings::default()).unwrap();
    request(&handle, "/four", 203, None);
    assert_eq!(fs::read_to_string(&first).unwrap(), "/one\n201\n");
    assert_eq!(fs::read_to_string(&second).unwrap(), "{\"code\":202}\n");
}

#[test]
fn of_what_succeeds_a_share_is_logged_and_of_what_fails_everything() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("access.log");
    let log = log(AccessLogSettings { sample: 0.0, ..text("%{path}%{reason}", to(&path)) });
    request(&log, "/well", 200, None);
    request(&log, "/missing", 404, None);
    request(&log, "/broken", 500, None);
    request(&log, "/denied", 403, Some("outrigger; error=http_request_denied"));
    tcp(&log, "end", None);
    tcp(&log, "connect_failed", Some("outrigger; error=connection_refused"));
    assert!(log.flush(LONG));
    assert_eq!(fs::read_to_string(&path).unwrap(), "/broken-\n/denied-\n-connect_failed\n");
    log.reconfigure(AccessLogSettings { sample: 0.25, ..text("%{code}", to(&path)) }).unwrap();
    for _ in 0..4000 {
        request(&log, "/", 200, None);
    }
    assert!(log.flush(LONG));
    let logged = fs::read_to_string(&path).unwrap().lines().filter(|line| *line == "200").count();
    // 1000, and six standard deviations of 27.
    assert!((836..=1164).contains(&logged), "{logged} of 4000");
}
