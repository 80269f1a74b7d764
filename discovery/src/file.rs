//! Services out of a YAML file that is watched.
//!
//! ```yaml
//! services:
//!   - name: api                     # api.shop.svc.cluster.local
//!     namespace: shop
//!     vips: [10.96.0.7]             # left out: the name has the addresses of the endpoints
//!     ports:
//!       - port: 8080                # what callers dial
//!         targetPort: 80            # what the endpoints listen on; left out: the same
//!         opaque: false             # true: bytes are carried as they are
//!     endpoints:
//!       - address: 10.77.0.3
//!         serviceAccount: api       # the account in its certificate; needed where there is a sidecar
//!         mesh: true                # has a sidecar; left out: true
//!         unmeshedPorts: [9090]     # ports that its sidecar leaves alone
//!         zone: a
//!         weight: 1                 # 1 to 65535; left out: 1
//!     timeout: 3s                   # policy of the service's owner, for callers' sidecars
//!     retries: 1                    # at most 3
//! ```
//!
//! A file with any error is refused as a whole, with the line, and what was read before stays in force.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use outrigger_ca::file_watch::{self, WatchError};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;
use tokio::sync::mpsc;

use crate::Directory;
use crate::records::{DURATION, parse_timeout};
use crate::services::{Endpoint, Fault, Port, Service, Services};

/// Why a file gives no services.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("the services file `{path}` can't be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}:{line}: {message}")]
    Content { path: PathBuf, line: u64, message: String },
    #[error(transparent)]
    Watch(#[from] WatchError),
}

/// A file whose services are in force, and stay in force as it changes while it is followed.
pub struct ServicesFile {
    path: PathBuf,
    directory: Directory,
    changes: mpsc::Receiver<()>,
}

impl ServicesFile {
    /// Reads the file and puts its services in force. Needs a tokio runtime.
    pub fn open(path: PathBuf, directory: Directory) -> Result<Self, FileError> {
        // Watched before it is read, so that no change falls between the two.
        let changes = file_watch::watch([path.clone()])?;
        let file = Self { path, directory, changes };
        file.load()?;
        Ok(file)
    }

    /// Puts changes in force as they come, without end. A file that became wrong is logged, and changes nothing.
    pub async fn follow(mut self) {
        while self.changes.recv().await.is_some() {
            if let Err(error) = self.load() {
                tracing::error!(%error, "the services file is refused; what was read before stays in force");
            }
        }
    }

    fn load(&self) -> Result<(), FileError> {
        let path = &self.path;
        let text =
            fs::read_to_string(path).map_err(|source| FileError::Read { path: path.clone(), source })?;
        let services = read(&text, path)?;
        self.directory.replace(&services);
        let services = services.as_slice();
        let endpoints: usize = services.iter().map(|service| service.endpoints.len()).sum();
        tracing::info!(file = %path.display(), services = services.len(), endpoints, "services taken over");
        Ok(())
    }
}

