//! Who has the port that a bind or listen did not get.
//!
//! The kernel's own check says so under the lock of the table of ports: the
//! last socket it ran into before it failed is the holder. Where its functions
//! cannot be hooked, and for the others that have the port as well, the table
//! is walked just after, without the lock.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use portwatch_common::map::{Bound, Walk, call as calls};
use portwatch_common::record::{Holder, Socket, evidence, kind, socket_flag, task_flag};

use crate::layout::{self, Address, read, read_at, zero, zeroed};
use crate::maps::{BOUND, CONFLICTS, CONNECTORS, WALKS};
use crate::sock::{self, IPPROTO_TCP, IPPROTO_UDP};
use crate::timewait;
use crate::{call, emit};

pub const EADDRINUSE: i32 = -98;

const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;
const IPPROTO_UDPLITE: u16 = 136;
const IPPROTO_MPTCP: u16 = 262;

/// The check for a socket has run into another one, which may keep it from the port.
#[inline(always)]
pub fn met(sk: Address, sk2: Address) {
    let Some(call) = call::current() else {
        return;
    };
    // A search for any port tries many, and what it runs into decides nothing.
    let port = if call.kind == calls::LISTEN {
        read(sk, &layout::SOCK_NUM)
    } else {
        call.requested.port
    };
    if port == 0 {
        return;
    }
    call.met = 1;
    keep(sk2);
}

/// The addresses of two sockets with the same port were compared, and overlap (`inet_rcv_saddr_equal`).
/// For UDP, and up to 6.0 for TCP, that is the last thing which the check looks at.
#[inline(always)]
pub fn compared(sk: Address, sk2: Address) {
    let decides =
        layout::BIND_CONFLICT.load() == 0 || read::<u16>(sk, &layout::SOCK_PROTOCOL) != IPPROTO_TCP;
    if decides {
        met(sk, sk2);
    }
}

/// Takes down the socket at once: the lock is held, and when it is let go the socket may be gone.
#[inline(never)]
fn keep(sk: Address) {
    let mut holder = MaybeUninit::uninit();
    let holder: &mut Holder = zeroed(&mut holder);
    describe(sk, holder);
    holder.evidence = evidence::LOCKED;
    let _ = CONFLICTS.insert(bpf_get_current_pid_tgid(), &*holder, 0);
}

/// Fills in what a socket says of itself, but for the header. `holder` must be all zeros before.
#[inline(always)]
fn describe(sk: Address, holder: &mut Holder) {
    holder.tid = bpf_get_current_pid_tgid() as u32;
    if read::<u8>(sk, &layout::SOCK_STATE) == TCP_TIME_WAIT {
        sock::describe_timewait(sk, &mut holder.socket);
        holder.expires_in = timewait::expires_in(sk);
    } else {
        let opened = sock::opened(sk);
        sock::describe(opened, &mut holder.socket);
        holder.socket.flags = sock::owner(sk)
            | if opened.inode == 0 {
                socket_flag::NO_FILE
            } else {
                0
            };
        holder.uid = read(sk, &layout::SOCK_UID);
    }
    holder.binder.flags = task_flag::UNKNOWN;
    if let Some(bound) = BOUND.get_ptr(sk)
        // SAFETY: the pointer is valid and aligned for the program's duration.
        && is_of(unsafe { &*bound }, &holder.socket)
    {
        // SAFETY: as above.
        unsafe {
            emit::put(&raw mut holder.binder, &(*bound).binder);
            holder.bound_at = (*bound).bound_at;
        }
    } else if let Some(connector) = CONNECTORS.get_ptr(sk)
        && holder.socket.remote_port != 0
    {
        // SAFETY: as above.
        unsafe { emit::put(&raw mut holder.binder, &*connector) };
        holder.autobound = 1;
    }
}

/// Whether it was this socket that was bound, and not one which had its address before and whose end
/// was not seen.
#[inline(always)]
fn is_of(bound: &Bound, socket: &Socket) -> bool {
    // The file may be closed by now.
    let same_file = socket.inode == 0 || socket.inode == bound.inode;
    same_file && socket.local_port == bound.local_port
}

/// A bind or listen of the current thread to this port came back with EADDRINUSE: tells who has it,
/// before that itself is told.
///
/// A global function, which the verifier goes through once for every program and not, as it does with
/// others, for every path that leads to it. Such a one takes and gives only numbers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_holders(sk: Address, port: u32) -> i32 {
    let port = port as u16;
    if matches!(call::current(), Some(call) if call.met != 0) {
        tell_kept();
    }
    if port == 0 {
        return 0;
    }
    let mut walk = MaybeUninit::uninit();
    let walk: &mut Walk = zeroed(&mut walk);
    walk.newcomer = sk;
    walk.net = read(sk, &layout::SOCK_NET);
    walk.port = port;
    match read::<u16>(sk, &layout::SOCK_PROTOCOL) {
        IPPROTO_TCP | IPPROTO_MPTCP => begin_tcp(walk),
        IPPROTO_UDP | IPPROTO_UDPLITE => begin_udp(walk),
        _ => return 0,
    }
    let thread = bpf_get_current_pid_tgid();
    let _ = WALKS.insert(thread, &*walk, 0);
    for _ in 0..STEPS {
        if step() == 0 {
            break;
        }
    }
    let _ = WALKS.remove(thread);
    0
}

/// The same, from wherever a port is at hand.
#[inline(always)]
pub fn tell(sk: Address, port: u16) {
    tell_holders(sk, u32::from(port));
}

