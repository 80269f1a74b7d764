//! What this process uses, read from the kernel when it is asked for.

use std::fs;
use std::time::{Duration, SystemTime};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use nix::sys::time::TimeVal;
use outrigger_ca::since_1970;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::gathered::Family;

/// The `process_*` families that Prometheus' own clients have. What can't be read is left out: without a
/// free file descriptor, for example, `/proc` can't be opened.
pub(super) struct ProcessCollector {
    started: SystemTime,
    cpu: Family,
    resident_memory: Family,
    virtual_memory: Family,
    threads: Family,
    open_descriptors: Family,
    most_descriptors: Family,
    start_time: Family,
}

impl ProcessCollector {
    pub fn new(started: SystemTime) -> Self {
        let gauge = |name, help| Family::new(MetricType::GAUGE, name, help, &[]);
        Self {
            started,
            cpu: Family::new(
                MetricType::COUNTER,
                "process_cpu_seconds_total",
                "CPU time used, user and system, in seconds.",
                &[],
            ),
            resident_memory: gauge("process_resident_memory_bytes", "Resident memory in bytes."),
            virtual_memory: gauge("process_virtual_memory_bytes", "Virtual memory in bytes."),
            threads: gauge("process_threads", "Threads."),
            open_descriptors: gauge("process_open_fds", "Open file descriptors."),
            most_descriptors: gauge("process_max_fds", "The most file descriptors that may be open."),
            start_time: gauge(
                "process_start_time_seconds",
                "When the process started, in seconds since 1970.",
            ),
        }
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        [
            &self.cpu,
            &self.resident_memory,
            &self.virtual_memory,
            &self.threads,
            &self.open_descriptors,
            &self.most_descriptors,
            &self.start_time,
        ]
        .map(Family::desc)
        .into()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |name| field(&status, name).map(|kibibytes| (kibibytes * 1024) as f64);
        let values = [
            (&self.cpu, cpu_seconds()),
            (&self.resident_memory, bytes("VmRSS:")),
            (&self.virtual_memory, bytes("VmSize:")),
            (&self.threads, field(&status, "Threads:").map(|threads| threads as f64)),
            (&self.open_descriptors, open_descriptors()),
            (&self.most_descriptors, most_descriptors()),
            (&self.start_time, Some(since_1970(self.started).as_secs_f64())),
        ];
        let readable = values.into_iter().filter_map(|(family, value)| Some((family, value?)));
        readable.map(|(family, value)| family.with(vec![family.sample(&[], value)])).collect()
    }
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let time = |time: TimeVal| Duration::new(time.tv_sec() as u64, time.tv_usec() as u32 * 1000);
    Some((time(usage.user_time()) + time(usage.system_time())).as_secs_f64())
}

fn open_descriptors() -> Option<f64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?;
    // The one that lists them is none of them.
    Some(entries.count().saturating_sub(1) as f64)
}

fn most_descriptors() -> Option<f64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(soft as f64)
}

/// The number behind `name` in the format of `/proc/self/status`.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

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
        let collector = ProcessCollector::new(UNIX_EPOCH + Duration::from_millis(1500));
        let families = collector.collect();
        let value = |name| {
            let family = families.iter().find(|family| family.name() == name);
            family.unwrap().get_metric()[0].get_gauge().get_value()
        };
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_threads"] {
            assert!(value(name) >= 1.0, "{name}");
        }
        assert_eq!(value("process_start_time_seconds"), 1.5);
    }
}