/// Reads and checks services.
fn read(text: &str, path: &Path) -> Result<Services, FileError> {
    let refused = |line, message| FileError::Content { path: path.to_owned(), line, message };
    // An empty file is one that somebody is just writing anew; taken at its word it would end every service.
    if text.trim().is_empty() {
        return Err(refused(1, "the file is empty: for no services write `services: []`".into()));
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map_or(1, |location| location.line().max(1));
        refused(line, error.without_snippet().to_string())
    })?;
    let services = file.services.iter().map(|entry| entry.value.service()).collect();
    Services::new(services).map_err(|fault| refused(file.line(&fault), fault.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    services: Vec<Spanned<ServiceEntry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ServiceEntry {
    name: String,
    namespace: String,
    #[serde(default)]
    vips: Vec<IpAddr>,
    #[serde(default)]
    ports: Vec<PortEntry>,
    #[serde(default)]
    endpoints: Vec<Spanned<EndpointEntry>>,
    #[serde(default, deserialize_with = "timeout")]
    timeout: Option<Duration>,
    retries: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PortEntry {
    port: u16,
    target_port: Option<u16>,
    #[serde(default)]
    opaque: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct EndpointEntry {
    address: IpAddr,
    service_account: Option<String>,
    #[serde(default = "meshed")]
    mesh: bool,
    #[serde(default)]
    unmeshed_ports: Vec<u16>,
    zone: Option<String>,
    #[serde(default = "one")]
    weight: u16,
}

/// Who forgets to say so must not lose mutual TLS by it.
fn meshed() -> bool {
    true
}

fn one() -> u16 {
    1
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match parse_timeout(&text) {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(serde::de::Error::custom(format!("`{text}` is no duration: {DURATION}"))),
    }
}

impl File {
    fn line(&self, fault: &Fault) -> u64 {
        let service = &self.services[fault.service];
        match fault.endpoint {
            Some(endpoint) => service.value.endpoints[endpoint].referenced.line(),
            None => service.referenced.line(),
        }
    }
}

impl ServiceEntry {
    fn service(&self) -> Service {
        let port = |entry: &PortEntry| Port {
            port: entry.port,
            target_port: entry.target_port.unwrap_or(entry.port),
            opaque: entry.opaque,
        };
        let endpoint = |entry: &EndpointEntry| Endpoint {
            address: entry.address,
            service_account: entry.service_account.clone(),
            mesh: entry.mesh,
            unmeshed_ports: entry.unmeshed_ports.clone(),
            zone: entry.zone.clone(),
            weight: entry.weight,
        };
        Service {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            vips: self.vips.clone(),
            ports: self.ports.iter().map(port).collect(),
            endpoints: self.endpoints.iter().map(|entry| endpoint(&entry.value)).collect(),
            timeout: self.timeout,
            retries: self.retries,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{ClusterDomain, testing};

    const FILE: &str = "\
services:
  - name: api
    namespace: shop
    vips: [10.96.0.7, fd00::7]
    ports: [{port: 8080, targetPort: 80}, {port: 6000, opaque: true}]
    endpoints:
      - {address: 10.77.0.3, serviceAccount: api, unmeshedPorts: [9090], zone: a, weight: 3}
      - {address: 10.77.0.4, mesh: false}
    timeout: 3s
    retries: 1
  - {name: empty, namespace: shop}
";

    fn refused(text: &str) -> String {
        read(text, Path::new("services.yaml")).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_read_with_its_defaults() {
        let services = read(FILE, Path::new("services.yaml")).unwrap();
        let services = services.as_slice();
        let mut api = testing::service("api", "10.96.0.7");
        api.vips.push("fd00::7".parse().unwrap());
        api.ports = vec![
            Port { port: 8080, target_port: 80, opaque: false },
            Port { port: 6000, target_port: 6000, opaque: true },
        ];
        let mut first = testing::endpoint("10.77.0.3");
        first.unmeshed_ports = vec![9090];
        first.zone = Some("a".into());
        first.weight = 3;
        let mut second = testing::endpoint("10.77.0.4");
        second.service_account = None;
        second.mesh = false;
        api.endpoints = vec![first, second];
        api.timeout = Some(Duration::from_secs(3));
        api.retries = Some(1);
        assert_eq!(services[0], api);
        assert_eq!(services.len(), 2);
        assert!(services[1].ports.is_empty() && services[1].endpoints.is_empty());
    }

    #[test]
    fn errors_say_the_line() {
        for (text, expected) in [
            ("", "services.yaml:1: the file is empty"),
            ("services: [", "services.yaml:"),
            ("servces: []", "services.yaml:1: "),
            (&FILE.replace("address: 10.77.0.4", "address: 10.77.0.400"), "services.yaml:8: "),
            (&FILE.replace("zone: a", "zon: a"), "services.yaml:7: "),
            (&FILE.replace("timeout: 3s", "timeout: 3"), "services.yaml:9: "),
            (&FILE.replace("port: 6000", "port: 66000"), "services.yaml:5: "),
            (&FILE.replace("10.77.0.4", "127.0.0.1"), "services.yaml:8: 127.0.0.1 is no address"),
            (
                &FILE.replace("name: empty", "name: api"),
                "services.yaml:11: service `api.shop` is there twice",
            ),
        ] {
            let error = refused(text);
            assert!(error.starts_with(expected), "{error:?} should start with {expected:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_became_wrong_changes_nothing() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("services.yaml");
        fs::write(&path, FILE).unwrap();
        let directory = Directory::new(ClusterDomain::new("cluster.local").unwrap());
        let file = ServicesFile::open(path.clone(), directory.clone()).unwrap();
        let before = directory.in_force();
        let wrong_at_the_end = FILE.replace("10.96.0.7", "10.96.0.8") + "  - {name: more}\n";
        for wrong in ["", "services: [", &wrong_at_the_end] {
            fs::write(&path, wrong).unwrap();
            file.load().unwrap_err();
        }
        fs::remove_file(&path).unwrap();
        file.load().unwrap_err();
        assert!(Arc::ptr_eq(&before, &directory.in_force()));
        fs::write(&path, FILE).unwrap();
        file.load().unwrap();
        assert!(!Arc::ptr_eq(&before, &directory.in_force()));
    }
}
