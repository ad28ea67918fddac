//! The tracepoint backend: tracepoints, one cgroup hook and an iterator.
//!
//! The prototype above each program is the kernel's own.

use aya_ebpf::{
    macros::{btf_tracepoint, cgroup_sock},
    programs::{BtfTracePointContext, SockContext},
};

use crate::layout::{self, Address, Fields as _, Place as _, Typed, read, read_user};
use crate::{bind, listen, release, snapshot, task, timewait};

/// A system call that concerns us, with its arguments.
enum Call {
    Bind(u32, Address, u32),
    Listen(u32, i32),
}

// Numbers of socketcall(2), include/uapi/linux/net.h.
const SYS_BIND: u64 = 2;
const SYS_LISTEN: u64 = 4;

/// Which call this is. Runs at the exit of every system call of the machine,
/// so what is not ours leaves after one load and a few comparisons.
#[inline(always)]
fn call(regs: Typed) -> Option<Call> {
    // On arm64 it is an `s32`, beyond whose end the verifier lets nobody read.
    let nr = regs.get::<u32>(&layout::REGS_NR) & !layout::NR_IGNORE.load();
    if (nr == layout::NR_BIND.load() || nr == layout::NR_LISTEN.load()) && !is_compat(regs) {
        return native_call(regs, nr);
    }
    compat_call(regs, nr)
}

#[inline(always)]
fn native_call(regs: Typed, nr: u32) -> Option<Call> {
    let (first, second, third) = (
        regs.get::<u64>(&layout::REGS_ARG0),
        regs.get::<u64>(&layout::REGS_ARG1),
        regs.get::<u64>(&layout::REGS_ARG2),
    );
    Some(if nr == layout::NR_BIND.load() {
        Call::Bind(first as u32, second, third as u32)
    } else {
        Call::Listen(first as u32, second as i32)
    })
}

/// The system calls of 32-bit tasks, by their own numbers.
#[inline(always)]
fn compat_call(regs: Typed, nr: u32) -> Option<Call> {
    let bind = layout::NR_COMPAT_BIND.load();
    let listen = layout::NR_COMPAT_LISTEN.load();
    let socketcall = layout::NR_COMPAT_SOCKETCALL.load();
    let ours = (bind != 0 && nr == bind)
        || (listen != 0 && nr == listen)
        || (socketcall != 0 && nr == socketcall);
    if !ours || !is_compat(regs) {
        return None;
    }
    let (first, second, third) = (
        regs.get::<u64>(&layout::REGS_COMPAT_ARG0),
        regs.get::<u64>(&layout::REGS_COMPAT_ARG1) & 0xffff_ffff,
        regs.get::<u64>(&layout::REGS_COMPAT_ARG2),
    );
    if nr == bind {
        return Some(Call::Bind(first as u32, second, third as u32));
    }
    if nr == listen {
        return Some(Call::Listen(first as u32, second as i32));
    }
    let args: [u32; 3] = read_user(second)?;
    match first & 0xffff_ffff {
        SYS_BIND => Some(Call::Bind(args[0], u64::from(args[1]), args[2])),
        SYS_LISTEN => Some(Call::Listen(args[0], args[1] as i32)),
        _ => None,
    }
}

/// TS_COMPAT in `thread_info.status` on x86, PSR_MODE32_BIT in `pt_regs.pstate` on arm64.
#[inline(always)]
fn is_compat(regs: Typed) -> bool {
    let word: u32 = read(task::untyped(), &layout::TASK_COMPAT_WORD);
    let mask = layout::COMPAT_MASK.load();
    (word | read::<u32>(regs.address(), &layout::REGS_COMPAT_WORD)) & mask != 0
}

/// `void sys_exit(struct pt_regs *regs, long ret)`
#[btf_tracepoint(function = "sys_exit")]
pub fn sys_exit(ctx: BtfTracePointContext) -> i32 {
    let result: i64 = ctx.arg(1);
    match call(Typed::new(ctx.arg(0))) {
        Some(Call::Bind(descriptor, address, length)) => {
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(&ctx, "bind of {} returned {}", descriptor, result);
            bind::left(descriptor, address, length, result as i32);
        }
        Some(Call::Listen(descriptor, backlog)) => {
            #[cfg(feature = "log")]
            aya_log_ebpf::debug!(&ctx, "listen on {} returned {}", descriptor, result);
            listen::left(descriptor, backlog, result as i32);
        }
        None => {}
    }
    0
}

/// `int __cgroup_bpf_run_filter_sk(struct sock *sk, enum cgroup_bpf_attach_type atype)`
/// (5.10 `int __cgroup_bpf_run_filter_sk(struct sock *sk, enum bpf_attach_type type)`),
/// from `inet_release`: the last descriptor of an inet socket was closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    release::closed(ctx.sock as Address);
    // Releases cannot be refused, but 0 would say so.
    1
}

