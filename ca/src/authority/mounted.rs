//! An issuing certificate that the user gives, for a mesh below an existing authority.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::Snapshot;
use super::signer::{SignError, Signer};
use super::state::fingerprint;
use super::storage::{Version, version_of};
use crate::unix_time::system_time;
use crate::{BundleError, CertificateError, TrustBundle};

/// The files, all PEM; read again when they change.
#[derive(Clone, Debug)]
pub struct MountedIssuer {
    /// The issuing certificate, then the intermediates between it and the root.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The root, or several.
    pub root: PathBuf,
}

/// Why the given issuer can't be used.
#[derive(Debug, thiserror::Error)]
pub enum MountedError {
    #[error("`{path}` can't be read: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the root in `{path}` can't be used: {source}")]
    Root { path: PathBuf, source: BundleError },
    #[error("the issuing certificate in `{path}` can't be used: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("the issuing key in `{path}` can't be used: {source}")]
    Key { path: PathBuf, source: rcgen::Error },
    #[error("nothing can be signed with the issuer in `{path}`: {source}")]
    Sign { path: PathBuf, source: SignError },
    #[error(
        "what the issuer in `{path}` signs is not valid under the given root: certificate, key and root must belong together ({source})"
    )]
    Chain { path: PathBuf, source: CertificateError },
}

pub(super) type MountedVersion = [Version; 3];

impl MountedIssuer {
    pub(super) fn version(&self) -> Option<MountedVersion> {
        Some([version_of(&self.certificate)?, version_of(&self.key)?, version_of(&self.root)?])
    }

