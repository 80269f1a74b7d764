//! `outrigger ca`: runs the certificate authority, and looks after its keys.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use outrigger_ca::authority::{self, Lifetimes, MountedIssuer, RootReport, Storage};
use outrigger_ca::server::{Options, Server};
use outrigger_ca::tokens::{KeySetOptions, TokenOptions};
use outrigger_proxy::config::Duration;
use tokio::signal::unix::{SignalKind, signal};

use crate::Failure;
use crate::flags;
use crate::log::LogArgs;

const EXAMPLE: &str = "\
Example, one machine:
  head -c 32 /dev/urandom | base64 > web.token
  echo \"- {sha256: $(outrigger ca hash-token --token-file web.token), identity: spiffe://cluster.local/ns/shop/sa/web}\" > tokens.yaml
  outrigger ca --directory ./ca --tokens tokens.yaml
Then, for whoever verifies peers:
  outrigger ca bundle --directory ./ca > roots.pem
And every few years, or at once when a key may have leaked:
  outrigger ca rotate --directory ./ca";

/// What the CA is called on its own machine, in its namespace, in other ones, and in full.
const DNS_NAMES: [&str; 4] =
    ["localhost", "outrigger-ca", "outrigger-ca.outrigger.svc", "outrigger-ca.outrigger.svc.cluster.local"];

/// Run the certificate authority, rotate its root, or show it.
///
/// Without a subcommand it gives workloads their certificates, over gRPC with TLS (Istio's certificate API), and the
/// trust bundle at `GET /bundle`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Start replacing the root: the new one is handed out at once, signs after --spread, and the old one
    /// is dropped when the last certificate below it has ended. Running CAs follow by themselves.
    Rotate(Rotate),
    /// Show the roots: which one signs, which are still or already trusted, and when each ends.
    Show(Show),
    /// Print the roots as PEM, to be mounted as a trust bundle.
    Bundle(KeyDirectory),
    /// Print the hash of a token, as the file given with --tokens lists it (the same as sha256sum of the
    /// token without a newline).
    HashToken(HashToken),
}

#[derive(Debug, clap::Args)]
struct KeyDirectory {
    /// The directory of the CA's keys, as given to `outrigger ca`.
    #[arg(long, env = "OUTRIGGER_DIRECTORY", default_value = "/var/lib/outrigger/ca")]
    directory: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Where to listen; without IPv6, [::] means 0.0.0.0.
    #[arg(long, env = "OUTRIGGER_LISTEN", default_value = "[::]:15012")]
    listen: SocketAddr,
    #[command(flatten)]
    keys: KeyDirectory,
    /// An issuing certificate to sign with instead of keys of the CA's own (PEM: the issuer, then what is
    /// between it and the root). Read again when it changes.
    #[arg(
        long,
        env = "OUTRIGGER_ISSUER_CERTIFICATE",
        value_name = "FILE",
        requires_all = ["issuer_key", "root"]
    )]
    issuer_certificate: Option<PathBuf>,
    /// The key of the issuing certificate (PEM).
    #[arg(long, env = "OUTRIGGER_ISSUER_KEY", value_name = "FILE", requires = "issuer_certificate")]
    issuer_key: Option<PathBuf>,
    /// The root that the issuing certificate hangs on, or several (PEM).
    #[arg(long, env = "OUTRIGGER_ROOT", value_name = "FILE", requires = "issuer_certificate")]
    root: Option<PathBuf>,
    /// The trust domain of all certificates.
    #[arg(long, env = "OUTRIGGER_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// A name that clients other than Outrigger's call the CA by: its own certificate carries it, beside the SPIFFE ID that
    /// Outrigger's check. Those that are given take the place of the default ones.
    #[arg(
        long,
        env = "OUTRIGGER_DNS_NAME",
        value_name = "NAME",
        value_delimiter = ',',
        value_parser = flags::host_name,
        default_values = DNS_NAMES
    )]
    dns_name: Vec<String>,
    /// A file of hashed tokens and whom they stand for: a YAML list of `{sha256: ..., identity: spiffe://...}`,
    /// or JSON with one such object a line. Read again when it changes.
    #[arg(long, env = "OUTRIGGER_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// A JSON key set (JWKS) that signed tokens are checked with. Read again when it changes.
    #[arg(long, env = "OUTRIGGER_JWKS", value_name = "FILE", requires = "token_issuer")]
    jwks: Option<PathBuf>,
    /// What `iss` of a signed token must be.
    #[arg(long, env = "OUTRIGGER_TOKEN_ISSUER", value_name = "ISSUER")]
    token_issuer: Option<String>,
    /// What `aud` of a signed token must be or contain.
    #[arg(long, env = "OUTRIGGER_TOKEN_AUDIENCE", default_value = "outrigger-ca")]
    token_audience: String,
    /// The claim of a signed token that names the workload: a SPIFFE ID, namespace/account, or as Kubernetes
    /// writes it, system:serviceaccount:namespace:account.
    #[arg(long, env = "OUTRIGGER_TOKEN_CLAIM", default_value = "sub")]
    token_claim: String,
    /// How long a workload's certificate lives at most.
    #[arg(long, env = "OUTRIGGER_CERTIFICATE_LIFETIME", value_name = "DURATION", default_value = "24h")]
    certificate_lifetime: Duration,
    /// How long a root lives that is made on first start.
    #[arg(long, env = "OUTRIGGER_ROOT_LIFETIME", value_name = "DURATION", default_value = "10y")]
    root_lifetime: Duration,
    /// How far in the past certificates begin, for peers whose clocks are behind.
    #[arg(long, env = "OUTRIGGER_BACKDATE", value_name = "DURATION", default_value = "2m")]
    backdate: Duration,
    /// Serve /metrics in plain text at this address, for example 127.0.0.1:15020. Nowhere unless given.
    #[arg(long, env = "OUTRIGGER_METRICS", value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, clap::Args)]
