//! Writes records into the ring buffer, counts what does not fit, and wakes the user side.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::bpf_ktime_get_ns,
    maps::ring_buf::RingBufEntry,
};
use portwatch_common::map::control;
use portwatch_common::record::{Header, Record};

use crate::maps::{CONTROL, EVENTS, LOST};

/// Counts one loss at an index of [`portwatch_common::map::lost`].
#[inline(always)]
pub fn count_lost(index: u32) {
    if let Some(count) = LOST.get_ptr_mut(index) {
        // Nothing preempts a program in a tracepoint, but an interrupt may
        // run another one on top of it: only an atomic add loses no count.
        // SAFETY: the pointer is valid and aligned, and shared with nothing but other atomic adds.
        unsafe { add(count, 1) };
    }
}

/// Adds to a number, atomically. `core` has no atomic adds for this target; BPF_XADD is in every kernel,
/// while the kinds that fetch came with 5.12.
///
/// # Safety
///
/// The pointer must be valid and aligned.
#[inline(always)]
pub unsafe fn add(number: *mut u64, summand: i64) {
    // SAFETY: promised by the caller.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({number} + 0) += {summand}",
            number = in(reg) number,
            summand = in(reg) summand,
            options(nostack),
        );
    }
}

/// Reserves a record of this kind and writes its header. Counts the loss if there is no room.
///
/// What is behind the header is whatever the ring held before: the caller has to set every field.
#[inline(always)]
pub fn reserve<T: Record>(kind: u32) -> Option<RingBufEntry<T>> {
    // SAFETY: the helper has no preconditions.
    reserve_at(kind, unsafe { bpf_ktime_get_ns() })
}

/// The same, of this time (CLOCK_MONOTONIC, ns).
#[inline(always)]
pub fn reserve_at<T: Record>(kind: u32, time: u64) -> Option<RingBufEntry<T>> {
    let Some(mut entry) = EVENTS.reserve::<T>(0) else {
        count_lost(kind);
        return None;
    };
    // SAFETY: a Record begins with a Header.
    unsafe {
        entry.as_mut_ptr().cast::<Header>().write(Header {
            kind,
            reserved: 0,
            time,
        });
    }
    Some(entry)
}

/// Copies a part of a record into place, word by word: left to itself the
/// compiler copies by bytes, in pieces which the verifier cannot follow.
///
/// # Safety
///
/// `to` must be writable, and both aligned to eight bytes.
#[inline(always)]
pub unsafe fn put<T: Copy>(to: *mut T, from: &T) {
    const { assert!(size_of::<T>().is_multiple_of(8)) };
    let from = core::ptr::from_ref(from).cast::<u64>();
    for word in 0..size_of::<T>() / 8 {
        // SAFETY: promised by the caller; `word` is within both.
        unsafe {
            to.cast::<u64>()
                .add(word)
                .write(from.add(word).read_volatile());
        }
    }
}

/// Hands a record over.
///
/// A wakeup is an inter-processor interrupt, dearer than all the rest, so it
/// is made only for a reader that has said it sleeps, once. The reader looks
/// again by itself before long, so a wakeup lost to the race between its
/// saying so and our looking is not waited for in vain.
#[inline(always)]
pub fn submit<T: Record>(entry: RingBufEntry<T>) {
    entry.submit(wakeup());
}

#[inline(always)]
fn wakeup() -> u64 {
    if let Some(asleep) = CONTROL.get_ptr_mut(control::ASLEEP) {
        // SAFETY: the pointer is valid and aligned; a lost race costs one wakeup too many.
        unsafe {
            if asleep.read_volatile() != 0 {
                asleep.write_volatile(0);
                return u64::from(BPF_RB_FORCE_WAKEUP);
            }
        }
    }
    u64::from(BPF_RB_NO_WAKEUP)
}
