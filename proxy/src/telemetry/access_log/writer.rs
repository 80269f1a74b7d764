//! The thread that writes the access log.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::Receiver;

use prometheus::IntCounter;

use super::Message;

/// As many bytes are written at once, if they wait.
const BATCH: usize = 64 << 10;

/// Where lines go.
pub(super) enum Sink {
    Stdout,
    File { path: PathBuf, file: File },
}

impl Sink {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Self::File { file, .. } => file.write_all(lines),
        }
    }

    fn reopen(&mut self) {
        if let Self::File { path, file } = self {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => tracing::error!(
                    "can't reopen the access log {}: {error}; it goes on into the old file",
                    path.display()
                ),
            }
        }
    }
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo()) {
        // Opened for writing only, it would wait here until somebody reads (fifo(7)).
        return options.read(true).write(true).open(path);
    }
    options.append(true).create(true).mode(0o640).open(path)
}

/// Writes until the last handle on the log is gone and everything queued is written.
pub(super) fn write_lines(
    mut sink: Sink,
    messages: &Receiver<Message>,
    reopen: &AtomicBool,
    dropped: &IntCounter,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut failing = false;
    while let Ok(first) = messages.recv() {
        let mut lines = 0;
        let mut flushes = Vec::new();
        let mut next = Some(first);
        while let Some(message) = next {
            match message {
                Message::Line(line) => {
                    batch.extend_from_slice(&line);
                    lines += 1;
                }
                Message::Flush(done) => flushes.push(done),
            }
            next = if batch.len() < BATCH { messages.try_recv().ok() } else { None };
        }
        if reopen.swap(false, Relaxed) {
            sink.reopen();
        }
        let written = sink.write(&batch);
        batch.clear();
        match written {
            Ok(()) => failing = false,
            Err(error) => {
                dropped.inc_by(lines);
                // Once an outage, not once a batch.
                if !failing {
                    tracing::error!("can't write the access log: {error}; its lines are dropped and counted");
                }
                failing = true;
            }
        }
        for done in flushes {
            // Whoever asked may have stopped waiting.
            let _ = done.send(());
        }
    }
}