struct Rotate {
    #[command(flatten)]
    keys: KeyDirectory,
    /// How long the new root is handed out before it signs. Proxies ask for the bundle every 5 minutes; where
    /// the bundle is a mounted file, it must be replaced within this time.
    #[arg(long, env = "OUTRIGGER_SPREAD", value_name = "DURATION", default_value = "15m")]
    spread: Duration,
    /// How long the new root lives.
    #[arg(long, env = "OUTRIGGER_ROOT_LIFETIME", value_name = "DURATION", default_value = "10y")]
    root_lifetime: Duration,
    /// How to print the roots as they are planned then.
    #[arg(long, env = "OUTRIGGER_OUTPUT", value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    keys: KeyDirectory,
    /// How to print the roots.
    #[arg(long, env = "OUTRIGGER_OUTPUT", value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, clap::Args)]
struct HashToken {
    /// The file that holds the token; standard input unless given.
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            None => self.serve.run(),
            Some(Command::Rotate(rotate)) => rotate.run(),
            Some(Command::Show(show)) => {
                let roots = authority::show(&show.keys.directory, SystemTime::now())?;
                print_roots(&roots, show.output)
            }
            Some(Command::Bundle(keys)) => {
                let bundle = authority::bundle(&keys.directory, SystemTime::now())?;
                print!("{}", bundle.to_pem());
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::HashToken(arguments)) => arguments.run(),
        }
    }
}

impl Serve {
    fn run(self) -> Result<ExitCode, Failure> {
        self.log.start()?;
        let options = self.options();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            let server = Server::bind(options).await?;
            tracing::info!(address = %server.local_address()?, "the CA listens");
            tokio::select! {
                () = server.serve(async move { terminate.recv().await; }) => Ok(ExitCode::SUCCESS),
                // As a shell reports a program that SIGINT ended.
                _ = interrupt.recv() => Ok(ExitCode::from(130)),
            }
        })
    }

    fn options(self) -> Options {
        let storage = match (self.issuer_certificate, self.issuer_key, self.root) {
            (Some(certificate), Some(key), Some(root)) => {
                Storage::Mounted(MountedIssuer { certificate, key, root })
            }
            _ => Storage::Directory(self.keys.directory),
        };
        let (audience, claim) = (self.token_audience, self.token_claim);
        let key_set = self.jwks.zip(self.token_issuer).map(|(file, issuer)| KeySetOptions {
            file,
            issuer,
            audience,
            claim,
        });
        Options {
            listen: self.listen,
            storage,
            trust_domain: self.trust_domain,
            dns_names: self.dns_name,
            lifetimes: Lifetimes {
                certificate: self.certificate_lifetime.as_std(),
                root: self.root_lifetime.as_std(),
                backdate: self.backdate.as_std(),
            },
            tokens: TokenOptions { list: self.tokens, key_set },
            metrics: self.metrics,
        }
    }
}

impl Rotate {
    fn run(self) -> Result<ExitCode, Failure> {
        let now = SystemTime::now();
        let roots =
            authority::rotate(&self.keys.directory, self.spread.as_std(), self.root_lifetime.as_std(), now)?;
        print_roots(&roots, self.output)
    }
}

impl HashToken {
    fn run(self) -> Result<ExitCode, Failure> {
        let token = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map_err(|error| format!("the token file `{}` can't be read: {error}", path.display()))?,
            None => {
                let mut token = String::new();
                std::io::stdin().read_to_string(&mut token)?;
                token
            }
        };
        if token.trim().is_empty() {
            return Err("the token is empty".into());
        }
        println!("{}", outrigger_ca::tokens::hash(&token));
        Ok(ExitCode::SUCCESS)
    }
}

fn print_roots(roots: &[RootReport], output: Output) -> Result<ExitCode, Failure> {
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(roots)?),
        Output::Text => {
            println!("{:10} {:22} {:22} {:22} SHA-256", "PHASE", "SIGNS FROM", "TRUSTED UNTIL", "ENDS");
            for root in roots {
                println!(
                    "{:10} {:22} {:22} {:22} {}",
                    root.phase,
                    root.signs_from,
                    root.trusted_until.as_deref().unwrap_or("-"),
                    root.not_after,
                    root.fingerprint
                );
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
