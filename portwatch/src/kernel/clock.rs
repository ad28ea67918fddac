//! From the kernel's clocks to the time of day.

use nix::time::{ClockId, clock_gettime};

use crate::event::Time;

/// Nanoseconds of a tick of `/proc/PID/stat`: USER_HZ is 100 on all of portwatch's architectures.
pub const TICK: u64 = 10_000_000;

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
        let readings = std::iter::repeat_with(Self::read).take(READINGS);
        closest(readings)
    }

    /// The offsets, and how long reading the clocks took: they are off by as much at most.
    fn read() -> (Self, i64) {
        let before = nanoseconds(ClockId::CLOCK_MONOTONIC);
        let realtime = nanoseconds(ClockId::CLOCK_REALTIME);
        let boottime = nanoseconds(ClockId::CLOCK_BOOTTIME);
        let took = nanoseconds(ClockId::CLOCK_MONOTONIC) - before;
        let clock = Self {
            monotonic: realtime - before,
            boottime: realtime - boottime,
        };
        (clock, took)
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

/// How often the clocks are read at most until nothing came between.
const READINGS: usize = 5;
/// How long reading them takes if nothing did, in nanoseconds, and more than enough.
const AT_ONCE: i64 = 20_000;

/// The first reading between whose clocks nobody else ran, or the quickest one.
fn closest(readings: impl Iterator<Item = (Clock, i64)>) -> Clock {
    let mut best: Option<(Clock, i64)> = None;
    for (clock, took) in readings {
        if best.is_none_or(|(_, before)| took < before) {
            best = Some((clock, took));
        }
        if took <= AT_ONCE {
            break;
        }
    }
    best.map_or(Clock::fixed(0, 0), |(clock, _)| clock)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_interrupted_reads_again() {
        let readings = |took: &[i64]| {
            let mut left = took.iter().zip(1..);
            let clock = closest(std::iter::from_fn(|| {
                let (took, number) = left.next()?;
                Some((Clock::fixed(number, number), *took))
            }));
            (clock.at_boottime(0).0, left.count())
        };
        assert_eq!(readings(&[100, 10]), (1, 1));
        assert_eq!(readings(&[14_000_000, 100, 10]), (2, 1));
        assert_eq!(readings(&[9_000_000, 3_000_000, 5_000_000]), (2, 0));
    }
}
