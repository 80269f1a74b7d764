//! What this process uses, read from the kernel when it is asked for.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};

use super::exposition::Exposition;

/// Writes the `process_*` families that Prometheus' own clients have. What can't be read is left out:
/// without a free file descriptor, for example, `/proc` can't be opened.
pub(super) fn render(started: SystemTime, text: &mut Exposition) {
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let seconds = |time: nix::sys::time::TimeVal| {
            Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000)
        };
        let cpu = seconds(usage.user_time()) + seconds(usage.system_time());
        text.single(
            "process_cpu_seconds_total",
            "counter",
            "CPU time used, user and system, in seconds.",
            cpu.as_secs_f64(),
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(kibibytes) = field(&status, "VmRSS:") {
        let help = "Resident memory in bytes.";
        text.single(
            "process_resident_memory_bytes",
            "gauge",
            help,
            kibibytes * 1024,
        );
    }
    if let Some(kibibytes) = field(&status, "VmSize:") {
        let help = "Virtual memory in bytes.";
        text.single(
            "process_virtual_memory_bytes",
            "gauge",
            help,
            kibibytes * 1024,
        );
    }
    if let Some(threads) = field(&status, "Threads:") {
        text.single("process_threads", "gauge", "Threads.", threads);
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The one that lists them is none of them.
        let open = entries.count().saturating_sub(1);
        text.single("process_open_fds", "gauge", "Open file descriptors.", open);
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let help = "The most file descriptors that may be open.";
        text.single("process_max_fds", "gauge", help, soft);
    }
    let started = started.duration_since(UNIX_EPOCH).unwrap_or_default();
    text.single(
        "process_start_time_seconds",
        "gauge",
        "When the process started, in seconds since 1970.",
        started.as_secs_f64(),
    );
}

/// The number behind `name` in the format of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_read_by_its_whole_name() {
        let status = "Name:\toutrigger\nVmSize:\t  200 kB\nVmRSS:\t   12345 kB\nThreads:\t3\n";
        assert_eq!(field(status, "VmRSS:"), Some(12345));
        assert_eq!(field(status, "Threads:"), Some(3));
        assert_eq!(field(status, "VmSwap:"), None);
    }

    #[test]
    fn this_process_uses_memory_descriptors_and_a_thread() {
        let mut text = Exposition::default();
        render(UNIX_EPOCH + Duration::from_millis(1500), &mut text);
        let text = text.finish();
        for name in [
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_threads",
        ] {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            assert!(line.trim().parse::<u64>().unwrap() > 0, "{name}");
        }
        assert!(text.ends_with("\nprocess_start_time_seconds 1.5\n"));
    }
}
