//! The bind or listen that a thread is in: what its entry has to tell its exit.
//!
//! `inet_bind` and `inet_listen` run within bind(2) and listen(2), but also for
//! io_uring and for the kernel itself. What they return is told then and there,
//! but for a socket of the kernel's underneath another, which is all that they
//! see of MPTCP and SMC: then it is the system call's own return that is told,
//! with the socket its descriptor leads to.
//!
//! An entry may be missed (`recursion_misses`), so an exit must do without.
//!
//! For the time of a call a thread has a seat in an array, one of two by its id:
//! a hash map would take as long as all the rest. Who finds both taken goes
//! without, and what it does is counted as lost.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use portwatch_common::map::{CALLS_CAPACITY, Call, Seat, call};

use crate::emit;
use crate::layout::{Address, zero};
use crate::maps::CALLS;
use crate::sock::Opened;

/// The first or the second seat of a thread, whoever has it.
#[inline(always)]
fn seat(thread: u64, second: bool) -> Option<&'static mut Seat> {
    let id = thread as u32;
    let index = if second {
        // Knuth's multiplicative hash: neighbours in the first are none here.
        id.wrapping_mul(0x9e37_79b1) >> (32 - CALLS_CAPACITY.ilog2())
    } else {
        id % CALLS_CAPACITY
    };
    // SAFETY: the pointer is valid and aligned for the program's duration; what is behind `thread` only
    // the thread uses which has the seat.
    CALLS.get_ptr_mut(index).map(|seat| unsafe { &mut *seat })
}

/// Whether a seat is a thread's, with a call of a kind that passes.
#[inline(always)]
fn is_of(seat: &Seat, thread: u64, passes: impl Fn(u32) -> bool) -> bool {
    // The kind first: who takes the seat sets it after the thread, so that another's call is not taken for
    // the thread's.
    // SAFETY: the fields are readable; volatile for their order.
    let (kind, owner) = unsafe {
        (
            (&raw const seat.call.kind).read_volatile(),
            (&raw const seat.thread).read_volatile(),
        )
    };
    owner == thread && passes(kind)
}

/// The seat of the current thread with a call of a kind that passes.
#[inline(always)]
fn own(passes: impl Fn(u32) -> bool) -> Option<&'static mut Seat> {
    let thread = bpf_get_current_pid_tgid();
    match seat(thread, false) {
        Some(seat) if is_of(seat, thread, &passes) => Some(seat),
        _ => seat(thread, true).filter(|seat| is_of(seat, thread, &passes)),
    }
}

/// Whether a thread with a call of this kind is in it still.
#[inline(always)]
fn is_in(kind: u32) -> bool {
    kind != call::NONE && kind != call::WAS_OUTSIDE
}

/// What the current thread is in.
#[inline(always)]
pub fn current() -> Option<&'static mut Call> {
    own(is_in).map(|seat| &mut seat.call)
}

/// Takes a seat, if nobody has it or is about to take it.
///
/// Whoever reads its own claim alone is the only one: as long as it stands, everybody else reads two.
#[inline(always)]
fn take(thread: u64, second: bool) -> Option<&'static mut Call> {
    let seat = seat(thread, second)?;
    // SAFETY: the pointer is valid and aligned, and shared with nothing but other atomic adds.
    unsafe {
        emit::add(&raw mut seat.claims, 1);
        if (&raw const seat.claims).read_volatile() != 1 {
            emit::add(&raw mut seat.claims, -1);
            return None;
        }
    }
    // SAFETY: the field is writable; volatile, so that it is written before the kind of the call.
    unsafe { (&raw mut seat.thread).write_volatile(thread) };
    Some(&mut seat.call)
}

/// The current thread leaves the call it is in.
#[inline(always)]
pub fn leave() {
    if let Some(seat) = own(is_in) {
        give_back(seat);
    }
}

