//! What existed before: every socket that a process has open, in every network namespace.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_seq_write};
use portwatch_common::map::{Bound, WANTED_CAPACITY};
use portwatch_common::record::{SnapshotEntry, Socket, kind, task_flag};

use crate::filter::Filters;
use crate::layout::{self, Address, read, read_bits, zeroed};
use crate::maps::{BOUND, WANTED};
use crate::sock::{self, AF_INET, AF_INET6, IPPROTO_TCP};
use crate::{bind, task};

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
    let opened = sock::of_file(file);
    if opened.is_none() {
        return;
    }
    let family = sock::family(opened.sk);
    if family != AF_INET && family != AF_INET6 {
        return;
    }
    let mut entry = MaybeUninit::uninit();
    let entry: &mut SnapshotEntry = zeroed(&mut entry);
    entry.header.kind = kind::SNAPSHOT;
    // SAFETY: the helper has no preconditions.
    entry.header.time = unsafe { bpf_ktime_get_ns() };
    entry.descriptor = descriptor;
    sock::describe(opened, &mut entry.socket);
    if entry.socket.local_port == 0 {
        return;
    }
    entry.uid = read(opened.sk, &layout::SOCK_UID);
    if was_bound(&entry.socket) {
        entry.bound = 1;
        remember(&entry.socket);
    }
    task::other(task, &mut entry.task);
    write(seq, entry);
}

/// One open file of one task, told if it is one of the sockets asked for.
#[inline(always)]
pub fn owner(seq: *mut core::ffi::c_void, task: Address, descriptor: u32, file: Address) {
    let opened = sock::of_file(file);
    if opened.is_none() || !is_wanted(opened.sk) {
        return;
    }
    let mut entry = MaybeUninit::uninit();
    let entry: &mut SnapshotEntry = zeroed(&mut entry);
    entry.header.kind = kind::OWNER;
    // SAFETY: the helper has no preconditions.
    entry.header.time = unsafe { bpf_ktime_get_ns() };
    entry.descriptor = descriptor;
    entry.socket.address = opened.sk;
    entry.socket.inode = opened.inode;
    task::other(task, &mut entry.task);
    write(seq, entry);
}

#[inline(always)]
fn is_wanted(sk: Address) -> bool {
    for index in 0..WANTED_CAPACITY {
        match WANTED.get(index) {
            Some(wanted) if *wanted == sk => return true,
            Some(wanted) if *wanted != 0 => {}
            _ => return false,
        }
    }
    false
}

#[inline(always)]
fn write(seq: *mut core::ffi::c_void, entry: &SnapshotEntry) {
    // SAFETY: `entry` is valid for its length; if the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(
            seq.cast(),
            core::ptr::from_ref(entry).cast(),
            size_of::<SnapshotEntry>() as u32,
        );
    }
}

/// The file is held open while the iterator is at it, so the socket cannot be
/// closed before it is in the map: no release is missed and none made up.
#[inline(never)]
fn remember(socket: &Socket) {
    if !Filters::now().follows(socket) {
        return;
    }
    let mut bound = MaybeUninit::uninit();
    let bound: &mut Bound = zeroed(&mut bound);
    bound.closer.flags = task_flag::UNKNOWN;
    bind::describe(socket, bound);
    const BPF_NOEXIST: u64 = 1;
    let _ = BOUND.insert(socket.address, &*bound, BPF_NOEXIST);
}

/// Whether a socket with a port got it by bind(2) or listen(2), as far as the
/// kernel remembers: bind(2) to the wildcard address and port 0 leaves no lock.
#[inline(always)]
fn was_bound(socket: &Socket) -> bool {
    let locks = read_bits(socket.address, &layout::SOCK_USERLOCKS);
    let tcp = socket.protocol == IPPROTO_TCP;
    locks & SOCK_BINDPORT_LOCK != 0
        || socket.state == TCP_LISTEN
        || (tcp && socket.state == TCP_CLOSE)
        // An accepted connection has it from its listener (`sk_clone_lock` clears the other).
        || (!tcp && locks & SOCK_BINDADDR_LOCK != 0)
}
