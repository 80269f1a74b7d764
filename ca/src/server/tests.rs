//! The server over real sockets, asked by the real client.

use std::fs;
use std::process::Command;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use tempfile::TempDir;
use x509_parser::prelude::*;

use super::*;
use crate::bundle::to_pem;
use crate::tokens::signed;
use crate::workload::{self, CaOptions, Source};
use crate::{CA_ACCOUNT, SpiffeId, TrustBundle, authority, client, tokens};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A CA that runs until this is dropped, with one token, for `WEB`.
struct TestCa {
    directory: TempDir,
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl TestCa {
    async fn start() -> Self {
        Self::start_with(None).await
    }

    async fn start_with(key_set: Option<serde_json::Value>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let list = format!("- {{sha256: {}, identity: \"{WEB}\"}}", tokens::hash("secret"));
        fs::write(directory.path().join("tokens.yaml"), list).unwrap();
        fs::write(directory.path().join("token"), "secret\n").unwrap();
        if let Some(keys) = key_set {
            fs::write(directory.path().join("jwks.json"), keys.to_string()).unwrap();
        }
        let (address, task) = run_on(directory.path(), "127.0.0.1:0".parse().unwrap()).await;
        Self { directory, address, task }
    }

    fn options(&self) -> CaOptions {
        CaOptions::new(self.address.to_string(), self.directory.path().join("token"))
    }

    fn bundle(&self) -> TrustBundle {
        authority::bundle(&self.directory.path().join("ca"), SystemTime::now()).unwrap()
    }
}

impl Drop for TestCa {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run_on(
    directory: &std::path::Path,
    address: SocketAddr,
) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let server = Server::bind(options(directory, address)).await.unwrap();
    let address = server.local_address().unwrap();
    (address, tokio::spawn(server.serve(std::future::pending())))
}

fn options(directory: &std::path::Path, address: SocketAddr) -> Options {
    Options {
        listen: address,
        storage: Storage::Directory(directory.join("ca")),
        trust_domain: "cluster.local".into(),
        dns_names: vec!["localhost".into()],
        lifetimes: Lifetimes { certificate: Duration::from_secs(60), ..Lifetimes::default() },
        tokens: TokenOptions {
            list: Some(directory.join("tokens.yaml")),
            key_set: Some(directory.join("jwks.json")).filter(|file| file.exists()).map(signed::options),
        },
        metrics: None,
    }
}

fn ca_id() -> SpiffeId {
    SpiffeId::new("cluster.local", CA_ACCOUNT.0, CA_ACCOUNT.1).unwrap()
}

async fn certify(ca: &TestCa, csr: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    client::certify(&ca.options(), &ca.bundle(), &ca_id(), csr.into())
        .await
        .map_err(|error| error.to_string())
}

fn greedy_request() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["root.example".to_owned()]).unwrap();
    let own = "spiffe://cluster.local/ns/outrigger/sa/outrigger-ca";
    params.subject_alt_names.push(SanType::URI(own.try_into().unwrap()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, csr)
}

