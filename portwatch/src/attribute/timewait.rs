//! What a timewait socket's timer tells: when TIME_WAIT begins and ends, and why.
//!
//! A connection whose peer has not closed yet may wait for that as a timewait
//! socket too, in FIN_WAIT2: that is not TIME_WAIT, and kept apart.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use lru::LruCache;
use portwatch_common::record::{self, Timewait, cancel, kind};

use super::order::{Order, SLACK};
use crate::event::{Actor, Reason};
use crate::kernel::decode::Record;
use crate::kernel::sock_diag::TCP_TIME_WAIT;

/// How many timewait sockets are followed; the end of one beyond that comes without what its
/// beginning told.
const CAPACITY: usize = 32_768;

/// What a timewait socket is of. Its memory may be another one's since, and other namespaces have
/// connections between the same addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    netns: u32,
    local: ([u8; 16], u16),
    remote: ([u8; 16], u16),
}

impl Connection {
    fn of(socket: &record::Socket) -> Self {
        Self {
            netns: socket.netns,
            local: (socket.local, socket.local_port),
            remote: (socket.remote, socket.remote_port),
        }
    }
}

/// A timewait socket that was seen beginning.
#[derive(Debug)]
struct Followed {
    connection: Connection,
    /// When it entered FIN_WAIT2, in that form.
    waiting_since: Option<u64>,
    /// When it entered TIME_WAIT.
    entered_at: Option<u64>,
    closer: Option<Actor>,
}

/// What a record of a timer means.
#[derive(Debug, PartialEq)]
pub enum Change {
    /// TIME_WAIT begins.
    Enter {
        /// For how long it waited in FIN_WAIT2 before, in nanoseconds.
        waited: Option<u64>,
        /// Who closed the connection.
        closer: Option<Actor>,
    },
    /// TIME_WAIT ends.
    Exit {
        /// Why, as far as it is known.
        reason: Option<Reason>,
        /// How long it lasted, in nanoseconds, if its beginning was seen.
        lasted: Option<u64>,
        /// Who closed the connection.
        closer: Option<Actor>,
    },
}

/// The timewait sockets that exist.
#[derive(Debug)]
pub struct Timewaits {
    followed: LruCache<u64, Followed>,
    /// Those of them in FIN_WAIT2, which may go on to TIME_WAIT without a record.
    waiting: BTreeSet<u64>,
}

impl Default for Timewaits {
    fn default() -> Self {
        Self {
            followed: LruCache::new(NonZeroUsize::new(CAPACITY).unwrap_or(NonZeroUsize::MIN)),
            waiting: BTreeSet::new(),
        }
    }
}

impl Timewaits {
    /// What a record means. `order` holds what comes after it; `closer` is who its task is;
    /// `listened_on` says whether somebody listens on the connection's local port.
    pub fn change(
        &mut self,
        record: &Timewait,
        order: &Order,
        closer: Option<Actor>,
        listened_on: impl FnOnce() -> bool,
    ) -> Vec<Change> {
        match record.header.kind {
            kind::TIMEWAIT_START => self.started(record, closer).into_iter().collect(),
            kind::TIMEWAIT_FOUND => self.found(record).into_iter().collect(),
            kind::TIMEWAIT_CANCEL => self.cancelled(record, order, listened_on),
            kind::TIMEWAIT_EXPIRE => self.ended(record, Some(Reason::Expired)),
            // Looked for where the cancelling is.
            _ => Vec::new(),
        }
    }

    /// Who closed the connection of a timewait socket, if that was seen.
    pub fn closer(&self, socket: &record::Socket) -> Option<Actor> {
        let followed = self.followed.peek(&socket.address)?;
        let same = followed.connection == Connection::of(socket);
        followed.closer.clone().filter(|_| same)
    }

    /// Whether any wait in FIN_WAIT2.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Some of those that wait in FIN_WAIT2, by their addresses in the kernel, at most `count`,
    /// beginning behind `last`.
    pub fn waiting(&self, last: u64, count: usize) -> Vec<u64> {
        let behind = self.waiting.range(last.saturating_add(1)..);
        behind
            .chain(self.waiting.range(..=last))
            .take(count)
            .copied()
            .collect()
    }