#[inline(always)]
fn give_back(seat: &mut Seat) {
    seat.call.kind = match seat.call.kind {
        call::OUTSIDE => call::WAS_OUTSIDE,
        _ => call::NONE,
    };
    // SAFETY: the pointer is valid and aligned, and shared with nothing but other atomic adds.
    unsafe { emit::add(&raw mut seat.claims, -1) };
}

/// A call begins, within bind(2) or listen(2) or outside of both. None if there is no seat for it.
#[inline(always)]
pub fn enter(
    kind: u32,
    descriptor: u32,
    address: Address,
    argument: u32,
) -> Option<&'static mut Call> {
    let thread = bpf_get_current_pid_tgid();
    let call = match seat(thread, false) {
        // One whose exit the kernel has skipped.
        Some(seat) if is_of(seat, thread, is_in) => &mut seat.call,
        _ => match take(thread, false) {
            Some(call) => call,
            None => take(thread, true)?,
        },
    };
    zero(call);
    call.kind = kind;
    call.descriptor = descriptor;
    call.address = address;
    call.argument = argument;
    Some(call)
}

/// A thread is no more: one whose exit the kernel has skipped had its seat still.
#[inline(always)]
pub fn ended(thread: u64) {
    for second in [false, true] {
        if let Some(seat) = seat(thread, second)
            && is_of(seat, thread, is_in)
        {
            give_back(seat);
        }
    }
}

/// `inet_bind` or `inet_listen` begins, within a system call or outside of one. Gives the call back,
/// unless it has been in there before: then this is a socket underneath.
#[inline(always)]
pub fn reach(sk: Address, sockaddr: Address, argument: u32) -> Option<&'static mut Call> {
    let call = match current() {
        Some(call) if call.kind != call::OUTSIDE => call,
        _ => enter(call::OUTSIDE, 0, 0, argument)?,
    };
    if call.reached != 0 {
        return None;
    }
    call.reached = 1;
    call.sk = sk;
    call.sockaddr = sockaddr;
    Some(call)
}

/// `inet_bind` or `inet_listen` of a socket returns, of this kind of record: the call that is told of now.
/// None within a system call, if no file leads to the socket: then its own socket is another.
#[inline(always)]
pub fn returns(
    call: Option<&'static mut Call>,
    sk: Address,
    has_file: bool,
    kind: u32,
) -> Option<&'static mut Call> {
    let call = match call {
        Some(call) if call.kind != call::OUTSIDE => {
            if !has_file {
                return None;
            }
            call
        }
        Some(call) if call.sk == sk => call,
        // Its entry was missed, or there is no hook for it.
        _ => {
            let Some(call) = enter(call::OUTSIDE, 0, 0, 0) else {
                emit::count_lost(kind);
                return None;
            };
            call
        }
    };
    call.reached = 1;
    call.told = 1;
    call.sk = sk;
    Some(call)
}

/// The socket that a call tells of, as numbers: the register that it came in the verifier may know as a
/// pointer, which a global function does not take.
#[inline(always)]
pub fn opened(call: &Call) -> Opened {
    // SAFETY: the fields are readable; volatile, so that they are read from the map.
    unsafe {
        Opened {
            sk: (&raw const call.sk).read_volatile(),
            inode: (&raw const call.inode).read_volatile(),
        }
    }
}

/// The current thread leaves bind(2) or listen(2), if what it did was told already.
#[inline(always)]
pub fn leave_told() -> bool {
    match own(|kind| kind == call::BIND || kind == call::LISTEN) {
        Some(seat) if seat.call.told != 0 => {
            give_back(seat);
            true
        }
        _ => false,
    }
}

/// Whether it was told already where its entry was missed: then what it did to its socket was taken for
/// something outside of it.
#[inline(always)]
pub fn is_told_outside(sk: Address) -> bool {
    own(|kind| kind == call::WAS_OUTSIDE).is_some_and(|seat| seat.call.sk == sk)
}
