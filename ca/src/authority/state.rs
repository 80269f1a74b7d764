//! The generations of root and issuer, and when each of them counts.
//!
//! A rotation only adds a generation and writes down two times, so it can't be half done, and every CA
//! that reads the same record follows the same schedule: the new root is trusted at once, signs from
//! `signs_from`, and the old one is trusted until the longest certificate below it has ended. The new root
//! is also signed by the old one, so that its chains verify at peers that have only the old root.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{Issuer, KeyPair};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::issue::{authority_params, whole_seconds};
use super::signer::{SignError, Signer};
use super::{Lifetimes, RootReport, Snapshot};
use crate::certificate::hexadecimal;
use crate::unix_time::{rfc3339, system_time, unix_seconds};
use crate::{BundleError, CertificateError, TrustBundle};

const VERSION: u32 = 1;
/// Ways back to roots of long ago that the CA still presents; each costs half a kilobyte a handshake.
const LONGEST_WAY_BACK: usize = 4;

/// Where a root is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// In the bundle, so that peers learn it; signs nothing yet.
    Spreading,
    /// Signs all new certificates.
    Signing,
    /// Signs nothing any more; still trusted for what it signed.
    Retiring,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Spreading => "spreading",
            Self::Signing => "signing",
            Self::Retiring => "retiring",
        })
    }
}

