//! The filters that can be applied here. The user side applies all of them once more.

use portwatch_common::map::{control, filter};
use portwatch_common::record::{Requested, Socket, Task};

use crate::maps::{CONTROL, NETNS, PIDS, PORTS, UIDS};
use crate::sock::{IPPROTO_TCP, IPPROTO_UDP};

/// Which filters are set: bits of [`portwatch_common::map::filter`].
#[derive(Clone, Copy)]
pub struct Filters(u32);

impl Filters {
    /// Those that are set now.
    #[inline(always)]
    pub fn now() -> Self {
        Self(CONTROL.get(control::FILTERS).copied().unwrap_or(0))
    }

    /// Whether one of these is set.
    #[inline(always)]
    pub fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Whether a socket's own address passes: its port and its network namespace.
    #[inline(always)]
    pub fn socket(self, socket: &Socket) -> bool {
        (!self.has(filter::PORT) || port_wanted(socket.local_port)) && self.netns(socket.netns)
    }

    #[inline(always)]
    fn netns(self, inode: u32) -> bool {
        !self.has(filter::NETNS) || NETNS.get_ptr(inode).is_some()
    }

    /// Whether the task passes: its process and its uid.
    #[inline(always)]
    pub fn task(self, task: &Task) -> bool {
        (!self.has(filter::PID) || PIDS.get_ptr(task.tgid).is_some())
            && (!self.has(filter::UID) || UIDS.get_ptr(task.uid).is_some())
    }

    /// Whether a bind passes: one for port 0 by the port it got as well.
    #[inline(always)]
    pub fn bind(self, requested: &Requested, socket: &Socket) -> bool {
        (!self.has(filter::PORT) || port_wanted(requested.port) || port_wanted(socket.local_port))
            && self.netns(socket.netns)
    }

    /// Whether a bound socket is to be followed until its end.
    #[inline(always)]
    pub fn follows(self, socket: &Socket) -> bool {
        !self.has(filter::FOLLOW_TCP) || socket.protocol == IPPROTO_TCP
    }

    /// Whether an outcome passes. What was granted always does, but to UDP: who had a port when explains
    /// who is refused it, while a resolver binds a socket of UDP for every query.
    #[inline(always)]
    pub fn result(self, result: i32, protocol: u16) -> bool {
        !self.has(filter::FAILED) || result < 0 || protocol != IPPROTO_UDP
    }
}

#[inline(always)]
fn port_wanted(port: u16) -> bool {
    match PORTS.get(u32::from(port) / 64) {
        Some(word) => word >> (port % 64) & 1 == 1,
        None => false,
    }
}
