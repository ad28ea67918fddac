//! Who a process is, taken when it does something, and sent once per process and program.
//!
//! A process that fails to bind often exits within a millisecond: what is read
//! from /proc afterwards is gone or another's.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_get_current_task,
    generated::{bpf_get_current_task_btf, bpf_probe_read_user, bpf_probe_read_user_str},
};
use portwatch_common::field::ABSENT;
use portwatch_common::map::identified;
use portwatch_common::record::{
    ANCESTORS, ARGS_CAPACITY, Ancestor, Fork, Gone, Process, Record, Task, kind, process_flag,
    task_flag,
};

use crate::layout::{
    self, Address, Fields, Place, Typed, address, read, read_at, read_into, read_user, zero,
};
use crate::maps::IDENTIFIED;
use crate::{call, emit, path, tree};

// include/linux/sched.h
const PF_FORKNOEXEC: u32 = 0x0000_0040;
const PF_KTHREAD: u32 = 0x0020_0000;

/// No task at all.
pub const UNKNOWN: Task = Task {
    tgid: 0,
    tid: 0,
    start: 0,
    uid: 0,
    flags: task_flag::UNKNOWN,
    comm: [0; 16],
    gid: 0,
    reserved: 0,
};

/// The current task.
#[inline(always)]
pub fn untyped() -> Address {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

/// The same as a typed place, where this kernel has the helper for it (5.11 and later). Not for programs
/// of cgroups, to which it is not given.
#[inline(always)]
pub fn typed() -> Option<Typed> {
    // SAFETY: the helper has no preconditions.
    (layout::TASK_TYPED.load() != 0)
        .then(|| Typed::new(unsafe { bpf_get_current_task_btf() }.cast()))
}

#[inline(always)]
fn start_of(task: impl Place) -> u64 {
    task.follow(&layout::TASK_LEADER).get(&layout::TASK_START)
}

/// The current task, in any program.
#[inline(always)]
pub fn current(into: &mut Task) {
    this(untyped(), into);
}

/// The same in programs of tracing, where it is faster.
#[inline(always)]
pub fn traced(into: &mut Task) {
    match typed() {
        Some(task) => this(task, into),
        None => this(untyped(), into),
    }
}

#[inline(always)]
fn this(task: impl Place, into: &mut Task) {
    let ids = bpf_get_current_pid_tgid();
    into.tgid = (ids >> 32) as u32;
    into.tid = ids as u32;
    common(task, into);
}

/// All but the pids.
#[inline(always)]
fn common(task: impl Place, into: &mut Task) {
    let mut cred = MaybeUninit::uninit();
    let cred = task.follow(&layout::TASK_CRED).head::<4>(&mut cred);
    into.start = start_of(task);
    into.uid = cred.get(&layout::CRED_EUID);
    into.gid = cred.get(&layout::CRED_EGID);
    into.flags = flags_of(task);
    // By words, as in `emit::put`.
    let comm: [u32; 4] = task.get(&layout::TASK_COMM);
    // SAFETY: integers of the same length.
    into.comm = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(comm) };
    if tree::holds(into.tgid, into.start) {
        into.flags |= task_flag::IN_TREE;
    }
}

#[inline(always)]
fn flags_of(task: impl Place) -> u32 {
    if task.get::<u32>(&layout::TASK_FLAGS) & PF_KTHREAD != 0 {
        task_flag::KERNEL_THREAD
    } else {
        0
    }
}

/// A task that is not the current one.
#[inline(always)]
pub fn other(task: Address, into: &mut Task) {
    into.tgid = read(task, &layout::TASK_TGID);
    into.tid = read(task, &layout::TASK_PID);
    common(task, into);
}

/// Sees to it that the user side knows the process of the current task.
#[inline(always)]
pub fn identify(task: &Task) {
    if task.flags & !task_flag::IN_TREE != 0 {
        return;
    }
    if let Some(known) = IDENTIFIED.get_ptr(task.tgid) {
        // SAFETY: the pointer is valid and aligned for the program's duration.
        if unsafe { *known } == identified::FULL {
            return;
        }
    }
    send_identity();
}

/// [`Process`] with the arguments behind it.
#[repr(C)]
#[derive(Clone, Copy)]
struct WithArgs {
    process: Process,
    args: [u8; ARGS_CAPACITY],
}

// SAFETY: a Process, which is a multiple of eight bytes long, with bytes behind it.
unsafe impl Record for WithArgs {}

/// Sends who the current task is.
///
/// A global function, which the verifier goes through once for every program and not, as it does with
/// others, for every path that leads to it: these are the longest of all. Such a one takes and gives
/// only numbers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_identity() -> i32 {
    let Some(mut entry) = emit::reserve::<WithArgs>(kind::PROCESS) else {
        return 0;
    };
    let record = entry.as_mut_ptr();
    let current_task = untyped();
    let mm: Address = read(current_task, &layout::TASK_MM);
    // SAFETY: `record` points to reserved, writable memory of the right size.
    unsafe {
        let process = &raw mut (*record).process;
        zero(&raw mut (*process).task);
        current(&mut (*process).task);
        (*process).flags = has_forked(current_task);
        arguments(record, mm);
        ids(process, current_task);
        ancestors(process, current_task);
        executable(process, mm);
        cgroups(process, current_task);
    }
    emit::submit(entry);
    // If the map is full of others, the record is only sent again next time.
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let _ = IDENTIFIED.insert(tgid, identified::FULL, 0);
    0
}