    /// One that waited in FIN_WAIT2 was found to have gone on to TIME_WAIT.
    fn found(&mut self, record: &Timewait) -> Option<Change> {
        let connection = Connection::of(&record.socket);
        let followed = self
            .followed
            .peek_mut(&record.socket.address)
            .filter(|followed| followed.connection == connection)?;
        if followed.entered_at.is_some() {
            return None;
        }
        self.waiting.remove(&record.socket.address);
        followed.entered_at = Some(record.header.time);
        Some(Change::Enter {
            waited: followed
                .waiting_since
                .map(|since| record.header.time.saturating_sub(since)),
            closer: followed.closer.clone(),
        })
    }

    fn started(&mut self, record: &Timewait, closer: Option<Actor>) -> Option<Change> {
        let socket = &record.socket;
        let now = record.header.time;
        let connection = Connection::of(socket);
        self.waiting.remove(&socket.address);
        let followed = self
            .followed
            .pop(&socket.address)
            .filter(|followed| followed.connection == connection);
        let mut followed = followed.unwrap_or(Followed {
            connection,
            waiting_since: None,
            entered_at: None,
            closer: None,
        });
        followed.closer = followed.closer.or(closer);
        let mut change = None;
        if socket.substate != TCP_TIME_WAIT {
            followed.waiting_since.get_or_insert(now);
            self.waiting.insert(socket.address);
        } else if followed.entered_at.is_none() {
            followed.entered_at = Some(now);
            change = Some(Change::Enter {
                waited: followed
                    .waiting_since
                    .map(|since| now.saturating_sub(since)),
                closer: followed.closer.clone(),
            });
        }
        // Else it was already in TIME_WAIT and its time begins anew.
        if let Some((evicted, _)) = self.followed.push(socket.address, followed)
            && evicted != socket.address
        {
            self.waiting.remove(&evicted);
        }
        change
    }

    /// A timer is cancelled when it is armed anew, just before it expires, and when the socket is
    /// done with early. The first two follow within microseconds, on the same processor, and so does
    /// the connection request that it is done with for; but that is known by its record, while a
    /// socket which is armed later may be another one in the same memory.
    fn cancelled(
        &mut self,
        record: &Timewait,
        order: &Order,
        listened_on: impl FnOnce() -> bool,
    ) -> Vec<Change> {
        let successor = order
            .ahead(record)
            .filter_map(|record| match record {
                Record::Timewait(timewait) => Some(timewait),
                _ => None,
            })
            .find(|next| {
                let later = next.header.time.saturating_sub(record.header.time);
                next.socket.address == record.socket.address
                    && (next.header.kind != kind::TIMEWAIT_START || later <= SLACK)
            });
        let connection = Connection::of(&record.socket);
        let same = |next: &Timewait| Connection::of(&next.socket) == connection;
        match successor.map(|next| (next.header.kind, same(next))) {
            Some((kind::TIMEWAIT_START | kind::TIMEWAIT_EXPIRE, true)) => {
                return Vec::new();
            }
            Some((kind::TIMEWAIT_REUSE, _)) => return self.ended(record, Some(Reason::Reused)),
            _ => {}
        }
        let reason = match record.reason {
            cancel::REUSED => Some(Reason::Reused),
            cancel::PURGED => Some(Reason::Purged),
            // A SYN ends a TIME_WAIT only where somebody listens (TCP_TW_SYN in tcp_v4_rcv): where
            // nobody does it was a RST, or an administrator. Where somebody does, it may have been
            // a SYN that left no request behind, answered by a cookie or dropped.
            _ if !listened_on() => Some(Reason::Reset),
            _ => None,
        };
        self.ended(record, reason)
    }

