//! The rules themselves, in the order in which the kernel tries them.
//!
//! They are written exactly as `iptables-save` prints them, so that what is installed can be compared with
//! what is meant.
//!
//! No rule asks for `--syn`. The nat table decides once, on whatever packet connection tracking takes for a
//! connection's first; a crafted one that no rule decided on would stand as a connection that is not redirected.

use std::fmt::Write as _;

use crate::{Family, Owner, Settings};

/// The chain for what comes from outside.
pub const INBOUND_CHAIN: &str = "OUTRIGGER_INBOUND";
/// The chain for what the pod sends.
pub const OUTBOUND_CHAIN: &str = "OUTRIGGER_OUTBOUND";

/// One of the mesh's chains: the rule that leads into it, and its own rules, as `iptables-save` lines.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub name: &'static str,
    pub jump: String,
    pub rules: Vec<String>,
}

/// The rules of one family as the input of `iptables-restore --noflush` (or `ip6tables-restore`) for a pod
/// that has none yet. [`crate::apply`] gives the same input, less what is there already.
pub fn render(settings: &Settings, family: Family) -> String {
    let chains = chains(settings, family);
    let mut input = String::from("*nat\n");
    for chain in &chains {
        let _ = writeln!(input, ":{} - [0:0]", chain.name);
    }
    for chain in &chains {
        for line in chain.rules.iter().chain([&chain.jump]) {
            let _ = writeln!(input, "{line}");
        }
    }
    input.push_str("COMMIT\n");
    input
}

/// The chains that the settings ask for.
pub(crate) fn chains(settings: &Settings, family: Family) -> Vec<Chain> {
    let mut chains = Vec::new();
    if settings.capture_inbound {
        chains.push(inbound(settings));
    }
    if settings.capture_outbound {
        chains.push(outbound(settings, family));
    }
    chains
}

/// Only what goes to the pod itself: a packet routed through the pod to a foreign address is not the proxy's
/// to relay. Traffic over `lo` never comes here, since the nat table has decided on it in OUTPUT.
fn inbound(settings: &Settings) -> Chain {
    let mut rules = Vec::new();
    let own = [settings.metrics_port, settings.health_port];
    for port in own.iter().chain(&settings.skip_inbound_ports) {
        rules.push(format!("-p tcp -m tcp --dport {port} -j RETURN"));
    }
    rules.push(format!("-p tcp -j REDIRECT --to-ports {}", settings.inbound_port));
    Chain::new(INBOUND_CHAIN, "PREROUTING -p tcp -m addrtype --dst-type LOCAL", rules)
}

fn outbound(settings: &Settings, family: Family) -> Chain {
    let (source, loopback) = match family {
        Family::Ipv4 => ("127.0.0.6/32", "127.0.0.0/8"),
        Family::Ipv6 => ("::6/128", "::1/128"),
    };
    let mut rules = vec![format!("-s {source} -o lo -j RETURN")];
    if let Owner::Mark { inbound, .. } = settings.owner {
        rules.push(format!("-m mark --mark {inbound:#x} -j RETURN"));
    }
    for port in &settings.skip_outbound_ports {
        rules.push(format!("-p tcp -m tcp --dport {port} -j RETURN"));
    }
    for block in settings.skipped_cidrs(family) {
        // iptables-save leaves a block that holds every address away.
        let destination = if block.prefix() == 0 { String::new() } else { format!("-d {block} ") };
        rules.push(format!("{destination}-j RETURN"));
    }
    let own = own(settings.owner);
    if settings.capture_inbound {
        // A workload that calls itself through its service enters by the inbound side, as any caller does.
        for own in &own {
            let port = settings.inbound_port;
            rules.push(format!("! -d {loopback} -o lo -p tcp {own} -j REDIRECT --to-ports {port}"));
        }
    }
    for own in &own {
        rules.push(format!("{own} -j RETURN"));
    }
    rules.push("-o lo -j RETURN".to_owned());
    rules.push(format!("-d {loopback} -j RETURN"));
    rules.push(format!("-p tcp -j REDIRECT --to-ports {}", settings.outbound_port));
    Chain::new(OUTBOUND_CHAIN, "OUTPUT -p tcp", rules)
}

/// The matches of which each says that a connection is the proxy's own.
fn own(owner: Owner) -> Vec<String> {
    match owner {
        Owner::User { uid, gid } => {
            vec![format!("-m owner --uid-owner {uid}"), format!("-m owner --gid-owner {gid}")]
        }
        Owner::Mark { proxy, .. } => vec![format!("-m mark --mark {proxy:#x}")],
    }
}

impl Chain {
    fn new(name: &'static str, from: &str, rules: Vec<String>) -> Self {
        Self {
            name,
            jump: format!("-A {from} -j {name}"),
            rules: rules.iter().map(|rule| format!("-A {name} {rule}")).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_golden(settings: &Settings, family: Family, golden: &str) {
        assert_eq!(render(settings, family), golden);
    }

    #[test]
    fn the_defaults_render_as_the_golden_file_says() {
        let settings = Settings::default();
        assert_golden(&settings, Family::Ipv4, include_str!("../tests/golden/default.ipv4.rules"));
        assert_golden(&settings, Family::Ipv6, include_str!("../tests/golden/default.ipv6.rules"));
    }

    #[test]
    fn marks_ports_and_blocks_render_as_the_golden_file_says() {
        let settings = Settings {
            outbound_port: 25001,
            inbound_port: 25006,
            metrics_port: 25020,
            health_port: 25021,
            skip_inbound_ports: [9100, 22].into(),
            skip_outbound_ports: [3306, 53].into(),
            skip_outbound_cidrs: ["10.96.0.1", "192.168.7.7/16", "fd12::/16", "::/0"]
                .map(|block| block.parse().unwrap())
                .into(),
            owner: Owner::MARK,
            ..Settings::default()
        };
        assert_golden(&settings, Family::Ipv4, include_str!("../tests/golden/mark.ipv4.rules"));
        assert_golden(&settings, Family::Ipv6, include_str!("../tests/golden/mark.ipv6.rules"));
    }

    #[test]
    fn one_direction_alone_renders_as_the_golden_file_says() {
        let inbound = Settings { capture_outbound: false, ..Settings::default() };
        let outbound = Settings { capture_inbound: false, ..Settings::default() };
        assert_golden(&inbound, Family::Ipv4, include_str!("../tests/golden/inbound-only.ipv4.rules"));
        assert_golden(&outbound, Family::Ipv4, include_str!("../tests/golden/outbound-only.ipv4.rules"));
    }
}
