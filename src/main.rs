//! `outrigger`: one binary, a subcommand for each of its roles.

mod ca;
mod demo;
mod discovery;
mod flags;
mod iptables;
mod log;
mod sidecar;
mod validate;
mod version;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

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

/// What each does is said where its flags are.
#[derive(Subcommand)]
enum Command {
    Sidecar(sidecar::Args),
    Ca(ca::Args),
    Discovery(discovery::Args),
    Iptables(iptables::Args),
    Demo(demo::Args),
    Validate(validate::Args),
    Version(version::Args),
}

fn main() -> ExitCode {
    let command = flags::without_empty_variables(Arguments::command(), &|variable| {
        std::env::var_os(variable).is_some_and(|value| value.is_empty())
    });
    let arguments = Arguments::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit());
    let result = match arguments.command {
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
