//! `outrigger discovery`: answers DNS queries for the mesh's services.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use outrigger_ca::SpiffeId;
use outrigger_ca::workload::{self, CaOptions, Source, Status};
use outrigger_discovery::file::ServicesFile;
use outrigger_discovery::server::{Options, SecureOptions, Server};
use outrigger_discovery::{ClusterDomain, Directory};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::{Failure, log};

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
    #[arg(long, env = "OUTRIGGER_FORWARD", value_name = "IP[:PORT]", value_delimiter = ',', value_parser = dns_server)]
    forward: Vec<SocketAddr>,
    /// The CA that issues this server's certificate, for ns/outrigger/sa/outrigger-discovery.
    #[arg(
        long,
        env = "OUTRIGGER_CA",
        value_name = "HOST:PORT",
        requires = "token_file",
        conflicts_with = "certificate"
    )]
    ca: Option<String>,
    /// File with the bearer token for the CA; read again each time.
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate of this server (PEM), instead of a CA; watched.
    #[arg(long, env = "OUTRIGGER_CERTIFICATE", value_name = "FILE", requires_all = ["key", "trust_bundle"])]
    certificate: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, env = "OUTRIGGER_KEY", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// Roots that clients are verified by (PEM); watched. Without it, the CA's bundle is believed on first use.
    #[arg(long, env = "OUTRIGGER_TRUST_BUNDLE", value_name = "FILE")]
    trust_bundle: Option<PathBuf>,
    /// Seconds between looks at the CA's bundle, where it is not a file.
    #[arg(long, env = "OUTRIGGER_BUNDLE_POLL", value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    bundle_poll: u64,
    /// Trust domain that clients must be of.
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", value_name = "NAME", default_value = "cluster.local")]
    trust_domain: String,
    /// Exempt connections to the CA and to other DNS servers from a redirect by this packet mark; needs CAP_NET_ADMIN.
    /// Without a value: 1337.
    #[arg(long, env = "OUTRIGGER_MARK", value_name = "MARK", num_args = 0..=1, default_missing_value = "1337")]
    mark: Option<u32>,
    /// Level of the log: error, warn, info, debug, trace.
    #[arg(long, env = "OUTRIGGER_LOG", value_name = "LEVEL", default_value = "info")]
    log: String,
    /// How the log looks.
    #[arg(long, env = "OUTRIGGER_LOG_FORMAT", value_enum, value_name = "FORMAT", default_value = "text")]
    log_format: log::Format,
}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        log::start(&self.log, self.log_format)?;
        SpiffeId::new(&self.trust_domain, "outrigger", "outrigger-discovery")
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
        let secure = self.source().map(|source| {
            let certificate = workload::keep(source, &self.trust_domain);
            tokio::spawn(report_first(certificate.clone()));
            SecureOptions { listen: self.listen, trust_domain: self.trust_domain.clone(), certificate }
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

    fn source(&self) -> Option<Source> {
        if let (Some(certificate), Some(key), Some(trust_bundle)) =
            (&self.certificate, &self.key, &self.trust_bundle)
        {
            return Some(Source::Files {
                certificate: certificate.clone(),
                key: key.clone(),
                trust_bundle: trust_bundle.clone(),
            });
        }
        let (ca, token_file) = self.ca.as_ref().zip(self.token_file.as_ref())?;
        Some(Source::Ca(CaOptions {
            trust_bundle: self.trust_bundle.clone(),
            bundle_poll: Duration::from_secs(self.bundle_poll),
            mark: self.mark,
            ..CaOptions::new(ca, token_file)
        }))
    }
}

async fn report_first(mut certificate: watch::Receiver<Arc<Status>>) {
    if certificate.wait_for(|status| status.material.is_some()).await.is_ok() {
        tracing::info!("ready: answering DNS over TLS");
    }
}

/// An address of a DNS server; port 53 unless it says otherwise.
fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    text.parse().or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53))).map_err(|_| {
        format!("`{text}` is no address of a DNS server: give an IP address, or one with a port")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dns_server_has_port_53_unless_it_says_otherwise() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1:53")),
            ("10.0.0.1:5353", Some("10.0.0.1:5353")),
            ("fd00::1", Some("[fd00::1]:53")),
            ("[fd00::1]", Some("[fd00::1]:53")),
            ("[fd00::1]:5353", Some("[fd00::1]:5353")),
            ("dns.example", None),
            ("10.0.0.1:99999", None),
        ] {
            assert_eq!(dns_server(text).ok(), expected.map(|text| text.parse().unwrap()), "{text}");
        }
    }
}
