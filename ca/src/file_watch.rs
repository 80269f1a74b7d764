//! Tells when the content of files changes, however they are replaced.
//!
//! A ConfigMap or Secret changes by swapping a symlink in the file's directory, editors rename, and some
//! files appear later than their reader. So directories are watched and contents compared; a slow
//! re-check catches what no event announces (network file systems, exhausted inotify watches).

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use sha2::{Digest as _, Sha256};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// Writers that replace several files (certificate, then key) get this long a pause to do so.
const QUIET: Duration = Duration::from_millis(50);
/// A directory that never falls quiet is looked at nevertheless.
const LONGEST_DEBOUNCE: Duration = Duration::from_millis(500);
const RECHECK: Duration = Duration::from_secs(10);
/// Without inotify the re-check is all there is.
const RECHECK_WITHOUT_EVENTS: Duration = Duration::from_secs(2);

/// Why files can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("`{0}` can't be watched: it names no file")]
    NotAFile(PathBuf),
    #[error("files can only be watched from within a tokio runtime")]
    NoRuntime,
}

/// Yields once each time the content of any of the files has changed, appeared or vanished.
///
/// The state at the time of this call is what changes are measured against: watch first, then read,
/// and nothing is missed. Changes in quick succession arrive as one. Dropping the receiver ends the watch.
/// Where inotify is not to be had, a warning is logged and the files are compared every 2 s.
pub fn watch(paths: impl IntoIterator<Item = PathBuf>) -> Result<mpsc::Receiver<()>, WatchError> {
    let files: Vec<PathBuf> = paths.into_iter().collect();
    if let Some(path) = files.iter().find(|path| path.file_name().is_none()) {
        return Err(WatchError::NotAFile(path.clone()));
    }
    let runtime = tokio::runtime::Handle::try_current().map_err(|_| WatchError::NoRuntime)?;
    let events = Events::new()
        .inspect_err(|error| {
            tracing::warn!(%error, "no change events for files: comparing them every 2 s instead; raise fs.inotify.max_user_instances");
        })
        .ok();
    let (sender, receiver) = mpsc::channel(1);
    let mut watch = Watch { seen: fingerprints(&files), files, events };
    watch.follow_directories();
    // What changed while the directories were being added has no event, but is seen by this second look.
    let changed = watch.changed();
    if changed {
        let _ = sender.try_send(());
    }
    runtime.spawn(watch.run(sender));
    Ok(receiver)
}

struct Watch {
    files: Vec<PathBuf>,
    seen: Vec<Option<[u8; 32]>>,
    events: Option<Events>,
}

/// What happens in the directories that are followed.
struct Events(AsyncFd<Instance>);

/// An inotify instance as tokio wants to see it.
struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Events {
    #[expect(unsafe_code, reason = "tokio registers a descriptor that it does not own")]
    fn new() -> io::Result<Self> {
        let instance = Instance(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?);
        // SAFETY: `instance` owns the descriptor, never replaces it, and lives in the `AsyncFd` that is made here.
        Ok(Self(unsafe { AsyncFd::register(instance) }?))
    }

    /// Not `IN_MODIFY`: a log in the same directory would wake us at each of its lines. Who rewrites a file in place
    /// closes it; not `IN_ACCESS` and `IN_OPEN`: our own reading would wake us.
    fn follow(&self, directory: &Path) -> Result<(), Errno> {
        let changes = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        self.0.get_ref().0.add_watch(directory, changes).map(|_| ())
    }

    /// Waits until something has happened, and forgets it.
    async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(events) = ready.try_io(|instance| Ok(instance.get_ref().0.read_events()?)) {
                return events.map(|_| ());
            }
        }
    }
}

impl Watch {
    async fn run(mut self, sender: mpsc::Sender<()>) {
        loop {
            let recheck = if self.events.is_some() { RECHECK } else { RECHECK_WITHOUT_EVENTS };
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(recheck) => {}
                () = self.event() => self.settle().await,
            }
            self.follow_directories();
            if self.changed() {
                // A full channel already holds the news.
                let _ = sender.try_send(());
            }
        }
    }

    /// Waits for the next event; for ever where there are none.
    async fn event(&mut self) {
        if let Some(events) = &self.events {
            match events.next().await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(%error, "no more change events for files: comparing them every 2 s instead")
                }
            }
            self.events = None;
        }
        std::future::pending().await
    }

    async fn settle(&mut self) {
        let latest = Instant::now() + LONGEST_DEBOUNCE;
        loop {
            tokio::select! {
                () = sleep(QUIET) => return,
                () = sleep_until(latest) => return,
                () = self.event() => {}
            }
        }
    }

    fn changed(&mut self) -> bool {
        let now = fingerprints(&self.files);
        let changed = now != self.seen;
        self.seen = now;
        changed
    }

    /// Watches the directories that matter now. Adding one again is free, and renews the watch of a
    /// directory that was deleted and made anew.
    fn follow_directories(&mut self) {
        let Some(events) = &self.events else {
            return;
        };
        for directory in directories(&self.files) {
            if let Err(error) = events.follow(&directory) {
                tracing::debug!(directory = %directory.display(), %error, "a directory can't be watched; its files are compared every 10 s");
            }
        }
    }
}

