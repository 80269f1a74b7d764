//! Tells when the content of files changes, however they are replaced.
//!
//! A ConfigMap or Secret changes by swapping a symlink in the file's directory, editors rename, and some
//! files appear later than their reader. So directories are watched and contents compared; a slow
//! re-check catches what no event announces (network file systems, exhausted inotify watches).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use sha2::{Digest as _, Sha256};
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
    let (events_in, events) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| may_change_content(event.kind)) {
            // A full channel already holds the news.
            let _ = events_in.try_send(());
        }
    });
    let watcher = watcher
        .inspect_err(|error| {
            tracing::warn!(%error, "no change events for files: comparing them every 2 s instead; raise fs.inotify.max_user_instances");
        })
        .ok();
    let (sender, receiver) = mpsc::channel(1);
    let mut watch = Watch { seen: fingerprints(&files), files, watcher, events };
    watch.follow_directories();
    // What changed while the directories were being added has no event, but is seen by this second look.
    let changed = watch.changed();
    if changed {
        let _ = sender.try_send(());
    }
    runtime.spawn(watch.run(sender));
    Ok(receiver)
}

fn may_change_content(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => true,
        // Our own reading would wake us again and again.
        EventKind::Access(_) => false,
        _ => true,
    }
}

struct Watch {
    files: Vec<PathBuf>,
    seen: Vec<Option<[u8; 32]>>,
    watcher: Option<RecommendedWatcher>,
    events: mpsc::Receiver<()>,
}

impl Watch {
    async fn run(mut self, sender: mpsc::Sender<()>) {
        let recheck = if self.watcher.is_some() { RECHECK } else { RECHECK_WITHOUT_EVENTS };
        let mut events_open = self.watcher.is_some();
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(recheck) => {}
                event = self.events.recv(), if events_open => match event {
                    Some(()) => self.settle().await,
                    None => events_open = false,
                },
            }
            self.follow_directories();
            if self.changed() {
                // A full channel already holds the news.
                let _ = sender.try_send(());
            }
        }
    }

    async fn settle(&mut self) {
        let latest = Instant::now() + LONGEST_DEBOUNCE;
        loop {
            tokio::select! {
                () = sleep(QUIET) => return,
                () = sleep_until(latest) => return,
                event = self.events.recv() => if event.is_none() { return },
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
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for directory in directories(&self.files) {
            if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
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

    #[test]
    fn a_path_that_names_no_file_is_refused() {
        assert!(matches!(watch([PathBuf::from("/")]), Err(WatchError::NotAFile(_))));
    }
}
