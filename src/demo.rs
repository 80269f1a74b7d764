//! `outrigger demo`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use clap::builder::BoolishValueParser;
use outrigger_ca::HostPort;
use outrigger_demo::service::{self, api, load, relay, store, web};
use outrigger_demo::{Settings, hand_over, start, supervise};
use outrigger_proxy::config::Duration;

use crate::Failure;
use crate::flags::Port;

const EXAMPLES: &str = "\
Examples:
  outrigger demo                     then open http://127.0.0.1:8080/
  outrigger demo --load 200          with more traffic of its own
  outrigger demo --load 0 --logs /tmp/mesh --access-log
                                     with none, and each hop of yours in the logs

Needs `ip` (iproute2) and `iptables`; uses redis-server if it is installed. As an ordinary user it needs user
namespaces. Ctrl-C ends it; nothing stays behind.

Exit codes: 0 stopped by Ctrl-C, SIGTERM or SIGHUP; 1 could not start, or a sidecar ended; 2 wrong usage.";

/// Run a mesh on this machine, to look at and play with.
///
/// Starts a CA, a discovery server, an entry on 127.0.0.1 and five pods in network namespaces: `web`, three of `api`
/// (one slow, one sometimes failing), and `store` (Redis); each with redirect rules and a sidecar. Prints what to open,
/// and a line a second of what flows.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Args {
    /// Port of the entry, on 127.0.0.1.
    #[arg(long, env = "OUTRIGGER_PORT", value_name = "PORT", default_value_t = 8080, value_parser = Port)]
    port: u16,
    /// First of the sidecars' admin ports, on 127.0.0.1; one that is taken is replaced by a free one, 0 takes free ones.
    #[arg(long, env = "OUTRIGGER_ADMIN_PORTS", value_name = "PORT", default_value_t = 15100, value_parser = Port)]
    admin_ports: u16,
    /// Requests a second that the demo makes itself; 0 for none.
    #[arg(long, env = "OUTRIGGER_LOAD", value_name = "RPS", default_value_t = 5)]
    load: u32,
    /// Keep the logs of all processes in this directory; else they are in memory, and go with the demo.
    #[arg(long, env = "OUTRIGGER_LOGS", value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Let each sidecar write its access log into its log.
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG", value_parser = BoolishValueParser::new())]
    access_log: bool,
    #[command(subcommand)]
    part: Option<Part>,
}

/// The demo's own processes.
#[derive(Debug, Subcommand)]
enum Part {
    /// Start the mesh, inside the namespaces.
    #[command(hide = true)]
    Supervise,
    /// Run a command with the socket on standard input handed in by systemd's protocol.
    #[command(hide = true)]
    HandOver {
        /// The socket's name.
        name: String,
        /// The command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<OsString>,
    },
    /// Run one of the small programs that play the workloads.
    #[command(subcommand)]
    Service(Service),
}

/// The workloads.
#[derive(Debug, Subcommand)]
enum Service {
    /// The shop's front: calls api and store.
    Web {
        /// Address to listen on.
        #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// Host and port of api.
        #[arg(long, env = "OUTRIGGER_API", value_name = "HOST:PORT")]
        api: HostPort,
        /// Host and port of a Redis server.
        #[arg(long, env = "OUTRIGGER_STORE", value_name = "HOST:PORT")]
        store: HostPort,
    },
    /// Answers HTTP and gRPC; on request late, or now and then failing.
    Api {
        /// Address to listen on.
        #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
        listen: SocketAddr,
        /// The name that its answers give.
        #[arg(long, env = "OUTRIGGER_NAME", value_name = "NAME", default_value = "api")]
        name: String,
        /// Time added to each answer.
        #[arg(long, env = "OUTRIGGER_SLOW", value_name = "DURATION", default_value = "0ms")]
        slow: Duration,
        /// Share of requests that fail with 503.
        #[arg(long, env = "OUTRIGGER_FAIL", value_name = "PERCENT", default_value = "0%", value_parser = percent)]
        fail: u8,
    },
    /// Stands in for Redis: knows PING, GET and INCR.
    Store {
        /// Address to listen on.
        #[arg(long, env = "OUTRIGGER_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:6379")]
        listen: SocketAddr,
    },
    /// Relays connections from the listening socket on standard input.
    Relay {
        /// Host and port that connections go to.
        #[arg(long, env = "OUTRIGGER_TARGET", value_name = "HOST:PORT")]
        target: HostPort,
    },
    /// Requests web's pages.
    Load {
        /// Host and port of web.
        #[arg(long, env = "OUTRIGGER_TARGET", value_name = "HOST:PORT")]
        target: HostPort,
        /// Requests a second.
        #[arg(long, env = "OUTRIGGER_RATE", value_name = "RPS", default_value = "5")]
        rate: NonZeroU32,
    },
}

fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u8>().ok();
    number.filter(|number| *number <= 100).ok_or_else(|| "a share from 0% to 100%".into())
}

impl Args {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.part {
            None => Ok(start(&Settings {
                port: self.port,
                admin_ports: self.admin_ports,
                requests_per_second: self.load,
                logs: self.logs,
                access_log: self.access_log,
            })?),
            Some(Part::Supervise) => Ok(supervise()?),
            Some(Part::HandOver { name, command }) => Err(hand_over(&name, &command).into()),
            Some(Part::Service(service)) => service.run(),
        }
    }
}

impl Service {
    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Web { listen, api, store } => service::run(web::run(web::Settings {
                listen,
                api: api.to_string(),
                store: store.to_string(),
            })),
            Self::Api { listen, name, slow, fail } => service::run(api::run(api::Settings {
                listen,
                name,
                slow: slow.as_std(),
                fail_percent: fail,
            })),
            Self::Store { listen } => service::run(store::run(listen)),
            Self::Relay { target } => service::run(relay::run(target.to_string())),
            Self::Load { target, rate } => service::run(load::run(target.to_string(), rate)),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_percentages() {
        for (text, expected) in
            [("0", Some(0)), ("20%", Some(20)), ("100%", Some(100)), ("101", None), ("-1", None), ("%", None)]
        {
            assert_eq!(percent(text).ok(), expected, "{text}");
        }
    }
}
