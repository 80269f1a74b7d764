//! What of the mesh is in a nat table, and the transaction that makes it what it should be.

use std::fmt::Write as _;

use crate::render::{Chain, INBOUND_CHAIN, OUTBOUND_CHAIN};

const OWN_CHAINS: [&str; 2] = [INBOUND_CHAIN, OUTBOUND_CHAIN];

/// The mesh's part of a nat table. All rules are whole `iptables-save` lines.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    chains: Vec<&'static str>,
    /// The rules in the mesh's own chains.
    rules: Vec<String>,
    /// The rules of other chains that lead into them.
    jumps: Vec<String>,
}

impl Installed {
    /// Reads the output of `iptables-save`.
    pub(crate) fn read(saved: &str) -> Self {
        let mut installed = Self::default();
        for line in saved.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                let name = chain.split_whitespace().next().unwrap_or_default();
                installed.chains.extend(OWN_CHAINS.into_iter().find(|own| *own == name));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                if OWN_CHAINS.iter().any(|own| rule.split_whitespace().next() == Some(own)) {
                    installed.rules.push(line.to_owned());
                } else if leads_to_own(rule) {
                    installed.jumps.push(line.to_owned());
                }
            }
        }
        installed
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The rules that are missing, and those that should not be there; both empty, yet the order may differ.
    pub(crate) fn difference(&self, wanted: &[Chain]) -> (Vec<String>, Vec<String>) {
        let wanted: Vec<&String> =
            wanted.iter().flat_map(|chain| chain.rules.iter().chain([&chain.jump])).collect();
        let present: Vec<&String> = self.rules.iter().chain(&self.jumps).collect();
        let not_in = |these: &[&String], those: &[&String]| {
            let lacking = these.iter().filter(|rule| !those.contains(rule));
            lacking.map(|rule| (*rule).clone()).collect::<Vec<_>>()
        };
        (not_in(&wanted, &present), not_in(&present, &wanted))
    }

    /// The input of `iptables-restore --noflush` that leaves exactly the wanted chains; None when they are
    /// what is there.
    pub(crate) fn transaction(&self, wanted: &[Chain]) -> Option<String> {
        if self.is(wanted) {
            return None;
        }
        let is_wanted = |name: &str| wanted.iter().any(|chain| chain.name == name);
        let gone: Vec<&str> = self.chains.iter().copied().filter(|name| !is_wanted(name)).collect();
        let mut input = String::from("*nat\n");
        // Declaring a chain makes it where it is missing, and empties it where it is there.
        for name in wanted.iter().map(|chain| chain.name).chain(gone.iter().copied()) {
            let _ = writeln!(input, ":{name} - [0:0]");
        }
        for rule in wanted.iter().flat_map(|chain| &chain.rules) {
            let _ = writeln!(input, "{rule}");
        }
        let mut missing: Vec<&String> = wanted.iter().map(|chain| &chain.jump).collect();
        for jump in &self.jumps {
            match missing.iter().position(|wanted| *wanted == jump) {
                Some(index) => drop(missing.remove(index)),
                None => {
                    let _ = writeln!(input, "-D{}", &jump["-A".len()..]);
                }
            }
        }
        for jump in missing {
            let _ = writeln!(input, "{jump}");
        }
        for name in gone {
            let _ = writeln!(input, "-X {name}");
        }
        input.push_str("COMMIT\n");
        Some(input)
    }

    fn is(&self, wanted: &[Chain]) -> bool {
        self.chains.len() == wanted.len()
            && self.jumps.len() == wanted.len()
            && wanted.iter().all(|chain| self.jumps.contains(&chain.jump))
            && wanted.iter().all(|chain| self.rules_of(chain.name).eq(chain.rules.iter()))
    }

    fn rules_of(&self, chain: &str) -> impl Iterator<Item = &String> {
        let of_chain = move |rule: &&String| rule.split_whitespace().nth(1) == Some(chain);
        self.rules.iter().filter(of_chain)
    }
}

fn leads_to_own(rule: &str) -> bool {
    let words: Vec<&str> = rule.split_whitespace().collect();
    words.windows(2).any(|pair| matches!(pair[0], "-j" | "-g") && OWN_CHAINS.contains(&pair[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::chains;
    use crate::{Family, Settings, render};

    const FOREIGN: &str = "*nat\n:PREROUTING ACCEPT [0:0]\n:OTHER - [0:0]\n\
        -A PREROUTING -p tcp -m tcp --dport 30000 -j OTHER\n\
        -A OTHER -m comment --comment \"-j OUTRIGGER\" -j RETURN\nCOMMIT\n";

    fn lines(input: &str) -> Vec<&str> {
        input.lines().collect()
    }

    #[test]
    fn a_pod_without_rules_gets_what_render_says() {
        let settings = Settings::default();
        let input = Installed::read(FOREIGN).transaction(&chains(&settings, Family::Ipv4)).unwrap();
        let rendered = render(&settings, Family::Ipv4);
        let (mut given, mut rendered) = (lines(&input), lines(&rendered));
        given.sort_unstable();
        rendered.sort_unstable();
        assert_eq!(given, rendered);
    }

    #[test]
    fn rules_that_are_there_already_are_left_alone() {
        let settings = Settings::default();
        let saved = render(&settings, Family::Ipv4);
        assert_eq!(Installed::read(&saved).transaction(&chains(&settings, Family::Ipv4)), None);
    }

    #[test]
    fn a_second_jump_goes_and_a_changed_one_is_replaced() {
        let wanted = chains(&Settings::default(), Family::Ipv4);
        let twice = format!(
            "{}\n{}\n-A INPUT -g OUTRIGGER_INBOUND\n",
            render(&Settings::default(), Family::Ipv4),
            wanted[1].jump
        );
        let input = Installed::read(&twice).transaction(&wanted).unwrap();
        let changed: Vec<&str> =
            lines(&input).into_iter().filter(|line| !line.contains("-A OUTRIGGER")).collect();
        assert_eq!(
            changed,
            [
                "*nat",
                ":OUTRIGGER_INBOUND - [0:0]",
                ":OUTRIGGER_OUTBOUND - [0:0]",
                "-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND",
                "-D INPUT -g OUTRIGGER_INBOUND",
                "COMMIT"
            ]
        );
    }

    #[test]
    fn what_is_wanted_no_more_is_removed_and_nothing_else() {
        let saved = format!("{}{FOREIGN}", render(&Settings::default(), Family::Ipv4));
        assert_eq!(
            lines(&Installed::read(&saved).transaction(&[]).unwrap()),
            [
                "*nat",
                ":OUTRIGGER_INBOUND - [0:0]",
                ":OUTRIGGER_OUTBOUND - [0:0]",
                "-D PREROUTING -p tcp -m addrtype --dst-type LOCAL -j OUTRIGGER_INBOUND",
                "-D OUTPUT -p tcp -j OUTRIGGER_OUTBOUND",
                "-X OUTRIGGER_INBOUND",
                "-X OUTRIGGER_OUTBOUND",
                "COMMIT"
            ]
        );
        assert_eq!(Installed::read(FOREIGN).transaction(&[]), None);
    }

    #[test]
    fn rules_in_another_order_are_written_again() {
        let wanted = chains(&Settings::default(), Family::Ipv4);
        let mut installed = Installed::read(&render(&Settings::default(), Family::Ipv4));
        installed.rules.reverse();
        assert!(installed.transaction(&wanted).is_some());
        assert_eq!(installed.difference(&wanted), (Vec::new(), Vec::new()));
    }
}
