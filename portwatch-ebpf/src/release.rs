//! The end of a bound socket.

use core::mem::MaybeUninit;

use portwatch_common::map::Bound;
use portwatch_common::record::{Release, Socket, Task, kind, task_flag};

use crate::emit;
use crate::filter::Filters;
use crate::layout::{self, Address, read, zeroed};
use crate::maps::BOUND;
use crate::sock::{self, IPPROTO_TCP, Opened};
use crate::task;

/// The last descriptor of a socket was closed, by the current task.
///
/// A TCP socket may live on without one, port and all, until its peer has
/// agreed: [`destroyed`] tells its end. Every other one ends here.
#[inline(always)]
pub fn closed(sk: Address) {
    let Some(bound) = BOUND.get_ptr_mut(sk) else {
        return;
    };
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::current(task);
    task::identify(task);
    if read::<u16>(sk, &layout::SOCK_PROTOCOL) == IPPROTO_TCP {
        // SAFETY: the pointer is valid and aligned; nobody else closes this socket.
        unsafe { emit::put(&raw mut (*bound).closer, task) };
        return;
    }
    // SAFETY: the pointer is valid and aligned for the program's duration.
    let bound = unsafe { &*bound };
    send(sk, bound, task);
    let _ = BOUND.remove(sk);
}

/// A TCP socket stops listening or sends its FIN, in the context of whoever closes it.
///
/// Only of use where [`closed`] has no hook.
#[inline(always)]
pub fn closing(sk: Address, task: &Task) {
    if let Some(bound) = BOUND.get_ptr_mut(sk) {
        // SAFETY: the pointer is valid and aligned; nobody else closes this socket.
        unsafe {
            if (*bound).closer.flags & task_flag::UNKNOWN != 0 {
                (*bound).closer = *task;
            }
        }
    }
}

/// A TCP socket is being destroyed, perhaps in a softirq.
#[inline(always)]
pub fn destroyed(sk: Address) {
    let Some(bound) = BOUND.get_ptr(sk) else {
        return;
    };
    // SAFETY: the pointer is valid and aligned for the program's duration.
    let bound = unsafe { &*bound };
    send(sk, bound, &bound.closer);
    let _ = BOUND.remove(sk);
}

#[inline(always)]
fn send(sk: Address, bound: &Bound, closer: &Task) {
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    let inode = bound.inode;
    sock::describe(Opened { sk, inode }, socket);
    // A port that was not asked for by number is put back before the socket
    // is destroyed (`tcp_set_state`, net/ipv4/tcp.c).
    socket.local = bound.local;
    socket.local_port = bound.local_port;
    let filters = Filters::now();
    if !filters.result(0, socket.protocol) || !filters.socket(socket) {
        return;
    }
    let Some(mut entry) = emit::reserve::<Release>(kind::RELEASE) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        emit::put(&raw mut (*record).task, closer);
        emit::put(&raw mut (*record).socket, socket);
        (*record).bound_at = bound.bound_at;
        (*record).binder_tgid = bound.binder.tgid;
        (*record).binder_flags = bound.binder.flags;
        (*record).binder_start = bound.binder.start;
        sock::device_name(sk, socket.device, &mut (*record).device);
    }
    emit::submit(entry);
}
