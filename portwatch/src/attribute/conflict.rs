//! Who keeps a refused bind or listen from its port: from the holders' records
//! to the facts of a diagnosis.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::Path;

use lru::LruCache;
use portwatch_common::map::WANTED_CAPACITY;
use portwatch_common::record::{self, SnapshotEntry, evidence, socket_flag, task_flag};

use crate::diagnose::facts::Sysctls;
use crate::event::Evidence;

/// Threads whose holders wait for the record of the bind or listen itself.
const THREADS: usize = 256;
/// Holders of one refusal.
const HOLDERS: usize = 32;
/// Sockets whose owners are kept until they are told.
const OWNERS: usize = 1_024;
/// How often the owners of sockets are asked for in a batch: each time all open files are looked
/// through, and in a storm of refusals the stream must not fall behind.
const QUESTIONS: usize = 4;

const TCP_TIME_WAIT: u8 = 6;

/// Asks which processes have sockets open, by the sockets' addresses in the kernel; nothing where that
/// cannot be asked.
pub type AskOwners = Box<dyn Fn(&[u64]) -> Option<Vec<SnapshotEntry>> + Send>;

/// Holders, until they are told with what they were in the way of.
pub struct Conflicts {
    pending: LruCache<u32, Vec<record::Holder>>,
    owners: LruCache<u64, Vec<record::Task>>,
    ask: AskOwners,
    /// The settings of portwatch's own network namespace, and its number.
    own: (Option<u32>, Sysctls),
}

/// A holder as it was found.
pub struct Found {
    /// The socket and what the kernel side knows of it.
    pub record: record::Holder,
    /// The processes that have it open, if that could be asked.
    pub owners: Option<Vec<record::Task>>,
}

impl Conflicts {
    /// None yet.
    pub fn new(ask: AskOwners) -> Self {
        let capacity = |capacity| NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN);
        Self {
            pending: LruCache::new(capacity(THREADS)),
            owners: LruCache::new(capacity(OWNERS)),
            ask,
            own: (
                netns_of_host(Path::new("/proc")),
                sysctls(Path::new("/proc")),
            ),
        }
    }

    /// Asks for the owners of holders that have just come, while the sockets live.
    pub fn ask(&mut self, holders: &HashSet<u64>) {
        let addresses: Vec<_> = holders.iter().copied().collect();
        for addresses in addresses.chunks(WANTED_CAPACITY as usize).take(QUESTIONS) {
            let Some(entries) = (self.ask)(addresses) else {
                return;
            };
            let mut owners: HashMap<u64, Vec<record::Task>> = addresses
                .iter()
                .map(|address| (*address, Vec::new()))
                .collect();
            for entry in entries {
                let of = owners.entry(entry.socket.address).or_default();
                // A process may have it open by several descriptors.
                if of.iter().all(|task| task.tgid != entry.task.tgid) {
                    of.push(entry.task);
                }
            }
            for (address, tasks) in owners {
                self.owners.put(address, tasks);
            }
        }
    }

    /// Whether the owners of a holder are worth asking for: a timewait socket and one without a file
    /// have none.
    pub fn is_owned(holder: &record::Holder) -> bool {
        holder.socket.state != TCP_TIME_WAIT && holder.socket.flags & socket_flag::NO_FILE == 0
    }

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

    /// What the holders of a thread were in the way of has come: the one that the kernel's check ran
    /// into is first, if that was seen.
    pub fn take(&mut self, tid: u32) -> Vec<Found> {
        let records = self.pending.pop(&tid).unwrap_or_default();
        let found = records.into_iter().map(|record| Found {
            owners: if Self::is_owned(&record) {
                self.owners.get(&record.socket.address).cloned()
            } else {
                Some(Vec::new())
            },
            record,
        });
        found.collect()
    }

    /// The settings of a network namespace, as far as they can be read.
    pub fn sysctls(&self, netns: Option<u32>) -> Sysctls {
        if netns.is_some() && netns == self.own.0 {
            self.own.1.clone()
        } else {
            Sysctls::default()
        }
    }

    /// Number of the host's own network namespace.
    pub fn host_netns(&self) -> Option<u32> {
        self.own.0
    }
}

impl std::fmt::Debug for Conflicts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conflicts")
            .field("pending", &self.pending.len())
            .finish_non_exhaustive()
    }
}

