//! The demo's files: a tmpfs in its own mount namespace, which goes when the demo goes, and the few files of /etc
//! that name resolution reads, covered by the demo's own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::error::{Context, DemoError};
use crate::plan;

/// /run is covered as a whole: it holds the sockets of the host's name services, which would answer from outside
/// the demo, and iptables wants to write its lock there.
const COVERED: &str = "/run";
/// Logs are what grows; a demo left running overnight must not fill the memory.
const TMPFS_OPTIONS: &str = "mode=0755,size=256m";

/// Where the demo's files are, inside its mount namespace.
#[derive(Clone, Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Covers what must not be seen and writes what the pods need.
    ///
    /// # Errors
    /// The step that failed.
    pub fn prepare() -> Result<Self, DemoError> {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context(|| "make the mounts private".into())?;
        let resolv_conf = final_target(Path::new("/etc/resolv.conf"));
        mount(Some("tmpfs"), COVERED, Some("tmpfs"), MsFlags::empty(), Some(TMPFS_OPTIONS))
            .context(|| format!("mount a tmpfs on {COVERED}"))?;

        let files = Self { root: Path::new(COVERED).join("outrigger-demo") };
        fs::create_dir(&files.root).context(|| format!("make {}", files.root.display()))?;
        files.cover(&resolv_conf, &plan::resolv_conf())?;
        files.cover(Path::new("/etc/hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        let nsswitch = final_target(Path::new("/etc/nsswitch.conf"));
        if nsswitch.exists() {
            files.cover(&nsswitch, "passwd: files\ngroup: files\nhosts: files dns\n")?;
        }
        // A path that every user of the demo can walk, whatever the modes of the directories above the original.
        fs::write(files.binary(), "").context(|| "make a place for the program's file".into())?;
        // By the link, which leads to the file also when /run was above it.
        bind(Path::new("/proc/self/exe"), &files.binary())?;
        Ok(files)
    }

    /// This program's file, reachable for every user.
    pub fn binary(&self) -> PathBuf {
        self.root.join("outrigger")
    }

    /// The path of a file or directory of the demo.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Shows `text` at `target`.
    fn cover(&self, target: &Path, text: &str) -> Result<(), DemoError> {
        if !target.exists()
            && let (true, Some(parent)) = (target.starts_with(COVERED), target.parent())
        {
            fs::create_dir_all(parent).context(|| format!("make {}", parent.display()))?;
            return fs::write(target, text).context(|| format!("write {}", target.display()));
        }
        let name = target.file_name().unwrap_or_default();
        let source = self.root.join(name);
        fs::write(&source, text).context(|| format!("write {}", source.display()))?;
        bind(&source, target)
    }
}

fn bind(source: &Path, target: &Path) -> Result<(), DemoError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context(|| format!("show {} at {}", source.display(), target.display()))
}

/// Follows symbolic links as far as they go, also where the last one leads to nothing.
fn final_target(path: &Path) -> PathBuf {
    let mut target = path.to_path_buf();
    // As deep as the kernel itself follows (path_resolution(7)).
    for _ in 0..40 {
        let Ok(link) = fs::read_link(&target) else {
            break;
        };
        target = match target.parent() {
            Some(parent) => parent.join(link),
            None => link,
        };
    }
    // Without `..`, so that it can be told whether it lies below a covered directory.
    match (target.parent().map(fs::canonicalize), target.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => target,
    }
}

/// Writes a file that only `owner` reads.
///
/// # Errors
/// The system's reason.
pub fn write_secret(path: &Path, text: &str, owner: Option<u32>) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::{OpenOptionsExt, chown};
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    chown(path, owner, owner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_to_a_file_that_is_not_there_yet() {
        let directory = std::env::temp_dir().join(format!("outrigger-demo-links-{}", std::process::id()));
        fs::create_dir_all(directory.join("run")).expect("a scratch directory");
        symlink("../run/stub.conf", directory.join("run/middle.conf")).expect("a link");
        symlink("run/middle.conf", directory.join("resolv.conf")).expect("a link");
        let found = final_target(&directory.join("resolv.conf"));
        let wanted = fs::canonicalize(directory.join("run")).expect("it was made above").join("stub.conf");
        fs::remove_dir_all(&directory).expect("the scratch directory can be removed");
        assert_eq!(found, wanted);
    }
}
