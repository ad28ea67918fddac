//! Puts records into the order of the kernel's clock.
//!
//! The ring buffer's order is that of reservation; an interrupt between that
//! and the taking of the time, and other processors, may turn it by microseconds.

use std::collections::VecDeque;

use crate::kernel::decode::Record;

/// How far the ring buffer's order may be off, in nanoseconds, and how far
/// ahead a record may look for its successor.
pub const SLACK: u64 = 2_000_000;

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
    /// complete until `complete_until` (CLOCK_MONOTONIC, ns).
    pub fn next(&mut self, complete_until: u64) -> Option<Record> {
        let earliest = self.waiting.front()?.time();
        if earliest.saturating_add(SLACK) > complete_until {
            return None;
        }
        self.waiting.pop_front()
    }

    /// The records behind the one taken last that are at most [`SLACK`] later than `time`.
    pub fn ahead(&self, time: u64) -> impl Iterator<Item = &Record> {
        self.waiting
            .iter()
            .take_while(move |record| record.time() <= time.saturating_add(SLACK))
    }
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

    #[test]
    fn looking_ahead_ends_with_the_slack() {
        let mut order = Order::default();
        order.add([fork(100, 1), fork(100 + SLACK, 2), fork(101 + SLACK, 3)]);
        let first = order.next(u64::MAX).unwrap();
        assert_eq!(order.ahead(first.time()).count(), 1);
    }
}
