//! Keys and values of the BPF maps that both sides use.

use crate::record::{PATH_BUFFER, Requested, Rewritten, Task, plain};
#[cfg(feature = "user")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

plain! {
    /// Value of the map `BOUND`: what is known of a bound socket, by the address of its `struct sock`.
    pub struct Bound {
        /// Who bound it; all zero if that was before the trace.
        pub binder: Task,
        /// Who closed it, once somebody has; else all zero.
        pub closer: Task,
        /// When it was bound (CLOCK_MONOTONIC, ns), or 0.
        pub bound_at: u64,
        /// Inode number of its file.
        pub inode: u64,
        /// What it was bound to, as [`crate::record::Socket::local`]. Its port may be gone from
        /// the socket before its end can be seen.
        pub local: [u8; 16],
        /// The port it was bound to.
        pub local_port: u16,
        /// Of no meaning; fills the struct up.
        pub reserved: [u16; 3],
    }

    /// Key of the map `CLOSERS`: a connection.
    pub struct Endpoints {
        /// As [`crate::record::Socket::local`].
        pub local: [u8; 16],
        /// As [`crate::record::Socket::remote`].
        pub remote: [u8; 16],
        /// Inode number of the network namespace.
        pub netns: u32,
        /// Local port.
        pub local_port: u16,
        /// Remote port.
        pub remote_port: u16,
    }

    /// Value of the map `CONNECTING`: the peer of the connect(2) that a thread is in.
    pub struct Peer {
        /// As [`crate::record::Socket::remote`].
        pub remote: [u8; 16],
        /// Inode number of the network namespace.
        pub netns: u32,
        /// Remote port.
        pub remote_port: u16,
        /// Of no meaning; fills the struct up.
        pub reserved: u16,
    }

    /// Value of the map `CALLS`: a seat for a thread that is in a bind or listen.
    pub struct Seat {
        /// How many threads have it or want it: who was alone in wanting it has it.
        pub claims: u64,
        /// The thread that has it or had it last, as `bpf_get_current_pid_tgid` has it.
        pub thread: u64,
        /// What it is in.
        pub call: Call,
    }

    /// The bind or listen that a thread is in.
    pub struct Call {
        /// One of [`call`].
        pub kind: u32,
        /// 1 once the kernel's `inet_bind` or `inet_listen` was entered for it.
        pub reached: u16,
        /// 1 once its outcome was told.
        pub told: u16,
        /// The descriptor of a system call.
        pub descriptor: u32,
        /// Length of the address given to a system call, or backlog of a listen.
        pub argument: u32,
        /// The address in user memory given to a system call.
        pub address: u64,
        /// The socket that `inet_bind` or `inet_listen` was entered for, or in the end that is told of.
        pub sk: u64,
        /// Inode number of the file of the one that is told of, or 0.
        pub inode: u64,
        /// 1 once the kernel's check has run into another socket, which the map `CONFLICTS` has.
        pub met: u64,
        /// The address in kernel memory given to `inet_bind`.
        pub sockaddr: u64,
        /// Its first eight bytes, if it had as many, at the entry of `inet_bind`.
        pub head: u64,
        /// What was asked of `inet_bind`, at its entry.
        pub requested: Requested,
        /// What a cgroup program made of it.
        pub rewritten: Rewritten,
    }

    /// Value of the map `PAIRS`: the two sockets that a thread compares, where its return is probed.
    pub struct Pair {
        /// The newcomer.
        pub sk: u64,
        /// The one that has the port.
        pub sk2: u64,
    }

    /// Value of the map `AUTOBINDING`: the port that a thread asks for, where its return is probed.
    pub struct Autobinding {
        /// The socket.
        pub sk: u64,
        /// The port asked for.
        pub port: u64,
    }

    /// Value of the map `WALKS`: where a thread is in the kernel's table of ports.
    pub struct Walk {
        /// The socket that wants the port.
        pub newcomer: u64,
        /// Its network namespace.
        pub net: u64,
        /// The next bucket of the chain; of UDP the next socket.
        pub chain: u64,
        /// The next bucket by address, within a bucket.
        pub by_address: u64,
        /// The next socket, within either.
        pub owner: u64,
        /// The port.
        pub port: u16,
        /// Bits of the states of which one socket was told.
        pub states: u16,
        /// 1 for the table of UDP, 0 for that of TCP.
        pub udp: u32,
    }

    /// Value of the map `PATHS`: a path that a thread is writing down, from its end to the root.
    pub struct Path {
        /// Where it is: a `struct dentry`, or a `struct kernfs_node`.
        pub node: u64,
        /// The `struct vfsmount` of a dentry; else 0.
        pub mount: u64,
        /// How much of the text is written.
        pub length: u32,
        /// 1 once the root was reached.
        pub whole: u32,
        /// Its components, each with a NUL behind it.
        pub text: [u8; PATH_BUFFER],
    }

    /// Value of the map `CANCELLED`: the timewait socket cancelled last on a processor.
    pub struct Cancelled {
        /// Which connection it was.
        pub endpoints: Endpoints,
        /// Address of the `inet_timewait_sock`.
        pub address: u64,
        /// When (CLOCK_MONOTONIC, ns).
        pub time: u64,
    }
}

