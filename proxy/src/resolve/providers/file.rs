//! Endpoints from a file, watched however it is replaced.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_ca::file_watch;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::super::answer::ResolvedEndpoint;
use super::super::outcome::Miss;
use super::{Provider, fixed};
use crate::config::StaticEndpoint;

/// A file that stays as it is is read again this often: that it still says the same confirms it.
const CONFIRM: Duration = Duration::from_secs(30);
/// Far above any list of endpoints.
const MOST_BYTES: u64 = 16 * 1024 * 1024;

/// A file that is followed.
pub(super) struct File {
    path: PathBuf,
    /// None before the first reading, and where it can't be watched.
    changes: Option<mpsc::Receiver<()>>,
    has_been_read: bool,
}

impl File {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, changes: None, has_been_read: false }
    }

    async fn changed_within(&mut self, limit: Duration) {
        let changed = async {
            let news = match &mut self.changes {
                Some(changes) => changes.recv().await,
                None => None,
            };
            if news.is_none() {
                std::future::pending().await
            }
        };
        tokio::select! {
            () = changed => {}
            () = sleep(limit) => {}
        }
    }
}

impl Provider for File {
    async fn next(&mut self) -> Result<Vec<ResolvedEndpoint>, Miss> {
        if self.has_been_read {
            self.changed_within(CONFIRM).await;
        }
        if self.changes.is_none() {
            // Watched before it is read: a change in between is then read again.
            let changes = file_watch::watch([self.path.clone()]);
            self.changes = Some(changes.map_err(|error| Miss::Failed(error.to_string()))?);
        }
        let read = read(&self.path);
        self.has_been_read = read.is_ok();
        read.map_err(Miss::Failed)
    }

    /// Whoever mends the file wants it used at once.
    async fn pause(&mut self, suggested: Duration) {
        self.changed_within(suggested).await;
    }
}

fn read(path: &Path) -> Result<Vec<ResolvedEndpoint>, String> {
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text))
        .map_err(|error| format!("it can't be read: {error}"))?;
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("it has more than {MOST_BYTES} bytes"));
    }
    parse(&text)
}

/// A list as under `static`, in YAML or JSON. What can't be dialled makes the whole of it wrong: half a list would send
/// everything to the other half.
fn parse(text: &str) -> Result<Vec<ResolvedEndpoint>, String> {
    let stated: Option<Vec<StaticEndpoint>> = serde_saphyr::from_str(text)
        .map_err(|error| format!("it is no list of endpoints: {}", error.without_snippet()))?;
    // So is a file whose writer has only just begun.
    let stated = stated.ok_or("it is empty: write [] where there is no endpoint")?;
    for StaticEndpoint { address, .. } in &stated {
        let ip = address.ip();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            return Err(format!("nothing can be connected to at {address}"));
        }
    }
    Ok(fixed::endpoints(&stated))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_in_yaml_and_json_and_anything_else_is_refused_whole() {
        let full = r#"[{"address": "10.0.0.7:80", "weight": 3, "priority": 1, "zone": "a", "tags": {"version": "v2"}}]"#;
        let read = parse(full).unwrap();
        assert_eq!((read[0].weight, read[0].priority, read[0].zone.as_deref()), (3, 1, Some("a")));
        assert_eq!(read[0].tags["version"], "v2");
        assert_eq!(parse("- 10.0.0.7:80\n- {address: '[fd00::7]:80'}\n").unwrap().len(), 2);
        assert!(parse("[]").unwrap().is_empty());
        for wrong in [
            "",
            "null",
            "10.0.0.7:80",
            "- 10.0.0.7",
            "- api:80",
            "- 10.0.0.7:0",
            "- 0.0.0.0:80",
            "- {address: 10.0.0.7:80, wieght: 2}",
            "- {address: 10.0.0.7:80, weight: -1}",
            "- 10.0.0.7:80\n- {",
            "<html></html>",
            "\u{0}",
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?} was read");
        }
    }
}