/// [`process_flag::FORKED`], if the process has executed no program since. Every thread is one that has
/// not: its leader tells.
#[inline(always)]
fn has_forked(task: Address) -> u32 {
    let leader: Address = read(task, &layout::TASK_LEADER);
    if read::<u32>(leader, &layout::TASK_FLAGS) & PF_FORKNOEXEC != 0 {
        process_flag::FORKED
    } else {
        0
    }
}

/// # Safety
///
/// `record` must point to writable memory.
#[inline(always)]
unsafe fn arguments(record: *mut WithArgs, mm: Address) {
    let start: Address = read(mm, &layout::MM_ARG_START);
    let end: Address = read(mm, &layout::MM_ARG_END);
    let length = end.saturating_sub(start);
    let mut wanted = length as u32;
    if length > ARGS_CAPACITY as u64 {
        wanted = ARGS_CAPACITY as u32;
    }
    // SAFETY: promised by the caller; `wanted` is at most the buffer's length.
    unsafe {
        let process = &raw mut (*record).process;
        (*process).args_length = length as u32;
        (*process).args_read = 0;
        if mm == 0 {
            (*process).flags |= process_flag::NO_MEMORY;
        } else if wanted != 0 {
            let buffer = (&raw mut (*record).args).cast();
            // A title (setproctitle) that is longer than the arguments it was written over goes on
            // behind them, up to a NUL: then none stands at their end (get_mm_cmdline in
            // fs/proc/base.c, 5.10 to 7.3).
            if read_user::<u8>(end - 1).unwrap_or(0) != 0 {
                let read = bpf_probe_read_user_str(buffer, ARGS_CAPACITY as u32, start as *const _);
                if read > 0 {
                    (*process).args_read = read as u32;
                    // One that fills the buffer may go on.
                    (*process).args_length = read as u32 + (read as usize / ARGS_CAPACITY) as u32;
                } else {
                    (*process).flags |= process_flag::NO_ARGS;
                }
            } else if bpf_probe_read_user(buffer, wanted, start as *const _) == 0 {
                (*process).args_read = wanted;
            } else {
                (*process).flags |= process_flag::NO_ARGS;
            }
        }
    }
}

/// # Safety
///
/// `process` must point to writable memory.
#[inline(always)]
unsafe fn ids(process: *mut Process, task: Address) {
    let nsproxy: Address = read(task, &layout::TASK_NSPROXY);
    let net: Address = read(nsproxy, &layout::NSPROXY_NET);
    let mnt: Address = read(nsproxy, &layout::NSPROXY_MNT);
    // The process's own pid is the leader's, in the innermost namespace of its pid.
    let leader: Address = read(task, &layout::TASK_LEADER);
    let pid: Address = read(leader, &layout::TASK_THREAD_PID);
    let level: u32 = read(pid, &layout::PID_LEVEL);
    let upid = read_field_address(pid, u64::from(level));
    let pidns: Address = read(upid, &layout::UPID_NS);
    // SAFETY: promised by the caller.
    unsafe {
        (*process).reserved = 0;
        (*process).namespace_pid = read(upid, &layout::UPID_NR);
        (*process).netns = read(net, &layout::NET_INUM);
        (*process).pidns = read(pidns, &layout::PIDNS_INUM);
        (*process).mntns = read(mnt, &layout::MNTNS_INUM);
    }
}

/// The address of `pid->numbers[level]`.
#[inline(always)]
fn read_field_address(pid: Address, level: u64) -> Address {
    pid.wrapping_add(u64::from(layout::PID_NUMBERS.load()))
        .wrapping_add(level * u64::from(layout::UPID_SIZE.load()))
}

/// # Safety
///
/// `process` must point to writable memory.
#[inline(always)]
unsafe fn ancestors(process: *mut Process, task: Address) {
    let mut count = 0;
    let mut task = task;
    for index in 0..ANCESTORS {
        let parent: Address = read(task, &layout::TASK_PARENT);
        let leader: Address = read(parent, &layout::TASK_LEADER);
        let tgid: u32 = read(leader, &layout::TASK_TGID);
        // The parent of init is the idle task, pid 0.
        if tgid == 0 {
            break;
        }
        // SAFETY: promised by the caller; `index` is within the array.
        unsafe {
            let ancestor = (&raw mut (*process).ancestors)
                .cast::<Ancestor>()
                .add(index);
            (*ancestor).start = read(leader, &layout::TASK_START);
            (*ancestor).tgid = tgid;
            (*ancestor).reserved = 0;
            read_into(&mut (*ancestor).comm, leader, &layout::TASK_COMM);
        }
        count = index as u32 + 1;
        task = leader;
    }
    // SAFETY: promised by the caller.
    unsafe { (*process).ancestor_count = count };
}

