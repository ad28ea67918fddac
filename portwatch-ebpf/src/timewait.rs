//! TIME_WAIT: its begin, its end, and who closed the connection.
//!
//! Where the functions of net/ipv4/inet_timewait_sock.c can be hooked, they
//! tell it exactly. No tracepoint reports TIME_WAIT, so where there is nothing
//! else its timer is watched: a timer whose function is `tw_timer_handler` lies
//! within an `inet_timewait_sock` (5.10 to 7.3). `mod_timer` of a pending timer
//! cancels and starts it; cancelling also comes just before expiry. What such a
//! sequence means is for the user side to say.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns,
    generated::{bpf_jiffies64, bpf_seq_write},
};
use portwatch_common::map::{Cancelled, Peer, filter};
use portwatch_common::record::{Socket, Task, Timewait, cancel, kind, task_flag};

use crate::filter::Filters;
use crate::layout::{self, Address, read, zeroed};
use crate::maps::{CANCELLED, CLOSERS, CONNECTING, CONNECTORS, ENDING, QUERIES};
use crate::sock::{self, Opened};
use crate::{emit, release, task};

// enum in include/net/tcp_states.h
const TCP_SYN_SENT: i32 = 2;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_TIME_WAIT: u8 = 6;
const TCP_CLOSE: i32 = 7;
const TCP_LISTEN: i32 = 10;

/// A TCP or MPTCP socket changes its state.
///
/// An active close begins in its owner's own context: FIN_WAIT1 is entered
/// from close, shutdown or exit. All that follows comes from the peer, in a
/// softirq on top of a stranger.
#[inline(always)]
pub fn state_changed(sk: Address, old: i32, new: i32) {
    if new == TCP_SYN_SENT {
        connecting(sk);
    } else if new == TCP_FIN_WAIT1 || (old == TCP_LISTEN && new == TCP_CLOSE) {
        closing(sk, new);
    }
}

#[inline(always)]
fn connecting(sk: Address) {
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::current(task);
    task::identify(task);
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe(Opened { sk, inode: 0 }, socket);
    let peer = Peer {
        remote: socket.remote,
        netns: socket.netns,
        remote_port: socket.remote_port,
        reserved: 0,
    };
    if socket.local_port == 0 {
        let _ = CONNECTORS.insert(sk, &*task, 0);
    }
    let _ = CONNECTING.insert(bpf_get_current_pid_tgid(), &peer, 0);
}

#[inline(always)]
fn closing(sk: Address, new: i32) {
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::current(task);
    task::identify(task);
    release::closing(sk, task);
    if new != TCP_FIN_WAIT1 {
        return;
    }
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe(Opened { sk, inode: 0 }, socket);
    let endpoints = sock::endpoints(socket);
    // A subflow of MPTCP is closed by a worker of the kernel; the socket of
    // which it is a part has gone before it, with the same endpoints.
    if task.flags & task_flag::KERNEL_THREAD != 0 && CLOSERS.get_ptr(&endpoints).is_some() {
        return;
    }
    let _ = CLOSERS.insert(&endpoints, task, 0);
}

/// The timewait socket that a timer belongs to.
#[inline(always)]
pub fn of_timer(timer: Address) -> Address {
    timer.wrapping_sub(u64::from(layout::TW_TIMER.load()))
}

#[inline(always)]
fn wanted(socket: &Socket) -> bool {
    let filters = Filters::now();
    !filters.has(filter::FAILED) && filters.socket(socket)
}

/// Jiffies until a timewait socket's timer expires.
#[inline(always)]
pub fn expires_in(tw: Address) -> u64 {
    let timer = tw.wrapping_add(u64::from(layout::TW_TIMER.load()));
    let expires: u64 = read(timer, &layout::TIMER_EXPIRES);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_jiffies64() };
    expires.saturating_sub(now)
}

/// A timewait socket's timer was armed.
#[inline(always)]
pub fn armed(tw: Address) {
    armed_for(tw, expires_in(tw));
}

/// A timewait socket's timer is armed for this many jiffies.
#[inline(always)]
pub fn armed_for(tw: Address, expires_in: u64) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe_timewait(tw, socket);
    if !wanted(socket) {
        return;
    }
    let endpoints = sock::endpoints(socket);
    let closer = match CLOSERS.get_ptr(&endpoints) {
        // SAFETY: the pointer is valid and aligned for the program's duration.
        Some(closer) => unsafe { *closer },
        None => task::UNKNOWN,
    };
    if socket.substate == TCP_TIME_WAIT {
        let _ = CLOSERS.remove(&endpoints);
    }
    send(
        kind::TIMEWAIT_START,
        &closer,
        socket,
        expires_in,
        cancel::UNKNOWN,
    );
}

/// How many timewait sockets are looked at in one call.
const QUERIES_A_CALL: u32 = 16;

/// The user side asks which of some timewait sockets have gone on from
/// FIN_WAIT2 to TIME_WAIT: `mod_timer_pending` tells nobody of a timer that is
/// moved within its slot of the wheel, which for a minute is seconds wide.
///
/// An address may be another socket's by now. It is a timewait socket's all
/// the same (SLAB_TYPESAFE_BY_RCU), and the user side compares the ends.
#[inline(always)]
pub fn asked(seq: *mut core::ffi::c_void, call: u64) {
    for query in 0..QUERIES_A_CALL {
        let Some(tw) = QUERIES.get(call as u32 * QUERIES_A_CALL + query) else {
            return;
        };
        if *tw == 0 {
            return;
        }
        found(seq, *tw);
    }
}

