//! The state in a directory that several CAs may share.
//!
//! One file holds everything. Writers hold a lock, write a new file beside it, flush it to the disk and
//! rename it, so that a reader, and whoever starts after a kill, finds the old state or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Lifetimes;
use super::state::{RotateError, State, StateError};

const STATE: &str = "state.json";
const UNFINISHED: &str = "state.json.new";
const LOCK: &str = "lock";

/// Why the directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("`{path}`: {action} failed: {source}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
    #[error(
        "`{path}` holds no keys of a CA: give the directory that `outrigger ca --directory` was started with"
    )]
    NoState { path: PathBuf },
    #[error(
        "`{path}` belongs to a CA of the trust domain `{found}`, not `{wanted}`: give another directory or another trust domain"
    )]
    OtherTrustDomain { path: PathBuf, found: String, wanted: String },
    #[error(
        "`{path}` can be read by others (mode {mode:o}) and its mode can't be changed: make it {wanted:o}"
    )]
    TooOpen { path: PathBuf, mode: u32, wanted: u32 },
    #[error("`{path}`: {source}")]
    State { path: PathBuf, source: StateError },
    #[error("`{path}`: {source}")]
    Rotate { path: PathBuf, source: RotateError },
}

/// Tells one state of the file from another without reading it: rename gives a new inode.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Version {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

pub(super) fn version_of(path: &Path) -> Option<Version> {
    let metadata = fs::metadata(path).ok()?;
    Some(Version {
        inode: metadata.ino(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        size: metadata.len(),
    })
}

pub(super) struct Directory(PathBuf);

impl Directory {
    /// Makes the directory if need be, and closes it to everybody else.
    pub fn prepare(path: &Path) -> Result<Self, StorageError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| failed(path, "making the directory", source))?;
        close_to_others(path, 0o700)?;
        Ok(Self(path.into()))
    }

    /// A directory that a CA was started with before.
    pub fn existing(path: &Path) -> Result<Self, StorageError> {
        let directory = Self(path.into());
        if directory.state_file().exists() {
            Ok(directory)
        } else {
            Err(StorageError::NoState { path: path.into() })
        }
    }

    /// Makes the first root where there is none. Of several CAs at once, the one with the lock makes it.
    pub fn initialize(
        &self,
        trust_domain: &str,
        lifetimes: Lifetimes,
        now: SystemTime,
    ) -> Result<(), StorageError> {
        if let Some(state) = self.read_if_there()? {
            self.check_trust_domain(&state, trust_domain)?;
            if !state.clone().note_lifetime(lifetimes.certificate) {
                return Ok(());
            }
        }
        let _lock = self.lock()?;
        let state = match self.read_if_there()? {
            Some(mut state) => {
                self.check_trust_domain(&state, trust_domain)?;
                state.note_lifetime(lifetimes.certificate);
                state
            }
            None => {
                tracing::info!(directory = %self.0.display(), "making the CA's first root and issuer");
                State::new(trust_domain, lifetimes, now).map_err(|source| self.bad_state(source))?
            }
        };
        self.write(&state)
    }

    pub fn rotate(
        &self,
        spread: Duration,
        root_lifetime: Duration,
        now: SystemTime,
    ) -> Result<State, StorageError> {
        let _lock = self.lock()?;
        let mut state = self.read()?;
        state
            .rotate(spread, root_lifetime, now)
            .map_err(|source| StorageError::Rotate { path: self.0.clone(), source })?;
        self.write(&state)?;
        Ok(state)
    }

    pub fn prune(&self, now: SystemTime) -> Result<(), StorageError> {
        if !self.read()?.prune(now) {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut state = self.read()?;
        if state.prune(now) {
            tracing::info!("a root whose certificates have all ended was removed, key included");
            self.write(&state)?;
        }
        Ok(())
    }

    pub fn version(&self) -> Option<Version> {
        version_of(&self.state_file())
    }

    pub fn read(&self) -> Result<State, StorageError> {
        self.read_if_there()?.ok_or_else(|| StorageError::NoState { path: self.0.clone() })
    }

    fn read_if_there(&self) -> Result<Option<State>, StorageError> {
        let path = self.state_file();
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(&path, "reading", source)),
        };
        close_to_others(&path, 0o600)?;
        let state = State::from_json(&json).map_err(|source| self.bad_state(source))?;
        Ok(Some(state))
    }

    /// Only with the lock held.
    fn write(&self, state: &State) -> Result<(), StorageError> {
        let json = state.to_json().map_err(|source| self.bad_state(source))?;
        let unfinished = self.0.join(UNFINISHED);
        // A leftover of somebody killed here; made anew so that its mode is ours.
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed(&unfinished, "removing a leftover", error));
            }
            _ => {}
        }
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished).and_then(
            |mut file| {
                file.write_all(&json)?;
                file.sync_all()
            },
        );
        written.map_err(|source| failed(&unfinished, "writing", source))?;
        fs::rename(&unfinished, self.state_file())
            .and_then(|()| File::open(&self.0)?.sync_all())
            .map_err(|source| failed(&self.state_file(), "taking the new state into use", source))
    }

    /// Held until dropped; the kernel releases it when its holder dies.
    fn lock(&self) -> Result<File, StorageError> {
        let path = self.0.join(LOCK);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| {
                file.lock()?;
                Ok(file)
            })
            .map_err(|source| failed(&path, "locking", source))
    }

    fn check_trust_domain(&self, state: &State, wanted: &str) -> Result<(), StorageError> {
        if state.trust_domain() == wanted {
            return Ok(());
        }
        Err(StorageError::OtherTrustDomain {
            path: self.0.clone(),
            found: state.trust_domain().into(),
            wanted: wanted.into(),
        })
    }

    fn state_file(&self) -> PathBuf {
        self.0.join(STATE)
    }

    fn bad_state(&self, source: StateError) -> StorageError {
        StorageError::State { path: self.state_file(), source }
    }
}

