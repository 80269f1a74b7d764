//! A step between the supervisor and a sidecar: turns the socket on standard input into one handed in by systemd's
//! protocol. A process of its own, because LISTEN_PID must be the sidecar's and descriptor 3 must be free.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::dup2_stdin;

use crate::error::{Context, DemoError};

/// systemd's protocol: handed-in sockets begin after the standard three.
const FIRST_HANDED_IN: i32 = 3;

/// Becomes `command`, with the socket of standard input handed in under `name`. Returns only if that failed.
#[must_use]
pub fn hand_over(name: &str, command: &[OsString]) -> DemoError {
    match prepare() {
        Err(error) => error,
        Ok(()) => {
            let (program, arguments) =
                command.split_first().map_or((OsString::new(), &[][..]), |(p, a)| (p.clone(), a));
            let failure = Command::new(&program)
                .args(arguments)
                .env("LISTEN_PID", std::process::id().to_string())
                .env("LISTEN_FDS", "1")
                .env("LISTEN_FDNAMES", name)
                .exec();
            DemoError::Setup { what: format!("run {}", program.display()), source: failure }
        }
    }
}

fn prepare() -> Result<(), DemoError> {
    let descriptor = fcntl(io::stdin(), FcntlArg::F_DUPFD(FIRST_HANDED_IN))
        .context(|| "duplicate standard input".into())?;
    if descriptor != FIRST_HANDED_IN {
        return Err(DemoError::RunByHand(format!("descriptor {FIRST_HANDED_IN} is in use")));
    }
    let nothing = File::open("/dev/null").context(|| "open /dev/null".into())?;
    dup2_stdin(&nothing).context(|| "replace standard input".into())
}
