//! Finding and running the iptables programs of this machine.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Attempt, Cause, Error};
use crate::{Family, Owner};

/// Where to look for iptables.
#[derive(Clone, Debug)]
pub struct Tools {
    directories: Vec<PathBuf>,
}

/// One implementation of iptables, for one family.
#[derive(Debug)]
pub(crate) struct Backend {
    family: Family,
    kind: Kind,
    save: PathBuf,
    restore: PathBuf,
}

/// `iptables` alone is either of the two others, as the distribution chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Nft,
    Legacy,
    Plain,
}

impl Tools {
    /// Looks in PATH, then where distributions put iptables: an ordinary user's PATH lacks these.
    pub fn find() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
        for directory in usual {
            if !directories.contains(&directory) {
                directories.push(directory);
            }
        }
        Self { directories }
    }

    /// Looks in these directories only.
    pub fn in_directories(directories: impl IntoIterator<Item = PathBuf>) -> Self {
        Self { directories: directories.into_iter().collect() }
    }

    /// The backends of a family in the order in which to try them: nf_tables is what kernels keep, legacy is
    /// what old ones have.
    pub(crate) fn backends(&self, family: Family) -> Result<Vec<Backend>, Error> {
        let program = program(family);
        let named = |kind: Kind, infix: &str| {
            Some(Backend {
                family,
                kind,
                save: self.locate(&format!("{program}{infix}-save"))?,
                restore: self.locate(&format!("{program}{infix}-restore"))?,
            })
        };
        let mut backends: Vec<Backend> =
            [named(Kind::Nft, "-nft"), named(Kind::Legacy, "-legacy")].into_iter().flatten().collect();
        if backends.is_empty() {
            backends.extend(named(Kind::Plain, ""));
        }
        if backends.is_empty() {
            return Err(Error::ToolMissing { program, searched: self.directories.clone() });
        }
        Ok(backends)
    }

    fn locate(&self, program: &str) -> Option<PathBuf> {
        let candidates = self.directories.iter().map(|directory| directory.join(program));
        candidates.into_iter().find(|path| path.is_file())
    }
}

impl Backend {
    /// The nat table as `iptables-save` prints it.
    pub(crate) fn save(&self) -> Result<String, Attempt> {
        self.run(&self.save, &["-t", "nat"], "")
    }

    /// Writes in one transaction: all of it, or nothing.
    pub(crate) fn restore(&self, input: &str) -> Result<(), Attempt> {
        // Waits for others that hold the lock of xtables; half a minute is longer than any honest holder needs.
        self.run(&self.restore, &["--noflush", "--wait=30"], input).map(drop)
    }

    /// Whether reading the table would leave the machine as it was: reading a legacy table creates it.
    pub(crate) fn may_have_rules(&self) -> bool {
        let names = match self.family {
            Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
            Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
        };
        self.kind != Kind::Legacy
            || fs::read_to_string(names).is_ok_and(|names| names.lines().any(|name| name == "nat"))
    }

    /// As a user knows it: `iptables-nft`.
    pub(crate) fn name(&self) -> String {
        name(&self.restore).trim_end_matches("-restore").to_owned()
    }

    fn run(&self, program: &Path, arguments: &[&str], input: &str) -> Result<String, Attempt> {
        let refused = |cause, output| Attempt { program: name(program), cause, output };
        match output_of(program, arguments, input) {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                Err(refused(Cause::of(&said, input, self.family), said))
            }
            Err(error) => Err(refused(Cause::NotRun, error.to_string())),
        }
    }
}

/// Refuses an owner that no rule could match: the kernel's answer to it ("Invalid argument") says nothing.
pub(crate) fn check_mapped(owner: Owner) -> Result<(), Error> {
    let Owner::User { uid, gid } = owner else {
        return Ok(());
    };
    for (kind, id, path) in [("uid", uid, "/proc/self/uid_map"), ("gid", gid, "/proc/self/gid_map")] {
        let map = fs::read_to_string(path).map_err(|source| Error::Proc { path, source })?;
        if !maps(&map, id) {
            return Err(Error::OwnerNotMapped { kind, id });
        }
    }
    Ok(())
}

/// Whether an ID map (lines of: first ID inside, first ID outside, count) holds an ID inside.
fn maps(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => (first..first + count).contains(&u64::from(id)),
            _ => false,
        }
    })
}

fn output_of(program: &Path, arguments: &[&str], input: &str) -> io::Result<std::process::Output> {
    let mut child = Command::new(program)
        .args(arguments)
        // The error texts are read here: no translations.
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that has refused already does not read; its own words say more than a broken pipe.
        match stdin.write_all(input.as_bytes()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    child.wait_with_output()
}

fn program(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("iptables")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_map_says_which_ids_are_mapped() {
        let everything = "         0          0 4294967295\n";
        let two = "         0       1000          1\n      1000     100000      65536\n";
        for (map, id, expected) in [
            (everything, 1337, true),
            (two, 0, true),
            (two, 1, false),
            (two, 1337, true),
            (two, 999, false),
            ("", 0, false),
        ] {
            assert_eq!(maps(map, id), expected, "{id} in {map:?}");
        }
    }

    #[test]
    fn a_machine_without_iptables_is_told_how_to_get_it() {
        let empty = tempfile::tempdir().unwrap();
        let error = Tools::in_directories([empty.path().to_owned()]).backends(Family::Ipv6).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("ip6tables is not installed"), "{text}");
        assert!(text.contains("apt-get install iptables"), "{text}");
    }
}
