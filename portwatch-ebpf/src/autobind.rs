//! A port that the kernel is to choose, without a bind: connect(2), sendto(2)
//! and the like. Only that there was none left is told.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use portwatch_common::map::call as calls;
use portwatch_common::record::{Requested, Socket, Task, socket_flag};

use crate::filter::Filters;
use crate::layout::{self, Address, read, zeroed};
use crate::{bind, call, sock, task};

const EAGAIN: i32 = 11;
const EADDRNOTAVAIL: i32 = 99;

/// connect(2) of a TCP socket has looked for a port (`inet_hash_connect`).
#[inline(always)]
pub fn connected(sk: Address, result: i32) {
    // A socket with a port of its own is refused with the same errno where the
    // connection exists already.
    if result == -EADDRNOTAVAIL && read::<u16>(sk, &layout::SOCK_NUM) == 0 {
        failed(sk, result);
    }
}

/// `get_port` of a UDP socket has returned: 0, or an errno, or 1 (up to 5.10). Without a bind it was
/// `inet_autobind` that asked (net/ipv4/af_inet.c), which makes EAGAIN of every failure.
#[inline(always)]
pub fn got_port(sk: Address, port: u16, result: i32) {
    if result == 0 || port != 0 {
        return;
    }
    if matches!(call::current(), Some(call) if call.kind != calls::OUTSIDE || call.sk == sk) {
        return;
    }
    if sock::is_inet(sk) {
        failed(sk, -EAGAIN);
    }
}

/// The kernel found no port for connect(2), sendto(2) or the like, which asked for any.
#[inline(never)]
fn failed(sk: Address, result: i32) {
    let mut task = MaybeUninit::uninit();
    let task: &mut Task = zeroed(&mut task);
    task::traced(task);
    let filters = Filters::now();
    if !filters.task(task) {
        return;
    }
    task::identify(task);
    let mut requested = MaybeUninit::uninit();
    let requested: &mut Requested = zeroed(&mut requested);
    let mut socket = MaybeUninit::uninit();
    let socket: &mut Socket = zeroed(&mut socket);
    let opened = sock::opened(sk);
    sock::describe(opened, socket);
    socket.flags = sock::owner(sk) | socket_flag::AUTOBIND;
    requested.family = socket.family;
    requested.address = socket.local;
    requested.read = 24;
    if filters.bind(requested, socket) {
        // SAFETY: the helper has no preconditions.
        let time = unsafe { bpf_ktime_get_ns() };
        bind::send(time, opened, task, socket, requested, None, result);
    }
}
