//! What the process on the host tells the supervisor inside: a line of settings on its standard input, later
//! perhaps the word to stop. The end of this input means that the process on the host is gone, and ends the mesh.

use std::io::{self, BufRead};
use std::net::TcpListener;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::thread;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedSender;

use crate::error::DemoError;
use crate::namespace::Exemption;
use crate::process::Event;

/// The line that asks for an orderly end.
pub const STOP: &str = "stop\n";

/// A listening socket of the host, made before the namespaces were entered.
#[derive(Debug, Serialize, Deserialize)]
pub struct HostSocket {
    pub descriptor: RawFd,
    pub port: u16,
}

impl HostSocket {
    /// Takes the inherited descriptor over; the supervisor's own children don't inherit it.
    ///
    /// # Errors
    /// The descriptor is not open.
    #[allow(unsafe_code)]
    pub fn take(self) -> nix::Result<TcpListener> {
        // SAFETY: the process on the host lets exactly the descriptors it names be inherited, names each once, and
        // this value is consumed: nothing else in this process owns the descriptor.
        let owned = unsafe { OwnedFd::from_raw_fd(self.descriptor) };
        fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(owned.into())
    }
}

/// The settings, as the supervisor needs them.
#[derive(Debug, Serialize, Deserialize)]
pub struct Orders {
    pub exemption: Exemption,
    /// For the entry's relay.
    pub entry: HostSocket,
    /// For the admin port of each pod's sidecar, in the order of the plan.
    pub admin: Vec<HostSocket>,
    pub requests_per_second: u32,
    pub logs: Option<PathBuf>,
    pub access_log: bool,
}

/// Reads the orders, then follows the input for the rest of the process's life.
///
/// # Errors
/// The input does not come from the process on the host.
pub fn receive(events: UnboundedSender<Event>) -> Result<Orders, DemoError> {
    let mut first = String::new();
    let run_by_hand = |error: &dyn std::fmt::Display| DemoError::RunByHand(error.to_string());
    io::stdin().lock().read_line(&mut first).map_err(|error| run_by_hand(&error))?;
    let orders = serde_json::from_str(&first).map_err(|error| run_by_hand(&error))?;
    thread::spawn(move || {
        let mut line = String::new();
        while io::stdin().lock().read_line(&mut line).is_ok_and(|length| length > 0) {
            if line == STOP && events.send(Event::Stop).is_err() {
                return;
            }
            line.clear();
        }
        // This is the init process of the PID namespace: the kernel kills all others with it.
        std::process::exit(1);
    });
    Ok(orders)
}
