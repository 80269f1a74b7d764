//! DNS over TLS with mesh identities.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::rr::RecordType;
use outrigger_ca::workload::{Material, Status};
use outrigger_ca::{Certificate, TrustBundle, peer_identity, server_verifier};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::sync::watch;

use crate::support::{Running, Wishes, ask_over, connect, text};

const DISCOVERY: &str = "spiffe://cluster.local/ns/outrigger/sa/outrigger-discovery";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const API_8080: &str = "_8080._tcp.api.shop.svc.cluster.local.";

struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn bundle(&self) -> TrustBundle {
        TrustBundle::from_pem(self.pem().as_bytes()).unwrap()
    }

    /// Certificate and key, PEM.
    fn issue(&self, id: &str) -> (String, String) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn certificate(&self, id: &str) -> Certificate {
        let (certificate, key) = self.issue(id);
        Certificate::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    }

    /// A certificate without any name.
    fn nameless(&self) -> Arc<SingleCertAndKey> {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.0).unwrap().der().clone()];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let certified = CertifiedKey::from_der(chain, key, &provider).unwrap();
        Arc::new(SingleCertAndKey::from(certified))
    }

    /// What a server is given.
    fn status(&self) -> Arc<Status> {
        let material = Material { certificate: self.certificate(DISCOVERY), bundle: self.bundle() };
        Arc::new(Status { material: Some(Arc::new(material)), ..Status::default() })
    }

    /// A server with a certificate of this root, which can be changed.
    fn server(&self) -> (Running, watch::Sender<Arc<Status>>, SocketAddr) {
        let (sender, certificate) = watch::channel(self.status());
        let server = Running::start(Wishes { certificate: Some(certificate), ..Wishes::default() });
        let secure = server.secure.unwrap();
        (server, sender, secure)
    }

    /// A client that has a certificate for `id`, or none, and trusts this root.
    fn client(&self, id: Option<&str>, version: &'static rustls::SupportedProtocolVersion) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(server_verifier(&self.bundle()));
        let mut config = match id {
            Some(id) => {
                let key = SingleCertAndKey::from(self.certificate(id).certified_key());
                builder.with_client_cert_resolver(Arc::new(key))
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"dot".to_vec()];
        config
    }
}

type Stream = StreamOwned<ClientConnection, std::net::TcpStream>;

fn open(address: SocketAddr, config: ClientConfig) -> Stream {
    let name = ServerName::try_from("discovery.outrigger.svc").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), connect(address))
}

/// Whether a question gets an answer.
fn is_answered(mut stream: Stream) -> bool {
    use std::io::{Read, Write};
    let question = crate::support::framed(&crate::support::question(7, API_8080, RecordType::TXT));
    stream.write_all(&question).and_then(|()| stream.read_exact(&mut [0; 2])).is_ok()
}

fn served_by(stream: &Stream) -> String {
    peer_identity(stream.conn.peer_certificates()).unwrap().id.to_string()
}

#[test]
fn a_client_of_the_mesh_is_answered_by_discovery_itself() {
    let root = Root::new();
    let (_server, _sender, address) = root.server();
    let mut stream = open(address, root.client(Some(WEB), &rustls::version::TLS13));
    for _ in 0..3 {
        let answer = ask_over(&mut stream, API_8080, RecordType::TXT);
        assert_eq!(answer.answers.len(), 4);
        assert!(answer.metadata.authoritative);
    }
    assert_eq!(served_by(&stream), DISCOVERY);
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"dot"[..]));
}

