//! Which addresses of an answer are believed.
//!
//! An answer that names this machine would let whoever controls a DNS zone reach what listens on loopback only (the
//! admin port), a cloud's metadata service, or the proxy itself in a circle.

use std::net::IpAddr;

use outrigger_discovery::is_local;

use super::answer::ResolvedEndpoint;

/// The rules of one lookup.
pub(super) struct Belief {
    own: Vec<IpAddr>,
    exempt: Option<IpAddr>,
    families: Families,
}

/// Which address families can be reached at all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Families {
    pub v4: bool,
    pub v6: bool,
}

impl Belief {
    pub(super) fn new(own: Vec<IpAddr>) -> Self {
        let own: Vec<IpAddr> = own.into_iter().map(|ip| ip.to_canonical()).collect();
        Self { families: families(&own), own, exempt: None }
    }

    /// The address that the client itself dialled is taken whatever it is.
    pub(super) fn with_dialled(mut self, dialled: IpAddr) -> Self {
        self.exempt = Some(dialled.to_canonical());
        self
    }

    /// This machine's own addresses are taken too, those of only local meaning excepted.
    pub(super) fn with_own(mut self) -> Self {
        self.own.clear();
        self
    }

    /// The families that can be reached.
    pub(super) fn families(&self) -> Families {
        self.families
    }

    /// Whether an answer may lead to this address.
    pub(super) fn accepts(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.exempt == Some(ip) || !(is_local(ip) || self.own.contains(&ip))
    }

    /// Divides endpoints into those believed, sorted, each address once, and the addresses dropped. Those of a family
    /// that can't be reached are in neither.
    pub(super) fn sift(&self, endpoints: Vec<ResolvedEndpoint>) -> (Vec<ResolvedEndpoint>, Vec<IpAddr>) {
        let families = self.families;
        let mut believed = Vec::with_capacity(endpoints.len());
        let mut dropped = Vec::new();
        for mut endpoint in endpoints {
            let ip = endpoint.address.ip().to_canonical();
            endpoint.address.set_ip(ip);
            if !self.accepts(ip) {
                dropped.push(ip);
            } else if self.exempt == Some(ip) || if ip.is_ipv4() { families.v4 } else { families.v6 } {
                believed.push(endpoint);
            }
        }
        believed.sort_by_key(|endpoint| endpoint.address);
        believed.dedup_by_key(|endpoint| endpoint.address);
        dropped.sort();
        dropped.dedup();
        (believed, dropped)
    }
}

/// The families in which a machine has an address of more than local meaning; where it has none at all, both.
fn families(own: &[IpAddr]) -> Families {
    let mut global = own.iter().filter(|ip| !is_local(**ip)).peekable();
    if global.peek().is_none() {
        return Families { v4: true, v6: true };
    }
    global.fold(Families { v4: false, v6: false }, |known, ip| Families {
        v4: known.v4 || ip.is_ipv4(),
        v6: known.v6 || ip.is_ipv6(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn endpoint(text: &str) -> ResolvedEndpoint {
        ResolvedEndpoint {
            address: text.parse().unwrap(),
            weight: 1,
            zone: None,
            mesh: None,
            beside_sidecar: false,
            identity: None,
            opaque: false,
        }
    }

    #[test]
    fn an_answer_never_leads_to_this_machine() {
        let belief = Belief::new(vec![ip("10.0.0.5"), ip("fd00::5")]);
        for refused in [
            "127.0.0.1",
            "127.8.8.8",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "10.0.0.5",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00::5",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.5",
            "::ffff:169.254.169.254",
        ] {
            assert!(!belief.accepts(ip(refused)), "{refused}");
        }
        for accepted in ["10.0.0.6", "192.168.1.1", "8.8.8.8", "fd00::6", "2001:db8::1"] {
            assert!(belief.accepts(ip(accepted)), "{accepted}");
        }
    }

    #[test]
    fn the_address_that_was_dialled_is_taken_whatever_it_is() {
        let belief = Belief::new(vec![ip("10.0.0.5")]).with_dialled(ip("10.0.0.5"));
        assert!(belief.accepts(ip("10.0.0.5")));
        assert!(!belief.accepts(ip("127.0.0.1")));
        let belief = Belief::new(vec![ip("10.0.0.5"), ip("127.0.0.1")]).with_own();
        assert!(belief.accepts(ip("10.0.0.5")));
        assert!(!belief.accepts(ip("127.0.0.1")));
    }

    #[test]
    fn the_families_are_those_in_which_there_is_an_address() {
        for (own, v4, v6) in [
            (vec![], true, true),
            (vec!["127.0.0.1", "::1"], true, true),
            (vec!["127.0.0.1", "10.0.0.5", "fe80::1", "::1"], true, false),
            (vec!["fe80::1", "fd00::5", "127.0.0.1"], false, true),
            (vec!["10.0.0.5", "2001:db8::5"], true, true),
        ] {
            let belief = Belief::new(own.iter().map(|text| ip(text)).collect());
            assert_eq!(belief.families(), Families { v4, v6 }, "{own:?}");
        }
    }

    #[test]
    fn endpoints_come_out_sorted_once_each_and_the_dropped_are_named() {
        let belief = Belief::new(vec![ip("10.0.0.5")]);
        let (believed, dropped) = belief.sift(vec![
            endpoint("10.0.0.9:80"),
            endpoint("10.0.0.5:80"),
            endpoint("[2001:db8::1]:80"),
            endpoint("10.0.0.7:80"),
            endpoint("[::ffff:10.0.0.9]:80"),
            endpoint("127.0.0.1:80"),
        ]);
        let addresses: Vec<_> = believed.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["10.0.0.7:80", "10.0.0.9:80"]);
        assert_eq!(dropped, [ip("10.0.0.5"), ip("127.0.0.1")]);
    }
}