#[inline(never)]
fn found(seq: *mut core::ffi::c_void, tw: Address) {
    let mut record = MaybeUninit::uninit();
    let record: &mut Timewait = zeroed(&mut record);
    sock::describe_timewait(tw, &mut record.socket);
    if record.socket.state != TCP_TIME_WAIT || record.socket.substate != TCP_TIME_WAIT {
        return;
    }
    record.header.kind = kind::TIMEWAIT_FOUND;
    // SAFETY: the helper has no preconditions.
    record.header.time = unsafe { bpf_ktime_get_ns() };
    record.task.flags = task_flag::UNKNOWN;
    record.expires_in = expires_in(tw);
    // SAFETY: `record` is valid for its length; if the buffer is full the kernel calls again.
    unsafe {
        bpf_seq_write(
            seq.cast(),
            core::ptr::from_ref(record).cast(),
            size_of::<Timewait>() as u32,
        );
    }
}

/// A timewait socket's timer was taken off the wheel: it is rearmed, or expires, or the socket is done with.
#[inline(always)]
pub fn cancelled(tw: Address) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe_timewait(tw, socket);
    if wanted(socket) {
        cancel_for(tw, socket, reason(tw, socket));
    }
}

#[inline(always)]
fn cancel_for(tw: Address, socket: &Socket, reason: u32) {
    if let Some(slot) = CANCELLED.get_ptr_mut(0) {
        // SAFETY: the pointer is valid and aligned; timers are cancelled with interrupts off, and
        // timewait sockets killed with softirqs off.
        unsafe {
            slot.write(Cancelled {
                endpoints: sock::endpoints(socket),
                address: tw,
                time: bpf_ktime_get_ns(),
            });
        }
    }
    send(
        kind::TIMEWAIT_CANCEL,
        &task::UNKNOWN,
        socket,
        expires_in(tw),
        reason,
    );
}

/// A timewait socket is about to be ended before its time (`inet_twsk_deschedule_put`), unless its
/// timer is faster: [`killed`] tells.
#[inline(always)]
pub fn descheduled(tw: Address) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe_timewait(tw, socket);
    if wanted(socket) {
        let _ = ENDING.insert(tw, reason(tw, socket), 0);
    }
}

/// A timewait socket is at its end.
#[inline(always)]
pub fn killed(tw: Address) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe_timewait(tw, socket);
    if !wanted(socket) {
        return;
    }
    if let Some(reason) = ENDING.get_ptr(tw) {
        // SAFETY: the pointer is valid and aligned for the program's duration.
        let reason = unsafe { *reason };
        let _ = ENDING.remove(tw);
        cancel_for(tw, socket, reason);
    } else if is_purged(tw) {
        // inet_twsk_purge may have inet_twsk_deschedule_put inlined, as in 5.10.
        cancel_for(tw, socket, cancel::PURGED);
    } else {
        expire(socket);
    }
}

/// Whether a timewait socket's namespace ends, and it with it: `inet_twsk_purge` ends those whose
/// namespace nobody refers to any more.
#[inline(always)]
fn is_purged(tw: Address) -> bool {
    let net: Address = read(tw, &layout::SOCK_NET);
    layout::address(net, &layout::NET_COUNT).is_some_and(|count| layout::read_at::<u32>(count) == 0)
}

/// Why a timer is being cancelled, as far as it can be told from here.
#[inline(always)]
fn reason(tw: Address, socket: &Socket) -> u32 {
    if is_purged(tw) {
        return cancel::PURGED;
    }
    // connect(2) takes a timewait socket's place in __inet_check_established,
    // in the context of the thread that connects.
    if let Some(peer) = CONNECTING.get_ptr(bpf_get_current_pid_tgid()) {
        // SAFETY: the pointer is valid and aligned for the program's duration.
        let peer = unsafe { &*peer };
        if peer.netns == socket.netns
            && peer.remote_port == socket.remote_port
            && peer.remote == socket.remote
        {
            return cancel::REUSED;
        }
    }
    cancel::UNKNOWN
}

/// A timewait socket's timer has expired.
#[inline(always)]
pub fn expired(tw: Address) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    sock::describe_timewait(tw, socket);
    if wanted(socket) {
        expire(socket);
    }
}

#[inline(always)]
fn expire(socket: &Socket) {
    send(
        kind::TIMEWAIT_EXPIRE,
        &task::UNKNOWN,
        socket,
        0,
        cancel::UNKNOWN,
    );
}

/// A connection request was accepted: if a timewait socket of the same ports
/// went a moment ago on this processor, it went for this (TCP_TW_SYN in tcp_v4_rcv).
#[inline(always)]
pub fn requested(request: Address) {
    let Some(slot) = CANCELLED.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: the pointer is valid and aligned for the program's duration.
    let cancelled = unsafe { &mut *slot };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if cancelled.address == 0 || now.wrapping_sub(cancelled.time) > cancel::SUCCESSION {
        return;
    }
    let net: Address = read(request, &layout::SOCK_NET);
    if cancelled.endpoints.netns != read(net, &layout::NET_INUM)
        || cancelled.endpoints.local_port != read(request, &layout::SOCK_NUM)
        || cancelled.endpoints.remote_port != u16::from_be(read(request, &layout::SOCK_DPORT))
    {
        return;
    }
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    socket.address = cancelled.address;
    cancelled.address = 0;
    send(
        kind::TIMEWAIT_REUSE,
        &task::UNKNOWN,
        socket,
        0,
        cancel::REUSED,
    );
}

#[inline(always)]
fn send(kind: u32, closer: &Task, socket: &Socket, expires_in: u64, reason: u32) {
    let Some(mut entry) = emit::reserve::<Timewait>(kind) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        emit::put(&raw mut (*record).task, closer);
        emit::put(&raw mut (*record).socket, socket);
        (*record).expires_in = expires_in;
        (*record).reason = reason;
        (*record).reserved = 0;
    }
    emit::submit(entry);
}