#[test]
fn who_is_not_of_the_mesh_is_not_answered() {
    let root = Root::new();
    let stranger = Root::new();
    let (_server, _sender, address) = root.server();
    let tls13 = &rustls::version::TLS13;
    let mut foreign_root = root.client(None, tls13);
    let key = SingleCertAndKey::from(stranger.certificate(WEB).certified_key());
    foreign_root.client_auth_cert_resolver = Arc::new(key);
    let mut nameless = root.client(None, tls13);
    nameless.client_auth_cert_resolver = root.nameless();
    let mut other_protocol = root.client(Some(WEB), tls13);
    other_protocol.alpn_protocols = vec![b"h2".to_vec()];
    for (what, config) in [
        ("no certificate", root.client(None, tls13)),
        ("another root's certificate", foreign_root),
        ("another trust domain", root.client(Some("spiffe://other.test/ns/shop/sa/web"), tls13)),
        ("no SPIFFE ID", nameless),
        ("TLS 1.2", root.client(Some(WEB), &rustls::version::TLS12)),
        ("another protocol", other_protocol),
    ] {
        assert!(!is_answered(open(address, config)), "{what}");
    }
    assert!(is_answered(open(address, root.client(Some(WEB), tls13))), "a good one still is");
}

#[test]
fn new_connections_meet_the_newest_certificate_and_roots_and_old_ones_go_on() {
    let tls13 = &rustls::version::TLS13;
    let old = Root::new();
    let new = Root::new();
    let (_server, sender, address) = old.server();
    let mut before = open(address, old.client(Some(WEB), tls13));
    assert_eq!(ask_over(&mut before, API_8080, RecordType::TXT).answers.len(), 4);
    sender.send(new.status()).unwrap();
    assert!(is_answered(open(address, new.client(Some(WEB), tls13))));
    assert!(!is_answered(open(address, old.client(Some(WEB), tls13))));
    assert_eq!(ask_over(&mut before, API_8080, RecordType::TXT).answers.len(), 4);
}

#[test]
fn a_connection_made_before_the_first_certificate_waits_for_it() {
    let root = Root::new();
    let (sender, certificate) = watch::channel(Arc::new(Status::default()));
    let server = Running::start(Wishes { certificate: Some(certificate), ..Wishes::default() });
    let stream = open(server.secure.unwrap(), root.client(Some(WEB), &rustls::version::TLS13));
    sender.send(root.status()).unwrap();
    assert!(is_answered(stream));
}

#[test]
fn a_connection_ends_before_the_clients_certificate_does() {
    use std::io::Read;
    let root = Root::new();
    let (_server, _sender, address) = root.server();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(WEB.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let end = std::time::SystemTime::now() + Duration::from_secs(5);
    params.not_after = end.into();
    let key = KeyPair::generate().unwrap();
    let pem = params.signed_by(&key, &root.0).unwrap().pem();
    let short = Certificate::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    let mut config = root.client(None, &rustls::version::TLS13);
    let key = SingleCertAndKey::from(short.certified_key());
    config.client_auth_cert_resolver = Arc::new(key);
    let mut stream = open(address, config);
    assert_eq!(ask_over(&mut stream, API_8080, RecordType::TXT).answers.len(), 4);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed in an orderly way");
}

#[test]
fn kdig_gets_its_answer_with_a_certificate_and_none_without() {
    let root = Root::new();
    let (_server, _sender, address) = root.server();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = root.issue(WEB);
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let certificate = file("tls.crt", &certificate);
    let key = file("tls.key", &key);
    let with = |option: &str, path: &Path| format!("+{option}={}", path.display());
    let kdig = |more: &[String]| {
        let mut command = Command::new("kdig");
        command.args([&format!("@{}", address.ip()), "-p", &address.port().to_string(), "+tls", "+short"]);
        command.args(["+retry=0", "+timeout=5"]).args(more).args([API_8080, "TXT"]);
        text(command.output().expect("kdig is installed (Debian package knot-dnsutils)"))
    };
    let answer = kdig(&[with("tls-certfile", &certificate), with("tls-keyfile", &key)]);
    assert!(answer.contains("v=1 addr=10.77.0.3:80 mesh=1 ns=shop sa=api zone=a weight=3"), "{answer}");
    assert!(!kdig(&[]).contains("v=1 addr"));
}
