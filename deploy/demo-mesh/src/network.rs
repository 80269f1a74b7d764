//! The pods' network: a bridge in the supervisor's namespace, and a pair of virtual interfaces for each pod.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Output, Stdio};

use crate::error::{Context, DemoError};
use crate::namespace::PodNamespace;
use crate::plan::{BRIDGE, PREFIX_LENGTH};

const BRIDGE_NAME: &str = "mesh";

/// Makes the bridge.
///
/// # Errors
/// What ip(8) said.
pub fn make_bridge() -> Result<(), DemoError> {
    let script = format!(
        "link set lo up\nlink add {BRIDGE_NAME} type bridge\naddress add {BRIDGE}/{PREFIX_LENGTH} dev {BRIDGE_NAME}\n\
         link set {BRIDGE_NAME} up\n"
    );
    succeeded("ip", "the demo's namespace", ip(&script))
}

/// Makes a pod's namespace and connects it to the bridge. Its default route leads to the bridge, where nothing is
/// forwarded: it is there because the kernel looks for a route before the redirect rules see a packet.
///
/// # Errors
/// What ip(8) said.
pub fn connect(pod: &str, address: Ipv4Addr) -> Result<PodNamespace, DemoError> {
    let namespace = PodNamespace::new().context(|| format!("make a network namespace for {pod}"))?;
    // The other end goes to the namespace of the supervisor, which is process 1 of its PID namespace.
    let inside = format!(
        "link set lo up\nlink add eth0 type veth peer name {pod} netns 1\naddress add {address}/{PREFIX_LENGTH} dev \
         eth0\nlink set eth0 up\nroute add default via {BRIDGE}\n"
    );
    succeeded("ip", pod, namespace.run(|| ip(&inside)))?;
    succeeded("ip", pod, ip(&format!("link set {pod} master {BRIDGE_NAME} up\n")))?;
    Ok(namespace)
}

fn ip(script: &str) -> io::Result<Output> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes())?;
    }
    child.wait_with_output()
}

/// Turns a command's failure into an error with its output.
///
/// # Errors
/// It could not run or did not exit with 0.
pub fn succeeded(command: &str, place: &str, result: io::Result<Output>) -> Result<(), DemoError> {
    let output = result.context(|| format!("run `{command}` in {place}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stderr, output.stdout].concat();
    Err(DemoError::Command {
        command: command.into(),
        place: place.into(),
        status: output.status.to_string(),
        output: String::from_utf8_lossy(&text).trim().into(),
    })
}
