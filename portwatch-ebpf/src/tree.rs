//! The descendants of a process: who is of the job that is watched.
//!
//! The user side puts a process into the map `TREE`; what it forks is put in here
//! before it runs. A task says in its flags whether it is of the tree, so that
//! every record tells it of the moment it is about.

use portwatch_common::map::lost;

use crate::emit;
use crate::layout;
use crate::maps::TREE;

/// Whether a tree is followed. A constant to the verifier: without one all of this is dead code.
#[inline(always)]
pub fn is_followed() -> bool {
    layout::FOLLOW_TREE.load() != 0
}

/// 1 if a process is of the tree, else 0.
///
/// A global function, so that its branches are none of its callers'.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn in_tree(tgid: u32, start: u64) -> u32 {
    u32::from(contains(tgid, start))
}

/// A pid may be another's before the task that had it is freed, and taken out: the start decides.
#[inline(always)]
fn contains(tgid: u32, start: u64) -> bool {
    TREE.get_ptr(tgid).is_some_and(|known| {
        // SAFETY: the pointer is valid and aligned for the program's duration.
        let known = unsafe { *known };
        known == 0 || known == start
    })
}

/// Whether a process is of the tree that is followed, as a value for a task's flags.
#[inline(always)]
pub fn holds(tgid: u32, start: u64) -> bool {
    is_followed() && in_tree(tgid, start) != 0
}

/// A process was made, and has not run yet.
#[inline(always)]
pub fn forked(parent: (u32, u64), child: (u32, u64)) {
    if contains(parent.0, parent.1) && TREE.insert(child.0, child.1, 0).is_err() {
        emit::count_lost(lost::TREE);
    }
}

/// A process is no more.
#[inline(always)]
pub fn reaped(tgid: u32, start: u64) {
    if contains(tgid, start) {
        let _ = TREE.remove(tgid);
    }
}
