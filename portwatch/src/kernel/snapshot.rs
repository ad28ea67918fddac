//! What existed before: every socket that a process has open.
//!
//! Through the iterator, which sees every network namespace; or where there
//! is none from `/proc`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use portwatch_common::record::{SnapshotEntry, Socket};
use procfs::process::{FDTarget, Process};

use super::side::KernelSide;

/// A socket that a process had open before the trace began.
#[derive(Debug, Clone)]
pub struct Held {
    /// The process.
    pub tgid: u32,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The local port.
    pub port: u16,
    /// Whether it listens.
    pub listening: bool,
    /// The socket's address in the kernel, where it is known.
    pub address: Option<u64>,
    /// The socket, if it was bound, as far as the kernel remembers.
    pub socket: Option<Socket>,
}

/// What existed before, and how it was found out.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// One a descriptor.
    pub held: Vec<Held>,
    /// Why it could not be had from the kernel's iterator, if it could not. Then releases of the
    /// sockets in it will not be seen.
    pub degraded: Option<String>,
}

impl Snapshot {
    /// The processes in it, by pid.
    #[must_use]
    pub fn processes(&self) -> BTreeSet<u32> {
        self.held.iter().map(|held| held.tgid).collect()
    }
}

const TCP_LISTEN: u8 = 10;

/// Takes the snapshot. The hooks must be in place before, so that there is no gap.
#[must_use]
pub fn take(side: &KernelSide) -> Snapshot {
    match side.snapshot() {
        Ok(entries) => Snapshot {
            held: entries.iter().map(held).collect(),
            degraded: None,
        },
        Err(error) => Snapshot {
            held: from_proc(Path::new("/proc")),
            degraded: Some(format!("{error:#}")),
        },
    }
}

fn held(entry: &SnapshotEntry) -> Held {
    Held {
        tgid: entry.task.tgid,
        netns: entry.socket.netns,
        port: entry.socket.local_port,
        listening: entry.socket.state == TCP_LISTEN,
        address: Some(entry.socket.address),
        socket: (entry.bound != 0).then_some(entry.socket),
    }
}

/// The same from `/proc`: descriptors lead to inodes, and the tables of each network namespace from
/// inodes to ports. Processes that end meanwhile are left out.
#[must_use]
pub fn from_proc(root: &Path) -> Vec<Held> {
    let mut held = Vec::new();
    let mut tables: HashMap<u64, HashMap<u64, (u16, bool)>> = HashMap::new();
    let Ok(processes) = procfs::process::all_processes_with_root(root) else {
        return held;
    };
    for process in processes.flatten() {
        let Some(netns) = netns_of(&process) else {
            continue;
        };
        let Ok(descriptors) = process.fd() else {
            continue;
        };
        let mut seen = HashSet::new();
        for descriptor in descriptors.flatten() {
            let FDTarget::Socket(inode) = descriptor.target else {
                continue;
            };
            let table = tables.entry(netns).or_insert_with(|| table_of(&process));
            if let (Some((port, listening)), true) = (table.get(&inode), seen.insert(inode)) {
                held.push(Held {
                    tgid: process.pid().unsigned_abs(),
                    netns: u32::try_from(netns).unwrap_or(0),
                    port: *port,
                    listening: *listening,
                    address: None,
                    socket: None,
                });
            }
        }
    }
    held
}

fn netns_of(process: &Process) -> Option<u64> {
    let namespaces = process.namespaces().ok()?;
    Some(namespaces.0.get(std::ffi::OsStr::new("net"))?.identifier)
}

/// From inode to port, and whether it listens, in the network namespace of a process.
fn table_of(process: &Process) -> HashMap<u64, (u16, bool)> {
    let mut table = HashMap::new();
    let tcp = process.tcp().into_iter().chain(process.tcp6()).flatten();
    for entry in tcp {
        let listening = entry.state == procfs::net::TcpState::Listen;
        table.insert(entry.inode, (entry.local_address.port(), listening));
    }
    let udp = process.udp().into_iter().chain(process.udp6()).flatten();
    for entry in udp {
        table.insert(entry.inode, (entry.local_address.port(), false));
    }
    table
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn own_sockets_are_found_in_proc() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let held = from_proc(Path::new("/proc"));
        let own = |port| {
            held.iter()
                .find(|held| held.tgid == std::process::id() && held.port == port)
                .cloned()
        };
        let tcp = own(listener.local_addr().unwrap().port()).unwrap();
        assert!(tcp.listening);
        assert_ne!(tcp.netns, 0);
        let udp = own(udp.local_addr().unwrap().port()).unwrap();
        assert!(!udp.listening);
    }
}
