//! What every program on this machine can look up: the hosts file and ordinary DNS.

use std::net::IpAddr;

use super::believe::Families;
use super::dns::Dns;
use super::hosts::HostsFile;
use super::outcome::Miss;
use super::search::{self, Search};

/// The hosts file, ordinary DNS, and how short names are made full.
pub(super) struct Plain {
    pub hosts: HostsFile,
    pub search: Search,
    pub dns: Dns,
}

impl Plain {
    /// The addresses of a server of the mesh, which proves itself: a lie in them can only keep it from being found.
    pub(super) async fn server_addresses(&self, host: &str) -> Result<Vec<IpAddr>, Miss> {
        if let Some(addresses) =
            search::name(host).as_deref().and_then(|name| self.hosts.table().get(name).map(<[_]>::to_vec))
        {
            return Ok(addresses);
        }
        let families = Families { v4: true, v6: true };
        let mut miss = Miss::absent(None);
        for name in self.search.candidates(host) {
            match self.dns.addresses(&name, families).await {
                Ok((addresses, _)) => return Ok(addresses),
                Err(failed @ Miss::Failed(_)) => miss = failed,
                Err(Miss::Absent { .. }) => {}
            }
        }
        Err(miss)
    }
}