    pub(super) fn load(
        &self,
        trust_domain: &str,
        backdate: Duration,
        now: SystemTime,
    ) -> Result<Snapshot, MountedError> {
        let bundle = TrustBundle::from_pem(&read(&self.root)?)
            .map_err(|source| MountedError::Root { path: self.root.clone(), source })?;
        let unusable = |reason: String| MountedError::Certificate { path: self.certificate.clone(), reason };
        let chain = CertificateDer::pem_slice_iter(&read(&self.certificate)?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let issuing = chain.first().ok_or_else(|| unusable("it holds no certificate".into()))?;
        let bad_key = |source| MountedError::Key { path: self.key.clone(), source };
        let key = String::from_utf8_lossy(&read(&self.key)?).into_owned();
        let key = KeyPair::from_pem(&key).map_err(bad_key)?;
        let issuer = Issuer::from_ca_cert_der(issuing, key).map_err(bad_key)?;
        let root = root_of(&chain, &bundle);
        // Peers have the roots; sending them costs bytes in each handshake. A root may be the issuer itself.
        let mut intermediates = chain;
        intermediates.retain(|certificate| !bundle.roots().contains(certificate));
        let mut not_after = expiry(&root).map_err(unusable)?;
        for certificate in &intermediates {
            not_after = not_after.min(expiry(certificate).map_err(unusable)?);
        }
        let signer = Signer {
            issuer,
            own_intermediates: intermediates.clone(),
            intermediates,
            root,
            not_after,
            backdate,
            trust_domain: trust_domain.into(),
        };
        // A trial signature shows whether certificate, key and root belong together.
        signer
            .own_certificate(&[], Duration::from_secs(60), now)
            .map_err(|source| MountedError::Sign { path: self.certificate.clone(), source })?
            .verify(&bundle, now)
            .map_err(|source| MountedError::Chain { path: self.certificate.clone(), source })?;
        let roots = bundle
            .roots()
            .iter()
            .map(|root| Ok((fingerprint(root), expiry(root).map_err(unusable)?)))
            .collect::<Result<_, MountedError>>()?;
        Ok(Snapshot { signer: Arc::new(signer), bundle, roots, next_change: None })
    }
}

/// The root that the end of the chain names as its issuer, or the first one.
fn root_of(chain: &[CertificateDer<'static>], bundle: &TrustBundle) -> CertificateDer<'static> {
    let wanted = chain
        .last()
        .and_then(|last| x509_parser::parse_x509_certificate(last).ok())
        .map(|(_, parsed)| parsed.issuer().as_raw().to_vec());
    let named = bundle.roots().iter().find(|root| {
        x509_parser::parse_x509_certificate(root)
            .is_ok_and(|(_, parsed)| Some(parsed.subject().as_raw()) == wanted.as_deref())
    });
    named.unwrap_or(&bundle.roots()[0]).clone()
}

fn read(path: &Path) -> Result<Vec<u8>, MountedError> {
    std::fs::read(path).map_err(|source| MountedError::Read { path: path.into(), source })
}

fn expiry(certificate: &CertificateDer<'_>) -> Result<SystemTime, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
    Ok(system_time(parsed.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::{Authority, Lifetimes, Storage};
    use super::*;

    const SCRIPT: &str = r#"
        set -e
        make() { # name, key options, issuer or nothing
            name=$1; shift
            openssl genpkey $1 -out $name.key
            openssl req -new -key $name.key -subj "/CN=$name" -out $name.csr
            if [ -n "$2" ]; then
                openssl x509 -req -in $name.csr -CA $2.pem -CAkey $2.key -days 30 -extfile ca.cnf -out $name.pem
            else
                openssl x509 -req -in $name.csr -signkey $name.key -days 30 -extfile ca.cnf -out $name.pem
            fi
        }
        printf 'basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n' > ca.cnf
        make root "-algorithm RSA -pkeyopt rsa_keygen_bits:2048"
        make between "-algorithm EC -pkeyopt ec_paramgen_curve:P-384" root
        make issuer "-algorithm RSA -pkeyopt rsa_keygen_bits:2048" between
        make other "-algorithm ED25519"
        cat issuer.pem between.pem > chain.pem
        cat root.pem other.pem > both.pem
    "#;

    fn made_by_openssl() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let output = Command::new("sh").args(["-c", SCRIPT]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        directory
    }

    fn files(directory: &Path, certificate: &str, key: &str, root: &str) -> MountedIssuer {
        MountedIssuer {
            certificate: directory.join(certificate),
            key: directory.join(key),
            root: directory.join(root),
        }
    }

    #[test]
    fn an_issuer_of_any_kind_signs_when_chain_key_and_root_belong_together() {
        let directory = made_by_openssl();
        let minute = Duration::from_secs(60);
        let now = SystemTime::now();
        let table = [
            ("chain.pem", "issuer.key", "root.pem", ""),
            ("chain.pem", "issuer.key", "both.pem", ""),
            ("other.pem", "other.key", "other.pem", ""),
            ("root.pem", "root.key", "root.pem", ""),
            ("chain.pem", "between.key", "root.pem", "belong together"),
            ("chain.pem", "issuer.key", "other.pem", "belong together"),
            ("issuer.pem", "issuer.key", "root.pem", "belong together"),
            ("chain.pem", "chain.pem", "root.pem", "issuing key"),
            ("chain.pem", "missing", "root.pem", "can't be read"),
            ("chain.pem", "issuer.key", "ca.cnf", "holds no certificate"),
        ];
        for (certificate, key, root, problem) in table {
            let files = files(directory.path(), certificate, key, root);
            match files.load("cluster.local", minute, now) {
                Ok(snapshot) => {
                    assert_eq!(problem, "", "{certificate} {key} {root}");
                    let own = snapshot.signer.own_certificate(&[], minute, now).unwrap();
                    own.verify(&snapshot.bundle, now).unwrap();
                }
                Err(error) => {
                    let error = error.to_string();
                    assert!(
                        !problem.is_empty() && error.contains(problem),
                        "{certificate} {key} {root}: {error}"
                    );
                }
            }
        }
    }

    #[test]
    fn replaced_files_are_taken_into_use_and_wrong_ones_are_not() {
        let directory = made_by_openssl();
        let path = |name: &str| directory.path().join(name);
        let storage = Storage::Mounted(files(directory.path(), "chain.pem", "issuer.key", "both.pem"));
        let now = SystemTime::now();
        let authority = Authority::open(&storage, "cluster.local", Lifetimes::default(), now).unwrap();
        let first = authority.snapshot(now);
        fs::copy(path("other.pem"), path("chain.pem")).unwrap();
        assert!(authority.snapshot(now).signer.same_key(&first.signer), "half replaced");
        fs::copy(path("other.key"), path("issuer.key")).unwrap();
        assert!(!authority.snapshot(now).signer.same_key(&first.signer));
    }
}
