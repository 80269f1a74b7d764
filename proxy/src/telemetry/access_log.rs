//! The access log: a line for each request and opaque TCP connection, metadata only.
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

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use rand::RngExt;
use thiserror::Error;

use super::failures::{has_failed, tcp_has_failed};
use super::metrics::Metrics;
use super::recorder::{RequestRecord, TcpRecord};
use crate::config::LogFormat;
use line::Entry;
use writer::{Sink, write_lines};

/// Lines that may wait to be written. With every field at its longest that is some 15 MiB; usually 2.
const QUEUE: usize = 4096;
/// How often a full queue is tried again while flushing.
const RETRY_FLUSH: Duration = Duration::from_millis(5);

/// What is logged, how, and where to.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessLogSettings {
    /// Where the lines go.
    pub output: AccessLogOutput,
    /// What they look like.
    pub format: LogFormat,
    /// Share of what succeeds that is logged, 0 to 1; what fails always is.
    pub sample: f64,
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self { output: AccessLogOutput::None, format: LogFormat::default(), sample: 1.0 }
    }
}

/// Where the access log goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogOutput {
    /// Nowhere; nothing is formatted either.
    #[default]
    None,
    /// To standard output.
    Stdout,
    /// To the end of this file, which is made if it is not there (mode 0640), or into this named pipe.
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

/// A handle on the access log; cheap to clone, all clones write to the same place. What is queued when the last one is
/// dropped, or other settings come, is still written, as long as the process lives: see [`flush`](Self::flush).
#[derive(Clone, Debug)]
pub struct AccessLog {
    current: Arc<ArcSwap<Current>>,
    dropped: IntCounter,
}

/// The settings in force, and the way to the thread that writes.
#[derive(Debug, Default)]
struct Current {
    settings: AccessLogSettings,
    writer: Option<Writer>,
}

#[derive(Clone, Debug)]
struct Writer {
    queue: SyncSender<Message>,
    reopen: Arc<AtomicBool>,
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
    pub fn new(settings: AccessLogSettings, metrics: &Metrics) -> Result<Self, AccessLogError> {
        let log = Self::off(metrics);
        log.reconfigure(settings)?;
        Ok(log)
    }

    /// Logs nothing until it is [reconfigured](Self::reconfigure).
    pub fn off(metrics: &Metrics) -> Self {
        Self { current: Arc::default(), dropped: metrics.log_dropped.clone() }
    }

    /// Puts other settings in force, for all handles. An output that stays the same stays open.
    ///
    /// # Errors
    /// When the file can't be opened, or no thread be started; then nothing changes.
    pub fn reconfigure(&self, settings: AccessLogSettings) -> Result<(), AccessLogError> {
        let current = self.current.load();
        if current.settings == settings {
            return Ok(());
        }
        let writer = if current.settings.output == settings.output {
            current.writer.clone()
        } else {
            self.open(&settings.output)?
        };
        self.current.store(Arc::new(Current { settings, writer }));
        Ok(())
    }

    fn open(&self, output: &AccessLogOutput) -> Result<Option<Writer>, AccessLogError> {
        let sink = match output {
            AccessLogOutput::None => return Ok(None),
            AccessLogOutput::Stdout => Sink::Stdout,
            AccessLogOutput::File(path) => match writer::open(path) {
                Ok(file) => Sink::File { path: path.clone(), file },
                Err(source) => return Err(AccessLogError::Open { path: path.clone(), source }),
            },
        };
        let (writer, lines) = Writer::queued();
        let (reopen, dropped) = (Arc::clone(&writer.reopen), self.dropped.clone());
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(sink, &lines, &reopen, &dropped))
            .map_err(AccessLogError::Thread)?;
        Ok(Some(writer))
    }

    /// Opens the file anew before the next line, as after it was rotated away.
    pub fn reopen(&self) {
        if let Some(writer) = &self.current.load().writer {
            writer.reopen.store(true, Relaxed);
        }
    }

    /// Waits until what was logged before is written, at most so long. Whether it was. Blocks its thread.
    pub fn flush(&self, at_most: Duration) -> bool {
        self.current.load().writer.as_ref().is_none_or(|writer| writer.flush(at_most))
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) {
        self.log(
            || has_failed(record),
            |format| line::formatted(format, SystemTime::now(), Entry::Request(record)),
        );
    }

    pub(super) fn tcp(&self, record: &TcpRecord<'_>) {
        self.log(
            || tcp_has_failed(record),
            |format| line::formatted(format, SystemTime::now(), Entry::Tcp(record)),
        );
    }

    fn log(&self, has_failed: impl FnOnce() -> bool, write: impl FnOnce(&LogFormat) -> String) {
        let current = self.current.load();
        let Some(writer) = &current.writer else { return };
        let AccessLogSettings { format, sample, .. } = &current.settings;
        if *sample < 1.0 && !has_failed() && !rand::rng().random_bool(*sample) {
            return;
        }
        if writer.queue.try_send(Message::Line(write(format).into_bytes())).is_err() {
            self.dropped.inc();
        }
    }
}

impl Writer {
    fn queued() -> (Self, Receiver<Message>) {
        let (queue, lines) = sync_channel(QUEUE);
        (Self { queue, reopen: Arc::default() }, lines)
    }

    fn flush(&self, at_most: Duration) -> bool {
        let deadline = Instant::now() + at_most;
        let (done, written) = sync_channel(1);
        let mut message = Message::Flush(done);
        loop {
            message = match self.queue.try_send(message) {
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
}

#[cfg(test)]
mod tests;
