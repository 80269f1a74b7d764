//! Addresses to try the rules with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use crate::{Cidr, Family, Settings};

/// Addresses that nobody has (RFC 5737, RFC 3849): if the rules fail, nobody is bothered.
const DOCUMENTATION: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

pub(super) fn loopback(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// A port that no rule excludes and that is not one of the proxy's.
pub(super) fn free_port(settings: &Settings) -> u16 {
    let own = [settings.outbound_port, settings.inbound_port, settings.metrics_port, settings.health_port];
    let taken = |port: &u16| {
        own.contains(port)
            || settings.skip_inbound_ports.contains(port)
            || settings.skip_outbound_ports.contains(port)
    };
    (1024..=65535).rev().find(|port| !taken(port)).unwrap_or(65535)
}

/// Where a workload's traffic is redirected and the kernel has a route to: an address that nobody has, or, in a
/// pod without a default route, one of the networks that the pod is on.
pub(super) fn outside(settings: &Settings, family: Family) -> Option<SocketAddr> {
    let port = free_port(settings);
    let own = own_networks(family);
    let neighbours = own.iter().filter_map(|&(address, prefix)| neighbour(address, prefix));
    DOCUMENTATION
        .into_iter()
        .filter(|address| Family::of(*address) == family)
        .chain(neighbours)
        .filter(|address| !own.iter().any(|(own, _)| own == address))
        .filter(|address| !is_excluded(settings, *address))
        .map(|address| SocketAddr::new(address, port))
        .find(|address| has_route(*address))
}

/// An address of the pod that others can reach it at.
pub(super) fn of_pod(settings: &Settings, family: Family) -> Option<IpAddr> {
    let mut own = own_networks(family).into_iter();
    own.find(|(address, _)| !is_excluded(settings, *address)).map(|(address, _)| address)
}

fn is_excluded(settings: &Settings, address: IpAddr) -> bool {
    settings.skipped_cidrs(Family::of(address)).iter().any(|block| block.contains(address))
}

/// The kernel looks a route up when a datagram socket is connected, and sends nothing.
fn has_route(destination: SocketAddr) -> bool {
    let from_any = SocketAddr::new(
        match destination {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        },
        0,
    );
    UdpSocket::bind(from_any).and_then(|socket| socket.connect(destination)).is_ok()
}

/// Another address of the same network. The last bit is changed only in a network of two: the address that ends
/// in zeros is the network's own, or that of any router.
fn neighbour(address: IpAddr, prefix: u8) -> Option<IpAddr> {
    let network = Cidr::new(address, prefix)?;
    let nearby: [IpAddr; 2] = match address {
        IpAddr::V4(address) => {
            [address.to_bits() ^ 2, address.to_bits() ^ 1].map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            [address.to_bits() ^ 2, address.to_bits() ^ 1].map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    };
    nearby.into_iter().find(|other| network.contains(*other))
}

/// The pod's addresses, loopback and link-local ones left out (the latter need an interface beside them).
fn own_networks(family: Family) -> Vec<(IpAddr, u8)> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = ip(&interface.address?)?;
            let prefix = match ip(&interface.netmask?)? {
                IpAddr::V4(mask) => mask.to_bits().leading_ones(),
                IpAddr::V6(mask) => mask.to_bits().leading_ones(),
            };
            Some((address, u8::try_from(prefix).ok()?))
        })
        .filter(|(address, _)| Family::of(*address) == family && is_of_use(*address))
        .collect()
}

fn is_of_use(address: IpAddr) -> bool {
    let local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            address.is_unicast_link_local() || IpAddr::V6(address) == Family::Ipv6.inbound_source()
        }
    };
    !local && !address.is_loopback()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}