#[tokio::test]
async fn the_ca_s_own_certificate_has_one_spiffe_id_and_its_dns_names_if_its_issuer_may_sign_them() {
    let names_of = |certificate: &Certificate| {
        let (_, leaf) = X509Certificate::from_der(&certificate.chain()[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
        names.map(ToString::to_string).collect::<Vec<_>>()
    };
    let id = format!("URI({})", ca_id());
    let ca = TestCa::start().await;
    let own = |storage: Storage| {
        let lifetimes = Lifetimes::default();
        let authority = Authority::open(&storage, "cluster.local", lifetimes, SystemTime::now()).unwrap();
        let now = SystemTime::now();
        let names = vec!["localhost".to_owned(), "ca.example".into()];
        let own = OwnCertificate::new(authority.snapshot(now).signer.clone(), names, lifetimes, now).unwrap();
        names_of(&own.current.load().certificate)
    };
    let directory = Storage::Directory(ca.directory.path().join("ca"));
    assert_eq!(own(directory), [id.as_str(), "DNSName(localhost)", "DNSName(ca.example)"]);

    let constrained = issuer_for_other_names(ca.directory.path());
    assert_eq!(own(Storage::Mounted(constrained)), [id]);
}

/// A root, and an issuer below it that may sign names under `other.example` only.
fn issuer_for_other_names(directory: &std::path::Path) -> authority::MountedIssuer {
    let write = |name: &str, text: String| {
        let file = directory.join(name);
        fs::write(&file, text).unwrap();
        file
    };
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(rcgen::DnType::CommonName, "root");
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = params.self_signed(&root_key).unwrap();
    let above = rcgen::Issuer::from_params(&params, &root_key);
    let mut below = params.clone();
    below.distinguished_name.push(rcgen::DnType::CommonName, "issuer");
    below.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("other.example".into())],
        excluded_subtrees: Vec::new(),
    });
    let issuer = below.signed_by(&key, &above).unwrap();
    authority::MountedIssuer {
        certificate: write("issuer.pem", issuer.pem()),
        key: write("issuer.key", key.serialize_pem()),
        root: write("root.pem", root.pem()),
    }
}

#[tokio::test]
async fn whatever_a_request_asks_for_only_its_key_is_used() {
    let ca = TestCa::start().await;
    let (key, csr) = greedy_request();
    let chain = certify(&ca, &csr).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();

    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, vec![GeneralName::URI(WEB)]);
    assert!(leaf.subject().iter().next().is_none());
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.code_signing);
    assert_eq!(leaf.public_key().subject_public_key.data, key.public_key_raw());

    let now =
        i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()).unwrap();
    let validity = leaf.validity();
    assert!((115..=125).contains(&(now - validity.not_before.timestamp())));
    assert!((50..=60).contains(&(validity.not_after.timestamp() - now)));
    assert_eq!(chain.last(), ca.bundle().roots().first(), "the root comes last");

    let again = certify(&ca, &csr).await.unwrap();
    let (_, second) = X509Certificate::from_der(&again[0]).unwrap();
    assert_ne!(leaf.raw_serial(), second.raw_serial());
}

