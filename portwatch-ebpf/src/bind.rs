//! bind: an attempt, as it came back.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_user};
use portwatch_common::map::{Bound, Call, call as calls, filter, lost};
use portwatch_common::record::{
    Bind, BindUnix, Requested, Rewritten, Socket, Task, UNIX_PATH, kind, task_flag,
};

use crate::filter::Filters;
use crate::layout::{Address, Place, read_at, read_user, zero, zeroed};
use crate::maps::BOUND;
use crate::sock::{self, AF_INET, AF_INET6, AF_UNIX, Opened};
use crate::{call, conflict, emit, task};

/// Offset of `sun_path` in `struct sockaddr_un`.
const SUN_PATH: u32 = 2;

/// Reads a value of the caller's memory, or of the kernel's.
#[inline(always)]
fn peek<const KERNEL: bool, T: Copy + Default>(address: Address) -> Option<T> {
    if KERNEL {
        Some(read_at(address))
    } else {
        read_user(address)
    }
}

/// Reads a `struct sockaddr`. What could not be read is zero. Gives its first eight bytes.
#[inline(always)]
fn read_requested<const KERNEL: bool>(
    address: Address,
    length: u32,
    requested: &mut Requested,
) -> u64 {
    requested.length = length;
    // sa_family, the port, and of IPv4 the address in one go.
    let Some(head) = (length >= 8)
        .then(|| peek::<KERNEL, u64>(address))
        .flatten()
    else {
        read_family::<KERNEL>(address, length, requested);
        return 0;
    };
    // SAFETY: integers of the same length.
    let [family, port, ip @ ..]: [u16; 4] = unsafe { core::mem::transmute(head) };
    requested.family = family;
    requested.read = 4;
    if family == AF_INET {
        sock::words(&mut requested.address)[0] = u32::from(ip[0]) | u32::from(ip[1]) << 16;
        requested.port = u16::from_be(port);
        requested.read = 8;
    } else if family == AF_INET6 && length >= 24 {
        if let Some(ip) = peek::<KERNEL, [u8; 16]>(address.wrapping_add(8)) {
            requested.address = ip;
            requested.port = u16::from_be(port);
            requested.read = 24;
        }
        if length >= 28 {
            requested.scope = peek::<KERNEL, u32>(address.wrapping_add(24)).unwrap_or(0);
        }
    }
    head
}

/// Reads the family of one that is too short for more, or ends where no memory is.
#[inline(always)]
fn read_family<const KERNEL: bool>(address: Address, length: u32, requested: &mut Requested) {
    // An AF_UNIX socket that the kernel is to name (autobind) has a family and no more.
    if length < SUN_PATH {
        return;
    }
    if let Some(family) = peek::<KERNEL, u16>(address) {
        requested.family = family;
        requested.read = if length < 4 { 0 } else { 4 };
    }
}

/// `inet_bind` begins with this address in the kernel's memory.
#[inline(always)]
pub fn inet_entered(sk: Address, sockaddr: Address, length: u32) {
    if let Some(call) = call::reach(sk, sockaddr, length) {
        call.head = read_requested::<true>(sockaddr, length, &mut call.requested);
    }
}

/// `inet_bind` is about to return. A cgroup program may have written another address over the one
/// that was asked for (`BPF_CGROUP_RUN_PROG_INET_BIND_LOCK` in `inet_bind_sk`, net/ipv4/af_inet.c).
#[inline(always)]
pub fn inet_left(
    mut call: Option<&'static mut Call>,
    sk: impl Place,
    sockaddr: Address,
    length: u32,
    result: i32,
    tell: impl FnOnce(&mut Call),
) {
    if let Some(call) = &mut call
        && call.sk == sk.address()
        && call.requested.family != 0
        && (call.requested.family != AF_INET || call.head != read_at(sockaddr))
    {
        compare(call, sockaddr, length);
    }
    let file = sock::file_to(sk);
    let Some(call) = call::returns(call, sk.address(), file.is_some(), kind::BIND) else {
        return;
    };
    call.inode = file.map_or(0, |file| sock::inode_of(file));
    if call.requested.family == 0 {
        read_requested::<true>(sockaddr, length, &mut call.requested);
    }
    if result == conflict::EADDRINUSE {
        conflict::tell(call::opened(call).sk, tried(call));
    }
    tell(call);
    if call.kind == calls::OUTSIDE {
        call::leave();
    }
}

/// Notes if the address is not the one of the entry any more.
#[inline(never)]
fn compare(call: &mut Call, sockaddr: Address, length: u32) {
    let mut now = MaybeUninit::uninit();
    let now: &mut Requested = zeroed(&mut now);
    read_requested::<true>(sockaddr, length, now);
    if now.address != call.requested.address || now.port != call.requested.port {
        call.rewritten.address = now.address;
        call.rewritten.port = now.port;
        call.rewritten.is = 1;
    }
}

