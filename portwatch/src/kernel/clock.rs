//! From the kernel's clocks to the time of day.

use nix::time::{ClockId, clock_gettime};

use crate::event::Time;

fn nanoseconds(clock: ClockId) -> i64 {
    // These clocks exist on every kernel that can run portwatch.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

/// How far the time of day is ahead of the kernel's clocks, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    monotonic: i64,
    boottime: i64,
}

impl Clock {
    /// Takes the offsets as they are now. The time of day may be set, so take them now and then.
    #[must_use]
    pub fn now() -> Self {
        let realtime = nanoseconds(ClockId::CLOCK_REALTIME);
        Self {
            monotonic: realtime - nanoseconds(ClockId::CLOCK_MONOTONIC),
            boottime: realtime - nanoseconds(ClockId::CLOCK_BOOTTIME),
        }
    }

    /// A clock for tests: both offsets given.
    #[must_use]
    pub fn fixed(monotonic: i64, boottime: i64) -> Self {
        Self {
            monotonic,
            boottime,
        }
    }

    /// The time of day at a reading of CLOCK_MONOTONIC (`bpf_ktime_get_ns`).
    #[must_use]
    pub fn at_monotonic(self, nanoseconds: u64) -> Time {
        Time(self.monotonic.saturating_add_unsigned(nanoseconds))
    }

    /// The time of day at a reading of CLOCK_BOOTTIME (`task_struct.start_boottime`).
    #[must_use]
    pub fn at_boottime(self, nanoseconds: u64) -> Time {
        Time(self.boottime.saturating_add_unsigned(nanoseconds))
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
#[must_use]
pub fn monotonic() -> u64 {
    nanoseconds(ClockId::CLOCK_MONOTONIC).unsigned_abs()
}

/// How long the calling thread has had a processor.
#[must_use]
pub fn thread_time() -> std::time::Duration {
    let nanoseconds = nanoseconds(ClockId::CLOCK_THREAD_CPUTIME_ID);
    std::time::Duration::from_nanos(nanoseconds.unsigned_abs())
}

/// Nanoseconds of a jiffy.
///
/// The resolution of the coarse clocks is the tick (`LOW_RES_NSEC`,
/// kernel/time/posix-timers.c, all versions), and nothing else tells HZ on
/// every kernel.
#[must_use]
pub fn jiffy() -> u64 {
    nix::time::clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|time| u64::try_from(time.tv_nsec()).ok())
        .filter(|nanoseconds| *nanoseconds != 0)
        .unwrap_or(4_000_000)
}
