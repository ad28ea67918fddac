//! bind(2): an attempt, as it came back.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_user};
use portwatch_common::map::{Bound, filter as filters, lost};
use portwatch_common::record::{
    Bind, BindUnix, Requested, Socket, Task, UNIX_PATH, kind, task_flag,
};

use crate::layout::{Address, read_user, zero, zeroed};
use crate::maps::BOUND;
use crate::sock::{self, AF_INET, AF_INET6, AF_UNIX, Opened};
use crate::task;
use crate::{emit, filter};

/// Offset of `sun_path` in `struct sockaddr_un`.
const SUN_PATH: u32 = 2;

/// Reads a `struct sockaddr` of the caller's. What could not be read is zero.
#[inline(always)]
fn read_requested(address: Address, length: u32, requested: &mut Requested) {
    requested.length = length;
    if length < 4 {
        // An AF_UNIX socket that the kernel is to name (autobind) has a family and no more.
        if length >= SUN_PATH {
            requested.family = read_user(address).unwrap_or(0);
        }
        return;
    }
    // sa_family and the port in one go.
    let Some(head) = read_user::<[u16; 2]>(address) else {
        return;
    };
    requested.family = head[0];
    requested.read = 4;
    if requested.family == AF_INET && length >= 8 {
        if let Some(ip) = read_user(address.wrapping_add(4)) {
            *sock::first_four(&mut requested.address) = ip;
            requested.port = u16::from_be(head[1]);
            requested.read = 8;
        }
    } else if requested.family == AF_INET6 && length >= 24 {
        if let Some(ip) = read_user(address.wrapping_add(8)) {
            requested.address = ip;
            requested.port = u16::from_be(head[1]);
            requested.read = 24;
        }
        if length >= 28 {
            requested.scope = read_user(address.wrapping_add(24)).unwrap_or(0);
        }
    }
}

/// A bind(2) of the current task has returned.
#[inline(never)]
pub fn returned(opened: Option<Opened>, address: Address, length: u32, result: i32) {
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::current(task);
    if !filter::task(task) || opened.is_some_and(|opened| !sock::concerns_us(opened.sk)) {
        return;
    }
    // First of all: whatever comes before is one more state from which the
    // verifier follows the longest of all paths.
    task::identify(task);
    let mut requested = MaybeUninit::uninit();
    let requested: &mut Requested = zeroed(&mut requested);
    read_requested(address, length, requested);
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    if let Some(opened) = opened {
        sock::describe(opened.sk, opened.inode, socket);
    }
    // What is no socket is judged by the address it was given.
    let family = if opened.is_some() {
        socket.family
    } else {
        requested.family
    };
    let wanted = match family {
        AF_INET | AF_INET6 => filter::bind(requested, socket),
        AF_UNIX => filter::is_set(filters::UNIX),
        _ => false,
    };
    if !wanted {
        return;
    }
    if family != AF_UNIX && result == 0 {
        remember(socket, task);
    }
    if !filter::result(result) {
        return;
    }
    if family == AF_UNIX {
        send_unix(task, socket, requested, address, result);
    } else {
        send(opened, task, socket, requested, result);
    }
}

/// Remembers a bound socket and who bound it, so that its end will be seen.
#[inline(never)]
pub fn remember(socket: &Socket, task: &Task) {
    // One whose end will not be seen would stay for ever.
    if !filter::follows(socket) {
        return;
    }
    let mut bound = MaybeUninit::uninit();
    let bound: &mut Bound = zeroed(&mut bound);
    // SAFETY: both are valid and aligned.
    unsafe { emit::put(&raw mut bound.binder, task) };
    bound.closer.flags = task_flag::UNKNOWN;
    // SAFETY: the helper has no preconditions.
    bound.bound_at = unsafe { bpf_ktime_get_ns() };
    describe(socket, bound);
    if BOUND.insert(socket.address, &*bound, 0).is_err() {
        emit::count_lost(lost::BOUND);
    }
}

/// What there is to remember of a socket itself.
#[inline(always)]
pub fn describe(socket: &Socket, bound: &mut Bound) {
    bound.inode = socket.inode;
    bound.local = socket.local;
    bound.local_port = socket.local_port;
}

#[inline(always)]
fn send(opened: Option<Opened>, task: &Task, socket: &Socket, requested: &Requested, result: i32) {
    let Some(mut entry) = emit::reserve::<Bind>(kind::BIND) else {
        return;
    };
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        fill(entry.as_mut_ptr(), task, socket, requested, result);
        if let Some(opened) = opened {
            sock::device_name(opened.sk, socket.device, &mut (*entry.as_mut_ptr()).device);
        }
    }
    emit::submit(entry);
}

/// # Safety
///
/// `record` must point to writable memory.
#[inline(always)]
unsafe fn fill(
    record: *mut Bind,
    task: &Task,
    socket: &Socket,
    requested: &Requested,
    result: i32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        emit::put(&raw mut (*record).task, task);
        emit::put(&raw mut (*record).socket, socket);
        emit::put(&raw mut (*record).requested, requested);
        (*record).result = result;
        (*record).path_length = 0;
        zero(&raw mut (*record).device);
    }
}

#[inline(always)]
fn send_unix(task: &Task, socket: &Socket, requested: &Requested, address: Address, result: i32) {
    let Some(mut entry) = emit::reserve::<BindUnix>(kind::BIND) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        fill(&raw mut (*record).bind, task, socket, requested, result);
        zero(&raw mut (*record).path);
        let mut length = requested.length.saturating_sub(SUN_PATH);
        if length > UNIX_PATH as u32 {
            length = UNIX_PATH as u32;
        }
        if length != 0
            && bpf_probe_read_user(
                (&raw mut (*record).path).cast(),
                length,
                address.wrapping_add(u64::from(SUN_PATH)) as *const _,
            ) == 0
        {
            (*record).bind.path_length = length;
        }
    }
    emit::submit(entry);
}
