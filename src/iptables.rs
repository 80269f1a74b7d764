//! `outrigger iptables`: the rules that bring a pod's traffic to the sidecar.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use outrigger_iptables::{
    Change, Cidr, Family, Ipv6, Owner, Settings, Tools, apply, clean, render, verify::verify,
};

use crate::Failure;
use crate::flags::Port;

/// Redirect a pod's TCP traffic to the sidecar, see that it works, or undo it.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Acts on the network namespace that it is run in, through the programs of iptables, and needs
the capability NET_ADMIN. In a pod, `apply` runs before the workload starts. What goes where:

  from outside to the pod      to the inbound port, but for metrics, health and skipped ports
  from the workload to others  to the outbound port, but for what is skipped
  from the workload to itself  as it is
  from the sidecar             as it is, but to the pod's own address: to the inbound port

UDP, and so QUIC, is not intercepted.")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the rules.
    ///
    /// Applying twice changes nothing, and applying other settings replaces the rules. Each address family changes
    /// in one transaction. Rules of other programs are left alone.
    Apply(Rules),
    /// Try the rules with real connections.
    ///
    /// Compares the installed rules with the flags, listens for a moment on the sidecar's ports, dials, and requires
    /// that each connection arrives with its original destination. Run it with the flags given to `apply`, before
    /// the sidecar starts: ports that are taken are skipped. Exits with 1 when a check failed.
    Verify(Rules),
    /// Remove the rules, of both address families and whatever wrote them.
    Clean,
    /// Print the rules as the input of `iptables-restore --noflush` and `ip6tables-restore --noflush`.
    ///
    /// Changes nothing and needs no privilege.
    Render {
        #[command(flatten)]
        rules: Rules,
        /// The address family to print.
        #[arg(long, env = "OUTRIGGER_FAMILY", value_enum, default_value_t = FamilyChoice::Both)]
        family: FamilyChoice,
    },
}

#[derive(Debug, clap::Args)]
struct Rules {
    /// Port of the sidecar for what the workload sends.
    #[arg(long, env = "OUTRIGGER_OUTBOUND_PORT", value_name = "PORT", default_value_t = 15001, value_parser = Port)]
    outbound_port: u16,

    /// Port of the sidecar for what comes to the workload.
    #[arg(long, env = "OUTRIGGER_INBOUND_PORT", value_name = "PORT", default_value_t = 15006, value_parser = Port)]
    inbound_port: u16,

    /// Port of metrics and rewritten probes, reached from outside as it is.
    #[arg(long, env = "OUTRIGGER_METRICS_PORT", value_name = "PORT", default_value_t = 15020, value_parser = Port)]
    metrics_port: u16,

    /// Port of the sidecar's own readiness and liveness, reached from outside as it is.
    #[arg(long, env = "OUTRIGGER_HEALTH_PORT", value_name = "PORT", default_value_t = 15021, value_parser = Port)]
    health_port: u16,

    /// Ports of the workload that are reached without the sidecar, as in 22,9100.
    #[arg(long, env = "OUTRIGGER_SKIP_INBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    skip_inbound_ports: Vec<u16>,

    /// Ports of others that the workload reaches without the sidecar, as in 53,123.
    #[arg(long, env = "OUTRIGGER_SKIP_OUTBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    skip_outbound_ports: Vec<u16>,

    /// Blocks of addresses that the workload reaches without the sidecar, as in 10.0.0.0/8,fd00::/8.
    ///
    /// The metadata services of clouds are always reached so: 169.254.0.0/16 and fd00:ec2::/32.
    #[arg(long, env = "OUTRIGGER_SKIP_OUTBOUND_CIDRS", value_name = "BLOCKS", value_delimiter = ',')]
    skip_outbound_cidrs: Vec<Cidr>,

    /// The directions to redirect.
    #[arg(long, env = "OUTRIGGER_CAPTURE", value_enum, default_value_t = Capture::Both)]
    capture: Capture,

    /// How the sidecar's own connections are told from the workload's.
    #[arg(long, env = "OUTRIGGER_EXEMPT", value_enum, default_value_t = Exempt::User)]
    exempt: Exempt,

