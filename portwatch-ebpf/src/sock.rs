//! From `struct sock` and its relatives to [`Socket`].

use core::mem::MaybeUninit;

use aya_ebpf::Global;
use portwatch_common::map::{Endpoints, filter};
use portwatch_common::record::{Requested, Socket, option, socket_flag};

use crate::filter::Filters;
use crate::layout::{self, Address, Fields, Place, read, read_at, read_bits, read_into, zero};
use crate::task;

pub const AF_UNIX: u16 = 1;
pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
pub const IPPROTO_TCP: u16 = 6;
pub const IPPROTO_UDP: u16 = 17;

const SOCK_STREAM: u16 = 1;
const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// A socket that a descriptor leads to; all zero if it leads to none.
///
/// No `Option`: what only one way leads to would be read on the other as well, which the verifier of
/// 5.10 takes for a stack that was not written to.
#[derive(Clone, Copy)]
pub struct Opened {
    /// Its `struct sock`.
    pub sk: Address,
    /// The inode number of its file.
    pub inode: u64,
}

impl Opened {
    /// Whether it is none.
    #[inline(always)]
    pub fn is_none(self) -> bool {
        self.sk == 0
    }
}

/// The socket behind a descriptor of the current task.
#[inline(always)]
pub fn of_descriptor(descriptor: u32) -> Opened {
    of_file(match task::typed() {
        Some(task) => file_of(task, descriptor),
        None => file_of(task::untyped(), descriptor),
    })
}

/// The `struct file` behind a descriptor of a task, or 0.
#[inline(always)]
fn file_of(task: impl Place, descriptor: u32) -> Address {
    let mut table = MaybeUninit::uninit();
    // struct fdtable begins with max_fds and fd.
    let table = task
        .follow(&layout::TASK_FILES)
        .follow(&layout::FILES_FDT)
        .head::<2>(&mut table);
    if descriptor >= table.get(&layout::FDT_MAX_FDS) {
        return 0;
    }
    let slots: Address = table.get(&layout::FDT_FD);
    read_at(slots.wrapping_add(u64::from(descriptor) * 8))
}

/// The `struct file` that leads to this very `struct sock`: to those of the kernel's none does, nor to
/// those underneath an MPTCP socket, which have its `struct socket`.
#[inline(always)]
pub fn file_to<S: Place>(sk: S) -> Option<S> {
    let socket = sk.follow(&layout::SOCK_SOCKET);
    let file = socket.follow(&layout::SOCKET_FILE);
    (socket.get::<Address>(&layout::SOCKET_SK) == sk.address() && file.address() != 0)
        .then_some(file)
}

/// The inode number of a `struct file`.
#[inline(always)]
pub fn inode_of(file: impl Place) -> u64 {
    file.follow(&layout::FILE_INODE).get(&layout::INODE_INO)
}

/// What there is around a `struct sock`: the inode of its file, if it has one.
#[inline(always)]
pub fn opened(sk: Address) -> Opened {
    let socket: Address = read(sk, &layout::SOCK_SOCKET);
    let file: Address = read(socket, &layout::SOCKET_FILE);
    Opened {
        sk,
        inode: if file == 0 { 0 } else { inode_of(file) },
    }
}

/// The socket behind a `struct file`.
#[inline(always)]
pub fn of_file(file: Address) -> Opened {
    let mut opened = Opened { sk: 0, inode: 0 };
    open(file, &mut opened);
    opened
}

/// Apart from its callers, for the sake of their stack.
#[inline(never)]
fn open(file: Address, opened: &mut Opened) {
    if file == 0 {
        return;
    }
    let (mut head, mut inode, mut socket) = (
        MaybeUninit::uninit(),
        MaybeUninit::uninit(),
        MaybeUninit::uninit(),
    );
    let head = file.head::<8>(&mut head);
    let inode = head.follow(&layout::FILE_INODE).head::<9>(&mut inode);
    if inode.get::<u16>(&layout::INODE_MODE) & S_IFMT != S_IFSOCK {
        return;
    }
    let socket = head.follow(&layout::FILE_PRIVATE).head::<4>(&mut socket);
    // Not every file whose inode says socket has its private_data in our sense.
    if socket.get::<Address>(&layout::SOCKET_FILE) != file {
        return;
    }
    opened.sk = socket.get(&layout::SOCKET_SK);
    opened.inode = inode.get(&layout::INODE_INO);
}

