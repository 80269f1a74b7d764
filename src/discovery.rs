//! `outrigger discovery`: answers DNS queries for the mesh's services.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use outrigger_ca::workload::{self, CaOptions, Source, Status};
use outrigger_ca::{DISCOVERY_ACCOUNT, SpiffeId};
use outrigger_discovery::file::ServicesFile;
use outrigger_discovery::server::{Options, SecureOptions, Server};
use outrigger_discovery::{ClusterDomain, Directory};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::Failure;
use crate::flags::{self, IdentityArgs};
use crate::log::LogArgs;

const EXAMPLES: &str = "\
Example of a services file:
  services:
    - name: api
      namespace: shop
      vips: [10.96.0.7]
      ports: [{port: 8080}]
      endpoints:
        - {address: 10.77.0.3, serviceAccount: api, mesh: true}
        - {address: 10.77.0.4, serviceAccount: api, mesh: true, zone: a, weight: 2}
      timeout: 3s
      retries: 1
  Further fields: ports: targetPort, opaque; endpoints: unmeshedPorts. Without vips, the service's name has the addresses of
  its endpoints.

Examples:
  For sidecars, over DNS over TLS, with a certificate from the mesh's CA:
    outrigger discovery --file services.yaml --ca ca.outrigger.svc:15012 --token-file token --trust-bundle ca.pem

  As the only DNS server of workloads too, where other names are passed on:
    outrigger discovery --file services.yaml --ca ca.outrigger.svc:15012 --token-file token --trust-bundle ca.pem \\
      --plain 10.77.0.1:53 --forward 192.168.1.1

  To look at what is told, without any certificate:
    outrigger discovery --file services.yaml --plain 127.0.0.1:5353
    dig -p 5353 @127.0.0.1 _8080._tcp.api.shop.svc.cluster.local SRV
    dig -p 5353 @127.0.0.1 _8080._tcp.api.shop.svc.cluster.local TXT
    dig -p 5353 @127.0.0.1 -x 10.96.0.7 -t TXT

Exit codes: 0 ended by SIGTERM, 1 could not start, 2 wrong usage, 130 ended by SIGINT.";

/// Answer DNS queries for the mesh's services, out of a watched file.
///
/// Tells sidecars, over DNS over TLS with mesh identities, which endpoints are behind a service, which of them have
/// sidecars under which service account, and whose an address is. Plain DNS, on request, gives workloads their names.
/// Its certificate must be for ns/outrigger/sa/outrigger-discovery.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The services (YAML, as below); watched. A file with an error changes nothing.
    #[arg(long, env = "OUTRIGGER_FILE", value_name = "FILE")]
    file: PathBuf,
    /// Where to listen for DNS over TLS; without IPv6, [::] means 0.0.0.0.
    #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDRESS", default_value = "[::]:15053")]
    listen: SocketAddr,
    /// Where to listen for plain DNS, UDP and TCP. Nowhere unless given. What it says of meshing and accounts, sidecars
    /// do not believe.
    #[arg(long, env = "OUTRIGGER_PLAIN", value_name = "ADDRESS")]
    plain: Option<SocketAddr>,
    /// The domain that services are in, and that is answered for.
    #[arg(long, env = "OUTRIGGER_CLUSTER_DOMAIN", value_name = "NAME", default_value = "cluster.local", value_parser = ClusterDomain::new)]
    cluster_domain: ClusterDomain,
    /// DNS server that is asked about all other names; repeatable, the first one first. Without any, such questions are
    /// refused.
    #[arg(long, env = "OUTRIGGER_FORWARD", value_name = "IP[:PORT]", value_delimiter = ',', value_parser = flags::dns_server)]
    forward: Vec<SocketAddr>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Exempt connections to the CA and to other DNS servers from a redirect by this packet mark; needs CAP_NET_ADMIN.
    /// Without a value: 1337.
    #[arg(long, env = "OUTRIGGER_MARK", value_name = "MARK", num_args = 0..=1, default_missing_value = "1337")]
    mark: Option<u32>,
    #[command(flatten)]
    log: LogArgs,
}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        self.log.start()?;
        SpiffeId::new(self.identity.trust_domain(), DISCOVERY_ACCOUNT.0, DISCOVERY_ACCOUNT.1)
            .map_err(|error| format!("--trust-domain: {error}"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(self.serve())
    }

    async fn serve(self) -> Result<ExitCode, Failure> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let directory = Directory::new(self.cluster_domain.clone());
        let file = ServicesFile::open(self.file.clone(), directory.clone())?;
        let server = Server::bind(self.options()?, directory)?;
        if let Some(address) = server.plain_address() {
            tracing::info!(%address, "answering plain DNS");
        }
        if let Some(address) = server.secure_address() {
            tracing::info!(%address, "listening for DNS over TLS; answers begin with the first certificate");
        }
        tokio::spawn(file.follow());
        tokio::select! {
            () = server.serve(async move { terminate.recv().await; }) => Ok(ExitCode::SUCCESS),
            // As a shell reports a program that SIGINT ended.
            _ = interrupt.recv() => Ok(ExitCode::from(130)),
        }
    }

    fn options(&self) -> Result<Options, Failure> {
        let trust_domain = self.identity.trust_domain();
        let secure = self.source()?.map(|source| {
            let certificate = workload::keep(source, trust_domain);
            tokio::spawn(report_first(certificate.clone()));
            SecureOptions { listen: self.listen, trust_domain: trust_domain.to_owned(), certificate }
        });
        match (&secure, self.plain) {
            (None, None) => {
                return Err("there is no certificate source: give --ca and --token-file, or --certificate, --key and \
                            --trust-bundle; or give --plain for plain DNS alone"
                    .into());
            }
            (None, Some(_)) => tracing::warn!(
                "without a certificate source (--ca or --certificate) there is NO DNS over TLS: sidecars learn nothing \
                 from this server"
            ),
            (Some(_), _) => {}
        }
        Ok(Options { secure, plain: self.plain, forward: self.forward.clone(), mark: self.mark })
    }

    fn source(&self) -> Result<Option<Source>, Failure> {
        let IdentityArgs { ca, token_file, certificate, key, trust_bundle, .. } = &self.identity;
        if let (Some(certificate), Some(key)) = (certificate, key) {
            let trust_bundle = trust_bundle
                .clone()
                .ok_or("a certificate from files needs --trust-bundle: the roots to verify clients by")?;
            return Ok(Some(Source::Files {
                certificate: certificate.clone(),
                key: key.clone(),
                trust_bundle,
            }));
        }
        Ok(ca.as_ref().zip(token_file.as_ref()).map(|(ca, token_file)| {
            Source::Ca(CaOptions {
                trust_bundle: trust_bundle.clone(),
                bundle_poll: self.identity.bundle_poll.as_std(),
                mark: self.mark,
                ..CaOptions::new(ca.to_string(), token_file)
            })
        }))
    }
}

async fn report_first(mut certificate: watch::Receiver<Arc<Status>>) {
    if certificate.wait_for(|status| status.material.is_some()).await.is_ok() {
        tracing::info!("ready: answering DNS over TLS");
    }
}
