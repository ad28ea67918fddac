//! Who keeps a refused bind or listen from its port, by the kernel side's records: held together
//! until the record of the refusal itself comes.

use std::num::NonZeroUsize;

use lru::LruCache;
use portwatch_common::record::{self, evidence, socket_flag, task_flag};

use crate::event::Evidence;
use crate::kernel::sock_diag::TCP_TIME_WAIT;

/// Threads whose holders wait for the record of the bind or listen itself.
const THREADS: usize = 256;
/// Holders of one refusal.
const HOLDERS: usize = 32;

/// Holders, until they are told with what they were in the way of.
#[derive(Debug)]
pub struct Conflicts {
    pending: LruCache<u32, Vec<record::Holder>>,
}

impl Default for Conflicts {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(THREADS).unwrap_or(NonZeroUsize::MIN);
        Self {
            pending: LruCache::new(capacity),
        }
    }
}

impl Conflicts {
    /// A holder's record.
    pub fn add(&mut self, holder: &record::Holder) {
        let pending = self.pending.get_or_insert_mut(holder.tid, Vec::new);
        let known = pending
            .iter()
            .any(|other| other.socket.address == holder.socket.address);
        if !known && pending.len() < HOLDERS {
            pending.push(*holder);
        }
    }

    /// The holders of a thread so far: the one that the kernel's check ran into is first, if that was
    /// seen.
    pub fn of(&self, tid: u32) -> &[record::Holder] {
        self.pending.peek(&tid).map_or(&[], Vec::as_slice)
    }

    /// What they were in the way of has come.
    pub fn take(&mut self, tid: u32) -> Vec<record::Holder> {
        self.pending.pop(&tid).unwrap_or_default()
    }
}

/// Whether the owners of a holder are worth asking for: a timewait socket and one without a file
/// have none.
pub fn is_owned(holder: &record::Holder) -> bool {
    holder.socket.state != TCP_TIME_WAIT && holder.socket.flags & socket_flag::NO_FILE == 0
}

/// How holders were found: under the lock if the first one was.
pub fn evidence_of(found: &[record::Holder]) -> Option<Evidence> {
    found.first().map(|found| {
        if found.evidence == evidence::LOCKED {
            Evidence::Locked
        } else {
            Evidence::Walked
        }
    })
}

/// Whether a holder's binder is known.
pub fn has_binder(holder: &record::Holder) -> bool {
    holder.binder.flags & task_flag::UNKNOWN == 0 && holder.binder.tgid != 0
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn holder(tid: u32, address: u64, how: u32) -> record::Holder {
        let mut holder = record::Holder::new_zeroed();
        holder.tid = tid;
        holder.socket.address = address;
        holder.evidence = how;
        holder
    }

    #[test]
    fn a_holder_met_and_walked_to_is_told_once_and_first() {
        let mut conflicts = Conflicts::default();
        conflicts.add(&holder(7, 0x10, evidence::LOCKED));
        conflicts.add(&holder(7, 0x20, evidence::WALKED));
        conflicts.add(&holder(7, 0x10, evidence::WALKED));
        conflicts.add(&holder(8, 0x30, evidence::WALKED));
        assert_eq!(conflicts.of(7).len(), 2);
        let found = conflicts.take(7);
        let addresses: Vec<_> = found.iter().map(|found| found.socket.address).collect();
        assert_eq!(addresses, [0x10, 0x20]);
        assert_eq!(evidence_of(&found), Some(Evidence::Locked));
        assert_eq!(evidence_of(&conflicts.take(8)), Some(Evidence::Walked));
        assert!(conflicts.take(7).is_empty());
    }

    #[test]
    fn what_has_no_file_has_no_owners() {
        let mut kernel = holder(7, 0x10, evidence::LOCKED);
        assert!(is_owned(&kernel));
        kernel.socket.flags = socket_flag::KERNEL | socket_flag::NO_FILE;
        assert!(!is_owned(&kernel));
    }
}
