//! The filters that can be applied here. The user side applies all of them once more.

use portwatch_common::map::{control, filter};
use portwatch_common::record::{Requested, Socket, Task};

use crate::maps::{CONTROL, NETNS, PIDS, PORTS, UIDS};
use crate::sock::{IPPROTO_TCP, IPPROTO_UDP};

/// Whether a filter is set.
#[inline(always)]
pub fn is_set(bit: u32) -> bool {
    CONTROL
        .get(control::FILTERS)
        .is_some_and(|set| set & bit != 0)
}

#[inline(always)]
fn port_wanted(port: u16) -> bool {
    match PORTS.get(u32::from(port) / 64) {
        Some(word) => word >> (port % 64) & 1 == 1,
        None => false,
    }
}

/// Whether a socket's own address passes: its port and its network namespace.
#[inline(always)]
pub fn socket(socket: &Socket) -> bool {
    (!is_set(filter::PORT) || port_wanted(socket.local_port)) && netns(socket.netns)
}

#[inline(always)]
fn netns(inode: u32) -> bool {
    !is_set(filter::NETNS) || NETNS.get_ptr(inode).is_some()
}

/// Whether the task passes: its process and its uid.
#[inline(always)]
pub fn task(task: &Task) -> bool {
    (!is_set(filter::PID) || PIDS.get_ptr(task.tgid).is_some())
        && (!is_set(filter::UID) || UIDS.get_ptr(task.uid).is_some())
}

/// Whether a bind passes: one for port 0 by the port it got as well.
#[inline(always)]
pub fn bind(requested: &Requested, socket: &Socket) -> bool {
    (!is_set(filter::PORT) || port_wanted(requested.port) || port_wanted(socket.local_port))
        && netns(socket.netns)
}

/// Whether a bound socket is to be followed until its end.
#[inline(always)]
pub fn follows(socket: &Socket) -> bool {
    !is_set(filter::FOLLOW_TCP) || socket.protocol == IPPROTO_TCP
}

/// Whether an outcome passes. What was granted always does, but to UDP: who had a port when explains
/// who is refused it, while a resolver binds a socket of UDP for every query.
#[inline(always)]
pub fn result(result: i32, protocol: u16) -> bool {
    !is_set(filter::FAILED) || result < 0 || protocol != IPPROTO_UDP
}
