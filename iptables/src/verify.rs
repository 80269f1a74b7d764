//! Seeing for oneself that the rules do what they should: are they the installed ones, and where do real
//! connections arrive?
//!
//! From inside a pod everything can be tried but one thing: a connection that really comes from outside. What
//! the pod sends to itself never passes PREROUTING, so of that direction the rules are compared, and its other
//! half is tried with what the proxy sends to the pod's own address.

use std::fmt;
use std::net::SocketAddr;

use crate::error::{Attempt, Error};
use crate::installed::Installed;
use crate::loopback;
use crate::render::chains;
use crate::tools::{Tools, check_mapped};
use crate::{Family, Ipv6, Owner, Settings};

mod addresses;
mod dial;

use dial::{Caller, Dial, Seen};

/// What was looked at, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What should be so.
    pub name: String,
    pub outcome: Outcome,
}

/// How a check ended; each with the details for a reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed(String),
    /// It could not be tried here.
    Skipped(String),
    Failed(String),
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        !self.checks.iter().any(|check| matches!(check.outcome, Outcome::Failed(_)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, outcome } in &self.checks {
            match outcome {
                Outcome::Passed(details) => writeln!(f, "ok       {name}: {details}")?,
                Outcome::Skipped(details) => writeln!(f, "skipped  {name}: {details}")?,
                Outcome::Failed(details) => writeln!(f, "FAILED   {name}: {details}")?,
            }
        }
        Ok(())
    }
}

/// Compares the installed rules with the settings, and tries them with connections of its own: it listens for a
/// moment where the proxy will, dials, and requires that the kernel tells it the original destination. Ports that
/// are taken, as by a sidecar that runs already, are left alone and their checks skipped.
///
/// Needs NET_ADMIN to read the rules. Run it neither as the proxy's user nor in its group: nothing of theirs is
/// redirected.
pub fn verify(settings: &Settings, ipv6: Ipv6, tools: &Tools) -> Result<Report, Error> {
    settings.check()?;
    check_mapped(settings.owner)?;
    let mut checks = Vec::new();
    for &family in ipv6.families()? {
        let mut check = |name: &str, outcome| {
            checks.push(Check { name: format!("{family} {name}"), outcome });
        };
        check("rules are the settings' rules", installed(settings, family, tools)?);
        if settings.capture_outbound {
            check("traffic of the workload goes to the outbound side", outbound(settings, family));
        }
        if settings.capture_outbound && settings.capture_inbound {
            check(
                "traffic of the proxy to the pod's own address goes to the inbound side",
                inbound(settings, family),
            );
        }
        if settings.capture_inbound {
            check("traffic of the inbound side goes to the workload", workload(family));
        }
    }
    Ok(Report { checks })
}

fn installed(settings: &Settings, family: Family, tools: &Tools) -> Result<Outcome, Error> {
    const REMEDY: &str = "run `outrigger iptables apply` with the same flags";
    let wanted = chains(settings, family);
    let mut found = Vec::new();
    let mut attempts: Vec<Attempt> = Vec::new();
    for backend in tools.backends(family)?.iter().filter(|backend| backend.may_have_rules()) {
        match backend.save() {
            Ok(saved) => found.push((backend.name(), Installed::read(&saved))),
            Err(attempt) => attempts.push(attempt),
        }
    }
    if found.is_empty() && !attempts.is_empty() {
        return Err(Error::Refused { action: "read", family, attempts });
    }
    found.retain(|(_, installed)| !installed.is_empty());
    Ok(match found.as_slice() {
        [] => Outcome::Failed(format!("there are none: {REMEDY}")),
        [(program, installed)] if installed.transaction(&wanted).is_none() => {
            Outcome::Passed(format!("as {program} sees them"))
        }
        [(_, installed)] => {
            let details = match installed.difference(&wanted) {
                (missing, _) if !missing.is_empty() => format!("missing: {}", missing.join("; ")),
                (_, surplus) if !surplus.is_empty() => {
                    format!("should not be there: {}", surplus.join("; "))
                }
                _ => "a rule is there twice, or their order is another".to_owned(),
            };
            Outcome::Failed(format!("{details}; {REMEDY}"))
        }
        several => {
            let programs: Vec<&str> = several.iter().map(|(program, _)| program.as_str()).collect();
            Outcome::Failed(format!("there are some of {}: {REMEDY}", programs.join(" and of ")))
        }
    })
}

fn outbound(settings: &Settings, family: Family) -> Outcome {
    if let Owner::User { uid, gid } = settings.owner
        && (nix::unistd::geteuid().as_raw() == uid || nix::unistd::getegid().as_raw() == gid)
    {
        return Outcome::Skipped(format!(
            "this runs as the proxy's user {uid} or group {gid}, whose traffic is not redirected: run it as another user"
        ));
    }
    let Some(destination) = addresses::outside(settings, family) else {
        return Outcome::Skipped(format!(
            "no {family} address outside the pod has a route, or all are excluded"
        ));
    };
    let listening = SocketAddr::new(addresses::loopback(family), settings.outbound_port);
    redirected(Dial { listening, destination, source: None, caller: Caller::Workload })
}

fn inbound(settings: &Settings, family: Family) -> Outcome {
    let Some(address) = addresses::of_pod(settings, family) else {
        return Outcome::Skipped(format!("the pod has no {family} address but loopback ones"));
    };
    let listening = SocketAddr::new(addresses::loopback(family), settings.inbound_port);
    redirected(Dial {
        listening,
        destination: SocketAddr::new(address, addresses::free_port(settings)),
        source: None,
        caller: Caller::Proxy(settings.owner),
    })
}

fn redirected(dial: Dial) -> Outcome {
    let (listening, destination) = (dial.listening, dial.destination);
    match dial.run() {
        Ok(Seen { original: Some(original), .. }) if original == destination => {
            Outcome::Passed(format!("dialled {destination}, arrived at {listening} with its original destination"))
        }
        Ok(Seen { original, .. }) => Outcome::Failed(format!(
            "dialled {destination}, arrived at {listening}, but the original destination is {}: \
             is connection tracking switched off for it (NOTRACK)?",
            original.map_or("unknown".to_owned(), |address| address.to_string())
        )),
        Err(error) => error.outcome(&format!(
            "dialled {destination}, should have arrived at {listening}: does another program's rule in the nat table come first?"
        )),
    }
}

/// Where the workload listens is nobody's business: any port of the pod stands for it.
fn workload(family: Family) -> Outcome {
    if family == Family::Ipv6 && !loopback::inbound_source_is_there() {
        return Outcome::Failed("the address ::6 is not on lo: run `outrigger iptables apply`".to_owned());
    }
    let Some(address) = addresses::of_pod(&Settings::default(), family) else {
        return Outcome::Skipped(format!("the pod has no {family} address but loopback ones"));
    };
    let source = family.inbound_source();
    let listening = SocketAddr::new(address, 0);
    let dial = Dial { listening, destination: listening, source: Some(source), caller: Caller::Workload };
    match dial.run() {
        Ok(seen) => Outcome::Passed(format!("dialled {}, arrived there from {}", seen.destination, source)),
        Err(error) => error.outcome(&format!(
            "dialled an address of the pod, {address}, from {source}, and should have arrived there"
        )),
    }
}
