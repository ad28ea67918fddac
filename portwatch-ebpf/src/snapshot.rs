//! What existed before: every socket that a process has open, in every network namespace.

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_seq_write};
use portwatch_common::map::Bound;
use portwatch_common::record::{Header, SnapshotEntry, Socket, kind};

use crate::layout::{self, Address, read_bits};
use crate::maps::BOUND;
use crate::sock::{self, AF_INET, AF_INET6, IPPROTO_TCP, NO_SOCKET};
use crate::task::{self, NOBODY};

const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;
// include/net/sock.h
const SOCK_BINDADDR_LOCK: u32 = 4;
const SOCK_BINDPORT_LOCK: u32 = 8;

/// One open file of one task. `seq` is the iterator's `struct seq_file`.
///
/// The kernel may call again for the same file when its buffer overflows, so
/// what is done here must be the same the second time.
#[inline(always)]
pub fn file(seq: *mut core::ffi::c_void, task: Address, descriptor: u32, file: Address) {
    let Some(opened) = sock::of_file(file) else {
        return;
    };
    let family = sock::family(opened.sk);
    if family != AF_INET && family != AF_INET6 {
        return;
    }
    let mut entry = SnapshotEntry {
        header: Header {
            kind: kind::SNAPSHOT,
            reserved: 0,
            // SAFETY: the helper has no preconditions.
            time: unsafe { bpf_ktime_get_ns() },
        },
        task: NOBODY,
        socket: NO_SOCKET,
        descriptor,
        bound: 0,
    };
    sock::describe(opened.sk, opened.inode, &mut entry.socket);
    if entry.socket.local_port == 0 {
        return;
    }
    if was_bound(&entry.socket) {
        entry.bound = 1;
        remember(&entry.socket);
    }
    task::other(task, &mut entry.task);
    // SAFETY: `entry` is valid for its length; if the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(
            seq.cast(),
            (&raw const entry).cast(),
            size_of::<SnapshotEntry>() as u32,
        );
    }
}

/// The file is held open while the iterator is at it, so the socket cannot be
/// closed before it is in the map: no release is missed and none made up.
#[inline(never)]
fn remember(socket: &Socket) {
    let bound = Bound {
        binder: NOBODY,
        closer: task::UNKNOWN,
        bound_at: 0,
        inode: socket.inode,
        local: socket.local,
        local_port: socket.local_port,
        reserved: [0; 3],
    };
    const BPF_NOEXIST: u64 = 1;
    let _ = BOUND.insert(socket.address, &bound, BPF_NOEXIST);
}

/// Whether a socket with a port got it by bind(2) or listen(2), as far as the
/// kernel remembers: bind(2) to the wildcard address and port 0 leaves no lock.
#[inline(always)]
fn was_bound(socket: &Socket) -> bool {
    let locks = read_bits(socket.address, &layout::SOCK_USERLOCKS);
    locks & (SOCK_BINDADDR_LOCK | SOCK_BINDPORT_LOCK) != 0
        || socket.state == TCP_LISTEN
        || (socket.protocol == IPPROTO_TCP && socket.state == TCP_CLOSE)
}