/// The directory of each file, of what it links to, and the nearest existing one for what is yet to come.
fn directories(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for file in files {
        let existing = file.ancestors().skip(1).find_map(|ancestor| {
            let ancestor = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
            ancestor.is_dir().then(|| ancestor.to_path_buf())
        });
        found.extend(existing);
        if let Ok(target) = file.canonicalize() {
            found.extend(target.parent().map(Path::to_path_buf));
        }
    }
    found
}

fn fingerprints(files: &[PathBuf]) -> Vec<Option<[u8; 32]>> {
    files
        .iter()
        .map(|file| {
            let content = std::fs::read(file).ok()?;
            Some(Sha256::digest(&content).into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn yields(receiver: &mut mpsc::Receiver<()>) -> bool {
        tokio::time::timeout(Duration::from_secs(20), receiver.recv()).await.is_ok_and(|news| news.is_some())
    }

    #[tokio::test]
    async fn rewriting_renaming_and_creating_late_are_all_seen() {
        let directory = tempfile::tempdir().unwrap();
        let first = directory.path().join("first");
        let late = directory.path().join("not/yet/there");
        fs::write(&first, "1").unwrap();
        let mut receiver = watch([first.clone(), late.clone()]).unwrap();

        fs::write(&first, "2").unwrap();
        assert!(yields(&mut receiver).await, "rewritten in place");

        let other = directory.path().join("other");
        fs::write(&other, "3").unwrap();
        fs::rename(&other, &first).unwrap();
        assert!(yields(&mut receiver).await, "renamed over");

        fs::create_dir_all(late.parent().unwrap()).unwrap();
        fs::write(&late, "4").unwrap();
        assert!(yields(&mut receiver).await, "made later, directories and all");

        fs::remove_file(&first).unwrap();
        assert!(yields(&mut receiver).await, "removed");
    }

    #[tokio::test]
    async fn a_symlink_swap_as_of_a_config_map_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (version, content) in [("v1", "old"), ("v2", "new")] {
            fs::create_dir(path(version)).unwrap();
            fs::write(path(version).join("ca.pem"), content).unwrap();
        }
        symlink("v1", path("..data")).unwrap();
        symlink("..data/ca.pem", path("ca.pem")).unwrap();
        let mut receiver = watch([path("ca.pem")]).unwrap();
        symlink("v2", path("..data_new")).unwrap();
        fs::rename(path("..data_new"), path("..data")).unwrap();
        assert!(yields(&mut receiver).await);
        assert_eq!(fs::read_to_string(path("ca.pem")).unwrap(), "new");
    }

    #[tokio::test]
    async fn the_same_content_written_again_is_no_change() {
        let directory = tempfile::tempdir().unwrap();
        let same = directory.path().join("same");
        let changing = directory.path().join("changing");
        fs::write(&same, "1").unwrap();
        fs::write(&changing, "1").unwrap();
        let mut quiet = watch([same.clone()]).unwrap();
        let mut loud = watch([changing.clone()]).unwrap();
        fs::write(&same, "1").unwrap();
        fs::write(&changing, "2").unwrap();
        assert!(yields(&mut loud).await);
        assert!(quiet.try_recv().is_err());
    }

    #[tokio::test]
    async fn a_log_beside_the_files_wakes_nobody() {
        use std::io::Write as _;
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("watched"), "1").unwrap();
        let events = Events::new().unwrap();
        let mut log = fs::File::create(directory.path().join("log")).unwrap();
        events.follow(directory.path()).unwrap();
        log.write_all(b"a line\n").unwrap();
        let woken = tokio::time::timeout(Duration::from_millis(100), events.next()).await.is_ok();
        assert!(!woken);
        drop(log);
        events.next().await.unwrap();
    }

    #[test]
    fn a_path_that_names_no_file_is_refused() {
        assert!(matches!(watch([PathBuf::from("/")]), Err(WatchError::NotAFile(_))));
    }
}