/// How holders were found: under the lock if the first one was.
pub fn evidence_of(found: &[Found]) -> Option<Evidence> {
    found.first().map(|found| {
        if found.record.evidence == evidence::LOCKED {
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

/// The network namespace of the first process.
fn netns_of_host(proc: &Path) -> Option<u32> {
    let link = fs::read_link(proc.join("1/ns/net")).ok()?;
    link.to_str()?
        .strip_prefix("net:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// The settings that decide over ports, of the network namespace that reads them.
pub(crate) fn sysctls(proc: &Path) -> Sysctls {
    let read = |name: &str| {
        let text = fs::read_to_string(proc.join("sys/net/ipv4").join(name)).ok()?;
        Some(text.trim().to_owned())
    };
    Sysctls {
        local_port_range: read("ip_local_port_range").and_then(|text| range(&text)),
        local_reserved_ports: read("ip_local_reserved_ports"),
        unprivileged_port_start: read("ip_unprivileged_port_start")
            .and_then(|text| text.parse().ok()),
    }
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace();
    Some(numbers.next()?.parse().ok()?..=numbers.next()?.parse().ok()?)
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

    fn owner(address: u64, tgid: u32) -> SnapshotEntry {
        let mut entry = SnapshotEntry::new_zeroed();
        entry.socket.address = address;
        entry.task.tgid = tgid;
        entry
    }

    #[test]
    fn a_holder_met_and_walked_to_is_told_once_and_first() {
        let mut conflicts = Conflicts::new(Box::new(|_| None));
        conflicts.add(&holder(7, 0x10, evidence::LOCKED));
        conflicts.add(&holder(7, 0x20, evidence::WALKED));
        conflicts.add(&holder(7, 0x10, evidence::WALKED));
        conflicts.add(&holder(8, 0x30, evidence::WALKED));
        let found = conflicts.take(7);
        let addresses: Vec<_> = found
            .iter()
            .map(|found| found.record.socket.address)
            .collect();
        assert_eq!(addresses, [0x10, 0x20]);
        assert_eq!(evidence_of(&found), Some(Evidence::Locked));
        assert_eq!(evidence_of(&conflicts.take(8)), Some(Evidence::Walked));
        assert!(conflicts.take(7).is_empty());
    }

    #[test]
    fn all_who_have_it_open_are_its_owners_each_once() {
        let asked = |addresses: &[u64]| {
            assert_eq!(addresses, [0x10]);
            Some(vec![owner(0x10, 5), owner(0x10, 6), owner(0x10, 5)])
        };
        let mut conflicts = Conflicts::new(Box::new(asked));
        conflicts.ask(&HashSet::from([0x10]));
        conflicts.add(&holder(7, 0x10, evidence::LOCKED));
        conflicts.add(&holder(7, 0x20, evidence::LOCKED));
        let found = conflicts.take(7);
        let tgids = |found: &Found| {
            let owners = found.owners.as_ref()?;
            Some(owners.iter().map(|task| task.tgid).collect::<Vec<_>>())
        };
        assert_eq!(tgids(&found[0]), Some(vec![5, 6]));
        assert_eq!(tgids(&found[1]), None, "nobody asked for this one");
    }

    #[test]
    fn what_has_no_file_has_no_owners() {
        let mut conflicts = Conflicts::new(Box::new(|_| None));
        let mut kernel = holder(7, 0x10, evidence::LOCKED);
        kernel.socket.flags = socket_flag::KERNEL | socket_flag::NO_FILE;
        conflicts.add(&kernel);
        assert_eq!(conflicts.take(7)[0].owners.as_ref().map(Vec::len), Some(0));
    }

    #[test]
    fn settings_are_read_from_where_they_lie() {
        let proc = tempfile::tempdir().unwrap();
        let net = proc.path().join("sys/net/ipv4");
        fs::create_dir_all(&net).unwrap();
        fs::write(net.join("ip_local_port_range"), "32768\t60999\n").unwrap();
        fs::write(net.join("ip_unprivileged_port_start"), "1024\n").unwrap();
        let read = sysctls(proc.path());
        assert_eq!(read.local_port_range, Some(32_768..=60_999));
        assert_eq!(read.unprivileged_port_start, Some(1024));
        assert_eq!(read.local_reserved_ports, None);
    }
}
