//! Puts records into the order of the kernel's clock.
//!
//! The ring buffer's order is that of reservation; an interrupt between that
//! and the taking of the time, and other processors, may turn it by microseconds.

use std::collections::VecDeque;

use portwatch_common::record::{Timewait, cancel, kind};

use crate::kernel::decode::Record;

/// How far the ring buffer's order may be off, in nanoseconds, and how far
/// ahead a record may look for its successor.
pub const SLACK: u64 = 2_000_000;

/// How far ahead the record of a timer taken off the wheel when its time has
/// come may look for that of its expiry, in nanoseconds. Nothing but interrupts
/// is between them (`expire_timers`, kernel/time/timer.c, 5.10 to 7.3), but the
/// processor may be a virtual one, which stands still when its host is busy.
pub const EXPIRY: u64 = 200_000_000;

/// How many records may wait while something is looked up for the first of them.
const CROWD: usize = 16_384;

/// Records that wait for the stream to be complete up to their time.
#[derive(Debug, Default)]
pub struct Order {
    waiting: VecDeque<Record>,
}

impl Order {
    /// Adds records as they come.
    pub fn add(&mut self, records: impl IntoIterator<Item = Record>) {
        let mut latest = self.waiting.back().map_or(0, Record::time);
        let mut sorted = true;
        self.waiting.extend(records.into_iter().inspect(|record| {
            sorted &= latest <= record.time();
            latest = record.time();
        }));
        if !sorted {
            // Stable: what a context wrote at the same nanosecond stays in its order. Nearly sorted
            // already, which this sort makes use of.
            self.waiting.make_contiguous().sort_by_key(Record::time);
        }
    }

    /// Takes the earliest record, if everything up to [`SLACK`] behind it has come: the stream is
    /// complete until `complete_until` (CLOCK_MONOTONIC, ns). One of a timer that ends waits until
    /// its successor has come too, which says why.
    pub fn next(&mut self, complete_until: u64) -> Option<Record> {
        self.peek(complete_until)?;
        self.waiting.pop_front()
    }

    /// The same without taking it.
    pub fn peek(&self, complete_until: u64) -> Option<&Record> {
        let earliest = self.waiting.front()?;
        let within = match earliest {
            Record::Timewait(timewait) if self.lacks_successor(timewait) => reach(timewait),
            _ => SLACK,
        };
        (earliest.time().saturating_add(within) <= complete_until).then_some(earliest)
    }

    /// Whether the socket with this address in the kernel gives its port back in one of the records
    /// that wait.
    pub fn releases(&self, address: u64) -> bool {
        self.waiting.iter().any(
            |record| matches!(record, Record::Release(release) if release.socket.address == address),
        )
    }

    /// Whether so many wait that nothing may be waited for on their behalf.
    pub fn is_crowded(&self) -> bool {
        self.waiting.len() > CROWD
    }

    fn lacks_successor(&self, timewait: &Timewait) -> bool {
        let ended_by = |kind: u32| match kind {
            kind::TIMEWAIT_EXPIRE => true,
            kind::TIMEWAIT_START | kind::TIMEWAIT_REUSE => !is_due(timewait),
            _ => false,
        };
        !self.waiting.iter().any(|record| {
            matches!(record, Record::Timewait(other)
                if ended_by(other.header.kind)
                    && other.socket.address == timewait.socket.address)
        })
    }

    /// The records behind this one, the one taken last, among which its successor may be.
    pub fn ahead(&self, timewait: &Timewait) -> impl Iterator<Item = &Record> {
        let end = timewait.header.time.saturating_add(reach(timewait));
        self.waiting
            .iter()
            .take_while(move |record| record.time() <= end)
    }
}

/// How far ahead a record may look for its successor, in nanoseconds.
fn reach(timewait: &Timewait) -> u64 {
    if is_due(timewait) {
        EXPIRY
    } else if timewait.header.kind == kind::TIMEWAIT_CANCEL && timewait.reason == cancel::UNKNOWN {
        cancel::SUCCESSION
    } else {
        SLACK
    }
}

/// Whether a timer is taken off the wheel when its time has come: it expires, or is just too late
/// to be cancelled early, since long timers expire up to an eighth of their time too late.
fn is_due(timewait: &Timewait) -> bool {
    timewait.header.kind == kind::TIMEWAIT_CANCEL && timewait.expires_in == 0
}

