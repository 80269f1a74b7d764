//! What can go wrong, read from what iptables prints, with the remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::loopback::LoopbackError;
use crate::{Family, SettingsError};

/// Why the rules could not be read, written or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("{program} is not installed (searched {}): install it with `apt-get install iptables`, or the package `iptables` of your distribution", directories(.searched))]
    ToolMissing { program: &'static str, searched: Vec<PathBuf> },
    #[error(
        "{kind} {id} is not mapped in this user namespace, so no rule can match it: exempt the proxy by packet mark instead (--exempt mark)"
    )]
    OwnerNotMapped { kind: &'static str, id: u32 },
    #[error("cannot {action} the {family} redirect rules: {}", told(.attempts))]
    Refused {
        action: &'static str,
        family: Family,
        /// One for each backend that was tried, in that order.
        attempts: Vec<Attempt>,
    },
    #[error("cannot read {path}: {source}; is /proc mounted?")]
    Proc { path: &'static str, source: io::Error },
    #[error(transparent)]
    Loopback(#[from] LoopbackError),
}

/// What one backend of iptables said.
#[derive(Debug)]
pub struct Attempt {
    /// The program that was run.
    pub program: String,
    /// What its words mean.
    pub cause: Cause,
    /// Its words.
    pub output: String,
}

/// What a refusal of iptables means.
#[derive(Debug, PartialEq, Eq)]
pub enum Cause {
    /// The caller may not change this network namespace.
    NotPermitted,
    /// The kernel has no nat table of this kind.
    NoTable { modules: &'static str },
    /// The kernel lacks one of these matches or targets. Several, where iptables does not say which one.
    NoModule(Vec<String>),
    /// iptables itself lacks the match or target.
    NoExtension(String),
    /// The program could not be run.
    NotRun,
    /// Anything else.
    Unknown,
}

impl Cause {
    /// Reads the error output of a backend that was given `input` (empty where it only read).
    pub(crate) fn of(output: &str, input: &str, family: Family) -> Self {
        let says = |words: &[&str]| words.iter().any(|word| output.contains(word));
        if says(&["Permission denied", "Operation not permitted", "you must be root"]) {
            return Self::NotPermitted;
        }
        if let Some(extension) = between(output, "Couldn't load match `", "'")
            .or_else(|| between(output, "Couldn't load target `", "'"))
        {
            return Self::NoExtension(extension.to_owned());
        }
        if let Some(extension) = between(output, "Extension ", " revision ")
            && output.contains("missing kernel module")
        {
            return Self::NoModule(vec![format!("xt_{extension}")]);
        }
        if says(&[
            "Table does not exist",
            "unable to initialize table",
            "Protocol not supported",
            "Failed to initialize nft",
            "Could not fetch rule set generation id",
            "CHAIN_ADD failed",
            "TABLE_ADD failed",
        ]) {
            let modules = match family {
                Family::Ipv4 => "nf_tables, nft_compat and nft_chain_nat, or iptable_nat",
                Family::Ipv6 => "nf_tables, nft_compat and nft_chain_nat, or ip6table_nat",
            };
            return Self::NoTable { modules };
        }
        if says(&["No such file or directory", "No chain/target/match by that name"]) {
            let modules = modules_at(output, input);
            if !modules.is_empty() {
                return Self::NoModule(modules);
            }
        }
        Self::Unknown
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted => f.write_str(
                "not permitted: run as root with the capability NET_ADMIN \
                 (a container: securityContext.capabilities.add: [NET_ADMIN]; a shell: sudo)",
            ),
            Self::NoTable { modules } => write!(
                f,
                "this kernel has no nat table: on the machine itself, not in the container, load {modules} with modprobe",
            ),
            Self::NoModule(modules) if modules.len() == 1 => write!(
                f,
                "this kernel lacks the module {0}: on the machine itself, not in the container, run `modprobe {0}`",
                modules[0]
            ),
            Self::NoModule(modules) => write!(
                f,
                "this kernel lacks one of the modules {}: on the machine itself, not in the container, \
                 run `modprobe -a {}`",
                modules.join(", "),
                modules.join(" ")
            ),
            Self::NoExtension(name) => write!(
                f,
                "this iptables has no extension `{name}`: install the full package `iptables` of your distribution",
            ),
            Self::NotRun => f.write_str("could not be run: reinstall the package `iptables`"),
            Self::Unknown => f.write_str("refused for a reason that only its own words tell"),
        }
    }
}

/// The modules that the failing line needs; those of all lines when the failing one is COMMIT, with which the
/// legacy backend reports whatever the kernel refuses.
fn modules_at(output: &str, input: &str) -> Vec<String> {
    let line = output
        .split("line ")
        .skip(1)
        .find_map(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<usize>().ok())
        .and_then(|number| input.lines().nth(number.checked_sub(1)?));
    let mut modules = match line {
        Some(line) if line != "COMMIT" => modules_of(line),
        _ => input.lines().flat_map(modules_of).collect(),
    };
    modules.sort();
    modules.dedup();
    modules
}

fn modules_of(rule: &str) -> Vec<String> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words
        .windows(2)
        .filter_map(|pair| match *pair {
            ["-m", "tcp"] => Some("xt_tcpudp".to_owned()),
            ["-m", name] => Some(format!("xt_{name}")),
            ["-j", "REDIRECT"] => Some("xt_REDIRECT".to_owned()),
            _ => None,
        })
        .collect()
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split(before)
        .skip(1)
        .find_map(|rest| rest.split_once(after).map(|(found, _)| found))
        .filter(|found| !found.is_empty())
}

fn directories(searched: &[PathBuf]) -> String {
    let names: Vec<String> = searched.iter().map(|path| path.display().to_string()).collect();
    names.join(":")
}

/// What each backend said; a remedy that fits several is given once.
fn told(attempts: &[Attempt]) -> String {
    let mut text = String::new();
    for (index, Attempt { program, cause, output }) in attempts.iter().enumerate() {
        let separator = if index == 0 { "" } else { "; " };
        let cause = if attempts[..index].iter().any(|earlier| earlier.cause == *cause) {
            "the same".to_owned()
        } else {
            cause.to_string()
        };
        let words = output.split_whitespace().collect::<Vec<_>>().join(" ");
        text.push_str(&format!("{separator}{program}: {cause} (it said: {words})"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, render};

    #[test]
    fn the_words_of_iptables_are_understood() {
        let input = render(&Settings::default(), Family::Ipv4);
        let line = |part: &str| input.lines().position(|line| line.contains(part)).unwrap() + 1;
        let (owner, addrtype, commit) = (line("-m owner"), line("addrtype"), line("COMMIT"));
        let module = |name: &str| Cause::NoModule(vec![name.to_owned()]);
        let all = ["xt_REDIRECT", "xt_addrtype", "xt_owner", "xt_tcpudp"].map(str::to_owned);
        let no_table = Cause::NoTable { modules: "nf_tables, nft_compat and nft_chain_nat, or iptable_nat" };
        for (output, cause) in [
            (
                "iptables-nft-restore v1.8.9 (nf_tables): Could not fetch rule set generation id: \
                 Permission denied (you must be root)\n"
                    .to_owned(),
                Cause::NotPermitted,
            ),
            ("iptables-save v1.8.9 (legacy): Cannot initialize: Permission denied (you must be root)\n".to_owned(), Cause::NotPermitted),
            (
                "iptables-save v1.8.9 (legacy): Cannot initialize: Table does not exist (do you need to insmod?)\n".to_owned(),
                no_table,
            ),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): Couldn't load match `owner':No such file or directory\n\n\
                 Error occurred at line: 8\n"
                    .to_owned(),
                Cause::NoExtension("owner".to_owned()),
            ),
            (
                format!(
                    "Warning: Extension owner revision 0 not supported, missing kernel module?\n\
                     iptables-nft-restore v1.8.9 (nf_tables): \nline {owner}: RULE_APPEND failed (No such file or directory): \
                     rule in chain OUTRIGGER_OUTBOUND\n"
                ),
                module("xt_owner"),
            ),
            (
                format!(
                    "iptables-restore v1.8.9 (nf_tables): \nline {addrtype}: RULE_APPEND failed (No such file or directory): \
                     rule in chain PREROUTING\n"
                ),
                module("xt_addrtype"),
            ),
            (
                format!("iptables-restore: line {commit} failed: No chain/target/match by that name.\n"),
                Cause::NoModule(all.to_vec()),
            ),
            (format!("iptables-restore: line {commit} failed\n"), Cause::Unknown),
        ] {
            assert_eq!(Cause::of(&output, &input, Family::Ipv4), cause, "{output}");
        }
    }

    #[test]
    fn every_cause_is_told_with_its_remedy() {
        for (cause, remedy) in [
            (Cause::NotPermitted, "NET_ADMIN"),
            (Cause::NoTable { modules: "iptable_nat" }, "load iptable_nat with modprobe"),
            (Cause::NoModule(vec!["xt_owner".to_owned()]), "modprobe xt_owner"),
            (Cause::NoModule(vec!["xt_a".to_owned(), "xt_b".to_owned()]), "modprobe -a xt_a xt_b"),
            (Cause::NoExtension("owner".to_owned()), "install"),
            (Cause::NotRun, "reinstall"),
        ] {
            let error = Error::Refused {
                action: "write",
                family: Family::Ipv6,
                attempts: vec![Attempt {
                    program: "ip6tables-restore".to_owned(),
                    cause,
                    output: "words\nof its own\n".to_owned(),
                }],
            };
            let text = error.to_string();
            assert!(text.contains(remedy), "{text}");
            assert!(text.contains("IPv6") && text.contains("words of its own"), "{text}");
        }
    }
}
