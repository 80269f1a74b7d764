//! `outrigger`: one binary, a subcommand for each of its roles.

mod ca;
mod demo;
mod discovery;
mod iptables;
mod log;
mod sidecar;
mod validate;
mod version;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Without huge pages, which make a small proxy large: 20 MiB idle with them, 9 MiB without.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What a subcommand fails with; printed to the user.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Outrigger: a service mesh that is one proxy.
///
/// A sidecar beside every workload takes its traffic over, secures it with mutual TLS and carries it to its peer's
/// sidecar. A small CA issues the identities, discovery says where the peers are.
#[derive(Parser)]
#[command(
    name = "outrigger",
    version,
    max_term_width = 110,
    after_help = "To see a whole mesh run on this machine: outrigger demo"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy beside a workload.
    Sidecar(sidecar::Args),
    /// Run the certificate authority, rotate its root, or show it.
    Ca(ca::Args),
    /// Answer DNS queries for the mesh's services.
    Discovery(discovery::Args),
    /// Set up, check or remove the rules that send a pod's traffic through its sidecar.
    Iptables(iptables::Args),
    /// Run a mesh of five pods on this machine, to look at and play with.
    Demo(demo::Args),
    /// Check a config file, or print its schema.
    Validate(validate::Args),
    /// Print the version.
    Version(version::Args),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Sidecar(args) => args.run(),
        Command::Ca(args) => args.run(),
        Command::Discovery(args) => args.run(),
        Command::Iptables(args) => args.run(),
        Command::Demo(args) => args.run(),
        Command::Validate(args) => args.run(),
        Command::Version(args) => args.run(),
    };
    result.unwrap_or_else(|error| {
        eprintln!("outrigger: {error}");
        ExitCode::FAILURE
    })
}
