//! The hosts file, followed as it changes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use outrigger_ca::file_watch;
use tokio::sync::watch;

use super::search;
use super::settings::ResolveError;

/// Names to addresses.
#[derive(Default, PartialEq, Eq, Debug)]
pub(super) struct Table(HashMap<String, Vec<IpAddr>>);

impl Table {
    /// Reads the text by hosts(5); lines that are not understood are passed over.
    pub(super) fn parse(text: &str) -> Self {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(Ok(ip)) = words.next().map(str::parse::<IpAddr>) else {
                continue;
            };
            for name in words.filter_map(search::name) {
                let addresses = names.entry(name).or_default();
                if !addresses.contains(&ip) {
                    addresses.push(ip);
                }
            }
        }
        Self(names)
    }

    /// The addresses of a name in lower case without a final dot.
    pub(super) fn get(&self, name: &str) -> Option<&[IpAddr]> {
        self.0.get(name).map(Vec::as_slice)
    }
}

/// The file and what it says now.
pub(super) struct HostsFile {
    table: Arc<ArcSwap<Table>>,
    changed: watch::Receiver<()>,
}

impl HostsFile {
    /// Reads the file and follows it on the current runtime until this value is dropped.
    pub(super) fn follow(path: PathBuf) -> Result<Self, ResolveError> {
        let mut changes = file_watch::watch([path.clone()])?;
        let table = Arc::new(ArcSwap::from_pointee(read(&path).unwrap_or_default()));
        let (announce, changed) = watch::channel(());
        let kept = table.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    change = changes.recv() => if change.is_none() { return },
                    () = announce.closed() => return,
                }
                if let Some(new) = read(&path)
                    && **kept.load() != new
                {
                    kept.store(Arc::new(new));
                    announce.send_replace(());
                }
            }
        });
        Ok(Self { table, changed })
    }

    pub(super) fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Yields when the table has changed.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }
}

/// The table in a file; an absent file is an empty table, an unreadable one leaves what was there.
fn read(path: &Path) -> Option<Table> {
    match std::fs::read(path) {
        Ok(bytes) => Some(Table::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(Table::default()),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the hosts file can't be read; names keep what they have of it");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_is_read_as_its_manual_says() {
        let table = Table::parse(
            "127.0.0.1\tlocalhost\n\
             # 10.0.0.1 commented\n\
             10.0.0.2 Api.Example api # two names\n\
             10.0.0.3 api\n\
             10.0.0.3 api\n\
             fd00::3 api\n\
             10.0.0.300 wrong\n\
             10.0.0.4\n\
             10.0.0.5 bad/name good.\n",
        );
        let of =
            |name: &str| table.get(name).map(|ips| ips.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (name, expected) in [
            ("localhost", Some(vec!["127.0.0.1"])),
            ("commented", None),
            ("api.example", Some(vec!["10.0.0.2"])),
            ("api", Some(vec!["10.0.0.2", "10.0.0.3", "fd00::3"])),
            ("wrong", None),
            ("bad/name", None),
            ("good", Some(vec!["10.0.0.5"])),
        ] {
            let expected = expected.map(|ips| ips.into_iter().map(str::to_owned).collect());
            assert_eq!(of(name), expected, "{name}");
        }
    }
}