/// Whether a `struct sock` is of IPv4 or IPv6.
#[inline(always)]
pub fn is_inet(sk: impl Place) -> bool {
    matches!(family(sk), AF_INET | AF_INET6)
}

/// Whether a `struct sock` is of a family that is told of: netlink and packet sockets are not,
/// AF_UNIX if it was asked for.
#[inline(always)]
pub fn concerns_us(sk: impl Place, filters: Filters) -> bool {
    match family(sk) {
        AF_INET | AF_INET6 => true,
        AF_UNIX => filters.has(filter::UNIX),
        _ => false,
    }
}

/// Bits of [`portwatch_common::record::socket_flag`] that tell whose a socket is.
#[inline(always)]
pub fn owner(sk: impl Place) -> u16 {
    sk.bits(&layout::SOCK_KERNEL) as u16 * socket_flag::KERNEL
}

/// The address family of a `struct sock`.
#[inline(always)]
pub fn family(sk: impl Place) -> u16 {
    sk.get(&layout::SOCK_FAMILY)
}

/// What a `struct sock` says of itself.
///
/// By reference, here and elsewhere: a stack of 512 bytes has no room for copies. `socket` must be
/// all zeros before.
#[inline(always)]
pub fn describe(opened: Opened, socket: &mut Socket) {
    describe_at(opened.sk, opened, socket);
}

/// The same, where the `struct sock` is read from a place that may be typed.
#[inline(always)]
pub fn describe_at(sk: impl Place, opened: Opened, socket: &mut Socket) {
    describe_common(sk, socket);
    socket.address = opened.sk;
    socket.inode = opened.inode;
    socket.protocol = sk.get(&layout::SOCK_PROTOCOL);
    socket.sock_type = sk.get(&layout::SOCK_TYPE);
    if socket.family != AF_UNIX {
        socket.options |= inet_options(opened.sk);
    }
}

/// What a `struct inet_timewait_sock` says of itself.
#[inline(always)]
pub fn describe_timewait(tw: Address, socket: &mut Socket) {
    describe_common(tw, socket);
    socket.address = tw;
    socket.protocol = IPPROTO_TCP;
    socket.sock_type = SOCK_STREAM;
    socket.substate = read(tw, &layout::TW_SUBSTATE);
}

/// Words of a `struct sock_common`, up to the fields that its relatives do not have.
const SOCK_COMMON: usize = 17;

/// The part that is a `struct sock_common`, with which sockets, timewait and request sockets begin.
///
/// Apart from its callers, for the sake of their stack.
#[inline(never)]
fn describe_common<S: Place>(sk: S, socket: &mut Socket) {
    let mut head = MaybeUninit::uninit();
    let head = sk.head::<SOCK_COMMON>(&mut head);
    socket.cookie = head.get(&layout::SOCK_COOKIE);
    socket.netns = head.follow(&layout::SOCK_NET).get(&layout::NET_INUM);
    socket.family = head.get(&layout::SOCK_FAMILY);
    socket.state = head.get(&layout::SOCK_STATE);
    // In an AF_UNIX socket the fields of addresses, ports and flags hold something else.
    if socket.family == AF_UNIX {
        return;
    }
    if socket.family == AF_INET6 {
        *words(&mut socket.local) = head.get(&layout::SOCK_LOCAL6);
        *words(&mut socket.remote) = head.get(&layout::SOCK_REMOTE6);
    } else {
        words(&mut socket.local)[0] = head.get(&layout::SOCK_LOCAL4);
        words(&mut socket.remote)[0] = head.get(&layout::SOCK_REMOTE4);
    }
    socket.local_port = head.get(&layout::SOCK_NUM);
    socket.remote_port = u16::from_be(head.get(&layout::SOCK_DPORT));
    socket.device = head.get(&layout::SOCK_DEVICE);
    socket.options = flag(head.bits(&layout::SOCK_REUSE), option::REUSEADDR)
        | flag(head.bits(&layout::SOCK_REUSEPORT), option::REUSEPORT)
        | flag(head.bits(&layout::SOCK_V6ONLY), option::V6ONLY);
}

