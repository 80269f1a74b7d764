//! The part on the host: checks, listeners that the host's programs must reach, the namespaces, and the wait for
//! the supervisor inside.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};

use crate::error::{Context, DemoError};
use crate::orders::{HostSocket, Orders, STOP};
use crate::{namespace, plan, tools};

/// A demo that was killed a moment ago may still be on its way out and hold the port.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

/// How the demo runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Port on 127.0.0.1 of the entry.
    pub port: u16,
    /// First of the ports on 127.0.0.1 for the sidecars' admin ports; each that is taken is replaced by a free one.
    pub admin_ports: u16,
    /// Requests a second that the demo makes itself; 0 for none.
    pub requests_per_second: u32,
    /// Where to keep logs; None: in memory, gone with the demo.
    pub logs: Option<PathBuf>,
    /// Whether sidecars write an access log into their logs.
    pub access_log: bool,
}

/// Runs the demo until Ctrl-C (SIGINT), SIGTERM or SIGHUP. The process must not have started a thread yet.
///
/// # Errors
/// What is missing or refused, each with what to do.
pub fn start(settings: &Settings) -> Result<ExitCode, DemoError> {
    tools::ensure()?;
    let logs = settings.logs.as_deref().map(prepare_logs).transpose()?;
    let entry = listen_patiently(settings.port)?;
    let admin: Vec<TcpListener> = (0..)
        .zip(plan::PODS)
        .map(|(index, _)| listen_somewhere(settings.admin_ports, index))
        .collect::<Result<_, _>>()?;

    // Held back from here on, and taken by `outlive`.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD]);
    signals.thread_block().context(|| "block signals".into())?;
    let exemption = namespace::enter().map_err(DemoError::Namespaces)?;
    let orders = Orders {
        exemption,
        entry: inheritable(&entry)?,
        admin: admin.iter().map(inheritable).collect::<Result<_, _>>()?,
        requests_per_second: settings.requests_per_second,
        logs,
        access_log: settings.access_log,
    };
    let supervisor = supervise(&orders).context(|| "start the supervisor".into())?;
    // The port must be free as soon as the supervisor's side is gone.
    drop((entry, admin));
    outlive(supervisor, &signals)
}

fn prepare_logs(path: &Path) -> Result<PathBuf, DemoError> {
    let refused = |source| DemoError::Logs { path: path.into(), source };
    fs::create_dir_all(path).map_err(refused)?;
    let path = fs::canonicalize(path).map_err(refused)?;
    if path.starts_with("/run") {
        return Err(refused(io::Error::other("the demo covers /run with its own files")));
    }
    Ok(path)
}

fn listen_patiently(port: u16) -> Result<TcpListener, DemoError> {
    let deadline = Instant::now() + PORT_PATIENCE;
    loop {
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            result => return result.map_err(|source| DemoError::Port { port, source }),
        }
    }
}

/// Listens on `first + index`, or where that is taken, or `first` is 0, on any free port.
fn listen_somewhere(first: u16, index: u16) -> Result<TcpListener, DemoError> {
    first
        .checked_add(index)
        .filter(|_| first != 0)
        .and_then(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .map_or_else(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), Ok)
        .context(|| "listen on any port of 127.0.0.1".into())
}

/// Lets the supervisor inherit the socket.
fn inheritable(listener: &TcpListener) -> Result<HostSocket, DemoError> {
    fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty())).context(|| "let a socket be inherited".into())?;
    let port = listener.local_addr().context(|| "read a socket's port".into())?.port();
    Ok(HostSocket { descriptor: listener.as_raw_fd(), port })
}

fn supervise(orders: &Orders) -> io::Result<Child> {
    let mut supervisor = Command::new(std::env::current_exe()?)
        .args(["demo", "supervise"])
        .env("PATH", tools::search_path())
        .stdin(Stdio::piped())
        // Ctrl-C goes to the terminal's whole process group; the mesh is to be stopped in order instead.
        .process_group(0)
        .spawn()?;
    tell(&mut supervisor, &format!("{}\n", serde_json::to_string(orders)?))?;
    Ok(supervisor)
}

fn tell(supervisor: &mut Child, line: &str) -> io::Result<()> {
    supervisor.stdin.as_mut().map_or(Ok(()), |stdin| stdin.write_all(line.as_bytes()))
}

/// Waits for the supervisor's end. The first signal asks it to stop in order, the second kills it.
fn outlive(mut supervisor: Child, signals: &SigSet) -> Result<ExitCode, DemoError> {
    let (mut asked, mut killed) = (false, false);
    loop {
        if let Some(status) = supervisor.try_wait().context(|| "wait for the supervisor".into())? {
            return match status.code() {
                Some(0) => Ok(ExitCode::SUCCESS),
                // It has said why.
                Some(_) => Ok(ExitCode::FAILURE),
                None if killed => Ok(ExitCode::FAILURE),
                None => Err(DemoError::Killed(status)),
            };
        }
        match signals.wait().context(|| "wait for a signal".into())? {
            Signal::SIGCHLD => {}
            _ if !asked && tell(&mut supervisor, STOP).is_ok() => asked = true,
            _ => {
                supervisor.kill().context(|| "kill the supervisor".into())?;
                killed = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_port_that_is_taken_or_left_open_becomes_a_free_one() {
        let taken = listen_somewhere(0, 3).expect("some port is free");
        let port = taken.local_addr().expect("it is bound").port();
        assert!(port >= 1024, "{port}");
        let other = listen_somewhere(port, 0).expect("some port is free");
        assert_ne!(other.local_addr().expect("it is bound").port(), port);
    }
}
