//! listen: an attempt, as it came back.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_kernel};
use portwatch_common::map::{Call, call as calls, filter};
use portwatch_common::record::{Listen, ListenUnix, Socket, Task, UNIX_PATH, kind};

use crate::filter::Filters;
use crate::layout::{self, Address, Place, read, zero, zeroed};
use crate::maps::BOUND;
use crate::sock::{self, AF_INET, AF_INET6, AF_UNIX, Opened};
use crate::{bind, call, conflict, emit, task};

/// `inet_listen` begins.
#[inline(always)]
pub fn inet_entered(sk: Address, backlog: i32) {
    let _ = call::reach(sk, 0, backlog as u32);
}

/// `inet_listen` is about to return.
#[inline(always)]
pub fn inet_left(call: Option<&'static mut Call>, sk: impl Place, backlog: i32, result: i32) {
    let has_file = sock::file_to(sk).is_some();
    let Some(call) = call::returns(call, sk.address(), has_file, kind::LISTEN) else {
        return;
    };
    let is_outside = call.kind == calls::OUTSIDE;
    // listen(2) cuts the backlog to net.core.somaxconn before.
    let backlog = if is_outside {
        backlog
    } else {
        call.argument as i32
    };
    // As a number: the register that it came in the verifier may know as a pointer.
    let opened = sock::opened(call::opened(call).sk);
    refused(opened, result);
    let flags = u32::from(sock::owner(opened.sk));
    returned(opened.sk, opened.inode, backlog, flags, result);
    if is_outside {
        call::leave();
    }
}

/// listen(2) is about to return.
#[inline(always)]
pub fn left(descriptor: u32, backlog: i32, result: i32) {
    if call::leave_told() {
        return;
    }
    let opened = sock::of_descriptor(descriptor);
    if !call::is_told_outside(opened.sk) {
        refused(opened, result);
        returned(opened.sk, opened.inode, backlog, 0, result);
    }
    call::leave();
}

/// Tells who has the port, if a listen did not get it.
#[inline(always)]
fn refused(opened: Opened, result: i32) {
    if result == conflict::EADDRINUSE {
        bind::refused(opened, read(opened.sk, &layout::SOCK_NUM));
    }
}

/// A listen of the current task has returned, on a socket with these bits of
/// [`portwatch_common::record::socket_flag`]; 0 if there is none.
///
/// A global function: see [`conflict::tell_holders`].
#[unsafe(export_name = "listen_returned")]
#[inline(never)]
extern "C" fn returned(sk: Address, inode: u64, backlog: i32, flags: u32, result: i32) -> i32 {
    let opened = Opened { sk, inode };
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::traced(task);
    // As in `bind::returned`.
    let filters = Filters::now();
    let is_wanted = filters.task(task);
    if !(is_wanted || result == 0) || !(opened.is_none() || sock::concerns_us(sk, filters)) {
        return 0;
    }
    // First of all, as in `bind::returned`.
    task::identify(task);
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    if opened.is_none() {
        // Without a socket there is neither an address nor a family to judge it by.
        if is_wanted && !filters.has(filter::PORT | filter::NETNS) {
            send(opened, task, socket, backlog, result);
        }
        return 0;
    };
    sock::describe(opened, socket);
    socket.flags = flags as u16;
    let wanted = match socket.family {
        AF_INET | AF_INET6 => filters.socket(socket),
        AF_UNIX => filters.has(filter::UNIX),
        _ => false,
    };
    if !wanted {
        return 0;
    }
    // listen(2) without bind(2) binds as well.
    if socket.family != AF_UNIX && result == 0 && BOUND.get_ptr(opened.sk).is_none() {
        // SAFETY: the helper has no preconditions.
        bind::remember(filters, socket, task, unsafe { bpf_ktime_get_ns() });
    }
    if !is_wanted || !filters.result(result, socket.protocol) {
        return 0;
    }
    if socket.family == AF_UNIX {
        send_unix(opened, task, socket, backlog, result);
    } else {
        send(opened, task, socket, backlog, result);
    }
    0
}

#[inline(always)]
fn send(opened: Opened, task: &Task, socket: &Socket, backlog: i32, result: i32) {
    let Some(mut entry) = emit::reserve::<Listen>(kind::LISTEN) else {
        return;
    };
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        fill(entry.as_mut_ptr(), task, socket, backlog, result);
        if !opened.is_none() {
            sock::device_name(opened.sk, socket.device, &mut (*entry.as_mut_ptr()).device);
        }
    }
    emit::submit(entry);
}

/// # Safety
///
/// `record` must point to writable memory.
#[inline(always)]
unsafe fn fill(record: *mut Listen, task: &Task, socket: &Socket, backlog: i32, result: i32) {
    // SAFETY: promised by the caller.
    unsafe {
        emit::put(&raw mut (*record).task, task);
        emit::put(&raw mut (*record).socket, socket);
        (*record).result = result;
        (*record).backlog = backlog;
        (*record).path_length = 0;
        (*record).reserved = 0;
        zero(&raw mut (*record).device);
    }
}

#[inline(always)]
fn send_unix(opened: Opened, task: &Task, socket: &Socket, backlog: i32, result: i32) {
    let Some(mut entry) = emit::reserve::<ListenUnix>(kind::LISTEN) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        fill(&raw mut (*record).listen, task, socket, backlog, result);
        zero(&raw mut (*record).path);
        (*record).listen.path_length = unix_path((&raw mut (*record).path).cast(), opened.sk);
    }
    emit::submit(entry);
}

/// Reads the name an AF_UNIX socket is bound to: `unix_sock.addr` is a
/// `struct unix_address`, whose `len` counts `sun_family` too.
///
/// # Safety
///
/// `buffer` must point to `UNIX_PATH` writable bytes.
#[inline(always)]
unsafe fn unix_path(buffer: *mut u8, sk: Address) -> u32 {
    let name: Address = read(sk, &layout::UNIX_ADDR);
    if name == 0 {
        return 0;
    }
    let mut length = read::<u32>(name, &layout::UNIX_ADDRESS_LEN).saturating_sub(2);
    if length > UNIX_PATH as u32 {
        length = UNIX_PATH as u32;
    }
    let Some(sockaddr) = layout::address(name, &layout::UNIX_ADDRESS_NAME) else {
        return 0;
    };
    if length == 0 {
        return 0;
    }
    // SAFETY: `length` is at most UNIX_PATH; the helper checks the source.
    let failed =
        unsafe { bpf_probe_read_kernel(buffer.cast(), length, (sockaddr + 2) as *const _) };
    if failed == 0 { length } else { 0 }
}
