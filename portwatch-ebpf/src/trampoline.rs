//! The fentry backend: trampolines at the entry and exit of kernel functions.
//!
//! The prototype above each program is the kernel's own. What a function
//! returns is the argument behind its last one; only its own width of it, and
//! of a narrow argument, means anything.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use portwatch_common::map::call as calls;

use crate::layout::{self, Address, Place, Typed};
use crate::{autobind, bind, call, conflict, listen, release, timewait};

/// The `struct sock` that a function got: as such, or with the `struct socket` around it.
#[inline(always)]
pub fn sock_of<S: Place>(argument: S, takes_sk: u32) -> S {
    if takes_sk != 0 {
        argument
    } else {
        argument.follow(&layout::SOCKET_SK)
    }
}

/// `int __sys_bind(int fd, struct sockaddr *umyaddr, int addrlen)`
#[fentry(function = "__sys_bind")]
pub fn fentry_sys_bind(ctx: FEntryContext) -> i32 {
    let (fd, address, length): (i32, u64, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    call::enter(calls::BIND, fd as u32, address, length as u32);
    0
}

/// `int __sys_bind(int fd, struct sockaddr *umyaddr, int addrlen)`
#[fexit(function = "__sys_bind")]
pub fn fexit_sys_bind(ctx: FExitContext) -> i32 {
    let (fd, address, length): (i32, u64, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    bind::left(fd as u32, address, length as u32, ctx.arg(3));
    0
}

/// `int __sys_listen(int fd, int backlog)`
#[fentry(function = "__sys_listen")]
pub fn fentry_sys_listen(ctx: FEntryContext) -> i32 {
    let (fd, backlog): (i32, i32) = (ctx.arg(0), ctx.arg(1));
    call::enter(calls::LISTEN, fd as u32, 0, backlog as u32);
    0
}

/// `int __sys_listen(int fd, int backlog)`
#[fexit(function = "__sys_listen")]
pub fn fexit_sys_listen(ctx: FExitContext) -> i32 {
    let fd: i32 = ctx.arg(0);
    listen::left(fd as u32, ctx.arg(1), ctx.arg(2));
    0
}

macro_rules! inet_bind {
    ($entry:ident, $exit:ident, $function:literal, $(#[$prototype:meta])*) => {
        $(#[$prototype])*
        #[fentry(function = $function)]
        pub fn $entry(ctx: FEntryContext) -> i32 {
            let sk = sock_of(Typed::new(ctx.arg(0)), layout::BIND_TAKES_SK.load());
            let length: i32 = ctx.arg(2);
            bind::inet_entered(sk.address(), ctx.arg(1), length as u32);
            0
        }

        $(#[$prototype])*
        #[fexit(function = $function)]
        pub fn $exit(ctx: FExitContext) -> i32 {
            let sk = sock_of(Typed::new(ctx.arg(0)), layout::BIND_TAKES_SK.load());
            let (length, result): (i32, i32) = (ctx.arg(2), ctx.arg(3));
            bind::inet_left(
                call::current(),
                sk,
                ctx.arg(1),
                length as u32,
                result,
                |call| bind::tell(call, sk, result),
            );
            0
        }
    };
}

inet_bind!(
    fentry_inet_bind,
    fexit_inet_bind,
    "inet_bind_sk",
    /// `int inet_bind_sk(struct sock *sk, struct sockaddr *uaddr, int addr_len)`
    /// (7.3 `int inet_bind_sk(struct sock *sk, struct sockaddr_unsized *uaddr, int addr_len)`;
    /// up to 6.6 `int inet_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len)`)
);
inet_bind!(
    fentry_inet6_bind,
    fexit_inet6_bind,
    "inet6_bind_sk",
    /// `int inet6_bind_sk(struct sock *sk, struct sockaddr *uaddr, int addr_len)`
    /// (7.3 `int inet6_bind_sk(struct sock *sk, struct sockaddr_unsized *uaddr, int addr_len)`;
    /// up to 6.6 `int inet6_bind(struct socket *sock, struct sockaddr *uaddr, int addr_len)`)
);

/// `int __inet_listen_sk(struct sock *sk, int backlog)`
/// (without it `int inet_listen(struct socket *sock, int backlog)`)
#[fexit(function = "__inet_listen_sk")]
pub fn fexit_inet_listen(ctx: FExitContext) -> i32 {
    let sk = sock_of(Typed::new(ctx.arg(0)), layout::LISTEN_TAKES_SK.load());
    listen::inet_left(call::current(), sk, ctx.arg(1), ctx.arg(2));
    0
}

/// `int inet_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)`
#[fexit(function = "inet_hash_connect")]
pub fn fexit_inet_hash_connect(ctx: FExitContext) -> i32 {
    autobind::connected(ctx.arg(1), ctx.arg(2));
    0
}

/// `int inet6_hash_connect(struct inet_timewait_death_row *death_row, struct sock *sk)`
#[fexit(function = "inet6_hash_connect")]
pub fn fexit_inet6_hash_connect(ctx: FExitContext) -> i32 {
    autobind::connected(ctx.arg(1), ctx.arg(2));
    0
}

/// `int udp_v4_get_port(struct sock *sk, unsigned short snum)`
#[fexit(function = "udp_v4_get_port")]
pub fn fexit_udp_v4_get_port(ctx: FExitContext) -> i32 {
    autobind::got_port(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// `int udp_v6_get_port(struct sock *sk, unsigned short snum)`
#[fexit(function = "udp_v6_get_port")]
pub fn fexit_udp_v6_get_port(ctx: FExitContext) -> i32 {
    autobind::got_port(ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

/// `bool inet_bind_conflict(const struct sock *sk, struct sock *sk2, kuid_t sk_uid, bool relax, bool reuseport_cb_ok, bool reuseport_ok)`
#[fexit(function = "inet_bind_conflict")]
pub fn fexit_inet_bind_conflict(ctx: FExitContext) -> i32 {
    let conflict: u8 = ctx.arg(6);
    if conflict != 0 {
        conflict::met(ctx.arg(0), ctx.arg(1));
    }
    0
}

/// `bool inet_rcv_saddr_equal(const struct sock *sk, const struct sock *sk2, bool match_wildcard)`
///
/// From 6.1 on TCP's check goes on to `inet_bind_conflict`, or was there before.
#[fexit(function = "inet_rcv_saddr_equal")]
pub fn fexit_inet_rcv_saddr_equal(ctx: FExitContext) -> i32 {
    let equal: u8 = ctx.arg(3);
    if equal != 0 {
        conflict::compared(ctx.arg(0), ctx.arg(1));
    }
    0
}

/// `int inet_release(struct socket *sock)`
#[fentry(function = "inet_release")]
pub fn fentry_inet_release(ctx: FEntryContext) -> i32 {
    release::closed(sock_of::<Address>(ctx.arg(0), 0));
    0
}

/// `void inet_twsk_hashdance_schedule(struct inet_timewait_sock *tw, struct sock *sk, struct inet_hashinfo *hashinfo, int timeo)`
/// (without it `void inet_twsk_hashdance(struct inet_timewait_sock *tw, struct sock *sk, struct inet_hashinfo *hashinfo)`,
/// whose caller has armed the timer)
#[fentry(function = "inet_twsk_hashdance_schedule")]
pub fn fentry_inet_twsk_hashdance(ctx: FEntryContext) -> i32 {
    if layout::HASHDANCE_SCHEDULES.load() != 0 {
        let jiffies: i32 = ctx.arg(3);
        timewait::armed_for(ctx.arg(0), jiffies as u64);
    } else {
        timewait::armed(ctx.arg(0));
    }
    0
}

/// `void __inet_twsk_schedule(struct inet_timewait_sock *tw, int timeo, bool rearm)`
#[fentry(function = "__inet_twsk_schedule")]
pub fn fentry_inet_twsk_schedule(ctx: FEntryContext) -> i32 {
    let (jiffies, rearm): (i32, u8) = (ctx.arg(1), ctx.arg(2));
    // The first time is told when the socket is in the hash table.
    if rearm != 0 {
        timewait::armed_for(ctx.arg(0), jiffies as u64);
    }
    0
}

/// `void inet_twsk_deschedule_put(struct inet_timewait_sock *tw)`
#[fentry(function = "inet_twsk_deschedule_put")]
pub fn fentry_inet_twsk_deschedule_put(ctx: FEntryContext) -> i32 {
    timewait::descheduled(ctx.arg(0));
    0
}

/// `void inet_twsk_kill(struct inet_timewait_sock *tw)`
#[fentry(function = "inet_twsk_kill")]
pub fn fentry_inet_twsk_kill(ctx: FEntryContext) -> i32 {
    timewait::killed(ctx.arg(0));
    0
}

/// `bool inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req, unsigned long timeout)`
/// (5.10 `void inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req, unsigned long timeout)`;
/// 7.3 `bool inet_csk_reqsk_queue_hash_add(struct sock *sk, struct request_sock *req)`)
#[fentry(function = "inet_csk_reqsk_queue_hash_add")]
pub fn fentry_reqsk_queue_hash_add(ctx: FEntryContext) -> i32 {
    timewait::requested(ctx.arg(1));
    0
}
