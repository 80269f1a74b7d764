//! The pod's own addresses.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use nix::ifaddrs::getifaddrs;

/// The addresses of this pod's interfaces, read again when an unknown one is asked for.
#[derive(Clone, Debug)]
pub struct LocalAddresses {
    known: Arc<ArcSwap<Vec<IpAddr>>>,
}

impl LocalAddresses {
    /// Reads the interfaces now.
    pub fn read() -> Self {
        Self { known: Arc::new(ArcSwap::from_pointee(interfaces())) }
    }

    /// Whether `address` is one of the pod's. A miss reads the interfaces again: they may have come late.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        if address.is_loopback() || self.known.load().contains(&address) {
            return true;
        }
        let fresh = interfaces();
        let found = fresh.contains(&address);
        self.known.store(Arc::new(fresh));
        found
    }

    /// All of them, loopback ones too.
    pub fn all(&self) -> Vec<IpAddr> {
        self.known.load().to_vec()
    }
}

fn interfaces() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(v4) = address.as_sockaddr_in() {
                return Some(IpAddr::V4(v4.ip()));
            }
            address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6).ip())
        })
        .collect()
}