/// `void inet_sock_set_state(const struct sock *sk, const int oldstate, const int newstate)`
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    timewait::state_changed(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// `void tcp_destroy_sock(struct sock *sk)`
#[btf_tracepoint(function = "tcp_destroy_sock")]
pub fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    release::destroyed(ctx.arg(0));
    0
}

/// The function of a timer: these tracepoints run for every timer of the machine.
#[inline(always)]
fn handler(timer: Typed) -> Address {
    timer.get(&layout::TIMER_FUNCTION)
}

/// `void timer_start(struct timer_list *timer, unsigned long bucket_expiry)`
/// (up to 6.1 `void timer_start(struct timer_list *timer, unsigned long expires, unsigned int flags)`)
#[btf_tracepoint(function = "timer_start")]
pub fn timer_start(ctx: BtfTracePointContext) -> i32 {
    let timer = Typed::new(ctx.arg(0));
    let handler = handler(timer);
    if handler == layout::TIMEWAIT_HANDLER.load() {
        timewait::armed(timewait::of_timer(timer.address()));
    } else if handler == layout::REQUEST_HANDLER.load()
        && let Some(offset) = layout::address(0, &layout::REQUEST_TIMER)
    {
        timewait::requested(timer.address().wrapping_sub(offset));
    }
    0
}

/// `void timer_cancel(struct timer_list *timer)`
#[btf_tracepoint(function = "timer_cancel")]
pub fn timer_cancel(ctx: BtfTracePointContext) -> i32 {
    let timer = Typed::new(ctx.arg(0));
    if handler(timer) == layout::TIMEWAIT_HANDLER.load() {
        timewait::cancelled(timewait::of_timer(timer.address()));
    }
    0
}

/// `void timer_expire_entry(struct timer_list *timer, unsigned long baseclk)`
#[btf_tracepoint(function = "timer_expire_entry")]
pub fn timer_expire_entry(ctx: BtfTracePointContext) -> i32 {
    let timer = Typed::new(ctx.arg(0));
    if handler(timer) == layout::TIMEWAIT_HANDLER.load() {
        timewait::expired(timewait::of_timer(timer.address()));
    }
    0
}

/// `void sched_process_fork(struct task_struct *parent, struct task_struct *child)`
#[btf_tracepoint(function = "sched_process_fork")]
pub fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    task::forked(ctx.arg(0), ctx.arg(1));
    0
}

/// `void sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`
#[btf_tracepoint(function = "sched_process_exec")]
pub fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    task::executed(ctx.arg(0));
    0
}

/// `void cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)`
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    task::moved(ctx.arg(2));
    0
}

/// `void sched_process_free(struct task_struct *p)`
#[btf_tracepoint(function = "sched_process_free")]
pub fn sched_process_free(ctx: BtfTracePointContext) -> i32 {
    task::reaped(ctx.arg(0));
    0
}

/// `struct bpf_iter_meta`
#[repr(C)]
pub struct Meta {
    seq: *mut core::ffi::c_void,
    session_id: u64,
    seq_num: u64,
}

/// `struct bpf_iter__task_file`; its pointers are padded to eight bytes.
#[repr(C)]
pub struct TaskFile {
    meta: *const Meta,
    task: Address,
    fd: u32,
    file: Address,
}

/// `int bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd, struct file *file)`
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn task_file(ctx: *const TaskFile) -> i32 {
    // SAFETY: the kernel hands a valid context over; at the end of the walk
    // its task and file are null.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task != 0 && file != 0 {
            snapshot::file((*(*ctx).meta).seq, task, (*ctx).fd, file);
        }
    }
    0
}

/// `int bpf_iter_task_file(struct bpf_iter_meta *meta, struct task_struct *task, u32 fd, struct file *file)`
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub extern "C" fn owners(ctx: *const TaskFile) -> i32 {
    // SAFETY: as above.
    unsafe {
        let (task, file) = ((*ctx).task, (*ctx).file);
        if task != 0 && file != 0 {
            snapshot::owner((*(*ctx).meta).seq, task, (*ctx).fd, file);
        }
    }
    0
}

/// `struct bpf_iter__bpf_map`; its pointers are padded to eight bytes.
#[repr(C)]
pub struct BpfMap {
    meta: *const Meta,
    map: Address,
}

/// `int bpf_iter_bpf_map(struct bpf_iter_meta *meta, struct bpf_map *map)`
///
/// The maps do not matter: this is a program that the user side can run when
/// it wants to, on every kernel, once for each map there is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_map")]
pub extern "C" fn bpf_map(ctx: *const BpfMap) -> i32 {
    // SAFETY: the kernel hands a valid context over; at the end of the walk its map is null.
    unsafe {
        if (*ctx).map != 0 {
            timewait::asked((*(*ctx).meta).seq, (*(*ctx).meta).seq_num);
        }
    }
    0
}
