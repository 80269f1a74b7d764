//! Programs that run inside a pod: killed with the test, their output kept for when it fails.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait;

/// A running program; it is killed when this is dropped.
pub struct Process {
    name: String,
    child: Child,
    log: File,
}

impl Process {
    /// Starts `command` with its output in the file `log`.
    pub fn start(name: &str, mut command: Command, log: PathBuf) -> Self {
        let file =
            File::options().create_new(true).read(true).append(true).open(&log).expect("create a log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("share the log file"))
            .stderr(file.try_clone().expect("share the log file"))
            .spawn()
            .unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { name: name.to_owned(), child, log: file }
    }

    /// What it has printed so far.
    pub fn output(&self) -> String {
        // By the open file: the directory may be gone already when a failed test comes to its end.
        let length = self.log.metadata().map_or(0, |metadata| metadata.len());
        let mut bytes = vec![0; usize::try_from(length).expect("a log fits into memory")];
        let _ = self.log.read_exact_at(&mut bytes, 0);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .unwrap_or_else(|error| panic!("signal {}: {error}", self.name));
    }

    /// Whether it still runs.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("ask for a child's state").is_none()
    }

    /// Waits until it has ended.
    pub fn ended(&mut self) -> ExitStatus {
        let name = self.name.clone();
        wait::within(std::time::Duration::from_secs(40), &format!("{name} ends"), || {
            self.child.try_wait().expect("ask for a child's state")
        })
    }

    /// Waits until its output contains `text`.
    pub fn wait_for_output(&mut self, text: &str) {
        wait::until(&format!("{} prints {text:?}", self.name), || {
            self.output().contains(text) || {
                assert!(self.running(), "{} ended: {}", self.name, self.output());
                false
            }
        });
    }

    /// A line of `/proc/PID/status` in KiB, for example `VmHWM`, the most memory it ever had.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(&path).expect("read a process's status");
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or_else(|| panic!("{field} in {path}"))
    }

    /// How many file descriptors it has open.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).map_or(0, Iterator::count)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- the last lines of {} ---\n{}", self.name, tail.join("\n"));
        }
    }
}
