//! Inside the namespaces, process 1 of its PID namespace: starts the mesh, tells what flows, and ends it.

use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use http::HeaderMap;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::commands::Commands;
use crate::error::{Context, DemoError};
use crate::figures::{Counts, Figures, HEAD};
use crate::mesh::{self, METRICS_PORT, Mesh, Sockets};
use crate::orders::{self, Orders};
use crate::plan::PODS;
use crate::private_files::Files;
use crate::process::{Event, Kind, Roster, tail};
use crate::screen::say;
use crate::service::plain_http;
use crate::welcome::{Doors, welcome};

/// The head of the columns comes again, so that it does not scroll away.
const LINES_PER_HEAD: u32 = 20;
/// Metrics that are not here after that long count as not changed.
const SCRAPE_PATIENCE: Duration = Duration::from_millis(800);

/// Runs the mesh that the process on the host ordered on standard input, until it says stop or is gone.
///
/// # Errors
/// The first step that failed, or the sidecar that ended.
pub fn supervise() -> Result<ExitCode, DemoError> {
    // The process on the host holds signals back; whatever runs here must end by them.
    SigSet::all().thread_unblock().context(|| "let signals in".into())?;
    let (sender, mut events) = unbounded_channel();
    let orders = orders::receive(sender.clone())?;
    // Other users must get at the files meant for them, whatever the mask of whoever started the demo.
    umask(Mode::from_bits_truncate(0o022));
    let files = Files::prepare()?;
    let logs = orders.logs.clone().unwrap_or_else(|| files.path("logs"));
    fs::create_dir_all(&logs).context(|| format!("make {}", logs.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context(|| "start the runtime".into())?.block_on(async {
        let mut roster = Roster::new(logs, sender);
        let result = run(orders, &files, &mut roster, &mut events).await;
        roster.stop(&mut events).await;
        result.map(|()| ExitCode::SUCCESS)
    })
}

async fn run(
    orders: Orders,
    files: &Files,
    roster: &mut Roster,
    events: &mut UnboundedReceiver<Event>,
) -> Result<(), DemoError> {
    let commands = Commands { files, exemption: orders.exemption, access_log: orders.access_log };
    let doors = Doors::new(&orders);
    say("Starting a mesh: CA, discovery, an entry and five pods, each with its sidecar …")?;
    let sockets = Sockets::take(orders.entry, orders.admin)?;
    let mesh = tokio::select! {
        mesh = mesh::start(&commands, roster, sockets, orders.requests_per_second) => mesh?,
        event = events.recv() => return match event {
            Some(Event::Ended { process, status }) => {
                let name = roster.remove(process).map_or("a process".into(), |(name, _)| name);
                Err(roster.ended(&name, status))
            }
            Some(Event::Stop) | None => Ok(()),
        },
    };
    say(&welcome(&doors, &mesh, roster.logs()))?;
    watch(&mesh, roster, events).await
}

/// A line a second, until something happens that ends the mesh.
async fn watch(
    _pods: &Mesh,
    roster: &mut Roster,
    events: &mut UnboundedReceiver<Event>,
) -> Result<(), DemoError> {
    let (began, mut figures, mut lines) = (Instant::now(), Figures::default(), 0);
    let mut latest = vec![Counts::default(); PODS.len()];
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::Ended { process, status }) => mourn(roster, process, status)?,
                Some(Event::Stop) | None => {
                    return say("Stopping …");
                }
            },
            _ = second.tick() => {
                scrape(&mut latest).await;
                if lines % LINES_PER_HEAD == 0 {
                    say(HEAD)?;
                }
                lines += 1;
                say(&figures.line(began.elapsed(), latest.clone()).to_string())?;
            }
        }
    }
}

/// A sidecar's end ends the mesh. Anything else may be killed to see what the mesh makes of it.
fn mourn(roster: &mut Roster, process: u32, status: String) -> Result<(), DemoError> {
    match roster.remove(process) {
        Some((name, Kind::Sidecar)) => Err(roster.ended(&name, status)),
        Some((name, _)) => {
            let log = roster.log(&name);
            say(&format!("{name} ended ({status}); the mesh goes on. The end of its log:\n{}", tail(&log)))
        }
        None => Ok(()),
    }
}

/// Reads all sidecars' metrics at once.
async fn scrape(latest: &mut [Counts]) {
    let mut answers = JoinSet::new();
    for (index, pod) in PODS.iter().enumerate() {
        let address = format!("{}:{METRICS_PORT}", pod.address);
        answers.spawn(async move {
            let none = HeaderMap::new();
            let answer =
                timeout(SCRAPE_PATIENCE, plain_http::get(&address, "/metrics", &none)).await.ok()?.ok()?;
            answer.status.is_success().then(|| (index, Counts::read(&String::from_utf8_lossy(&answer.body))))
        });
    }
    while let Some(answer) = answers.join_next().await {
        if let Ok(Some((index, counts))) = answer {
            latest[index] = counts;
        }
    }
}
