//! All maps of the kernel side.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use portwatch_common::map::{
    AUTOBINDING_CAPACITY, Autobinding, BOUND_CAPACITY, Bound, CALLS_CAPACITY, CLOSERS_CAPACITY,
    CONFLICTS_CAPACITY, CONNECTING_CAPACITY, CONNECTORS_CAPACITY, Cancelled, ENDING_CAPACITY,
    Endpoints, FILTER_CAPACITY, IDENTIFIED_CAPACITY, PATHS_CAPACITY, PORT_WORDS, Pair, Path, Peer,
    QUERIES_CAPACITY, Seat, TREE_CAPACITY, WANTED_CAPACITY, Walk, control, lost,
};
use portwatch_common::record::{Holder, Task};

/// The records. The user side sets the size.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(8 << 20, 0);

/// What the user side tells at run time, by the indexes of [`control`].
#[map]
pub static CONTROL: Array<u32> = Array::with_max_entries(control::COUNT, 0);

/// What got lost, by the indexes of [`lost`].
#[map]
pub static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(lost::COUNT, 0);

/// The binds and listens that threads are in: see [`crate::call`].
#[map]
pub static CALLS: Array<Seat> = Array::with_max_entries(CALLS_CAPACITY, 0);

/// The socket that the check for a thread's bind or listen ran into last, by `bpf_get_current_pid_tgid`.
#[map]
pub static CONFLICTS: LruHashMap<u64, Holder> = LruHashMap::with_max_entries(CONFLICTS_CAPACITY, 0);

/// The two sockets that a thread compares, by `bpf_get_current_pid_tgid`, for the kretprobe.
#[map]
pub static PAIRS: LruHashMap<u64, Pair> = LruHashMap::with_max_entries(CONFLICTS_CAPACITY, 0);

/// Where a thread is in the kernel's table of ports, by `bpf_get_current_pid_tgid`.
#[map]
pub static WALKS: LruHashMap<u64, Walk> = LruHashMap::with_max_entries(CONFLICTS_CAPACITY, 0);

/// The path that a thread is writing down, by `bpf_get_current_pid_tgid`.
#[map]
pub static PATHS: LruHashMap<u64, Path> = LruHashMap::with_max_entries(PATHS_CAPACITY, 0);

/// What such a one begins as: all zeros, which are more than fit on a stack.
#[map]
pub static BLANK_PATH: Array<Path> = Array::with_max_entries(1, 0);

/// Addresses of sockets whose processes the user side asks for, up to the first 0.
#[map]
pub static WANTED: Array<u64> = Array::with_max_entries(WANTED_CAPACITY, 0);

/// What a thread asks of `connect` or `get_port`, by `bpf_get_current_pid_tgid`, for the kretprobe.
#[map]
pub static AUTOBINDING: LruHashMap<u64, Autobinding> =
    LruHashMap::with_max_entries(AUTOBINDING_CAPACITY, 0);

/// Why a timewait socket, by its address, is ended before its time.
#[map]
pub static ENDING: LruHashMap<u64, u32> = LruHashMap::with_max_entries(ENDING_CAPACITY, 0);

/// Bound sockets, by the address of their `struct sock`.
///
/// No LRU: what lives longest is a listener, the one that matters most, and
/// an LRU would evict just that while connections churn.
#[map]
pub static BOUND: HashMap<u64, Bound> = HashMap::with_max_entries(BOUND_CAPACITY, 0);

/// Who closed a connection that may go on to TIME_WAIT: the timewait socket is
/// made later, mostly in a softirq on top of a stranger.
#[map]
pub static CLOSERS: LruHashMap<Endpoints, Task> = LruHashMap::with_max_entries(CLOSERS_CAPACITY, 0);

/// Who connected a socket that had no port, by the address of its `struct sock`. Apart from the bound
/// ones: connections churn.
#[map]
pub static CONNECTORS: LruHashMap<u64, Task> = LruHashMap::with_max_entries(CONNECTORS_CAPACITY, 0);

/// The peer of a thread's connect(2), by `bpf_get_current_pid_tgid`.
#[map]
pub static CONNECTING: LruHashMap<u64, Peer> = LruHashMap::with_max_entries(CONNECTING_CAPACITY, 0);

/// The timewait socket that was cancelled last on this processor.
#[map]
pub static CANCELLED: PerCpuArray<Cancelled> = PerCpuArray::with_max_entries(1, 0);

/// Addresses of timewait sockets that the user side asks for, up to the first 0.
#[map]
pub static QUERIES: Array<u64> = Array::with_max_entries(QUERIES_CAPACITY, 0);

/// Which processes the user side knows, by `tgid`: see [`portwatch_common::map::identified`].
#[map]
pub static IDENTIFIED: LruHashMap<u32, u32> = LruHashMap::with_max_entries(IDENTIFIED_CAPACITY, 0);

/// The processes of a tree by `tgid`, with their `start`; 0 stands for any. See [`crate::tree`].
///
/// No LRU: that would evict the oldest, on whose place here their descendants' depends.
#[map]
pub static TREE: HashMap<u32, u64> = HashMap::with_max_entries(TREE_CAPACITY, 0);

/// Filter: a bitmap of the ports wanted.
#[map]
pub static PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

/// Filter: the processes wanted, by `tgid`.
#[map]
pub static PIDS: HashMap<u32, u8> = HashMap::with_max_entries(FILTER_CAPACITY, 0);

/// Filter: the uids wanted.
#[map]
pub static UIDS: HashMap<u32, u8> = HashMap::with_max_entries(FILTER_CAPACITY, 0);

/// Filter: the network namespaces wanted, by inode number.
#[map]
pub static NETNS: HashMap<u32, u8> = HashMap::with_max_entries(FILTER_CAPACITY, 0);
