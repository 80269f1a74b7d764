//! Certificate, key and trust bundle from files, replaced by whoever wrote them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{ForeignTrustDomain, Material, Publisher, check_trust_domain};
use crate::file_watch;
use crate::{BundleError, Certificate, CertificateError, TrustBundle};

/// Files that don't fit together yet, or a certificate that is not valid yet, may become good without
/// a change that could be seen.
const RETRY: Duration = Duration::from_secs(10);
/// At the start the files may be written this moment; and who waits for a first certificate is soon told what is wrong.
const FIRST_RETRIES: Duration = Duration::from_secs(1);

pub(super) struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub trust_bundle: PathBuf,
    pub trust_domain: Arc<str>,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(
        "there is no file {0}: put the certificate, its key and the trust bundle where --certificate, --key and \
         --trust-bundle say (`identity` in a config), or correct those"
    )]
    Missing(String),
    #[error("`{path}` can't be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{path}`: {source}")]
    Bundle { path: PathBuf, source: BundleError },
    #[error("`{path}` with the key `{key}`: {source}")]
    Certificate { path: PathBuf, key: PathBuf, source: Box<CertificateError> },
    #[error(transparent)]
    TrustDomain(#[from] ForeignTrustDomain),
}

pub(super) async fn run(files: Files, mut publisher: Publisher) {
    let watched = [&files.certificate, &files.key, &files.trust_bundle];
    let mut changes = match file_watch::watch(watched.map(PathBuf::clone)) {
        Ok(changes) => changes,
        Err(error) => return publisher.failed(error.to_string()),
    };
    loop {
        let retry = match files.load() {
            Ok(material) => {
                if changed(publisher.material(), &material) {
                    publisher.publish(material, None);
                } else {
                    publisher.succeeded();
                }
                None
            }
            Err(error) => {
                publisher.failed(error.to_string());
                Some(if publisher.may_be_starting() { FIRST_RETRIES } else { RETRY })
            }
        };
        tokio::select! {
            () = publisher.abandoned() => return,
            _ = changes.recv() => {}
            () = tokio::time::sleep(retry.unwrap_or_default()), if retry.is_some() => {}
        }
    }
}

fn changed(old: Option<&Arc<Material>>, new: &Material) -> bool {
    old.is_none_or(|old| old.bundle != new.bundle || old.certificate.chain() != new.certificate.chain())
}

