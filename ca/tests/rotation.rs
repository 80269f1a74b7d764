//! Certificates and roots change under load, and no handshake fails.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_ca::authority::{self, Lifetimes, Phase, Storage};
use outrigger_ca::server::{Options, Server};
use outrigger_ca::tokens::{self, TokenOptions};
use outrigger_ca::workload::{self, CaOptions, Material, Source, Status};
use outrigger_ca::{client_verifier, peer_identity, server_verifier};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::timeout;

const SPREAD: Duration = Duration::from_secs(3);
const LIFETIME: Duration = Duration::from_secs(12);
const WORKLOADS: [&str; 2] = ["web", "api"];

async fn start_ca(directory: &Path) -> SocketAddr {
    let server = Server::bind(Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        storage: Storage::Directory(directory.join("ca")),
        trust_domain: "cluster.local".into(),
        dns_names: vec!["localhost".into()],
        lifetimes: Lifetimes { certificate: LIFETIME, ..Lifetimes::default() },
        tokens: TokenOptions { list: Some(directory.join("tokens.yaml")), key_set: None },
        metrics: None,
    })
    .await
    .unwrap();
    let address = server.local_address().unwrap();
    tokio::spawn(server.serve(std::future::pending()));
    address
}

fn write_tokens(directory: &Path) {
    let entries = WORKLOADS.map(|name| {
        std::fs::write(directory.join(name), format!("token of {name}")).unwrap();
        let hash = tokens::hash(&format!("token of {name}"));
        format!("- {{sha256: {hash}, identity: \"spiffe://cluster.local/ns/shop/sa/{name}\"}}\n")
    });
    std::fs::write(directory.join("tokens.yaml"), entries.concat()).unwrap();
}

fn keep(address: SocketAddr, token: PathBuf) -> watch::Receiver<Arc<Status>> {
    let mut options = CaOptions::new(address.to_string(), token);
    options.bundle_poll = Duration::from_millis(500);
    workload::keep(Source::Ca(options), "cluster.local")
}

async fn first_material(receiver: &mut watch::Receiver<Arc<Status>>) {
    let ready = receiver.wait_for(|status| status.material.is_some());
    timeout(Duration::from_secs(30), ready).await.unwrap().unwrap();
}

fn material(receiver: &watch::Receiver<Arc<Status>>) -> Arc<Material> {
    receiver.borrow().material.clone().unwrap()
}

/// One mutual TLS connection with what both sides have right now.
async fn handshake(client: &Material, server: &Material) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let resolver =
        |material: &Material| Arc::new(SingleCertAndKey::from(material.certificate.certified_key()));
    let client_config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(server_verifier(&client.bundle))
        .with_client_cert_resolver(resolver(client));
    let server_config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(client_verifier(&server.bundle).unwrap())
        .with_cert_resolver(resolver(server));
    let (near, far) = tokio::io::duplex(64 << 10);
    let name = "api".try_into().unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config));
    let dial = async {
        let mut stream = connector.connect(name, near).await?;
        // In TLS 1.3 a client learns only by reading whether its own certificate was taken.
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        let peer = stream.get_ref().1.peer_certificates();
        let id = peer_identity(peer).map_err(std::io::Error::other)?.id;
        assert_eq!(id, *server.certificate.id());
        Ok::<_, std::io::Error>(())
    };
    let answer = async {
        let mut stream = acceptor.accept(far).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        Ok::<_, std::io::Error>(stream)
    };
    let (dialed, answered) = tokio::join!(dial, answer);
    answered.map_err(|error| format!("the server: {error}"))?;
    dialed.map_err(|error| format!("the client: {error}"))
}

#[tokio::test]
async fn two_rotations_of_the_root_under_load_fail_no_handshake() {
    let directory = tempfile::tempdir().unwrap();
    write_tokens(directory.path());
    // Two CAs share the directory, and each workload asks another one.
    let addresses = [start_ca(directory.path()).await, start_ca(directory.path()).await];
    let mut web = keep(addresses[0], directory.path().join(WORKLOADS[0]));
    let mut api = keep(addresses[1], directory.path().join(WORKLOADS[1]));
    first_material(&mut web).await;
    first_material(&mut api).await;
    let first_root = material(&web).bundle.clone();

    let keys = directory.path().join("ca");
    let rotate = || authority::rotate(&keys, SPREAD, Duration::from_secs(3600), SystemTime::now());
    let mut rotations = 0;
    let mut handshakes = 0;
    let started = SystemTime::now();
    loop {
        let (web_now, api_now) = (material(&web), material(&api));
        for (client, server) in [(&web_now, &api_now), (&api_now, &web_now)] {
            let result = handshake(client, server).await;
            assert_eq!(result, Ok(()), "after {:?}", started.elapsed());
            handshakes += 1;
        }
        let roots = authority::show(&keys, SystemTime::now()).unwrap();
        let settled = roots.last().unwrap().phase == Phase::Signing;
        if rotations < 2 && settled {
            rotate().unwrap();
            assert!(rotate().is_err(), "one at a time");
            rotations += 1;
        }
        let followed = [&web_now, &api_now]
            .iter()
            .all(|material| material.bundle.roots().len() == 1 && material.bundle != first_root);
        if rotations == 2 && settled && roots.len() == 1 && followed {
            break;
        }
        assert!(started.elapsed().unwrap() < Duration::from_secs(120), "{roots:?}");
        // Lets the CAs and the keepers run between two rounds.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(handshakes > 100, "{handshakes}");
    for receiver in [&web, &api] {
        let status = receiver.borrow().clone();
        assert!(status.renewals >= 2, "{status:?}");
        assert_eq!((status.failures, &status.last_error), (0, &None), "{status:?}");
    }
}