/// bind(2) is about to return.
#[inline(always)]
pub fn left(descriptor: u32, address: Address, length: u32, result: i32) {
    if call::leave_told() {
        return;
    }
    let opened = sock::of_descriptor(descriptor);
    if !call::is_told_outside(opened.sk) {
        // Its entry was missed, or there is no hook for it.
        if !matches!(call::current(), Some(call) if call.kind == calls::BIND) {
            call::enter(calls::BIND, descriptor, address, length);
        }
        let port = ask() as u16;
        if result == conflict::EADDRINUSE {
            refused(opened, port);
        }
        returned(opened.sk, opened.inode, result);
    }
    call::leave();
}

/// What the current thread's bind(2) was asked for, where its way through the kernel has not told
/// already. Gives the port that the kernel tried.
///
/// A global function: see [`conflict::tell_holders`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn ask() -> i32 {
    let Some(call) = call::current() else {
        return 0;
    };
    if call.requested.family == 0 {
        // A thread beside may have changed its memory since.
        read_requested::<false>(call.address, call.argument, &mut call.requested);
    }
    i32::from(tried(call))
}

/// The port that the kernel tried.
#[inline(always)]
fn tried(call: &Call) -> u16 {
    if call.rewritten.is != 0 {
        call.rewritten.port
    } else {
        call.requested.port
    }
}

/// Tells who has the port that a bind(2) did not get.
#[inline(always)]
pub fn refused(opened: Opened, port: u16) {
    if !opened.is_none() && sock::is_inet(opened.sk) {
        conflict::tell(opened.sk, port);
    }
}

/// The bind that the current task is in has returned, on this socket; 0 if there is none.
///
/// A global function: see [`conflict::tell_holders`].
#[unsafe(export_name = "bind_returned")]
#[inline(never)]
pub extern "C" fn returned(sk: Address, inode: u64, result: i32) -> i32 {
    if let Some(call) = call::current() {
        call.sk = sk;
        call.inode = inode;
        tell(call, sk, result);
    } else {
        emit::count_lost(kind::BIND);
    }
    0
}

/// Tells of a bind that has returned, with its socket at a place that may be typed.
#[inline(always)]
pub fn tell(call: &Call, sk: impl Place, result: i32) {
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::traced(task);
    // Who has a port explains who is refused it, whoever of them is wanted.
    let filters = Filters::now();
    let is_wanted = filters.task(task);
    if !(is_wanted || result == 0)
        || !(call::opened(call).is_none() || sock::concerns_us(sk, filters))
    {
        return;
    }
    // First of all: whatever comes before is one more state from which the
    // verifier follows the longest of all paths.
    task::identify(task);
    // Once more, as there is no room on the stack to keep them.
    let filters = Filters::now();
    let requested = &call.requested;
    let opened = call::opened(call);
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    if !opened.is_none() {
        sock::describe_at(sk, opened, socket);
        if call.kind == calls::OUTSIDE {
            socket.flags = sock::owner(sk);
        }
    }
    // What is no socket is judged by the address it was given.
    let family = if opened.is_none() {
        requested.family
    } else {
        socket.family
    };
    let wanted = match family {
        AF_INET | AF_INET6 => filters.bind(requested, socket),
        AF_UNIX => filters.has(filter::UNIX),
        _ => false,
    };
    if !wanted {
        return;
    }
    // SAFETY: the helper has no preconditions.
    let time = unsafe { bpf_ktime_get_ns() };
    if family != AF_UNIX && result == 0 {
        remember(filters, socket, task, time);
    }
    if !is_wanted || !filters.result(result, socket.protocol) {
        return;
    }
    if family == AF_UNIX {
        send_unix(task, socket, requested, call.address, result);
    } else {
        send(
            time,
            opened,
            task,
            socket,
            requested,
            Some(&call.rewritten),
            result,
        );
    }
}

/// Remembers a bound socket, who bound it and when (CLOCK_MONOTONIC, ns), so that its end will be seen.
#[inline(never)]
pub fn remember(filters: Filters, socket: &Socket, task: &Task, time: u64) {
    // One whose end will not be seen would stay for ever.
    if !filters.follows(socket) {
        return;
    }
    let mut bound = MaybeUninit::uninit();
    let bound: &mut Bound = zeroed(&mut bound);
    // SAFETY: both are valid and aligned.
    unsafe { emit::put(&raw mut bound.binder, task) };
    bound.closer.flags = task_flag::UNKNOWN;
    bound.bound_at = time;
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

/// Sends the record of a bind, of this time (CLOCK_MONOTONIC, ns).
#[inline(always)]
pub fn send(
    time: u64,
    opened: Opened,
    task: &Task,
    socket: &Socket,
    requested: &Requested,
    rewritten: Option<&Rewritten>,
    result: i32,
) {
    let Some(mut entry) = emit::reserve_at::<Bind>(kind::BIND, time) else {
        return;
    };
    // SAFETY: the entry is reserved, writable memory of the right size.
    unsafe {
        fill(entry.as_mut_ptr(), task, socket, requested, result);
        if let Some(rewritten) = rewritten {
            emit::put(&raw mut (*entry.as_mut_ptr()).rewritten, rewritten);
        }
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
        zero(&raw mut (*record).rewritten);
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