/// Values of [`Call::kind`].
pub mod call {
    /// None.
    pub const NONE: u32 = 0;
    /// bind(2).
    pub const BIND: u32 = 1;
    /// listen(2).
    pub const LISTEN: u32 = 2;
    /// None of both: the kernel binds or listens for itself, or for io_uring.
    pub const OUTSIDE: u32 = 3;
    /// One of those that the thread has left.
    pub const WAS_OUTSIDE: u32 = 4;
}

/// Indexes of the map `CONTROL`.
pub mod control {
    /// Not 0: the user side sleeps and has to be woken.
    pub const ASLEEP: u32 = 0;
    /// Which filters are set: bits of [`super::filter`].
    pub const FILTERS: u32 = 1;
    /// How many indexes there are.
    pub const COUNT: u32 = 2;
}

/// Bits of [`control::FILTERS`].
///
/// In a map and not a read-only value: the self-test runs before they are set.
pub mod filter {
    /// Only the processes in the map `PIDS`.
    pub const PID: u32 = 1 << 0;
    /// Only the ports in the bitmap `PORTS`.
    pub const PORT: u32 = 1 << 1;
    /// Only the uids in the map `UIDS`.
    pub const UID: u32 = 1 << 2;
    /// Only the network namespaces in the map `NETNS`.
    pub const NETNS: u32 = 1 << 3;
    /// AF_UNIX too.
    pub const UNIX: u32 = 1 << 4;
    /// Of UDP only failures of bind.
    pub const FAILED: u32 = 1 << 5;
    /// Only bound TCP sockets can be followed: no hook tells of the end of others.
    pub const FOLLOW_TCP: u32 = 1 << 6;
}

/// Values of the map `IDENTIFIED`, by `tgid`: what the user side knows of a process.
pub mod identified {
    /// A process record was sent.
    pub const FULL: u32 = 1;
    /// Its parent's record was sent, and a fork record.
    pub const INHERITED: u32 = 2;
}

/// Indexes of the map `LOST`: records that could not be written, by kind (see
/// [`crate::record::kind`]), then what else got lost.
pub mod lost {
    use crate::record::kind;

    /// Bound sockets that did not fit into the map `BOUND`: their release will not be seen.
    pub const BOUND: u32 = kind::COUNT as u32;
    /// Returns of a thread's bind(2) or listen(2) that no kretprobe saw.
    pub const KRETPROBE: u32 = BOUND + 1;
    /// Processes that did not fit into the map `TREE`: they and their descendants are strangers.
    pub const TREE: u32 = KRETPROBE + 1;
    /// How many indexes there are.
    pub const COUNT: u32 = TREE + 1;
}

/// Capacity of the map `CALLS`, a power of two.
pub const CALLS_CAPACITY: u32 = 8_192;
/// Capacity of the maps `CONFLICTS`, `PAIRS` and `WALKS`.
pub const CONFLICTS_CAPACITY: u32 = 2_048;
/// Capacity of the map `PATHS`.
pub const PATHS_CAPACITY: u32 = 1_024;
/// Capacity of the map `CONNECTORS`.
pub const CONNECTORS_CAPACITY: u32 = 16_384;
/// Capacity of the map `AUTOBINDING`.
pub const AUTOBINDING_CAPACITY: u32 = 4_096;
/// Capacity of the map `ENDING`.
pub const ENDING_CAPACITY: u32 = 1_024;
/// Capacity of the map `BOUND`.
pub const BOUND_CAPACITY: u32 = 65_536;
/// Capacity of the map `CLOSERS`.
pub const CLOSERS_CAPACITY: u32 = 16_384;
/// Capacity of the map `IDENTIFIED`.
pub const IDENTIFIED_CAPACITY: u32 = 16_384;
/// Capacity of the map `CONNECTING`.
pub const CONNECTING_CAPACITY: u32 = 1_024;
/// Capacity of the map `QUERIES`: how many timewait sockets can be asked for at a time.
pub const QUERIES_CAPACITY: u32 = 256;
/// Capacity of the map `WANTED`: how many sockets' processes can be asked for at a time.
pub const WANTED_CAPACITY: u32 = 8;
/// Capacity of the map `TREE`, where a tree is followed: its processes at a time, zombies included.
pub const TREE_CAPACITY: u32 = 65_536;
/// Capacity of the filter maps.
pub const FILTER_CAPACITY: u32 = 1_024;
/// Words of the filter map `PORTS`, a bitmap of all ports.
pub const PORT_WORDS: u32 = 65_536 / 64;