#[tokio::test]
async fn openssl_takes_the_chain_too() {
    let ca = TestCa::start().await;
    let (_, csr) = greedy_request();
    let chain = certify(&ca, &csr).await.unwrap();
    let path = |name: &str| ca.directory.path().join(name);
    fs::write(path("leaf.pem"), to_pem(&chain[0])).unwrap();
    fs::write(path("between.pem"), to_pem(&chain[1])).unwrap();
    fs::write(path("root.pem"), ca.bundle().to_pem()).unwrap();
    for purpose in ["sslserver", "sslclient"] {
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose])
            .arg("-CAfile")
            .arg(path("root.pem"))
            .arg("-untrusted")
            .arg(path("between.pem"))
            .arg(path("leaf.pem"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{purpose}: {output:?}");
    }
    let text = Command::new("openssl")
        .args(["x509", "-noout", "-text", "-in"])
        .arg(path("leaf.pem"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("Subject Alternative Name: critical"), "{text}");
    assert!(text.contains("CA:FALSE"), "{text}");
}

#[tokio::test]
async fn refusals_have_a_code_and_a_reason() {
    let ca = TestCa::start().await;
    let (_, good) = greedy_request();
    let long = format!("{good}{}", " ".repeat(20 << 10));
    let huge = " ".repeat(200 << 10);
    for (token, csr, code, text) in [
        ("wrong", good.as_str(), "Unauthenticated", "not known"),
        ("a.b.c", good.as_str(), "Unauthenticated", "not known"),
        ("secret", "hello", "InvalidArgument", "not PEM"),
        ("secret", "", "InvalidArgument", "not PEM"),
        ("secret", long.as_str(), "ResourceExhausted", "longer than 16 KiB"),
        ("secret", huge.as_str(), "OutOfRange", "too large"),
    ] {
        fs::write(ca.directory.path().join("token"), token).unwrap();
        let error = certify(&ca, csr).await.unwrap_err();
        assert!(error.contains(code) && error.contains(text), "{token}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn signed_tokens_are_checked_over_the_wire() {
    use jsonwebtoken::Algorithm::{ES256, HS256};
    let (key, jwk) = signed::ec_key();
    let ca = TestCa::start_with(Some(serde_json::json!({ "keys": [jwk] }))).await;
    let (_, csr) = greedy_request();
    let good = signed::claims();
    let changed = |claim: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[claim] = value;
        claims
    };
    let hmac = jsonwebtoken::EncodingKey::from_secret(b"secret");
    let none = "eyJhbGciOiJub25lIn0";
    let valid = signed::token(ES256, &good, &key);
    let unsigned = format!("{none}.{}.", valid.split('.').nth(1).unwrap());
    let table = [
        (valid, ""),
        (signed::token(ES256, &changed("exp", 1.into()), &key), "has expired"),
        (signed::token(ES256, &changed("aud", "kubernetes".into()), &key), "audience"),
        (signed::token(HS256, &good, &hmac), "algorithm"),
        (unsigned, "algorithm"),
    ];
    for (token, text) in table {
        fs::write(ca.directory.path().join("token"), &token).unwrap();
        match certify(&ca, &csr).await {
            Ok(chain) => {
                assert_eq!(text, "");
                assert_eq!(crate::peer_identity(Some(&chain)).unwrap().id.as_str(), WEB);
            }
            Err(error) => {
                assert!(!text.is_empty() && error.contains(text), "{error}");
                assert!(error.contains("Unauthenticated"), "{error}");
                assert!(!error.contains(token.split('.').nth(1).unwrap()), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn a_changed_list_of_tokens_counts_at_once() {
    let ca = TestCa::start().await;
    let (_, csr) = greedy_request();
    certify(&ca, &csr).await.unwrap();
    fs::write(ca.directory.path().join("tokens.yaml"), "[]").unwrap();
    let refused = async {
        while certify(&ca, &csr).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(30), refused).await.unwrap();
    // What can't be read changes nothing.
    fs::write(ca.directory.path().join("tokens.yaml"), "nonsense: [").unwrap();
    assert!(certify(&ca, &csr).await.is_err());
}

async fn material(receiver: &mut watch::Receiver<Arc<workload::Status>>) -> Arc<workload::Material> {
    let wait = receiver.wait_for(|status| status.material.is_some());
    let status = timeout(Duration::from_secs(30), wait).await.unwrap().unwrap().clone();
    status.material.clone().unwrap()
}

#[tokio::test]
async fn a_workload_gets_a_certificate_with_and_without_a_mounted_bundle() {
    let ca = TestCa::start().await;
    let roots = ca.directory.path().join("roots.pem");
    fs::write(&roots, ca.bundle().to_pem()).unwrap();
    for trust_bundle in [Some(roots), None] {
        let mut options = ca.options();
        options.trust_bundle = trust_bundle;
        let mut receiver = workload::keep(Source::Ca(options), "cluster.local");
        let material = material(&mut receiver).await;
        assert_eq!(material.certificate.id().as_str(), WEB);
        assert_eq!(material.bundle, ca.bundle());
        let status = receiver.borrow().clone();
        assert_eq!(status.ca_reachable, Some(true));
        assert_eq!(status.last_error, None);
        assert!(status.next_renewal.unwrap() < material.certificate.not_after());
    }
}

#[tokio::test]
async fn a_server_that_is_not_the_ca_gets_no_token() {
    // The impostor has a certificate of the mesh, but a workload's.
    let ca = TestCa::start().await;
    let (chain, key) = client::issue(&ca.options(), &ca.bundle(), &ca_id()).await.unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let impostor = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut heard = Vec::new();
        // The client closes as soon as it has seen who is there.
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut heard).await;
        heard
    });
    let mut options = ca.options();
    options.address = address.to_string();
    let error = client::issue(&options, &ca.bundle(), &ca_id()).await.unwrap_err();
    assert!(error.to_string().contains("but the CA must be"), "{error}");
    let heard = impostor.await.unwrap();
    assert!(!String::from_utf8_lossy(&heard).contains("secret"));
}

#[tokio::test]
async fn the_material_stays_while_the_ca_is_away_and_is_renewed_when_it_is_back() {
    for mounted in [false, true] {
        let mut ca = TestCa::start().await;
        let mut options = ca.options();
        options.bundle_poll = Duration::from_millis(200);
        if mounted {
            let file = ca.directory.path().join("bundle.pem");
            fs::write(&file, ca.bundle().to_pem()).unwrap();
            options.trust_bundle = Some(file);
        }
        let mut receiver = workload::keep(Source::Ca(options), "cluster.local");
        let first = material(&mut receiver).await;
        ca.task.abort();
        let _ = (&mut ca.task).await;
        // Long before the certificate is due, which is at half of its minute.
        let away = receiver.wait_for(|status| status.ca_reachable == Some(false));
        let status = timeout(Duration::from_secs(15), away).await.unwrap().unwrap().clone();
        let kept = status.material.clone().unwrap();
        assert_eq!(kept.certificate.serial(), first.certificate.serial());
        let told = receiver.wait_for(|status| status.failures > 0 && status.last_error.is_some());
        timeout(Duration::from_secs(15), told).await.unwrap().unwrap();
        ca.task = run_on(ca.directory.path(), ca.address).await.1;
        let back =
            receiver.wait_for(|status| status.ca_reachable == Some(true) && status.last_error.is_none());
        timeout(Duration::from_secs(15), back).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_bundle_is_served_to_anybody_and_other_paths_say_what_there_is() {
    let ca = TestCa::start().await;
    for version in ["--http1.1", "--http2"] {
        for (path, expected) in [("/bundle", ca.bundle().to_pem()), ("/", "not here: GET /bundle".to_owned())]
        {
            let output = tokio::process::Command::new("curl")
                // The certificate carries no host name that curl could check.
                .args(["--silent", "--insecure", version])
                .arg(format!("https://{}{path}", ca.address))
                .output()
                .await
                .unwrap();
            let answer = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(answer.starts_with(&expected), "{version} {path}: {answer}");
        }
    }
}

#[tokio::test]
async fn metrics_count_what_was_given_and_refused() {
    let ca = TestCa::start().await;
    let server = Server::bind(Options {
        metrics: Some("127.0.0.1:0".parse().unwrap()),
        // An address that no other test listens at: nobody else answers there once this server has ended.
        ..options(ca.directory.path(), "127.0.0.7:0".parse().unwrap())
    })
    .await
    .unwrap();
    let metrics = server.metrics_listener.as_ref().unwrap().local_addr().unwrap();
    let mut asked = ca.options();
    asked.address = server.local_address().unwrap().to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
    let (_, csr) = greedy_request();
    let ask = async || client::certify(&asked, &ca.bundle(), &ca_id(), csr.clone()).await;
    ask().await.unwrap();
    fs::write(ca.directory.path().join("token"), "wrong").unwrap();
    ask().await.unwrap_err();
    let output = tokio::process::Command::new("curl")
        .args(["--silent", &format!("http://{metrics}/metrics")])
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in [
        "outrigger_ca_certificates_issued_total 1",
        "outrigger_ca_requests_refused_total{reason=\"token_unknown\"} 1",
        "outrigger_ca_root_expiry_timestamp_seconds{fingerprint=",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    stop.send(()).unwrap();
    timeout(Duration::from_secs(30), serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(&asked.address).await.is_err());
}
