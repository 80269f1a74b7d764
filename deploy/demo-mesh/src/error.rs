//! What can go wrong with the demo, each with what to do about it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the demo did not start, or ended.
#[derive(Debug, Error)]
pub enum DemoError {
    /// Programs that the demo runs are not installed.
    #[error("not installed: {missing}; install with: {remedy}")]
    ToolMissing {
        /// The programs' names.
        missing: String,
        /// The command that installs them.
        remedy: String,
    },
    /// The package manager failed.
    #[error("`{command}` failed ({reason}); run it by hand to see why, then start the demo again")]
    Install {
        /// What was run.
        command: String,
        /// Its exit status, or why it could not run.
        reason: String,
    },
    /// The host's port for the entry is taken.
    #[error("can't listen on 127.0.0.1:{port}: {source}; choose another port with --port")]
    Port {
        /// The port asked for.
        port: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel refuses the namespaces.
    #[error(
        "the kernel does not let this process make namespaces ({0}). As root: give CAP_SYS_ADMIN and CAP_NET_ADMIN \
         (in a container: --privileged). As an ordinary user: allow unprivileged user namespaces (`sudo sysctl -w \
         kernel.unprivileged_userns_clone=1` on Debian, `sudo sysctl -w \
         kernel.apparmor_restrict_unprivileged_userns=0` on Ubuntu), or run the demo as root"
    )]
    Namespaces(io::Error),
    /// The directory of --logs can't be used.
    #[error("can't keep logs in {}: {source}; choose another directory with --logs", path.display())]
    Logs {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A step of the set-up failed that normally does not.
    #[error("can't {what}: {source}")]
    Setup {
        /// The step.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A command that prepares a pod failed.
    #[error("`{command}` failed in {place} ({status}): {output}")]
    Command {
        /// What was run.
        command: String,
        /// The pod.
        place: String,
        /// How it ended.
        status: String,
        /// What it wrote.
        output: String,
    },
    /// A process ended that the mesh can't do without.
    #[error("{name} ended ({status}); the end of its log {}:\n{tail}", log.display())]
    Ended {
        /// Which process.
        name: String,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The supervisor was killed from outside.
    #[error(
        "the demo's supervisor was killed ({0}), and the whole mesh ended with it; nothing is left of it, and the demo can \
         be started again"
    )]
    Killed(std::process::ExitStatus),
    /// Something started but did not come up in time.
    #[error("{what} after {seconds} s: {reason}; the end of the log {}:\n{tail}", log.display())]
    NotReady {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
        /// The last answer.
        reason: String,
        /// The log of the process.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The terminal is gone.
    #[error("can't write to the terminal: {0}")]
    Terminal(#[source] io::Error),
    /// This program was run by hand, though only `outrigger demo` runs it.
    #[error("this is a part of `outrigger demo` and is run by it: {0}")]
    RunByHand(String),
}

/// Names the step that an I/O error belongs to.
pub trait Context<T> {
    /// `what` completes the sentence "can't …".
    fn context(self, what: impl FnOnce() -> String) -> Result<T, DemoError>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, DemoError> {
        self.map_err(|source| DemoError::Setup { what: what(), source })
    }
}

impl<T> Context<T> for nix::Result<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, DemoError> {
        self.map_err(io::Error::from).context(what)
    }
}
