//! Namespaces: those of the demo as a whole, and one network namespace a pod. All are anonymous, so that they go
//! with the processes and descriptors that hold them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::{fs, thread};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{Uid, getegid, geteuid};
use serde::{Deserialize, Serialize};

/// How the sidecars' own traffic is told from the workloads'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exemption {
    /// By user ID 1337: the demo was started by root.
    User,
    /// By packet mark: in an unprivileged user namespace there is one user only.
    Mark,
}

/// Moves this process into new network and mount namespaces; children go to a new PID namespace. An ordinary user,
/// and root in a container that withholds the privilege, also gets a user namespace, as its root.
///
/// # Errors
/// The kernel's reason. The process must not have started a thread yet.
pub fn enter() -> io::Result<Exemption> {
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
    if geteuid() == Uid::from_raw(0) && unshare(flags).is_ok() {
        return Ok(Exemption::User);
    }
    let (user, group) = (geteuid(), getegid());
    unshare(flags | CloneFlags::CLONE_NEWUSER)?;
    // The kernel wants setgroups given up before an ordinary user may map a group (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    Ok(Exemption::Mark)
}

/// A pod's network namespace; it lives as long as this value or a process inside.
#[derive(Debug)]
pub struct PodNamespace {
    file: File,
}

impl PodNamespace {
    /// Makes an empty one, in which not even loopback is up.
    pub fn new() -> io::Result<Self> {
        let file = on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })?;
        Ok(Self { file })
    }

    /// Does `work` inside. Sockets that it opens and processes that it starts stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// Where the host finds the namespace, for nsenter(1). `supervisor` is this process's directory in /proc.
    pub fn path(&self, supervisor: &Path) -> PathBuf {
        supervisor.join(format!("fd/{}", self.file.as_raw_fd()))
    }
}

/// A thread enters a namespace alone and ends afterwards: the rest of the process stays where it is.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("namespace".into()).spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
