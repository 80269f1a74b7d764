//! Certificates for tests of this crate.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, Issuer, KeyPair};

use super::issue::{authority_params, workload_params};
use crate::SpiffeId;

const HOUR: Duration = Duration::from_secs(3600);

fn root_params(name: &str) -> CertificateParams {
    let now = SystemTime::now();
    authority_params(name, "cluster.local", true, now - HOUR, now + HOUR)
}

/// A self-signed root, PEM.
pub(crate) fn root(name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    root_params(name).self_signed(&key).unwrap().pem()
}

/// A workload's certificate and its key, PEM, whose root nobody has.
pub(crate) fn leaf_of_nobody() -> (String, String) {
    let root_key = KeyPair::generate().unwrap();
    leaf(&root_params("nobody"), &root_key, |_| {})
}

/// A workload's certificate and its key, PEM, bent by `change`.
pub(crate) fn leaf(
    root: &CertificateParams,
    root_key: &KeyPair,
    change: impl FnOnce(&mut CertificateParams),
) -> (String, String) {
    let now = SystemTime::now();
    let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
    let mut params = workload_params(&id, &[], now - HOUR, now + HOUR).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::from_params(root, root_key);
    let leaf = params.signed_by(&key, &issuer).unwrap();
    (leaf.pem(), key.serialize_pem())
}

/// A root with its parameters and key, and the root as PEM.
pub(crate) fn root_with_key(name: &str) -> (CertificateParams, KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let params = root_params(name);
    let pem = params.self_signed(&key).unwrap().pem();
    (params, key, pem)
}
