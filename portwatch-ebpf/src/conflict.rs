//! Who has the port that a bind or listen did not get.
//!
//! The kernel's own check says so under the lock of the table of ports: the
//! last socket it ran into before it failed is the holder. Where its functions
//! cannot be hooked, and for the others that have the port as well, the table
//! is walked just after, without the lock.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use portwatch_common::map::call as calls;
use portwatch_common::record::{Holder, evidence, kind, socket_flag, task_flag};

use crate::layout::{self, Address, read, read_at, zero, zeroed};
use crate::maps::{BOUND, CONFLICTS, CONNECTORS};
use crate::sock::{self, IPPROTO_TCP};
use crate::timewait;
use crate::{call, emit};

pub const EADDRINUSE: i32 = -98;

const TCP_TIME_WAIT: u8 = 6;
const TCP_LISTEN: u8 = 10;
const IPPROTO_UDP: u16 = 17;
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
        sock::describe(sk, opened.inode, &mut holder.socket);
        holder.socket.flags = sock::owner(sk)
            | if opened.inode == 0 {
                socket_flag::NO_FILE
            } else {
                0
            };
        holder.uid = read(sk, &layout::SOCK_UID);
    }
    holder.binder.flags = task_flag::UNKNOWN;
    if let Some(bound) = BOUND.get_ptr(sk) {
        // SAFETY: the pointer is valid and aligned for the program's duration.
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
    match read::<u16>(sk, &layout::SOCK_PROTOCOL) {
        IPPROTO_TCP | IPPROTO_MPTCP => walk_tcp(sk, port),
        IPPROTO_UDP | IPPROTO_UDPLITE => walk_udp(sk, port),
        _ => {}
    }
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

/// Walks TCP's table of ports (`inet_hashinfo.bhash`, net/ipv4/inet_hashtables.c, 5.10 to 7.3): a
/// chain of buckets, one for each port and namespace, each with its sockets, or (from 6.8 on) with
/// buckets by address, which have them. One flat loop, since loops within loops are more than the
/// verifier follows.
///
/// A port may have thousands of sockets, all of one server. Of those in the same state one is told,
/// but of those that listen all.
#[inline(never)]
fn walk_tcp(newcomer: Address, port: u16) {
    let net: Address = read(newcomer, &layout::SOCK_NET);
    let table: Address = read(net, &layout::NET_HASHINFO);
    let size: u32 = read(table, &layout::HASHINFO_BHASH_SIZE);
    let mix: u32 = read(net, &layout::NET_HASH_MIX);
    let slot = u32::from(port).wrapping_add(mix) & size.wrapping_sub(1);
    let buckets: Address = read(table, &layout::HASHINFO_BHASH);
    let bucket = buckets.wrapping_add(u64::from(slot) * u64::from(layout::BHASH_BUCKET.load()));
    let mut chain: Address = read(bucket, &layout::BHASH_CHAIN);
    let mut by_address: Address = 0;
    let mut owner: Address = 0;
    let mut states = 0u32;
    for _ in 0..STEPS {
        if owner != 0 {
            let sk = owner.wrapping_sub(u64::from(layout::SOCK_BIND_NODE.load()));
            let state: u8 = read(sk, &layout::SOCK_STATE);
            let bit = 1u32 << (state & 15);
            if sk != newcomer && (states & bit == 0 || state == TCP_LISTEN) {
                states |= bit;
                tell_walked(sk);
            }
            owner = read_at(owner);
        } else if by_address != 0 {
            let tb2 = by_address.wrapping_sub(u64::from(layout::TB2_NODE.load()));
            owner = read(tb2, &layout::TB2_OWNERS);
            by_address = read_at(by_address);
        } else if chain != 0 {
            let tb = chain.wrapping_sub(u64::from(layout::TB_NODE.load()));
            chain = read_at(chain);
            if read::<u16>(tb, &layout::TB_PORT) == port
                && read::<Address>(tb, &layout::TB_NET) == net
            {
                by_address = read(tb, &layout::TB_BHASH2);
                owner = read(tb, &layout::TB_OWNERS);
            }
        } else {
            break;
        }
    }
}

/// Walks UDP's table of ports (`udp_table.hash`, net/ipv4/udp.c, 5.10 to 7.3).
#[inline(never)]
fn walk_udp(newcomer: Address, port: u16) {
    let net: Address = read(newcomer, &layout::SOCK_NET);
    let mut table: Address = read(net, &layout::NET_UDP_TABLE);
    if table == 0 {
        let prot: Address = read(newcomer, &layout::SOCK_PROT);
        table = read(prot, &layout::PROT_UDP_TABLE);
    }
    let mask: u32 = read(table, &layout::UDP_MASK);
    let mix: u32 = read(net, &layout::NET_HASH_MIX);
    let slot = u32::from(port).wrapping_add(mix) & mask;
    let slots: Address = read(table, &layout::UDP_HASH);
    let slot = slots.wrapping_add(u64::from(slot) * u64::from(layout::UDP_SLOT.load()));
    let mut node: Address = read(slot, &layout::UDP_HEAD);
    for _ in 0..STEPS {
        if node == 0 {
            break;
        }
        let sk = node.wrapping_sub(u64::from(layout::SOCK_NODE.load()));
        if sk != newcomer
            && read::<u16>(sk, &layout::SOCK_NUM) == port
            && read::<Address>(sk, &layout::SOCK_NET) == net
        {
            tell_walked(sk);
        }
        node = read_at(node);
    }
}
