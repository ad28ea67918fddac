//! The bind or listen that a thread is in: what its entry has to tell its exit.
//!
//! `inet_bind` and `inet_listen` run within bind(2) and listen(2), but also for
//! io_uring and for the kernel itself. Within a system call it is the call's
//! own return that is told, with the socket its descriptor leads to: of MPTCP
//! and SMC `inet_bind` sees only a socket of the kernel's underneath.
//!
//! An entry may be missed (`recursion_misses`), so an exit must do without.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use portwatch_common::map::{Call, call};

use crate::layout::{Address, zeroed};
use crate::maps::CALLS;

/// What the current thread is in.
#[inline(always)]
pub fn current() -> Option<&'static mut Call> {
    // SAFETY: the pointer is valid and aligned for the program's duration, and only this thread uses it.
    CALLS
        .get_ptr_mut(bpf_get_current_pid_tgid())
        .map(|call| unsafe { &mut *call })
}

/// The current thread leaves it.
#[inline(always)]
pub fn leave() {
    let _ = CALLS.remove(bpf_get_current_pid_tgid());
}

/// bind(2) or listen(2) begins.
///
/// A function of its own, as its part of the stack is free again when the rest needs it.
#[inline(never)]
pub fn enter(kind: u32, descriptor: u32, address: Address, argument: u32) {
    let mut call = MaybeUninit::uninit();
    let call: &mut Call = zeroed(&mut call);
    call.kind = kind;
    call.descriptor = descriptor;
    call.address = address;
    call.argument = argument;
    let _ = CALLS.insert(bpf_get_current_pid_tgid(), &*call, 0);
}

/// `inet_bind` or `inet_listen` begins, within a system call or outside of one. Gives the call back,
/// unless it has been in there before: then this is a socket underneath.
#[inline(always)]
pub fn reach(sk: Address, sockaddr: Address, argument: u32) -> Option<&'static mut Call> {
    let within = matches!(current(), Some(call) if call.kind != call::OUTSIDE);
    if !within {
        enter(call::OUTSIDE, 0, 0, argument);
    }
    let call = current()?;
    if call.reached != 0 {
        return None;
    }
    call.reached = 1;
    call.sk = sk;
    call.sockaddr = sockaddr;
    Some(call)
}

/// `inet_bind` or `inet_listen` of a socket returns: what is known of it, if it was not within a system
/// call, which would tell by itself.
#[inline(always)]
pub fn outside(sk: Address) -> Option<&'static mut Call> {
    match current() {
        Some(call) if call.kind != call::OUTSIDE => return None,
        Some(call) if call.sk == sk => return Some(call),
        // Its entry was missed, or there is no hook for it.
        _ => {}
    }
    enter(call::OUTSIDE, 0, 0, 0);
    let call = current()?;
    call.reached = 1;
    call.sk = sk;
    Some(call)
}

/// The socket of a call as a number: the register that it came in the verifier may know as a pointer,
/// which a global function does not take.
#[inline(always)]
pub fn number_of(call: &Call) -> Address {
    // SAFETY: the field is readable; volatile, so that it is read from the map.
    unsafe { core::ptr::read_volatile(&raw const call.sk) }
}

/// Whether a system call of the current thread, which returns, has been told of already: its entry was
/// missed, so what it did was taken for something outside of it.
#[inline(always)]
pub fn was_told(sk: Address) -> bool {
    matches!(current(), Some(call) if call.kind == call::OUTSIDE && call.sk == sk)
}
