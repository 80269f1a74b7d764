//! What a user may say about the redirect.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Cidr;

/// What to redirect, where to, and what to leave alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Port that the proxy's outbound side listens on, on loopback. Default 15001.
    pub outbound_port: u16,
    /// Port that the proxy's inbound side listens on, on all addresses: what comes from outside is
    /// redirected to the address of the interface that it came in by. Default 15006.
    pub inbound_port: u16,
    /// Port of metrics and rewritten probes, reachable from outside as it is. Default 15020.
    pub metrics_port: u16,
    /// Port of the proxy's readiness and liveness, reachable from outside as it is. Default 15021.
    pub health_port: u16,
    /// Ports of the pod that are reached without the proxy. Default: none.
    pub skip_inbound_ports: BTreeSet<u16>,
    /// Destination ports that the workload reaches without the proxy. Default: none.
    pub skip_outbound_ports: BTreeSet<u16>,
    /// Destinations that the workload reaches without the proxy, beside those of
    /// [`Settings::METADATA_SERVICES`]. Default: none.
    pub skip_outbound_cidrs: BTreeSet<Cidr>,
    /// How the proxy's own connections are told from the workload's. Default: uid and gid 1337.
    pub owner: Owner,
    /// Whether what comes from outside goes to the inbound side. Default true.
    pub capture_inbound: bool,
    /// Whether what the workload sends goes to the outbound side. Default true.
    pub capture_outbound: bool,
}

/// How the proxy's own connections are told from the workload's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// By the user or the group that opened the socket: either is enough.
    User {
        /// User ID of the proxy.
        uid: u32,
        /// Group ID of the proxy.
        gid: u32,
    },
    /// By the packet mark (SO_MARK) on the socket: for user namespaces in which the proxy's uid is not
    /// mapped. A workload with NET_ADMIN or NET_RAW can set the same mark and so leave the mesh.
    Mark {
        /// Mark on what the proxy opens.
        proxy: u32,
        /// Mark on what the inbound side opens to the workload. This is never redirected, whatever address
        /// it goes to.
        inbound: u32,
    },
}

/// An address family; each has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// Why settings make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SettingsError {
    #[error("the {0} port is 0: give a port from 1 to 65535")]
    NoPort(&'static str),
    #[error("the {0} port and the {1} port are both {2}: give each its own")]
    SamePort(&'static str, &'static str, u16),
    #[error(
        "the inbound side's mark is the proxy's mark, {0}: what the inbound side hands to the workload would come back to it"
    )]
    SameMark(u32),
    #[error("the mark 0 is on every packet: give another")]
    NoMark,
}

impl Settings {
    /// Cloud metadata services (link-local, and the IPv6 address of Amazon's): instance credentials are
    /// served there to whoever asks from the machine, so they are not for a proxy to relay.
    pub const METADATA_SERVICES: [(IpAddr, u8); 2] = [
        (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
        (IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0)), 32),
    ];

    /// All blocks of a family that the workload reaches without the proxy, in a fixed order.
    pub(crate) fn skipped_cidrs(&self, family: Family) -> BTreeSet<Cidr> {
        let metadata =
            Self::METADATA_SERVICES.into_iter().filter_map(|(address, prefix)| Cidr::new(address, prefix));
        metadata
            .chain(self.skip_outbound_cidrs.iter().copied())
            .filter(|block| block.family() == family)
            .collect()
    }

    /// Finds settings that would redirect the proxy to itself, and ports that are none.
    pub fn check(&self) -> Result<(), SettingsError> {
        let ports = [
            ("outbound", self.outbound_port),
            ("inbound", self.inbound_port),
            ("metrics", self.metrics_port),
            ("health", self.health_port),
        ];
        for (index, (name, port)) in ports.into_iter().enumerate() {
            if port == 0 {
                return Err(SettingsError::NoPort(name));
            }
            if let Some((earlier, _)) = ports[..index].iter().find(|(_, other)| *other == port) {
                return Err(SettingsError::SamePort(earlier, name, port));
            }
        }
        for (name, skipped) in
            [("skipped inbound", &self.skip_inbound_ports), ("skipped outbound", &self.skip_outbound_ports)]
        {
            if skipped.contains(&0) {
                return Err(SettingsError::NoPort(name));
            }
        }
        match self.owner {
            Owner::Mark { proxy: 0, .. } | Owner::Mark { inbound: 0, .. } => Err(SettingsError::NoMark),
            Owner::Mark { proxy, inbound } if proxy == inbound => Err(SettingsError::SameMark(proxy)),
            Owner::Mark { .. } | Owner::User { .. } => Ok(()),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            metrics_port: 15020,
            health_port: 15021,
            skip_inbound_ports: BTreeSet::new(),
            skip_outbound_ports: BTreeSet::new(),
            skip_outbound_cidrs: BTreeSet::new(),
            owner: Owner::USER,
            capture_inbound: true,
            capture_outbound: true,
        }
    }
}

impl Owner {
    /// The uid and gid that the proxy runs under in a pod.
    pub const USER: Self = Self::User { uid: 1337, gid: 1337 };
    /// The marks that the proxy puts on its sockets where uids can't be mapped.
    pub const MARK: Self = Self::Mark { proxy: 1337, inbound: 1338 };
}

impl Family {
    /// Both, in the order in which they are applied.
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }

    /// The source address from which the inbound side dials the workload. The IPv4 one is the kernel's
    /// already (127.0.0.0/8); the IPv6 one has to be put on `lo`, where only ::1 is.
    pub fn inbound_source(self) -> IpAddr {
        match self {
            Self::Ipv4 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "IPv4",
            Self::Ipv6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let same_port = Settings { inbound_port: 15001, ..Settings::default() };
        let mark = |proxy, inbound| Settings { owner: Owner::Mark { proxy, inbound }, ..Settings::default() };
        let no_port = Settings { health_port: 0, ..Settings::default() };
        let skipped_inbound = Settings { skip_inbound_ports: [22, 0].into(), ..Settings::default() };
        let skipped_outbound = Settings { skip_outbound_ports: [0].into(), ..Settings::default() };
        for (settings, expected) in [
            (Settings::default(), Ok(())),
            (mark(1337, 1338), Ok(())),
            (same_port, Err(SettingsError::SamePort("outbound", "inbound", 15001))),
            (no_port, Err(SettingsError::NoPort("health"))),
            (skipped_inbound, Err(SettingsError::NoPort("skipped inbound"))),
            (skipped_outbound, Err(SettingsError::NoPort("skipped outbound"))),
            (mark(7, 7), Err(SettingsError::SameMark(7))),
            (mark(0, 7), Err(SettingsError::NoMark)),
        ] {
            assert_eq!(settings.check(), expected);
        }
    }
}