/// An address of a [`Socket`] or a [`Requested`], which is aligned, by words.
#[inline(always)]
pub fn words(address: &mut [u8; 16]) -> &mut [u32; 4] {
    const { assert!(core::mem::offset_of!(Socket, local).is_multiple_of(4)) };
    const { assert!(core::mem::offset_of!(Socket, remote).is_multiple_of(4)) };
    const { assert!(core::mem::offset_of!(Requested, address).is_multiple_of(4)) };
    // SAFETY: of the same length, and aligned where it is called.
    unsafe { &mut *core::ptr::from_mut(address).cast() }
}

/// `bit`, if any of the lowest four bits of `bits` is set, and none above them. By arithmetic: every
/// branch here would double the paths that the verifier follows.
#[inline(always)]
fn flag(bits: u32, bit: u16) -> u16 {
    ((bits + 15) >> 4) as u16 * bit
}

#[inline(always)]
fn inet_options(sk: Address) -> u16 {
    let (freebind, transparent, no_port) = match layout::address(sk, &layout::INET_FLAGS) {
        Some(flags) => {
            let flags: u64 = read_at(flags);
            let bit = |number: &Global<u32>| (flags >> number.load() & 1) as u32;
            (
                bit(&layout::FLAG_FREEBIND),
                bit(&layout::FLAG_TRANSPARENT),
                bit(&layout::FLAG_BIND_ADDRESS_NO_PORT),
            )
        }
        None => (
            read_bits(sk, &layout::INET_FREEBIND),
            read_bits(sk, &layout::INET_TRANSPARENT),
            read_bits(sk, &layout::INET_BIND_ADDRESS_NO_PORT),
        ),
    };
    flag(freebind, option::FREEBIND)
        | flag(transparent, option::TRANSPARENT)
        | flag(no_port, option::BIND_ADDRESS_NO_PORT)
}

/// The connection that a socket belongs to.
#[inline(always)]
pub fn endpoints(socket: &Socket) -> Endpoints {
    Endpoints {
        local: socket.local,
        remote: socket.remote,
        netns: socket.netns,
        local_port: socket.local_port,
        remote_port: socket.remote_port,
    }
}

/// Reads the name of the interface with this index in a socket's network namespace; all zero if there is none.
#[inline(always)]
pub fn device_name(sk: Address, index: u32, into: &mut [u8; 16]) {
    zero(core::ptr::from_mut(into));
    if index != 0 {
        let device = find_device(read(sk, &layout::SOCK_NET), index);
        if device != 0 {
            read_into(into, device, &layout::DEV_NAME);
        }
    }
}

/// The `struct net_device` with this index in a namespace, or 0. `net.dev_index_head` is a hash of
/// NETDEV_HASHENTRIES = 256 chains, by index (`dev_index_hash` in net/core/dev.c, 5.10 to 7.3).
///
/// A global function: see [`crate::conflict::tell_holders`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_device(net: Address, index: u32) -> Address {
    let heads: Address = read(net, &layout::NET_DEV_INDEX_HEAD);
    let mut node: Address = read_at(heads.wrapping_add(u64::from(index & 0xff) * 8));
    let Some(node_offset) = layout::address(0, &layout::DEV_INDEX_HLIST) else {
        return 0;
    };
    for _ in 0..16 {
        if node == 0 {
            break;
        }
        let device = node.wrapping_sub(node_offset);
        if read::<u32>(device, &layout::DEV_IFINDEX) == index {
            return device;
        }
        // hlist_node.next is its first field.
        node = read_at(node);
    }
    0
}
