//! Clients that ask on and on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::support::pod::Pod;
use crate::support::wait;
use crate::support::wire::Connection;

/// What clients were told, `200 one`, and how often.
pub type Tally = BTreeMap<String, usize>;

/// Clients that send GETs on a connection each, one after the other, until this is dropped.
pub struct Load {
    stop: Arc<AtomicBool>,
    tally: Arc<Mutex<Tally>>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many clients in `web`, each of which sends a request to `to` every `pause`, or as soon as it is answered.
    pub fn start(web: &Pod, to: SocketAddr, host: &str, clients: u32, pause: Duration) -> Self {
        let (stop, tally) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Tally>>::default());
        let begin = Instant::now() + Duration::from_millis(100);
        let clients = (0..clients)
            .map(|number| {
                let (connection, host) = (web.connect(to), host.to_owned());
                let (stop, tally) = (stop.clone(), tally.clone());
                // Not all at the same moment.
                let begin = begin + pause * number / clients;
                spawn(move || ask(connection, &host, begin, pause, &stop, &tally))
            })
            .collect();
        Self { stop, tally, clients }
    }

    /// What clients were told since the last time.
    pub fn take(&self) -> Tally {
        std::mem::take(&mut *self.tally.lock().expect("not poisoned"))
    }

    /// Waits until somebody was told `what`; gives all that was told until then.
    pub fn until_told(&self, what: &str) -> Tally {
        let mut all = Tally::new();
        wait::until(&format!("a client is told {what:?}"), || {
            for (told, count) in self.take() {
                *all.entry(told).or_default() += count;
            }
            all.contains_key(what)
        });
        all
    }

    /// What clients are told from now on, for so long.
    pub fn told_within(&self, time: Duration) -> Tally {
        self.take();
        sleep(time);
        self.take()
    }

    /// Ends it; gives what clients were told since the last time.
    pub fn end(mut self) -> Tally {
        self.stop.store(true, SeqCst);
        self.clients.drain(..).for_each(|client| client.join().expect("a client ends in order"));
        self.take()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

fn ask(
    mut connection: Connection,
    host: &str,
    begin: Instant,
    pause: Duration,
    stop: &AtomicBool,
    tally: &Mutex<Tally>,
) {
    let mut next = begin;
    while !stop.load(SeqCst) {
        sleep(next.saturating_duration_since(Instant::now()));
        next = (next + pause).max(Instant::now());
        let answer = connection.get(host, "/");
        let told = format!("{} {}", answer.status(), answer.text().lines().next().unwrap_or_default());
        *tally.lock().expect("not poisoned").entry(told).or_default() += 1;
    }
}

/// All that was told but for good answers.
pub fn bad(tally: &Tally) -> Tally {
    tally
        .iter()
        .filter(|(told, _)| !told.starts_with("200 "))
        .map(|(told, count)| (told.clone(), *count))
        .collect()
}

/// How often anything was told.
pub fn total(tally: &Tally) -> usize {
    tally.values().sum()
}