    /// User that the sidecar runs as, with --exempt user.
    #[arg(long, env = "OUTRIGGER_UID", value_name = "ID", default_value_t = 1337)]
    uid: u32,

    /// Group that the sidecar runs in, with --exempt user.
    #[arg(long, env = "OUTRIGGER_GID", value_name = "ID", default_value_t = 1337)]
    gid: u32,

    /// Packet mark of the sidecar's connections, with --exempt mark.
    #[arg(long, env = "OUTRIGGER_MARK", value_name = "MARK", default_value_t = 1337)]
    mark: u32,

    /// Packet mark of the sidecar's connections to its own workload, with --exempt mark.
    #[arg(long, env = "OUTRIGGER_INBOUND_MARK", value_name = "MARK", default_value_t = 1338)]
    inbound_mark: u32,

    /// Whether IPv6 gets rules too.
    #[arg(long, env = "OUTRIGGER_IPV6", value_enum, default_value_t = Ipv6Choice::Auto)]
    ipv6: Ipv6Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Capture {
    Both,
    Inbound,
    Outbound,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Exempt {
    /// By the user or the group that opened them.
    User,
    /// By their packet mark: where the user is not mapped, in a user namespace.
    Mark,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Ipv6Choice {
    /// When the pod has an IPv6 address.
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum FamilyChoice {
    Both,
    Ipv4,
    Ipv6,
}

impl Args {
    /// Does what the subcommand says; fails with what iptables or the kernel refused, and the remedy.
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self.action {
            Action::Apply(rules) => {
                let applied = apply(&rules.settings(), rules.ipv6(), &Tools::find())?;
                print_change(Family::Ipv4, &applied.ipv4);
                match applied.ipv6 {
                    Some(change) => print_change(Family::Ipv6, &change),
                    None => println!("IPv6: no rules"),
                }
            }
            Action::Verify(rules) => {
                let report = verify(&rules.settings(), rules.ipv6(), &Tools::find())?;
                print!("{report}");
                if !report.passed() {
                    return Ok(ExitCode::FAILURE);
                }
            }
            Action::Clean => {
                let cleaned = clean(&Tools::find())?;
                for (family, removed) in [(Family::Ipv4, cleaned.ipv4), (Family::Ipv6, cleaned.ipv6)] {
                    println!("{family}: {}", if removed { "removed" } else { "no rules" });
                }
            }
            Action::Render { rules, family } => {
                let settings = rules.settings();
                settings.check()?;
                let families: &[Family] = match family {
                    FamilyChoice::Both => &Family::ALL,
                    FamilyChoice::Ipv4 => &[Family::Ipv4],
                    FamilyChoice::Ipv6 => &[Family::Ipv6],
                };
                for &family in families {
                    print!("# {family}\n{}", render(&settings, family));
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Rules {
    fn settings(&self) -> Settings {
        Settings {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            metrics_port: self.metrics_port,
            health_port: self.health_port,
            skip_inbound_ports: self.skip_inbound_ports.iter().copied().collect(),
            skip_outbound_ports: self.skip_outbound_ports.iter().copied().collect(),
            skip_outbound_cidrs: self.skip_outbound_cidrs.iter().copied().collect(),
            owner: match self.exempt {
                Exempt::User => Owner::User { uid: self.uid, gid: self.gid },
                Exempt::Mark => Owner::Mark { proxy: self.mark, inbound: self.inbound_mark },
            },
            capture_inbound: self.capture != Capture::Outbound,
            capture_outbound: self.capture != Capture::Inbound,
        }
    }

    fn ipv6(&self) -> Ipv6 {
        match self.ipv6 {
            Ipv6Choice::Auto => Ipv6::Auto,
            Ipv6Choice::On => Ipv6::On,
            Ipv6Choice::Off => Ipv6::Off,
        }
    }
}

fn print_change(family: Family, change: &Change) {
    match change {
        Change::Unchanged => println!("{family}: the rules were there"),
        Change::Written(program) => println!("{family}: written with {program}"),
    }
}
