//! The demo's processes: each with a log, and an event when it ends.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, timeout_at};

use crate::error::{Context, DemoError};
use crate::namespace::PodNamespace;

/// How much of a log an error shows.
const TAIL_LINES: usize = 15;
const TAIL_BYTES: u64 = 8192;
/// How long each kind of process may take to stop before the next is stopped; what is left is killed with the
/// PID namespace.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// What happens to the mesh while it runs.
#[derive(Debug)]
pub enum Event {
    /// The person had enough.
    Stop,
    /// A process ended.
    Ended { process: u32, status: String },
}

/// What a process is for; in the order in which they are stopped, callers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Workload,
    Sidecar,
    Control,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Workload, Self::Sidecar, Self::Control];

    fn stop_signal(self) -> Signal {
        match self {
            // On SIGTERM a sidecar drains, which takes as long as other parties' DNS caches.
            Self::Sidecar => Signal::SIGINT,
            Self::Workload | Self::Control => Signal::SIGTERM,
        }
    }
}

#[derive(Debug)]
struct Running {
    id: u32,
    name: String,
    kind: Kind,
}

/// All processes of the demo.
#[derive(Debug)]
pub struct Roster {
    logs: PathBuf,
    events: UnboundedSender<Event>,
    running: Vec<Running>,
}

impl Roster {
    pub fn new(logs: PathBuf, events: UnboundedSender<Event>) -> Self {
        Self { logs, events, running: Vec::new() }
    }

    /// Starts a process in a pod; `name` is also its log's.
    ///
    /// # Errors
    /// The log can't be opened, the program not run.
    pub fn launch(
        &mut self,
        name: &str,
        kind: Kind,
        pod: &PodNamespace,
        mut command: std::process::Command,
    ) -> Result<(), DemoError> {
        let path = self.log(name);
        let log = File::options().create(true).append(true).open(&path);
        let (out, err) = log
            .and_then(|log| Ok((log.try_clone()?, log)))
            .context(|| format!("open the log {}", path.display()))?;
        command.stdout(out).stderr(err);
        let runtime = Handle::current();
        let mut child = pod
            .run(move || {
                let _context = runtime.enter();
                Command::from(command).spawn()
            })
            .context(|| format!("start {name}"))?;
        let process = child.id().unwrap_or_default();
        self.running.push(Running { id: process, name: name.into(), kind });
        let events = self.events.clone();
        tokio::spawn(async move {
            let status = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            // Nobody listens any more once the demo stops.
            events.send(Event::Ended { process, status }).ok();
        });
        Ok(())
    }

    /// Takes a process that ended off the list.
    pub fn remove(&mut self, process: u32) -> Option<(String, Kind)> {
        let index = self.running.iter().position(|running| running.id == process)?;
        let running = self.running.swap_remove(index);
        Some((running.name, running.kind))
    }

    /// Where a process's log is.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The directory of the logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The error that a process's end is.
    pub fn ended(&self, name: &str, status: String) -> DemoError {
        let log = self.log(name);
        DemoError::Ended { name: name.into(), status, tail: tail(&log), log }
    }

    /// Stops everything, callers before those they call.
    pub async fn stop(mut self, events: &mut UnboundedReceiver<Event>) {
        for kind in Kind::ALL {
            for running in self.running.iter().filter(|running| running.kind == kind) {
                // It may have ended meanwhile; then its event is on the way.
                kill(Pid::from_raw(running.id.cast_signed()), kind.stop_signal()).ok();
            }
            let deadline = Instant::now() + STOP_PATIENCE;
            while self.running.iter().any(|running| running.kind == kind) {
                let Ok(Some(event)) = timeout_at(deadline, events.recv()).await else {
                    break;
                };
                if let Event::Ended { process, .. } = event {
                    self.remove(process);
                }
            }
        }
    }
}

/// The last lines of a log.
pub fn tail(log: &Path) -> String {
    match read_end(log) {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
            if last.is_empty() { "(it is empty)".into() } else { last.join("\n") }
        }
        Err(error) => format!("(can't be read: {error})"),
    }
}

fn read_end(log: &Path) -> io::Result<String> {
    let mut file = fs::File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_shows_the_last_lines_of_a_log() {
        let path = std::env::temp_dir().join(format!("outrigger-demo-tail-{}", std::process::id()));
        let text: String = (1..=40).map(|line| format!("line {line}\n")).collect();
        fs::write(&path, text).expect("a scratch file");
        let shown = tail(&path);
        fs::write(&path, "").expect("a scratch file");
        let empty = tail(&path);
        fs::remove_file(&path).expect("the scratch file can be removed");
        assert_eq!(shown.lines().count(), TAIL_LINES);
        assert!(shown.starts_with("line 26\n") && shown.ends_with("line 40"), "{shown}");
        assert_eq!(empty, "(it is empty)");
    }
}
