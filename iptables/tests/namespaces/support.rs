//! Network namespaces, and running a test where it may make them.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

const INSIDE: &str = "OUTRIGGER_TEST_IN_USER_NAMESPACE";

/// Declares tests that make network namespaces.
macro_rules! namespace_tests {
    ($(fn $name:ident() $body:block)*) => { $(
        #[test]
        fn $name() {
            $crate::support::where_allowed(concat!(module_path!(), "::", stringify!($name)), || $body);
        }
    )* };
}
pub(crate) use namespace_tests;

/// A network namespace without a name: it ends with the last handle, thread and socket in it.
pub struct Namespace {
    handle: File,
}

impl Namespace {
    pub fn new() -> Self {
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").expect("its handle")
        });
        Self { handle: handle.join().expect("a new network namespace") }
    }

    /// Runs something on a thread in the namespace.
    pub fn run<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.handle, CloneFlags::CLONE_NEWNET).expect("entering the namespace");
                action()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Runs a command line in the namespace and returns its output. Words are split at spaces.
    pub fn command(&self, line: &str) -> String {
        self.run(|| {
            let mut words = line.split_whitespace();
            let output = Command::new(words.next().expect("a program"))
                .args(words)
                .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
                .output()
                .expect("running the program");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{line}: {said}");
            String::from_utf8_lossy(&output.stdout).into_owned()
        })
    }

    pub fn set(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}")));
    }

    /// Lays a cable to another namespace.
    pub fn connect(&self, interface: &str, other: &Self, other_interface: &str) {
        let other = format!("/proc/{}/fd/{}", std::process::id(), other.handle.as_raw_fd());
        self.command(&format!("ip link add {interface} type veth peer name {other_interface} netns {other}"));
    }
}

/// Whether a rule can match the proxy's uid here.
pub fn uids_are_mapped() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").expect("the map of user IDs");
    map.split_whitespace().nth(2).and_then(|count| count.parse().ok()).is_some_and(|count: u64| count > 1337)
}

/// Runs a test here if it may make network namespaces, else in a user namespace, where it may; if it may not make
/// one of these either, it says so.
pub fn where_allowed(test: &str, body: impl FnOnce()) {
    let allowed = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).is_ok()).join().unwrap_or(false);
    if allowed {
        body();
    } else if std::env::var_os(INSIDE).is_some() {
        eprintln!("SKIPPED {test}: this user namespace may not make network namespaces");
    } else {
        in_user_namespace(test);
    }
}

/// Whether this is the process that [`in_user_namespace`] started.
pub fn is_in_user_namespace() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs a test of this program again, as the root of a user namespace that maps nobody else.
pub fn in_user_namespace(test: &str) {
    let unshare = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--", program]);
        command
    };
    if !unshare("true").output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED {test}: neither root nor allowed to make user namespaces");
        return;
    }
    let program = std::env::current_exe().expect("this program's path");
    let (_, name) = test.split_once("::").expect("a path that begins with the crate");
    let output = unshare(&program.to_string_lossy())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("running this program again");
    let said = String::from_utf8_lossy(&output.stderr);
    eprint!("{said}");
    assert!(output.status.success(), "{test} failed in a user namespace: {said}");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(told.contains("1 passed"), "{test} did not run in a user namespace: {told}");
}
