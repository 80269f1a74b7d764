//! Programs of the system that the demo runs: found, installed when it may, or named with the command that does.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use crate::error::DemoError;
use crate::screen;

/// Where administration programs are; an ordinary user's PATH often lacks them.
const ADMINISTRATION_PATHS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What the demo can't do without: program, package.
const NEEDED: [(&str, &str); 2] = [("ip", "iproute2"), ("iptables", "iptables")];

/// Package managers and how each installs without questions.
const MANAGERS: [(&str, &str); 5] = [
    ("apt-get", "apt-get install --yes --no-install-recommends"),
    ("dnf", "dnf install --assumeyes"),
    ("apk", "apk add"),
    ("pacman", "pacman --sync --noconfirm"),
    ("zypper", "zypper --non-interactive install"),
];

/// PATH with the directories of administration programs.
pub fn search_path() -> String {
    let mut path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
    for directory in ADMINISTRATION_PATHS {
        if !path.split(':').any(|part| part == directory) {
            path.push(':');
            path.push_str(directory);
        }
    }
    path
}

/// Finds a program.
pub fn find(name: &str) -> Option<PathBuf> {
    search_path().split(':').map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

/// Sees that all needed programs are there. Root's missing ones are installed where apt-get is the package
/// manager; this is announced first.
///
/// # Errors
/// What is missing with the one command that installs it, or why installing failed.
pub fn ensure() -> Result<(), DemoError> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let manager = MANAGERS.iter().find(|(program, _)| find(program).is_some()).map(|(_, install)| *install);
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    let root = geteuid().is_root();
    let command = install_command(&packages, manager, root);
    if let Some(command) = &command
        && root
        && manager.is_some_and(|manager| manager.starts_with("apt-get"))
    {
        screen::say(&format!("Installing what is missing: {command}"))?;
        install(command)?;
        if self::missing().is_empty() {
            return Ok(());
        }
    }
    Err(DemoError::ToolMissing {
        missing: missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "),
        remedy: command
            .unwrap_or_else(|| format!("your system's package manager (packages: {})", packages.join(" "))),
    })
}

/// Needed programs that are not there, each with its package.
fn missing() -> Vec<(&'static str, &'static str)> {
    NEEDED.into_iter().filter(|(program, _)| find(program).is_none()).collect()
}

fn install_command(packages: &[&str], manager: Option<&str>, root: bool) -> Option<String> {
    let sudo = if root { "" } else { "sudo " };
    manager.map(|manager| format!("{sudo}{manager} {}", packages.join(" ")))
}

fn install(command: &str) -> Result<(), DemoError> {
    match run(command) {
        Ok(()) => Ok(()),
        // Most often the package lists are missing or old.
        Err(_) => run("apt-get update").and_then(|()| run(command)),
    }
}

fn run(command: &str) -> Result<(), DemoError> {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap_or_default())
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("PATH", search_path())
        .status();
    let reason = match status {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    Err(DemoError::Install { command: command.into(), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_one_command_of_the_systems_package_manager() {
        let apt = Some(MANAGERS[0].1);
        let table = [
            (
                &["iptables"][..],
                apt,
                false,
                Some("sudo apt-get install --yes --no-install-recommends iptables"),
            ),
            (
                &["iproute2", "iptables"],
                apt,
                true,
                Some("apt-get install --yes --no-install-recommends iproute2 iptables"),
            ),
            (&["iptables"], Some(MANAGERS[2].1), false, Some("sudo apk add iptables")),
            (&["iptables"], None, false, None),
        ];
        for (packages, manager, root, expected) in table {
            assert_eq!(install_command(packages, manager, root).as_deref(), expected);
        }
    }

    #[test]
    fn administration_programs_are_found_whatever_the_path() {
        for directory in ADMINISTRATION_PATHS {
            assert!(search_path().split(':').any(|part| part == directory), "{directory}");
        }
    }
}
