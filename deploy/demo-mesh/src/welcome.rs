//! What the demo says when the mesh is up: what to open, what to type, where to look.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::mesh::Mesh;
use crate::namespace::Exemption;
use crate::orders::Orders;
use crate::plan::{NAMESPACE, PODS};
use crate::screen::bold;

/// Where the host gets at the mesh.
#[derive(Debug)]
pub struct Doors {
    entry: u16,
    admin: Vec<u16>,
    exemption: Exemption,
    kept_logs: bool,
}

impl Doors {
    pub fn new(orders: &Orders) -> Self {
        Self {
            entry: orders.entry.port,
            admin: orders.admin.iter().map(|socket| socket.port).collect(),
            exemption: orders.exemption,
            kept_logs: orders.logs.is_some(),
        }
    }
}

/// The text, for a mesh whose logs are in `logs`.
pub fn welcome(doors: &Doors, mesh: &Mesh, logs: &Path) -> String {
    let mut text = String::new();
    write_to(&mut text, doors, mesh, logs).expect("a String takes everything");
    text
}

fn write_to(text: &mut String, doors: &Doors, mesh: &Mesh, logs: &Path) -> std::fmt::Result {
    let url = format!("http://127.0.0.1:{}", doors.entry);
    let redis = if mesh.real_redis { "redis-server" } else { "a stand-in for redis, which is not installed" };
    writeln!(text, "\nThe mesh is up. Open {}", bold(&format!("{url}/")))?;
    writeln!(text, "or type:")?;
    for (path, meaning) in [
        (
            "/api",
            "web calls api by HTTP: of three endpoints one fails now and then, and a slow one is rarely asked"
                .to_owned(),
        ),
        ("/grpc", "the same by gRPC".to_owned()),
        ("/store", format!("web counts visits in store ({redis})")),
        ("/stream", "server-sent events, without end".to_owned()),
    ] {
        writeln!(text, "  curl {url}{path:<8} # {meaning}")?;
    }
    writeln!(
        text,
        "\nThe pods; each sidecar's admin port has /config, /certificates, /upstreams and /metrics:"
    )?;
    // The host's number of this process: /proc is the host's.
    let supervisor = fs::read_link("/proc/self").unwrap_or_default().display().to_string();
    let proc = Path::new("/proc").join(&supervisor);
    for ((pod, namespace), admin) in PODS.iter().zip(&mesh.pods).zip(&doors.admin) {
        writeln!(
            text,
            "  {:<6} {:<11} http://127.0.0.1:{admin}/  {}",
            pod.name,
            pod.address,
            namespace.path(&proc).display()
        )?;
    }
    let user = match doors.exemption {
        Exemption::User => String::new(),
        Exemption::Mark => format!("--user={} --preserve-credentials ", proc.join("ns/user").display()),
    };
    writeln!(text, "\nTo look around inside a pod, as a program beside the sidecar:")?;
    writeln!(
        text,
        "  nsenter {user}--mount={} --net={} curl -s http://api.{NAMESPACE}:8080/",
        proc.join("ns/mnt").display(),
        mesh.pods[1].path(&proc).display()
    )?;
    let shown = if doors.kept_logs {
        logs.to_owned()
    } else {
        proc.join("root").join(logs.strip_prefix("/").unwrap_or(logs))
    };
    writeln!(text, "Logs: {}", shown.display())?;
    writeln!(
        text,
        "Ctrl-C ends it all. Below, a line a second: requests that ended at the entry, hops of the whole mesh, how long\n\
         requests of the last ten seconds took to the end of their responses (a stream: all the time it flowed), share\n\
         of hops over mutual TLS, opaque TCP connections.\n"
    )
}
