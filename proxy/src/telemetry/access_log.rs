//! The access log: a JSON line for each request and opaque TCP connection, metadata only.
//!
//! Workers format lines and queue them; one thread writes. A full queue drops and counts, it never waits.

pub(super) mod line;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime};
use std::{io, thread};

use prometheus::IntCounter;
use thiserror::Error;

use super::metrics::Metrics;
use super::recorder::{RequestRecord, TcpRecord};
use writer::{Sink, write_lines};

/// Lines that may wait to be written. With every field at its longest that is some 15 MiB; usually 2.
const QUEUE: usize = 4096;
/// How often a full queue is tried again while flushing.
const RETRY_FLUSH: Duration = Duration::from_millis(5);

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// Nowhere; nothing is formatted either.
    #[default]
    None,
    /// To standard output.
    Stdout,
    /// To the end of this file, which is made if it is not there (mode 0640).
    File(PathBuf),
}

/// Why an access log could not be opened.
#[derive(Debug, Error)]
pub enum AccessLogError {
    /// The file.
    #[error("can't open the access log {}: {source}; check that its directory exists and is writable", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The thread.
    #[error(
        "can't start the thread that writes the access log: {0}; check the limits on processes and memory"
    )]
    Thread(io::Error),
}

/// A handle on the access log; cheap to clone, all clones write to the same place. When the last one is
/// dropped, what is queued is still written, as long as the process lives: see [`flush`](Self::flush).
#[derive(Clone, Debug)]
pub struct AccessLog {
    queue: Option<SyncSender<Message>>,
    reopen: Arc<AtomicBool>,
    dropped: IntCounter,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens the output and starts the thread that writes to it. Dropped lines count in
    /// `metrics.log_dropped`.
    ///
    /// # Errors
    /// When the file can't be opened, or no thread be started.
    pub fn new(output: AccessLogOutput, metrics: &Metrics) -> Result<Self, AccessLogError> {
        let sink = match output {
            AccessLogOutput::None => None,
            AccessLogOutput::Stdout => Some(Sink::Stdout),
            AccessLogOutput::File(path) => match writer::open(&path) {
                Ok(file) => Some(Sink::File { path, file }),
                Err(source) => return Err(AccessLogError::Open { path, source }),
            },
        };
        let (mut log, lines) = Self::queued(metrics.log_dropped.clone());
        let Some(sink) = sink else {
            log.queue = None;
            return Ok(log);
        };
        let (reopen, dropped) = (Arc::clone(&log.reopen), log.dropped.clone());
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(sink, &lines, &reopen, &dropped))
            .map_err(AccessLogError::Thread)?;
        Ok(log)
    }

    fn queued(dropped: IntCounter) -> (Self, Receiver<Message>) {
        let (queue, lines) = sync_channel(QUEUE);
        (Self { queue: Some(queue), reopen: Arc::default(), dropped }, lines)
    }

    /// Opens the file anew before the next line, as after it was rotated away.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }

    /// Waits until what was logged before is written, at most so long. Whether it was. Blocks its thread.
    pub fn flush(&self, at_most: Duration) -> bool {
        let Some(queue) = &self.queue else {
            return true;
        };
        let deadline = Instant::now() + at_most;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            message = match queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return false,
                Err(TrySendError::Full(message)) => message,
            };
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(RETRY_FLUSH);
        }
        written.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok()
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        self.line(|| line::request(SystemTime::now(), record));
    }

    pub(super) fn tcp(&self, record: &TcpRecord<'_>) {
        self.line(|| line::tcp(SystemTime::now(), record));
    }

    fn line(&self, format: impl FnOnce() -> String) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Message::Line(format().into_bytes())).is_err() {
            self.dropped.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_full_queue_drops_and_counts_and_never_waits() {
        let dropped = IntCounter::new("dropped_total", "Dropped lines.").unwrap();
        let (log, lines) = AccessLog::queued(dropped.clone());
        for _ in 0..QUEUE + 3 {
            log.line(|| "{}\n".into());
        }
        assert_eq!(dropped.get(), 3);
        assert!(!log.flush(Duration::ZERO));
        assert_eq!(lines.try_iter().count(), QUEUE);
    }

    #[test]
    fn without_an_output_nothing_is_formatted() {
        let log = AccessLog::new(AccessLogOutput::None, &Metrics::new()).unwrap();
        log.line(|| unreachable!());
        assert!(log.flush(Duration::ZERO));
    }

    #[test]
    fn a_rotated_file_is_opened_anew_after_reopen_and_appended_to_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.log");
        let rotated = directory.path().join("access.log.1");
        fs::write(&path, "before\n").unwrap();
        let log = AccessLog::new(AccessLogOutput::File(path.clone()), &Metrics::new()).unwrap();
        log.line(|| "one\n".into());
        assert!(log.flush(LONG));
        fs::rename(&path, &rotated).unwrap();
        log.line(|| "two\n".into());
        assert!(log.flush(LONG));
        log.reopen();
        log.line(|| "three\n".into());
        assert!(log.flush(LONG));
        assert_eq!(fs::read_to_string(&rotated).unwrap(), "before\none\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let output = AccessLogOutput::File("/nowhere/access.log".into());
        let error = AccessLog::new(output, &Metrics::new()).unwrap_err().to_string();
        assert!(error.starts_with("can't open the access log /nowhere/access.log: "), "{error}");
    }
}
