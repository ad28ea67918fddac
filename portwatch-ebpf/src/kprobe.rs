//! The kprobe backend: probes at the entry and the return of the functions
//! that the fentry backend has trampolines at, for kernels without those.
//!
//! The prototype above each program is the kernel's own. A kretprobe has no
//! arguments any more, so a kprobe keeps them. Arguments lie in registers, which
//! hold garbage above a narrow argument's own width.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_current_pid_tgid,
    macros::{kprobe, kretprobe},
    programs::{ProbeContext, RetProbeContext},
};
use portwatch_common::map::{Autobinding, Pair, call as calls, lost};

use crate::layout::{self, Address, read};
use crate::maps::{AUTOBINDING, PAIRS};
use crate::trampoline::sock_of;
use crate::{autobind, bind, call, conflict, emit, listen, release, timewait};

/// A function's arguments, at its entry.
struct Arguments(Address);

impl Arguments {
    #[inline(always)]
    fn of(ctx: &ProbeContext) -> Self {
        Self(ctx.as_ptr() as Address)
    }

    #[inline(always)]
    fn first(&self) -> u64 {
        read(self.0, &layout::REGS_CALL0)
    }

    #[inline(always)]
    fn second(&self) -> u64 {
        read(self.0, &layout::REGS_CALL1)
    }

    #[inline(always)]
    fn third(&self) -> u64 {
        read(self.0, &layout::REGS_CALL2)
    }

    #[inline(always)]
    fn fourth(&self) -> u64 {
        read(self.0, &layout::REGS_CALL3)
    }
}

/// What a function returns, as an `int`.
#[inline(always)]
fn result(ctx: &RetProbeContext) -> i32 {
    read::<u64>(ctx.as_ptr() as Address, &layout::REGS_RETURN) as i32
}

/// A system call begins. The kernel has a bounded number of kretprobe instances (`rp->maxactive`) and
/// skips a return when they are used up; then the thread's former call is still there.
#[inline(always)]
fn enter(kind: u32, descriptor: u64, address: Address, argument: u64) {
    if matches!(call::current(), Some(call) if call.kind != calls::OUTSIDE) {
        emit::count_lost(lost::KRETPROBE);
    }
    call::enter(kind, descriptor as u32, address, argument as u32);
}

/// `int __sys_bind(int fd, struct sockaddr *umyaddr, int addrlen)`
#[kprobe]
pub fn kprobe_sys_bind(ctx: ProbeContext) -> u32 {
    let args = Arguments::of(&ctx);
    enter(calls::BIND, args.first(), args.second(), args.third());
    0
}

/// `int __sys_bind(int fd, struct sockaddr *umyaddr, int addrlen)`
#[kretprobe]
pub fn kretprobe_sys_bind(ctx: RetProbeContext) -> u32 {
    match call::current() {
        Some(call) if call.kind == calls::BIND => {
            bind::left(call.descriptor, call.address, call.argument, result(&ctx));
        }
        _ => emit::count_lost(lost::KRETPROBE),
    }
    0
}

/// `int __sys_listen(int fd, int backlog)`
#[kprobe]
pub fn kprobe_sys_listen(ctx: ProbeContext) -> u32 {
    let args = Arguments::of(&ctx);
    enter(calls::LISTEN, args.first(), 0, args.second());
    0
}

/// `int __sys_listen(int fd, int backlog)`
#[kretprobe]
pub fn kretprobe_sys_listen(ctx: RetProbeContext) -> u32 {
    match call::current() {
        Some(call) if call.kind == calls::LISTEN => {
            listen::left(call.descriptor, call.argument as i32, result(&ctx));
        }
        _ => emit::count_lost(lost::KRETPROBE),
    }
    0
}

