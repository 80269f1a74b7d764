//! Addresses that never lead to an endpoint: discovery refuses them, and sidecars drop them from answers.

use std::net::IpAddr;

/// Whether an address means this machine, its link, a group, or its cloud's metadata service.
pub fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(ip) => {
            // 0.0.0.0/8 is "this host" (RFC 1122 3.2.1.3): Linux takes 0.0.0.0 for loopback.
            ip.octets()[0] == 0
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip.is_broadcast()
        }
        IpAddr::V6(ip) => {
            ip.is_unspecified()
                || ip.is_loopback()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
                // fd00:ec2::/32 is what one cloud uses for its metadata service; the redirect rules leave it alone too.
                || (ip.segments()[0] == 0xfd00 && ip.segments()[1] == 0x0ec2)
        }
    }
}