    fn ended(&mut self, record: &Timewait, reason: Option<Reason>) -> Vec<Change> {
        self.waiting.remove(&record.socket.address);
        let followed = self.followed.pop(&record.socket.address);
        // One that never left FIN_WAIT2 was never in TIME_WAIT.
        if record.socket.substate != TCP_TIME_WAIT {
            return Vec::new();
        }
        let connection = Connection::of(&record.socket);
        let followed = followed.filter(|followed| followed.connection == connection);
        let closer = followed
            .as_ref()
            .and_then(|followed| followed.closer.clone());
        let mut changes = Vec::new();
        // It went on from FIN_WAIT2 and ended before that was found.
        if followed
            .as_ref()
            .is_some_and(|followed| followed.entered_at.is_none())
        {
            changes.push(Change::Enter {
                waited: None,
                closer: closer.clone(),
            });
        }
        changes.push(Change::Exit {
            reason,
            lasted: followed
                .and_then(|followed| followed.entered_at)
                .map(|entered| record.header.time.saturating_sub(entered)),
            closer,
        });
        changes
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    const FIN_WAIT2: u8 = 5;
    const TIME_WAIT: u8 = 6;

    fn timer(kind: u32, time: u64, substate: u8) -> Timewait {
        let mut record = Timewait::new_zeroed();
        record.header.kind = kind;
        record.header.time = time;
        record.socket.address = 0x1000;
        record.socket.local_port = 80;
        record.socket.remote_port = 4000;
        record.socket.substate = substate;
        record
    }

    /// Plays records in their order; what each one meant.
    fn play(records: &[Timewait], listened_on: bool) -> Vec<Change> {
        let mut order = Order::default();
        order.add(records.iter().copied().map(Record::Timewait));
        let mut timewaits = Timewaits::default();
        let mut changes = Vec::new();
        while let Some(Record::Timewait(record)) = order.next(u64::MAX) {
            changes.extend(timewaits.change(&record, &order, None, || listened_on));
        }
        changes
    }

    fn enter(waited: Option<u64>) -> Change {
        Change::Enter {
            waited,
            closer: None,
        }
    }

    fn exit(reason: Option<Reason>, lasted: Option<u64>) -> Change {
        Change::Exit {
            reason,
            lasted,
            closer: None,
        }
    }

    #[test]
    fn a_timewait_that_expires() {
        let changes = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT),
                timer(kind::TIMEWAIT_CANCEL, 61_000_000_000, TIME_WAIT),
                timer(kind::TIMEWAIT_EXPIRE, 61_000_000_500, TIME_WAIT),
            ],
            true,
        );
        assert_eq!(
            changes,
            [
                enter(None),
                exit(Some(Reason::Expired), Some(61_000_000_500 - 1_000))
            ]
        );
    }

    #[test]
    fn fin_wait2_is_kept_apart() {
        let changes = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2),
                timer(kind::TIMEWAIT_CANCEL, 5_000, TIME_WAIT),
                timer(kind::TIMEWAIT_START, 5_100, TIME_WAIT),
            ],
            true,
        );
        assert_eq!(changes, [enter(Some(4_100))]);
        let never = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2),
                timer(kind::TIMEWAIT_CANCEL, 60_000_000_000, FIN_WAIT2),
                timer(kind::TIMEWAIT_EXPIRE, 60_000_000_100, FIN_WAIT2),
            ],
            true,
        );
        assert_eq!(never, []);
    }

    #[test]
    fn one_that_went_on_without_a_record_is_found() {
        let records = [
            timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2),
            timer(kind::TIMEWAIT_FOUND, 9_000, TIME_WAIT),
            timer(kind::TIMEWAIT_FOUND, 9_500, TIME_WAIT),
            timer(kind::TIMEWAIT_EXPIRE, 19_000, TIME_WAIT),
        ];
        assert_eq!(
            play(&records, true),
            [
                enter(Some(8_000)),
                exit(Some(Reason::Expired), Some(10_000))
            ]
        );
    }

    #[test]
    fn one_that_ended_before_it_was_found_has_entered() {
        let records = [
            timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2),
            timer(kind::TIMEWAIT_EXPIRE, 19_000, TIME_WAIT),
        ];
        assert_eq!(
            play(&records, true),
            [enter(None), exit(Some(Reason::Expired), None)]
        );
    }

    #[test]
    fn what_was_not_asked_for_is_not_found() {
        let mut other = timer(kind::TIMEWAIT_FOUND, 9_000, TIME_WAIT);
        other.socket.remote_port = 4001;
        let records = [timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2), other];
        assert_eq!(play(&records, true), []);
    }

    #[test]
    fn all_that_wait_are_asked_for_in_turn() {
        let mut timewaits = Timewaits::default();
        for address in 1..=5 {
            let mut record = timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2);
            record.socket.address = address;
            timewaits.change(&record, &Order::default(), None, || false);
        }
        assert_eq!(timewaits.waiting(0, 3), [1, 2, 3]);
        assert_eq!(timewaits.waiting(3, 3), [4, 5, 1]);
        assert_eq!(timewaits.waiting(9, 9), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_timer_armed_anew_is_no_end() {
        let changes = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT),
                timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT),
                timer(kind::TIMEWAIT_START, 9_100, TIME_WAIT),
            ],
            true,
        );
        assert_eq!(changes, [enter(None)]);
    }

    #[test]
    fn why_it_ended_early() {
        let cases = [
            (cancel::REUSED, true, Some(Reason::Reused)),
            (cancel::PURGED, true, Some(Reason::Purged)),
            (cancel::UNKNOWN, false, Some(Reason::Reset)),
            (cancel::UNKNOWN, true, None),
        ];
        for (reason, listened_on, told) in cases {
            let mut cancelled = timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT);
            cancelled.reason = reason;
            let changes = play(
                &[timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT), cancelled],
                listened_on,
            );
            assert_eq!(changes, [enter(None), exit(told, Some(8_000))]);
        }
    }

    #[test]
    fn a_connection_request_right_behind_is_the_reason() {
        let mut reuse = timer(kind::TIMEWAIT_REUSE, 9_050, 0);
        reuse.socket = record::Socket::new_zeroed();
        reuse.socket.address = 0x1000;
        let changes = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT),
                timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT),
                reuse,
            ],
            true,
        );
        assert_eq!(
            changes,
            [enter(None), exit(Some(Reason::Reused), Some(8_000))]
        );
    }

    #[test]
    fn a_processor_that_stood_still_keeps_the_reason() {
        let request = |later| {
            let mut reuse = timer(kind::TIMEWAIT_REUSE, 9_000 + later, 0);
            reuse.socket = record::Socket::new_zeroed();
            reuse.socket.address = 0x1000;
            reuse
        };
        let told = |behind: Timewait| {
            let start = timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT);
            let cancelled = timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT);
            let mut cancelled = cancelled;
            cancelled.expires_in = 1;
            play(&[start, cancelled, behind], true)
        };
        let ended = |reason| [enter(None), exit(reason, Some(8_000))];
        assert_eq!(told(request(50_000_000)), ended(Some(Reason::Reused)));
        assert_eq!(told(request(cancel::SUCCESSION + 1)), ended(None));
        // The same connection, made and closed again since.
        let again = timer(kind::TIMEWAIT_START, 9_001 + SLACK, TIME_WAIT);
        assert_eq!(
            told(again),
            [enter(None), exit(None, Some(8_000)), enter(None)]
        );
    }

    #[test]
    fn another_connection_in_the_same_memory_is_no_successor() {
        let mut other = timer(kind::TIMEWAIT_START, 9_100, TIME_WAIT);
        other.socket.remote_port = 4001;
        let changes = play(
            &[
                timer(kind::TIMEWAIT_START, 1_000, TIME_WAIT),
                timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT),
                other,
            ],
            true,
        );
        assert_eq!(changes, [enter(None), exit(None, Some(8_000)), enter(None)]);
    }

    /// That the first one ended was missed, as the kernel may skip a hook.
    #[test]
    fn one_of_another_namespace_in_the_same_memory_is_another() {
        let mut other = timer(kind::TIMEWAIT_START, 9_000, TIME_WAIT);
        other.socket.netns = 1;
        let changes = play(
            &[timer(kind::TIMEWAIT_START, 1_000, FIN_WAIT2), other],
            true,
        );
        assert_eq!(changes, [enter(None)]);
    }

    #[test]
    fn one_from_before_the_trace_ends_without_a_beginning() {
        let changes = play(
            &[
                timer(kind::TIMEWAIT_CANCEL, 9_000, TIME_WAIT),
                timer(kind::TIMEWAIT_EXPIRE, 9_000 + SLACK, TIME_WAIT),
            ],
            true,
        );
        assert_eq!(changes, [exit(Some(Reason::Expired), None)]);
    }
}