#[cfg(test)]
mod tests {
    use portwatch_common::record::Fork;
    use zerocopy::FromZeros;

    use super::*;

    fn fork(time: u64, child: u32) -> Record {
        let mut fork = Fork::new_zeroed();
        fork.header.time = time;
        fork.child_tgid = child;
        Record::Fork(fork)
    }

    fn drain(order: &mut Order, complete_until: u64) -> Vec<u32> {
        std::iter::from_fn(|| order.next(complete_until))
            .map(|record| match record {
                Record::Fork(fork) => fork.child_tgid,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn records_come_out_by_time_across_batches() {
        let mut order = Order::default();
        order.add([fork(100, 1), fork(300, 3)]);
        order.add([fork(200, 2), fork(300, 4)]);
        assert_eq!(drain(&mut order, 300 + SLACK), [1, 2, 3, 4]);
    }

    #[test]
    fn a_record_waits_until_nothing_earlier_can_come() {
        let mut order = Order::default();
        order.add([fork(100, 1), fork(101, 2)]);
        assert_eq!(drain(&mut order, 99 + SLACK), [0u32; 0]);
        assert_eq!(drain(&mut order, 100 + SLACK), [1]);
        assert_eq!(drain(&mut order, u64::MAX), [2]);
    }

    fn timer(kind: u32, time: u64, expires_in: u64) -> Record {
        let mut timewait = Timewait::new_zeroed();
        timewait.header.kind = kind;
        timewait.header.time = time;
        timewait.expires_in = expires_in;
        Record::Timewait(timewait)
    }

    fn ahead_of(first: Record, behind: [Record; 2]) -> usize {
        let mut order = Order::default();
        order.add([first]);
        order.add(behind);
        let Some(Record::Timewait(first)) = order.next(u64::MAX) else {
            panic!("it is not the first");
        };
        order.ahead(&first).count()
    }

    #[test]
    fn looking_ahead_ends_with_the_slack() {
        let start = timer(kind::TIMEWAIT_START, 100, 9);
        let behind = [fork(100 + SLACK, 2), fork(101 + SLACK, 3)];
        assert_eq!(ahead_of(start, behind), 1);
        let early = timer(kind::TIMEWAIT_CANCEL, 100, 9);
        let end = 100 + cancel::SUCCESSION;
        assert_eq!(ahead_of(early, [fork(end, 2), fork(end + 1, 3)]), 1);
        let due = timer(kind::TIMEWAIT_CANCEL, 100, 0);
        let behind = [fork(100 + EXPIRY, 2), fork(101 + EXPIRY, 3)];
        assert_eq!(ahead_of(due, behind), 1);
    }

    #[test]
    fn what_is_due_waits_for_its_expiry() {
        let mut order = Order::default();
        order.add([timer(kind::TIMEWAIT_CANCEL, 100, 0)]);
        let later = 99 + EXPIRY;
        assert!(order.next(later).is_none());
        order.add([timer(kind::TIMEWAIT_EXPIRE, later - SLACK, 0)]);
        assert!(order.next(later).is_some());
        assert!(order.next(later).is_some());
        order.add([timer(kind::TIMEWAIT_CANCEL, 100, 0)]);
        assert!(order.next(100 + EXPIRY).is_some());
    }

    #[test]
    fn what_is_cancelled_waits_for_what_it_went_for() {
        let mut order = Order::default();
        order.add([timer(kind::TIMEWAIT_CANCEL, 100, 1)]);
        let later = 99 + cancel::SUCCESSION;
        assert!(order.next(later).is_none());
        order.add([timer(kind::TIMEWAIT_REUSE, later - SLACK, 0)]);
        assert!(order.next(later).is_some());
        assert!(order.next(later).is_some());
        order.add([timer(kind::TIMEWAIT_CANCEL, 100, 1)]);
        assert!(order.next(100 + cancel::SUCCESSION).is_some());
        let mut known = Timewait::new_zeroed();
        known.header.kind = kind::TIMEWAIT_CANCEL;
        known.reason = cancel::PURGED;
        known.expires_in = 1;
        order.add([Record::Timewait(known)]);
        assert!(order.next(SLACK).is_some());
    }
}
