//! How often something happened of late: a count over a sliding window, in atomics that all workers share.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::load::since_epoch;

/// Parts of a window, each of which is forgotten as a whole.
const PARTS: usize = 10;
/// Shorter parts would wrap the 32 bits of a tick within days.
const SHORTEST_PART: Duration = Duration::from_millis(1);

/// A count over the last `window`: the part that runs now and the nine before it, so between nine tenths of the
/// window and the whole.
#[derive(Debug)]
pub(super) struct Recent {
    part_nanoseconds: u64,
    parts: [AtomicU64; PARTS],
}

/// What one part holds, in one word so that it is begun anew and counted in without a lock: which part of all time
/// it is (upper half), and the count (lower half).
#[derive(Clone, Copy, PartialEq)]
struct Part {
    tick: u32,
    count: u32,
}

impl Part {
    fn unpack(word: u64) -> Self {
        Self { tick: (word >> 32) as u32, count: word as u32 }
    }

    fn pack(self) -> u64 {
        u64::from(self.tick) << 32 | u64::from(self.count)
    }

    /// How many ticks before `now` it ran; `None` for one that a worker with a later clock began.
    fn age(self, now: u32) -> Option<u32> {
        let age = now.wrapping_sub(self.tick);
        (age <= u32::MAX / 2).then_some(age)
    }
}

impl Recent {
    /// Nothing has happened yet.
    pub(super) fn new(window: Duration) -> Self {
        let part = (window / PARTS as u32).max(SHORTEST_PART);
        let part_nanoseconds = u64::try_from(part.as_nanos()).unwrap_or(u64::MAX);
        Self { part_nanoseconds, parts: Default::default() }
    }

    /// It happened once more. A load and an addition, but for the first in a part.
    pub(super) fn add(&self, now: Instant) {
        let now = self.tick(now);
        let part = &self.parts[now as usize % PARTS];
        let mut word = part.load(Relaxed);
        loop {
            let found = Part::unpack(word);
            if found.tick == now {
                part.fetch_add(1, Relaxed);
                return;
            }
            if found.age(now).is_none() {
                // This worker stood still for a window: too old to count.
                return;
            }
            let first = Part { tick: now, count: 1 };
            match part.compare_exchange_weak(word, first.pack(), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(changed) => word = changed,
            }
        }
    }

    /// How often it happened within the window.
    pub(super) fn count(&self, now: Instant) -> u64 {
        let now = self.tick(now);
        self.parts
            .iter()
            .map(|part| Part::unpack(part.load(Relaxed)))
            .filter(|part| part.age(now).is_none_or(|age| age < PARTS as u32))
            .map(|part| u64::from(part.count))
            .sum()
    }

    /// Forgets it all.
    pub(super) fn clear(&self) {
        for part in &self.parts {
            part.store(0, Relaxed);
        }
    }

    /// The number of the part that `now` falls into; wraps after 49 days at the earliest.
    fn tick(&self, now: Instant) -> u32 {
        (since_epoch(now) / self.part_nanoseconds) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);

    /// A moment at which a part begins, late enough that windows before it exist.
    fn start() -> Instant {
        let now = Instant::now() + Duration::from_secs(100);
        now - Duration::from_nanos(since_epoch(now) % 1_000_000_000)
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten_part_by_part() {
        let recent = Recent::new(WINDOW);
        let start = start();
        for second in 0..5 {
            for _ in 0..=second {
                recent.add(start + Duration::from_secs(second));
            }
        }
        for (milliseconds, count) in
            [(4_000, 15), (9_999, 15), (10_000, 14), (11_500, 12), (13_999, 5), (14_000, 0), (99_000, 0)]
        {
            assert_eq!(recent.count(start + Duration::from_millis(milliseconds)), count, "{milliseconds} ms");
        }
    }

    #[test]
    fn a_part_that_comes_round_again_begins_at_nothing() {
        let recent = Recent::new(WINDOW);
        let start = start();
        for _ in 0..7 {
            recent.add(start);
        }
        recent.add(start + WINDOW);
        assert_eq!(recent.count(start + WINDOW), 1);
        recent.clear();
        assert_eq!(recent.count(start + WINDOW), 0);
    }

    #[test]
    fn a_worker_whose_clock_reading_is_older_counts_too_unless_its_part_is_gone() {
        let recent = Recent::new(WINDOW);
        let start = start();
        recent.add(start + WINDOW);
        recent.add(start + WINDOW - Duration::from_millis(1));
        recent.add(start);
        assert_eq!(recent.count(start + WINDOW), 2);
        assert_eq!(recent.count(start + WINDOW - Duration::from_millis(1)), 2);
    }

    #[test]
    fn nothing_is_lost_between_workers_that_begin_a_part_together() {
        let recent = Recent::new(WINDOW);
        let start = start();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..8_000 {
                        recent.add(start + Duration::from_millis(i));
                    }
                });
            }
        });
        assert_eq!(recent.count(start + Duration::from_millis(8_000)), 32_000);
    }
}