/// Why the recorded state can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("the CA's state can't be read: {0}")]
    Json(#[from] serde_json::Error),
    #[error(
        "the CA's state has version {0}, and this program knows version {VERSION}: use the program that wrote it"
    )]
    Version(u32),
    #[error("the CA's state holds no root that signs")]
    NoSigner,
    #[error("a certificate in the CA's state can't be read: {0}")]
    Certificate(String),
    #[error("key or certificate of the CA could not be made or read: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the CA's roots make no trust bundle: {0}")]
    Bundle(#[from] BundleError),
    #[error("the issuer does not work: {0}")]
    Sign(#[from] SignError),
    #[error("the issuer does not chain to its root: {0}")]
    Chain(#[from] CertificateError),
}

/// Why no rotation can start.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error("a rotation is under way: the new root signs from {0}; start the next one after that")]
    UnderWay(String),
    #[error(transparent)]
    State(#[from] StateError),
}

/// A root with its issuer. Times are seconds since 1970.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Generation {
    root: String,
    root_key: String,
    issuer: String,
    issuer_key: String,
    /// This root, signed by the one before; then that one, signed by the one before it; and so on.
    way_back: Vec<String>,
    signs_from: u64,
    trusted_until: Option<u64>,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct State {
    version: u32,
    trust_domain: String,
    /// The longest lifetime, in seconds, that any CA on this state was ever told to give a certificate.
    longest_lifetime: u64,
    /// Oldest first.
    generations: Vec<Generation>,
}

impl State {
    pub fn new(trust_domain: &str, lifetimes: Lifetimes, now: SystemTime) -> Result<Self, StateError> {
        let first = Generation::new(trust_domain, lifetimes.root, None, now, unix_seconds(now))?;
        Ok(Self {
            version: VERSION,
            trust_domain: trust_domain.into(),
            longest_lifetime: lifetimes.certificate.as_secs(),
            generations: vec![first],
        })
    }

    pub fn from_json(json: &[u8]) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct VersionOnly {
            version: u32,
        }
        let VersionOnly { version } = serde_json::from_slice(json)?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        Ok(serde_json::from_slice(json)?)
    }

    pub fn to_json(&self) -> Result<Vec<u8>, StateError> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// Notes the lifetime that a CA is about to give out. Says whether that changed anything.
    pub fn note_lifetime(&mut self, lifetime: Duration) -> bool {
        let changed = lifetime.as_secs() > self.longest_lifetime;
        self.longest_lifetime = self.longest_lifetime.max(lifetime.as_secs());
        changed
    }

    pub fn rotate(
        &mut self,
        spread: Duration,
        root_lifetime: Duration,
        now: SystemTime,
    ) -> Result<(), RotateError> {
        self.prune(now);
        let last = self.generations.last_mut().ok_or(StateError::NoSigner)?;
        if last.signs_from > unix_seconds(now) {
            return Err(RotateError::UnderWay(rfc3339(last.signs_from)));
        }
        let signs_from = unix_seconds(now + spread);
        let next = Generation::new(&self.trust_domain, root_lifetime, Some(last), now, signs_from)?;
        last.trusted_until = Some(signs_from + self.longest_lifetime);
        self.generations.push(next);
        Ok(())
    }

    /// Drops the generations that nothing valid hangs on. Says whether there were any.
    pub fn prune(&mut self, now: SystemTime) -> bool {
        let before = self.generations.len();
        self.generations.retain(|generation| generation.trusted(unix_seconds(now)));
        before != self.generations.len()
    }

    fn signing(&self, now: u64) -> Option<usize> {
        self.generations.iter().rposition(|generation| generation.signs_from <= now)
    }

    pub fn bundle(&self, now: SystemTime) -> Result<TrustBundle, StateError> {
        let roots = self
            .generations
            .iter()
            .filter(|generation| generation.trusted(unix_seconds(now)))
            .map(|generation| certificate(&generation.root))
            .collect::<Result<_, _>>()?;
        Ok(TrustBundle::from_roots(roots)?)
    }

    pub fn snapshot(&self, backdate: Duration, now: SystemTime) -> Result<Snapshot, StateError> {
        let bundle = self.bundle(now)?;
        let index = self.signing(unix_seconds(now)).ok_or(StateError::NoSigner)?;
        let older_trusted = self.generations[..index]
            .iter()
            .filter(|generation| generation.trusted(unix_seconds(now)))
            .count();
        let signer = self.generations[index].signer(&self.trust_domain, older_trusted, backdate)?;
        // Nothing that fails at a client may be taken into use here.
        signer
            .own_certificate(&[], Duration::from_secs(self.longest_lifetime.max(60)), now)?
            .verify(&bundle, now)?;
        let next_change = self
            .generations
            .iter()
            .flat_map(|generation| [Some(generation.signs_from), generation.trusted_until])
            .flatten()
            .filter(|&time| time > unix_seconds(now))
            .min()
            .map(|time| UNIX_EPOCH + Duration::from_secs(time));
        let roots = bundle
            .roots()
            .iter()
            .map(|root| Ok((fingerprint(root), not_after(root)?)))
            .collect::<Result<_, StateError>>()?;
        Ok(Snapshot { signer: Arc::new(signer), bundle, roots, next_change })
    }

    pub fn report(&self, now: SystemTime) -> Result<Vec<RootReport>, StateError> {
        let signing = self.signing(unix_seconds(now));
        let trusted = self
            .generations
            .iter()
            .enumerate()
            .filter(|(_, generation)| generation.trusted(unix_seconds(now)));
        trusted
            .map(|(index, generation)| {
                let root = certificate(&generation.root)?;
                Ok(RootReport {
                    fingerprint: fingerprint(&root),
                    phase: match Some(index).cmp(&signing) {
                        std::cmp::Ordering::Less => Phase::Retiring,
                        std::cmp::Ordering::Equal => Phase::Signing,
                        std::cmp::Ordering::Greater => Phase::Spreading,
                    },
                    signs_from: rfc3339(generation.signs_from),
                    trusted_until: generation.trusted_until.map(rfc3339),
                    not_after: rfc3339(unix_seconds(not_after(&root)?)),
                })
            })
            .collect()
    }
}

impl Generation {
    fn new(
        trust_domain: &str,
        lifetime: Duration,
        before: Option<&Self>,
        now: SystemTime,
        signs_from: u64,
    ) -> Result<Self, StateError> {
        // Peers whose clock is behind must accept a root that is handed out at once.
        let not_before = whole_seconds(now - Duration::from_secs(3600));
        let not_after = whole_seconds(now + lifetime);
        // Two roots must not share a name: a verifier would take one's certificates for the other's.
        let suffix: u32 = rand::random();
        let authority = |kind: &str, is_root| {
            let name = format!("Outrigger {kind} {suffix:08x}");
            authority_params(&name, trust_domain, is_root, not_before, not_after)
        };
        let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let issuer_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let root_params = authority("root", true);
        let root = root_params.self_signed(&root_key)?;
        let issuer = authority("issuer", false)
            .signed_by(&issuer_key, &Issuer::from_params(&root_params, &root_key))?;
        let mut way_back = Vec::new();
        if let Some(before) = before {
            let older = Issuer::from_ca_cert_pem(&before.root, KeyPair::from_pem(&before.root_key)?)?;
            let cross = authority("root", true).signed_by(&root_key, &older)?;
            way_back.push(cross.pem());
            way_back.extend(before.way_back.iter().take(LONGEST_WAY_BACK - 1).cloned());
        }
        Ok(Self {
            root: root.pem(),
            root_key: root_key.serialize_pem(),
            issuer: issuer.pem(),
            issuer_key: issuer_key.serialize_pem(),
            way_back,
            signs_from,
            trusted_until: None,
        })
    }

    fn trusted(&self, now: u64) -> bool {
        self.trusted_until.is_none_or(|until| now < until)
    }

    fn signer(
        &self,
        trust_domain: &str,
        older_trusted: usize,
        backdate: Duration,
    ) -> Result<Signer, StateError> {
        let root = certificate(&self.root)?;
        let issuer_certificate = certificate(&self.issuer)?;
        let mut not_after = not_after(&issuer_certificate)?.min(not_after(&root)?);
        if let Some(until) = self.trusted_until {
            not_after = not_after.min(UNIX_EPOCH + Duration::from_secs(until));
        }
        let way_back = self.way_back.iter().map(|pem| certificate(pem)).collect::<Result<Vec<_>, _>>()?;
        let mut own_intermediates = vec![issuer_certificate];
        own_intermediates.extend(way_back);
        let mut intermediates = own_intermediates.clone();
        intermediates.truncate(1 + older_trusted);
        Ok(Signer {
            issuer: Issuer::from_ca_cert_pem(&self.issuer, KeyPair::from_pem(&self.issuer_key)?)?,
            intermediates,
            own_intermediates,
            root,
            not_after,
            backdate,
            trust_domain: trust_domain.into(),
        })
    }
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, StateError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| StateError::Certificate(error.to_string()))
}

fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, StateError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| StateError::Certificate(error.to_string()))?;
    Ok(system_time(parsed.validity().not_after.timestamp()))
}

pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    hexadecimal(&Sha256::digest(certificate))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Certificate, SpiffeId};

    const SECOND: Duration = Duration::from_secs(1);
    const SPREAD: Duration = Duration::from_secs(20);

    fn lifetimes() -> Lifetimes {
        Lifetimes {
            certificate: Duration::from_secs(60),
            root: Duration::from_secs(24 * 3600),
            backdate: Duration::from_secs(2),
        }
    }

    fn issue(state: &State, now: SystemTime) -> Certificate {
        let signer = state.snapshot(lifetimes().backdate, now).unwrap().signer;
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let key = KeyPair::generate().unwrap();
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let public = rcgen::SubjectPublicKeyInfo::from_der(&public).unwrap();
        let chain = signer.sign(&id, &public, lifetimes().certificate, now).unwrap();
        Certificate::from_pem(
            chain.iter().map(|c| to_pem(c)).collect::<String>().as_bytes(),
            key.serialize_pem().as_bytes(),
        )
        .unwrap()
    }

    use crate::bundle::to_pem;

    /// Two rotations, a minute of certificate life, and peers whose bundle is up to the spread old.
    #[test]
    fn no_living_certificate_is_ever_refused_by_a_peer_that_lags_less_than_the_spread() {
        let start = whole_seconds(SystemTime::now());
        let mut state = State::new("cluster.local", lifetimes(), start).unwrap();
        let first_root = state.bundle(start).unwrap();
        let mut bundles = Vec::new();
        let mut living: Vec<Certificate> = Vec::new();
        let mut roots_seen = Vec::new();
        for second in 0..240 {
            let now = start + second * SECOND;
            if second == 10 || second == 40 {
                state.rotate(SPREAD, lifetimes().root, now).unwrap();
            }
            bundles.push(state.bundle(now).unwrap());
            roots_seen.push(bundles.last().unwrap().roots().len());
            if second % 3 == 0 {
                living.push(issue(&state, now));
            }
            living.retain(|certificate| certificate.not_after() > now);
            for certificate in &living {
                for lag in [0, 7, 19] {
                    let bundle = &bundles[(second as usize).saturating_sub(lag)];
                    let verdict = certificate.verify(bundle, now);
                    assert!(verdict.is_ok(), "second {second}, lag {lag}: {verdict:?}");
                }
                // Until the old root is dropped (10 + 20 + 60), not even news of the new one is needed.
                if second < 90 {
                    let verdict = certificate.verify(&first_root, now);
                    assert!(verdict.is_ok(), "second {second}, first root: {verdict:?}");
                }
            }
        }
        assert_eq!(roots_seen.iter().max(), Some(&3));
        assert_eq!(roots_seen.last(), Some(&1));
        assert!(!bundles.last().unwrap().roots().contains(&first_root.roots()[0]));
        let own = state
            .snapshot(lifetimes().backdate, start + 239 * SECOND)
            .unwrap()
            .signer
            .own_certificate(&[], lifetimes().certificate, start + 239 * SECOND)
            .unwrap();
        let verdict = own.verify(&first_root, start + 239 * SECOND);
        assert!(verdict.is_ok(), "a client that slept through both rotations: {verdict:?}");
    }

    #[test]
    fn the_phases_follow_the_clock_and_a_second_rotation_waits() {
        let start = whole_seconds(SystemTime::now());
        let mut state = State::new("cluster.local", lifetimes(), start).unwrap();
        state.rotate(SPREAD, lifetimes().root, start).unwrap();
        let error = state.rotate(SPREAD, lifetimes().root, start + SECOND).unwrap_err();
        assert!(matches!(error, RotateError::UnderWay(_)), "{error}");
        use Phase::{Retiring, Signing, Spreading};
        let table = [
            (0, vec![Signing, Spreading]),
            (19, vec![Signing, Spreading]),
            (20, vec![Retiring, Signing]),
            (79, vec![Retiring, Signing]),
            (80, vec![Signing]),
        ];
        for (second, phases) in table {
            let report = state.report(start + second * SECOND).unwrap();
            let found: Vec<_> = report.iter().map(|root| root.phase).collect();
            assert_eq!(found, phases, "second {second}");
        }
    }

    #[test]
    fn a_certificate_ends_before_its_root_leaves_the_bundle() {
        let start = whole_seconds(SystemTime::now());
        let mut state = State::new("cluster.local", lifetimes(), start).unwrap();
        state.rotate(SPREAD, lifetimes().root, start).unwrap();
        let now = start + 19 * SECOND;
        let signer = state.snapshot(SECOND, now).unwrap().signer;
        let own = signer.own_certificate(&[], Duration::from_secs(3600), now).unwrap();
        assert_eq!(own.not_after(), start + 80 * SECOND);
    }

    #[test]
    fn what_is_dropped_is_gone_with_its_key() {
        let start = whole_seconds(SystemTime::now());
        let mut state = State::new("cluster.local", lifetimes(), start).unwrap();
        let old_key = state.generations[0].root_key.clone();
        state.rotate(SPREAD, lifetimes().root, start).unwrap();
        assert!(!state.prune(start + 79 * SECOND));
        assert!(state.prune(start + 80 * SECOND));
        let json = String::from_utf8(state.to_json().unwrap()).unwrap();
        let secret = serde_json::to_string(&old_key).unwrap();
        assert!(!json.contains(secret.trim_matches('"')));
    }

    #[test]
    fn a_state_of_another_version_or_shape_is_refused() {
        for (json, text) in [
            ("{}", "version"),
            ("{\"version\": 2}", "has version 2"),
            ("{\"version\": 1, \"x\": 1}", "can't be read"),
            ("", "can't be read"),
        ] {
            let error = State::from_json(json.as_bytes()).err().unwrap().to_string();
            assert!(error.contains(text), "{json}: {error}");
        }
    }
}
