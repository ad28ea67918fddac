//! What got lost, and where.

use std::collections::BTreeMap;
use std::fs;

use portwatch_common::record::kind;

/// The kinds of records, by the names under which their loss is told.
pub(super) const KINDS: [(u32, &str); 12] = [
    (kind::BIND, "bind"),
    (kind::LISTEN, "listen"),
    (kind::RELEASE, "release"),
    (kind::TIMEWAIT_START, "timewait-start"),
    (kind::TIMEWAIT_CANCEL, "timewait-cancel"),
    (kind::TIMEWAIT_EXPIRE, "timewait-expire"),
    (kind::TIMEWAIT_REUSE, "timewait-reuse"),
    (kind::PROCESS, "process"),
    (kind::FORK, "fork"),
    (kind::EXEC, "exec"),
    (kind::REAP, "reap"),
    (kind::HOLDER, "holder"),
];

/// What was lost, since the kernel side was loaded or between two moments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Losses {
    /// Records that did not fit into the ring buffer, by kind.
    pub ring: BTreeMap<&'static str, u64>,
    /// Runs of a program that were skipped because it ran already on that processor, by program.
    pub recursion: BTreeMap<&'static str, u64>,
    /// Returns from bind(2) and listen(2) that no kretprobe saw.
    pub kretprobe: u64,
    /// Bound sockets that could not be followed.
    pub bound: u64,
}

impl Losses {
    /// What came on top of `earlier`; what did not is left out.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |now: &BTreeMap<&'static str, u64>, then: &BTreeMap<&'static str, u64>| {
            now.iter()
                .map(|(name, count)| {
                    (
                        *name,
                        count.saturating_sub(then.get(name).copied().unwrap_or(0)),
                    )
                })
                .filter(|(_, count)| *count != 0)
                .collect()
        };
        Self {
            ring: difference(&self.ring, &earlier.ring),
            recursion: difference(&self.recursion, &earlier.recursion),
            kretprobe: self.kretprobe.saturating_sub(earlier.kretprobe),
            bound: self.bound.saturating_sub(earlier.bound),
        }
    }
}

/// `recursion_misses` of a program, which its descriptor's fdinfo tells (5.12 and later).
pub(super) fn recursion_misses(descriptor: i32) -> Option<u64> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("recursion_misses:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_is_told_once() {
        let earlier = Losses {
            ring: [("bind", 3), ("listen", 1)].into(),
            recursion: BTreeMap::new(),
            kretprobe: 1,
            bound: 2,
        };
        let now = Losses {
            ring: [("bind", 5), ("listen", 1), ("release", 0)].into(),
            recursion: [("sys_exit", 1)].into(),
            kretprobe: 4,
            bound: 2,
        };
        assert_eq!(
            now.since(&earlier),
            Losses {
                ring: [("bind", 2)].into(),
                recursion: [("sys_exit", 1)].into(),
                kretprobe: 3,
                bound: 0,
            }
        );
        assert_eq!(now.since(&now), Losses::default());
    }
}