#[inline(always)]
fn tell_kept() {
    let Some(kept) = CONFLICTS.get_ptr(bpf_get_current_pid_tgid()) else {
        return;
    };
    let Some(mut entry) = emit::reserve::<Holder>(kind::HOLDER) else {
        return;
    };
    // SAFETY: the entry is reserved, writable memory of the right size, and the value stays while
    // the program runs.
    unsafe {
        let header = (*entry.as_mut_ptr()).header;
        emit::put(entry.as_mut_ptr(), &*kept);
        (*entry.as_mut_ptr()).header = header;
    }
    emit::submit(entry);
}

/// A global function: see [`tell_holders`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell_walked(sk: Address) -> i32 {
    let Some(mut entry) = emit::reserve::<Holder>(kind::HOLDER) else {
        return 0;
    };
    let holder = entry.as_mut_ptr();
    zero(holder);
    // SAFETY: the entry is reserved, writable memory of the right size, and all zeros.
    unsafe {
        (*holder).header.kind = kind::HOLDER;
        (*holder).header.time = bpf_ktime_get_ns();
        describe(sk, &mut *holder);
        (*holder).evidence = evidence::WALKED;
    }
    emit::submit(entry);
    0
}

/// Steps of a walk at most.
const STEPS: u32 = 64;

/// Goes a step on in the walk of the current thread; 0 at its end.
///
/// A global function: see [`tell_holders`]. What it goes by is in a map, of whose values the verifier
/// knows nothing: so one step is like the other, and is followed once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn step() -> i32 {
    let Some(walk) = WALKS.get_ptr_mut(bpf_get_current_pid_tgid()) else {
        return 0;
    };
    // SAFETY: the pointer is valid and aligned for the program's duration, and only this thread uses it.
    let walk = unsafe { &mut *walk };
    let goes_on = if walk.udp != 0 {
        step_udp(walk)
    } else {
        step_tcp(walk)
    };
    i32::from(goes_on)
}

/// The beginning of a walk in TCP's table of ports (`inet_hashinfo.bhash`, net/ipv4/inet_hashtables.c,
/// 5.10 to 7.3): a chain of buckets, one for each port and namespace, each with its sockets, or (from
/// 6.8 on) with buckets by address, which have them.
#[inline(always)]
fn begin_tcp(walk: &mut Walk) {
    let table: Address = read(walk.net, &layout::NET_HASHINFO);
    let size: u32 = read(table, &layout::HASHINFO_BHASH_SIZE);
    let mix: u32 = read(walk.net, &layout::NET_HASH_MIX);
    let slot = u32::from(walk.port).wrapping_add(mix) & size.wrapping_sub(1);
    let buckets: Address = read(table, &layout::HASHINFO_BHASH);
    let bucket = buckets.wrapping_add(u64::from(slot) * u64::from(layout::BHASH_BUCKET.load()));
    walk.chain = read(bucket, &layout::BHASH_CHAIN);
}

/// A port may have thousands of sockets, all of one server. Of those in the same state one is told,
/// but of those that listen all.
#[inline(always)]
fn step_tcp(walk: &mut Walk) -> bool {
    if walk.owner != 0 {
        let sk = walk
            .owner
            .wrapping_sub(u64::from(layout::SOCK_BIND_NODE.load()));
        walk.owner = read_at(walk.owner);
        let state: u8 = read(sk, &layout::SOCK_STATE);
        let bit = 1u16 << (state & 15);
        if sk != walk.newcomer && (walk.states & bit == 0 || state == TCP_LISTEN) {
            walk.states |= bit;
            tell_walked(sk);
        }
    } else if walk.by_address != 0 {
        let tb2 = walk
            .by_address
            .wrapping_sub(u64::from(layout::TB2_NODE.load()));
        walk.owner = read(tb2, &layout::TB2_OWNERS);
        walk.by_address = read_at(walk.by_address);
    } else if walk.chain != 0 {
        let tb = walk.chain.wrapping_sub(u64::from(layout::TB_NODE.load()));
        walk.chain = read_at(walk.chain);
        if read::<u16>(tb, &layout::TB_PORT) == walk.port
            && read::<Address>(tb, &layout::TB_NET) == walk.net
        {
            walk.by_address = read(tb, &layout::TB_BHASH2);
            walk.owner = read(tb, &layout::TB_OWNERS);
        }
    } else {
        return false;
    }
    true
}

/// The beginning of a walk in UDP's table of ports (`udp_table.hash`, net/ipv4/udp.c, 5.10 to 7.3).
#[inline(always)]
fn begin_udp(walk: &mut Walk) {
    let mut table: Address = read(walk.net, &layout::NET_UDP_TABLE);
    if table == 0 {
        let prot: Address = read(walk.newcomer, &layout::SOCK_PROT);
        table = read(prot, &layout::PROT_UDP_TABLE);
    }
    let mask: u32 = read(table, &layout::UDP_MASK);
    let mix: u32 = read(walk.net, &layout::NET_HASH_MIX);
    let slot = u32::from(walk.port).wrapping_add(mix) & mask;
    let slots: Address = read(table, &layout::UDP_HASH);
    let slot = slots.wrapping_add(u64::from(slot) * u64::from(layout::UDP_SLOT.load()));
    walk.chain = read(slot, &layout::UDP_HEAD);
    walk.udp = 1;
}

#[inline(always)]
fn step_udp(walk: &mut Walk) -> bool {
    if walk.chain == 0 {
        return false;
    }
    let sk = walk.chain.wrapping_sub(u64::from(layout::SOCK_NODE.load()));
    walk.chain = read_at(walk.chain);
    if sk != walk.newcomer
        && read::<u16>(sk, &layout::SOCK_NUM) == walk.port
        && read::<Address>(sk, &layout::SOCK_NET) == walk.net
    {
        tell_walked(sk);
    }
    true
}