impl Files {
    fn load(&self) -> Result<Material, FileError> {
        let all = [&self.certificate, &self.key, &self.trust_bundle];
        let missing: Vec<String> = all
            .into_iter()
            .filter(|path| matches!(path.try_exists(), Ok(false)))
            .map(|path| format!("`{}`", path.display()))
            .collect();
        if !missing.is_empty() {
            return Err(FileError::Missing(missing.join(", ")));
        }
        let bundle = TrustBundle::from_pem(&read(&self.trust_bundle)?)
            .map_err(|source| FileError::Bundle { path: self.trust_bundle.clone(), source })?;
        let refused = |source: CertificateError| FileError::Certificate {
            path: self.certificate.clone(),
            key: self.key.clone(),
            source: Box::new(source),
        };
        let certificate =
            Certificate::from_pem(&read(&self.certificate)?, &read(&self.key)?).map_err(refused)?;
        check_trust_domain(&certificate, &self.trust_domain)?;
        certificate.verify(&bundle, SystemTime::now()).map_err(refused)?;
        Ok(Material { certificate, bundle })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    std::fs::read(path).map_err(|source| FileError::Read { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::watch;

    use crate::authority::testing;
    use crate::workload::{Source, Status, keep};

    use super::*;

    async fn until(
        receiver: &mut watch::Receiver<Arc<Status>>,
        condition: impl FnMut(&Arc<Status>) -> bool,
    ) -> Arc<Status> {
        tokio::time::timeout(Duration::from_secs(30), receiver.wait_for(condition))
            .await
            .unwrap()
            .unwrap()
            .clone()
    }

    #[tokio::test]
    async fn files_are_followed_and_what_does_not_fit_together_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (root, root_key, root_pem) = testing::root_with_key("root");
        let write = |leaf: &str, key: &str| {
            fs::write(path("key"), key).unwrap();
            fs::write(path("cert"), leaf).unwrap();
        };
        let (leaf, key) = testing::leaf(&root, &root_key, |_| {});
        write(&leaf, &key);
        let source =
            Source::Files { certificate: path("cert"), key: path("key"), trust_bundle: path("roots") };
        let mut receiver = keep(source, "cluster.local");
        let missing = until(&mut receiver, |status| status.last_error.is_some()).await;
        let error = missing.last_error.as_ref().unwrap();
        assert!(error.contains(&*path("roots").to_string_lossy()) && !error.contains("/cert"), "{error}");
        fs::write(path("roots"), &root_pem).unwrap();
        let first = until(&mut receiver, |status| status.material.is_some()).await;
        assert_eq!((first.last_error.as_ref(), first.renewals), (None, 0));
        let serial = |status: &Status| status.material.as_ref().unwrap().certificate.serial().to_owned();

        let (second_leaf, second_key) = testing::leaf(&root, &root_key, |_| {});
        fs::write(path("cert"), &second_leaf).unwrap();
        let half = until(&mut receiver, |status| status.last_error.is_some()).await;
        assert_eq!(serial(&half), serial(&first));
        fs::write(path("key"), &second_key).unwrap();
        let second = until(&mut receiver, |status| status.renewals == 1).await;
        assert_ne!(serial(&second), serial(&first));
        assert_eq!(second.last_error, None);

        fs::write(path("roots"), testing::root("other")).unwrap();
        let wrong = until(&mut receiver, |status| status.last_error.is_some()).await;
        assert!(wrong.last_error.as_ref().unwrap().contains("does not chain"), "{wrong:?}");
        assert_eq!(wrong.material.as_ref().unwrap().bundle, first.material.as_ref().unwrap().bundle);

        fs::write(path("roots"), root_pem.clone() + &testing::root("other")).unwrap();
        let both = until(&mut receiver, |status| status.last_error.is_none()).await;
        assert_eq!(both.material.as_ref().unwrap().bundle.roots().len(), 2);
        assert_eq!(both.renewals, 1, "new roots are no new certificate");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_missing_is_named_as_a_whole_and_looked_for_again_soon() {
        let nowhere = PathBuf::from("/nowhere");
        let path = |name: &str| nowhere.join(name);
        let source =
            Source::Files { certificate: path("cert"), key: path("key"), trust_bundle: path("roots") };
        let began = tokio::time::Instant::now();
        let mut receiver = keep(source, "cluster.local");
        let missing = until(&mut receiver, |status| status.failures == 3).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        let error = missing.last_error.as_ref().unwrap();
        assert!(error.contains("`/nowhere/cert`, `/nowhere/key`, `/nowhere/roots`"), "{error}");
        assert!(error.contains("--certificate, --key and --trust-bundle"), "{error}");
        until(&mut receiver, |status| status.failures == 4).await;
        assert!(began.elapsed() >= RETRY, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_certificate_of_another_trust_domain_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let (root, root_key, root_pem) = testing::root_with_key("root");
        let (leaf, key) = testing::leaf(&root, &root_key, |_| {});
        for (name, content) in [("cert", leaf), ("key", key), ("roots", root_pem)] {
            fs::write(path(name), content).unwrap();
        }
        let source =
            Source::Files { certificate: path("cert"), key: path("key"), trust_bundle: path("roots") };
        let mut receiver = keep(source, "example.org");
        let refused = until(&mut receiver, |status| status.last_error.is_some()).await;
        assert!(refused.material.is_none());
        let error = refused.last_error.as_ref().unwrap();
        assert!(error.contains("example.org"), "{error}");
    }
}