fn failed(path: &Path, action: &'static str, source: io::Error) -> StorageError {
    StorageError::Io { path: path.into(), action, source }
}

fn close_to_others(path: &Path, wanted: u32) -> Result<(), StorageError> {
    let mode =
        fs::metadata(path).map_err(|source| failed(path, "looking at the mode", source))?.mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "others could read the CA's keys; closing them out");
    fs::set_permissions(path, Permissions::from_mode(wanted)).map_err(|_| StorageError::TooOpen {
        path: path.into(),
        mode,
        wanted,
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD_DIRECTORY: &str = "OUTRIGGER_TEST_CHILD_DIRECTORY";
    const CHILD_WRITES_ON: &str = "OUTRIGGER_TEST_CHILD_WRITES_ON";

    fn start(path: &Path, certificate_seconds: u64) -> Result<State, StorageError> {
        let directory = Directory::prepare(path)?;
        let lifetimes =
            Lifetimes { certificate: Duration::from_secs(certificate_seconds), ..Lifetimes::default() };
        directory.initialize("cluster.local", lifetimes, SystemTime::now())?;
        directory.read()
    }

    fn roots(state: &State) -> String {
        state.bundle(SystemTime::now()).unwrap().to_pem()
    }

    /// Not a test of its own: the process that other tests start, and kill.
    #[test]
    fn a_child_process_starts_on_the_directory_that_it_is_given() {
        let Ok(path) = std::env::var(CHILD_DIRECTORY) else {
            return;
        };
        let mut lifetime = 60;
        start(Path::new(&path), lifetime).unwrap();
        while std::env::var(CHILD_WRITES_ON).is_ok() {
            // Each start has a longer lifetime to note down, so that each of them writes.
            lifetime += 1;
            start(Path::new(&path), lifetime).unwrap();
        }
    }

    fn child(path: &Path) -> Command {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args([
                "--exact",
                "authority::storage::tests::a_child_process_starts_on_the_directory_that_it_is_given",
            ])
            .env(CHILD_DIRECTORY, path)
            .stdout(Stdio::null());
        child
    }

    #[test]
    fn killed_at_any_moment_it_comes_up_with_the_same_root() {
        let directory = tempfile::tempdir().unwrap();
        for path in ["a", "b", "c", "d"].map(|name| directory.path().join(name)) {
            let mut first: Option<String> = None;
            for round in 0..15 {
                let mut child = child(&path).env(CHILD_WRITES_ON, "1").spawn().unwrap();
                std::thread::sleep(Duration::from_micros(rand::random_range(0..30_000)));
                child.kill().unwrap();
                child.wait().unwrap();
                let found = match Directory::existing(&path).and_then(|it| it.read()) {
                    Ok(state) => roots(&state),
                    Err(StorageError::NoState { .. }) if first.is_none() => continue,
                    Err(error) => panic!("round {round}: {error}"),
                };
                let first = first.get_or_insert_with(|| found.clone());
                assert_eq!(*first, found, "round {round}: another root");
            }
            let last = roots(&start(&path, 3600).unwrap());
            assert_eq!(first.unwrap_or_else(|| last.clone()), last);
        }
    }

    #[test]
    fn several_that_start_at_once_end_up_with_one_root() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        let children: Vec<_> = (0..4).map(|_| child(&path).spawn().unwrap()).collect();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || roots(&start(&path, 60).unwrap()))
            })
            .collect();
        let found: Vec<String> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        for mut child in children {
            assert!(child.wait().unwrap().success());
        }
        assert!(found.iter().all(|root| *root == found[0]));
        assert_eq!(roots(&start(&path, 60).unwrap()), found[0]);
    }

    #[test]
    fn directory_and_files_are_closed_to_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/ca");
        start(&path, 60).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(STATE)), 0o600);
        assert_eq!(mode(&path.join(LOCK)), 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(path.join(STATE), Permissions::from_mode(0o644)).unwrap();
        start(&path, 60).unwrap();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join(STATE)), 0o600);
    }

    #[test]
    fn a_directory_of_another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        start(directory.path(), 60).unwrap();
        let found = Directory::prepare(directory.path()).unwrap().initialize(
            "example.org",
            Lifetimes::default(),
            SystemTime::now(),
        );
        assert!(matches!(found, Err(StorageError::OtherTrustDomain { .. })));
    }

    #[test]
    fn a_damaged_state_is_reported_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        start(directory.path(), 60).unwrap();
        let file = directory.path().join(STATE);
        fs::write(&file, "{").unwrap();
        let error = start(directory.path(), 60).err().unwrap().to_string();
        assert!(error.contains(STATE), "{error}");
        assert_eq!(fs::read_to_string(&file).unwrap(), "{");
    }

    #[test]
    fn what_was_never_a_directory_of_a_ca_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let error = Directory::existing(directory.path()).err().unwrap();
        assert!(matches!(error, StorageError::NoState { .. }), "{error}");
    }
}