macro_rules! inet_bind {
    ($entry:ident, $exit:ident, $(#[$prototype:meta])*) => {
        $(#[$prototype])*
        #[kprobe]
        pub fn $entry(ctx: ProbeContext) -> u32 {
            let args = Arguments::of(&ctx);
            let sk = sock_of(args.first(), layout::BIND_TAKES_SK.load());
            bind::inet_entered(sk, args.second(), args.third() as u32);
            0
        }

        $(#[$prototype])*
        #[kretprobe]
        pub fn $exit(ctx: RetProbeContext) -> u32 {
            if let Some(call) = call::current() {
                let (sk, sockaddr, length) = (call.sk, call.sockaddr, call.argument);
                let result = result(&ctx);
                bind::inet_left(Some(call), sk, sockaddr, length, result, |call| {
                    let opened = call::opened(call);
                    bind::returned(opened.sk, opened.inode, result);
                });
            }
            0
        }
    };
}

inet_bind!(
    kprobe_inet_bind,
    kretprobe_inet_bind,
    /// `int inet_bind_sk(struct sock *sk, struct sockaddr *uaddr, int addr_len)`
    /// (7.3 `int inet_bind_sk(struct sock *sk, struct sockaddr_unsized *uaddr, int addr_len)`;
    /// up to 6.6 `int inet_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len)`)
);
inet_bind!(
    kprobe_inet6_bind,
    kretprobe_inet6_bind,
    /// `int inet6_bind_sk(struct sock *sk, struct sockaddr *uaddr, int addr_len)`
    /// (7.3 `int inet6_bind_sk(struct sock *sk, struct sockaddr_unsized *uaddr, int addr_len)`;
    /// up to 6.6 `int inet6_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len)`)
);

/// `int __inet_listen_sk(struct sock *sk, int backlog)`
/// (without it `int inet_listen(struct socket *sock, int backlog)`)
#[kprobe]
pub fn kprobe_inet_listen(ctx: ProbeContext) -> u32 {
    let args = Arguments::of(&ctx);
    let sk = sock_of(args.first(), layout::LISTEN_TAKES_SK.load());
    listen::inet_entered(sk, args.second() as i32);
    0
}

/// `int __inet_listen_sk(struct sock *sk, int backlog)`
/// (without it `int inet_listen(struct socket *sock, int backlog)`)
#[kretprobe]
pub fn kretprobe_inet_listen(ctx: RetProbeContext) -> u32 {
    if let Some(call) = call::current() {
        let (sk, backlog) = (call.sk, call.argument as i32);
        listen::inet_left(Some(call), sk, backlog, result(&ctx));
    }
    0
}

/// Keeps what a port is asked for, for the return.
#[inline(always)]
fn keep(sk: Address, port: u64) {
    let autobinding = Autobinding { sk, port };
    let _ = AUTOBINDING.insert(bpf_get_current_pid_tgid(), &autobinding, 0);
}

/// Takes what was kept.
#[inline(always)]
fn kept() -> Option<Autobinding> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: the pointer is valid and aligned for the program's duration.
    let kept = AUTOBINDING.get_ptr(thread).map(|kept| unsafe { *kept });
    let _ = AUTOBINDING.remove(thread);
    kept
}

macro_rules! hash_connect {
    ($entry:ident, $exit:ident, $(#[$prototype:meta])*) => {
        $(#[$prototype])*
        #[kprobe]
        pub fn $entry(ctx: ProbeContext) -> u32 {
            keep(Arguments::of(&ctx).second(), 0);
            0
        }

        $(#[$prototype])*
        #[kretprobe]
        pub fn $exit(ctx: RetProbeContext) -> u32 {
            if let Some(kept) = kept() {
                autobind::connected(kept.sk, result(&ctx));
            }
            0
        }
    };
}

hash_connect!(
    kprobe_inet_hash_connect,
    kretprobe_inet_hash_connect,
    /// `int inet_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)`
);
hash_connect!(
    kprobe_inet6_hash_connect,
    kretprobe_inet6_hash_connect,
    /// `int inet6_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)`
);

macro_rules! get_port {
    ($entry:ident, $exit:ident, $(#[$prototype:meta])*) => {
        $(#[$prototype])*
        #[kprobe]
        pub fn $entry(ctx: ProbeContext) -> u32 {
            let args = Arguments::of(&ctx);
            keep(args.first(), args.second() & 0xffff);
            0
        }

        $(#[$prototype])*
        #[kretprobe]
        pub fn $exit(ctx: RetProbeContext) -> u32 {
            if let Some(kept) = kept() {
                autobind::got_port(kept.sk, kept.port as u16, result(&ctx));
            }
            0
        }
    };
}

get_port!(
    kprobe_udp_v4_get_port,
    kretprobe_udp_v4_get_port,
    /// `int udp_v4_get_port(struct sock *sk, unsigned short snum)`
);
get_port!(
    kprobe_udp_v6_get_port,
    kretprobe_udp_v6_get_port,
    /// `int udp_v6_get_port(struct sock *sk, unsigned short snum)`
);

macro_rules! compare {
    ($entry:ident, $exit:ident, $decide:path, $(#[$prototype:meta])*) => {
        $(#[$prototype])*
        #[kprobe]
        pub fn $entry(ctx: ProbeContext) -> u32 {
            // Called for much else; what is kept costs.
            if call::current().is_some() {
                let args = Arguments::of(&ctx);
                let pair = Pair {
                    sk: args.first(),
                    sk2: args.second(),
                };
                let _ = PAIRS.insert(bpf_get_current_pid_tgid(), &pair, 0);
            }
            0
        }

        $(#[$prototype])*
        #[kretprobe]
        pub fn $exit(ctx: RetProbeContext) -> u32 {
            if result(&ctx) as u8 != 0
                && let Some(pair) = PAIRS.get_ptr(bpf_get_current_pid_tgid())
            {
                // SAFETY: the pointer is valid and aligned for the program's duration.
                let pair = unsafe { *pair };
                $decide(pair.sk, pair.sk2);
            }
            0
        }
    };
}

compare!(
    kprobe_inet_bind_conflict,
    kretprobe_inet_bind_conflict,
    conflict::met,
    /// `bool inet_bind_conflict(const struct sock *sk, struct sock *sk2, kuid_t sk_uid, bool relax, bool reuseport_cb_ok, bool reuseport_ok)`
);
compare!(
    kprobe_inet_rcv_saddr_equal,
    kretprobe_inet_rcv_saddr_equal,
    conflict::compared,
    /// `bool inet_rcv_saddr_equal(const struct sock *sk, const struct sock *sk2, bool match_wildcard)`
);

/// `int inet_release(struct socket *sock)`
#[kprobe]
pub fn kprobe_inet_release(ctx: ProbeContext) -> u32 {
    release::closed(sock_of(Arguments::of(&ctx).first(), 0));
    0
}

/// `void inet_twsk_hashdance_schedule(struct inet_timewait_sock *tw, struct sock *sk, struct inet_hashinfo *hashinfo, int timeo)`
/// (without it `void inet_twsk_hashdance(struct inet_timewait_sock *tw, struct sock *sk, struct inet_hashinfo *hashinfo)`,
/// whose caller has armed the timer)
#[kprobe]
pub fn kprobe_inet_twsk_hashdance(ctx: ProbeContext) -> u32 {
    let args = Arguments::of(&ctx);
    if layout::HASHDANCE_SCHEDULES.load() != 0 {
        timewait::armed_for(args.first(), args.fourth() as i32 as u64);
    } else {
        timewait::armed(args.first());
    }
    0
}

/// `void __inet_twsk_schedule(struct inet_timewait_sock *tw, int timeo, bool rearm)`
#[kprobe]
pub fn kprobe_inet_twsk_schedule(ctx: ProbeContext) -> u32 {
    let args = Arguments::of(&ctx);
    // The first time is told when the socket is in the hash table.
    if args.third() as u8 != 0 {
        timewait::armed_for(args.first(), args.second() as i32 as u64);
    }
    0
}

/// `void inet_twsk_deschedule_put(struct inet_timewait_sock *tw)`
#[kprobe]
pub fn kprobe_inet_twsk_deschedule_put(ctx: ProbeContext) -> u32 {
    timewait::descheduled(Arguments::of(&ctx).first());
    0
}

/// `void inet_twsk_kill(struct inet_timewait_sock *tw)`
#[kprobe]
pub fn kprobe_inet_twsk_kill(ctx: ProbeContext) -> u32 {
    timewait::killed(Arguments::of(&ctx).first());
    0
}

/// `bool inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req, unsigned long timeout)`
/// (5.10 `void inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req, unsigned long timeout)`;
/// 7.3 `bool inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req)`)
#[kprobe]
pub fn kprobe_reqsk_queue_hash_add(ctx: ProbeContext) -> u32 {
    timewait::requested(Arguments::of(&ctx).second());
    0
}