/// # Safety
///
/// `process` must point to writable memory.
#[inline(always)]
unsafe fn executable(process: *mut Process, mm: Address) {
    let file: Address = read(mm, &layout::MM_EXE_FILE);
    // SAFETY: promised by the caller.
    unsafe {
        let (length, whole) = path::of_file(&raw mut (*process).exe, file);
        (*process).exe_length = length;
        if !whole && file != 0 {
            (*process).flags |= process_flag::EXE_TRUNCATED;
        }
    }
}

/// # Safety
///
/// `process` must point to writable memory.
#[inline(always)]
unsafe fn cgroups(process: *mut Process, task: Address) {
    let set: Address = read(task, &layout::TASK_CGROUPS);
    let unified: Address = read(set, &layout::CSS_SET_DEFAULT);
    // SAFETY: promised by the caller.
    unsafe {
        let (length, whole) = path::of_cgroup(&raw mut (*process).cgroup, unified);
        (*process).cgroup_length = length;
        if !whole {
            (*process).flags |= process_flag::CGROUP_TRUNCATED;
        }
        let (length, whole) = path::of_cgroup(
            &raw mut (*process).cgroup_v1,
            version_1_cgroup(set, unified),
        );
        (*process).cgroup_v1_length = length;
        if !whole {
            (*process).flags |= process_flag::CGROUP_V1_TRUNCATED;
        }
    }
}

/// The task's cgroup in the first of some v1 hierarchies where it is not the
/// root, or 0. With some runtimes on hybrid hosts only these tell the container.
#[inline(always)]
fn version_1_cgroup(set: Address, unified: Address) -> Address {
    let unified_root: Address = read(unified, &layout::CGROUP_ROOT);
    for index in [
        layout::SUBSYS_PIDS.load(),
        layout::SUBSYS_MEMORY.load(),
        layout::SUBSYS_DEVICES.load(),
        layout::SUBSYS_CPU.load(),
    ] {
        let Some(states) = address(set, &layout::CSS_SET_SUBSYS) else {
            break;
        };
        if index == ABSENT {
            continue;
        }
        let state: Address = read_at(states.wrapping_add(u64::from(index) * 8));
        let cgroup: Address = read(state, &layout::CSS_CGROUP);
        let node: Address = read(cgroup, &layout::CGROUP_KN);
        let parent: Address = read(node, &layout::KERNFS_PARENT);
        if parent != 0 && read::<Address>(cgroup, &layout::CGROUP_ROOT) != unified_root {
            return cgroup;
        }
    }
    0
}

/// A process was made.
#[inline(always)]
pub fn forked(parent: Address, child: Address) {
    let child_tgid: u32 = read(child, &layout::TASK_TGID);
    // A new thread is no new process.
    if read::<u32>(child, &layout::TASK_PID) != child_tgid {
        return;
    }
    let parent_tgid: u32 = read(parent, &layout::TASK_TGID);
    if tree::is_followed() {
        let parent = (parent_tgid, start_of(parent));
        tree::forked(parent, (child_tgid, start_of(child)));
    }
    if IDENTIFIED.get_ptr(parent_tgid).is_none() {
        return;
    }
    let Some(mut entry) = emit::reserve::<Fork>(kind::FORK) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to reserved, writable memory of the right size.
    unsafe {
        (*record).parent_start = start_of(parent);
        (*record).child_start = start_of(child);
        (*record).parent_tgid = parent_tgid;
        (*record).child_tgid = child_tgid;
    }
    emit::submit(entry);
    let _ = IDENTIFIED.insert(child_tgid, identified::INHERITED, 0);
}

/// A process has executed another program.
#[inline(always)]
pub fn executed(task: Address) {
    forget(task, kind::EXEC);
}

/// A task is put into another cgroup: its process is to be told anew when it next does something.
#[inline(always)]
pub fn moved(task: Address) {
    let _ = IDENTIFIED.remove(read::<u32>(task, &layout::TASK_TGID));
}

/// A task is no more.
#[inline(always)]
pub fn reaped(task: Address) {
    let tgid: u32 = read(task, &layout::TASK_TGID);
    let tid: u32 = read(task, &layout::TASK_PID);
    call::ended(u64::from(tgid) << 32 | u64::from(tid));
    if tid != tgid {
        return;
    }
    if tree::is_followed() {
        tree::reaped(tgid, start_of(task));
    }
    forget(task, kind::REAP);
}

#[inline(always)]
fn forget(task: Address, kind: u32) {
    let tgid: u32 = read(task, &layout::TASK_TGID);
    if IDENTIFIED.remove(tgid).is_err() {
        return;
    }
    let Some(mut entry) = emit::reserve::<Gone>(kind) else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to reserved, writable memory of the right size.
    unsafe {
        (*record).start = start_of(task);
        (*record).tgid = tgid;
        (*record).reserved = 0;
    }
    emit::submit(entry);
}
