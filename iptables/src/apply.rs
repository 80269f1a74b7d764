//! Bringing a pod's nat tables to what the settings say, and back.

use std::fs;
use std::io;

use crate::error::Error;
use crate::installed::Installed;
use crate::loopback;
use crate::render::{Chain, chains};
use crate::tools::{Backend, Tools, check_mapped};
use crate::{Family, Settings};

/// Whether IPv6 gets rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv6 {
    /// When the pod has an IPv6 address, be it ::1 alone: so apply after the interfaces are up. A kernel that has
    /// IPv6 but no nat table for it is an error, since the pod would be open on that side.
    #[default]
    Auto,
    On,
    Off,
}

/// What was done, for each family that has rules now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub ipv4: Change,
    pub ipv6: Option<Change>,
}

/// What was done to one nat table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The rules were there.
    Unchanged,
    /// They were written, with the backend of this name: `iptables-nft`, `ip6tables-legacy`.
    Written(String),
}

/// From which families something was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleaned {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Ipv6 {
    /// Whether this pod gets IPv6 rules. A missing file means a kernel without IPv6, an empty one that it is
    /// switched off in this pod.
    pub(crate) fn is_wanted(self) -> Result<bool, Error> {
        const PATH: &str = "/proc/thread-self/net/if_inet6";
        match self {
            Self::On => Ok(true),
            Self::Off => Ok(false),
            Self::Auto => match fs::read_to_string(PATH) {
                Ok(addresses) => Ok(!addresses.trim().is_empty()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(source) => Err(Error::Proc { path: PATH, source }),
            },
        }
    }

    pub(crate) fn families(self) -> Result<&'static [Family], Error> {
        Ok(if self.is_wanted()? { &Family::ALL } else { &Family::ALL[..1] })
    }
}

/// Makes the pod's redirect rules those of the settings, whatever was there before. Each family's rules change
/// in one transaction. Connections that exist already keep their way.
///
/// Needs NET_ADMIN in the network namespace, and the programs of iptables.
pub fn apply(settings: &Settings, ipv6: Ipv6, tools: &Tools) -> Result<Applied, Error> {
    settings.check()?;
    check_mapped(settings.owner)?;
    let ipv6 = ipv6.is_wanted()?;
    let ipv4 = apply_family(settings, Family::Ipv4, tools)?;
    let ipv6 = if ipv6 {
        Some(apply_family(settings, Family::Ipv6, tools)?)
    } else {
        clean_family(Family::Ipv6, tools)?;
        None
    };
    if ipv6.is_some() && settings.capture_inbound {
        loopback::add_inbound_source()?;
    } else {
        loopback::remove_inbound_source()?;
    }
    Ok(Applied { ipv4, ipv6 })
}

/// Removes all redirect rules of the mesh, of both families and both backends, and ::6 from `lo`.
pub fn clean(tools: &Tools) -> Result<Cleaned, Error> {
    tools.backends(Family::Ipv4)?;
    let cleaned =
        Cleaned { ipv4: clean_family(Family::Ipv4, tools)?, ipv6: clean_family(Family::Ipv6, tools)? };
    loopback::remove_inbound_source()?;
    Ok(cleaned)
}

/// Writes with the first backend that works, and takes what an earlier run wrote with another one away.
fn apply_family(settings: &Settings, family: Family, tools: &Tools) -> Result<Change, Error> {
    let backends = tools.backends(family)?;
    let wanted = chains(settings, family);
    let mut attempts = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let written = backend.save().and_then(|saved| write(backend, &Installed::read(&saved), &wanted));
        match written {
            Ok(change) => {
                for (_, other) in backends.iter().enumerate().filter(|(other, _)| *other != index) {
                    clean_backend(other, family)?;
                }
                return Ok(change);
            }
            Err(attempt) => {
                tracing::debug!(
                    program = attempt.program,
                    output = attempt.output,
                    "this iptables does not work here"
                );
                attempts.push(attempt);
            }
        }
    }
    Err(Error::Refused { action: "write", family, attempts })
}

fn write(backend: &Backend, installed: &Installed, wanted: &[Chain]) -> Result<Change, crate::Attempt> {
    match installed.transaction(wanted) {
        None => Ok(Change::Unchanged),
        Some(input) => backend.restore(&input).map(|()| Change::Written(backend.name())),
    }
}

fn clean_family(family: Family, tools: &Tools) -> Result<bool, Error> {
    // A machine that has no program for a family has got no rules from one.
    let Ok(backends) = tools.backends(family) else {
        return Ok(false);
    };
    let mut removed = false;
    for backend in &backends {
        removed |= clean_backend(backend, family)?;
    }
    Ok(removed)
}

/// A table that can't be read because the kernel does not have it holds no rules; one that may not be read might.
fn clean_backend(backend: &Backend, family: Family) -> Result<bool, Error> {
    let refused = |attempt| Error::Refused { action: "remove", family, attempts: vec![attempt] };
    if !backend.may_have_rules() {
        return Ok(false);
    }
    let installed = match backend.save() {
        Ok(saved) => Installed::read(&saved),
        Err(attempt) if attempt.cause == crate::Cause::NotPermitted => {
            return Err(refused(attempt));
        }
        Err(_) => return Ok(false),
    };
    match installed.transaction(&[]) {
        None => Ok(false),
        Some(input) => backend.restore(&input).map(|()| true).map_err(refused),
    }
}
